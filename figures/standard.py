"""The figures of any grid, unless its experiment has its own: those of the demo."""

from isoflop.figures.quickstart import draw

__all__ = ["draw"]
