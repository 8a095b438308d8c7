"""IsoFLOP valleys: loss over size at each budget, and the sizes of least loss over compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from isoflop.figures import style
from isoflop.models.errors import UserError
from isoflop.sim.laws.isoflop import Allocation, Valley

SUFFIXES = (".svg", ".png")


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"--figure must end in {' or '.join(SUFFIXES)}, and is {path.name!r}")


def draw(found: Allocation, path: Path) -> list[Path]:
    """Write path as SVG, PNG and JSON, whichever of the first two it names."""
    check_suffix(path)
    shades = _shades(len(found.valleys))
    with style.sheet(2, width=5.4, height=4.6) as (figure, (left, right)):
        for valley, shade in zip(found.valleys, shades, strict=True):
            left.plot(valley.N, valley.loss, "o", color=shade, ms=4, alpha=0.75)
            left.plot(*valley.line, color=shade, label=_named(valley))
            if not valley.why:
                left.plot(valley.best, valley.least, "*", color=shade, ms=11, mec="black", mew=0.5)
                _minimum(right, valley, shade)
        reach = style.margins([v.C for v in found.valleys], 0.04)
        c = np.geomspace(*reach, 50)
        low, high = np.array([found.band(float(at)) for at in c]).T
        right.fill_between(c, low, high, color=style.LINE, alpha=0.15, lw=0)
        right.plot(c, found(c), color=style.LINE, label=f"N* ∝ C^{found.a:.2f}, 90 % band")
        sizes = np.concatenate([v.N for v in found.valleys])
        losses = np.concatenate([v.loss for v in found.valleys])
        left.set(xlabel="N, parameters", ylabel="loss, nats per token", xscale="log", yscale="log")
        right.set(xlabel="compute C, FLOPs", ylabel="N*, parameters", xscale="log", yscale="log")
        left.set_xlim(style.margins(sizes))
        left.set_ylim(style.margins(losses))
        right.set_xlim(reach)
        style.log_axis(left.xaxis, *left.get_xlim())
        style.log_axis(left.yaxis, *left.get_ylim())
        style.log_axis(right.xaxis, *reach)
        style.log_axis(right.yaxis, *right.get_ylim())
        style.key_above(figure)
        style.title(figure, heading(found))
        style.note(
            figure,
            "Stars: minima. Bars: 90 %, Student t of the parabola's residuals, where sizes are "
            f"enough for one. {len(found.C)} of {len(found.valleys)} budgets have a minimum inside "
            "their sizes.",
        )
        return style.save(figure, _numbers(found), path.parent, path.stem)


def heading(found: Allocation) -> str:
    """The finding in a sentence."""
    low, high = found.interval
    if low > 0.5:
        said = "parameters should grow faster than tokens"
    elif high < 0.5:
        said = "tokens should grow faster than parameters"
    else:
        said = "parameters and tokens may grow alike"
    return (
        f"The size of least loss grows as C^{found.a:.2f} [{low:.2f}, {high:.2f}] over "
        f"{len(found.C)} budgets: {said}"
    )


def _minimum(axes: Any, valley: Valley, shade: str) -> None:
    low, high = valley.interval
    bar = [[valley.best - low], [high - valley.best]] if np.isfinite(low) else None
    axes.errorbar(valley.C, valley.best, yerr=bar, fmt="*", color=shade, ms=10, mec="black",
                  mew=0.5, ecolor=shade, capsize=2)  # fmt: skip


def _named(valley: Valley) -> str:
    return f"{style.scientific(valley.C)} FLOPs" + (" (left out)" if valley.why else "")


def _shades(count: int) -> Sequence[str]:
    """Light to dark, as compute grows."""
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1.0, count))
    return [matplotlib.colors.to_hex(colour) for colour in colours]


def _numbers(found: Allocation) -> dict[str, Any]:
    return {
        "a": found.a,
        "interval": list(found.interval),
        "coefficient": found.coefficient,
        "valleys": [
            {"C": v.C, "N": v.N.tolist(), "loss": v.loss.tolist(), "N*": v.best, "L*": v.least,
             "interval": list(v.interval), "left out": v.why}
            for v in found.valleys
        ],
        "warnings": list(found.warnings),
    }  # fmt: skip
