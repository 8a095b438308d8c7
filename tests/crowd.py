"""Thirty students at once, a process each, and three workers, all killed again and again.

    python crowd.py FOLDER

A student buys runs until the budget is spent, and writes down what it was told is bought
(told-NAME beside FOLDER); one that is killed begins again. Workers train them (trained beside
FOLDER has every key that was trained). Ends when all is bought and trained.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import classes
import fakes

from isoflop.models.errors import UserError
from isoflop.sim.classroom import ledger, work
from isoflop.sim.grid import grid, leases

leases.EXPIRY_SECONDS, leases.RENEW_SECONDS, grid.POLL_SECONDS = 2.0, 0.2, 0.1
ROOT = Path(sys.argv[1])
NAMES = [f"s{i:02}" for i in range(30)]
KILLED = {"students": 30, "workers": 6}


def line(path: Path, text: str) -> None:
    """Added by one write, which a kill leaves whole or not begun."""
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)


def buys(name: str) -> None:
    room = ledger.load(ROOT)
    rng = random.Random(os.getpid())
    told = ROOT.parent / f"told-{name}"
    refused = 0
    while refused < 5:
        cell = classes.cell(room, width=rng.choice((8, 16)), steps=rng.randrange(100, 160, 10))
        try:
            _, new = room.submit(name, cell)
        except UserError:
            refused += 1
            continue
        if new:
            line(told, cell.run.key)
        time.sleep(rng.random() * 0.02)


def trains(runs, folder, emit, wanted):
    for record, weights in fakes.train(runs, folder, emit, wanted):
        time.sleep(0.01)
        line(ROOT.parent / "trained", record.key)
        yield record, weights


def works() -> None:
    room = ledger.load(ROOT)
    while True:
        work.train(room, trains)
        time.sleep(0.05)


def forked(what, *args) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        what(*args)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    rng = random.Random(0)
    classes.room(ROOT, NAMES, budget=4 * 10**8, largest=4 * 10**8)
    students = {forked(buys, name): name for name in NAMES}
    workers = {forked(works) for _ in range(3)}
    killed = {"students": 0, "workers": 0}
    while students:
        time.sleep(rng.random() * 0.1)
        if killed["students"] < KILLED["students"]:
            os.kill(rng.choice([*students]), signal.SIGKILL)
        if killed["workers"] < KILLED["workers"]:
            os.kill(rng.choice([*workers]), signal.SIGKILL)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            dead = os.WIFSIGNALED(status)
            assert dead or (pid in students and not os.WEXITSTATUS(status)), "a process failed"
            if pid in workers:
                workers.remove(pid)
                workers.add(forked(works))
                killed["workers"] += 1
            else:
                name = students.pop(pid)
                if dead:
                    killed["students"] += 1
                    students[forked(buys, name)] = name
            if not students:
                break
    room = ledger.load(ROOT)
    while any([*room.settle(name).waiting] for name in NAMES):
        time.sleep(0.1)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(json.dumps({f"killed_{name}": count for name, count in killed.items()}))


if __name__ == "__main__":
    main()
