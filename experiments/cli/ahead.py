"""`isoflop compile`: what a training step needs on a TPU, told by its compiler, without a TPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial, wraps
from typing import Any, Literal, NamedTuple

import jax

from isoflop import experiments
from isoflop.experiments import pick
from isoflop.experiments.cli.flags import HELP, Usage, layout, parse
from isoflop.experiments.cli.text import print_json, si, table, tell
from isoflop.experiments.families import model
from isoflop.models.families import zoo
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.train import ahead


class Shape(NamedTuple):
    name: str
    model: ModelConfig
    seq_len: int
    batch: int


@dataclass(frozen=True)
class CompileFlags:
    topology: str = "v5e:4x4"
    """A kind of TPU and its grid of chips: v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:2x2, …"""
    layout: str = ""
    """How a step lies on the chips, as in fsdp=8,tensor=2; one of them if not told."""
    largest: bool = False
    """Also find the largest batch that fits: about six compilations, of minutes where batches are
    large."""
    json: bool = False
    """Print JSON instead of a table."""


def family(
    name: str,
    width: int = 768,
    depth: int | None = None,
    vocab_size: int = 32768,
    seq_len: int = 1024,
    batch: int = 16,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
) -> list[Shape]:
    """A family's model.

    Args:
        width: the dial; depth follows unless told.
        depth: layers.
        vocab_size: tokens.
        seq_len: tokens in a sequence.
        batch: sequences in a step, of all chips.
        dtype: of activations.
    """
    config = model(name, width, depth, vocab_size).model_copy(update={"dtype": dtype})
    return [Shape(name, config, seq_len, batch)]


def compile_(args: Sequence[str]) -> int:
    """Compile training steps for a TPU that is not there: memory, FLOPs, the largest batch."""
    if args and args[0] in HELP:
        options = partial(family, "")
        parse("compile EXPERIMENT|FAMILY", compile_.__doc__, ["--help"], CompileFlags, options)
    if not args or args[0].startswith("-"):
        raise Usage(
            "name an experiment or a family first, as in isoflop compile dense --topology v5e:4x4"
        )
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # before JAX looks for TPUs
    return _compile(args[0], args[1:])


def _compile(name: str, args: Sequence[str]) -> int:
    """Compile the shapes of an experiment, or of a family, and print what they need."""
    known = {found.name: found for found in experiments.discover().values() if found.trains}
    if experiments.is_path(name):
        known[name] = experiments.find(name)
    pick(name, [*known, *zoo.FAMILIES], "experiment or family")
    options: Callable = _cells(known[name]) if name in known else partial(family, name)
    flags, shapes = parse(f"compile {name}", compile_.__doc__, args, CompileFlags, options)
    asked = layout(flags.layout)
    for shape in shapes:
        asked.check(shape.model, shape.batch)
    devices = ahead.topology(flags.topology)
    rows = [_row(shape, flags, asked, devices) for shape in shapes]
    tell("")
    if flags.json:
        print_json(rows)
        return 0
    print(table([{k: _said(k, v) for k, v in row.items()} for row in rows], left=("model",)))
    used = f"{asked.devices} of {len(devices)} chips of {flags.topology}"
    print(f"bytes of each of {used}; FLOPs of a step as executed, of all of them")
    for row in rows:
        if row["excess"]:
            print(
                f"{row['model']} does not fit: {si(row['excess'])}B too many on a chip; lower "
                "--batch, or split it with --layout"
            )
    return 0


def _cells(experiment: experiments.Experiment) -> Callable[..., list[Shape]]:
    """The different shapes of an experiment's grid, under its flags."""
    cells = experiment.load().cells

    @wraps(cells)
    def shapes(*args: Any, **kwargs: Any) -> list[Shape]:
        found: dict[tuple[ModelConfig, int, int], str] = {}
        for cell in cells(*args, **kwargs):
            run, said = cell.run, " ".join(map(str, cell.labels.values()))
            found.setdefault((run.model, run.budget.seq_len, run.budget.batch), said)
        return [Shape(said, *key) for key, said in found.items()]

    return shapes


def _row(shape: Shape, flags: CompileFlags, asked: Any, devices: Sequence[Any]) -> dict[str, Any]:
    def attempt(batch: int) -> ahead.Compiled:
        tell(f"compiling {shape.name}, batch {batch}")
        return ahead.compiled(shape.model, shape.seq_len, batch, asked, devices)

    first = attempt(shape.batch)
    row = {
        "model": shape.name,
        "params": shape.model.cost(1).params,
        "seq_len": shape.seq_len,
        **asdict(first),
        "flops": step_flops(shape.model, shape.seq_len, shape.batch)["executed"],
    }
    if flags.largest:
        fit = ahead.largest(attempt, asked.parts, first)
        row["largest"] = fit.batch if fit else 0
    return row


def _said(name: str, value: Any) -> Any:
    if value is None:
        return "—"
    return value if isinstance(value, str) or name in ("batch", "largest", "seq_len") else si(value)
