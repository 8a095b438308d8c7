"""Llama and its relatives: attention and an MLP, or routed experts, in each layer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from isoflop.models.checkpoints.fields import SILU, Positive, Published, Size, Whole, only
from isoflop.models.checkpoints.formats.parts import (
    GATED,
    MLP,
    PROJECTIONS,
    QK_NORM,
    attention,
    ends,
    routed,
    typed,
    uniform,
    without,
)
from isoflop.models.checkpoints.formats.rope import Rotary, plain_rope, published_rope
from isoflop.models.checkpoints.translation import Fields, Layout, Part
from isoflop.models.errors import UserError
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU


def llama_like(
    model_type: str,
    architecture: str,
    schema: type[Published],
    parts: dict[str, Part],
    **changed: Any,
) -> Layout:
    """Llama's names outside of the parts, one attention and one MLP in each layer."""
    table: dict[str, Any] = {
        "fields": {
            "hidden_size": "d_model",
            "vocab_size": "vocab_size",
            "tie_word_embeddings": "tie_embeddings",
            "rms_norm_eps": "norm_eps",
        },
        "tensors": ends("model", "embed_tokens", "norm"),
        "layer": "model.layers.{i}.",
        "norms": ("input_layernorm", "post_attention_layernorm"),
        "plain": plain_rope,
        "published": published_rope,
        **uniform(*parts),
    }
    return Layout(model_type, architecture, schema, parts=parts, **(table | changed))


class LlamaFields(Rotary):
    intermediate_size: Size
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> LlamaFields:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        return self


LLAMA = llama_like(
    "llama",
    "LlamaForCausalLM",
    LlamaFields,
    {
        "attention": attention({"attention_bias": "qkv_bias out_bias"}),
        "mlp": Part(SwiGLU, {"intermediate_size": "d_ff", "mlp_bias": "bias"}, "mlp.", GATED),
    },
)


class MistralFields(Rotary):
    intermediate_size: Size
    num_key_value_heads: Size | None = 8
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-6
    sliding_window: Size | None = 4096


MISTRAL = llama_like(
    "mistral",
    "MistralForCausalLM",
    MistralFields,
    {"attention": attention({"sliding_window": "window"}), "mlp": MLP},
)


class Qwen2Fields(Rotary):
    intermediate_size: Size
    num_key_value_heads: Size | None = 32
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-6
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: Whole = 28
    layer_types: list[str] | None = None
    use_mrope: Annotated[Any, only(False)] = False


class Qwen3Fields(Qwen2Fields):
    head_dim: Size = 128
    attention_bias: bool = False


def plain_windows(fields: Fields) -> Fields:
    """Qwen's three fields of windows as `layer_types`, which newer files have beside them."""
    fields, depth = plain_rope(fields), fields["num_hidden_layers"]
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    full = fields["max_window_layers"] if window else depth
    if window is None and "sliding_attention" in (fields["layer_types"] or ()):
        raise UserError(
            "config.json: layer_types has 'sliding_attention' and there is no window; set "
            "use_sliding_window and sliding_window"
        )
    types = ["full_attention"] * min(full, depth) + ["sliding_attention"] * max(0, depth - full)
    return fields | {"sliding_window": window, "layer_types": fields["layer_types"] or types}


def published_windows(fields: Fields) -> Fields:
    return published_rope(fields) | {"use_sliding_window": "sliding_window" in fields}


def qwen(
    model_type: str, architecture: str, schema: type[Published], **attention_options: Any
) -> Layout:
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
        schema,
        {"attention": full, "sliding": sliding, "mlp": MLP},
        plain=plain_windows,
        published=published_windows,
        **typed(
            full_attention=("attention", "mlp"),
            sliding_attention=("sliding", "mlp"),
        ),
    )


QWEN2 = qwen("qwen2", "Qwen2ForCausalLM", Qwen2Fields, fields={}, qkv_bias=True)
QWEN3 = qwen(
    "qwen3",
    "Qwen3ForCausalLM",
    Qwen3Fields,
    fields={"attention_bias": "qkv_bias out_bias", "rms_norm_eps": "norm_eps"},
    tensors=PROJECTIONS | QK_NORM,
    qk_norm=True,
)


class MixtralFields(Rotary):
    intermediate_size: Size
    num_key_value_heads: Size | None = 8
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 1e6
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2


MIXTRAL = llama_like(
    "mixtral",
    "MixtralForCausalLM",
    MixtralFields,
    {
        "attention": attention({"sliding_window": "window"}),
        "moe": routed(
            "block_sparse_moe.",
            {"num_local_experts": "n_experts", "intermediate_size": "d_expert"},
            maps=("w1", "w3", "w2"),
        ),
    },
)


class OlmoeFields(Rotary):
    intermediate_size: Size
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-5
    attention_bias: bool = False
    clip_qkv: Annotated[Any, only(None)] = None
    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False


OLMOE = llama_like(
    "olmoe",
    "OlmoeForCausalLM",
    OlmoeFields,
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
    published=without("head_dim", after=published_rope),
)
