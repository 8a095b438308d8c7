"""What runs leave behind, and tables of anybody's runs."""
