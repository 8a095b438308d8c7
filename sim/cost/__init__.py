"""FLOPs, bytes and seconds, counted and measured."""
