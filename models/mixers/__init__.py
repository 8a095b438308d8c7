"""Sequence mixers and channel mixers, one idea a file."""
