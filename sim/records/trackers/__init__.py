"""Mirrors of the records in the field's trackers; found by their file's name."""
