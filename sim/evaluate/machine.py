"""What a machine does at best, measured, and the seconds that a piece of work takes there at least.

    seconds ≥ max(matmul FLOPs / rate + elementwise FLOPs / rate, bytes / bandwidth)

The roofline of Williams et al. 2009 (CACM 52(4)) with the two kinds of arithmetic at a rate each,
one after the other; FLOPs are those of the model's exact `Cost`. Rates are of square fp32 matmuls,
of 64 multiplications and additions of each number that is read, and of reading and writing arrays
of several sizes, since what fits a cache is moved from there when it is used again: the rate of the
smallest array that has as many bytes as are moved. Not included: activations that go through
memory, starting programs, work that is not FLOPs (choosing, moving). A program is as far above the
prediction as these and its own arithmetic cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from isoflop.models.base import Cost
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.hardware import OPTIMIZER_BYTES
from isoflop.sim.evaluate.probe import Probe, interleave, probe

MATMULS = (512, 1024, 2048)  # sides of the square products
CACHED, ROUNDS = 2**20, 64  # floats, and multiplications and additions of each once it is there
COPIED = (2**16, 2**20, 2**25)  # floats of arrays that are read and written
FP32 = 4  # bytes


def matmul(side: int) -> Probe:
    """The product of two square fp32 matrices; the first is handed on, so nothing is copied."""
    pair = np.random.default_rng(0).normal(size=(2, side, side)).astype(np.float32)
    left, right = (jax.device_put(matrix) for matrix in pair)
    return probe(full_precision(lambda left, right: (left, left @ right)), left, right)


def elementwise() -> Probe:
    """ROUNDS multiplications and additions of every number of an array, in one loop over it."""

    def turn(x, scale):
        for _ in range(ROUNDS):
            x = x * scale + scale
        return x, x[0]

    return probe(turn, jnp.ones(CACHED, jnp.float32), jnp.float32(0.5))


def copy(size: int) -> Probe:
    """An array, read and written so often that twice the largest one's numbers are moved."""
    times = 2 * max(COPIED) // size

    def turn(x):
        after, _ = jax.lax.scan(lambda x, _: (x + 1, None), x, length=times)
        return after, after[0]

    return probe(turn, jnp.ones(size, jnp.float32))


@dataclass(frozen=True)
class Machine:
    """FLOPs and bytes per second, at best."""

    matmul: float
    elementwise: float
    bandwidths: tuple[tuple[int, float], ...]  # of arrays of so many bytes, by size

    def seconds(self, cost: Cost, moved: float) -> float:
        """The least time of some work that moves so many bytes."""
        computing = cost.matmul_flops / self.matmul + cost.elementwise_flops / self.elementwise
        fits = [rate for size, rate in self.bandwidths if moved <= size]
        return max(computing, moved / (fits or [self.bandwidths[-1][1]])[0])


def probes() -> dict[str, Probe]:
    """What `rates` reads, by name."""
    found = {f"matmul {n}": matmul(n) for n in MATMULS}
    return found | {"elementwise": elementwise()} | {f"copy {n}": copy(n) for n in COPIED}


def rates(seconds: dict[str, float]) -> Machine:
    """Of the seconds of every probe."""
    return Machine(
        max(2 * side**3 / seconds[f"matmul {side}"] for side in MATMULS),
        2 * CACHED * ROUNDS / seconds["elementwise"],
        tuple((FP32 * n, 4 * FP32 * max(COPIED) / seconds[f"copy {n}"]) for n in COPIED),
    )


def measure(repeats: int = 3) -> Machine:
    """Of this machine, now: the best of the turns."""
    return rates({name: min(turns) for name, turns in interleave(probes(), repeats).items()})


def predicted(
    machine: Machine | None, model: ModelConfig, quantity: str, seq_len: int, batch: int = 1
) -> float:
    """Of a quantity of context.py: seconds of a training step, a prompt or a token on a machine, or
    bytes of a sequence's state. Weights and states are fp32, each moved once; of a prompt only the
    last token has logits.
    """
    state = FP32 * model.state_size(seq_len)
    if quantity == "state_bytes" or machine is None:
        return float(state)
    if quantity == "decode_seconds":
        touched = FP32 * model.touched_params(batch)
        return machine.seconds(model.step_cost(seq_len, batch), touched + batch * state)
    cost = model.cost(seq_len, batch)
    if quantity == "train_step_seconds":
        three = Cost(3 * cost.matmul_flops, 3 * cost.elementwise_flops)
        return machine.seconds(three, OPTIMIZER_BYTES * cost.params)
    unread = 2 * batch * (seq_len - 1) * model.d_model * model.vocab_size
    read = Cost(cost.matmul_flops - unread, cost.elementwise_flops)
    return machine.seconds(read, FP32 * cost.params + batch * state)
