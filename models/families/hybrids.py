"""Published proportions of recurrent layers and attention, with an MLP or with experts.

`period` layers repeat; the last of them (or of a shallower model) is the odd one out, so that a
model of any depth has both kinds. Where a `_moe` family has fewer experts than its publication, it
is because small layers cannot be cut finer.
"""

from __future__ import annotations

from isoflop.models.base import MixerConfig
from isoflop.models.families.matching import (
    D_HEAD,
    Experts,
    heads,
    is_last,
    layered,
    with_experts,
    with_mlp,
)
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mla import Mla
from isoflop.models.mixers.moe import Moe
from isoflop.models.mixers.rglru import RgLru

GRIFFIN_WINDOW = 1024
SAMBA_WINDOW = 2048


def _hybrid(
    width: int,
    depth: int | None,
    vocab_size: int,
    period: int,
    recurrent: MixerConfig,
    attention: MixerConfig,
    experts: Experts | None = None,
    sparse: int = 1,
) -> ModelConfig:
    """Attention in the last layer of each period; experts, if any, in every `sparse`-th layer."""

    def layer(i: int, n: int) -> Block:
        mixer = attention if is_last(i, n, period) else recurrent
        if experts is not None and is_last(i, n, sparse):
            return with_experts(width, mixer, experts)
        return with_mlp(width, mixer)

    return layered(width, depth, vocab_size, layer)


def griffin(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Two RG-LRU blocks to one of local multi-query attention, as a third layer or a second and
    last, and SwiGLU (De et al. 2024, 2402.19427).
    """
    local = Attention(n_heads=heads(width), n_kv_heads=1, window=GRIFFIN_WINDOW)
    return _hybrid(width, depth, vocab_size, 3, RgLru(n_heads=heads(width)), local)


def hybrid(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Mamba with attention in every fourth layer and in the last of a shallower model (Jamba:
    Lieber et al. 2024, 2403.19887).
    """
    return _hybrid(width, depth, vocab_size, 4, Mamba(), Attention(n_heads=heads(width)))


def jamba(
    width: int, depth: int | None = None, vocab_size: int = 256, experts: Experts | None = None
) -> ModelConfig:
    """Jamba-like: seven Mamba layers to one of attention without positions (Lieber et al. 2024,
    2403.19887), which here is the last of the eight, not the fifth. Left out: the norms on Δ, B, C.
    """
    attention = Attention(n_heads=heads(width), rope_base=None)
    return _hybrid(width, depth, vocab_size, 8, Mamba(), attention, experts, sparse=2)


def jamba_moe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """`jamba` with 16 experts, 2 active, in every second layer, as published."""
    return jamba(width, depth, vocab_size, _sixteen)


def samba(
    width: int, depth: int | None = None, vocab_size: int = 256, experts: Experts | None = None
) -> ModelConfig:
    """Samba-like: Mamba and sliding-window attention in turns (Ren et al. 2024, 2406.07522)."""
    local = Attention(n_heads=heads(width), window=SAMBA_WINDOW)
    return _hybrid(width, depth, vocab_size, 2, Mamba(), local, experts)


def samba_moe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """`samba` with 16 experts, 2 active, in every layer; not in the publication."""
    return samba(width, depth, vocab_size, _sixteen)


def qwen3_next(
    width: int, depth: int | None = None, vocab_size: int = 256, experts: Experts | None = None
) -> ModelConfig:
    """Qwen3-Next-like: three Gated DeltaNet layers to one of attention with QK-norm (Qwen team
    2025, the Qwen3-Next-80B-A3B model card). Left out: the gate on attention's output, rotation of
    a quarter of the channels alone, twice as many value heads.
    """
    attention = Attention(n_heads=heads(width), qk_norm=True)
    return _hybrid(width, depth, vocab_size, 4, DeltaNet(n_heads=heads(width)), attention, experts)


def qwen3_next_moe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """`qwen3_next` with 64 experts, 4 active, and a shared one; published: 512, 10 and one with a
    gate of its own.
    """
    return qwen3_next(width, depth, vocab_size, _fine)


def kimi_linear(
    width: int, depth: int | None = None, vocab_size: int = 256, experts: Experts | None = None
) -> ModelConfig:
    """Kimi-Linear-like: three Kimi delta attention layers to one of latent attention without
    positions (Kimi team 2025, 2510.26692), whose latent is a quarter of the width.
    """
    delta = DeltaNet(n_heads=heads(width), decay="channel")
    latent = Mla(
        n_heads=heads(width), kv_rank=max(1, width // 4), d_nope=D_HEAD, d_rope=D_HEAD // 2,
        d_value=D_HEAD, rope_base=None,
    )  # fmt: skip
    return _hybrid(width, depth, vocab_size, 4, delta, latent, experts)


def kimi_linear_moe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """`kimi_linear` with 64 experts, 4 active, and a shared one, sigmoid gates, balanced without a
    loss; published: 256, 8 and one.
    """
    return kimi_linear(width, depth, vocab_size, _balanced_by_bias)


def _sixteen(d_expert: int) -> Moe:
    return Moe(n_experts=16, top_k=2, d_expert=d_expert)


def _fine(d_expert: int) -> Moe:
    return Moe(n_experts=64, top_k=4, d_expert=d_expert, n_shared=1)


def _balanced_by_bias(d_expert: int) -> Moe:
    fine = _fine(d_expert)
    return fine.model_copy(update={"gate": "sigmoid", "steered": True, "balance_weight": 0.0})
