"""Architectures from one dial: a width, and the depth that goes with it.

All families share width, depth, vocabulary, norms, head and initialisation; only the mixer (or the
MLP, for experts) differs, sized by the rule of models/families/matching.py. So Mamba here stands
beside an MLP as attention does, unlike the published stack of Mamba blocks alone. A family named
after a published model takes its mixers, their proportion and their kind of MLP; what it leaves out
of the publication stands in its docstring. Those of several mixers are in hybrids.py.
"""

from __future__ import annotations

from collections.abc import Callable

from isoflop.models.families import hybrids
from isoflop.models.families.matching import D_HEAD, heads, uniform, with_experts, with_mlp
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mamba2 import Mamba2
from isoflop.models.mixers.mlp import Gelu
from isoflop.models.mixers.moe import Moe
from isoflop.models.mixers.rnn import Lstm, MinGru
from isoflop.models.mixers.rwkv import Rwkv7


def dense(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Llama-like: rotary attention, SwiGLU, RMSNorm (Touvron et al. 2023, 2302.13971)."""
    block = with_mlp(width, Attention(n_heads=heads(width)))
    return uniform(width, depth, vocab_size, block)


def gpt2(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """GPT-2-like: a GELU MLP of 4·width with biases (Radford et al. 2019). Left out: LayerNorm,
    learned positions (rotary here), biases of attention, the tied head.
    """
    block = Block(mixer=Attention(n_heads=heads(width)), channel=Gelu(d_ff=4 * width))
    return uniform(width, depth, vocab_size, block)


def moe(
    width: int,
    depth: int | None = None,
    vocab_size: int = 256,
    n_experts: int = 8,
    top_k: int = 2,
    granularity: int = 1,
) -> ModelConfig:
    """`dense` with its SwiGLU split into routed experts (Jiang et al. 2024, 2401.04088).

    `granularity` cuts every expert into as many and chooses as many more (Krajewski et al. 2024,
    2402.07871): finer experts of the same parameters, total and active.
    """

    def experts(d_expert: int) -> Moe:
        return Moe(n_experts=granularity * n_experts, top_k=granularity * top_k, d_expert=d_expert)

    block = with_experts(width, Attention(n_heads=heads(width)), experts)
    return uniform(width, depth, vocab_size, block)


def olmoe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """OLMoE-like: 64 fine-grained experts, 8 of them active with the gates the router gave them,
    and QK-norm (Muennighoff et al. 2024, 2409.02060). Its QK-norm is over all heads at once.
    """

    def experts(d_expert: int) -> Moe:
        return Moe(n_experts=64, top_k=8, d_expert=d_expert, renormalize=False)

    block = with_experts(width, Attention(n_heads=heads(width), qk_norm=True), experts)
    return uniform(width, depth, vocab_size, block)


def deepseek_moe(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """DeepSeek-like: 63 fine-grained experts, 7 active, and a shared one (Dai et al. 2024,
    2401.06066, §4.1), with sigmoid gates and balance without a loss as in V3 (2412.19437, §2.1).
    Left out: latent attention, the first layer's dense MLP, multi-token prediction.
    """

    def experts(d_expert: int) -> Moe:
        return Moe(
            n_experts=63,
            top_k=7,
            d_expert=d_expert,
            n_shared=1,
            gate="sigmoid",
            steered=True,
            balance_weight=0.0,
            z_weight=0.0,
        )

    block = with_experts(width, Attention(n_heads=heads(width)), experts)
    return uniform(width, depth, vocab_size, block)


def mamba(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Mamba-1 and SwiGLU (Gu & Dao 2023, 2312.00752)."""
    block = with_mlp(width, Mamba())
    return uniform(width, depth, vocab_size, block)


def linear(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Linear attention (Katharopoulos et al. 2020, 2006.16236) with a data-dependent scalar decay
    per head, and SwiGLU.
    """
    block = with_mlp(width, LinearAttention(n_heads=heads(width), decay="scalar"))
    return uniform(width, depth, vocab_size, block)


def retnet(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """RetNet's retention, a rotation and a fixed decay for each head, and SwiGLU (Sun et al. 2023,
    2307.08621).
    """
    mixer = LinearAttention(n_heads=heads(width), decay="fixed", rope_base=10_000.0)
    block = with_mlp(width, mixer)
    return uniform(width, depth, vocab_size, block)


def gla(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Gated linear attention, a gate per channel, and SwiGLU (Yang et al. 2023, 2312.06635)."""
    block = with_mlp(width, LinearAttention(n_heads=heads(width), decay="channel"))
    return uniform(width, depth, vocab_size, block)


def mamba2(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Mamba-2 and SwiGLU (Dao & Gu 2024, 2405.21060); small heads, as many states as 2 of them."""
    block = with_mlp(width, Mamba2(d_state=2 * D_HEAD, d_head=D_HEAD))
    return uniform(width, depth, vocab_size, block)


def deltanet(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """DeltaNet and SwiGLU (Yang et al. 2024, 2406.06484)."""
    block = with_mlp(width, DeltaNet(n_heads=heads(width), decay="none"))
    return uniform(width, depth, vocab_size, block)


def gated_deltanet(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Gated DeltaNet and SwiGLU (Yang et al. 2024, 2412.06464)."""
    block = with_mlp(width, DeltaNet(n_heads=heads(width), decay="scalar"))
    return uniform(width, depth, vocab_size, block)


def gated_deltanet_negative(
    width: int, depth: int | None = None, vocab_size: int = 256
) -> ModelConfig:
    """`gated_deltanet` with eigenvalues in [−1, 1] (Grazzi et al. 2024, 2411.12537)."""
    mixer = DeltaNet(n_heads=heads(width), decay="scalar", negative_eigenvalues=True)
    block = with_mlp(width, mixer)
    return uniform(width, depth, vocab_size, block)


def kda(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """Kimi delta attention, a gate per channel, and SwiGLU (Kimi team 2025, 2510.26692)."""
    block = with_mlp(width, DeltaNet(n_heads=heads(width), decay="channel"))
    return uniform(width, depth, vocab_size, block)


def rwkv7(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """RWKV-7's time mixing with the published ranks (Peng et al. 2025, 2503.14456), and SwiGLU in
    place of its channel mixing, whose state would make it a mixer (`RwkvChannel`).
    """
    block = with_mlp(width, Rwkv7(n_heads=heads(width)))
    return uniform(width, depth, vocab_size, block)


def lstm(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """LSTM and SwiGLU (Hochreiter & Schmidhuber 1997): where the scaling story began."""
    block = with_mlp(width, Lstm())
    return uniform(width, depth, vocab_size, block)


def mingru(width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """minGRU and SwiGLU (Feng et al. 2024, 2410.01201)."""
    block = with_mlp(width, MinGru())
    return uniform(width, depth, vocab_size, block)


FAMILIES: dict[str, Callable[..., ModelConfig]] = {
    "dense": dense,
    "moe": moe,
    "mamba": mamba,
    "linear": linear,
    "gla": gla,
    "mamba2": mamba2,
    "deltanet": deltanet,
    "gated_deltanet": gated_deltanet,
    "gated_deltanet_negative": gated_deltanet_negative,
    "kda": kda,
    "rwkv7": rwkv7,
    "lstm": lstm,
    "mingru": mingru,
    "griffin": hybrids.griffin,
    "hybrid": hybrids.hybrid,
    "gpt2": gpt2,
    "olmoe": olmoe,
    "deepseek_moe": deepseek_moe,
    "retnet": retnet,
    "jamba": hybrids.jamba,
    "jamba_moe": hybrids.jamba_moe,
    "samba": hybrids.samba,
    "samba_moe": hybrids.samba_moe,
    "qwen3_next": hybrids.qwen3_next,
    "qwen3_next_moe": hybrids.qwen3_next_moe,
    "kimi_linear": hybrids.kimi_linear,
    "kimi_linear_moe": hybrids.kimi_linear_moe,
}
