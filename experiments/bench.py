"""How fast is each architecture in training, reading and writing, as a share of this machine?

Three programs of stated shapes, in turns with square fp32 matmuls: the training step
(forward, backward and AdamW, one seed), prefill (read a prompt) and decode (write a token greedily
against the state of a whole prompt). `matmul_share` is a program's matmuls (3 × the
executed forward pass for a step, so recomputation counts as time and not as work) per second over
the best rate of those products in the same turn. Shares and ratios travel; seconds do not, and on a
busy machine only shares mean something.

Command:   isoflop run bench --json && isoflop figures bench
Duration:  12 minutes on 2 idle cores for five shapes and three repeats; --shapes small takes less
Expected:  the share grows with width; linear attention and dense are ahead at d 256, and experts
           behind, whose many small products are slow (LOG.md); decoding is far below all of them,
           since a token's products read every weight for one row of each sequence
"""

from __future__ import annotations

import re
import statistics
from typing import Any, NamedTuple

import jax

from isoflop.experiments import pick
from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import model
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.evaluate.context import PROGRAMS
from isoflop.sim.evaluate.machine import MATMULS, matmul
from isoflop.sim.evaluate.probe import Probe, interleave


class Shape(NamedTuple):
    width: int
    depth: int
    seq_len: int
    batch: int


SHAPES = {
    "small": Shape(64, 2, 256, 16),
    "medium": Shape(128, 4, 256, 16),
    "large": Shape(256, 6, 1024, 4),
    "long": Shape(64, 2, 8192, 1),
    "gpu": Shape(512, 8, 1024, 16),
}


def measure(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "linear"),
    shapes: tuple[str, ...] = ("small", "medium", "large", "long"),
    programs: tuple[str, ...] = tuple(PROGRAMS),
    repeats: int = 5,
) -> list[dict]:
    """The table.

    Args:
        families: names of the zoo's families.
        shapes: of small (d 64 L 2 T 256), medium (d 128 L 4 T 256), large (d 256 L 6 T 1024),
            long (d 64 L 2 T 8192, one sequence) and gpu (d 512 L 8 T 1024), or any other as
            width x depth x tokens x sequences, like 64x2x1024x16.
        programs: of train_step, prefill and decode.
        repeats: turns that are timed, after one that is not.
    """
    rows = []
    for name, shape in read(shapes, programs, repeats).items():
        models = {family: model(family, shape.width, shape.depth) for family in families}
        rows += _shape(name, shape, models, programs, repeats)
    tell("")
    return rows


def read(names: tuple[str, ...], programs: tuple[str, ...], repeats: int) -> dict[str, Shape]:
    """The shapes of these names. Raises UserError for what is neither a name nor four sizes, for a
    program that there is not, and unless something is repeated.
    """
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be at least 1")
    for program in programs:
        pick(program, PROGRAMS, "program")
    shapes = {}
    for name in names:
        sizes = name.split("x")
        if len(sizes) == len(Shape._fields) and all(re.fullmatch("[1-9][0-9]*", s) for s in sizes):
            shapes[name] = Shape(*map(int, sizes))
        else:
            pick(name, SHAPES, "shape")
            shapes[name] = SHAPES[name]
    return shapes


def _shape(
    name: str,
    shape: Shape,
    models: dict[str, ModelConfig],
    programs: tuple[str, ...],
    repeats: int,
) -> list[dict[str, Any]]:
    """The rows of one shape, its families, their programs and the matmuls taking turns."""
    products = {("matmul", str(side)): matmul(side) for side in MATMULS}
    probes: dict[tuple[str, str], Probe] = {}
    for program in programs:
        for family, config in models.items():
            tell(f"compiling {family}, {name}, {program}")
            probes[program, family] = PROGRAMS[program](config, shape.seq_len, shape.batch)
    turns = interleave(products | probes, repeats, lambda text: tell(f"{name}, {text}"))
    rates = [[2 * int(side) ** 3 / s for s in turns[_, side]] for _, side in products]
    peaks = [max(turn) for turn in zip(*rates, strict=True)]
    return [
        _row(name, shape, program, family, models[family], item, turns[program, family], peaks)
        for (program, family), item in probes.items()
    ]


def _row(
    name: str,
    shape: Shape,
    program: str,
    family: str,
    config: ModelConfig,
    probe: Probe,
    seconds: tuple[float, ...],
    peaks: list[float],
) -> dict[str, Any]:
    tokens = shape.batch * (1 if program == "decode" else shape.seq_len)
    work = matmul_flops(program, config, shape)
    shares = [work / s / peak for s, peak in zip(seconds, peaks, strict=True)]
    return {
        "family": family,
        "shape": name,
        "program": program,
        **shape._asdict(),
        "params": config.cost(1).params,
        "seconds": statistics.median(seconds),
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "tokens_per_second": tokens / statistics.median(seconds),
        "matmul_share": statistics.median(shares),
        "matmul_share_low": min(shares),
        "matmul_share_high": max(shares),
        "matmul_flops_per_second": statistics.median(peaks),
        "compile_seconds": probe.compile_seconds,
        "memory_bytes": probe.memory_bytes,
        "device": jax.devices()[0].device_kind,
    }


def matmul_flops(program: str, config: ModelConfig, shape: Shape) -> float:
    """FLOPs of a program's matmuls: a step, a prompt with one token's logits, a token."""
    if program == "decode":
        return config.step_cost(shape.seq_len, shape.batch).matmul_flops
    whole = config.cost(shape.seq_len, shape.batch).matmul_flops
    if program == "train_step":
        return 3 * whole
    unread = shape.batch * (shape.seq_len - 1)
    return whole - 2 * unread * config.d_model * config.vocab_size
