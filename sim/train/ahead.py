"""Training steps compiled ahead of time for TPUs that are not there.

The compiler of libtpu needs a topology, not a device: `v5e:4x4` is 16 chips of that kind. What it
assigns to memory is what a chip would hold, and a program beyond that is refused with the amount.
Nothing is run, so nothing is said of speed. FLOPs are the exact count of sim/cost/flops.py, since
XLA's counts a loop's body once. Not included: other makers' devices, decoding.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.optim import AdamW
from isoflop.sim.train.program import Program, jitted
from isoflop.sim.train.sharding import Layout

ENVIRONMENT = {  # libtpu would otherwise look for chips, and for other hosts
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is taken that another process could want
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # of a host that is not there: silences a warning
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
SIZE = r"\(?([\d.]+)([KMGT]?)\)?"
REFUSALS = tuple(  # used, and the chip's memory
    re.compile(text, re.DOTALL)
    for text in (rf"Used {SIZE} of {SIZE} hbm", rf"required for .*? {SIZE} exceeds .*?HBM {SIZE}")
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MOST = 2**24  # sequences in a batch
GROWTH = 16  # of a batch that fits, to find one that does not


@dataclass(frozen=True)
class Compiled:
    """What one chip holds during a training step, in bytes. Beyond its memory, only the total."""

    batch: int  # of all chips
    total: int  # arguments, results that are not written over them, temporaries and code
    excess: int = 0  # of the total over the memory; 0: it fits
    arguments: int | None = None  # weights, moments, tokens
    temporaries: int | None = None
    code: int | None = None


def topology(name: str) -> Sequence[Any]:
    """The chips of `v5e:4x4` and the like. UserError without libtpu or for a name it refuses."""
    if find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler; pip install 'isoflop[tpu-aot]'")
    from jax.experimental import topologies

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"there is no topology {name} ({reason}); a chip and its grid, as in v5e:4x4"
        ) from None


def compiled(
    model: ModelConfig, seq_len: int, batch: int, layout: Layout, devices: Sequence[Any]
) -> Compiled:
    """One training step of `batch` sequences, laid out on the first of `devices`."""
    layout.check(model, batch)
    mesh = layout.mesh(devices)
    program = Program(model, AdamW(lr=1.0), mesh=mesh, micro_batches=layout.micro_batches)
    lowered = jitted(program)["advance"].lower(*program.shapes(batch, seq_len))
    try:
        stats = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        total, excess = beyond(str(error))
        return Compiled(batch, total, excess)
    own = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Compiled(
        batch,
        own + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        0,
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def beyond(message: str) -> tuple[int, int]:
    """(bytes used, bytes too many) from the compiler's refusal. Another error is raised again."""
    for refusal in REFUSALS:
        if found := refusal.search(message):
            used, memory = (round(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
            return used, max(1, used - memory)
    raise RuntimeError(message)


def largest(attempt: Callable[[int], Compiled], step: int, first: Compiled) -> Compiled | None:
    """The largest multiple of `step` that fits, beside one that does not: exact up to 16 of them,
    to a sixteenth beyond.

    Memory is close to linear in the batch, so every other attempt is where that line meets the
    chip's memory, and the others halve what is left: near the end the compiler recomputes to fit.
    None if not even `step` sequences fit; beyond MOST nothing is tried.
    """
    fits, fails = (first, None) if first.excess == 0 else (None, first)
    straight = True
    while True:
        low = fits.batch if fits else 0
        high = fails.batch if fails else MOST
        least = max(step, low // 16 // step * step)
        if high - low <= least:
            return fits
        guess = (low + high) // 2
        if fails is None:
            guess = GROWTH * low
        elif straight:
            base = fits.total if fits else 0
            rate = (fails.total - base) / (high - low)
            guess = high - math.ceil(fails.excess / max(rate, 1e-9))
        straight = not straight
        found = attempt(min(max(guess // step * step, low + least), high - step))
        fits, fails = (found, fails) if found.excess == 0 else (fits, found)
