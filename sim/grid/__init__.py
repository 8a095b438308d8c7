"""Grids of runs and what executes them."""
