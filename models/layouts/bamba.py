"""Bamba: Mamba-2 with attention, half of whose channels turn, in some layers."""

from __future__ import annotations

from models.attention import Attention
from models.layouts.llama import llama_like
from models.layouts.mamba import ANY_STEP, DUAL_TENSORS, check_heads
from models.layouts.parts import (
    ATTENTION,
    GATED,
    PROJECTIONS,
    ROPE,
    ends,
    plain_rope,
    published_rope,
    without,
)
from models.mlp import SwiGLU
from models.ssd import Mamba2
from models.translation import ANY, Fields, Part, Pattern


def plain_bamba(fields: Fields) -> Fields:
    """Sizes of the heads written out; half of the channels turn unless `rope_parameters` differ."""
    fields = plain_rope(fields | {"partial_rotary_factor": 0.5})
    heads, inner = fields.pop("mamba_n_heads"), fields["mamba_expand"] * fields["hidden_size"]
    size = inner // heads if fields["mamba_d_head"] == "auto" else fields["mamba_d_head"]
    check_heads("mamba_n_heads", heads, "mamba_d_head", size, inner)
    limit = list(fields["time_step_limit"])
    return fields | {"mamba_d_head": size, "time_step_limit": limit}


def published_bamba(fields: Fields) -> Fields:
    inner = fields["mamba_expand"] * fields["hidden_size"]
    fields = published_rope(fields) | {"mamba_n_heads": inner // fields["mamba_d_head"]}
    rope = {"partial_rotary_factor": 1.0} | fields["rope_parameters"]
    return without("head_dim", after=dict)(fields) | {"rope_parameters": rope}


def read_pattern(fields: Fields) -> Pattern:
    attention = fields["attn_layer_indices"] or ()
    depth = range(fields["num_hidden_layers"])
    return tuple(("attention" if i in attention else "mamba", "mlp") for i in depth)


def write_pattern(pattern: Pattern) -> Fields:
    attention = [i for i, layer in enumerate(pattern) if "attention" in layer]
    return {"num_hidden_layers": len(pattern), "attn_layer_indices": attention}


BAMBA = llama_like(
    "bamba",
    "BambaForCausalLM",
    {
        "attention": Part(
            Attention,
            ATTENTION | ROPE | {"attention_bias": "qkv_bias out_bias"},
            "self_attn.",
            PROJECTIONS,
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
        ),
        "mlp": Part(
            SwiGLU, {"intermediate_size": "d_ff", "mlp_bias": "bias"}, "feed_forward.", GATED
        ),
    },
    defaults={
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "attention_bias": False,
        "mlp_bias": False,
        "attn_layer_indices": None,
        "mamba_n_heads": 128,
        "mamba_d_head": "auto",
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "time_step_limit": ANY_STEP,
    },
    neutral={"hidden_act": "silu", "time_step_limit": ANY_STEP}
    | dict.fromkeys(("mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient"), ANY),
    tensors=ends("model", "embed_tokens", "final_layernorm"),
    norms=("input_layernorm", "pre_ff_layernorm"),
    plain=plain_bamba,
    published=published_bamba,
    pattern_fields=("num_hidden_layers", "attn_layer_indices"),
    read_pattern=read_pattern,
    write_pattern=write_pattern,
)
