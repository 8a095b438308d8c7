"""Is each architecture as fast as the same model in PyTorch, and does it need no more memory?

The training step (forward, backward, clipping, AdamW), prefill and decode of one architecture at
one shape, taking turns: ours, and that of Hugging Face transformers with the attention that it
chooses by itself, as it comes and, if asked for, by torch.compile. The models are equal in every
size and in their number of parameters, which is checked before anything is timed; Mamba and Mamba-2
are stacks of those layers alone, as published. `ratio` is the peer's seconds over ours in
the same turn, so above 1 ours is faster. Ratios travel, seconds do not. `memory` is the most that
is allocated in one training step, weights and moments included: ours as XLA assigned it, the
peer's as torch's allocator counts it. On a CPU, Mamba's peer is the parallel scan of the package
mambapy, the fastest there is in plain PyTorch. Decoding is not compiled there: its cache grows, and
each new shape is compiled anew.

Command:   make parity, then .venv-parity/bin/isoflop run peers --json && isoflop figures peers
Duration:  17 minutes on 2 cores beside other work, most of it the peers of the two Mambas;
           --compiled takes 3 (Gated DeltaNet) to 9 minutes (Mamba) for a family's step and prompt
Expected:  on a CPU a training step of .9 for experts, about 1 for dense, and 1.6 to 10 for the
           recurrences (1.2 beside Gated DeltaNet by torch.compile, which makes Mamba slower);
           decoding above 1.7 for all; on a GPU all above 2
"""

from __future__ import annotations

import copy
import importlib.util
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from isoflop.experiments import pick
from isoflop.experiments.bench import Shape, read
from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import model
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.moe import Moe
from isoflop.sim.evaluate.context import DECODED, PROGRAMS, STEPS
from isoflop.sim.evaluate.probe import Timed, interleave

TYPES = {  # of transformers
    "dense": "llama",
    "moe": "mixtral",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "gated_deltanet": "qwen3_next",
}
CACHES = ("past_key_values", "cache_params")  # what models of transformers call theirs


def measure(
    families: tuple[str, ...] = tuple(TYPES),
    shapes: tuple[str, ...] = ("medium",),
    programs: tuple[str, ...] = tuple(PROGRAMS),
    repeats: int = 5,
    dtype: Literal["float32", "bfloat16"] = "float32",
    compiled: bool = False,
) -> list[dict]:
    """The table.

    Args:
        families: of dense, moe, mamba, mamba2 and gated_deltanet.
        shapes: as those of `isoflop bench`.
        programs: of train_step, prefill and decode.
        repeats: turns that are timed, after one that is not.
        dtype: of activations, for both; weights are float32.
        compiled: let the peer by torch.compile, which needs a C++ compiler and minutes, take turns
            too.
    """
    sizes = read(shapes, programs, repeats)
    for family in families:
        pick(family, TYPES, "family with a peer")
    for name in ("torch", "transformers", *["mambapy"] * ("mamba" in families)):
        if not importlib.util.find_spec(name):
            raise UserError(f"the peers need {name}; pip install 'isoflop[parity]'")
    rows = [
        row
        for name, shape in sizes.items()
        for family in families
        for program in programs
        for row in _rows(name, shape, family, program, repeats, dtype, compiled)
    ]
    tell("")
    return rows


def _rows(
    name: str, shape: Shape, family: str, program: str, repeats: int, dtype: str, compiled: bool
) -> list[dict[str, Any]]:
    """One row, and another for the compiled peer, from the same turns."""
    config = compared(family, shape)
    said = f"{family}, {name}, {program}"
    tell(f"compiling {said}")
    typed = config.model_copy(update={"dtype": dtype})
    ours = PROGRAMS[program](typed, shape.seq_len, shape.batch)
    fields = published(family, config)
    modes = (False, True) if compiled and program != "decode" else (False,)
    peers = {mode: Peer(fields, config, shape, dtype, program, mode) for mode in modes}
    timed: dict[Any, Timed] = {"ours": ours, **peers}
    turns = interleave(timed, repeats, lambda text: tell(f"{said}, {text}"))
    rows = []
    for mode, peer in peers.items():
        ratios = [b / a for a, b in zip(turns["ours"], turns[mode], strict=True)]
        row = {
            "family": family,
            "peer": peer.name,
            "compiled": mode,
            "shape": name,
            "program": program,
            "dtype": dtype,
            **shape._asdict(),
            "params": config.cost(1).params,
            "seconds": statistics.median(turns["ours"]),
            "peer_seconds": statistics.median(turns[mode]),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "compile_seconds": ours.compile_seconds,
            "device": jax.devices()[0].device_kind,
        }
        if program == "train_step":
            row |= {"memory_bytes": ours.memory_bytes, "peer_memory_bytes": peer.memory_bytes()}
        rows.append(row)
    return rows


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
    """A model of transformers that computes one program on one batch again and again."""

    fields: dict[str, Any]
    config: ModelConfig
    shape: Shape
    dtype: str
    program: str = "train_step"
    compiled: bool = False

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
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **fields)
        ).to(self.device)
        self.name = f"transformers {transformers.__version__} {type(model).__name__}"
        count, ours = model.num_parameters(), self.config.cost(1).params
        if count != ours:
            raise RuntimeError(f"{self.name} has {count} parameters and ours has {ours}")
        tokens = np.random.default_rng(0).integers(
            self.config.vocab_size, size=(self.shape.batch, self.shape.seq_len + 1)
        )
        self.tokens = torch.tensor(tokens, device=self.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        self.weights = list(model.parameters())
        self.model = torch.compile(model) if self.compiled else model
        self.cache: dict[str, Any] = {}
        if kind == "qwen3_next":  # it would ask an attention layer, and has none, for its length
            unused = dict.fromkeys(("full_attention", "linear_attention"))
            self.cache = {"attention_mask": unused, "position_ids": self.tokens[:1, :1]}
        if self.program == "decode":
            *_, self.cache = self.forward(self.tokens[:, :-DECODED], use_cache=True)

    def seconds(self) -> float:
        """Of one training step, prompt or token, the mean of as many in a call as ours has."""
        run, times = {
            "train_step": (self.train, STEPS),
            "prefill": (self.read, 1),
            "decode": (self.write, DECODED),
        }[self.program]
        cache = copy.deepcopy(self.cache)
        start = time.perf_counter()
        run(times)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / times
        self.cache = cache  # the same tokens again
        return seconds

    def train(self, times: int) -> None:
        torch = self.torch
        for _ in range(times):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                logits = self.model(self.tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), self.tokens[:, 1:].flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def read(self, times: int) -> None:
        for _ in range(times):
            self.forward(self.tokens[:, :-1], use_cache=True)

    def write(self, times: int) -> None:
        token = self.tokens[:, -1:]
        for _ in range(times):
            token, self.cache = self.forward(token, use_cache=True)

    def forward(self, tokens: Any, use_cache: bool) -> tuple[Any, Any]:
        """The likeliest next token (batch, 1) of each sequence, and the cache."""
        torch = self.torch
        mixed = torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")
        with torch.inference_mode(), mixed:
            out = self.model(tokens, use_cache=use_cache, logits_to_keep=1, **self.cache)
            made = {name: out[name] for name in CACHES if out.get(name) is not None}
            return out.logits.argmax(-1), self.cache | made

    def memory_bytes(self) -> int:
        """The most that torch allocates in one training step, weights and moments included."""
        torch = self.torch
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.train(1)
            return torch.cuda.max_memory_allocated()
        self.train(1)  # the first makes the moments
        moments = [s for state in self.optimizer.state.values() for s in state.values()]
        held = sum(tensor.nbytes for tensor in (*self.weights, *moments))
        cpu = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            self.train(1)
        events = profile.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        return held + int(max(np.cumsum([size for _, size in sorted(changes)])))
