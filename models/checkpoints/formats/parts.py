"""What published layouts share: how tensors are laid out, and patterns of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isoflop.models.checkpoints.fields import shown
from isoflop.models.checkpoints.links import Tensor
from isoflop.models.checkpoints.translation import Fields, Part, Pattern
from isoflop.models.errors import UserError
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe


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
        "read_pattern": lambda fields: (parts,) * fields["num_hidden_layers"],
        "write_pattern": lambda pattern: {"num_hidden_layers": len(pattern)},
    }


def typed(**layers: tuple[str, ...]) -> dict[str, Any]:
    """Layers as the list `layer_types` names them."""

    def read(fields: Fields) -> Pattern:
        if unknown := set(fields["layer_types"]) - set(layers):
            raise UserError(
                f"config.json: layer_types has {shown(min(unknown))}, which is not supported, only "
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

    return {"read_pattern": read, "write_pattern": write}


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
    absent: Callable[[int], Attention] | None = None,
    **fixed: Any,
) -> Part:
    """Rotary attention under Llama's names."""
    told = ATTENTION | ROPE | fields
    return Part(Attention, told, "self_attn.", tensors, fixed, axes or {}, absent)


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
