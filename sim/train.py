"""Runs → records: one trunk of constant learning rate, a cooldown branch for each D, a lane for
each seed.

A job is the tuple of runs that share `Run.trunk`. Its seeds are an axis of lanes and its training
lengths are branches, so a loss depends on nothing but its run: to the last bit for branches and
resumption; for the number of lanes to rounding, since where lanes are vmapped (accelerators) a
batched product may add in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.errors import UserError
from sim import flops
from sim.data import Source
from sim.layout import ONE_DEVICE, Layout
from sim.program import Program, jitted
from sim.records import Record
from sim.spec import Run

DISPATCH = 25  # training steps per call into the compiled program
CURVE_POINTS = 100  # of the training loss, kept on a record
CHECKPOINT_SECONDS = 60.0  # between saved trunks; shorter jobs save none
PACKAGES = ("isoflop", "jax", "flax", "optax", "numpy")  # whose versions a record has

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Event:
    """Progress of a job, for a display: steps count the trunk and all its branches."""

    job: str
    step: int
    steps: int
    loss: float  # nats per token, mean over lanes; NaN while compiling
    tokens_per_second: float
    compiling: bool = False


_compiled: dict[Any, Any] = {}
_cache_hits = [0]  # programs this process took from JAX's persistent compilation cache


def _count(event: str, **_: Any) -> None:
    _cache_hits[0] += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)


@dataclass
class Job:
    """The runs of one trunk while they train."""

    runs: Sequence[Run]
    emit: Callable[[Event], None] = lambda event: None
    layout: Layout = ONE_DEVICE
    compile_seconds: float = 0.0
    compiled: int = 0
    cached: int = 0
    source: Source = field(init=False)
    versions: dict[str, str] = field(init=False)

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
        self.source = first.data.open()
        self.ends = sorted({run.budget.steps for run in self.runs})

    def at(self, steps: int) -> Run:
        """Some run of this length: its schedule is that of all of them."""
        return next(run for run in self.runs if run.budget.steps == steps)

    def call(self, name: str, *args: Any) -> Any:
        """Run a compiled function, compiling it at its first use and timing that apart."""
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(args))
        key = (self.program, name, shapes)
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
    """Where a job's training stands: plain arrays, the losses so far, and the time they took."""

    state: Any
    step: int = 0
    seconds: float = 0.0
    losses: list[np.ndarray] = field(default_factory=list)  # each (steps, lanes)


def train(
    runs: Sequence[Run],
    workdir: Path | None = None,
    emit: Callable[[Event], None] = lambda event: None,
    wanted: Collection[str] | None = None,
    layout: Layout = ONE_DEVICE,
) -> Iterator[tuple[Record, Weights]]:
    """Train one job and yield each run's record and weights as soon as they are final.

    `wanted` names the keys to yield (None: all); branches that nobody wants are not trained, and
    the lanes stay as they are, so that the rest equals an uninterrupted job's to the last bit.
    With a `workdir`, the trunk is saved there about every CHECKPOINT_SECONDS and resumed from.
    Raises UserError, before anything is compiled, if the job cannot have that `layout` here, or if
    a package that a record names is not installed.
    """
    job = Job(runs, emit, layout)
    keys = {run.key for run in runs} if wanted is None else set(wanted)
    ends = [end for end in job.ends if any(r.key in keys for r in runs if r.budget.steps == end)]
    if not ends:
        return
    trunk = Trunk(job.program.init(job.seeds))
    if workdir is not None:
        _restore(trunk, workdir, latest=job.at(ends[0]).branch_step)
    saved, done = time.monotonic(), 0
    for end in ends:
        run = job.at(end)
        done = _advance(job, trunk, run, run.branch_step, done)
        if workdir is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(trunk, workdir)
            saved = time.monotonic()
        copied = jax.tree.map(jnp.copy, trunk.state)  # the branch's steps donate their own copy
        branch = Trunk(copied, trunk.step, trunk.seconds, list(trunk.losses))
        done = _advance(job, branch, run, end, done)
        yield from _finish(
            job, branch, [r for r in runs if r.budget.steps == end and r.key in keys]
        )


def _advance(job: Job, trunk: Trunk, run: Run, stop: int, done: int) -> int:
    """Train to step `stop` of `run`; returns the steps this job has done in all."""
    budget = run.budget
    while trunk.step < stop:
        steps = min(DISPATCH, stop - trunk.step)
        batches = np.zeros((DISPATCH, len(job.seeds), budget.batch, budget.seq_len + 1), np.int32)
        for i in range(steps):
            for lane, seed in enumerate(job.seeds):
                batches[i, lane] = job.source.batch(
                    trunk.step + i, seed, budget.batch, budget.seq_len
                )
        factors = np.zeros(DISPATCH, np.float32)
        factors[:steps] = run.optim.schedule(run.budget.steps, trunk.step, trunk.step + steps)
        tokens = job.program.tokens(batches)
        args = (trunk.state, job.rates, factors, tokens, np.int32(steps))
        compiled = job.compile_seconds
        start = time.perf_counter()
        trunk.state, losses = job.call("advance", *args)
        losses = np.asarray(losses)[:steps]
        seconds = time.perf_counter() - start - (job.compile_seconds - compiled)
        trunk.step += steps
        trunk.seconds += seconds
        trunk.losses.append(losses)
        done += steps
        rate = steps * len(job.seeds) * budget.batch_tokens / max(seconds, 1e-9)
        job.emit(Event(run.trunk, done, job.total_steps, float(losses[-1].mean()), rate))
    return done


def _finish(job: Job, branch: Trunk, runs: Sequence[Run]) -> Iterator[tuple[Record, Weights]]:
    """Judge a branch's lanes on the held-out split."""
    budget = runs[0].budget
    held_out = job.source.held_out(budget.eval_tokens, budget.seq_len)
    rows = -(-held_out.shape[0] // budget.batch)
    padded = np.zeros((rows * budget.batch, held_out.shape[1]), np.int32)
    padded[: len(held_out)] = held_out
    chunks = padded.reshape(rows, budget.batch, -1)
    nats, aux = job.call("evaluate", branch.state[0], job.program.tokens(chunks))
    nats = np.asarray(nats).reshape(len(job.seeds), -1)[:, : len(held_out)]
    losses = np.concatenate(branch.losses)
    for run in runs:
        lane = job.seeds.index(run.seed)
        params = jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), branch.state[0])
        scalars = {name: float(value[lane]) for name, value in aux.items()}
        yield _record(job, run, losses[:, lane], nats[lane], scalars, branch.seconds), names(params)


def _record(
    job: Job, run: Run, losses: np.ndarray, nats: np.ndarray, aux: dict, seconds: float
) -> Record:
    source, budget = job.source, run.budget
    reason = _divergence(losses, nats, run.model.vocab_size)
    loss = float(np.mean(nats, dtype=np.float64))
    per_byte = source.bytes_per_token
    return Record(
        key=run.key,
        run=run,
        status="diverged" if reason else "ok",
        reason=reason,
        loss=None if reason else loss,
        loss_se=None if reason else float(np.std(nats, ddof=1) / len(nats) ** 0.5),
        bits_per_byte=None if reason or per_byte is None else loss / np.log(2) / per_byte,
        entropy=source.floor(budget.seq_len),
        eval_tokens=nats.size * budget.seq_len,
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
        lanes=len(job.seeds),
        aux=aux if not reason else {},
        data_digest=source.digest,
        device=jax.devices()[0].device_kind,
        layout=job.layout.split,
        versions=job.versions,
    )


def _versions() -> dict[str, str]:
    try:
        return {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        raise UserError(
            f"a record has the versions of {', '.join(PACKAGES)}, and {error.name} is not "
            "installed; in a folder of its source, pip install -e ."
        ) from None


def _divergence(losses: np.ndarray, nats: np.ndarray, vocab_size: int) -> str:
    """Why a run counts as diverged, by a rule that no result can move; empty if it does not."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        return f"training loss was not finite at step {bad[0]}"
    loss = float(np.mean(nats))
    if not loss < np.log(vocab_size):
        return f"held-out loss {loss:.4g} is not below log(vocab_size) = {np.log(vocab_size):.4g}"
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


def _save(trunk: Trunk, workdir: Path) -> None:
    import orbax.checkpoint as ocp

    tree = {
        "leaves": [np.asarray(leaf) for leaf in jax.tree.leaves(trunk.state)],  # for any layout
        "losses": np.concatenate(trunk.losses),
        "seconds": np.float64(trunk.seconds),
    }
    with ocp.CheckpointManager(
        workdir.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
    ) as manager:
        manager.save(trunk.step, args=ocp.args.StandardSave(tree))


def _restore(trunk: Trunk, workdir: Path, latest: int) -> None:
    """Take up the newest saved trunk that is not beyond step `latest`."""
    if not workdir.is_dir():
        return
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir.absolute()) as manager:
        steps = [step for step in manager.all_steps() if step <= latest]
        if not steps:
            return
        tree = manager.restore(max(steps), args=ocp.args.StandardRestore())
    leaves, structure = jax.tree.flatten(trunk.state)
    restored = [
        jax.device_put(np.asarray(new, old.dtype), old.sharding)
        for new, old in zip(tree["leaves"], leaves, strict=True)
    ]
    trunk.state = jax.tree.unflatten(structure, restored)
    trunk.step = max(steps)
    trunk.losses = [np.asarray(tree["losses"])]
    trunk.seconds = float(tree["seconds"])
