"""Hybrids of attention with a recurrence: Qwen3-Next, RecurrentGemma (Griffin), Jamba."""

from __future__ import annotations

import math

import ml_dtypes

from models.attention import Attention
from models.delta import DeltaNet
from models.errors import UserError
from models.griffin import RgLru
from models.layouts.llama import llama_like
from models.layouts.mamba import SELECTIVE_TENSORS
from models.layouts.parts import (
    ATTENTION,
    GATED,
    MLP,
    PROJECTIONS,
    ROPE,
    attention,
    conv,
    ends,
    experts,
    heads,
    linear,
    plain_rope,
    published_rope,
    same,
    scales,
    typed,
    without,
)
from models.mamba import Mamba
from models.mlp import SwiGLU
from models.moe import Moe
from models.translation import ANY, Fields, Part, Pattern, Tensor

FUSED = Tensor("", "(g x) d -> x g d", "x g d -> d (g x)")  # interleaved by key head


def plain_qwen3_next(fields: Fields) -> Fields:
    """Layers by type; the shared expert as a number of experts' sizes."""
    fields = plain_rope({"partial_rotary_factor": 0.25} | fields)
    depth, every = fields["num_hidden_layers"], fields.pop("full_attention_interval", None) or 4
    types = [f"{'linear' if (i + 1) % every else 'full'}_attention" for i in range(depth)]
    shared, size = fields.pop("shared_expert_intermediate_size"), fields["moe_intermediate_size"]
    if shared % size:
        raise UserError(
            f"config.json: shared_expert_intermediate_size={shared} must be a multiple of "
            f"moe_intermediate_size={size}; this model cannot be imported"
        )
    return fields | {"n_shared": shared // size, "layer_types": fields["layer_types"] or types}


def published_qwen3_next(fields: Fields) -> Fields:
    fields = published_rope(fields)
    shared = fields.pop("n_shared") * fields["moe_intermediate_size"]
    rope = {"partial_rotary_factor": 1.0} | fields["rope_parameters"]
    return fields | {"shared_expert_intermediate_size": shared, "rope_parameters": rope}


QWEN3_NEXT = llama_like(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    {
        "attention": attention(
            {"rms_norm_eps": "norm_eps"},
            {
                **linear(k="k_proj", v="v_proj", out="o_proj"),
                "q.kernel gate.kernel": Tensor(
                    "q_proj.weight", "(h p k) d -> p d (h k)", "1 d i -> d i"
                ),
                **scales(1.0, q_norm="q_norm", k_norm="k_norm"),
            },
            axes={"h": "n_heads", "k": "d_head"},
            qk_norm=True,
            gate=True,
        ),
        "delta": Part(
            DeltaNet,
            {
                "linear_num_key_heads": "n_heads",
                "linear_num_value_heads": "n_value_heads",
                "linear_key_head_dim": "d_key",
                "linear_value_head_dim": "d_value",
                "linear_conv_kernel_dim": "d_conv",
                "rms_norm_eps": "norm_eps",
            },
            "linear_attn.",
            {
                "q.kernel k.kernel v.kernel gate.kernel": FUSED.named("in_proj_qkvz.weight"),
                "beta.kernel decay.kernel": FUSED.named("in_proj_ba.weight"),
                **conv("conv1d"),
                **linear(out="out_proj"),
                **scales(norm="norm"),
                **same("A_log", "dt_bias"),
            },
            {"decay": "scalar"},
            {"g": "n_heads"},
        ),
        "moe": Part(
            Moe,
            {
                "num_experts": "n_experts",
                "num_experts_per_tok": "top_k",
                "moe_intermediate_size": "d_expert",
                "norm_topk_prob": "renormalize",
                "n_shared": "n_shared",
            },
            "mlp.",
            {
                **linear(router="gate", shared_gate="shared_expert_gate"),
                **experts("gate_proj", "up_proj", "down_proj"),
                **{
                    f"shared.{ours}": tensor.named(f"shared_expert.{tensor.theirs}")
                    for ours, tensor in GATED.items()
                },
            },
            {"shared_gate": True},
            {"e": "n_experts"},
        ),
    },
    defaults={
        "layer_types": None,
        "head_dim": 256,
        "num_key_value_heads": 2,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
    },
    neutral={
        "hidden_act": "silu",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "intermediate_size": ANY,  # of layers without experts, of which there are none
    },
    tensors=ends("model", "embed_tokens", "norm", 1.0),
    norm_shift=1.0,
    plain=plain_qwen3_next,
    published=published_qwen3_next,
    **typed(full_attention=("attention", "moe"), linear_attention=("delta", "moe")),
)


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


def read_jamba(fields: Fields) -> Pattern:
    """Attention and experts every so many layers, from an offset on."""

    def is_at(layer: int, kind: str) -> bool:
        return layer % fields[f"{kind}_layer_period"] == fields[f"{kind}_layer_offset"]

    return tuple(
        (
            "attention" if is_at(i, "attn") else "mamba",
            "moe" if is_at(i, "expert") and fields["num_experts"] > 1 else "mlp",
        )
        for i in range(fields["num_hidden_layers"])
    )


def write_jamba(pattern: Pattern) -> Fields:
    depth = len(pattern)
    found: Fields = {"num_hidden_layers": depth}
    for kind, there in (
        ("attn", ["attention" in layer for layer in pattern]),
        ("expert", ["moe" in layer for layer in pattern]),
    ):
        steps = [(p, o) for p in range(1, depth + 2) for o in range(p)]
        fits = [(p, o) for p, o in steps if there == [i % p == o for i in range(depth)]]
        if not fits:
            raise UserError(f"a jamba checkpoint has its {kind} layers at equal distances")
        found[f"{kind}_layer_period"], found[f"{kind}_layer_offset"] = fits[0]
    return found


def plain_jamba(fields: Fields) -> Fields:
    rank = fields["mamba_dt_rank"]
    return heads(fields) | {"mamba_dt_rank": None if rank == "auto" else rank}


JAMBA_MLP = Part(SwiGLU, MLP.fields, "feed_forward.", GATED)
JAMBA = llama_like(
    "jamba",
    "JambaForCausalLM",
    {
        "attention": Part(Attention, ATTENTION, "self_attn.", PROJECTIONS, {"rope_base": None}),
        "mamba": Part(
            Mamba,
            {
                "mamba_d_state": "d_state",
                "mamba_d_conv": "d_conv",
                "mamba_expand": "expand",
                "mamba_dt_rank": "dt_rank",
                "mamba_conv_bias": "conv_bias",
                "mamba_proj_bias": "bias",
                "rms_norm_eps": "norm_eps",
            },
            "mamba.",
            {
                **SELECTIVE_TENSORS,
                **scales(dt_norm="dt_layernorm", B_norm="b_layernorm", C_norm="c_layernorm"),
            },
            {"select_norm": "learned"},
        ),
        "mlp": JAMBA_MLP,
        "moe": Part(
            Moe,
            {
                "num_experts": "n_experts",
                "num_experts_per_tok": "top_k",
                "intermediate_size": "d_expert",
            },
            "feed_forward.",
            linear(router="router") | experts("gate_proj", "up_proj", "down_proj"),
            {"renormalize": False},
            {"e": "n_experts"},
        ),
    },
    defaults={
        "num_key_value_heads": 8,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
    neutral={"hidden_act": "silu", "sliding_window": None}
    | dict.fromkeys(("use_mamba_kernels", "use_mambapy", "use_associative_scan"), ANY)
    | dict.fromkeys(("num_logits_to_keep", "calc_logits_for_entire_prompt"), ANY),
    tensors=ends("model", "embed_tokens", "final_layernorm"),
    norms=("input_layernorm", "pre_ff_layernorm"),
    plain=plain_jamba,
    published=without("head_dim", after=lambda fields: fields),
    pattern_fields=(
        "num_hidden_layers",
        "attn_layer_period",
        "attn_layer_offset",
        "expert_layer_period",
        "expert_layer_offset",
    ),
    read_pattern=read_jamba,
    write_pattern=write_jamba,
)
