"""A task in a file of its own, as a user writes one: copy the value that stood beside a key.

A sequence of 8 tokens is `key value filler × 4 key value`; only the last value has weight. Run as
a program it prints losses of three steps on one device and on eight, as JSON.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, Literal

if __name__ == "__main__":
    import quick

    os.environ["XLA_FLAGS"] = quick.devices(8)

import jax
import numpy as np
from flax import nnx

from isoflop.sim.data import Batch, DataConfig, Source

PERIOD = 8
VALUES = 8


class Recall(DataConfig):
    kind: Literal["recall"] = "recall"
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        return 64

    def open(self) -> Source:
        return _Recall(self.seed)


class _Recall(Source):
    def __init__(self, seed: int):
        self.seed, self.digest = seed, f"recall {seed}"

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        return self._draw(np.random.default_rng([self.seed, 1, seed, step]), batch, seq_len)

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        return self._draw(np.random.default_rng([self.seed, 0]), -(-tokens // seq_len), seq_len)

    def _draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> Batch:
        groups = -(-(seq_len + 1) // PERIOD)
        shape = rows, groups
        key, value = rng.integers(8, size=shape), 8 + rng.integers(VALUES, size=shape)
        filler = rng.integers(16, 64, size=(*shape, PERIOD - 4))
        pair = np.stack([key, value], -1)
        tokens = np.concatenate([pair, filler, pair], -1).reshape(rows, -1)[:, : seq_len + 1]
        answer = np.zeros((*shape, PERIOD), np.float32)
        answer[..., -1] = 1
        weights = answer.reshape(rows, -1)[:, 1 : seq_len + 1]
        return Batch(tokens.astype(np.int32), weights)


def paths(state: Any) -> Iterator[tuple]:
    """Of every parameter, in the order of its leaves."""
    return (path for path, _ in nnx.to_flat_state(state))


def losses(layout: Any) -> list[float]:
    from isoflop.models.lm import Block, ModelConfig
    from isoflop.models.mixers.attention import Attention
    from isoflop.models.mixers.mlp import SwiGLU
    from isoflop.sim.optim import AdamW
    from isoflop.sim.train.program import Program, jitted

    block = Block(mixer=Attention(n_heads=4, n_kv_heads=2), channel=SwiGLU(d_ff=64))
    model = ModelConfig(d_model=32, vocab_size=64, blocks=(block,))
    mesh = layout.mesh() if layout.devices > 1 else None
    program = Program(model, AdamW(lr=0.01), mesh=mesh, micro_batches=layout.micro_batches)
    source = Recall().open()
    steps = [source.batch(i, 0, 8, 16) for i in range(3)]
    uneven = np.arange(8, dtype=np.float32)[:, None]  # a device's rows have a weight of their own
    batches = Batch(
        np.stack([one.tokens for one in steps])[:, None],
        np.stack([one.weights * uneven for one in steps])[:, None],
    )
    ones = np.ones(3, np.float32)
    rates = program.rates(program.optim)
    put = program.put(batches)
    _, found = jitted(program)["advance"](program.init([0]), rates, ones, put, np.int32(3))
    return np.asarray(found)[:, 0].tolist()


if __name__ == "__main__":
    from isoflop.sim.train.sharding import Layout

    assert jax.device_count() == 8
    layouts = {
        "one": Layout(),
        "one and micro-batches": Layout(micro_batches=4),
        "eight": Layout(data=2, fsdp=2, tensor=2),
    }
    print(json.dumps({name: losses(layout) for name, layout in layouts.items()}))
