"""A grid is a list of cells; running it trains what is missing, job by job, and keeps failures.

A job is all the runs of one trunk: its seeds are a batch of one computation and its budgets are
branches of it. The arrangement of a job begun is written down, so that a job killed half-way
is trained again in the same arrangement and gives the same bits; only the records it still
lacked are written. Diverged runs are final; failed runs are tried again by the next call. A job
whose worker died is tried again by the same call, TRIES times in all, and one that another process
has leased is come back to before the call ends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import secrets
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from isoflop.models import kernels
from isoflop.models.errors import UserError
from isoflop.sim import userfile
from isoflop.sim.durable import Place, remote, remove_folder, unwritable, write
from isoflop.sim.grid import leases
from isoflop.sim.grid.executors.base import Executor, Queued, WorkerDied
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.records.provenance import changed
from isoflop.sim.records.store import Record, Store, brief
from isoflop.sim.spec import Cell, Run, canonical
from isoflop.sim.train import hosts, preemption
from isoflop.sim.train.preemption import Preempted

if TYPE_CHECKING:
    from isoflop.sim.train.loop import Event, Note

HERE = Local()  # one job after another, in this process
QUEUED = "queued.txt"  # in a job's folder: what its scheduler calls it
POLL_SECONDS = 1.0  # between looks at the leases of others, once nothing else is left to train
TRIES = 3  # of a job whose worker dies
STALL_SECONDS = 600.0  # without a word from a job, until that is said

Result = tuple[Record, Mapping[str, np.ndarray]]
# (arrangement, its work folder, emit, keys of the runs to yield) → records and weights
Trainer = Callable[
    [Sequence[Run], Place, Callable[["Event | Note"], None], Collection[str]], Iterator[Result]
]


def product(**dials: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the dials' values, as keyword arguments. Chain grids with `+`."""
    return [dict(zip(dials, values, strict=True)) for values in itertools.product(*dials.values())]


def zipped(**dials: Sequence[Any]) -> list[dict[str, Any]]:
    """The dials turned together: their first values, their second values, …"""
    sizes = {name: len(values) for name, values in dials.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"dials that turn together need equally many values; got {sizes}")
    return [dict(zip(dials, values, strict=True)) for values in zip(*dials.values(), strict=True)]


@dataclass(frozen=True)
class Job:
    """Runs trained together: they share a trunk and differ in their steps and seeds."""

    trunk: str
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        return self.trunk

    def __reduce__(self) -> tuple:  # the user's files first: the runs have mixers of theirs
        return _job, (userfile.Loaded(), self.trunk, self.runs)


def _job(_: None, trunk: str, runs: tuple[Run, ...]) -> Job:
    return Job(trunk, runs)


@dataclass(frozen=True)
class Wanted:
    """Which runs are to be trained, by their records."""

    retrain_changed: bool = False  # those of other code than today's, too
    tries: int | None = None  # not those that failed so often; None: however often

    def of(self, store: Store, runs: Iterable[Run]) -> dict[str, Run]:
        """By key."""
        found = {run.key: (run, store.load(run.key)) for run in runs}
        return {key: run for key, (run, record) in found.items() if self._asks(record)}

    def _asks(self, record: Record | None) -> bool:
        if record is None:
            return True
        if record.final:
            return self.retrain_changed and bool(changed(record))
        return self.tries is None or record.failures < self.tries


@dataclass(frozen=True)
class Started:
    trunk: str


@dataclass(frozen=True)
class Recorded:
    """A run has its record."""

    trunk: str
    record: Record


@dataclass(frozen=True)
class Ended:
    trunk: str
    mistake: str = ""  # what the user can fix, if that is why it failed


@dataclass(frozen=True)
class Leased:
    """Another process is training the job; it is come back to when nothing else is left."""

    trunk: str
    owner: str


@dataclass(frozen=True)
class Retried:
    """The job's worker died; it is tried again when the others have ended."""

    trunk: str
    reason: str


@dataclass(frozen=True)
class Stalled:
    """Nothing was heard of a job for so long; it goes on being waited for."""

    trunk: str
    seconds: float


OnEvent = Callable[
    ["Queued | Started | Recorded | Ended | Leased | Retried | Stalled | Event | Note"], None
]


@dataclass(frozen=True)
class Outcome:
    """What one call of `execute` did; `finished` were there before it, and `elsewhere` is how many
    other processes trained in the meantime.
    """

    finished: int
    trained: tuple[Record, ...]
    elsewhere: int
    mistakes: tuple[str, ...]

    def count(self, status: str) -> int:
        return sum(record.status == status for record in self.trained)


def jobs(cells: Iterable[Cell], shard: tuple[int, int] = (0, 1)) -> list[Job]:
    """The grid's jobs, longest first, those that go on from others' runs after all that do not; of
    n shards, the i-th takes every n-th job.

    The split depends on the cells alone, so shards stay disjoint whatever is finished already.
    """
    index, shards = shard
    if not 0 <= index < shards:
        raise UserError(f"shard {index}/{shards} is none of 0/{shards} … {shards - 1}/{shards}")
    trunks: dict[str, dict[str, Run]] = {}
    for cell in cells:
        trunks.setdefault(cell.run.trunk, {})[cell.run.key] = cell.run
    grouped = [Job(trunk, tuple(runs.values())) for trunk, runs in trunks.items()]
    return sorted(grouped, key=lambda job: (_age(job), -_length(job), job.trunk))[index::shards]


def _age(job: Job) -> int:
    """How many runs each of its runs goes on from, one after another."""
    return len(job.runs[0].lineage)


def _length(job: Job) -> int:
    """Forward FLOPs of the longest branch for every seed: the order of jobs, nothing else."""
    run = max(job.runs, key=lambda run: run.budget.steps)
    step = run.model.cost(run.budget.seq_len, run.budget.batch).flops
    return step * run.budget.steps * len({run.seed for run in job.runs})


def execute(
    cells: Iterable[Cell],
    root: Place,
    trainer: Trainer,
    *,
    executor: Executor = HERE,
    shard: tuple[int, int] = (0, 1),
    on_event: OnEvent = lambda event: None,
    need_bytes: int = 0,
    retrain_changed: bool = False,
    tries: int | None = None,
) -> Outcome:
    """Train the cells that have no final record in the runs directory `root`, or, with
    `retrain_changed`, one of other code than today's (sim/records/provenance.py). With `tries`,
    runs are left as they are that failed so often.

    Where others than this process train, `trainer` must be importable by name. Returns when every
    run has a record, its own or another process's, or has failed here. Raises UserError, before
    training, if the directory cannot be written or has less than `need_bytes` free, or a record in
    it is damaged; an exception inside a job becomes its runs' reason for failing, and the other
    jobs go on.
    """
    store = Store(root)
    root = store.root
    store.check(need_bytes)
    every = jobs(cells, shard)
    wanted = Wanted(retrain_changed, tries)
    missing = functools.partial(wanted.of, store)
    asked = {job.trunk: missing(job.runs) for job in every}
    finished = sum(len(job.runs) - len(asked[job.trunk]) for job in every)
    token, others = secrets.token_hex(16), leases.Watch()
    trained: list[Record] = []
    leased: list[str] = []
    deaths: Counter[str] = Counter()
    again: list[Job] = []
    mistakes: list[str] = []

    def note(event: Any) -> None:
        match event:
            case WorkerDied(job, reason) if deaths[job.trunk] + 1 < TRIES:
                deaths[job.trunk] += 1
                again.append(job)
                event = Retried(job.trunk, reason)
            case WorkerDied(job, reason):
                with leases.hold(_lease(root, job.trunk), token) as lease:
                    if lease.other is None:
                        _fail(store, missing(job.runs), reason, note)
                note(Ended(job.trunk))
                return
            case Queued(job, where):
                path = root / "jobs" / job.trunk / QUEUED
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, f"{where}\n".encode())
            case Recorded():
                trained.append(event.record)
            case Leased():
                others.expired(_lease(root, event.trunk))  # watched from now on
                leased.append(event.trunk)
            case Ended() if event.mistake:
                mistakes.append(event.mistake)
        on_event(event)

    # a worker of another machine may stand in another folder
    shared = root if remote(root) else root.absolute()
    work = functools.partial(train_job, shared, kernels.keep(trainer), token, wanted)
    todo = [job for job in every if asked[job.trunk]]
    waiting: list[Job] = []
    try:
        for _, group in itertools.groupby(todo, key=_age):
            ready = list(group)
            while ready or waiting:
                executor.run(ready, work, note)
                waiting += [job for job in ready if job.trunk in leased]
                leased.clear()
                ready = [job for job in waiting if others.expired(_lease(root, job.trunk))]
                waiting = [job for job in waiting if job not in ready]
                ready += again
                again.clear()
                if waiting and not ready:
                    time.sleep(POLL_SECONDS)
    finally:
        for job in every:  # of workers that were ended with their grid
            leases.release(_lease(root, job.trunk), token)
    own = {record.key for record in trained if record.final}
    rest = [run for runs in asked.values() for run in runs.values() if run.key not in own]
    return Outcome(finished, tuple(trained), len(rest) - len(missing(rest)), tuple(mistakes))


def train_job(
    root: Place,
    trainer: Trainer,
    token: str,
    wanted: Wanted,
    job: Job,
    emit: Callable[[Any], None],
) -> None:
    """Train one job's missing runs and write their records, unless another process leased it.

    Raises UserError when the disk is full or forbids writing, and Preempted after SIGTERM or
    SIGUSR1, once the job has saved where it stands. Of several processes (sim/train/hosts.py) the
    first does all this, and the others its steps.
    """
    if not hosts.first():
        hosts.follow(trainer)
        return
    trainer = hosts.leading(trainer) if hosts.several() else trainer
    store = Store(root)
    root = store.root
    try:
        with (
            preemption.watched(),
            leases.hold(_lease(root, job.trunk), token) as lease,
            _watchdog(job, emit) as emit,
        ):
            if lease.other is not None:
                emit(Leased(job.trunk, lease.other.owner))
            elif missing := wanted.of(store, job.runs):
                emit(Started(job.trunk))
                emit(Ended(job.trunk, _train(store, trainer, job, missing, lease, emit)))
            else:  # another process finished it in the meantime
                emit(Ended(job.trunk))
    except BrokenPipeError:  # whoever watches has gone
        raise
    except OSError as error:  # never the trainer's: those are reasons for failing
        raise unwritable(root, error) from error


@contextlib.contextmanager
def _watchdog(job: Job, emit: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """`emit`, and Stalled from a thread when the job has said nothing for STALL_SECONDS: a device,
    a network file system or another host that hangs lets no exception out.
    """
    one, said, done = threading.Lock(), [time.monotonic()], threading.Event()

    def heard(event: Any) -> None:
        said[0] = time.monotonic()
        with one:
            emit(event)

    def watch() -> None:
        told = 1
        while not done.wait(STALL_SECONDS / 20):
            silent = time.monotonic() - said[0]
            told = told if silent >= STALL_SECONDS else 1
            if silent >= told * STALL_SECONDS:
                with one, contextlib.suppress(Exception):  # whoever watches has gone
                    emit(Stalled(job.trunk, silent))
                told *= 2

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join()


class _LeaseLost(Exception):
    """Another process took over a job, since this one did not renew its lease in time."""


def _train(
    store: Store,
    trainer: Trainer,
    job: Job,
    missing: dict[str, Run],
    lease: leases.Holding,
    emit: Callable[[Any], None],
) -> str:
    """The body of `train_job`; the user's mistake, if one stopped it."""
    folder = store.root / "jobs" / job.trunk
    runs = _arrange(folder, job, missing)
    error: list[Exception] = []
    with _appended(folder / "metrics.jsonl") as log:

        def logged(event: Event | Note) -> None:
            known = {k: v for k, v in asdict(event).items() if v == v}  # JSON has no NaN
            with contextlib.suppress(OSError):  # a full disk is told by what cannot do without it
                if log is not None:
                    log.write(json.dumps(known).encode() + b"\n")
            emit(event)
            if lease.lost.is_set():
                raise _LeaseLost

        def guarded() -> Iterator[Result]:  # catches the trainer's exceptions, not those of saving
            try:
                yield from trainer(runs, folder / "work", logged, set(missing))
            except Preempted:
                raise
            except Exception as exception:
                error.append(exception)

        for record, weights in guarded():
            if missing.pop(record.key, None) is not None:
                store.save(record, weights)
                emit(Recorded(job.trunk, record))
    if not missing:  # a job that failed goes on from its checkpoints when it is tried again
        remove_folder(folder / "work")
        return ""
    if error and isinstance(error[0], _LeaseLost):
        emit(Leased(job.trunk, "another process, which took it over"))
        return ""
    mistake = str(error[0]) if error and isinstance(error[0], UserError) else ""
    reason = mistake or (_reason(error[0]) if error else "the trainer ended without this run")
    if error and not mistake:
        write(folder / "failure.txt", "".join(traceback.format_exception(error[0])).encode())
        reason += f" (traceback in jobs/{job.trunk}/failure.txt)"
    _fail(store, missing, reason, emit)
    return mistake


def _appended(path: Place) -> contextlib.AbstractContextManager[Any]:
    """A file to add lines to; None on an object store, whose objects cannot be added to."""
    return contextlib.nullcontext() if remote(path) else path.open("ab", buffering=0)


def _arrange(folder: Place, job: Job, missing: Mapping[str, Run]) -> tuple[Run, ...]:
    """What to train together: the arrangement of the job begun, if it is one; else the missing."""
    path = folder / "job.json"
    begun = [run.key for run in read_arrangement(path)] if path.exists() else []
    asked = {run.key: run for run in job.runs}
    if begun and missing.keys() <= set(begun) <= asked.keys():
        return tuple(asked[key] for key in begun)  # as asked now: a file may have moved
    remove_folder(folder / "work")  # a trunk of other seeds
    runs = tuple(missing.values())
    folder.mkdir(parents=True, exist_ok=True)
    write(path, ("[" + ",\n".join(canonical(run) for run in runs) + "]\n").encode())
    return runs


def read_arrangement(path: Place) -> tuple[Run, ...]:
    """The runs of a job begun. Raises UserError where its file is not a whole one."""
    try:
        return TypeAdapter(tuple[Run, ...]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} is not a whole job ({brief(error)}); delete the folder {path.parent} to "
            f"begin that job again"
        ) from None


def _fail(
    store: Store, missing: Mapping[str, Run], reason: str, emit: Callable[[Any], None]
) -> None:
    """Write failed records, but not over those of an earlier training that went well."""
    for key, run in missing.items():
        before = store.load(key)
        failures = 1 + (before.failures if before else 0)
        record = Record(key=key, run=run, status="failed", reason=reason, failures=failures)
        if before is None or not before.final:
            store.save(record, {})
        emit(Recorded(run.trunk, record))


def _reason(error: Exception) -> str:
    """The exception in one line, and where in a file of the user's; compilers write pages."""
    first = str(error).strip().split("\n", 1)[0]
    said = f"{type(error).__name__}: {first:.300}" if first else type(error).__name__
    where = userfile.place(error)
    return f"{where}: {said}" if where else said


def _lease(root: Place, trunk: str) -> Place:
    return root / "leases" / trunk
