"""Jamba: Mamba with attention, and MLPs with experts, every so many layers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from isoflop.models.checkpoints.fields import SILU, Auto, Positive, Size, Whole, only
from isoflop.models.checkpoints.formats.llama import llama_like
from isoflop.models.checkpoints.formats.mamba import SELECTIVE_TENSORS
from isoflop.models.checkpoints.formats.parts import (
    ATTENTION,
    GATED,
    MLP,
    PROJECTIONS,
    ends,
    routed,
    scales,
    without,
)
from isoflop.models.checkpoints.formats.rope import Heads, heads
from isoflop.models.checkpoints.translation import Fields, Part, Pattern
from isoflop.models.errors import UserError
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mlp import SwiGLU


class JambaFields(Heads):
    intermediate_size: Size
    num_key_value_heads: Size | None = 8
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-6
    num_experts: Size = 16
    num_experts_per_tok: Size = 2
    expert_layer_period: Size = 2
    expert_layer_offset: Whole = 1
    attn_layer_period: Size = 8
    attn_layer_offset: Whole = 4
    mamba_d_state: Size = 16
    mamba_d_conv: Size = 4
    mamba_expand: Size = 2
    mamba_dt_rank: Auto = None
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_inner_layernorms: Annotated[Any, only(True)] = True
    sliding_window: Annotated[Any, only(None)] = None

    without_effect = Heads.without_effect + (
        " calc_logits_for_entire_prompt num_logits_to_keep use_associative_scan "
        "use_mamba_kernels use_mambapy"
    )

    @model_validator(mode="after")
    def _offsets_lie_within(self) -> JambaFields:
        for kind in ("attn", "expert"):
            offset, period = (getattr(self, f"{kind}_layer_{x}") for x in ("offset", "period"))
            if offset >= period:
                raise ValueError(
                    f"{kind}_layer_offset={offset} must be below {kind}_layer_period={period}"
                )
        return self


def read_jamba(fields: Fields) -> Pattern:
    """Attention and experts every so many layers, from an offset on."""

    def is_at(layer: int, kind: str) -> bool:
        return layer % fields[f"{kind}_layer_period"] == fields[f"{kind}_layer_offset"]

    return tuple(
        (
            "attention" if is_at(i, "attn") else "mamba",
            "moe" if is_at(i, "expert") and fields["num_experts"] > 1 else "mlp",
        )
        for i in range(fields["num_hidden_layers"])
    )


def write_jamba(pattern: Pattern) -> Fields:
    depth = len(pattern)
    found: Fields = {"num_hidden_layers": depth}
    for kind, there in (
        ("attn", ["attention" in layer for layer in pattern]),
        ("expert", ["moe" in layer for layer in pattern]),
    ):
        steps = [(p, o) for p in range(1, depth + 2) for o in range(p)]
        fits = [(p, o) for p, o in steps if there == [i % p == o for i in range(depth)]]
        if not fits:
            raise UserError(f"a jamba checkpoint has its {kind} layers at equal distances")
        found[f"{kind}_layer_period"], found[f"{kind}_layer_offset"] = fits[0]
    return found


JAMBA_MLP = Part(SwiGLU, MLP.fields, "feed_forward.", GATED)
JAMBA = llama_like(
    "jamba",
    "JambaForCausalLM",
    JambaFields,
    {
        "attention": Part(
            Attention,
            ATTENTION,
            "self_attn.",
            PROJECTIONS,
            {"rope_base": None},
            absent=lambda width: Attention(n_heads=1, rope_base=None),
        ),
        "mamba": Part(
            Mamba,
            {
                "mamba_d_state": "d_state",
                "mamba_d_conv": "d_conv",
                "mamba_expand": "expand",
                "mamba_dt_rank": "dt_rank",
                "mamba_conv_bias": "conv_bias",
                "mamba_proj_bias": "bias",
                "rms_norm_eps": "norm_eps",
            },
            "mamba.",
            {
                **SELECTIVE_TENSORS,
                **scales(dt_norm="dt_layernorm", B_norm="b_layernorm", C_norm="c_layernorm"),
            },
            {"select_norm": "learned"},
        ),
        "mlp": JAMBA_MLP,
        "moe": routed(
            "feed_forward.",
            {"num_experts": "n_experts", "intermediate_size": "d_expert"},
            router="router",
            renormalize=False,
        ),
    },
    tensors=ends("model", "embed_tokens", "final_layernorm"),
    norms=("input_layernorm", "pre_ff_layernorm"),
    plain=heads,
    published=without("head_dim", after=lambda fields: fields),
    auto_map={
        "configuration_jamba.JambaConfig",
        "modeling_jamba.JambaModel",
        "modeling_jamba.JambaForCausalLM",
        "model.JambaForSequenceClassification",
    },
    read_pattern=read_jamba,
    write_pattern=write_jamba,
)
