"""Runs → records: one trunk of constant learning rate, a cooldown branch for each D, seeds at once.

A job is the tuple of runs that share `Run.trunk`. Its seeds are a batch axis and its training
lengths are branches, so a loss depends on nothing but its run: to the last bit for branches and
resumption; for the number of seeds to rounding, since where seeds are vmapped (accelerators) a
batched product may add in another order.
"""

from __future__ import annotations

import functools
import hashlib
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.models import kernels
from isoflop.models.checkpoints.huggingface import from_names
from isoflop.models.errors import UserError
from isoflop.sim.cost import flops
from isoflop.sim.data import Source
from isoflop.sim.data.source import Batch, drawn
from isoflop.sim.durable import Place
from isoflop.sim.records import provenance
from isoflop.sim.records.metrics import Metric, measured
from isoflop.sim.records.store import Record, Store
from isoflop.sim.spec import Budget, Run, Split, canonical
from isoflop.sim.train import health, hosts, preemption
from isoflop.sim.train.checkpoints import Checkpoint, Checkpoints
from isoflop.sim.train.preemption import Preempted
from isoflop.sim.train.program import Judged, Program, jitted
from isoflop.sim.train.sharding import ONE_DEVICE, Layout, whole

DISPATCH = 25  # training steps per call into the compiled program, at most
CALL_SECONDS = 10.0  # that a call takes, about, where steps are slow: signals wait for its end
CURVE_POINTS = 100  # of the training loss, kept on a record
PACKAGES = ("isoflop", "jax", "flax", "optax", "numpy")  # whose versions a record has

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Event:
    """Progress of a job, for a display: steps count the trunk and all its branches."""

    job: str
    step: int
    steps: int
    loss: float  # nats per token, mean over seeds; NaN while compiling
    tokens_per_second: float
    compiling: bool = False


@dataclass(frozen=True)
class Note:
    """What whoever watches a job should know, and what changes none of its results."""

    job: str
    text: str


Emit = Callable[[Event | Note], None]
_compiled: dict[Any, Any] = {}
_cache_hits = [0]  # programs this process took from JAX's persistent compilation cache


def _count(event: str, **_: Any) -> None:
    _cache_hits[0] += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)


@dataclass
class Job:
    """The runs of one trunk while they train."""

    runs: Sequence[Run]
    emit: Emit = lambda event: None
    layout: Layout = ONE_DEVICE
    compile_seconds: float = 0.0
    compiled: int = 0
    cached: int = 0
    source: Source = field(init=False)
    held_out: dict[Split, tuple[Source, Batch]] = field(init=False)
    versions: dict[str, str] = field(init=False)
    sources: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = _versions()
        if len({run.trunk for run in self.runs}) != 1:
            raise ValueError("a job's runs must share a trunk: differ in steps and seed only")
        first = self.runs[0]
        self.seeds = sorted({run.seed for run in self.runs})
        batched = len(self.seeds) > 1 and jax.default_backend() != "cpu"
        self.layout.check(first.model, first.budget.batch)
        mesh = self.layout.mesh() if self.layout.devices > 1 else None
        self.program = Program(
            first.model, first.optim.compiled, batched, mesh, self.layout.micro_batches
        )
        self.rates = self.program.rates(first.optim)
        opened = {data: data.open() for data in dict.fromkeys(s.data for s in first.splits)}
        self.source = opened[first.data]
        self.held_out = {
            split: (opened[split.data], split.draw(opened[split.data])) for split in first.splits
        }
        self.sources = provenance.sources(first)
        self.ends = sorted({run.budget.steps for run in self.runs})

    @property
    def digest(self) -> str:
        """What its states are states of: the trunk and its seeds, on these data, by this code, in
        these forms of it.
        """
        facts = [self.runs[0].trunk, self.seeds, self.source.digest, self.versions, self.sources]
        facts.append(kernels.backend() or "")
        return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]

    def at(self, steps: int) -> Run:
        """Some run of this length: its schedule is that of all of them."""
        return next(run for run in self.runs if run.budget.steps == steps)

    def call(self, name: str, *args: Any) -> Any:
        """Run a compiled function, compiling it at its first use and timing that apart."""
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(args))
        key = (self.program, name, shapes, kernels.backend())
        if key not in _compiled:
            self.emit(Event(self.runs[0].trunk, 0, self.total_steps, float("nan"), 0.0, True))
            start, hits = time.perf_counter(), _cache_hits[0]
            _compiled[key] = jitted(self.program)[name].lower(*args).compile()
            self.compile_seconds += time.perf_counter() - start
            self.cached += _cache_hits[0] - hits
            self.compiled += hits == _cache_hits[0]
        return _compiled[key](*args)

    @property
    def total_steps(self) -> int:
        runs = [self.at(end) for end in self.ends]
        return runs[-1].branch_step + sum(r.budget.steps - r.branch_step for r in runs)


@dataclass
class Trunk:
    """Where a job's training stands: arrays, the losses so far, and the time they took."""

    state: Any
    step: int = 0
    seconds: float = 0.0
    losses: list[np.ndarray] = field(default_factory=list)  # each (steps, seeds)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.step, self.seconds, self.state, np.concatenate(self.losses))

    def restore(self, saved: Checkpoint | None) -> None:
        """Go on from there, if it is further than this."""
        if saved is None or saved.step <= self.step:
            return
        self.state, self.step, self.seconds = saved.state, saved.step, saved.seconds
        self.losses = [saved.losses]

    @property
    def diverged(self) -> bool:
        """Whether every seed has had a loss that was not finite."""
        return bool(self.losses) and not health.finite(np.concatenate(self.losses)).any()


def train(
    runs: Sequence[Run],
    workdir: Place | None = None,
    emit: Emit = lambda event: None,
    wanted: Collection[str] | None = None,
    layout: Layout = ONE_DEVICE,
    time_limit: float = math.inf,
) -> Iterator[tuple[Record, Weights]]:
    """Train one job and yield each run's record and weights as soon as they are final.

    `wanted` names the keys to yield (None: all); branches that nobody wants are not trained, and
    the seeds stay as they are, so that the rest equals an uninterrupted job's to the last bit.
    With a `workdir`, RUNS/jobs/TRUNK/work, states are saved there about every CHECKPOINT_SECONDS
    (checkpoints.py) and resumed from, to the last bit; runs that go on from others have those of
    RUNS. Where a device has no memory for a micro-batch, the job is begun
    again with half of it, which is said. Raises UserError, before anything is compiled, if the job
    cannot have that `layout` here, if it has fewer than two held-out windows, or if a package that
    a record names is not installed; at the end of a branch, if its data changed in the meantime;
    and TimeLimit once a run has trained for `time_limit` seconds. Raises Preempted after a signal
    (preemption.py). In all of these the state is saved.
    """
    keys = {run.key for run in runs} if wanted is None else set(wanted)
    while True:
        try:
            for record, weights in _train(Job(runs, emit, layout), workdir, keys, time_limit):
                keys.discard(record.key)
                yield record, weights
            return
        except jax.errors.JaxRuntimeError as error:
            if hosts.several():  # the others may have had room
                raise
            layout = health.smaller(error, layout, runs)
            many = layout.micro_batches
            emit(Note(runs[0].trunk, f"out of memory; goes on with {many} micro-batches a step"))


def _train(
    job: Job, workdir: Place | None, keys: Collection[str], time_limit: float
) -> Iterator[tuple[Record, Weights]]:
    runs = job.runs
    ends = [end for end in job.ends if any(r.key in keys for r in runs if r.budget.steps == end)]
    if not ends:
        return
    saved = Checkpoints(workdir, job.digest, lambda text: job.emit(Note(runs[0].trunk, text)))
    trunk = Trunk(job.program.init(job.seeds, _start(job, workdir)))
    trunk.restore(saved.newest("trunk", job.at(ends[0]).branch_step, trunk.state))
    done = 0
    for end in ends:
        run, stage = job.at(end), f"branch-{end}"
        done = _advance(job, trunk, run, run.branch_step, done, saved, "trunk", time_limit)
        copied = jax.tree.map(jnp.copy, trunk.state)  # the branch's steps donate their own copy
        branch = Trunk(copied, trunk.step, trunk.seconds, list(trunk.losses))
        branch.restore(saved.newest(stage, end, branch.state))
        done = _advance(job, branch, run, end, done, saved, stage, time_limit)
        yield from _finish(
            job, branch, [r for r in runs if r.budget.steps == end and r.key in keys]
        )
        saved.drop(stage)


def _start(job: Job, workdir: Place | None) -> list[Any] | None:
    """Every seed's parameters at the end of the run that it goes on from; None if there is none.
    Raises UserError if its weights are not there.
    """
    starts = {run.seed: run.start for run in job.runs if run.start is not None}
    if not starts:
        return None
    if workdir is None:
        raise UserError(
            "a run that goes on from another finds its weights in a runs directory, and there is "
            "none; give a workdir in it"
        )
    store = Store(workdir.parent.parent.parent)
    return [from_names(job.program.model, store.weights(starts[i].key)) for i in job.seeds]


def _advance(
    job: Job, trunk: Trunk, run: Run, stop: int, done: int, saved: Checkpoints, stage: str,
    time_limit: float,
) -> int:  # fmt: skip
    """Train to step `stop` of `run`; returns the steps this job has done in all. Once every seed
    has diverged no more is computed, and the losses that are left are NaN.
    """
    budget = run.budget
    dispatch = DISPATCH
    while trunk.step < stop:
        if trunk.diverged:
            trunk.losses.append(np.full((stop - trunk.step, len(job.seeds)), np.nan, np.float32))
            done += stop - trunk.step
            trunk.step = stop
            break
        steps = min(dispatch, stop - trunk.step)
        batches = job.program.put(_batches(job, budget, trunk.step, steps))
        factors = np.zeros(DISPATCH, np.float32)
        factors[:steps] = run.optim.schedule(run.budget.steps, trunk.step, trunk.step + steps)
        args = (trunk.state, job.rates, factors, batches, np.int32(steps))
        compiled = job.compile_seconds
        start = time.perf_counter()
        trunk.state, losses = job.call("advance", *args)
        losses = np.asarray(losses)[:steps]
        seconds = time.perf_counter() - start - (job.compile_seconds - compiled)
        trunk.step += steps
        trunk.seconds += seconds
        trunk.losses.append(losses)
        done += steps
        asked = preemption.asked()
        late = trunk.seconds > time_limit and trunk.step < run.budget.steps
        due, late, stopped = hosts.anywhere(saved.due, late, bool(asked))
        if due or late or stopped:
            saved.save(stage, trunk.checkpoint())
        rate = steps * len(job.seeds) * budget.batch_tokens / max(seconds, 1e-9)
        job.emit(Event(run.trunk, done, job.total_steps, float(losses[-1].mean()), rate))
        if stopped:
            raise Preempted(asked or signal.SIGTERM)
        if late:
            raise health.TimeLimit(
                f"the time limit of {time_limit:g} s was reached at step {trunk.step} of "
                f"{run.budget.steps}; raise --time-limit, and the same command goes on from there"
            )
        slow = max(1, int(CALL_SECONDS * steps / max(seconds, 1e-9)))
        dispatch = hosts.decided(functools.partial(min, DISPATCH, slow))
    return done


def _batches(job: Job, budget: Budget, first: int, steps: int) -> Batch:
    """Training batches (DISPATCH, seed, b, …) from step `first` on; those after `steps` are 0."""
    first += job.runs[0].first_step
    batches = None
    for i in range(steps):
        for of_seed, seed in enumerate(job.seeds):
            one = drawn(job.source, first + i, seed, budget.batch, budget.seq_len)
            if batches is None:
                shape = DISPATCH, len(job.seeds)
                batches = jax.tree.map(lambda x, s=shape: np.zeros((*s, *x.shape), x.dtype), one)
            if [part is None for part in one] != [part is None for part in batches]:
                raise UserError(
                    f"weights, labels and neighbours of {type(job.source).__name__} must be None "
                    "in every batch or in none; give weights of one where all targets count"
                )
            for all_, part in zip(jax.tree.leaves(batches), jax.tree.leaves(one), strict=True):
                all_[i, of_seed] = part
    assert batches is not None
    return batches


def _judge(job: Job, params: Any, split: Split) -> tuple[Judged, Mapping[str, Any]]:
    """Every target of a held-out split (seed, sequence, target), and the scalars by seed.

    As many sequences at once as have the tokens of a micro-batch; the last part is filled up.
    """
    batch, budget = job.held_out[split][1], job.runs[0].budget
    shards = job.layout.parts // job.layout.micro_batches
    rows = max(1, budget.batch_tokens // split.seq_len // job.layout.parts) * shards

    def parts(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, -len(x) % rows), (0, 0)]).reshape(-1, rows, x.shape[1])

    judged, aux = job.call("evaluate", params, job.program.put(jax.tree.map(parts, batch)))

    def whole(x: Any) -> np.ndarray:
        every = np.asarray(x)
        return every.reshape(len(every), -1, *every.shape[3:])[:, : len(batch.tokens)]

    return jax.tree.map(whole, judged), aux


def _metrics(job: Job, split: Split, judged: Judged, i: int) -> dict[str, Metric]:
    """Of the seed at `i` by name, unless the loss is not finite: such a number is none."""
    source, batch = job.held_out[split]
    loss, nats, correct = (values[i] for values in judged)
    if not np.isfinite(loss).all():
        return {}
    found = measured(loss, nats, correct, batch.weights, source.bytes_per_token)
    return {split.metric(name): value for name, value in found.items()}


def _finish(job: Job, branch: Trunk, runs: Sequence[Run]) -> Iterator[tuple[Record, Weights]]:
    """Judge a branch's seeds on every held-out split."""
    for source, _ in job.held_out.values():
        source.verify()
    judged = {split: _judge(job, branch.state[0], split) for split in job.held_out}
    aux = judged[runs[0].splits[0]][1]
    losses = np.concatenate(branch.losses)
    state = whole(branch.state[0])
    for run in runs:
        i = job.seeds.index(run.seed)
        params = jax.tree.map(lambda x, i=i: np.asarray(x[i]), state)
        scalars = {name: float(value[i]) for name, value in aux.items()}
        found = [_metrics(job, split, seen, i) for split, (seen, _) in judged.items()]
        record = _record(job, run, losses[:, i], found, scalars, branch.seconds)
        yield record, names(params)


def _record(
    job: Job, run: Run, losses: np.ndarray, found: Sequence[dict[str, Metric]], aux: dict,
    seconds: float,
) -> Record:  # fmt: skip
    source, budget = job.source, run.budget
    reason = _divergence(losses, found, run)
    return Record(
        key=run.key,
        run=run,
        status="diverged" if reason else "ok",
        reason=reason or health.spiked(losses),
        metrics={} if reason else {name: one[name] for one in found for name in one},
        entropy=source.floor(budget.seq_len),
        curve=_curve(losses),
        params=flops.param_counts(run.model),
        flops=flops.training_flops(run),
        tokens=budget.tokens,
        unique_bytes=_unique_bytes(source, budget.tokens),
        epochs=budget.tokens / source.train_tokens if source.train_tokens else None,
        state_bytes=4 * run.model.state_size(budget.seq_len),
        seconds=seconds / len(job.seeds),
        compile_seconds=job.compile_seconds,
        compiled=job.compiled,
        cached=job.cached,
        seed_batch=len(job.seeds),
        aux=aux if not reason else {},
        data_digest=source.digest,
        eval_digests={s.name: held.digest for s, (held, _) in job.held_out.items() if s.name},
        device=jax.devices()[0].device_kind,
        backend=kernels.backend() or "",
        layout=job.layout.split,
        versions=job.versions,
        sources=job.sources,
    )


def _versions() -> dict[str, str]:
    try:
        return {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        raise UserError(
            f"a record has the versions of {', '.join(PACKAGES)}, and {error.name} is not "
            "installed; in a folder of its source, pip install -e ."
        ) from None


def _divergence(losses: np.ndarray, found: Sequence[dict[str, Metric]], run: Run) -> str:
    """Why a run counts as diverged, by a rule that no result can move; empty if it does not."""
    if unsteady := health.unsteady(losses):
        return unsteady
    for split, metrics in zip(run.splits, found, strict=True):
        if not metrics:
            return f"the loss on {split.name or 'held-out data'} was not finite"
    loss, chance = found[0]["loss"].value, float(np.log(run.model.vocab_size))
    if not loss < chance:
        return f"held-out loss {loss:.4g} is not below log(vocab_size) = {chance:.4g}"
    return ""


def _unique_bytes(source: Source, tokens: int) -> int | None:
    unique = source.unique_tokens(tokens)
    if unique is None or source.bytes_per_token is None:
        return None
    return round(unique * source.bytes_per_token)


def _curve(losses: np.ndarray) -> tuple[tuple[int, float], ...]:
    """(steps done, mean loss since the point before), at most CURVE_POINTS, finite ones."""
    bins = np.array_split(np.arange(len(losses)), min(CURVE_POINTS, len(losses)))
    points = ((int(b[-1]) + 1, float(f"{losses[b].mean():.7g}")) for b in bins)  # fp32's digits
    return tuple(point for point in points if np.isfinite(point[1]))


def names(params: Any) -> dict[str, np.ndarray]:
    """Dotted name → array, e.g. `blocks.0.mixer.q.kernel`."""
    flat = nnx.to_flat_state(params)
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}
