"""Steps to 95 % of the letters against the length of the string that is copied."""

from __future__ import annotations

import math
from pathlib import Path

from isoflop.figures import style
from isoflop.sim.compare.trials import steps_to
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture; none without finished runs."""
    looks = style.styles(str(row.labels["family"]) for row in rows)
    found = {family: steps for family in looks if (steps := steps_to(rows, family))}
    if not found:
        return []
    tried = sorted({row.record.run.budget.steps for row in rows})
    never = 2 * tried[-1]
    lengths = sorted({length for steps in found.values() for length in steps})
    with style.sheet(1, 1, 6.4, 4.4) as (figure, (axes,)):
        for i, (family, steps) in enumerate(found.items()):
            look, apart = looks[family], 1 + 0.01 * (2 * i + 1 - len(found))  # equal ones show
            x = [length * apart for length in steps]
            y = [never if math.isinf(count) else count for count in steps.values()]
            axes.plot(x, y, f"{look.marker}-", color=look.colour, label=style.label(family))
        axes.set(xscale="log", yscale="log", ylim=style.margins([tried[0], never], 0.1))
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_yticks([*tried, never], [*map(str, tried), "never"])
        axes.minorticks_off()
        axes.set(xlabel="letters of the string", ylabel="steps from which on 95 % are right")
        style.key(axes)
        style.title(figure, finding(found))
        style.note(figure, f"runs of {style.listed(map(str, tried))} steps; means over seeds")
    numbers = {
        family: {length: None if math.isinf(count) else count for length, count in steps.items()}
        for family, steps in found.items()
    }
    return style.save(figure, numbers, out, "copying")


def finding(found: dict[str, dict[int, float]]) -> str:
    """Who copies the longest strings, and in how many steps, of those trained on them."""
    longest = max(length for steps in found.values() for length in steps)
    needed: dict[float, list[str]] = {}
    for family, steps in found.items():
        if longest in steps:
            needed.setdefault(steps[longest], []).append(family)
    never = needed.pop(math.inf, [])
    if not needed:
        return f"No family copies {longest} letters within these steps"
    said = style.listed(f"from {n:g} on by {style.listed(needed[n])}" for n in sorted(needed))
    rest = f"; not within these steps by {style.listed(never)}" if never else ""
    return f"Strings of {longest} letters are copied, in steps: {said}{rest}"
