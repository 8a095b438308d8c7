"""What a store of text gains, by its size and in training; and whether facts obey their law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import ORDER
from isoflop.sim.compare.points import ordered
from isoflop.sim.compare.retrieval import by_store, families, obeys, per_byte, told_apart
from isoflop.sim.records.metrics import Z90

CONTROLS = {
    "train on all": "as much text again, trained on",
    "seen text": "store of the trained text",
    "passages": "passages in the context",
    "random store": "store in random order",
    "random passages": "random passages",
}
TRAINED = {  # arm → what it is, and what it is measured against
    "neighbours": "neighbours,\non equal FLOPs",
    "neighbours, equal tokens": "neighbours,\non equal tokens",
    "random neighbours": "random neighbours,\non equal tokens",
    "judged with random neighbours": "judged with random,\non equal tokens",
}


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture: gains over store sizes, controls, and facts; none without a table."""
    names = ordered(families(rows, "text"), ORDER)
    if not names:
        return []
    looks = style.styles(names)
    lines = {family: by_store(rows, family) for family in names}
    with style.sheet(4, 1, width=4.7, height=4.6) as (figure, axes):
        _stores(axes[0], rows, names, looks)
        _controls(axes[1], rows, names, looks)
        _trained(axes[2], rows, names, looks)
        _facts(axes[3], rows, names, looks)
        style.key_above(figure)
        style.title(figure, finding(rows, lines))
        style.note(
            figure,
            "gains are means over seeds, of runs on half of the text; bars: 90 % over held-out "
            "sequences, the mean of the seeds'; trained with neighbours: on plain runs, seeds are "
            "small marks; right: a mark for each run and table, its law a line; facts that were "
            "drawn after training, looked up in a table",
        )
    return style.save(figure, {"rows": rows, "parabola": lines}, out, "retrieve")


def finding(rows: Sequence[Mapping[str, Any]], lines: Mapping[str, Any]) -> str:
    """Whether gains are logarithmic, what the bytes are worth, and whether facts obey."""
    said = []
    grown: dict[str, list[str]] = {}
    for family, found in lines.items():
        if found:
            grown.setdefault(_growth(found), []).append(family)
    if grown:
        each = (f"{how} for {style.listed(whom)}" for how, whom in grown.items())
        said.append(f"The gain grows {' and '.join(each)}")
    worth = [one for row in rows if row.get("arm") == "store" and (one := per_byte(row))]
    if worth:
        best = max(value for value, *_ in worth)
        said.append(f"N_eff/N for each byte held is at most {best:.2g} of the run's own")
    trained = [row for row in rows if row["part"] == "trained" and row["arm"] == "neighbours"]
    for sign, what in ((-1, "pays"), (0, "changes nothing that is resolved"), (1, "costs")):
        if some := [row["family"] for row in trained if told_apart(row) == sign]:
            said.append(f"training with neighbours {what} at equal FLOPs for {style.listed(some)}")
    facts = [row for row in rows if row["part"] == "facts"]
    if facts:
        said.append(f"{sum(map(obeys, facts))} of {len(facts)} losses on new facts obey the law")
    return "; ".join(said) or "What retrieval gains"


def _growth(found: Mapping[str, Sequence[float]]) -> str:
    """How a gain grows, by the intervals of its slope and curvature over log2 of the store."""
    (_, rising, _), (_, low, high) = found["slope"], found["curvature"]
    if rising <= 0:
        return "by nothing that is resolved"
    how = "faster than" if low > 0 else "slower than" if high < 0 else "with"
    return f"{how} the logarithm of the store"


def _stores(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], looks: Mapping[str, Any]
) -> None:
    for family in names:
        mine = sorted(
            (row for row in rows if row.get("arm") == "store" and row["family"] == family),
            key=lambda row: row["store"],
        )
        axes.errorbar(
            [row["store"] for row in mine], [-row["change"] for row in mine],
            yerr=[Z90 * row["se"] for row in mine], label=style.label(family),
            color=looks[family].colour, marker=looks[family].marker, elinewidth=1,
        )  # fmt: skip
    sizes = [row["store"] for row in rows if row.get("arm") == "store"]
    axes.set(xscale="log", title="Gain over the store", xlabel="tokens in the store",
             ylabel="fall of the loss (nats per token)")  # fmt: skip
    if sizes:
        style.log_axis(axes.xaxis, *style.margins(sizes))
    axes.axhline(0, color=style.LINE, linewidth=0.8)


def _controls(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], looks: Mapping[str, Any]
) -> None:
    arms = [arm for arm in CONTROLS if any(row.get("arm") == arm for row in rows)]
    largest = max((row["store"] for row in rows if row.get("arm") == "store"), default=0)
    told = {("store", largest): f"store of {style.short(largest)} tokens"}
    told |= {(arm, None): CONTROLS[arm] for arm in arms}
    for i, family in enumerate(names):
        for y, (arm, size) in enumerate(told):
            for row in rows:
                if row.get("arm") != arm or row["family"] != family or (
                    size is not None and row["store"] != size
                ):  # fmt: skip
                    continue
                error = Z90 * row["se"] if "se" in row else 0.0
                shift = 0.3 * ((i + 0.5) / len(names) - 0.5)
                axes.errorbar(
                    [-row["change"]], [y + shift], xerr=[error], color=looks[family].colour,
                    marker=looks[family].marker, elinewidth=1,
                )  # fmt: skip
    axes.axvline(0, color=style.LINE, linewidth=0.8)
    axes.set_yticks(range(len(told)), list(told.values()))
    axes.invert_yaxis()
    axes.set(title="Beside the controls", xlabel="fall of the loss (nats per token)")


def _trained(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], looks: Mapping[str, Any]
) -> None:
    """As `_controls`; a small mark is a seed."""
    mine = [row for row in rows if row["part"] == "trained" and row["family"] in names]
    for row in mine:
        look, y = looks[row["family"]], [*TRAINED].index(row["arm"])
        at = y + 0.3 * ((names.index(row["family"]) + 0.5) / len(names) - 0.5)
        axes.errorbar([-row["change"]], [at], xerr=[Z90 * row["se"]], color=look.colour,
                      marker=look.marker, elinewidth=1)  # fmt: skip
        axes.plot([-x for x in row["changes"]], [at] * len(row["changes"]), color=look.colour,
                  marker=look.marker, markersize=3, linestyle="none", alpha=0.5)  # fmt: skip
    axes.axvline(0, color=style.LINE, linewidth=0.8)
    axes.set_yticks(range(len(TRAINED)), list(TRAINED.values()))
    axes.invert_yaxis()
    axes.set(title="Trained with neighbours", xlabel="fall of the loss (nats per token)")


def _facts(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], looks: Mapping[str, Any]
) -> None:
    facts = [row for row in rows if row["part"] == "facts"]
    for row in facts:
        full = row["arm"] == "never twice"
        axes.errorbar(
            [row["coverage"]], [row["loss"]], yerr=[Z90 * row["se"]], elinewidth=1,
            color=looks[row["family"]].colour, marker=looks[row["family"]].marker,
            fillstyle="full" if full else "none",
        )  # fmt: skip
    for family, arm, seed in dict.fromkeys((r["family"], r["arm"], r["seed"]) for r in facts):
        line = sorted(
            (r["coverage"], r["law"]) for r in facts
            if (r["family"], r["arm"], r["seed"]) == (family, arm, seed)
        )  # fmt: skip
        axes.plot(*zip(*line, strict=True), color=style.LINE, linewidth=0.8, zorder=1)
    axes.set(title="Facts drawn after training", xlabel="share of questions that the table covers",
             ylabel="loss (nats per token)")  # fmt: skip
    if facts:
        axes.axhline(facts[0]["floor"], color=style.LINE, linewidth=0.8, linestyle=":")
        axes.text(0.0, facts[0]["floor"], "entropy of what is asked", fontsize=8, color=style.LINE,
                  va="bottom", transform=axes.get_yaxis_transform())  # fmt: skip
        stale = [r for r in facts if r["arm"] == "others"]
        if stale:
            axes.text(0.97, 0.97, "open: learnt other facts\nfilled: facts never the same twice",
                      fontsize=8, color=style.LINE, va="top", ha="right",
                      transform=axes.transAxes)  # fmt: skip
