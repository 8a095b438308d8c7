"""Qwen3-Next: gated DeltaNet and gated attention, each with routed and shared experts."""

from __future__ import annotations

from models.delta import DeltaNet
from models.errors import UserError
from models.layouts.llama import llama_like
from models.layouts.parts import (
    GATED,
    attention,
    conv,
    ends,
    linear,
    plain_rope,
    published_rope,
    routed,
    same,
    scales,
    typed,
)
from models.links import Tensor
from models.translation import ANY, Fields, Part

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
        "moe": routed(
            "mlp.",
            {
                "num_experts": "n_experts",
                "moe_intermediate_size": "d_expert",
                "norm_topk_prob": "renormalize",
                "n_shared": "n_shared",
            },
            more=linear(shared_gate="shared_expert_gate")
            | {
                f"shared.{ours}": tensor.named(f"shared_expert.{tensor.theirs}")
                for ours, tensor in GATED.items()
            },
            shared_gate=True,
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
