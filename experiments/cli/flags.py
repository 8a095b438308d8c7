"""Flags are the typed parameters of functions and the fields of dataclasses, read by tyro."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from isoflop.experiments import pick

if TYPE_CHECKING:
    from isoflop.sim.grid.executors.base import Executor
    from isoflop.sim.train.sharding import Layout

HELP = {"-h", "--help"}


class Usage(Exception):
    """A command line that cannot be understood."""


@dataclass(frozen=True)
class ListFlags:
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class RunFlags:
    runs: Path = Path("runs")
    """The runs directory: one folder per run; finished runs are never trained again."""
    executor: str = "local"
    """Where jobs run: local, on this machine's cores, or another of sim/grid/executors or of an
    installed package; its own options stand among these."""
    shard: str = "0/1"
    """Train the i-th of n parts, counted from 0, as in 0/4: for several machines or job arrays."""
    layout: str = ""
    """How each job lies on this machine's devices, as in data=2,fsdp=2,tensor=2; or expert=4 for
    experts, and micro_batches=4 for less memory. Losses are those of one device, to rounding."""
    hosts: str = ""
    """Train every job on several hosts together, all of which start this command: env, told by
    ISOFLOP_COORDINATOR=host:port, ISOFLOP_PROCESSES and ISOFLOP_PROCESS; or slurm, told by srun.
    Or ray, by one command, on the --nodes of --executor ray. --layout says how a job lies on all
    their devices."""
    time_limit: float | None = None
    """Seconds of training that a run may take; beyond them it is a failed run, from whose state a
    larger limit goes on."""
    tracker: tuple[str, ...] = ()
    """Show the records in tensorboard, wandb, mlflow or trackio, too: in runs/trackers."""
    retrain_changed: bool = False
    """Train again what other code than today's has trained; without it that is a warning."""
    dry_run: bool = False
    """Print what it would take and what it cannot show, and train nothing."""
    json: bool = False
    """Print JSON instead of a table."""
    quiet: bool = False
    """Print no progress."""


@dataclass(frozen=True)
class ShowFlags:
    runs: Path = Path("runs")
    """The runs directory to read."""
    records: Path | None = None
    """Read this NAME.jsonl, as `isoflop records` writes it, instead of a runs directory."""
    out: Path = Path("report")
    """Where to write; the experiment's name is added."""
    json: bool = False
    """Print the written files as JSON."""


@dataclass(frozen=True)
class FigureFlags(ShowFlags):
    metric: str = "loss"
    """What to draw of the runs: bits_per_byte, accuracy (as the error rate), or kjv.loss of an
    evaluation set of theirs; the standard figures, in a folder of that name."""


@dataclass(frozen=True)
class RecordFlags(ShowFlags):
    where: str = ""
    """Only runs that meet this condition on their labels and columns."""


def parse(
    command: str, doc: str | None, args: Sequence[str], *makers: Callable[..., Any]
) -> tuple[Any, ...]:
    """What each maker makes of its typed parameters: flags, or positional without a default."""
    import tyro

    parts = tuple(Annotated[Any, tyro.conf.arg(name="", constructor=maker)] for maker in makers)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            values, unknown = tyro.cli(
                tuple[parts],  # type: ignore[valid-type]
                prog=f"isoflop {command}",
                description=doc,
                args=list(args),
                return_unknown_args=True,
                config=(
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.PositionalRequiredArgs,
                ),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise Usage(f"{_unboxed(said.getvalue())}; see isoflop {command} --help") from None
    if unknown:
        names = [name for maker in makers for name in inspect.signature(maker).parameters]
        flags = [f"--{name.replace('_', '-')}" for name in names]
        pick(unknown[0].split("=")[0], flags, f"option of isoflop {command} called")
        raise Usage(f"{unknown[0]} cannot stand where it does; see isoflop {command} --help")
    return values


def _unboxed(panel: str) -> str:
    """What tyro says in its panel below the title and above the first rule, in one line."""
    lines = [line.strip("│ ") if line.strip("│╭╮╰╯─- ") else "" for line in panel.splitlines()]
    below = itertools.dropwhile(lambda line: not line, lines[1:])
    return " ".join(itertools.takewhile(bool, below)).rstrip(".")


def executor(args: Sequence[str]) -> Callable[..., Executor]:
    """The executor that `--executor NAME` asks for among the arguments: its fields are flags."""
    from isoflop.sim.grid.executors import base

    words = [word for arg in args for word in arg.split("=", 1)]
    name = RunFlags.executor
    if "--executor" in words[:-1]:
        name = words[words.index("--executor") + 1]
    pick(name, base.names(), "executor")
    return base.find(name)


def only(args: Sequence[str], known: Iterable[str]) -> list[str]:
    """Of the words after an experiment's name, those of options whose fields are `known`."""
    kept: list[str] = []
    keep = False
    for word in args:
        if word.startswith("--"):
            keep = word[2:].split("=")[0].replace("-", "_") in known
        kept += [word] * keep
    return kept


def once(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function of an experiment, whose options name nothing twice: it would count as more."""
    function = getattr(module, name)

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for option, values in options.items():
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise Usage(
                    f"--{option.replace('_', '-')} {' '.join(map(str, values))} must name each "
                    "value once; leave out the repeated ones"
                )
        return function(*args, **options)

    return checked


def deferred(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The same flags, but a call without arguments instead of the call itself."""
    bind = functools.partial(functools.partial, function)
    return functools.wraps(function)(lambda *args, **kwargs: bind(*args, **kwargs))


def layout(text: str) -> Layout:
    """Sizes by name, from name=size,name=size."""
    from isoflop.sim.train.sharding import Layout

    sizes = {}
    for part in text.split(",") if text else ():
        name, _, size = part.partition("=")
        pick(name, Layout.model_fields, "axis of a layout called")
        if not size.isdigit() or int(size) < 1:
            raise Usage(f"--layout {text} must be sizes of at least 1 by name, as in data=2,fsdp=4")
        sizes[name] = int(size)
    return Layout(**sizes)


def shard(text: str) -> tuple[int, int]:
    index, slash, shards = text.partition("/")
    if not (slash and index.isdigit() and shards.isdigit() and int(index) < int(shards)):
        raise Usage(f"--shard {text} must be i/n with 0 ≤ i < n, as in 0/4")
    return int(index), int(shards)
