"""What published layouts share: how tensors are laid out, patterns of layers, spellings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.attention import Attention
from models.errors import UserError
from models.links import Tensor
from models.mlp import SwiGLU
from models.moe import Moe
from models.rotary import LinearScaling, Llama3Scaling
from models.translation import Fields, Part, Pattern


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
        if len(fields["layer_types"]) != fields["num_hidden_layers"]:
            raise UserError(
                f"config.json: layer_types names {len(fields['layer_types'])} layers and "
                f"num_hidden_layers={fields['num_hidden_layers']}; make them agree"
            )
        return tuple(layers[name] for name in fields["layer_types"])

    def write(pattern: Pattern) -> Fields:
        names = {parts: name for name, parts in layers.items()}
        if unknown := set(pattern) - set(names):
            raise UserError(f"these checkpoints have no layers of {' and '.join(min(unknown))}")
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
    fields: dict[str, str],
    tensors: dict[str, Tensor] = PROJECTIONS,
    axes: dict[str, str] | None = None,
    **fixed: Any,
) -> Part:
    """Rotary attention under Llama's names."""
    return Part(Attention, ATTENTION | ROPE | fields, "self_attn.", tensors, fixed, axes or {})


MLP = Part(SwiGLU, {"intermediate_size": "d_ff"}, "mlp.", GATED)


def routed(
    prefix: str,
    fields: dict[str, str],
    router: str = "gate",
    maps: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    more: dict[str, Tensor] | None = None,
    **fixed: Any,
) -> Part:
    """Routed experts, `fields` beside the number chosen and `more` tensors beside the experts'."""
    tensors = linear(router=router) | experts(*maps) | (more or {})
    told = {"num_experts_per_tok": "top_k"} | fields
    return Part(Moe, told, prefix, tensors, fixed, {"e": "n_experts"})
