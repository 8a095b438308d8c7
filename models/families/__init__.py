"""Families made from one dial, and published mixtures, at matched parameters."""
