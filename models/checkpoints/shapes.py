"""A model's arithmetic from its config.json, where nothing but costs is asked.

Families with a layout are read by it, without what changes no cost (scaled positions, quantised
weights). Others have a reader here that gives blocks of the same sizes, whatever logits they would
have: which function an MLP has, sinks and the like are no matter. Parameters that no block of ours
has, as biases of experts, are counted beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isoflop.models.checkpoints.fields import shown
from isoflop.models.checkpoints.formats import LAYOUTS
from isoflop.models.checkpoints.tensors import read_json
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.mla import Mla
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe

Fields = dict[str, Any]
NEUTRAL = {"quantization_config", "rope_scaling", "rope_parameters", "rope_theta"}


@dataclass(frozen=True)
class Shape:
    """Blocks of the published sizes, and parameters that none of them has."""

    model: ModelConfig
    extra: int = 0


def of_file(path: Path) -> Shape:
    """Of a config.json, or of a folder that has one. UserError for a family without a reader."""
    return of(read_json(path / "config.json" if path.is_dir() else path))


def of(config: Fields) -> Shape:
    """Of the fields of a config.json. UserError for a family without a reader."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in LAYOUTS:
        own = {name: value for name, value in config.items() if name not in NEUTRAL}
        return Shape(LAYOUTS[kind].read(LAYOUTS[kind].own(own)))
    if not isinstance(kind, str) or kind not in READERS:
        raise UserError(
            f"config.json: model_type={shown(kind)} is not known; use one of "
            f"{', '.join([*LAYOUTS, *READERS])}"
        )
    try:
        return READERS[kind](config)
    except KeyError as error:
        raise UserError(f"config.json of a {kind} model lacks {error.args[0]}; add it") from None
    except (TypeError, ZeroDivisionError, ValidationError) as error:
        words = str(error).splitlines()
        raise UserError(
            f"config.json of a {kind} model has sizes that cannot be ({words[0]}); compare it "
            "with the published one"
        ) from None


def _attention(c: Fields, **more: Any) -> Attention:
    told = {"n_kv_heads": c.get("num_key_value_heads"), "d_head": c.get("head_dim")}
    return Attention(n_heads=c["num_attention_heads"], **told, **more)


def _model(c: Fields, blocks: list[Block], tied: bool = False) -> ModelConfig:
    return ModelConfig(
        d_model=c["hidden_size"], vocab_size=c["vocab_size"], blocks=tuple(blocks),
        tie_embeddings=c.get("tie_word_embeddings", tied),
    )  # fmt: skip


def _phi3(c: Fields) -> Shape:
    """Phi-3 and 4: Llama's sizes, projections in one matrix."""
    block = Block(mixer=_attention(c), channel=SwiGLU(d_ff=c["intermediate_size"]))
    return Shape(_model(c, [block] * c["num_hidden_layers"]))


def _qwen3_moe(c: Fields) -> Shape:
    experts = Moe(
        n_experts=c["num_experts"], top_k=c["num_experts_per_tok"],
        d_expert=c["moe_intermediate_size"],
    )  # fmt: skip
    dense, every = SwiGLU(d_ff=c["intermediate_size"]), c.get("decoder_sparse_step", 1)
    alone = set(c.get("mlp_only_layers") or ())
    mixer = _attention(c, qk_norm=True)
    blocks = [
        Block(mixer=mixer, channel=dense if i in alone or (i + 1) % every else experts)
        for i in range(c["num_hidden_layers"])
    ]
    return Shape(_model(c, blocks))


def _gpt_oss(c: Fields) -> Shape:
    """Beside: a sink for each head, a bias for each expert's router, gate, up and down."""
    d, size, depth = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    experts = Moe(n_experts=c["num_local_experts"], top_k=c["num_experts_per_tok"], d_expert=size)
    types = c.get("layer_types") or ["sliding_attention", "full_attention"] * depth
    window = {"sliding_attention": c["sliding_window"], "full_attention": None}
    blocks = [
        Block(
            mixer=_attention(c, window=window[kind], qkv_bias=True, out_bias=True),
            channel=experts,
        )
        for kind in types[:depth]
    ]
    biases = experts.n_experts * (1 + 2 * size + d)
    return Shape(_model(c, blocks), depth * (c["num_attention_heads"] + biases))


def _gemma(c: Fields) -> Shape:
    """Gemma 2 and 3. Beside: two norms more in each layer, after the mixer and after the MLP."""
    depth, window = c["num_hidden_layers"], c["sliding_window"]
    third = c["model_type"] != "gemma2"
    every = c.get("sliding_window_pattern", 6 if third else 2)
    types = c.get("layer_types") or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(depth)
    ]
    blocks = [
        Block(
            mixer=_attention(
                c, window=window if kind == "sliding_attention" else None, qk_norm=third
            ),
            channel=SwiGLU(d_ff=c["intermediate_size"]),
        )
        for kind in types
    ]
    return Shape(_model(c, blocks, tied=True), 2 * depth * c["hidden_size"])


def _latent(c: Fields, turned: bool = True) -> Mla:
    return Mla(
        n_heads=c["num_attention_heads"], kv_rank=c["kv_lora_rank"], q_rank=c["q_lora_rank"],
        d_nope=c["qk_nope_head_dim"], d_rope=c["qk_rope_head_dim"], d_value=c["v_head_dim"],
        rope_base=10_000.0 if turned else None,
    )  # fmt: skip


def _with_experts(c: Fields, experts: Moe, mixers: list[Any]) -> list[Block]:
    """Dense MLPs in the first layers, experts in the others."""
    dense = SwiGLU(d_ff=c["intermediate_size"])
    first = c.get("first_k_dense_replace", 0)
    return [
        Block(mixer=mixer, channel=dense if i < first else experts)
        for i, mixer in enumerate(mixers)
    ]


def _deepseek(c: Fields) -> Shape:
    """DeepSeek-V2, V3, R1 and their descendants, without the heads for later tokens."""
    experts = Moe(
        n_experts=c["n_routed_experts"], top_k=c["num_experts_per_tok"],
        d_expert=c["moe_intermediate_size"], n_shared=c.get("n_shared_experts") or 0,
        steered=c["model_type"] == "deepseek_v3", balance_weight=0.0,
    )  # fmt: skip
    return Shape(_model(c, _with_experts(c, experts, [_latent(c)] * c["num_hidden_layers"])))


def _kimi_linear(c: Fields) -> Shape:
    """Beside, negative: the bias of the delta layers' output gate, which the release is without."""
    experts = Moe(
        n_experts=c["num_experts"], top_k=c["num_experts_per_token"],
        d_expert=c["moe_intermediate_size"], n_shared=c["num_shared_experts"],
        steered=True, balance_weight=0.0,
    )  # fmt: skip
    linear = c["linear_attn_config"]
    delta = DeltaNet(
        n_heads=linear["num_heads"], d_key=linear["head_dim"], d_value=linear["head_dim"],
        decay="channel", d_conv=linear["short_conv_kernel_size"],
    )  # fmt: skip
    full = set(linear["full_attn_layers"])  # counted from 1
    latent = _latent(c, turned=not c.get("mla_use_nope", False))
    mixers = [latent if i + 1 in full else delta for i in range(c["num_hidden_layers"])]
    biases = mixers.count(delta) * linear["num_heads"] * linear["head_dim"]
    return Shape(_model(c, _with_experts(c, experts, mixers)), -biases)


READERS: dict[str, Callable[[Fields], Shape]] = {
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "kimi_linear": _kimi_linear,
}
