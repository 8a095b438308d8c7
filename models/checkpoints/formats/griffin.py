"""RecurrentGemma, the published Griffin: RG-LRU blocks and local attention."""

from __future__ import annotations

import math
from typing import Annotated, Any

import ml_dtypes
from pydantic import Field, model_validator

from isoflop.models.checkpoints.fields import MOST, Positive, Share, Size, only
from isoflop.models.checkpoints.formats.llama import llama_like
from isoflop.models.checkpoints.formats.parts import (
    ATTENTION,
    GATED,
    PROJECTIONS,
    ROPE,
    conv,
    ends,
    linear,
    typed,
)
from isoflop.models.checkpoints.formats.rope import PartlyRotary, plain_rope, published_partial_rope
from isoflop.models.checkpoints.links import Tensor
from isoflop.models.checkpoints.translation import Fields, Part
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.rglru import RgLru


class RecurrentGemmaFields(PartlyRotary):
    intermediate_size: Annotated[int, Field(ge=2, le=MOST, multiple_of=2)]  # gate and up together
    tie_word_embeddings: bool = True
    rms_norm_eps: Positive = 1e-6
    attention_bias: bool = False
    attention_window_size: Size = 2048
    partial_rotary_factor: Share = 0.5
    conv1d_width: Size = 4
    logits_soft_cap: Positive = 30.0
    lru_width: Size | None = None
    block_types: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = (
        "recurrent",
        "recurrent",
        "attention",
    )
    hidden_activation: Annotated[Any, only("gelu_pytorch_tanh")] = "gelu_pytorch_tanh"
    embeddings_scale_by_sqrt_dim: Annotated[Any, only(True)] = True

    without_effect = (
        PartlyRotary.without_effect
        + " _block_types final_w_init_variance_scale w_init_variance_scale"
    )

    @model_validator(mode="after")
    def _rope_is_not_scaled(self) -> RecurrentGemmaFields:
        for parameters in (self.rope_scaling, self.rope_parameters):
            if parameters and parameters.kind != "default":
                raise ValueError(
                    f"rope_type={parameters.kind} is not supported, only default is in the "
                    "published code"
                )
        return self


def plain_griffin(fields: Fields) -> Fields:
    """The MLP's halves, the embedding's scale (kept in bf16), and the repeated block types."""
    fields = plain_rope(fields)
    types, depth = fields.pop("block_types"), fields["num_hidden_layers"]
    return fields | {
        "layer_types": [types[i % len(types)] for i in range(depth)],
        "lru_width": fields["lru_width"] or fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"] // 2,
        "embed_scale": float(ml_dtypes.bfloat16(math.sqrt(fields["hidden_size"]))),
    }


def published_griffin(fields: Fields) -> Fields:
    fields = published_partial_rope(fields)
    derived = {"head_dim", "embed_scale", "layer_types"}
    return {name: value for name, value in fields.items() if name not in derived} | {
        "block_types": fields["layer_types"],
        "intermediate_size": 2 * fields["intermediate_size"],
    }


RECURRENT_GEMMA = llama_like(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    RecurrentGemmaFields,
    {
        "attention": Part(
            Attention,
            ATTENTION | ROPE | {"attention_bias": "qkv_bias", "attention_window_size": "window"},
            "temporal_block.",
            PROJECTIONS,
            {"out_bias": True},
            absent=lambda width: Attention(n_heads=1, window=2048),
        ),
        "recurrent": Part(
            RgLru,
            {"num_attention_heads": "n_heads", "lru_width": "d_rnn", "conv1d_width": "d_conv"},
            "temporal_block.",
            {
                **linear(branch="linear_y", inward="linear_x", out="linear_out"),
                **conv("conv_1d"),
                "decay": Tensor("rg_lru.recurrent_param"),
                "decay_gate.kernel": Tensor("rg_lru.recurrent_gate_weight"),
                "decay_gate.bias": Tensor("rg_lru.recurrent_gate_bias", "h k -> (h k)"),
                "input_gate.kernel": Tensor("rg_lru.input_gate_weight"),
                "input_gate.bias": Tensor("rg_lru.input_gate_bias", "h k -> (h k)"),
            },
            axes={"h": "n_heads"},
        ),
        "mlp": Part(
            SwiGLU,
            {"intermediate_size": "d_ff"},
            "mlp_block.",
            GATED,
            {"activation": "gelu", "bias": True},
        ),
    },
    fields={
        "hidden_size": "d_model",
        "vocab_size": "vocab_size",
        "tie_word_embeddings": "tie_embeddings",
        "rms_norm_eps": "norm_eps",
        "embed_scale": "embed_scale",
        "logits_soft_cap": "logit_cap",
    },
    tensors=ends("model", "embed_tokens", "final_norm", 1.0),
    norms=("temporal_pre_norm", "channel_pre_norm"),
    norm_shift=1.0,
    plain=plain_griffin,
    published=published_griffin,
    **typed(attention=("attention", "mlp"), recurrent=("recurrent", "mlp")),
)
