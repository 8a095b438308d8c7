"""The Mambas: one mixer in each layer and no MLP."""

from __future__ import annotations

from typing import Annotated, Any

from isoflop.models.checkpoints.fields import SILU, Auto, Positive, Published, Size, only
from isoflop.models.checkpoints.formats.parts import conv, ends, linear, same, uniform
from isoflop.models.checkpoints.links import Tensor
from isoflop.models.checkpoints.translation import Fields, Layout, Part
from isoflop.models.errors import UserError
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mamba2 import Mamba2


class AnyMambaFields(Published):
    layer_norm_epsilon: Positive = 1e-5
    tie_word_embeddings: bool = True
    expand: Size = 2
    intermediate_size: Size | None = None  # before `expand`, where both are
    conv_kernel: Size = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm: Annotated[Any, only(True)] = True
    ssm_cfg: Annotated[Any, only({}, None)] = None

    without_effect = Published.without_effect + (
        " chunk_size d_inner d_model fused_add_norm n_layer norm_before_gate "
        "pad_vocab_size_multiple time_step_floor time_step_init_scheme time_step_max "
        "time_step_min time_step_scale use_associative_scan use_falcon_mambapy use_mambapy"
    )


def plain_mamba(fields: Fields) -> Fields:
    """The inner width as a multiple of the outer."""
    fields, width = dict(fields), fields["hidden_size"]
    inner = fields.pop("intermediate_size") or fields["expand"] * width
    if inner % width:
        raise UserError(
            f"config.json: intermediate_size={inner} must be a multiple of hidden_size={width}; "
            "this model cannot be imported"
        )
    return fields | {"expand": inner // width}


def mamba_like(
    model_type: str, architecture: str, schema: type[Published], part: Part, **changed: Any
) -> Layout:
    """One mixer in each layer and no MLP."""
    table: dict[str, Any] = {
        "fields": {
            "hidden_size": "d_model",
            "vocab_size": "vocab_size",
            "tie_word_embeddings": "tie_embeddings",
            "layer_norm_epsilon": "norm_eps",
        },
        "tensors": ends("backbone", "embeddings", "norm_f"),
        "layer": "backbone.layers.{i}.",
        "norms": ("norm",),
        "plain": plain_mamba,
    }
    parts = {"mamba": part}
    table |= uniform("mamba") | changed
    return Layout(model_type, architecture, schema, parts=parts, **table)


class MambaFields(AnyMambaFields):
    state_size: Size = 16
    time_step_rank: Auto = None


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
MAMBA = mamba_like(
    "mamba",
    "MambaForCausalLM",
    MambaFields,
    Part(Mamba, SELECTIVE, "mixer.", SELECTIVE_TENSORS, {"select_norm": "none"}),
)


class FalconMambaFields(MambaFields):
    mixer_rms_eps: Positive = 1e-6


FALCON_MAMBA = mamba_like(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    FalconMambaFields,
    Part(
        Mamba,
        SELECTIVE | {"mixer_rms_eps": "norm_eps"},
        "mixer.",
        SELECTIVE_TENSORS,
        {"select_norm": "plain"},
    ),
)


def check_heads(count_name: str, count: int, size_name: str, size: int, inner: int) -> None:
    if count * size != inner:
        raise UserError(
            f"config.json: {count_name}={count} times {size_name}={size} must be the inner width "
            f"{inner}; this model cannot be imported"
        )


ANY_STEP = only([0.0, float("inf")])


class Mamba2Fields(AnyMambaFields):
    state_size: Size = 128
    tie_word_embeddings: bool = False
    num_heads: Size = 128
    head_dim: Size = 64
    n_groups: Size = 8
    time_step_limit: Annotated[Any, ANY_STEP] = None  # the same

    without_effect = AnyMambaFields.without_effect + " time_step_rank"


def plain_mamba2(fields: Fields) -> Fields:
    fields = plain_mamba(fields)
    inner = fields["expand"] * fields["hidden_size"]
    check_heads("num_heads", fields.pop("num_heads"), "head_dim", fields["head_dim"], inner)
    return fields


def published_mamba2(fields: Fields) -> Fields:
    inner = fields["expand"] * fields["hidden_size"]
    return fields | {"num_heads": inner // fields["head_dim"]}


DUAL_TENSORS = {
    **linear(inward="in_proj", out="out_proj"),
    **conv("conv1d"),
    **same("dt_bias", "A_log", "D"),
    "norm_scale": Tensor("norm.weight"),
}
MAMBA2 = mamba_like(
    "mamba2",
    "Mamba2ForCausalLM",
    Mamba2Fields,
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
    plain=plain_mamba2,
    published=published_mamba2,
)
