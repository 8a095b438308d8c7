"""RecurrentGemma, the published Griffin: RG-LRU blocks and local attention."""

from __future__ import annotations

import math

import ml_dtypes

from models.attention import Attention
from models.griffin import RgLru
from models.layouts.llama import llama_like
from models.layouts.parts import (
    ATTENTION,
    GATED,
    PROJECTIONS,
    ROPE,
    conv,
    ends,
    linear,
    plain_rope,
    published_rope,
    typed,
)
from models.links import Tensor
from models.mlp import SwiGLU
from models.translation import ANY, Fields, Part


def plain_griffin(fields: Fields) -> Fields:
    """The MLP's halves, the embedding's scale (kept in bf16), and the repeated block types."""
    fields = plain_rope({"partial_rotary_factor": 0.5} | fields)
    types, depth = list(fields.pop("block_types")), fields["num_hidden_layers"]
    return fields | {
        "layer_types": (types * depth)[:depth],
        "lru_width": fields["lru_width"] or fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"] // 2,
        "embed_scale": float(ml_dtypes.bfloat16(math.sqrt(fields["hidden_size"]))),
    }


def published_griffin(fields: Fields) -> Fields:
    fields = published_rope(fields)
    rope = {"partial_rotary_factor": 1.0} | fields["rope_parameters"]
    derived = {"head_dim", "embed_scale", "layer_types"}
    return {name: value for name, value in fields.items() if name not in derived} | {
        "block_types": fields["layer_types"],
        "intermediate_size": 2 * fields["intermediate_size"],
        "rope_parameters": rope,
    }


RECURRENT_GEMMA = llama_like(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    {
        "attention": Part(
            Attention,
            ATTENTION | ROPE | {"attention_bias": "qkv_bias", "attention_window_size": "window"},
            "temporal_block.",
            PROJECTIONS,
            {"out_bias": True},
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
    defaults={
        "tie_word_embeddings": True,
        "num_key_value_heads": None,
        "attention_bias": False,
        "attention_window_size": 2048,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "lru_width": None,
        "block_types": ("recurrent", "recurrent", "attention"),
    },
    neutral={
        "hidden_activation": "gelu_pytorch_tanh",
        "embeddings_scale_by_sqrt_dim": True,
        "_block_types": ANY,
        "w_init_variance_scale": ANY,
        "final_w_init_variance_scale": ANY,
    },
    tensors=ends("model", "embed_tokens", "final_norm", 1.0),
    norms=("temporal_pre_norm", "channel_pre_norm"),
    norm_shift=1.0,
    plain=plain_griffin,
    published=published_griffin,
    **typed(attention=("attention", "mlp"), recurrent=("recurrent", "mlp")),
)
