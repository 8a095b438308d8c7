"""What a grid will take, and what it cannot show, told before it is run and without compiling.

Seconds are FLOPs of training and evaluation over a rate, and those of compiling. The rate is that
of this runs directory's finished records of the same kind of layers, else of all of them, whose
steps are nearest in size; else one that is stated to be assumed. Branches of a trunk are charged
for the steps that they add to it; jobs that differ in rates or data alone share their programs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from isoflop.models.families.matching import unmatched
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.flops import param_counts
from isoflop.sim.data.source import Source, drawn
from isoflop.sim.grid.grid import Job, jobs
from isoflop.sim.records.grids import Asked
from isoflop.sim.records.provenance import code_changes
from isoflop.sim.records.store import Record, Store
from isoflop.sim.spec import EPOCHS_MAX, STEPS_MIN, Cell, Run
from isoflop.sim.train.checkpoints import KEPT

# of one laptop core, as the demo's medians are; any finished record replaces them
ASSUMED_FLOPS_PER_SECOND = 1e10
ASSUMED_COMPILE_SECONDS = 15.0  # a job's two programs
PROGRAMS = 2  # of a job: a step and the evaluation
RECORD_BYTES = 20_000  # spec.json and result.json of one run, generously
OPTIMIZER_COPIES = 3  # AdamW: weights and two moments, in a checkpoint

SEEDS_MIN = 3
CORRELATION_MAX = 0.95
TOKENS_PER_PARAM = 20  # Hoffmann et al. 2022, 2203.15556
OFF_CENTRE = 4  # × that, from which the grid's middle is called off-centre
LAW_PARAMETERS = 5  # E, A, B, alpha, beta
EVAL_TOKENS_MIN = 100_000


@dataclass(frozen=True)
class Planned:
    """One run of the table. `seconds` and `disk_bytes` are what is still to be spent on it."""

    labels: dict[str, str | int | float]
    key: str
    cell: str  # runs of one cell differ only in their seed
    finished: bool
    params: int
    active_params: int
    non_embedding_params: int
    seed: int
    steps: int
    tokens: int
    epochs: float | None  # None: generated afresh, never repeated
    flops: int  # executed, of the whole training run
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Plan:
    rows: tuple[Planned, ...]
    jobs: int
    seconds: float  # by the clock, with the workers side by side
    compile_seconds: float  # of those
    disk_bytes: int
    peak_bytes: int  # with the checkpoints of jobs in progress
    basis: str  # where the seconds come from, in words
    warnings: tuple[str, ...]
    left_out: tuple[str, ...] = ()  # why records of other experiments in the folder are not read
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)  # run → modules, since then

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)


def plan(
    cells: Sequence[Cell],
    store: Store,
    *,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    retrain_changed: bool = False,
) -> Plan:
    """The budget table of a grid. Opens its data; raises UserError where the data cannot serve.

    `retrain_changed` counts runs as unfinished whose code has changed since.
    """
    work = jobs(cells, shard)
    mine = {run.key for job in work for run in job.runs}
    cells = [cell for cell in cells if cell.run.key in mine]
    train_tokens = _open(cells)
    there = map(store.load, dict.fromkeys(cell.run.key for cell in cells))
    final = [record for record in there if record and record.final]
    finished, changed = {record.key for record in final}, code_changes(final)
    if retrain_changed:
        finished -= changed.keys()
    records, left_out = store.all()
    clock = _Clock.read(records)
    steps = {key: n for job in work for key, n in _steps_to_do(job, finished).items()}
    rows = tuple(
        _row(cell, train_tokens[cell.run.data.model_dump_json()], finished, clock, steps)
        for cell in {cell.run.key: cell for cell in cells}.values()
    )
    seconds_of = {row.key: row.seconds for row in rows}
    todo = [job for job in work if not all(run.key in finished for run in job.runs)]
    first = {_programs(job): job.trunk for job in reversed(todo)}.values()  # jobs that compile
    compiling = [clock.compile_seconds(job) * (job.trunk in first) for job in todo]
    job_seconds = [
        sum(seconds_of[run.key] for run in job.runs) + extra
        for job, extra in zip(todo, compiling, strict=True)
    ]
    disk_bytes = sum(row.disk_bytes for row in rows)
    checkpoints = sorted((_checkpoint_bytes(job) for job in work), reverse=True)
    return Plan(
        rows=rows,
        jobs=len(todo),
        seconds=max(sum(job_seconds) / workers, *job_seconds, 0.0),
        compile_seconds=max(sum(compiling) / workers, *compiling, 0.0),
        disk_bytes=disk_bytes,
        peak_bytes=disk_bytes + sum(checkpoints[:workers]),
        basis=clock.basis,
        warnings=tuple(warn(cells, {row.key: row for row in rows})),
        left_out=tuple(left_out),
        changed=changed,
    )


def asked_of(cells: Iterable[Cell]) -> tuple[Asked, ...]:
    """What a grid asks for, each run once."""
    return tuple(
        Asked(run.key, run.trunk, _step_flops(run) * run.budget.steps, cell.labels)
        for cell in {cell.run.key: cell for cell in cells}.values()
        for run in (cell.run,)
    )


def _programs(job: Job) -> tuple:
    """Jobs for which this is equal compile once."""
    run = job.runs[0]
    seeds = {run.seed for run in job.runs}
    return run.model, run.budget.model_copy(update={"steps": 1}), len(seeds)


def _row(
    cell: Cell,
    train_tokens: int | None,
    finished: set[str],
    clock: _Clock,
    steps_to_do: dict[str, int],
) -> Planned:
    run = cell.run
    counts = param_counts(run.model)
    step_flops = _step_flops(run)
    judged = sum(split.tokens for split in run.splits)
    judging = step_flops / 3 * judged / run.budget.batch_tokens
    done = run.key in finished
    return Planned(
        labels=cell.labels,
        key=run.key,
        cell=run.cell,
        finished=done,
        params=counts["total"],
        active_params=counts["active"],
        non_embedding_params=counts["non_embedding"],
        seed=run.seed,
        steps=run.budget.steps,
        tokens=run.budget.tokens,
        epochs=run.budget.tokens / train_tokens if train_tokens else None,
        flops=step_flops * run.budget.steps,
        seconds=0.0 if done else (step_flops * steps_to_do[run.key] + judging) / clock.rate(run),
        disk_bytes=0 if done else 4 * counts["total"] + RECORD_BYTES,
    )


def _steps_to_do(job: Job, finished: set[str]) -> dict[str, int]:
    """Steps each run adds for its seed: the trunk from the last branch on, and its own cooldown."""
    add = {run.key: 0 for run in job.runs}
    by_seed: dict[int, list[Run]] = {}
    for run in job.runs:
        if run.key not in finished:
            by_seed.setdefault(run.seed, []).append(run)
    for same in by_seed.values():
        trunk = 0
        for run in sorted(same, key=lambda run: run.branch_step):
            add[run.key] = run.budget.steps - trunk
            trunk = run.branch_step
    return add


def _step_flops(run: Run) -> int:
    """Executed by one training step."""
    return 3 * run.model.cost(run.budget.seq_len, run.budget.batch).flops


def _checkpoint_bytes(job: Job) -> int:
    params = param_counts(job.runs[0].model)["total"]
    one = 4 * OPTIMIZER_COPIES * params * len({run.seed for run in job.runs})
    return (2 * KEPT + 1) * one  # of the trunk, of a branch, and one that is being written


def _open(cells: Iterable[Cell]) -> dict[str, int | None]:
    """Training tokens of each data set, opened once, and tried at every length that is asked."""
    sources: dict[str, Source] = {}
    tried = set()
    for run in (cell.run for cell in cells):
        for split in run.splits:
            name = split.data.model_dump_json()
            if name not in sources:
                sources[name] = split.data.open()
            if (name, split) not in tried:
                if not split.name:
                    drawn(sources[name], 0, 0, 1, split.seq_len)
                split.draw(sources[name])
                tried.add((name, split))
    return {name: source.train_tokens for name, source in sources.items()}


Kinds = frozenset[str]


@dataclass(frozen=True)
class _Clock:
    """FLOPs per second of one seed, by kinds of layers and FLOPs of a step; and seconds in which a
    job's programs compile, of jobs that found none of theirs in the cache.
    """

    rates: tuple[tuple[Kinds, int, float], ...] = ()
    compiling: tuple[tuple[Kinds, float], ...] = ()

    @classmethod
    def read(cls, records: Iterable[Record]) -> _Clock:
        rates, compiling = [], {}
        for record in records:
            if record.status == "ok" and record.seconds > 0 and record.flops:
                kinds = _kinds(record.run.model)
                rate = record.flops["executed"] / record.seconds
                rates.append((kinds, _step_flops(record.run), rate))
                if record.compiled and not record.cached:
                    each = record.compile_seconds / record.compiled
                    compiling[record.run.trunk] = kinds, PROGRAMS * each
        return cls(tuple(rates), tuple(compiling.values()))

    def rate(self, run: Run) -> float:
        kinds, size = _kinds(run.model), _step_flops(run)
        alike = [item for item in self.rates if item[0] == kinds] or self.rates
        apart = [abs(math.log(flops / size)) for _, flops, _ in alike]
        near = [rate for (*_, rate), x in zip(alike, apart, strict=True) if x == min(apart)]
        return statistics.median(near) if near else ASSUMED_FLOPS_PER_SECOND

    def compile_seconds(self, job: Job) -> float:
        kinds = _kinds(job.runs[0].model)
        every = [seconds for _, seconds in self.compiling]
        alike = [seconds for other, seconds in self.compiling if other == kinds] or every
        return statistics.median(alike) if alike else ASSUMED_COMPILE_SECONDS

    @property
    def basis(self) -> str:
        """Where the seconds come from, in words."""
        said = (
            f"from {len(self.rates)} finished runs, median "
            f"{statistics.median(rate for *_, rate in self.rates) / 1e9:.3g} GFLOP/s"
            if self.rates
            else f"assuming {ASSUMED_FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s"
        )
        if self.compiling:
            return said
        return (
            f"{said}{', assuming' if self.rates else ' and'} {ASSUMED_COMPILE_SECONDS:.0f} s to "
            f"compile a job's programs; finished runs replace guesses"
        )


def _kinds(model: ModelConfig) -> Kinds:
    return frozenset(part.kind for block in model.blocks for part in block.parts)


def warn(cells: Sequence[Cell], rows: dict[str, Planned]) -> list[str]:
    """What the grid, as designed, cannot show: one sentence for each weakness, in plain words."""
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        families.setdefault(str(cell.labels.get("family", "the grid")), []).append(cell)
    said: dict[str, list[str]] = {}
    for family, members in families.items():
        for sentence in _weaknesses(members, rows):
            said.setdefault(sentence, []).append(family)
    apart = unmatched((str(c.labels.get("family", "")), c.run.model) for c in cells)
    told = [f"{', '.join(names)}: {sentence}" for sentence, names in said.items()]
    return told if apart is None else [apart, *told]


def _weaknesses(cells: Sequence[Cell], rows: dict[str, Planned]) -> Iterable[str]:
    if not all(c.run.model.causal for c in cells):
        yield (
            "causal=False: experts choose among all tokens, later ones too, so the loss is not a "
            "language model's and no decoding reaches it; choose route='token'"
        )
    points = sorted({(rows[c.run.key].params, rows[c.run.key].tokens) for c in cells})
    n, d = np.array(points, float).T
    sizes, amounts = len(set(n)), len(set(d))
    if sizes > 1 and amounts > 1:
        correlation = float(np.corrcoef(np.log(n), np.log(d))[0, 1])
        if abs(correlation) > CORRELATION_MAX:
            yield (
                f"parameters and tokens move together (correlation {correlation:.2f} of their "
                f"logarithms), so their effects cannot be told apart; train each size on several "
                f"amounts of data"
            )
    if len(points) <= LAW_PARAMETERS or sizes < 3 or amounts < 3:
        yield (
            f"{_n(sizes, 'size')} × {_n(amounts, 'amount')} of data ({_n(len(points), 'point')}) "
            f"are too few to fit a law of {LAW_PARAMETERS} parameters; use at least 3 of each and "
            f"{LAW_PARAMETERS + 1} points"
        )
    centre = float(np.exp(np.mean(np.log(d / n))))
    if not TOKENS_PER_PARAM / OFF_CENTRE <= centre <= TOKENS_PER_PARAM * OFF_CENTRE:
        yield (
            f"the grid is off-centre: it trains on {centre:.3g} tokens per parameter in the "
            f"middle, more than {OFF_CENTRE} × away from the {TOKENS_PER_PARAM} near which "
            f"Hoffmann et al. (2203.15556) found the optimum, so optima may be extrapolated"
        )
    short = [c.run.budget.steps for c in cells if c.run.budget.steps < STEPS_MIN]
    if short:
        yield (
            f"{len(short)} of {len(cells)} runs have fewer than {STEPS_MIN} steps (down to "
            f"{min(short)}), where the optimiser is measured more than the architecture"
        )
    epochs = [row.epochs for c in cells if (row := rows[c.run.key]).epochs is not None]
    many = [e for e in epochs if e is not None and e > EPOCHS_MAX]
    if many:
        yield (
            f"{len(many)} of {len(cells)} runs read their text more than {EPOCHS_MAX} times (up "
            f"to {max(many):.1f}), beyond which repeated tokens lose worth (2305.16264)"
        )
    seeds: dict[tuple[str, int], set[int]] = {}
    for cell in cells:
        seeds.setdefault((cell.run.trunk, cell.run.budget.steps), set()).add(cell.run.seed)
    fewest = min(map(len, seeds.values()))
    if fewest < SEEDS_MIN:
        yield (
            f"some points have {_n(fewest, 'seed')}; below {SEEDS_MIN}, noise between seeds "
            f"cannot be told from effects"
        )
    judged = min(c.run.budget.eval_tokens for c in cells)
    if judged < EVAL_TOKENS_MIN:
        yield (
            f"losses are judged on {judged:,} held-out tokens; below {EVAL_TOKENS_MIN:,} the "
            f"evaluation's own noise shows"
        )


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
