"""What a longer training context buys: loss at equal tokens and by position, gains and N*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.contexts import Contexts
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture of four panels; none without two contexts."""
    found = Contexts(rows)
    if len(found.cells) < 2:
        return []
    numbers = _numbers(found)
    looks = style.styles(numbers)
    with style.sheet(2, 2, 5.2, 3.7) as (figure, panels):
        for family, look in looks.items():
            told, line = numbers[family], f"{look.marker}-"
            tokens, position = told["loss"], told["by_position"]
            panels[0].plot(list(tokens), list(tokens.values()), line, color=look.colour)
            panels[1].plot([max(n, 0.5) for n in position], list(position.values()), line,
                           color=look.colour, markersize=4)  # fmt: skip
            for axes, name in ((panels[2], "gain"), (panels[3], "optimum")):
                _bars(axes, told[name], look)
            panels[0].plot([], [], line, color=look.colour, label=style.label(family))
        _finish(panels, found)
        style.key_above(figure)
        style.title(figure, finding(numbers))
        style.note(
            figure,
            "above: the largest model with most tokens, means over seeds; below: 90 % intervals, "
            f"N* at {style.scientific(found.budget)} executed FLOPs, between trained sizes",
        )
    return style.save(figure, numbers, out, "context_training")


def _bars(axes: Axes, values: dict[int, Any], look: style.Style) -> None:
    if not values:
        return
    x, y = list(values), [value for value, _, _ in values.values()]
    spread = [[y - low for y, low, _ in values.values()], [h - y for y, _, h in values.values()]]
    axes.errorbar(x, y, yerr=spread, color=look.colour, marker=look.marker, capsize=2, linewidth=1)


def _finish(panels: list[Axes], found: Contexts) -> None:
    lengths, longest = list(found.cells), max(found.cells)
    for axes in (panels[0], panels[2], panels[3]):
        axes.set(xscale="log", xlabel="training context T (tokens)")
        axes.set_xticks(lengths, [style.tokens(n) for n in lengths])
        axes.minorticks_off()
    panels[0].set(title="Loss at equal tokens", ylabel="held-out loss (nats per token)")
    panels[1].set(xscale="log", title=f"Loss by position, T = {style.tokens(longest)}")
    style.log_axis(panels[1].xaxis, *panels[1].get_xlim())
    panels[1].set(xlabel="position (first of its bucket)", ylabel="held-out loss (nats per token)")
    panels[2].set(yscale="log", title="Gain over dense, executed FLOPs", ylabel="gain")
    panels[2].axhline(1, color=style.LINE, linewidth=0.8)
    panels[3].set(yscale="log", title="Compute-optimal size", ylabel="N* (parameters)")
    for axes in panels[2:]:
        low, high = axes.get_ylim()
        style.log_axis(axes.yaxis, low, high)


def finding(numbers: dict[str, Any]) -> str:
    """How loss changes from the shortest to the longest context, of families trained at both."""
    lengths = [length for told in numbers.values() for length in told["loss"]]
    short, long = min(lengths), max(lengths)
    changes = {
        family: told["loss"][long] - told["loss"][short]
        for family, told in numbers.items()
        if {short, long} <= told["loss"].keys()
    }
    if not changes:
        return "Loss against the training context"
    order = sorted(changes, key=lambda family: changes[family])
    ends = dict.fromkeys((order[0], order[-1]))
    said = " to ".join(f"{_signed(changes[family])} nats ({family})" for family in ends)
    return (
        f"From {style.tokens(short)} to {style.tokens(long)} tokens of context the loss at equal "
        f"tokens changes by {said}"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _numbers(found: Contexts) -> dict[str, Any]:
    longest = max(found.cells)
    return {
        name: {
            "loss": {n: point.loss for n, point in found.at_equal_tokens(name).items()},
            "by_position": found.by_position(name, longest),
            "gain": {n: (g.value, g.low, g.high) for n, g in found.gains(name).items()}
            if name != found.baseline
            else {},
            "optimum": found.optimum(name),
        }
        for name in found.families
    }
