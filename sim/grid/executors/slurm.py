"""Jobs as tasks of Slurm job arrays, submitted and logged by submitit.

A task that Slurm preempts, or that comes to its time limit, saves where it stands and is queued
again; one whose node fails is queued again by Slurm. What jobs emit they append to a file each, in
the folder of submitit's own, which has to be on a file system that the nodes share: a look a second
brings it here. The queue itself is asked every few seconds, in one call for all tasks. Like
submitit's, these files are pickles: they are as private as the folder, and are read while the array
lasts, never later.
"""

from __future__ import annotations

import base64
import functools
import os
import pickle
import re
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from isoflop.models.errors import UserError, need, quoted
from isoflop.sim.grid.executors.base import OnEvent, Queued, Work, WorkerDied
from isoflop.sim.train.preemption import Preempted

POST_SECONDS = 1.0  # between looks at what the tasks emit
QUEUE_SECONDS = 5.0  # between looks at the queue
CANCEL_SECONDS = 30.0  # for the tasks of an array that is cancelled to end
ALIVE = {  # states of a job that will still be heard of; others are its end
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"),
    *("SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "PREEMPTED"),
}


@dataclass(frozen=True)
class Options:
    """Of every task, as sbatch knows them."""

    partition: str = ""
    """The partition; without it, as without what follows, the cluster's own default."""
    account: str = ""
    """Whom the time is charged to."""
    qos: str = ""
    """The quality of service."""
    constraint: str = ""
    """Features that a node must have, as in h100."""
    time: int = 60
    """Minutes that a job may take at a stretch; at their end it is saved and queued again."""
    cpus: int = 1
    """Cores of each job."""
    gpus: int = 0
    """GPUs of each job."""
    memory: float = 0.0
    """GiB of each job; 0 leaves that to the cluster."""
    array_parallelism: int = 256
    """Tasks of an array that may run at once."""
    warning: int = 90
    """Seconds before its end at which a job is told to save."""
    folder: Path = Path("slurm")
    """Where submitit keeps jobs and logs: a folder that the nodes see, too."""
    setup: tuple[str, ...] = ()
    """Shell commands before each job, as in "module load cuda"."""
    sbatch: tuple[str, ...] = ()
    """Any further options of sbatch, as in nice=100 reservation=lab."""

    def __post_init__(self) -> None:
        if min(self.time, self.cpus, self.array_parallelism) < 1 or min(self.gpus, self.memory) < 0:
            raise UserError(
                f"slurm.time={self.time}, slurm.cpus={self.cpus} and slurm.array-parallelism="
                f"{self.array_parallelism} must be at least 1, and slurm.gpus={self.gpus} and "
                f"slurm.memory={self.memory:g} at least 0"
            )
        if bad := [item for item in self.sbatch if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", item)]:
            raise UserError(
                f"--slurm.sbatch {quoted(bad[0])} must be a long option of sbatch without its "
                "dashes, as in nice=100"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """By submitit's names."""
        further = (item.partition("=") for item in self.sbatch)
        asked: dict[str, Any] = {
            "job_name": "isoflop",
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.time,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "mem": f"{int(self.memory * 1024)}M" if self.memory else "",
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.warning,
            "setup": list(self.setup),
            "additional_parameters": {"requeue": True}
            | {name: value if sign else True for name, sign, value in further},
        }
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Slurm:
    """A job is a task of an array; every job of the grid is in the queue at once."""

    slurm: Options = field(default_factory=Options)

    @property
    def workers(self) -> int:
        """Jobs that the queue may run at once."""
        return self.slurm.array_parallelism

    def run(self, jobs: Sequence[Any], work: Work, on_event: OnEvent) -> None:
        """As the contract says. Raises UserError where sbatch is not there or refuses."""
        if not jobs:
            return
        tasks = self._submit(jobs, work)
        running = {task.name: task for task in tasks}
        asked, gone = time.monotonic(), set[str]()
        try:
            for task in tasks:
                on_event(Queued(task.job, f"Slurm job {task.name}"))
            while running:
                time.sleep(POST_SECONDS)
                for task in list(running.values()):
                    if _hand_on(task, on_event):
                        del running[task.name]
                if running and time.monotonic() - asked > QUEUE_SECONDS:
                    states = queue(running)
                    ended = {name for name in running if states.get(name) not in ALIVE}
                    for name in ended & gone:  # twice in a row: its last words may lag behind
                        task = running.pop(name)
                        if not _hand_on(task, on_event):
                            on_event(WorkerDied(task.job, task.death(states.get(name))))
                    asked, gone = time.monotonic(), ended
        finally:
            _cancel(list(running))

    def _submit(self, jobs: Sequence[Any], work: Work) -> list[_Task]:
        """In as many arrays as the cluster's limit on their size asks for."""
        need("submitit", "slurm")
        os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # in the tasks, too
        import submitit

        if shutil.which("sbatch") is None:
            raise UserError(
                "there is no sbatch here; run this on a node from which Slurm's jobs are submitted,"
                " or choose another --executor"
            )
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        folder = self.slurm.folder.absolute() / stamp
        posts = folder / "events"
        posts.mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)  # what is unpickled from here is from whom it was submitted by
        tasks: list[_Task] = []
        size = _largest_array()
        try:
            executor = submitit.SlurmExecutor(folder)
            executor.update_parameters(**self.slurm.parameters)
            for first in range(0, len(jobs), size):
                part = jobs[first : first + size]
                files = [posts / str(first + i) for i in range(len(part))]
                array = executor.map_array(functools.partial(_serve, work), part, files)
                tasks += [
                    _Task(one.job_id, job, file, one.paths.stderr)
                    for one, job, file in zip(array, part, files, strict=True)
                ]
        except (submitit.core.utils.FailedJobError, subprocess.SubprocessError) as error:
            _cancel([task.name for task in tasks])
            raise UserError(
                f"sbatch refuses ({_line(error)}); see sinfo and the options --slurm.… of "
                "isoflop run"
            ) from None
        return tasks


@dataclass
class _Task:
    """A task of an array, and how much of what it emitted is read."""

    name: str  # 12_3
    job: Any
    post: Path
    log: Path
    read: int = 0

    def news(self) -> Iterator[Any]:
        """The whole lines since the last call. Opened afresh, a network file system asks its
        server; a line that a kill cut short is left out.
        """
        try:
            with self.post.open("rb") as file:
                file.seek(self.read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in filter(None, whole.split(b"\n")):
            try:
                message = pickle.loads(base64.b64decode(line, validate=True))
            except (ValueError, EOFError, pickle.UnpicklingError):
                continue
            yield message

    def death(self, state: str | None) -> str:
        said = f"as {state}" if state else "and Slurm knows no more of it"
        return f"its Slurm job {self.name} ended {said}, see {self.log}"


def _hand_on(task: _Task, on_event: OnEvent) -> bool:
    """Hand on what a task emitted; whether it has ended. Raises what the job raised."""
    for kind, message in task.news():
        if kind == "event":
            on_event(message)
        elif kind == "raise":
            raise message
        else:
            return True
    return False


def queue(names: Collection[str]) -> dict[str, str]:
    """State by job, in one call: of those that Slurm still knows, in its own words."""
    arrays = sorted({name.partition("_")[0] for name in names})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
    said = subprocess.run(
        [*command, f"--jobs={','.join(arrays)}"], capture_output=True, text=True, check=False
    )
    if said.returncode and "Invalid job id" not in said.stderr:  # as when slurmctld restarts
        return dict.fromkeys(names, "RUNNING")
    states = dict(line.split() for line in said.stdout.splitlines())
    return {name: states[name] for name in names if name in states}


def _cancel(names: Sequence[str]) -> None:
    """End these tasks, and wait until they have."""
    if not names:
        return
    subprocess.run(["scancel", *names], capture_output=True, check=False)
    until = time.monotonic() + CANCEL_SECONDS
    while set(queue(names).values()) & ALIVE and time.monotonic() < until:
        time.sleep(POST_SECONDS)


def _largest_array() -> int:
    """The cluster's MaxArraySize is one more than a task's largest index."""
    said = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, text=True, check=False
    )
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said.stdout, re.M)
    if found is None:
        raise UserError(
            f"Slurm does not answer ({' '.join(said.stderr.split())[:300]}); try sinfo, or choose "
            "another --executor"
        )
    return max(1, int(found[1]) - 1)


def _serve(work: Work, job: Any, post: Path) -> None:
    """A task: it emits into its file, whose first line ends one that an earlier kill cut short."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # a pool of as many threads
    os.environ.setdefault("PJRT_NPROC", cores)

    def send(kind: str, message: Any) -> None:
        with post.open("ab") as file:
            file.write(b"\n" + base64.b64encode(pickle.dumps((kind, message))) + b"\n")

    try:
        work(job, lambda message: send("event", message))
    except Preempted:
        _queue_again()
    except Exception as error:
        error.add_note(traceback.format_exc())
        send("raise", error)
        raise
    send("end", None)


def _queue_again() -> NoReturn:
    """After a signal, unless that was scancel's: Slurm ends this process and begins it again."""
    job = os.environ["SLURM_JOB_ID"]  # of an array's last task that is the whole array's
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if state == "RUNNING":
        subprocess.run(["scontrol", "requeue", job], check=False)
    sys.exit(f"stopped while it was {state or 'of no state'}")


def _line(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return " ".join(str(said).split())[:300]
