"""Routed experts: each token is served by its top_k of n_experts SwiGLU experts.

    y = Σ_{e ∈ top_k(router(x))} gate_e(x) · expert_e(x)   [+ shared(x)]

Shazeer et al. 2017 (1701.06538); balance loss: Fedus et al. 2021 (2101.03961, eq. 4), 1 at uniform
routing; router z-loss: Zoph et al. 2022 (2202.08906, eq. 5); shared experts: Dai et al. 2024
(2401.06066). Dropless as in MegaBlocks (Gale et al. 2022, 2211.15841): tokens are laid out expert
by expert, each expert's rows padded to whole blocks. `capacity_factor` instead gives each expert
one block of fixed size and drops what exceeds it, which is reported.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from models.base import Aux, Channel, ChannelConfig, Cost, Init, Matrix
from models.errors import UserError
from models.layers import Linear
from models.mlp import SwiGLU


class Moe(ChannelConfig):
    kind: Literal["moe"] = "moe"
    n_experts: PositiveInt
    top_k: PositiveInt
    d_expert: PositiveInt
    n_shared: NonNegativeInt = 0  # experts that serve every token, each of d_expert
    shared_gate: bool = False  # what the shared experts give is gated by σ(x w), as in Qwen2-MoE
    capacity_factor: PositiveFloat | None = None  # None: dropless
    gate: Literal["softmax", "sigmoid"] = "softmax"
    renormalize: bool = True  # the chosen gates sum to 1 (Mixtral); else as the router gave them
    balance_weight: NonNegativeFloat = 0.01
    z_weight: NonNegativeFloat = 0.001
    block: PositiveInt = 32  # rows per block of the dropless layout, at most an even load

    @model_validator(mode="after")
    def _top_k_fits(self) -> Moe:
        if self.top_k > self.n_experts:
            raise UserError(
                f"top_k={self.top_k} must be at most n_experts={self.n_experts}; lower top_k"
            )
        if self.shared_gate and not self.n_shared:
            raise UserError("shared_gate gates shared experts and n_shared=0; set n_shared")
        return self

    def build(self, d_model: int, *, init: Init) -> RoutedExperts:
        return RoutedExperts(self, d_model, init=init)

    def layout(self, tokens: int) -> tuple[int, int]:
        """(blocks, rows per block) that hold `tokens` tokens, each sent to top_k experts."""
        rows = tokens * self.top_k
        if self.capacity_factor is not None:
            return self.n_experts, math.ceil(self.capacity_factor * rows / self.n_experts)
        block = min(self.block, max(1, rows // self.n_experts))
        return (rows + min(self.n_experts, rows) * (block - 1)) // block, block

    def cost(self, d_model: int, tokens: int) -> Cost:
        expert = 3 * d_model * self.d_expert
        router = d_model * self.n_experts
        shared = self.n_shared * expert + self.shared_gate * d_model
        blocks, rows = self.layout(tokens)
        return Cost(
            matmul_flops=2 * tokens * (router + shared) + 2 * blocks * rows * expert,
            params=router + shared + self.n_experts * expert,
            active_params=router + shared + self.top_k * expert,
        )


class RoutedExperts(Channel):
    def __init__(self, config: Moe, d_model: int, *, init: Init):
        self.config = config
        e, d, f = config.n_experts, d_model, config.d_expert
        self.router = Linear(d, e, init=init)
        self.gate = Matrix(init.normal((e, d, f), d**-0.5))
        self.up = Matrix(init.normal((e, d, f), d**-0.5))
        self.down = Matrix(init.normal((e, f, d), f**-0.5))
        shared = SwiGLU(d_ff=max(1, config.n_shared) * f)
        self.shared = shared.build(d, init=init) if config.n_shared else None
        self.shared_gate = Linear(d, 1, init=init) if config.shared_gate else None

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        config = self.config
        flat = rearrange(x, "b t d -> (b t) d")
        logits = flat.astype(jnp.float32) @ self.router.kernel[...]
        gates, chosen = self._choose(logits)
        blocks, rows = config.layout(flat.shape[0])
        block_expert, row, kept = self._assign(chosen, blocks, rows)

        token = jnp.arange(chosen.size) // config.top_k
        buffer = (
            jnp.zeros((blocks * rows, x.shape[-1]), x.dtype)
            .at[row]
            .set(flat[token], mode="drop", unique_indices=True)
        )
        served = self._experts(rearrange(buffer, "(n r) d -> n r d", r=rows), block_expert)
        back = served.at[row].get(mode="fill", fill_value=0)
        weighted = back * gates.reshape(-1, 1).astype(x.dtype)
        y = rearrange(weighted, "(t k) d -> t k d", k=config.top_k).sum(1).reshape(x.shape)
        if self.shared is not None:
            served = self.shared(x)[0]
            gate = 1.0 if self.shared_gate is None else jax.nn.sigmoid(self.shared_gate(x))
            y = y + gate * served
        return y, self._aux(logits, chosen, kept)

    def _choose(self, logits: Float[Array, "t e"]):
        """Gates and indices of the top_k experts of each token."""
        soft = self.config.gate == "softmax"
        scores = jax.nn.softmax(logits) if soft else jax.nn.sigmoid(logits)
        gates, chosen = jax.lax.top_k(scores, self.config.top_k)
        if self.config.renormalize:
            gates = gates / gates.sum(-1, keepdims=True)
        return gates, chosen

    def _assign(self, chosen: Int[Array, "t k"], blocks: int, rows: int):
        """Expert of each block, row of each (token, choice), and which were kept."""
        config = self.config
        expert = chosen.reshape(-1)
        one_hot = jax.nn.one_hot(expert, config.n_experts, dtype=jnp.int32)
        rank = jnp.take_along_axis(jnp.cumsum(one_hot, axis=0), expert[:, None], 1)[:, 0] - 1
        if config.capacity_factor is not None:
            kept = rank < rows
            row = jnp.where(kept, expert * rows + rank, blocks * rows)  # out of range: dropped
            return jnp.arange(blocks), row, kept
        needed = -(-one_hot.sum(0) // rows)  # blocks of each expert
        end = jnp.cumsum(needed)
        row = (end - needed)[expert] * rows + rank
        block_expert = jnp.searchsorted(end, jnp.arange(blocks), side="right")
        return jnp.minimum(block_expert, config.n_experts - 1), row, jnp.ones_like(expert, bool)

    def _experts(self, x: Float[Array, "n r d"], expert: Int[Array, " n"]) -> Float[Array, "z d"]:
        gate, up, down = (w[...].astype(x.dtype)[expert] for w in (self.gate, self.up, self.down))
        hidden = jax.nn.silu(jnp.einsum("nrd,ndf->nrf", x, gate))
        hidden = hidden * jnp.einsum("nrd,ndf->nrf", x, up)
        return rearrange(jnp.einsum("nrf,nfd->nrd", hidden, down), "n r d -> (n r) d")

    def _aux(self, logits, chosen, kept) -> Aux:
        config = self.config
        load = jax.nn.one_hot(chosen, config.n_experts).sum((0, 1)) / chosen.size
        importance = jax.nn.softmax(logits).mean(0)
        balance = config.n_experts * jnp.sum(load * importance)
        router_z = jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)
        return {
            "balance": balance,
            "router_z": router_z,
            "dropped": jnp.mean(~kept, dtype=jnp.float32),
            "penalty": config.balance_weight * balance + config.z_weight * router_z,
        }
