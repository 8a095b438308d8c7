"""What a teacher saves its student in data, and in FLOPs where it is charged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import apart
from isoflop.sim.compare.data_gain import gains

Table = Sequence[Mapping[str, Any]]
PLAIN = "data alone"
CHARGES = {
    "tokens": "its tokens",
    "free": "its FLOPs, the teacher charged at zero",
    "full": "its FLOPs, the teacher charged in full",
}


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture: gains of trained teachers' students, and the oracle's student's excess loss;
    none without students of data alone.
    """
    if not any(row["share"] == 0 for row in rows):
        return []
    trained = [row for row in rows if row["floor"] is None]
    known = [row for row in rows if row["floor"] is not None]
    students = sorted({row["width"] for row in trained})
    found = {
        charge: {w: gains(_runs([r for r in trained if r["width"] == w], charge), PLAIN)
                 for w in students}
        for charge in CHARGES
    }  # fmt: skip
    oracle = gains(_runs(known, "tokens"), PLAIN) if known else []
    arms = list(dict.fromkeys(_arm(row) for row in (*trained, *known)))
    looks = apart(arms)
    with style.sheet(len(students) + bool(known), 1, 4.9, 4.6) as (figure, panels):
        for axes, width in zip(panels, students, strict=False):
            own = [row for row in trained if row["width"] == width]
            _losses(axes, own, looks, "loss")
            axes.set(title=f"student of width {width} ({own[0]['N']:,} parameters)")
            axes.set_ylabel("held-out loss (nats per byte)")
        if known:
            _losses(panels[-1], known, looks, "excess")
            panels[-1].set(title="Markov language, its own probabilities")
            panels[-1].set_ylabel("loss less entropy (nats per token)")
        style.key_above(figure)
        style.title(figure, finding(found, oracle))
        style.note(
            figure,
            "means over the seeds, against the student's own training tokens; λ is the teacher's "
            "share in the loss; gains in the title are at the longest length that has one, with 90 "
            "% t intervals over seeds",
        )
    return style.save(figure, {"gains": found, "oracle": oracle, "rows": rows}, out, "distil")


def _arm(row: Mapping[str, Any]) -> str:
    if row["share"] == 0:
        return PLAIN
    who = "oracle" if row["teacher"] == "oracle" else f"teacher of width {row['teacher_width']}"
    return f"{who}, λ = {row['share']:g}"


def _runs(rows: Table, charge: str) -> Iterator[tuple[str, int, float, float]]:
    """(arm, seed, cost, loss) by what is counted as the cost."""
    for row in rows:
        cost = {
            "tokens": row["tokens"],
            "free": row["train_flops"] - row["teacher_flops"],
            "full": row["train_flops"],
        }[charge]
        yield _arm(row), row["seed"], float(cost), row["loss"]


def _losses(axes: Axes, rows: Table, looks: Mapping[str, Any], what: str) -> None:
    drawn, tokens = [], sorted({row["tokens"] for row in rows})
    for arm in dict.fromkeys(_arm(row) for row in rows):
        own = [row for row in rows if _arm(row) == arm]
        line = []
        for d in tokens:
            of = [row["loss"] - (row["floor"] if what == "excess" else 0) for row in own
                  if row["tokens"] == d]  # fmt: skip
            if of:
                line.append((d, sum(of) / len(of)))
        drawn += [loss for _, loss in line if loss > 0]
        axes.plot([d for d, _ in line], [loss for _, loss in line], f"{looks[arm].marker}-",
                  color=looks[arm].colour, label=arm, markersize=4.5)  # fmt: skip
    if not drawn:
        return
    axes.set(xscale="log", yscale="log", xlabel="student's training tokens")
    style.log_axis(axes.xaxis, *style.margins(tokens))
    style.log_axis(axes.yaxis, *style.margins(drawn))


def best(found: Table) -> Mapping[str, Any] | None:
    """Of the arms with a teacher, the greatest gain at the longest length that has one."""
    known = [row for row in found if row["arm"] != PLAIN and "low" in row]
    last = {row["arm"]: row for row in sorted(known, key=lambda row: row["tokens"])}
    return max(last.values(), key=lambda row: row["ratio"], default=None)


def finding(found: Mapping[str, Mapping[int, Table]], oracle: Table) -> str:
    """What the oracle saves, and what the best trained teacher does by each way of charging."""
    said = []
    if (one := best(oracle)) is not None:
        said.append(f"An oracle's student is where data alone are at {_told(one)} × its tokens")
    taught = []
    for charge, told in CHARGES.items():
        every = [row for of in found[charge].values() if (row := best(of)) is not None]
        if every:
            top = max(every, key=lambda row: row["ratio"])
            taught.append(f"{_told(top)} × {told}")
    if taught:
        said.append(f"the best trained teacher's at {', '.join(taught)}")
    return "; ".join(said) or "What a teacher saves"


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
