"""Fast forms of the mixers' inner loops, each beside its reference."""
