"""The published layouts: Llama's relatives, the Mambas, and the hybrids, one table each.

Field and tensor names are those of Hugging Face transformers (read at 5.23.0), whose modules the
parity tests compare with ours. Tables share their parts: a family is what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.attention import Attention
from models.errors import UserError
from models.mamba import Mamba
from models.mlp import SwiGLU
from models.moe import Moe
from models.rotary import LinearScaling, Llama3Scaling
from models.ssd import Mamba2
from models.translation import ANY, Fields, Layout, Part, Pattern, Tensor

# Tensors


def linear(**names: str) -> dict[str, Tensor]:
    """Our linear maps by their published names: torch keeps (out, in)."""
    kernels = {f"{o}.kernel": Tensor(f"{t}.weight", "o i -> i o") for o, t in names.items()}
    return kernels | {f"{o}.bias": Tensor(f"{t}.bias") for o, t in names.items()}


def scales(shift: float = 0.0, **names: str) -> dict[str, Tensor]:
    """Our norms by their published names."""
    return {f"{o}.scale": Tensor(f"{t}.weight", shift=shift) for o, t in names.items()}


def same(*names: str) -> dict[str, Tensor]:
    """Parameters that are called and laid out alike."""
    return {name: Tensor(name) for name in names}


def conv(name: str) -> dict[str, Tensor]:
    """A depthwise convolution: torch keeps (channel, 1, tap)."""
    return {
        "conv.kernel": Tensor(f"{name}.weight", "c 1 w -> w c"),
        "conv.bias": Tensor(f"{name}.bias"),
    }


def experts(gate: str, up: str, down: str) -> dict[str, Tensor]:
    """One published matrix for each expert and map."""
    return {
        "gate": Tensor(f"experts.{{e}}.{gate}.weight", "f d -> 1 d f"),
        "up": Tensor(f"experts.{{e}}.{up}.weight", "f d -> 1 d f"),
        "down": Tensor(f"experts.{{e}}.{down}.weight", "d f -> 1 f d"),
    }


def ends(prefix: str, embed: str, norm: str, shift: float = 0.0) -> dict[str, Tensor]:
    """Embedding, last norm and head."""
    embedding = {"embed": Tensor(f"{prefix}.{embed}.weight")}
    return embedding | scales(shift, norm=f"{prefix}.{norm}") | linear(head="lm_head")


# Patterns of layers


def uniform(*parts: str) -> dict[str, Any]:
    """Every layer the same."""
    return {
        "pattern_fields": ("num_hidden_layers",),
        "read_pattern": lambda fields: (parts,) * fields["num_hidden_layers"],
        "write_pattern": lambda pattern: {"num_hidden_layers": len(pattern)},
    }


def typed(*also: str, **layers: tuple[str, ...]) -> dict[str, Any]:
    """Layers as the list `layer_types` names them; fields in `also` have been turned into it."""

    def read(fields: Fields) -> Pattern:
        if unknown := set(fields["layer_types"]) - set(layers):
            raise UserError(
                f"config.json: layer_types has {min(unknown)!r}, which is not supported, only "
                f"{', '.join(layers)} are; this model cannot be imported"
            )
        return tuple(layers[name] for name in fields["layer_types"])

    def write(pattern: Pattern) -> Fields:
        names = {parts: name for name, parts in layers.items()}
        types = [names[parts] for parts in pattern]
        return {"num_hidden_layers": len(types), "layer_types": types}

    fields = ("num_hidden_layers", "layer_types", *also)
    return {"pattern_fields": fields, "read_pattern": read, "write_pattern": write}


# Old and new spellings of fields


def heads(fields: Fields) -> Fields:
    """With key/value heads and a head's size written out."""
    size = fields["hidden_size"] // fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads") or fields["num_attention_heads"]
    return fields | {
        "num_key_value_heads": kv_heads,
        "head_dim": fields.get("head_dim") or size,
    }


def plain_rope(fields: Fields) -> Fields:
    """`rope_parameters`, or older `rope_theta` and `rope_scaling`, as our three fields."""
    fields = heads(fields)
    told: Fields = {"rope_theta": fields.pop("rope_theta", 10_000.0)}
    told["partial_rotary_factor"] = fields.pop("partial_rotary_factor", None) or 1.0
    told |= (fields.pop("rope_scaling", None) or {}) | (fields.pop("rope_parameters", None) or {})
    kind = told.pop("rope_type", None) or told.pop("type", "default")
    told.pop("type", None)
    base, share = told.pop("rope_theta"), told.pop("partial_rotary_factor")
    if kind == "default":
        scaling: Any = None
    elif kind == "linear":
        scaling = LinearScaling(factor=told.pop("factor"))
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=told.pop("factor"),
            low=told.pop("low_freq_factor"),
            high=told.pop("high_freq_factor"),
            original=told.pop("original_max_position_embeddings"),
        )
    else:
        raise UserError(
            f"config.json: rope_type={kind!r} is not supported, only default, linear and llama3 "
            "are; this model cannot be imported"
        )
    if left := {name: value for name, value in told.items() if value is not None}:
        name, value = next(iter(left.items()))
        raise UserError(
            f"config.json: {name}={value!r} is unknown for rope_type={kind}; this model cannot be "
            "imported"
        )
    dims = int(share * fields["head_dim"])
    partial = None if dims == fields["head_dim"] else dims
    return fields | {"rope_theta": base, "rope_dims": partial, "rope_scaling": scaling}


def published_rope(fields: Fields) -> Fields:
    """Our three fields as `rope_parameters`."""
    fields = dict(fields)
    scaling, dims = fields.pop("rope_scaling"), fields.pop("rope_dims")
    told: Fields = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    if isinstance(scaling, LinearScaling):
        told |= {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        told |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    if dims is not None:
        told["partial_rotary_factor"] = dims / fields["head_dim"]
    return fields | {"rope_parameters": told}


def without(*names: str, after: Callable[[Fields], Fields]) -> Callable[[Fields], Fields]:
    """`after`, and then without fields that files do not have."""
    return lambda fields: {k: v for k, v in after(fields).items() if k not in names}


# Parts

ATTENTION = {
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "d_head",
}
ROPE = {"rope_theta": "rope_base", "rope_dims": "rope_dims", "rope_scaling": "rope_scaling"}
PROJECTIONS = linear(q="q_proj", k="k_proj", v="v_proj", out="o_proj")
QK_NORM = scales(q_norm="q_norm", k_norm="k_norm")
GATED = linear(gate="gate_proj", up="up_proj", out="down_proj")


def attention(
    fields: dict[str, str], tensors: dict[str, Tensor] = PROJECTIONS, **fixed: Any
) -> Part:
    """Rotary attention under Llama's names."""
    return Part(Attention, ATTENTION | ROPE | fields, "self_attn.", tensors, fixed)


MLP = Part(SwiGLU, {"intermediate_size": "d_ff"}, "mlp.", GATED)


# Families


def llama_like(
    model_type: str, architecture: str, parts: dict[str, Part], **changed: Any
) -> Layout:
    """Llama's names outside of the parts, one attention and one MLP in each layer."""
    defaults = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    table: dict[str, Any] = {
        "fields": {
            "hidden_size": "d_model",
            "vocab_size": "vocab_size",
            "tie_word_embeddings": "tie_embeddings",
            "rms_norm_eps": "norm_eps",
        },
        "neutral": {"hidden_act": "silu"},
        "tensors": ends("model", "embed_tokens", "norm"),
        "layer": "model.layers.{i}.",
        "norms": scales(mixer_norm="input_layernorm", channel_norm="post_attention_layernorm"),
        "plain": plain_rope,
        "published": published_rope,
        **uniform(*parts),
    }
    defaults |= changed.pop("defaults", {})
    return Layout(model_type, architecture, parts=parts, defaults=defaults, **(table | changed))


LLAMA = llama_like(
    "llama",
    "LlamaForCausalLM",
    {
        "attention": attention({"attention_bias": "qkv_bias out_bias"}),
        "mlp": Part(SwiGLU, {"intermediate_size": "d_ff", "mlp_bias": "bias"}, "mlp.", GATED),
    },
    defaults={"attention_bias": False, "mlp_bias": False},
)
MISTRAL = llama_like(
    "mistral",
    "MistralForCausalLM",
    {"attention": attention({"sliding_window": "window"}), "mlp": MLP},
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
)


def plain_windows(fields: Fields) -> Fields:
    """Qwen's three fields of windows as `layer_types`, which newer files have beside them."""
    fields, depth = plain_rope(fields), fields["num_hidden_layers"]
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    full = fields["max_window_layers"] if window else depth
    types = ["full_attention"] * min(full, depth) + ["sliding_attention"] * max(0, depth - full)
    return fields | {"sliding_window": window, "layer_types": fields["layer_types"] or types}


def published_windows(fields: Fields) -> Fields:
    return published_rope(fields) | {"use_sliding_window": "sliding_window" in fields}


def qwen(model_type: str, architecture: str, defaults: Fields, **attention_options: Any) -> Layout:
    """Attention in some layers windowed, as `layer_types` says."""
    windowed = attention(**attention_options)
    full = attention(**attention_options, window=None)
    sliding = Part(
        Attention,
        {**windowed.fields, "sliding_window": "window"},
        windowed.prefix,
        windowed.tensors,
        windowed.fixed,
    )
    return llama_like(
        model_type,
        architecture,
        {"attention": full, "sliding": sliding, "mlp": MLP},
        defaults=defaults
        | {
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
            "num_key_value_heads": 32,
        },
        plain=plain_windows,
        published=published_windows,
        **typed(
            "use_sliding_window",
            "max_window_layers",
            full_attention=("attention", "mlp"),
            sliding_attention=("sliding", "mlp"),
        ),
    )


QWEN2 = qwen("qwen2", "Qwen2ForCausalLM", {}, fields={}, qkv_bias=True)
QWEN3 = qwen(
    "qwen3",
    "Qwen3ForCausalLM",
    {"head_dim": 128, "attention_bias": False},
    fields={"attention_bias": "qkv_bias out_bias", "rms_norm_eps": "norm_eps"},
    tensors=PROJECTIONS | QK_NORM,
    qk_norm=True,
)
MIXTRAL = llama_like(
    "mixtral",
    "MixtralForCausalLM",
    {
        "attention": attention({"sliding_window": "window"}),
        "moe": Part(
            Moe,
            {
                "num_local_experts": "n_experts",
                "num_experts_per_tok": "top_k",
                "intermediate_size": "d_expert",
            },
            "block_sparse_moe.",
            linear(router="gate") | experts("w1", "w3", "w2"),
            axes={"e": "n_experts"},
        ),
    },
    defaults={
        "sliding_window": None,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
)
OLMOE = llama_like(
    "olmoe",
    "OlmoeForCausalLM",
    {
        "attention": attention(
            {"attention_bias": "qkv_bias out_bias", "rms_norm_eps": "norm_eps"},
            PROJECTIONS | QK_NORM,
            qk_norm="joint",
        ),
        "moe": Part(
            Moe,
            {
                "num_experts": "n_experts",
                "num_experts_per_tok": "top_k",
                "intermediate_size": "d_expert",
                "norm_topk_prob": "renormalize",
            },
            "mlp.",
            linear(router="gate") | experts("gate_proj", "up_proj", "down_proj"),
            axes={"e": "n_experts"},
        ),
    },
    defaults={
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "norm_topk_prob": False,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    neutral={"hidden_act": "silu", "clip_qkv": None},
    published=without("head_dim", after=published_rope),
)

# The Mambas

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
        "norms": scales(mixer_norm="norm"),
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


def plain_mamba2(fields: Fields) -> Fields:
    fields = plain_mamba(fields)
    heads, inner = fields.pop("num_heads"), fields["expand"] * fields["hidden_size"]
    if heads * fields["head_dim"] != inner:
        raise UserError(
            f"config.json: num_heads={heads} times head_dim={fields['head_dim']} must be the inner "
            f"width {inner}; this model cannot be imported"
        )
    return fields | {"time_step_limit": list(fields["time_step_limit"])}


def published_mamba2(fields: Fields) -> Fields:
    inner = fields["expand"] * fields["hidden_size"]
    return fields | {"num_heads": inner // fields["head_dim"]}


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
        {
            **linear(inward="in_proj", out="out_proj"),
            **conv("conv1d"),
            **same("dt_bias", "A_log", "D"),
            "norm_scale": Tensor("norm.weight"),
        },
    ),
    defaults={
        "tie_word_embeddings": False,
        "state_size": 128,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "time_step_limit": (0.0, float("inf")),
    },
    neutral={"time_step_limit": [0.0, float("inf")], "time_step_rank": ANY},
    plain=plain_mamba2,
    published=published_mamba2,
)

LAYOUTS = {
    layout.model_type: layout
    for layout in (LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, OLMOE, MAMBA, MAMBA2, FALCON_MAMBA)
}
