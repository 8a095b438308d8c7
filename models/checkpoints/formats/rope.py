"""Heads and their rotary positions as files spell them, in old and new fields, and as ours."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from isoflop.models.checkpoints.fields import (
    Declared,
    Positive,
    Published,
    Share,
    Size,
    only,
    shown,
)
from isoflop.models.checkpoints.translation import Fields
from isoflop.models.errors import UserError
from isoflop.models.rotary import LinearScaling, Llama3Scaling, YarnScaling

SCALED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL = {"yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate")}


class RopeParameters(Declared):
    """`rope_parameters`, or the older `rope_scaling`; whatever is not said has its default."""

    rope_type: Annotated[Any, only(*SCALED)] = "default"
    type: Annotated[Any, only(*SCALED)] = "default"  # the older name
    rope_theta: Positive = 10_000.0
    partial_rotary_factor: Share = 1.0
    factor: Positive = 1.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 1.0
    original_max_position_embeddings: Size = 1
    beta_fast: Positive | None = None  # None or not said: 32
    beta_slow: Positive | None = None  # 1
    attention_factor: Positive | None = None  # by the factor
    truncate: Annotated[Any, only(True)] = True

    @property
    def kind(self) -> str:
        return self.rope_type if "rope_type" in self.model_fields_set else self.type

    def told(self, *names: str) -> Fields:
        """Those of the fields that the file has."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}


class Heads(Published):
    """Attention with grouped queries."""

    num_attention_heads: Size
    num_key_value_heads: Size | None = None  # None: as many as heads
    head_dim: Size | None = None  # None: hidden_size / num_attention_heads


class PartlyRotary(Heads):
    """Rotary positions of a part of each head's channels."""

    rope_theta: Positive = 10_000.0
    partial_rotary_factor: Share = 1.0
    rope_scaling: RopeParameters | None = None
    rope_parameters: RopeParameters | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> PartlyRotary:
        old, new = self.rope_scaling, self.rope_parameters
        if old and new and old.model_fields_set and old != new:
            raise ValueError("rope_scaling and rope_parameters differ, and must not")
        return self


class Rotary(PartlyRotary):
    """Rotary positions of all channels: the reference turns all, whatever share the file says."""

    partial_rotary_factor: Annotated[Any, only(1.0)] = 1.0

    @model_validator(mode="after")
    def _all_channels(self) -> Rotary:
        for parameters in (self.rope_scaling, self.rope_parameters):
            if parameters and parameters.partial_rotary_factor != 1:
                raise ValueError(
                    f"partial_rotary_factor={parameters.partial_rotary_factor} is not supported, "
                    "only 1.0 is, since the published code turns all channels"
                )
        return self


def heads(fields: Fields) -> Fields:
    """With key/value heads and a head's size written out."""
    n_heads, width = fields["num_attention_heads"], fields["hidden_size"]
    if n_heads > width and not fields["head_dim"]:
        raise UserError(
            f"config.json: num_attention_heads={n_heads} must be at most hidden_size={width}; "
            "compare them with the published ones"
        )
    return fields | {
        "num_key_value_heads": fields["num_key_value_heads"] or n_heads,
        "head_dim": fields["head_dim"] or width // n_heads,
    }


def plain_rope(fields: Fields) -> Fields:
    """`rope_parameters`, or older `rope_theta` and `rope_scaling`, as our three fields."""
    fields = heads(fields)
    old, new = fields.pop("rope_scaling"), fields.pop("rope_parameters")
    rope: RopeParameters = (old if old and old.model_fields_set else new) or RopeParameters()
    used = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SCALED[rope.kind]}
    used |= {*OPTIONAL.get(rope.kind, ())}
    if unused := rope.model_fields_set - used:
        name = min(unused)
        raise UserError(
            f"config.json: {name}={shown(getattr(rope, name))} is unknown for rope_type="
            f"{rope.kind}; this model cannot be imported"
        )
    told = rope.told(*SCALED[rope.kind])
    if fields["max_position_embeddings"]:
        told = {"original_max_position_embeddings": fields["max_position_embeddings"]} | told
    if missing := [name for name in SCALED[rope.kind] if name not in told]:
        raise UserError(f"config.json: rope_type={rope.kind} lacks {missing[0]}; add it")
    scaling: Any = None
    if rope.kind == "linear":
        scaling = LinearScaling(factor=told["factor"])
    if rope.kind == "llama3":
        low, high = told["low_freq_factor"], told["high_freq_factor"]
        if not low < high:
            raise UserError(
                f"config.json: low_freq_factor={low} must be below high_freq_factor={high}; "
                "compare them with the published ones"
            )
        original = told["original_max_position_embeddings"]
        scaling = Llama3Scaling(factor=told["factor"], low=low, high=high, original=original)
    if rope.kind == "yarn":
        fast, slow = rope.beta_fast or 32.0, rope.beta_slow or 1.0
        if not slow <= fast:
            raise UserError(
                f"config.json: beta_slow={slow} must be at most beta_fast={fast}; compare them "
                "with the published ones"
            )
        scaling = YarnScaling(
            factor=told["factor"],
            original=told["original_max_position_embeddings"],
            fast=fast,
            slow=slow,
            amplitude=rope.attention_factor,
        )
    outside = {name: fields.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    found = outside | rope.told(*outside)
    dims = int(found["partial_rotary_factor"] * fields["head_dim"])
    return fields | {
        "rope_theta": found["rope_theta"],
        "rope_dims": None if dims == fields["head_dim"] else dims,
        "rope_scaling": scaling,
    }


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
    if isinstance(scaling, YarnScaling):
        told |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
            "original_max_position_embeddings": scaling.original,
        }
        if scaling.amplitude is not None:
            told["attention_factor"] = scaling.amplitude
    if dims is not None:
        told["partial_rotary_factor"] = dims / fields["head_dim"]
    return fields | {"rope_parameters": told}


def published_partial_rope(fields: Fields) -> Fields:
    """The same where the share of the channels is not one if nothing is said."""
    fields = published_rope(fields)
    return fields | {"rope_parameters": {"partial_rotary_factor": 1.0} | fields["rope_parameters"]}
