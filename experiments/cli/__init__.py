"""The `isoflop` command."""
