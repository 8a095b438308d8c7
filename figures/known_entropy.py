"""Loss less the known entropy, against tokens and against parameters, beside theory's exponents."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.known_entropy import Line, in_capacity, in_data
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture; none without runs of part `data`."""
    lines = {"training tokens": in_data(rows), "parameters": in_capacity(rows)}
    drawn = {name: line for name, line in lines.items() if len(line.x) > 1}
    if not drawn:
        return []
    with style.sheet(len(drawn), 1, 4.6, 3.8) as (figure, panels):
        for axes, (name, line) in zip(panels, drawn.items(), strict=True):
            _panel(axes, name, line)
        style.title(figure, finding(drawn))
        style.note(figure, "means over seeds; dashed: theory's exponent through the first point")
    return style.save(figure, {name: line.json() for name, line in drawn.items()}, out,
                      "known_entropy")  # fmt: skip


def _panel(axes: Axes, name: str, line: Line) -> None:
    look = style.styles(["dense"])["dense"]
    axes.plot(line.x, line.excess, f"{look.marker}-", color=look.colour)
    first = line.excess[0]
    theory = [first * (x / line.x[0]) ** line.theory for x in line.x]
    axes.plot(line.x, theory, "--", color=style.LINE)
    across, up = style.margins(line.x), style.margins([*line.excess, *theory])
    axes.set(xscale="log", yscale="log", xlim=across, ylim=up)
    style.log_axis(axes.xaxis, *across)
    style.log_axis(axes.yaxis, *up)
    axes.set(xlabel=name, ylabel="loss − entropy (nats per token)", title=line.told)


def finding(lines: dict[str, Line]) -> str:
    """What each exponent is, and whether theory's lies in its interval."""
    words = {True: "as theory says", False: "unlike theory", None: "theory not resolved"}
    said = (f"{name} to the {line.fitted} ({words[line.agrees]})" for name, line in lines.items())
    return f"The excess loss falls as {style.listed(said)}"
