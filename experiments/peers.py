"""Is the training step faster than that of the same model in PyTorch, on the same device?

Forward, backward, clipping and AdamW of one architecture at one shape, taking turns: ours, and that
of Hugging Face transformers, not compiled, with the attention it chooses by itself. The models are
equal in every size and in their number of parameters, which is checked before anything is timed;
Mamba and Mamba-2 are stacks of those layers alone, as published. `ratio` is the peer's seconds over
ours in the same turn, so above 1 ours is faster. Ratios travel, seconds do not. On a CPU, Mamba's
peer is the parallel scan of the package mambapy, the fastest there is in plain PyTorch.

Command:   make parity, then .venv-parity/bin/isoflop run peers --json
Duration:  about 7 minutes on 2 idle cores
Expected:  on a CPU .7 for experts, just below 1 for dense, and about 2 to 7 for the recurrences; on
           a GPU all above 1
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from experiments import pick
from experiments.bench import STEPS, Shape, read
from experiments.context import tell
from experiments.families import model
from models import interop
from models.errors import UserError
from models.lm import Block, ModelConfig, tile
from models.moe import Moe
from sim.context import Timed, interleave, train_step

TYPES = {  # of transformers
    "dense": "llama",
    "moe": "mixtral",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "gated_deltanet": "qwen3_next",
}


def measure(
    families: tuple[str, ...] = tuple(TYPES),
    shapes: tuple[str, ...] = ("medium",),
    repeats: int = 5,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> list[dict]:
    """The table.

    Args:
        families: of dense, moe, mamba, mamba2 and gated_deltanet.
        shapes: as those of `isoflop bench`.
        repeats: turns that are timed, after one that is not.
        dtype: of activations, for both; weights are float32.
    """
    sizes = read(shapes, repeats)
    for family in families:
        pick(family, TYPES, "family with a peer")
    for name in ("torch", "transformers", *["mambapy"] * ("mamba" in families)):
        if not importlib.util.find_spec(name):
            raise UserError(f"the peers need {name}; pip install 'isoflop[parity]'")
    rows = [
        _row(name, shape, family, repeats, dtype)
        for name, shape in sizes.items()
        for family in families
    ]
    tell("")
    return rows


def _row(name: str, shape: Shape, family: str, repeats: int, dtype: str) -> dict[str, Any]:
    config = compared(family, shape)
    tell(f"compiling {family}, {name}")
    typed = config.model_copy(update={"dtype": dtype})
    ours = train_step(typed, shape.seq_len, shape.batch, STEPS)
    peer = Peer(published(family, config), config, shape, dtype)
    timed: dict[str, Timed] = {"ours": ours, "peer": peer}
    seconds = interleave(timed, repeats, lambda text: tell(f"{family}, {name}, {text}"))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    return {
        "family": family,
        "peer": peer.name,
        "shape": name,
        "dtype": dtype,
        **shape._asdict(),
        "params": config.cost(1).params,
        "step_seconds": statistics.median(seconds["ours"]),
        "peer_seconds": statistics.median(seconds["peer"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "compile_seconds": ours.compile_seconds,
        "device": jax.devices()[0].device_kind,
    }


def compared(family: str, shape: Shape) -> ModelConfig:
    """Our model: the zoo's; the two Mambas without the MLP beside them, experts of whole vectors.

    torch's grouped products refuse experts whose rows are not multiples of 16 bytes.
    """
    config = model(family, shape.width, shape.depth)
    block = config.blocks[0]
    if family in ("mamba", "mamba2"):
        block, config = Block(mixer=block.mixer), config.model_copy(update={"norm_eps": 1e-5})
    if isinstance(block.channel, Moe):
        size = round(block.channel.d_expert / 8) * 8
        experts = block.channel.model_copy(update={"d_expert": size})
        block = Block(mixer=block.mixer, channel=experts)
    return config.model_copy(update={"blocks": tile(shape.depth, block)})


def published(family: str, config: ModelConfig) -> dict[str, Any]:
    """The fields of the peer's config.json."""
    if family != "gated_deltanet":
        fields = interop.fitting(config, TYPES[family])[1]
        return fields | {"use_mambapy": True} if family == "mamba" else fields
    delta, mlp = config.blocks[0].parts
    delta, depth = delta.resolved(config.d_model), len(config.blocks)
    return {
        "model_type": TYPES[family],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": depth,
        "layer_types": ["linear_attention"] * depth,
        "mlp_only_layers": list(range(depth)),
        "linear_num_key_heads": delta.n_heads,
        "linear_num_value_heads": delta.n_value_heads,
        "linear_key_head_dim": delta.d_key,
        "linear_value_head_dim": delta.d_value,
        "linear_conv_kernel_dim": delta.d_conv,
    }


@dataclass
class Peer:
    """A model of transformers that trains on one batch again and again."""

    fields: dict[str, Any]
    config: ModelConfig
    shape: Shape
    dtype: str

    def __post_init__(self) -> None:
        import torch
        import transformers

        self.torch = torch
        transformers.utils.logging.set_verbosity_error()  # of kernels that a CPU cannot have
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("JAX has a GPU and this torch has none; install torch's build for CUDA")
        fields = {k: v for k, v in self.fields.items() if k not in ("model_type", "dtype")}
        kind = self.fields["model_type"]
        self.model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **fields)
        ).to(self.device)
        self.name = f"transformers {transformers.__version__} {type(self.model).__name__}"
        count, ours = self.model.num_parameters(), self.config.cost(1).params
        if count != ours:
            raise RuntimeError(f"{self.name} has {count} parameters and ours has {ours}")
        tokens = np.random.default_rng(0).integers(
            self.config.vocab_size, size=(self.shape.batch, self.shape.seq_len + 1)
        )
        self.tokens = torch.tensor(tokens, device=self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0)

    def seconds(self) -> float:
        """Of one training step, the mean of as many as ours are timed by."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return (time.perf_counter() - start) / STEPS

    def step(self) -> None:
        torch = self.torch
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            logits = self.model(self.tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
