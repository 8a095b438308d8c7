"""What the training experiments share: the families' models, and the rates they train with.

The rates are data: `sim.compare.rates` reads them off the committed runs of `lr_transfer`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare import rates
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.data import AnyData, Corpus, File
from isoflop.sim.data.corpora import PACKAGES
from isoflop.sim.optim import AdamW, Muon, Optim
from isoflop.sim.records.store import read_rows
from isoflop.sim.spec import Budget, Cell, Run

RESULTS = Path(__file__).parent / "results"
RATES = {  # optimiser → the sweeps that its rates are tuned by
    "adamw": (RESULTS / "lr_transfer.jsonl", RESULTS / "lr_transfer_zoo.jsonl"),
    "muon": (RESULTS / "lr_transfer_muon.jsonl",),
}
OPTIMISERS: dict[str, type[AdamW] | type[Muon]] = {"adamw": AdamW, "muon": Muon}
SEEDS_MAX = 1000  # of a cell
WARMUP, FEWEST_STEPS = 50, 63  # steps; a run's last fifth is its cooldown
BASE_WIDTH, BASE_DEPTH = 64, 2
STUDIED = ("dense", "moe", "mamba", "mamba2", "linear", "gated_deltanet", "hybrid", "lstm")


def model(family: str, width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """A zoo model by its family's name. Raises UserError for an unknown one."""
    if family not in zoo.FAMILIES:
        raise UserError(f"there is no family {family!r}; use one of {', '.join(zoo.FAMILIES)}")
    return zoo.FAMILIES[family](width, depth, vocab_size)


def named(family: str, optim: str = "adamw", depth_rule: str = "") -> str:
    """What a family is called in tables: AdamW without a rule for the depth goes without saying."""
    said = {"muon": "Muon", "completep": "CompleteP", "none": "no depth rule"}
    return ", ".join([family, *(said[word] for word in (optim, depth_rule) if word in said)])


@cache
def tuned(optim: str = "adamw") -> dict[str, Any]:
    """What `rates.tuned` finds in the committed sweeps: `rates`, `moved`, each family's losses."""
    for path in RATES[optim]:
        if not path.exists():
            raise UserError(f"{path.name} is missing from experiments/results; reinstall isoflop")
    return rates.tuned([row for path in RATES[optim] for row in read_rows(path)])


def optim(family: str, width: int, warmup_steps: int, kind: str = "adamw") -> Optim:
    """The tuned optimiser of a family at a width: one rate at BASE_WIDTH for all widths, or, where
    the rule for the width failed, that of a sweep at this width.

    Raises UserError for a family that was never tuned, or not at this width though it has to be.
    """
    found, name = tuned(kind), named(family, kind)
    option = "" if kind == "adamw" else f" --optim {kind}"
    remedy = f"run `isoflop run lr_transfer --families {family}{option}`"
    if name not in found["rates"]:
        known = ", ".join(found["rates"])
        raise UserError(f"{name} has no tuned learning rate (tuned: {known}); {remedy}")
    rate = found["rates"][name]
    if moved := found["moved"].get(name):
        best = found["families"][name]["best"]
        if str(width) not in best:
            raise UserError(f"{name}: {moved}; {remedy} with --widths {width}")
        rate = best[str(width)]
    return OPTIMISERS[kind](lr=rate, base_width=BASE_WIDTH, warmup_steps=warmup_steps)


def corpus_of(name: str) -> AnyData:
    """An embedded corpus by its name, or the bytes of a file of text: .txt, .jsonl or .parquet.

    Raises UserError for a word that is neither.
    """
    if name in PACKAGES:
        return Corpus.model_validate({"name": name})
    if not Path(name).suffix:
        raise UserError(
            f"corpus={name!r} must be {', '.join(PACKAGES)} or a file of text, as book.txt"
        )
    return File(path=name)


def seeds_of(count: int) -> range:
    """0, 1, … Raises UserError for more than anybody trains."""
    if count > SEEDS_MAX:
        raise UserError(f"seeds={count} must be at most {SEEDS_MAX}; ask for fewer")
    return range(count)


def grid(
    families: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    steps: tuple[int, ...],
    seeds: int,
    data: AnyData,
    eval_tokens: int,
    batch: int = 8,
    seq_len: int = 128,
    kind: str = "adamw",
) -> list[Cell]:
    """Families × (width, depth) × training lengths, of `batch` × `seq_len` tokens, × seeds."""
    return [
        cell(
            family,
            width,
            depth,
            data,
            Budget(steps=length, batch=batch, seq_len=seq_len, eval_tokens=eval_tokens),
            seed,
            WARMUP,
            kind,
        )
        for family in families
        for width, depth in shapes
        for length in steps
        for seed in seeds_of(seeds)
    ]


def cell(
    family: str, width: int, depth: int, data: AnyData, budget: Budget, seed: int, warmup: int,
    kind: str = "adamw",
) -> Cell:  # fmt: skip
    """One run of a width × depth × data grid, under its labels."""
    run = Run(
        model=model(family, width, depth, data.vocab_size),
        data=data,
        optim=optim(family, width, warmup, kind),
        budget=budget,
        seed=seed,
    )
    return Cell(labels={"family": named(family, kind), "width": width, "depth": depth}, run=run)


def for_budget(family: str, width: int, depth: int, data: AnyData, flops: float, seed: int) -> Cell:
    """The run that `flops` executed FLOPs pay for, to half a step of 512 tokens. Raises UserError
    where they pay for too few steps.
    """
    batch, seq_len = 4, 128
    step = step_flops(model(family, width, depth, data.vocab_size), seq_len, batch)["executed"]
    if (steps := round(flops / step)) < FEWEST_STEPS:
        raise UserError(
            f"a budget must pay for {FEWEST_STEPS} steps, a warm-up and a cooldown, and {flops:.3g}"
            f" FLOPs pay for {steps} of {family} of width {width}; raise it, or take smaller widths"
        )
    budget = Budget(steps=steps, batch=batch, seq_len=seq_len, eval_tokens=65_536)
    return cell(family, width, depth, data, budget, seed, WARMUP)
