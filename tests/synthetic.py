"""Rows as training would leave them, with losses from a known surface: real specs, no training."""

from __future__ import annotations

import math
import random

from isoflop.models.base import MixerConfig
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.flops import param_counts, training_flops
from isoflop.sim.data import DataConfig, Source
from isoflop.sim.optim import AdamW
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Record, Row
from isoflop.sim.spec import Budget, Run

OFFSET = {"dense": 1.0, "moe": 0.93, "mamba": 0.96, "linear": 1.05, "hybrid": 0.97}
LR = {"dense": 0.01, "moe": 0.01, "mamba": 0.02, "linear": 0.014, "hybrid": 0.014}


class Drawn(DataConfig):
    """Stands for a corpus of bytes; nothing opens it."""

    kind: str = "drawn"
    name: str = "kjv"

    @property
    def vocab_size(self) -> int:
        return 256

    def open(self) -> Source:
        raise NotImplementedError


def model(family: str, width: int, depth: int) -> ModelConfig:
    attention, mlp = Attention(n_heads=width // 16), SwiGLU(d_ff=2 * width)
    mixer: dict[str, MixerConfig] = {
        "dense": attention,
        "moe": attention,
        "mamba": Mamba(),
        "linear": LinearAttention(n_heads=width // 16),
    }
    if family == "hybrid":
        blocks = tile(depth // 2, Block(mixer=Mamba(), channel=mlp), Block(mixer=attention))
    else:
        channel = Moe(n_experts=8, top_k=2, d_expert=width) if family == "moe" else mlp
        blocks = tile(depth, Block(mixer=mixer.get(family, attention), channel=channel))
    return ModelConfig(d_model=width, vocab_size=256, blocks=blocks)


def surface(n: float, d: float, family: str) -> float:
    """The truth: E + A/N^α + B/D^β, with A and B scaled by the family."""
    scale = OFFSET.get(family, 1.1)
    return 0.9 + scale * (18.0 / n**0.32 + 30.0 / d**0.29)


def metrics(loss: float, count: int) -> dict[str, Metric]:
    return {
        "loss": Metric(value=loss, se=0.006, count=count),
        "bits_per_byte": Metric(value=loss / math.log(2), se=0.006 / math.log(2), count=count),
        "accuracy": Metric(value=math.exp(-loss), se=0.001, count=count),
    }


def row(
    family: str,
    width: int,
    depth: int,
    steps: int,
    *,
    seed: int = 0,
    noise: float = 0.004,
    status: str = "ok",
    reason: str = "",
) -> Row:
    run = Run(
        model=model(family, width, depth),
        data=Drawn(),
        optim=AdamW(lr=LR.get(family, 0.01)),
        budget=Budget(steps=steps, batch=8, seq_len=128),
        seed=seed,
    )
    counts, tokens = param_counts(run.model), run.budget.tokens
    chance = random.Random(f"{run.key}")
    common = random.Random(f"{seed}").gauss(0, noise / 2)  # one seed, one data order: paired
    loss = surface(counts["active"], tokens, family) * math.exp(common + chance.gauss(0, noise))
    curve = tuple(
        (
            step,
            surface(counts["active"], step * 1024, family)
            + 3.2 * math.exp(-step / 40)
            + chance.gauss(0, 0.02),
        )
        for step in range(10, steps + 1, max(10, steps // 60))
    )
    ok = status == "ok"
    record = Record(
        key=run.key,
        run=run,
        status=status,
        reason=reason,
        metrics=metrics(loss, 131_072) if ok else {},
        curve=curve if ok else curve[:5],
        params=counts,
        flops=training_flops(run),
        tokens=tokens,
        unique_bytes=min(tokens, 4_000_000),
        epochs=tokens / 4_000_000,
        state_bytes=4 * run.model.state_size(128),
        seconds=tokens / 60_000,
        compile_seconds=3.2,
        seed_batch=2,
        data_digest="9f1c2ab47e03d5b8",
        device="cpu: 2 cores",
        versions={"jax": "0.10.2", "flax": "0.12.8", "isoflop": "0.1.0", "python": "3.11.9"},
    )
    labels = {"family": family, "width": width, "depth": depth}
    return Row(labels=labels, record=record)


def grid(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "linear"),
    sizes: tuple[tuple[int, int], ...] = ((32, 2), (48, 2), (64, 4), (96, 4)),
    steps: tuple[int, ...] = (500, 1000, 2000),
    seeds: tuple[int, ...] = (0, 1, 2),
    noise: float = 0.004,
) -> list[Row]:
    return [
        row(family, width, depth, count, seed=seed, noise=noise)
        for family in families
        for width, depth in sizes
        for count in steps
        for seed in seeds
    ]


def awkward() -> list[Row]:
    """A grid with a diverged and a failed run, a family of one point, and one of one seed."""
    return [
        *grid(),
        *grid(families=("hybrid",), seeds=(0,)),
        row("retnet", 64, 4, 1000),
        row("mamba", 128, 4, 2000, status="diverged", reason="loss is nan from step 312"),
        row("moe", 128, 4, 2000, status="failed", reason="out of memory: <needs> 5.1 GB & has 4"),
    ]


def context(families: tuple[str, ...] = ("dense", "moe", "mamba", "linear")) -> list[dict]:
    """Time and memory with the slopes that theory gives: attention pays T², recurrences T."""
    measured = []
    for i, family in enumerate(families):
        attends = family in {"dense", "moe", "hybrid"}
        for t in (128, 256, 512, 1024, 2048, 4096, 8192):
            step = (1 + 0.2 * i) * (1e-4 * t + (4e-8 * t * t if attends else 0))
            values = {
                "train_step_seconds": 3 * step,
                "prefill_seconds": step,
                "decode_seconds": (1 + 0.3 * i) * 2e-4 + (2e-7 * t if attends else 0),
                "state_bytes": 2048.0 * t if attends else 98_304.0 * (1 + i),
            }
            for quantity, value in values.items():
                exact = quantity == "state_bytes"
                measured.append(
                    {
                        **{"family": family, "quantity": quantity, "seq_len": t, "value": value},
                        "low": value if exact else 0.95 * value,
                        "high": value if exact else 1.08 * value,
                    }
                )
    return measured


COMPANY = {"xz": 2.04, "bzip2": 1.78, "zstd": 2.11}  # made up, near those of plain English
