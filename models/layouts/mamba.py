"""The Mambas: one mixer in each layer and no MLP."""

from __future__ import annotations

from typing import Any

from models.errors import UserError
from models.layouts.parts import conv, ends, linear, same, uniform
from models.links import Tensor
from models.mamba import Mamba
from models.ssd import Mamba2
from models.translation import ANY, Fields, Layout, Part

STEPS = {f"time_step_{name}": ANY for name in ("min", "max", "floor", "scale", "init_scheme")}


def plain_mamba(fields: Fields) -> Fields:
    """The inner width as a multiple of the outer; `auto` as nothing said."""
    fields, width = dict(fields), fields["hidden_size"]
    inner = fields.pop("intermediate_size", None) or fields["expand"] * width
    if inner % width:
        raise UserError(
            f"config.json: intermediate_size={inner} must be a multiple of hidden_size={width}; "
            "this model cannot be imported"
        )
    rank = fields.get("time_step_rank")
    return fields | {"expand": inner // width, "time_step_rank": None if rank == "auto" else rank}


def mamba_like(model_type: str, architecture: str, part: Part, **changed: Any) -> Layout:
    """One mixer in each layer and no MLP."""
    defaults = {
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "expand": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
    }
    neutral = {"hidden_act": "silu", "rms_norm": True, "ssm_cfg": {}} | STEPS
    neutral |= dict.fromkeys(("use_mambapy", "use_associative_scan", "use_falcon_mambapy"), ANY)
    neutral |= dict.fromkeys(("d_inner", "d_model", "n_layer", "fused_add_norm"), ANY)
    neutral |= dict.fromkeys(("pad_vocab_size_multiple", "chunk_size", "norm_before_gate"), ANY)
    table: dict[str, Any] = {
        "fields": {
            "hidden_size": "d_model",
            "vocab_size": "vocab_size",
            "tie_word_embeddings": "tie_embeddings",
            "layer_norm_epsilon": "norm_eps",
        },
        "defaults": defaults | changed.pop("defaults", {}),
        "neutral": neutral | changed.pop("neutral", {}),
        "tensors": ends("backbone", "embeddings", "norm_f"),
        "layer": "backbone.layers.{i}.",
        "norms": ("norm",),
        "plain": plain_mamba,
    }
    parts = {"mamba": part}
    return Layout(model_type, architecture, parts=parts, **(table | changed), **uniform("mamba"))


SELECTIVE = {
    "state_size": "d_state",
    "expand": "expand",
    "conv_kernel": "d_conv",
    "time_step_rank": "dt_rank",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
}
SELECTIVE_TENSORS = {
    **linear(inward="in_proj", select="x_proj", dt="dt_proj", out="out_proj"),
    **conv("conv1d"),
    **same("A_log", "D"),
    "dt_bias": Tensor("dt_proj.bias"),
}
SELECTIVE_DEFAULTS = {"state_size": 16, "time_step_rank": "auto"}
MAMBA = mamba_like(
    "mamba",
    "MambaForCausalLM",
    Part(Mamba, SELECTIVE, "mixer.", SELECTIVE_TENSORS, {"select_norm": "none"}),
    defaults=SELECTIVE_DEFAULTS,
)
FALCON_MAMBA = mamba_like(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    Part(
        Mamba,
        SELECTIVE | {"mixer_rms_eps": "norm_eps"},
        "mixer.",
        SELECTIVE_TENSORS,
        {"select_norm": "plain"},
    ),
    defaults=SELECTIVE_DEFAULTS | {"mixer_rms_eps": 1e-6},
)


def check_heads(count_name: str, count: int, size_name: str, size: int, inner: int) -> None:
    if count * size != inner:
        raise UserError(
            f"config.json: {count_name}={count} times {size_name}={size} must be the inner width "
            f"{inner}; this model cannot be imported"
        )


def plain_mamba2(fields: Fields) -> Fields:
    fields = plain_mamba(fields)
    inner = fields["expand"] * fields["hidden_size"]
    check_heads("num_heads", fields.pop("num_heads"), "head_dim", fields["head_dim"], inner)
    return fields | {"time_step_limit": list(fields["time_step_limit"])}


def published_mamba2(fields: Fields) -> Fields:
    inner = fields["expand"] * fields["hidden_size"]
    return fields | {"num_heads": inner // fields["head_dim"]}


DUAL_TENSORS = {
    **linear(inward="in_proj", out="out_proj"),
    **conv("conv1d"),
    **same("dt_bias", "A_log", "D"),
    "norm_scale": Tensor("norm.weight"),
}
ANY_STEP = [0.0, float("inf")]
MAMBA2 = mamba_like(
    "mamba2",
    "Mamba2ForCausalLM",
    Part(
        Mamba2,
        {
            "state_size": "d_state",
            "head_dim": "d_head",
            "expand": "expand",
            "conv_kernel": "d_conv",
            "n_groups": "n_groups",
            "use_bias": "bias",
            "use_conv_bias": "conv_bias",
            "layer_norm_epsilon": "norm_eps",
        },
        "mixer.",
        DUAL_TENSORS,
    ),
    defaults={
        "tie_word_embeddings": False,
        "state_size": 128,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "time_step_limit": ANY_STEP,
    },
    neutral={"time_step_limit": ANY_STEP, "time_step_rank": ANY},
    plain=plain_mamba2,
    published=published_mamba2,
)
