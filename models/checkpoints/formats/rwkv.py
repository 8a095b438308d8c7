"""RWKV-7 as the converted World and Goose checkpoints have it (fla's names, LoRA maps in pairs)."""

from __future__ import annotations

from typing import Annotated, Any

from isoflop.models.checkpoints.fields import Positive, Published, Size, only, shown
from isoflop.models.checkpoints.formats.parts import ends, linear, same
from isoflop.models.checkpoints.links import Tensor
from isoflop.models.checkpoints.translation import Fields, Layout, Part, Pattern
from isoflop.models.errors import UserError
from isoflop.models.mixers.rwkv import Rwkv7, RwkvChannel


class Rwkv7Fields(Published):
    norm_eps: Positive = 1e-5
    num_heads: Size | None = None
    head_dim: Size | None = None  # before num_heads, where both are
    value_dim: Size | list[Size] | None = None
    hidden_ratio: Positive | None = 4
    intermediate_size: Size | None = None
    decay_low_rank_dim: Size = 64
    gate_low_rank_dim: Size = 128
    a_low_rank_dim: Size = 64
    v_low_rank_dim: Size = 16
    hidden_act: Annotated[Any, only("sqrelu")] = "sqrelu"
    norm_first: Annotated[Any, only(True)] = True
    norm_bias: Annotated[Any, only(True)] = True
    attn: Annotated[Any, only(None)] = None

    without_effect = Published.without_effect + (
        " attn_mode fuse_cross_entropy fuse_linear_cross_entropy fuse_norm use_l2warp"
    )


def low_rank(ours: str, theirs: str) -> dict[str, Tensor]:
    """A map down, one up, and its bias, which this package keeps beside it."""
    maps = linear(**{f"{ours}_down": f"{theirs}.lora.0", f"{ours}_up": f"{theirs}.lora.2"})
    kernels = {name: tensor for name, tensor in maps.items() if name.endswith("kernel")}
    return kernels | {f"{ours}_bias": Tensor(f"{theirs}.lora.2.bias")}


def time_mix(values: str) -> Part:
    return Part(
        Rwkv7,
        {
            "num_heads": "n_heads",
            "decay_low_rank_dim": "rank_decay",
            "a_low_rank_dim": "rank_rate",
            "gate_low_rank_dim": "rank_gate",
            "v_low_rank_dim": "rank_value",
            "norm_eps": "norm_eps",
        },
        "attn.",
        {
            "mix": Tensor("x_r x_w x_k x_v x_a x_g", "1 1 d -> 1 d"),
            **linear(r="r_proj", k="k_proj", v="v_proj", out="o_proj"),
            **low_rank("decay", "w_lora"),
            **low_rank("rate", "a_lora"),
            **low_rank("value", "v_lora"),
            **low_rank("gate", "g_lora"),
            **same("k_k", "k_a"),
            "r_k": Tensor("r_k", "h k -> (h k)"),
            "norm_scale": Tensor("g_norm.weight"),
            "norm_bias": Tensor("g_norm.bias"),
        },
        {"values": values},
        {"h": "n_heads"},
    )


def plain_rwkv7(fields: Fields) -> Fields:
    """A head's size or their number, and the MLP's width or its ratio, as numbers."""
    fields, width = dict(fields), fields["hidden_size"]
    size, n_heads = fields.pop("head_dim"), fields["num_heads"]
    if not (size or n_heads):
        raise UserError("config.json of a rwkv7 model lacks head_dim; add it")
    size = size or max(1, width // n_heads)
    if width % size:
        raise UserError(
            f"config.json: hidden_size={width} must be a multiple of head_dim={size}; compare them "
            "with the published ones"
        )
    values = fields.pop("value_dim") or width
    if set(values if isinstance(values, list) else [values]) != {width}:
        raise UserError(
            f"config.json: value_dim={shown(values)} must be hidden_size={width} in every layer; "
            "this model cannot be imported"
        )
    inner, ratio = fields["intermediate_size"], fields.pop("hidden_ratio")
    if inner is None and ratio is None:
        raise UserError("config.json of a rwkv7 model lacks intermediate_size; add it")
    inner = inner or 32 * -(-int(width * ratio) // 32)
    return fields | {"num_heads": width // size, "intermediate_size": inner}


def published_rwkv7(fields: Fields) -> Fields:
    size = fields["hidden_size"] // fields["num_heads"]
    return fields | {"head_dim": size, "hidden_ratio": None}


def read_pattern(fields: Fields) -> Pattern:
    """The first layer leaves its values to the others."""
    first, others = ("first", "channel"), ("other", "channel")
    return (first, *(others,) * (fields["num_hidden_layers"] - 1))


RWKV7 = Layout(
    "rwkv7",
    "RWKV7ForCausalLM",
    Rwkv7Fields,
    fields={
        "hidden_size": "d_model",
        "vocab_size": "vocab_size",
        "tie_word_embeddings": "tie_embeddings",
        "norm_eps": "norm_eps",
    },
    fixed={"norm": "layer", "embed_norm": True},
    parts={
        "first": time_mix("leave"),
        "other": time_mix("mix"),
        "channel": Part(
            RwkvChannel,
            {"intermediate_size": "d_ff"},
            "ffn.",
            {"mix": Tensor("x_k"), **linear(up="key", out="value")},
        ),
    },
    auto_map={
        "modeling_rwkv7.RWKV7Config",
        "modeling_rwkv7.RWKV7Model",
        "modeling_rwkv7.RWKV7ForCausalLM",
    },
    read_pattern=read_pattern,
    write_pattern=lambda pattern: {"num_hidden_layers": len(pattern)},
    tensors={
        **ends("model", "embeddings", "norm"),
        "norm.bias": Tensor("model.norm.bias"),
        "embed_norm.scale": Tensor("model.layers.0.pre_norm.weight"),
        "embed_norm.bias": Tensor("model.layers.0.pre_norm.bias"),
    },
    layer="model.layers.{i}.",
    norms=("attn_norm", "ffn_norm"),
    plain=plain_rwkv7,
    published=published_rwkv7,
)
