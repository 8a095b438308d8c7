"""Llama and its relatives: attention and an MLP, or routed experts, in each layer."""

from __future__ import annotations

from typing import Any

from models.attention import Attention
from models.layouts.parts import (
    GATED,
    MLP,
    PROJECTIONS,
    QK_NORM,
    attention,
    ends,
    plain_rope,
    published_rope,
    routed,
    typed,
    uniform,
    without,
)
from models.mlp import SwiGLU
from models.translation import Fields, Layout, Part


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
        "norms": ("input_layernorm", "post_attention_layernorm"),
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
        "moe": routed(
            "block_sparse_moe.",
            {"num_local_experts": "n_experts", "intermediate_size": "d_expert"},
            maps=("w1", "w3", "w2"),
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
        "moe": routed(
            "mlp.",
            {
                "num_experts": "n_experts",
                "intermediate_size": "d_expert",
                "norm_topk_prob": "renormalize",
            },
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
