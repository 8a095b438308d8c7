"""Routed experts: each token is served by its top_k of n_experts SwiGLU experts.

    y = Σ_{e ∈ top_k(router(x))} gate_e(x) · expert_e(x)   [+ shared(x)]

Shazeer et al. 2017 (1701.06538); balance loss: Fedus et al. 2021 (2101.03961, eq. 4), 1 at uniform
routing; router z-loss: Zoph et al. 2022 (2202.08906, eq. 5); shared and fine-grained experts: Dai
et al. 2024 (2401.06066). Dropless as in MegaBlocks (Gale et al. 2022, 2211.15841): tokens are laid
out expert by expert, each expert's rows padded to whole blocks. `capacity_factor` instead gives
each expert one block of fixed size and drops what exceeds it, which is reported.

`steered` balances without a loss (Wang et al. 2024, 2408.15664, algorithm 1): a bias for each
expert enters the choice, not the gates, and moves against the sign of its load's error. The error
is the bias' gradient, by a term of the penalty whose value is 0; the optimiser takes its sign.

`route="expert"` lets each expert choose its tokens·top_k/n_experts tokens, of all tokens in the
call (Zhou et al. 2022, 2202.09368). It looks ahead: which tokens an expert takes depends on
later ones, so such a model is not causal and its loss flatters it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from isoflop.models.base import Aux, Channel, ChannelConfig, Cost, Init, LoadBalancingBias, Matrix
from isoflop.models.errors import UserError
from isoflop.models.kernels import experts
from isoflop.models.kernels.xla_cpu import broadcast_to_batch
from isoflop.models.layers import SIGMOID, SILU, SOFTMAX, SOFTPLUS, Linear
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.packing import Lengths, is_real

Real = Bool[Array, " bt"] | None  # whether a token is one, or padding; None: all are


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
    # rows per block of the dropless layout, at most an even load; None: 1/8 of it, from 32 to 128,
    # and 1/16 of more than 2048
    block: PositiveInt | None = None
    steered: bool = False  # balanced by a bias on the choice; set balance_weight to 0 beside it
    route: Literal["token", "expert"] = "token"  # who chooses; experts see the future

    @model_validator(mode="after")
    def _top_k_fits(self) -> Moe:
        if self.top_k > self.n_experts:
            raise UserError(
                f"top_k={self.top_k} must be at most n_experts={self.n_experts}; lower top_k"
            )
        if (self.capacity_factor or 0) > self.n_experts:
            raise UserError(
                f"capacity_factor={self.capacity_factor:g} must be at most n_experts="
                f"{self.n_experts}, from where each expert has room for every token; lower it, or "
                f"leave it out (dropless)"
            )
        if self.n_shared * self.d_expert > self.LARGEST:
            raise UserError(
                f"n_shared={self.n_shared} · d_expert={self.d_expert} must be at most "
                f"{self.LARGEST}, as every size; lower one"
            )
        if self.shared_gate and not self.n_shared:
            raise UserError("shared_gate gates shared experts and n_shared=0; set n_shared")
        if self.route == "expert" and (self.steered or self.capacity_factor is not None):
            raise UserError(
                "experts that choose tokens (route='expert') are balanced and sized by top_k; "
                "leave out steered and capacity_factor"
            )
        return self

    @property
    def causal(self) -> bool:
        return self.route == "token"

    @property
    def micro_batch_invariant(self) -> bool:
        """The balance loss is a product of two means over the batch; room is shared in a call."""
        return self.causal and self.capacity_factor is None and self.balance_weight == 0

    def build(self, d_model: int, *, init: Init) -> RoutedExperts:
        return RoutedExperts(self, d_model, init=init)

    def layout(self, tokens: int) -> tuple[int, int]:
        """(blocks, rows per block) that hold `tokens` tokens, each sent to top_k experts."""
        rows = tokens * self.top_k
        if self.route == "expert":
            return self.n_experts, math.ceil(rows / self.n_experts)
        if self.capacity_factor is not None:
            return self.n_experts, math.ceil(self.capacity_factor * rows / self.n_experts)
        even = max(1, rows // self.n_experts)
        block = min(self.block or max(32, min(128, even // 8), even // 16), even)
        return (rows + min(self.n_experts, rows) * (block - 1)) // block, block

    def cost(self, d_model: int, tokens: int) -> Cost:
        expert = 3 * d_model * self.d_expert
        router, bias = d_model * self.n_experts, self.n_experts * self.steered
        shared = self.n_shared * expert + self.shared_gate * d_model
        blocks, rows = self.layout(tokens)
        return Cost(
            matmul_flops=2 * tokens * (router + shared) + 2 * blocks * rows * expert,
            elementwise_flops=self._elementwise(d_model, tokens),
            params=router + bias + shared + self.n_experts * expert,
            active_params=router + bias + shared + self.top_k * expert,
        )

    def _elementwise(self, d_model: int, tokens: int) -> int:
        """Scores and gates of the tokens, hidden layers of the blocks, gates on what comes back and
        its sums, shared experts and their sum.
        """
        blocks, rows = self.layout(tokens)
        soft, chosen = self.gate == "softmax", tokens * self.top_k
        shared_out = self.renormalize and self.causal
        scored = soft or self.steered or not shared_out  # else by logarithms alone
        flops = tokens * self.n_experts * (scored * (SOFTMAX if soft else SIGMOID) + self.steered)
        if shared_out:
            flops += chosen * (2 if soft else SOFTPLUS + SOFTMAX)
        flops += blocks * rows * self.d_expert * (SILU + 1)
        flops += 2 * d_model * (chosen if self.causal else blocks * rows)
        if self.n_shared:
            shared = SwiGLU(d_ff=self.n_shared * self.d_expert).cost(d_model, tokens)
            flops += shared.elementwise_flops + tokens * (2 * d_model + self.shared_gate * SIGMOID)
        return flops

    def touched_params(self, d_model: int, tokens: int) -> float:
        """Tokens touch E·(1 − (1 − k/E)^tokens) of E experts; experts that choose are all busy."""
        idle = (1 - self.top_k / self.n_experts) ** tokens if self.causal else 0.0
        experts = self.n_experts * 3 * d_model * self.d_expert
        return self.cost(d_model, tokens).params - idle * experts


class RoutedExperts(Channel):
    def __init__(self, config: Moe, d_model: int, *, init: Init):
        self.config = config
        e, d, f = config.n_experts, d_model, config.d_expert
        self.router = Linear(d, e, axes="de", init=init)
        self.bias = LoadBalancingBias(init.full((e,), 0.0)) if config.steered else None
        self.gate = Matrix(init.normal((e, d, f), d**-0.5), axes="edi")
        self.up = Matrix(init.normal((e, d, f), d**-0.5), axes="edi")
        self.down = Matrix(init.normal((e, f, d), f**-0.5), axes="eid")
        shared = SwiGLU(d_ff=max(1, config.n_shared) * f)
        self.shared = shared.build(d, init=init) if config.n_shared else None
        self.shared_gate = Linear(d, 1, axes="dr", init=init) if config.shared_gate else None

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        return self._served(x, None)

    def prefill(self, x: Float[Array, "b t d"], lengths: Lengths = None) -> Float[Array, "b t d"]:
        """Padding is sent to no expert, so that it takes no token's room."""
        real = None if lengths is None else is_real(lengths, x.shape[1]).reshape(-1)
        return self._served(x, real)[0]

    def _served(self, x: Float[Array, "b t d"], real: Real) -> tuple[Float[Array, "b t d"], Aux]:
        flat = rearrange(x, "b t d -> (b t) d")
        logits = flat.astype(jnp.float32) @ self.router.kernel[...]
        serve = self._tokens_choose if self.config.route == "token" else self._experts_choose
        y, load, dropped = serve(flat, logits, real)
        y = y.reshape(x.shape)
        if self.shared is not None:
            gate = 1.0 if self.shared_gate is None else jax.nn.sigmoid(self.shared_gate(x))
            y = y + gate * self.shared(x)[0]
        return y, self._aux(logits, load, dropped)

    def _scores(self, logits: Float[Array, "t e"]) -> Float[Array, "t e"]:
        soft = self.config.gate == "softmax"
        return jax.nn.softmax(logits) if soft else jax.nn.sigmoid(logits)

    def _tokens_choose(self, flat: Float[Array, "t d"], logits: Float[Array, "t e"], real: Real):
        """Output, share of the choices that each expert got, share of the choices dropped."""
        config = self.config
        gates, chosen = self._choose(logits)
        blocks, rows = config.layout(flat.shape[0])
        block_expert, row, kept = self._assign(chosen, blocks, rows, real)
        kernels = self._kernels(flat.dtype)
        y = experts.by_token(flat, kernels, gates, chosen, row, kept, block_expert, rows)
        load = jax.nn.one_hot(chosen, config.n_experts).sum((0, 1)) / chosen.size
        return y, load, jnp.mean(~kept, dtype=jnp.float32)

    def _experts_choose(self, flat: Float[Array, "t d"], logits: Float[Array, "t e"], real: Real):
        """Output, share of the rows that each expert has, share of the tokens nobody took."""
        n_experts, rows = self.config.layout(flat.shape[0])
        scores = self._scores(logits)
        if real is not None:
            scores = jnp.where(real[:, None], scores, -1.0)  # after all tokens
        gates, token = jax.lax.top_k(scores.T, rows)
        y = experts.by_expert(flat, self._kernels(flat.dtype), gates, token)
        taken = jnp.zeros(flat.shape[0], jnp.float32).at[token.reshape(-1)].set(1.0)
        return y, jnp.full(n_experts, 1 / n_experts), 1 - taken.mean()

    def _choose(self, logits: Float[Array, "t e"]):
        """Gates and indices of the top_k experts of each token; a bias moves the choice alone.

        Sigmoids are ordered and renormalised by their logarithms: far from 0 they would be equal,
        and below −87 they are 0, and 0 / 0 no share.
        """
        config, soft = self.config, self.config.gate == "softmax"
        scores = self._scores(logits)
        ranks = scores if soft else logits
        if self.bias is not None:
            ranks = scores + broadcast_to_batch(jax.lax.stop_gradient(self.bias[...]), scores)
        _, chosen = jax.lax.top_k(ranks, config.top_k)
        if config.renormalize and not soft:
            logs = jax.nn.log_sigmoid(jnp.take_along_axis(logits, chosen, axis=-1))
            return jax.nn.softmax(logs), chosen
        gates = jnp.take_along_axis(scores, chosen, axis=-1)
        return gates / gates.sum(-1, keepdims=True) if config.renormalize else gates, chosen

    def _assign(self, chosen: Int[Array, "t k"], blocks: int, rows: int, real: Real):
        """Expert of each block, row of each (token, choice), and which were kept."""
        config = self.config
        expert = chosen.reshape(-1)
        kept = jnp.ones_like(expert, bool)
        if real is not None:
            kept = jnp.repeat(real, config.top_k)
        one_hot = jax.nn.one_hot(expert, config.n_experts, dtype=jnp.int32) * kept[:, None]
        rank = jnp.take_along_axis(jnp.cumsum(one_hot, axis=0), expert[:, None], 1)[:, 0] - 1
        if config.capacity_factor is not None:
            kept = kept & (rank < rows)
            block_expert, row = jnp.arange(blocks), expert * rows + rank
        else:
            needed = -(-one_hot.sum(0) // rows)  # blocks of each expert
            end = jnp.cumsum(needed)
            row = (end - needed)[expert] * rows + rank
            block_expert = jnp.searchsorted(end, jnp.arange(blocks), side="right")
            block_expert = jnp.minimum(block_expert, config.n_experts - 1)
        return block_expert, jnp.where(kept, row, blocks * rows), kept  # out of range: dropped

    def _kernels(self, dtype: Any) -> experts.Kernels:
        gate, up, down = (w.astype(dtype) for w in (self.gate, self.up, self.down))
        return gate, up, down

    def _aux(self, logits: Float[Array, "t e"], load: Float[Array, " e"], dropped: Array) -> Aux:
        config = self.config
        importance = jax.nn.softmax(logits).mean(0)
        balance = config.n_experts * jnp.sum(load * importance)
        router_z = jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)
        penalty = config.balance_weight * balance + config.z_weight * router_z
        if self.bias is not None:  # adds 0, and the load's error as the bias' gradient
            bias = self.bias[...]
            error = jax.lax.stop_gradient(load - 1 / config.n_experts)
            penalty = penalty + jnp.sum(error * (bias - jax.lax.stop_gradient(bias)))
        return {"balance": balance, "router_z": router_z, "dropped": dropped, "penalty": penalty}
