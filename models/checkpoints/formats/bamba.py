"""Bamba: Mamba-2 with attention, half of whose channels turn, in some layers."""

from __future__ import annotations

from typing import Annotated, Any

from isoflop.models.checkpoints.fields import SILU, Auto, Positive, Size, Whole, only
from isoflop.models.checkpoints.formats.llama import llama_like
from isoflop.models.checkpoints.formats.mamba import ANY_STEP, DUAL_TENSORS, check_heads
from isoflop.models.checkpoints.formats.parts import (
    ATTENTION,
    GATED,
    PROJECTIONS,
    ROPE,
    ends,
    without,
)
from isoflop.models.checkpoints.formats.rope import PartlyRotary, plain_rope, published_partial_rope
from isoflop.models.checkpoints.translation import Fields, Part, Pattern
from isoflop.models.errors import UserError
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mamba2 import Mamba2
from isoflop.models.mixers.mlp import SwiGLU


class BambaFields(PartlyRotary):
    intermediate_size: Size
    num_key_value_heads: Size | None = 8
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    partial_rotary_factor: Annotated[Any, only(0.5)] = 0.5  # the reference reads no other here
    attn_rotary_emb: Size | None = None  # channels that turn, as the original file has them
    attn_layer_indices: list[Whole] | None = None
    mamba_n_heads: Size = 128
    mamba_d_head: Auto = None
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Size = 4
    mamba_expand: Size = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: Annotated[Any, ANY_STEP] = None  # the same

    without_effect = PartlyRotary.without_effect + (
        " mamba_chunk_size num_logits_to_keep use_mamba_kernels z_loss_coefficient"
    )


def plain_bamba(fields: Fields) -> Fields:
    """Sizes of the heads written out."""
    fields = plain_rope(fields)
    told, turned = fields.pop("attn_rotary_emb"), fields["rope_dims"] or fields["head_dim"]
    if told not in (None, turned):
        raise UserError(
            f"config.json: attn_rotary_emb={told} is not the {turned} channels of a head that "
            "rope_parameters turn; make them agree"
        )
    heads, inner = fields.pop("mamba_n_heads"), fields["mamba_expand"] * fields["hidden_size"]
    size = fields["mamba_d_head"] or inner // heads
    check_heads("mamba_n_heads", heads, "mamba_d_head", size, inner)
    return fields | {"mamba_d_head": size}


def published_bamba(fields: Fields) -> Fields:
    inner = fields["mamba_expand"] * fields["hidden_size"]
    fields = published_partial_rope(fields) | {"mamba_n_heads": inner // fields["mamba_d_head"]}
    return without("head_dim", after=dict)(fields)


def read_pattern(fields: Fields) -> Pattern:
    attention = set(fields["attn_layer_indices"] or ())
    depth = range(fields["num_hidden_layers"])
    return tuple(("attention" if i in attention else "mamba", "mlp") for i in depth)


def write_pattern(pattern: Pattern) -> Fields:
    attention = [i for i, layer in enumerate(pattern) if "attention" in layer]
    return {"num_hidden_layers": len(pattern), "attn_layer_indices": attention}


BAMBA = llama_like(
    "bamba",
    "BambaForCausalLM",
    BambaFields,
    {
        "attention": Part(
            Attention,
            ATTENTION | ROPE | {"attention_bias": "qkv_bias out_bias"},
            "self_attn.",
            PROJECTIONS,
            absent=lambda width: Attention(n_heads=1),
        ),
        "mamba": Part(
            Mamba2,
            {
                "mamba_d_state": "d_state",
                "mamba_d_head": "d_head",
                "mamba_expand": "expand",
                "mamba_d_conv": "d_conv",
                "mamba_n_groups": "n_groups",
                "mamba_proj_bias": "bias",
                "mamba_conv_bias": "conv_bias",
                "rms_norm_eps": "norm_eps",
            },
            "mamba.",
            DUAL_TENSORS,
            absent=lambda width: Mamba2(d_head=width),
        ),
        "mlp": Part(
            SwiGLU, {"intermediate_size": "d_ff", "mlp_bias": "bias"}, "feed_forward.", GATED
        ),
    },
    tensors=ends("model", "embed_tokens", "final_layernorm"),
    norms=("input_layernorm", "pre_ff_layernorm"),
    plain=plain_bamba,
    published=published_bamba,
    read_pattern=read_pattern,
    write_pattern=write_pattern,
)
