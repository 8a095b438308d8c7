"""Qwen3-Next: gated DeltaNet and gated attention, each with routed and shared experts."""

from __future__ import annotations

from typing import Annotated, Any

from isoflop.models.checkpoints.fields import SILU, Positive, Share, Size, Whole, only
from isoflop.models.checkpoints.formats.llama import llama_like
from isoflop.models.checkpoints.formats.parts import (
    GATED,
    attention,
    conv,
    ends,
    linear,
    routed,
    same,
    scales,
    typed,
)
from isoflop.models.checkpoints.formats.rope import PartlyRotary, plain_rope, published_partial_rope
from isoflop.models.checkpoints.links import Tensor
from isoflop.models.checkpoints.translation import Fields, Part
from isoflop.models.errors import UserError
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet

FUSED = Tensor("", "(g x) d -> x g d", "x g d -> d (g x)")  # interleaved by key head


class Qwen3NextFields(PartlyRotary):
    num_key_value_heads: Size | None = 2
    head_dim: Size = 256
    hidden_act: Annotated[Any, SILU] = "silu"
    rms_norm_eps: Positive = 1e-6
    partial_rotary_factor: Share = 0.25
    layer_types: list[str] | None = None
    full_attention_interval: Size = 4  # where there are no layer_types
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Whole = 512
    num_experts: Size = 512
    num_experts_per_tok: Size = 10
    norm_topk_prob: bool = True
    attention_bias: Annotated[Any, only(False)] = False
    decoder_sparse_step: Annotated[Any, only(1)] = 1
    mlp_only_layers: Annotated[Any, only([], None)] = None
    use_sliding_window: Annotated[Any, only(False)] = False

    # `intermediate_size` is that of layers without experts, of which there are none
    without_effect = PartlyRotary.without_effect + " intermediate_size"


def plain_qwen3_next(fields: Fields) -> Fields:
    """Layers by type; the shared expert as a number of experts' sizes."""
    fields = plain_rope(fields)
    depth, every = fields["num_hidden_layers"], fields.pop("full_attention_interval")
    types = [f"{'linear' if (i + 1) % every else 'full'}_attention" for i in range(depth)]
    shared, size = fields.pop("shared_expert_intermediate_size"), fields["moe_intermediate_size"]
    if shared % size:
        raise UserError(
            f"config.json: shared_expert_intermediate_size={shared} must be a multiple of "
            f"moe_intermediate_size={size}; this model cannot be imported"
        )
    return fields | {"n_shared": shared // size, "layer_types": fields["layer_types"] or types}


def published_qwen3_next(fields: Fields) -> Fields:
    fields = published_partial_rope(fields)
    shared = fields.pop("n_shared") * fields["moe_intermediate_size"]
    return fields | {"shared_expert_intermediate_size": shared}


QWEN3_NEXT = llama_like(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    Qwen3NextFields,
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
            absent=lambda width: Attention(n_heads=1),
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
    tensors=ends("model", "embed_tokens", "norm", 1.0),
    norm_shift=1.0,
    plain=plain_qwen3_next,
    published=published_qwen3_next,
    **typed(full_attention=("attention", "moe"), linear_attention=("delta", "moe")),
)
