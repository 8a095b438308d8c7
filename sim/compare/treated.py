"""Treated runs as candidates, beside the plain ones: what `isoflop run compress` measured.

A row is a cell's runs under a treatment: the plain loss, its change with a standard error, and the
ledger as shares of the plain runs'. Quality is −loss, with the misfit of the family's law of N and
D for an error: a cell's treated models share it with the plain one, so that between them the change
decides. Memory is the ledger's: of weights and of one sequence's state at the training length, fp32
where plain. Where engines have a treatment's format it is served in that, else as the plain model:
masks save an engine no time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.compare.candidates import DRAWS, Option, size
from isoflop.sim.cost.serving.deployment import ACTIVATIONS, BITS
from isoflop.sim.laws.law import FLOPS_PER_ND

WORDS = ("family", "treatment")
NUMBERS = ("N", "D", "width", "depth", "runs", "loss", "change", "se", "resident_bytes",
           "train_flops")  # fmt: skip
VOCAB, LENGTH = 256, 128  # tokens of the table's runs
PLAIN_BYTES = 4
FREE = 3  # of ln L = a + b ln N + c ln D

Rows = Sequence[Mapping[str, Any]]


def treated(rows: Rows, seed: int = 0, draws: int = DRAWS) -> tuple[list[Option], list[str]]:
    """Every family × size at its most tokens, plain and under each treatment, and why families are
    left out. Raises UserError where none can be a candidate.
    """
    families: dict[str, dict[tuple[int, int, int], list[Mapping[str, Any]]]] = {}
    for row in rows:
        cell = (int(row["width"]), int(row["depth"]), int(row["D"]))
        families.setdefault(row["family"], defaultdict(list))[cell].append(row)
    rng = np.random.default_rng(seed)
    found: list[Option] = []
    out: list[str] = []
    for family, cells in families.items():
        if len(cells) <= FREE:
            out.append(f"{family} is left out: an error of its losses needs more than {FREE} cells")
            continue
        if family not in zoo.FAMILIES:
            out.append(f"{family} is left out: its shapes are not known")
            continue
        error = _misfit([of[0] for of in cells.values()])
        longest = max(tokens for _, _, tokens in cells)
        for (width, depth, tokens), of in cells.items():
            if tokens == longest:
                off = np.exp(error * rng.standard_normal(draws))
                found += _cell(family, width, depth, of, off, rng)
    if not found:
        raise UserError(f"no treated run can be a candidate: {'; '.join(out) or 'no rows'}")
    return found, out


def _cell(
    family: str, width: int, depth: int, rows: Rows, off: Any, rng: np.random.Generator
) -> list[Option]:
    """A cell's plain model and its treated ones, in worlds where its loss is `off` times this."""
    model = zoo.FAMILIES[family](width, depth, VOCAB)
    params = model.cost(1).params
    plain_bytes = PLAIN_BYTES * (params + model.state_size(LENGTH))
    plain = {"treatment": "", "change": 0.0, "se": 0.0, "resident_bytes": 1.0, "train_flops": 1.0}
    found = []
    for row in ({**rows[0], **plain}, *rows):
        told, treatment = f"{family} {width}×{depth}", row["treatment"]
        change = row["change"] + row["se"] * rng.standard_normal(len(off))
        found.append(
            Option(
                f"{told}, {treatment}" if treatment else told,
                -(row["loss"] * off + change),
                f"lab: {row['runs']} runs of {family}, {size(row['N'])} active parameters and "
                f"{size(row['D'])} tokens; memory of weights and a state of {LENGTH} tokens"
                + (f", {treatment}: {row['change']:+.4f} ± {row['se']:.4f}" if treatment else ""),
                model=model,
                params=float(params),
                costs={"memory": row["resident_bytes"] * plain_bytes},
                engine=_engine(treatment),
                train_flops=FLOPS_PER_ND * row["N"] * row["D"] * row["train_flops"],
                buy=f"train {told} with more seeds",
                facts={"params": float(row["N"]), "tokens": float(row["D"]), "family": family,
                       "treatment": treatment},
            )
        )  # fmt: skip
    return found


def _engine(treatment: str) -> dict[str, str]:
    """The formats of a deployment that serves it."""
    what, _, format = treatment.removesuffix(" gptq").partition(" ")
    known = {"weights": ("weights", BITS), "states": ("cache", BITS),
             "activations": ("activations", ACTIVATIONS)}  # fmt: skip
    name, formats = known.get(what, ("", ()))
    return {name: format} if format in formats else {}


def _misfit(rows: Rows) -> float:
    """Of ln loss about its plane over ln N and ln D, a standard deviation."""
    n, d, loss = (np.log([row[name] for row in rows]) for name in ("N", "D", "loss"))
    columns = np.column_stack([np.ones(len(n)), n, d])
    rest = loss - columns @ np.linalg.lstsq(columns, loss, rcond=None)[0]
    return float(np.sqrt((rest**2).sum() / (len(n) - FREE)))
