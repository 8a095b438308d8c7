"""Specs and command lines with something wrong with them, by a seeded generator."""

from __future__ import annotations

import contextlib
import copy
import random
import signal
from collections.abc import Iterator
from typing import Any

from isoflop.sim.spec import Run

# what a field may hold by mistake: of every JSON type, at every edge
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "-1", "1e9", "[/b]", "a\nb", "\ud800", [], [1], {}, {"kind": 1}),
    *(-1, 0, 1, 2, 3, 7, 16, 255, 256, 10**4, 2**24, 10**9, 2**31 - 1, 2**31, 2**62, 2**63, 2**64),
    *(10**30, -(10**30), 10**400, 10**5000, 0.0, -0.5, 1e-320, 0.5, 1.5, 1e9, 1e300, -1e300),
    *(float("inf"), float("-inf"), float("nan"), {"kind": []}, {"kind": "attention"}, [[[]]]),
)

NUMBERS = tuple(value for value in VALUES if isinstance(value, int | float))


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to everything inside nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutated(spec: dict, chance: random.Random) -> dict:
    """A copy of a JSON value with one to three fields changed, dropped, repeated or added."""
    spec = copy.deepcopy(spec)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        *path, last = chance.choice(list(places(spec)))
        parent = spec
        for key in path:
            parent = parent[key]
        match chance.randrange(10):
            case 0:
                parent.pop(last)
            case 1 if isinstance(parent, dict):
                parent[chance.choice(("", "extra", "kind", "n_heads"))] = chance.choice(VALUES)
            case 2 if isinstance(parent, list):
                parent.extend(parent * chance.choice((1, 3, 300)))
            case _ if isinstance(parent[last], int | float) and chance.random() < 0.7:
                parent[last] = chance.choice(NUMBERS)
            case _:
                parent[last] = copy.deepcopy(chance.choice(VALUES))
    return spec


WORDS = (
    *("", "-", "--", "-1", "0", "1", "2", "3", "1e3", "1e400", "nan", "inf", "x", "[/b]", "a b"),
    *("1000000000", str(2**31), str(2**64), "1" + "0" * 400, "1" + "0" * 5000, "None", "*", "**"),
    *("/", "..", "é", "\udcff", "{}", "dense", "moe", "kjv", "gpu", "small.csv", "records.jsonl"),
)
RUN = ("--runs", "--workers", "--shard", "--layout", "--json", "--quiet", "--help", "-h")
SHOW = ("--runs", "--records", "--out", "--json", "--help")
OWN = {
    "ladder": ("--families", "--scale", "--sizes", "--steps", "--seeds", "--corpus"),
    "lr_transfer": ("--families", "--widths", "--steps", "--seeds"),
    "quickstart": ("--families", "--steps", "--seeds", "--corpus"),
    "known_entropy": ("--parts", "--facts", "--steps", "--seeds", "--width"),
    "costs": ("--families", "--width", "--lengths", "--contexts", "--conventions"),
    "bench": ("--families", "--shapes", "--programs", "--repeats"),
}
COMPILE = ("--topology", "--layout", "--width", "--depth", "--vocab-size", "--seq-len", "--batch")


def command(chance: random.Random) -> list[str]:
    """A command line that trains and measures nothing: a verb, a name, and options, each of which
    may be another's, misspelt, or have a value too many, too few or absurd.
    """
    verb = chance.choice(("run", "run", "run", "run", "bench", "list", "describe", "compile"))
    verb = chance.choice((verb, verb, verb, "figures", "report", "records", "import", "export"))
    name = chance.choice(
        (*OWN, *("known_entropy", "costs", "bench") * 3)
    )  # those whose grids are small
    own = RUN + OWN[name] * 2
    match verb:
        case "run":
            args, options = [name, "--dry-run"], own
        case "bench":
            args, options = ["--dry-run"], RUN + OWN["bench"] * 2
        case "figures" | "report" | "records":
            args, options = [name], SHOW + OWN[name]
        case "compile":
            args, options = [chance.choice((name, "dense", "mamba", "moe"))], COMPILE + OWN[name]
        case "import" | "export":
            args, options = [chance.choice(WORDS)], ("--seq-len", "--tokens", "--layout", "--seed")
        case _:
            args, options = [name] * (verb == "describe"), ("--json", "--runs")
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        args.append(chance.choice(options))
        args += [chance.choice(WORDS) for _ in range(chance.choice((0, 1, 1, 1, 2)))]
    if chance.random() < 0.1:
        args.insert(chance.randrange(len(args) + 1), chance.choice(WORDS))
    if chance.random() < 0.05:
        args.remove(chance.choice([arg for arg in args if arg != "--dry-run"] or args))
    return [verb if chance.random() < 0.95 else chance.choice(WORDS), *args]


@contextlib.contextmanager
def seconds(limit: float) -> Iterator[None]:
    """Raises TimeoutError, which nothing catches, where the body takes longer: by the processor's
    time, as others may use the machine.
    """

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {limit} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def as_run(spec: dict) -> Run:
    return Run.model_validate(spec)
