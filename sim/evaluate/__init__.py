"""What a finished model is used for."""
