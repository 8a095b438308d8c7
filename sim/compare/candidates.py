"""Things that could be taken, with draws of their quality: before anything is known of serving.

Three origins, told with every candidate and never mixed in silence:

    lab        arms measured here: quality is −loss of the runs' own laws, at the scale of the runs;
               or of treated runs beside plain ones (treated.py)
    published  a printed law of N and D: −loss, without an interval, for none was printed with it
    rows       a table of the user's own: quality as it stands, with its standard error if given

`carried` puts an architecture on a published law by a gain measured in the lab, that is, it assumes
that a gain at 10⁵ parameters holds at 10⁹. The assumption is in the candidate's basis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.checkpoints.published import facts, named, shape
from isoflop.models.checkpoints.shapes import Shape
from isoflop.models.errors import UserError, listed
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare.family_fits import surface
from isoflop.sim.compare.points import COUNT, families, points
from isoflop.sim.cost.choose import METRICS, Candidate
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.law import FLOPS_PER_ND
from isoflop.sim.laws.published import PUBLISHED
from isoflop.sim.records.metrics import Z90
from isoflop.sim.records.store import Row
from isoflop.sim.records.tables import BadCell, Columns, Dropped, describe, label, number, require

Floats = NDArray[np.float64]

DRAWS = 2000
FITTED = 200  # bootstrap draws of a family's law, which worlds repeat
KEPT = {"int4": 0.923}  # share of N that weights of a format are worth: 2502.16440, table 2
LOSS = "−loss (nats per token)"


@dataclass(frozen=True)
class Option:
    """A candidate before its serving cost: quality draws (n,), and the model to serve."""

    name: str
    quality: Floats
    basis: str
    model: ModelConfig | None = None  # to serve; None: a shape of `params` is assumed
    extra_params: int = 0  # resident beside the model's own
    params: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)  # of METRICS, measured by the user
    family: str = "dense"  # whose shape stands for a model that is not known
    formats: Mapping[str, Floats] = field(default_factory=dict)  # quality with weights of a format
    engine: Mapping[str, str] = field(default_factory=dict)  # formats that it is always served in
    train_flops: float = 0.0  # to have it; 0: it is there already
    buy: str = ""  # the measurement of its quality
    facts: Mapping[str, Any] = field(default_factory=dict)

    def priced(self) -> Candidate:
        """The candidate at the costs that its row brings."""
        costs = {k: np.full(len(self.quality), v) for k, v in self.costs.items()}
        return Candidate(self.name, self.quality, costs, self.basis, self.bought, self.facts)

    @property
    def bought(self) -> dict[str, str]:
        return {"quality": self.buy} if self.buy else {}


def rows(
    columns: Columns, quality: str = "quality", seed: int = 0
) -> tuple[list[Option], list[Dropped]]:
    """Candidates of a table: `model`, a quality, and what else is known of it.

    `QUALITY_se` is the quality's standard error; without it `questions`, the number of yes-or-no
    questions that an accuracy is of, gives the binomial one; without either a quality is exact.
    A model is served as the config.json of column `config` has it, or as the published one that it
    is named after, else in a shape of `params` parameters. p95 (s), per_query ($), memory (B) and
    joules are measured costs, which stand before predicted ones. Raises UserError for missing
    columns and where no row can be used.
    """
    require(columns, ["model", quality])
    rng = np.random.default_rng(seed)
    found, dropped = [], []
    for i in range(len(columns["model"])):
        row = {name: column[i] for name, column in columns.items()}
        try:
            found.append(_row(row, quality, rng))
        except BadCell as bad:
            dropped.append(Dropped(i + 1, *bad.why))
    if not found:
        raise UserError(f"no row can be a candidate: {describe(dropped)}; correct the file")
    return found, dropped


def _row(row: Mapping[str, Any], quality: str, rng: np.random.Generator) -> Option:
    name, value = label(row["model"], "model"), _finite(row[quality], quality)
    known = {k: number(v, k) for k, v in row.items() if k in (*METRICS, "params") and _there(v)}
    error = 0.0
    if _there(row.get(f"{quality}_se")):
        error = number(row[f"{quality}_se"], f"{quality}_se")
    elif _there(row.get("questions")):
        if not 0 <= value <= 1:
            raise BadCell(quality, "is no accuracy in 0 to 1, which questions need", f"{value:g}")
        count = number(row["questions"], "questions")
        error = float(np.sqrt(max(value * (1 - value), 0.25 / count) / count))
    told_of = {k: label(row[k], k) for k in ("source", "date") if _there(row.get(k))}
    own = _known(name, str(row["config"]) if _there(row.get("config")) else "")
    told = f" ± {error:.2g}" if error else ", taken as exact: no standard error is given"
    return Option(
        name,
        value + error * rng.standard_normal(DRAWS),
        f"your rows: {quality} {value:.4g}{told}",
        model=own.model if own else None,
        extra_params=own.extra if own else 0,
        params=float(own.model.cost(1).params + own.extra) if own else known.get("params"),
        costs={k: v for k, v in known.items() if k != "params"},
        buy=f"test {name} on more questions" if error else "",
        facts=told_of,
    )


def _known(name: str, config: str) -> Shape | None:
    """What a row's config.json says, or the published model that it is named after."""
    try:
        return named(config) if config else shape(_index()[_plain(name)])
    except KeyError:
        return None
    except UserError as error:
        raise BadCell("config", "cannot be read", str(error)) from None


@cache
def _index() -> dict[str, str]:
    """Published models by the plain form of their names and of their repositories'."""
    return {_plain(word): name for name, f in facts().items() for word in (f.repo, name)}


def _plain(name: str) -> str:
    """meta-llama/Llama-2-7b-hf and llama-2-7b alike."""
    last = name.lower().rpartition("/")[2].removeprefix("meta-")
    return re.sub(r"(-hf|-base|-pt|-v0\.1|-fp8)$", "", last)


def _there(cell: Any) -> bool:
    return cell is not None and str(cell).strip().lower() not in ("", "nan")


def _finite(cell: Any, name: str) -> float:
    """A quality may be zero or negative, and so is not `number`."""
    if not _there(cell):
        raise BadCell(name, "is empty")
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise BadCell(name, "is not a number", repr(cell)[:40]) from None
    if not np.isfinite(value) or abs(value) > 1e12:
        raise BadCell(name, "is not finite", f"{value}")
    return value


def published(law: str, sizes: Sequence[float], tokens: float, draws: int = DRAWS) -> list[Option]:
    """Sizes on a printed law of N and D, each trained on `tokens`. UserError for another law."""
    entry, surface_ = PUBLISHED.get(law), _surface(law)
    assert entry is not None
    return [
        Option(
            f"{size(n)}",
            np.full(draws, -float(surface_(n, tokens))),
            f"published law {law} ({entry.source}; N: {entry.counts}) at {size(tokens)} tokens, "
            "as printed and without an interval",
            params=float(n),
            formats={k: np.full(draws, -float(surface_(e * n, tokens))) for k, e in KEPT.items()},
            train_flops=FLOPS_PER_ND * n * tokens,
            facts={"params": float(n), "tokens": float(tokens), "law": law},
        )
        for n in _positive(sizes, tokens)
    ]


def carried(
    law: str, family: str, gain: tuple[float, float, float], sizes: Sequence[float], tokens: float,
    seed: int = 0, draws: int = DRAWS,
) -> list[Option]:  # fmt: skip
    """The same sizes of another architecture, as good as the law's with `gain` times the compute.

    `gain` is (low, middle, high), a 90 % interval of a compute-equivalent gain, half of whose
    logarithm goes to N and half to D. One gain holds for all sizes in a world.
    """
    low, middle, high = gain
    if not 0 < low <= middle <= high < 1e6:
        raise UserError(f"a gain must have 0 < low ≤ middle ≤ high, and is {gain}; correct it")
    spread = np.log(high / low) / (2 * Z90)
    g = np.sqrt(middle * np.exp(spread * np.random.default_rng(seed).standard_normal(draws)))
    law_ = _surface(law)
    return [
        Option(
            f"{family} {size(n)}",
            -np.asarray(law_(n * g, tokens * g)),
            f"published law {law} with {family}'s gain of {middle:.2f} [{low:.2f}, {high:.2f}], "
            "measured in the lab at 10⁴ to 10⁵ parameters: that it holds here is an ASSUMPTION",
            params=float(n),
            family=family,
            formats={k: -np.asarray(law_(e * n * g, tokens * g)) for k, e in KEPT.items()},
            train_flops=FLOPS_PER_ND * n * tokens,
            buy=f"train {family} beside dense at ten times the lab's largest compute",
            facts={"params": float(n), "tokens": float(tokens), "law": law, "family": family},
        )
        for n in _positive(sizes, tokens)
    ]


def lab(
    rows: Sequence[Row], names: Sequence[str] = (), draws: int = DRAWS
) -> tuple[list[Option], list[str]]:
    """Every family × size that was run, at its most tokens, and why families are left out.

    Quality is what the family's own surface says of the cell, with its bootstrap draws; cells of
    one family share a draw in a world. Raises UserError where no family can be read.
    """
    cells = families(points(rows))
    if unknown := [name for name in names if name not in cells]:
        raise UserError(f"the records have no family {listed(unknown)}; they have {listed(cells)}")
    found, out = [], []
    models = {(row.labels.get("family"), row.record.run.cell): row for row in rows}
    by_shape = {
        (family, row.record.run.model.d_model, len(row.record.run.model.blocks)): row
        for (family, _), row in models.items()
    }
    for i, (family, group) in enumerate(cells.items()):
        if names and family not in names:
            continue
        fit = surface(group, draws=FITTED, asymptote=False, held_out=(), seed=i)
        if not fit.readable or fit.draws is None:
            out.append(f"{family} is left out: its law is {fit.status}: {fit.reason}")
            continue
        index = np.random.default_rng(i).integers(0, FITTED, draws)
        longest = max(cell.tokens for cell in group)
        for cell in (c for c in group if c.tokens == longest):
            n = cell.params[COUNT]
            found.append(
                Option(
                    f"{family} {cell.width}×{cell.depth}",
                    -np.asarray(fit.draws(n, cell.tokens))[index],
                    f"lab: law of {fit.n_points} runs of {family}, {size(n)} active parameters "
                    f"and {size(cell.tokens)} tokens, inside the runs",
                    model=by_shape[family, cell.width, cell.depth].record.run.model,
                    params=float(cell.params["total"]),
                    train_flops=float(cell.flops["executed"]),
                    buy=f"train {family} at width {cell.width} with more seeds",
                    facts={"params": float(n), "tokens": float(cell.tokens), "family": family},
                )
            )
    if not found:
        raise UserError(f"no family can be read off these records: {'; '.join(out) or 'no runs'}")
    return found, out


def _surface(law: str) -> Chinchilla:
    laws = {name: entry.law for name, entry in PUBLISHED.items()
            if isinstance(entry.law, Chinchilla) and entry.law.E > 0}  # fmt: skip
    if law not in laws:
        raise UserError(f"law {law!r} must be a published law of N and D: {', '.join(laws)}")
    return laws[law]


def _positive(sizes: Sequence[float], tokens: float) -> Sequence[float]:
    if not sizes or not all(1e3 <= n <= 1e14 for n in sizes) or not 1e3 <= tokens <= 1e17:
        raise UserError(
            f"sizes must be 10³ to 10¹⁴ parameters and tokens 10³ to 10¹⁷, and are "
            f"{', '.join(f'{n:g}' for n in sizes) or 'none'} and {tokens:g}"
        )
    if len(set(sizes)) < len(sizes):
        raise UserError("sizes must name each value once; leave out the repeated ones")
    return sizes


def size(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
