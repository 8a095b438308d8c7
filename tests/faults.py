"""A grid whose processes are killed in the midst of what they do, again and again until it is whole

    python faults.py ROOT KIND    one host of it: a parent and two workers, a process group with
                                  the host name that HOST says
    harness(…)                    two such hosts and a seeded series of kills

A kill is armed by FAULT in the environment: it strikes once, in whichever worker first comes to its
phase for the count-th time, and takes that worker, its parent, or the whole host.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import fakes
import real

from isoflop.sim import durable
from isoflop.sim.grid import grid, leases
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.records import index
from isoflop.sim.records.index import Index
from isoflop.sim.records.store import Store

PHASES = ("lease", "compile", "step", "checkpoint", "record")  # and, of a reader, "index"
TARGETS = ("worker", "parent", "host")
MOST = {"lease": 3, "compile": 2, "step": 30, "checkpoint": 24, "record": 24}  # of a phase's counts
WINDOW = {"compile": 0.5, "checkpoint": 0.1}  # seconds after its beginning within which it strikes
COMMITS = ("result.json", "model.safetensors", "spec.json", "job.json")


@dataclass(frozen=True)
class Fault:
    """One kill: `marker` is the file that it makes when it strikes."""

    phase: str
    target: str
    count: int
    delay: float
    marker: str


def drawn(rng: random.Random, kind: str, phase: str, marker: Path) -> Fault:
    most = MOST[phase] if kind == "trained" else min(MOST[phase], 3)
    count = rng.randint(1, most)
    delay = rng.random() * WINDOW.get(phase, 0.0)
    return Fault(phase, rng.choice(TARGETS), count, delay, str(marker))


@dataclass
class Armed:
    fault: Fault
    hits: Counter

    def reached(self, phase: str) -> None:
        """A worker is at the beginning, or in the midst, of a phase."""
        self.hits[phase] += 1
        if (phase, self.hits[phase]) != (self.fault.phase, self.fault.count):
            return
        if self.fault.delay:
            threading.Timer(self.fault.delay, self.strike).start()
        else:
            self.strike()

    def strike(self) -> None:
        try:
            with open(self.fault.marker, "x") as file:
                file.write(json.dumps(asdict(self.fault)))
        except FileExistsError:
            return
        if self.fault.target == "host":
            os.killpg(0, signal.SIGKILL)
        own = self.fault.target == "worker"
        os.kill(os.getpid() if own else os.getppid(), signal.SIGKILL)


def around(armed: Armed, phase: str, function):
    """Before it and after it."""

    def changed(*args, **kwargs):
        armed.reached(phase)
        found = function(*args, **kwargs)
        armed.reached(phase)
        return found

    return changed


def arm(fault: Fault) -> None:
    """In a worker: the phases that are functions of this package or of the system."""
    global ARMED
    ARMED = Armed(fault, Counter())
    print(f"armed {fault}", flush=True)
    leases.acquire = around(ARMED, "lease", leases.acquire)
    move = os.replace

    def moved(source, target):
        phase = "record" if Path(target).name in COMMITS else ""
        (around(ARMED, phase, move) if phase else move)(source, target)

    durable.os.replace = moved


ARMED: Armed | None = None


def told(emit):
    """The phases that a trainer's events tell of."""

    def struck(event):
        emit(event)
        if ARMED is not None and hasattr(event, "step"):
            ARMED.reached("compile" if getattr(event, "compiling", False) else "step")

    return struck


def pretended(runs, work, emit, wanted):
    yield from fakes.train(runs, work, told(emit), wanted)


def trained(runs, work, emit, wanted):
    from isoflop.sim.train import checkpoints

    if ARMED is not None and not hasattr(checkpoints.Checkpoints.save, "armed"):
        save = around(ARMED, "checkpoint", checkpoints.Checkpoints.save)
        save.armed = True
        checkpoints.Checkpoints.save = save
    yield from real.often(runs, work, told(emit), wanted)


KINDS = {
    "pretended": (lambda: fakes.cells(width=(8, 16, 32)), pretended),
    "trained": (lambda: real.cells(widths=(16, 24, 32)), trained),
}


def prepare() -> None:
    """In every process of a host, before anything else."""
    leases.EXPIRY_SECONDS, leases.RENEW_SECONDS, grid.POLL_SECONDS = 4.0, 0.3, 0.1
    name = os.environ["HOST"]
    socket.gethostname = lambda: name
    if "FAULT" in os.environ and __name__ == "__mp_main__":  # a spawned worker
        arm(Fault(**json.loads(os.environ["FAULT"])))


def main(root: Path, kind: str) -> int:
    if kind == "index":
        return read(root)
    cells, trainer = KINDS[kind]
    outcome = grid.execute(cells(), root, trainer, executor=Local(workers=2))
    return 1 if outcome.count("failed") else 0


def read(root: Path) -> int:
    """A reader, which brings the index up to date, and may be killed at any of its rows."""
    if "FAULT" in os.environ:
        armed, write = Armed(Fault(**json.loads(os.environ["FAULT"])), Counter()), Index._write

        def struck(self, sql, rows):
            write(self, sql, (armed.reached("index") or row for row in rows))

        Index._write = struck
    with index.opened(root, print) as found:
        rows = sorted((row["key"], row["status"], row["loss"]) for row in found.listing())
    print(json.dumps(rows))
    return 0


@dataclass
class Host:
    """A process group; `done` once its command has ended well."""

    name: str
    process: subprocess.Popen | None = None
    done: bool = False

    def start(self, root: Path, kind: str, fault: Fault | None, cache: Path) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOST": self.name}
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        if fault is not None:
            env["FAULT"] = json.dumps(asdict(fault))
        command = [sys.executable, __file__, str(root), kind]
        env["ISOFLOP_CACHE"] = str(root.parent / "own" / "cache")
        with (root.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=env, start_new_session=True, stdout=log, stderr=log
            )


def harness(
    folder: Path, kind: str, seed: int, kills: int, phases=PHASES, names=("host-a", "host-b")
) -> list[dict]:
    """Grids on these hosts, in `folder`/runs0, …, until there were so many kills, the phases in
    turn. Returns the kills, each with the grid that it struck.
    """
    rng = random.Random(seed)
    struck: list[dict] = []
    number = 0
    while len(struck) < kills:
        root = folder / f"runs{number}"
        markers = folder / f"kills{number}"
        markers.mkdir(parents=True)
        hosts = [Host(name) for name in names]
        planned = 0
        deadline = time.monotonic() + 900
        while not all(host.done for host in hosts):
            assert time.monotonic() < deadline, "a grid does not end"
            for host in hosts:
                code = None if host.process is None else host.process.poll()
                if host.process is not None and code is None:
                    continue
                if code is not None and code >= 0:
                    assert code == 0, (folder / f"{host.name}.log").read_text()[-3000:]
                    host.done = True
                    continue
                fault = None
                if len(struck) + len(list(markers.iterdir())) < kills and planned < 4 * kills:
                    phase = phases[(len(struck) + planned) % len(phases)]
                    fault = drawn(rng, kind, phase, markers / str(planned))
                    planned += 1
                host.start(root, kind, fault, folder / "cache")
            time.sleep(0.05)
        found = [json.loads(path.read_text()) for path in sorted(markers.iterdir())]
        struck += [kill | {"grid": number} for kill in found]
        number += 1
        assert number < 10 * kills, "the kills do not strike"
    return struck


def left(root: Path, kind: str) -> dict[str, tuple]:
    """What there is of every run, to the bit: {key: (status, loss, curve, weights)}."""
    found = {}
    for cell in KINDS[kind][0]():
        record = Store(root).load(cell.run.key)
        weights = (root / cell.run.key / "model.safetensors").read_bytes()
        found[cell.run.key] = (record.status, record.loss, record.curve, weights)
    return found


def orphans(root: Path, kind: str) -> set[str]:
    """Files of neither a run's record nor a job's log."""
    keys = {cell.run.key for cell in KINDS[kind][0]()}
    trunks = {cell.run.trunk for cell in KINDS[kind][0]()}
    known = {f"{key}/{name}" for key in keys for name in COMMITS[:3]}
    known |= {f"jobs/{trunk}/{name}" for trunk in trunks for name in ("job.json", "metrics.jsonl")}
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - known


if "HOST" in os.environ:
    prepare()
if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
