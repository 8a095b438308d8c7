"""RWKV-7 as the converted World and Goose checkpoints have it (fla's names, LoRA maps in pairs)."""

from __future__ import annotations

from models.errors import UserError
from models.layouts.parts import ends, linear, same
from models.links import Tensor
from models.rwkv import Rwkv7, RwkvChannel
from models.translation import ANY, Fields, Layout, Part, Pattern


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
    size = fields.pop("head_dim", None) or width // fields["num_heads"]
    inner = fields["intermediate_size"] or 32 * -(-int(width * fields["hidden_ratio"]) // 32)
    values = fields.pop("value_dim", None) or width
    if set(values if isinstance(values, list) else [values]) != {width}:
        raise UserError(
            f"config.json: value_dim={values!r} must be hidden_size={width} in every layer; this "
            "model cannot be imported"
        )
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
    fields={
        "hidden_size": "d_model",
        "vocab_size": "vocab_size",
        "tie_word_embeddings": "tie_embeddings",
        "norm_eps": "norm_eps",
    },
    fixed={"norm": "layer", "embed_norm": True},
    defaults={
        "tie_word_embeddings": False,
        "norm_eps": 1e-5,
        "num_heads": None,
        "hidden_ratio": 4,
        "intermediate_size": None,
        "decay_low_rank_dim": 64,
        "gate_low_rank_dim": 128,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 16,
    },
    neutral={"hidden_act": "sqrelu", "norm_first": True, "norm_bias": True, "attn": None}
    | dict.fromkeys(("attn_mode", "fuse_norm", "fuse_cross_entropy", "use_l2warp"), ANY),
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
    pattern_fields=("num_hidden_layers", "hidden_ratio"),
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
