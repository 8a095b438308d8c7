"""Gains between architectures, and the designs that resolve them."""
