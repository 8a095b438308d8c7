"""How fast each family trains, reads and writes beside this machine's matmuls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from isoflop.figures import palette, style

ENDS = ("low", "high")


class Panel(NamedTuple):
    """A value of one program's rows, over another of their values or a unit."""

    program: str
    value: str
    title: str
    axis: str
    over: str | float = 1.0
    log: bool = True
    even: bool = False  # a line at 1
    told: Callable[[float], str] | None = None  # a tick with its unit

    def shows(self, row: dict) -> bool:
        return row["program"] == self.program and self.value in row

    def of(self, row: dict, end: str = "") -> float:
        """The value, or that end of its range where it has one."""
        value = row.get(f"{self.value}_{end}", row[self.value])
        return value / (row[self.over] if isinstance(self.over, str) else self.over)


SHARE = "share of the best matmul rate"
PANELS = (
    Panel("train_step", "matmul_share", "Training step", SHARE, log=False),
    Panel("prefill", "matmul_share", "Prefill (read the prompts)", SHARE, log=False),
    Panel("decode", "seconds", "Decode (one token of each sequence)", "time", told=style.seconds),
    Panel("train_step", "memory_bytes", "Memory of a training step", "bytes", told=style.bytes_),
)


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture, a panel for each program and the memory; none where nothing was measured."""
    note = "median and range of turns taken with fp32 products of sides 512 to 2048"
    return picture(rows, PANELS, size, (finding(rows), note), out, "bench")


def finding(rows: list[dict]) -> str:
    """The range of the training step's share at the largest width, and who is at its ends."""
    steps = [row for row in rows if PANELS[0].shows(row)]
    if not steps:
        return "Speed beside this machine's matrix products"
    width = max(row["width"] for row in steps)
    wide = sorted((row for row in steps if row["width"] == width), key=PANELS[0].of)
    low, high = wide[0], wide[-1]
    ends = f"{PANELS[0].of(low):.2f} ({low['family']})"
    if low is not high:
        ends += f" to {PANELS[0].of(high):.2f} ({high['family']})"
    return f"At width {width} a training step runs at {ends} of the best matmul rate"


def size(row: dict[str, Any]) -> str:
    """A row's shape in words."""
    tokens = style.tokens(row["seq_len"])
    return f"d {row['width']} L {row['depth']} T {tokens} batch {row['batch']}"


def picture(
    rows: Sequence[dict],
    panels: Sequence[Panel],
    kind: Callable[[dict], str],
    said: tuple[str, str],
    out: Path,
    name: str,
) -> list[Path]:
    """The panels that have rows: a column for each family, a point in it for each kind of row.

    `said` are the title and the note.
    """
    told = [(panel, [row for row in rows if panel.shows(row)]) for panel in panels]
    told = [(panel, mine) for panel, mine in told if mine]
    if not told:
        return []
    kinds = palette.kinds(kind(row) for row in rows)
    columns = min(2, len(told))
    with style.sheet(columns, -(-len(told) // columns), width=4.8, height=3.3) as (figure, axes):
        for (panel, mine), ax in zip(told, axes, strict=False):
            _dots(ax, panel, mine, kind, kinds)
        style.drop(axes[len(told) :])
        style.key_above(figure)
        style.title(figure, said[0])
        style.note(figure, said[1])
    return style.save(figure, rows, out, name)


def _dots(
    axes: Axes,
    panel: Panel,
    rows: Sequence[dict],
    kind: Callable[[dict], str],
    kinds: dict[str, style.Style],
) -> None:
    families = list(style.styles(row["family"] for row in rows))
    for i, (name, look) in enumerate(kinds.items()):
        mine = [row for row in rows if kind(row) == name]
        middle = [panel.of(row) for row in mine]
        spread = [[abs(panel.of(row, end) - panel.of(row)) for row in mine] for end in ENDS]
        place = 0.7 * ((i + 0.5) / len(kinds) - 0.5)
        axes.errorbar(
            [families.index(row["family"]) + place for row in mine],
            middle,
            yerr=spread,
            fmt=look.marker,
            color=look.colour,
            markersize=7,
            elinewidth=1,
            capsize=2,
            label=style.label(name),
        )
    axes.set_xticks(range(len(families)), [name.replace("_", "_\n") for name in families])
    axes.set(xlim=(-0.6, len(families) - 0.4), title=panel.title, ylabel=panel.axis)
    axes.grid(axis="x", visible=False)
    if panel.log:
        limits = style.margins([panel.of(row, end) for row in rows for end in ENDS], 0.1)
        axes.set(yscale="log", ylim=limits)
        style.log_axis(axes.yaxis, *limits, panel.told)
    else:
        axes.set_ylim(bottom=0)
    if panel.even:
        axes.axhline(1, color=style.LINE, linewidth=1)
