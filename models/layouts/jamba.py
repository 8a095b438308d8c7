"""Jamba: Mamba with attention, and MLPs with experts, every so many layers."""

from __future__ import annotations

from models.attention import Attention
from models.errors import UserError
from models.layouts.llama import llama_like
from models.layouts.mamba import SELECTIVE_TENSORS
from models.layouts.parts import (
    ATTENTION,
    GATED,
    MLP,
    PROJECTIONS,
    ends,
    heads,
    routed,
    scales,
    without,
)
from models.mamba import Mamba
from models.mlp import SwiGLU
from models.translation import ANY, Fields, Part, Pattern


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


def plain_jamba(fields: Fields) -> Fields:
    rank = fields["mamba_dt_rank"]
    return heads(fields) | {"mamba_dt_rank": None if rank == "auto" else rank}


JAMBA_MLP = Part(SwiGLU, MLP.fields, "feed_forward.", GATED)
JAMBA = llama_like(
    "jamba",
    "JambaForCausalLM",
    {
        "attention": Part(Attention, ATTENTION, "self_attn.", PROJECTIONS, {"rope_base": None}),
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
    defaults={
        "num_key_value_heads": 8,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
    neutral={"hidden_act": "silu", "sliding_window": None, "mamba_inner_layernorms": True}
    | dict.fromkeys(("use_mamba_kernels", "use_mambapy", "use_associative_scan"), ANY)
    | dict.fromkeys(("num_logits_to_keep", "calc_logits_for_entire_prompt"), ANY),
    tensors=ends("model", "embed_tokens", "final_layernorm"),
    norms=("input_layernorm", "pre_ff_layernorm"),
    plain=plain_jamba,
    published=without("head_dim", after=lambda fields: fields),
    pattern_fields=(
        "num_hidden_layers",
        "attn_layer_period",
        "attn_layer_offset",
        "expert_layer_period",
        "expert_layer_offset",
    ),
    read_pattern=read_jamba,
    write_pattern=write_jamba,
)
