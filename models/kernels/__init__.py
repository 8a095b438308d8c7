"""Inner loops of mixers: each a reference beside its fast forms, and the choice between them."""

from isoflop.models.kernels.platforms import backend, keep, use

__all__ = ["backend", "keep", "use"]
