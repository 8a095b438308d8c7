"""How fast is the training step of each architecture, as a share of what this machine can do?

Forward, backward and AdamW, one seed, at stated shapes, in turns with square fp32 matrix products:
`matmul_share` is the step's matrix products (3 × the executed forward pass, so recomputation counts
as time and not as work) per second over the best rate of those products in the same turn. Shares
and ratios travel; seconds do not, and on a busy machine only shares mean something.

Command:   isoflop run bench --json
Duration:  about 15 minutes on 2 idle cores (estimated); --shapes small takes two
Expected:  the share grows with width; linear attention and dense are ahead at d 256, and experts
           behind, whose many small products are slow (LOG.md)
"""

from __future__ import annotations

import re
import statistics
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import pick
from experiments.context import tell
from experiments.families import model
from models.errors import UserError
from models.lm import ModelConfig
from models.platforms import full_precision
from sim.context import Probe, interleave, probe, train_step

MATMULS = (512, 1024, 2048)  # sides of the square products
STEPS = 3  # timed in one call, as training has many


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
    repeats: int = 5,
) -> list[dict]:
    """The table.

    Args:
        families: names of the zoo's families.
        shapes: of small (d 64 L 2 T 256), medium (d 128 L 4 T 256), large (d 256 L 6 T 1024),
            long (d 64 L 2 T 8192, one sequence) and gpu (d 512 L 8 T 1024), or any other as
            width x depth x tokens x sequences, like 64x2x1024x16.
        repeats: turns that are timed, after one that is not.
    """
    rows = []
    for name, shape in read(shapes, repeats).items():
        models = {family: model(family, shape.width, shape.depth) for family in families}
        rows += _shape(name, shape, models, repeats)
    tell("")
    return rows


def read(names: tuple[str, ...], repeats: int) -> dict[str, Shape]:
    """The shapes of these names. Raises UserError for what is neither a name nor four sizes, and
    unless something is repeated.
    """
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be at least 1")
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
    name: str, shape: Shape, models: dict[str, ModelConfig], repeats: int
) -> list[dict[str, Any]]:
    """The rows of one shape, its families and the matrix products taking turns."""
    probes: dict[str | int, Probe] = {side: matmul(side) for side in MATMULS}
    for family, config in models.items():
        tell(f"compiling {family}, {name}")
        probes[family] = train_step(config, shape.seq_len, shape.batch, STEPS)
    seconds = interleave(probes, repeats, lambda text: tell(f"{name}, {text}"))
    peaks = [max(2 * side**3 / seconds[side][turn] for side in MATMULS) for turn in range(repeats)]
    return [_row(name, shape, f, models[f], probes[f], seconds[f], peaks) for f in models]


def matmul(side: int) -> Probe:
    """The product of two square fp32 matrices; the first is handed on, so nothing is copied."""
    pair = np.random.default_rng(0).normal(size=(2, side, side)).astype(np.float32)
    left, right = (jax.device_put(matrix) for matrix in pair)
    return probe(full_precision(lambda left, right: (left, left @ right)), left, right)


def _row(
    name: str,
    shape: Shape,
    family: str,
    config: ModelConfig,
    probe: Probe,
    seconds: tuple[float, ...],
    peaks: list[float],
) -> dict[str, Any]:
    tokens = shape.batch * shape.seq_len
    work = 3 * config.cost(shape.seq_len, shape.batch).matmul_flops
    shares = [work / s / peak for s, peak in zip(seconds, peaks, strict=True)]
    return {
        "family": family,
        "shape": name,
        **shape._asdict(),
        "params": config.cost(1).params,
        "step_seconds": statistics.median(seconds),
        "step_seconds_low": min(seconds),
        "step_seconds_high": max(seconds),
        "tokens_per_second": tokens / statistics.median(seconds),
        "matmul_share": statistics.median(shares),
        "matmul_share_low": min(shares),
        "matmul_share_high": max(shares),
        "matmul_flops_per_second": statistics.median(peaks),
        "compile_seconds": probe.compile_seconds,
        "memory_bytes": probe.memory_bytes,
    }
