"""Equal to the published implementations, for random small models of every family: `make parity`.

Each model is made by transformers, or by the authors' own code for RWKV-7, which transformers
lacks; read by us, and written again by us.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from isoflop.models.base import Init
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.checkpoints.translation import essence
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mamba2 import Mamba2
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.models.mixers.rglru import RgLru
from isoflop.models.rotary import LinearScaling, Llama3Scaling, YarnScaling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
published = import_module("published")  # needs torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
LENGTH, PROMPT, WRITTEN = 83, 19, 32  # a length that no chunk or block divides

SMALL = {"vocab_size": 97, "num_hidden_layers": 2, "hidden_size": 48, "pad_token_id": None}
HEADS = SMALL | {"intermediate_size": 56, "num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NEXT = HEADS | {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
GRIFFIN = HEADS | {"num_hidden_layers": 3, "attention_window_size": 11}
JAMBA = HEADS | {
    "num_hidden_layers": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 4,
    "mamba_d_state": 5,
}
RWKV7 = {"layers": 2, "heads": 2, "vocab_size": 97, "inner": 256}
BAMBA = HEADS | {
    "num_hidden_layers": 3,
    "head_dim": 8,
    "attn_layer_indices": [1],
    "mamba_n_heads": 6,
    "mamba_d_state": 10,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 32,
}
CASES = {
    "llama-gqa": ("llama", HEADS),
    "llama-odd-tied": (
        "llama",
        HEADS
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama-linear-rope": (
        "llama",
        HEADS
        | {"num_key_value_heads": 6, "head_dim": 10, "rms_norm_eps": 1e-3}
        | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "mistral-window": ("mistral", HEADS | {"sliding_window": 7}),
    "mistral-odd": (
        "mistral",
        HEADS | {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 8},
    ),
    "mistral-tied": ("mistral", HEADS | {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", HEADS),
    "qwen2-odd-tied": (
        "qwen2",
        HEADS
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True}
        | {"rope_parameters": LLAMA3},
    ),
    "qwen2-some-windows": (
        "qwen2",
        HEADS
        | {"num_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"]}
        | {"use_sliding_window": True, "sliding_window": 13},
    ),
    "qwen3": ("qwen3", HEADS | {"head_dim": 8}),
    "qwen3-odd-tied": (
        "qwen3",
        HEADS
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 6}
        | {"tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3-some-windows": (
        "qwen3",
        HEADS
        | {"num_hidden_layers": 3, "head_dim": 12, "max_window_layers": 1}
        | {"use_sliding_window": True, "sliding_window": 9},
    ),
    "mixtral": ("mixtral", HEADS | {"num_local_experts": 4}),
    "mixtral-window-tied": (
        "mixtral",
        HEADS
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "num_local_experts": 5}
        | {"sliding_window": 11, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
    "mixtral-one-of-many": (
        "mixtral",
        HEADS | {"num_local_experts": 9, "num_experts_per_tok": 1, "num_hidden_layers": 1},
    ),
    "olmoe": ("olmoe", HEADS | {"num_experts": 6, "num_experts_per_tok": 2}),
    "olmoe-odd-tied": (
        "olmoe",
        HEADS
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | {"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": True},
    ),
    "olmoe-bias": (
        "olmoe",
        HEADS | {"num_experts": 4, "num_experts_per_tok": 4, "attention_bias": True},
    ),
    "mamba": ("mamba", SMALL | {"state_size": 7}),
    "mamba-untied-bias": (
        "mamba",
        SMALL
        | {"tie_word_embeddings": False, "use_bias": True, "use_conv_bias": False}
        | {"expand": 3, "conv_kernel": 3, "time_step_rank": 5},
    ),
    "mamba-deep": ("mamba", SMALL | {"num_hidden_layers": 9, "state_size": 4}),
    "mamba2": (
        "mamba2",
        SMALL | {"num_heads": 6, "head_dim": 16, "n_groups": 2, "state_size": 10, "chunk_size": 32},
    ),
    "mamba2-odd-tied": (
        "mamba2",
        SMALL
        | {"num_heads": 3, "head_dim": 32, "n_groups": 3, "state_size": 5, "chunk_size": 16}
        | {"tie_word_embeddings": True, "use_bias": True},
    ),
    "mamba2-one-group": (
        "mamba2",
        SMALL
        | {"num_heads": 9, "head_dim": 16, "n_groups": 1, "state_size": 6, "expand": 3}
        | {"chunk_size": 50, "use_conv_bias": False},
    ),
    "falcon-mamba": ("falcon_mamba", SMALL | {"state_size": 6}),
    "falcon-mamba-untied": (
        "falcon_mamba",
        SMALL | {"tie_word_embeddings": False, "use_bias": True, "state_size": 5},
    ),
    "qwen3-next": ("qwen3_next", NEXT),
    "qwen3-next-tied": (
        "qwen3_next",
        NEXT
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True}
        | {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "norm_topk_prob": False},
    ),
    "qwen3-next-big-shared": (
        "qwen3_next",
        NEXT
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 5, "head_dim": 16}
        | {"shared_expert_intermediate_size": 24, "linear_conv_kernel_dim": 3}
        | {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
    ),
    "recurrent-gemma": ("recurrent_gemma", GRIFFIN),
    "recurrent-gemma-odd": (
        "recurrent_gemma",
        GRIFFIN
        | {"num_attention_heads": 3, "num_key_value_heads": 3, "attention_window_size": 40}
        | {"num_hidden_layers": 5, "attention_bias": True},
    ),
    "recurrent-gemma-untied": (
        "recurrent_gemma",
        GRIFFIN
        | {"tie_word_embeddings": False, "logits_soft_cap": 2.0, "num_hidden_layers": 2}
        | {"block_types": ["attention", "recurrent"]},
    ),
    "jamba": ("jamba", JAMBA),
    "jamba-odd-tied": (
        "jamba",
        JAMBA
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | {"attn_layer_period": 3, "attn_layer_offset": 0, "mamba_proj_bias": True},
    ),
    "jamba-no-experts": (
        "jamba",
        JAMBA | {"num_experts": 1, "num_experts_per_tok": 1, "mamba_dt_rank": 4},
    ),
    "bamba": ("bamba", BAMBA),
    "bamba-odd-tied": (
        "bamba",
        BAMBA
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | {"mamba_n_heads": 3, "mamba_n_groups": 3, "mamba_proj_bias": True, "mlp_bias": True}
        | {"attn_layer_indices": [0, 2], "head_dim": 16},
    ),
    "bamba-one-group": (
        "bamba",
        BAMBA
        | {"mamba_n_heads": 9, "mamba_expand": 3, "mamba_n_groups": 1, "mamba_conv_bias": False}
        | {"attention_bias": True, "mamba_d_conv": 3, "mamba_chunk_size": 50}
        | {"rope_parameters": LLAMA3 | {"partial_rotary_factor": 1.0}},
    ),
    "rwkv7": ("rwkv7", RWKV7),
    "rwkv7-odd": ("rwkv7", RWKV7 | {"layers": 3, "heads": 3, "inner": 40}),
    "rwkv7-one-head": ("rwkv7", RWKV7 | {"layers": 1, "heads": 1}),
    "falcon-mamba-eps": ("falcon_mamba", SMALL | {"mixer_rms_eps": 1e-2, "expand": 1}),
}
every_case = pytest.mark.parametrize("case", CASES)


@cache
def reference(case: str):
    """A random model of theirs, every parameter moved off its initial value; its folder."""
    model_type, fields = CASES[case]
    folder = Path(mkdtemp(prefix="parity-"))
    if model_type == "rwkv7":
        published.write_rwkv7(np.random.default_rng(len(case)), folder, **fields)
        return read(model_type, folder), folder
    torch.manual_seed(len(case))
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model, folder


def read(model_type: str, folder: Path):
    """Their model of a checkpoint that has all tensors and no other."""
    if model_type == "rwkv7":
        return published.Rwkv7(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@cache
def imported(case: str):
    return interop.load(reference(case)[1])


def applied(model):
    graph = nnx.split(model.abstract())[0]
    return lambda params: nnx.merge(graph, params)


def tokens(length: int = LENGTH, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 97, (batch, length))


def their_logits(model, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=False).logits.numpy()


def assert_close(got, want):
    assert np.abs(np.asarray(got) - want).max() < 1e-4 * np.abs(want).max()


@every_case
def test_logits_are_theirs(case):
    model, params = imported(case)
    apply = applied(model)
    ids = tokens()
    got = jax.jit(lambda p, x: apply(p)(x)[0])(params, jnp.asarray(ids, jnp.int32))
    assert_close(got, their_logits(reference(case)[0], ids))


@every_case
def test_greedy_decoding_writes_their_tokens(case):
    model, params = imported(case)
    apply, prompt = applied(model), tokens(PROMPT)
    want = reference(case)[0].generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        max_new_tokens=WRITTEN,
        min_new_tokens=WRITTEN,
        do_sample=False,
        eos_token_id=None,
    )

    def write(params, prompt):
        lm = apply(params)

        def follow(carry, given):
            state, last = carry
            state, logits = lm.step(state, jnp.where(given < 0, last, given))
            best = jnp.argmax(logits, -1).astype(jnp.int32)
            return (state, best), best

        blank = jnp.full((WRITTEN - 1, prompt.shape[0]), -1, jnp.int32)
        start = lm.init_state(prompt.shape[0], PROMPT + WRITTEN), prompt[:, 0]
        return jax.lax.scan(follow, start, jnp.concatenate([prompt.T, blank]))[1].T

    got = jax.jit(write)(params, jnp.asarray(prompt, jnp.int32))[:, PROMPT - 1 :]
    assert np.asarray(got).tolist() == want[:, PROMPT:].tolist()


@every_case
def test_parameters_are_as_many(case):
    model, _ = imported(case)
    assert model.cost(1).params == reference(case)[0].num_parameters()


@every_case
def test_what_we_write_they_read_with_the_same_logits(case, tmp_path):
    model, params = imported(case)
    weights = {key: np.asarray(leaf[...]) for key, leaf in interop.names(params).items()}
    interop.save(tmp_path, model, weights, CASES[case][0], shard_bytes=60_000)
    again, ids = read(CASES[case][0], tmp_path), tokens()
    assert again.num_parameters() == reference(case)[0].num_parameters()
    assert_close(their_logits(again, ids), their_logits(reference(case)[0], ids))
    assert essence(interop.load(tmp_path)[0]) == essence(model)


@pytest.mark.parametrize("model_type", sorted(set(interop.LAYOUTS) - {"rwkv7"}))
def test_fields_left_out_mean_what_they_mean_to_transformers(model_type):
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    layout = interop.LAYOUTS[model_type]
    declared = layout.schema.model_fields
    must = {name for name, field in declared.items() if field.is_required()} | {"head_dim"}
    required = {name: value for name, value in theirs.items() if name in must}
    assert essence(layout.read(required)) == essence(layout.read(theirs))


@pytest.mark.parametrize("model_type", sorted(set(interop.LAYOUTS) - {"rwkv7"}))
def test_every_field_of_theirs_is_known(model_type):
    """A field that transformers adds must be looked at."""
    theirs = set(transformers.AutoConfig.for_model(model_type).to_dict())
    schema = interop.LAYOUTS[model_type].schema
    assert theirs <= {*schema.model_fields, *schema.without_effect.split(), "architectures"}


# Other values of every option of every part.
OPTIONS = {
    Attention: {
        "n_heads": [4, 3],
        "n_kv_heads": [1, 6],
        "d_head": [10],
        "window": [None, 5],
        "rope_base": [None, 5e4],
        "rope_dims": [None, 4],
        "rope_scaling": [
            LinearScaling(factor=3.0),
            Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=32),
            YarnScaling(factor=4.0, original=32),
            YarnScaling(factor=4.0, original=64, fast=8.0, slow=2.0, amplitude=1.3),
        ],
        "qk_norm": [False, True, "joint"],
        "norm_eps": [1e-2],
        "qkv_bias": [False, True],
        "out_bias": [False, True],
        "gate": [False, True],
    },
    SwiGLU: {"d_ff": [20], "activation": ["silu", "gelu"], "bias": [False, True]},
    Moe: {
        "n_experts": [7],
        "top_k": [1, 3],
        "d_expert": [20],
        "n_shared": [0, 2],
        "shared_gate": [False, True],
        "capacity_factor": [2.0],
        "gate": ["sigmoid"],
        "renormalize": [False, True],
        "steered": [True],
        "route": ["expert"],
    },
    Mamba: {
        "d_state": [5],
        "expand": [3],
        "d_conv": [3],
        "dt_rank": [5],
        "conv_bias": [False],
        "bias": [True],
        "select_norm": ["none", "plain", "learned"],
        "norm_eps": [1e-2],
    },
    Mamba2: {
        "d_state": [5],
        "d_head": [8],
        "expand": [4],
        "d_conv": [3],
        "n_groups": [1, 2],
        "conv_bias": [False],
        "bias": [True],
        "norm_eps": [1e-2],
    },
    DeltaNet: {
        "n_heads": [1],
        "d_key": [5],
        "d_value": [5],
        "n_value_heads": [4],
        "decay": ["none", "scalar", "channel"],
        "negative_eigenvalues": [True],
        "d_conv": [3],
        "norm_eps": [1e-2],
    },
    RgLru: {"n_heads": [3], "d_rnn": [24], "d_conv": [3]},
    ModelConfig: {
        "tie_embeddings": [False, True],
        "norm": ["layer"],
        "norm_eps": [1e-2],
        "embed_norm": [True],
        "embed_scale": [2.0],
        "branch_scale": [0.5],
        "logit_cap": [None, 5.0],
    },
}
HOW = {"kind", "chunk", "block", "balance_weight", "z_weight"}  # no logit depends on them
BASES = {
    model_type: next(case for case, (kind, _) in CASES.items() if kind == model_type)
    for model_type in sorted(set(interop.LAYOUTS) - {"rwkv7"})
}


def changed(model: ModelConfig, kind, name: str, value) -> ModelConfig | None:
    """The model with an option of all its parts of a kind; None if it is so, or cannot be."""
    if kind is ModelConfig:
        told = [model]
    else:
        parts = [part for block in model.blocks for part in block.parts]
        told = [part for part in parts if type(part) is kind]
    if not told or all(
        getattr(one.resolved(48) if one is not model else one, name) == value for one in told
    ):
        return None

    def of(part):
        return type(part)(**dict(part) | {name: value}) if type(part) is kind else part

    try:
        if kind is ModelConfig:
            return of(model)
        blocks = tuple(Block(mixer=of(b.mixer), channel=of(b.channel)) for b in model.blocks)
        return ModelConfig(**dict(model) | {"blocks": blocks})
    except ValidationError:
        return None


@pytest.mark.parametrize("model_type", BASES)
def test_every_option_is_refused_or_means_the_same_to_them(model_type, tmp_path):
    base, written = imported(BASES[model_type])[0], []
    for kind, options in OPTIONS.items():
        fields = (
            set(kind.model_fields) - HOW - {"d_model", "vocab_size", "blocks", "dtype", "remat"}
        )
        assert set(options) == fields
        for name, value in ((name, value) for name, values in options.items() for value in values):
            model = changed(base, kind, name, value)
            if model is None:
                continue
            try:
                interop.fitting(model, model_type)
            except UserError:
                continue
            folder = tmp_path / str(len(written))
            written.append(f"{kind.__name__}.{name}={value}")
            assert_read_alike(folder, model, model_type, written[-1])
    assert len(written) >= 4


HYBRIDS = {
    "jamba": {"attn_layer_period": 9, "attn_layer_offset": 8},
    "bamba": {"attn_layer_indices": []},
    "recurrent_gemma": {"block_types": ["recurrent"]},
    "qwen3_next": {"layer_types": ["linear_attention"] * 3},
}
ATTENTION = {
    "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0},
    "bamba": {"attn_layer_indices": [0, 1, 2]},
    "recurrent_gemma": {"block_types": ["attention"]},
    "qwen3_next": {"layer_types": ["full_attention"] * 3},
}


@pytest.mark.parametrize("layers", [HYBRIDS, ATTENTION], ids=["none", "all"])
@pytest.mark.parametrize("model_type", HYBRIDS)
def test_hybrids_with_attention_nowhere_or_everywhere_are_written_back(
    model_type, layers, tmp_path
):
    fields = CASES[BASES[model_type]][1] | layers[model_type]
    config = transformers.AutoConfig.for_model(model_type, **fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    model = interop.load(tmp_path / "theirs")[0]
    assert_read_alike(tmp_path / "ours", model, model_type, str(layers[model_type]))


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_what_our_families_are_written_as_means_the_same_to_them(family, tmp_path):
    model = zoo.FAMILIES[family](64).model_copy(update={"vocab_size": 97})
    model_type = interop.fitting(model)[0].model_type
    assert_read_alike(tmp_path, model, model_type, family)


def assert_read_alike(folder: Path, model: ModelConfig, model_type: str, what: str):
    """Random weights of ours give the same logits where transformers reads what we wrote."""
    rng = np.random.default_rng(0)
    graph, params = nnx.split(model.build(init=Init(0)))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    weights = {key: np.asarray(leaf[...]) for key, leaf in interop.names(params).items()}
    interop.save(folder, model, weights, model_type)
    ids = tokens(29, 1)
    ours = jax.jit(lambda p, x: nnx.merge(graph, p)(x)[0])(params, jnp.asarray(ids, jnp.int32))
    want = their_logits(read(model_type, folder), ids)
    assert np.abs(np.asarray(ours) - want).max() < 1e-4 * np.abs(want).max(), what


FULL_SIZE = {
    "Llama-2-7B": (
        6_738_415_616,
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
        | {"num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000},
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 16}
        | {"vocab_size": 128256, "tie_word_embeddings": True},
    ),
    "Mistral-7B": (7_241_732_096, {"model_type": "mistral"}),
    "Qwen3-0.6B": (
        596_049_920,
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28}
        | {"tie_word_embeddings": True},
    ),
    "Mixtral-8x7B": (46_702_792_704, {"model_type": "mixtral"}),
    "OLMoE-1B-7B": (6_919_161_856, {"model_type": "olmoe", "intermediate_size": 1024}),
    "Mamba-130m": (129_135_360, {"model_type": "mamba", "num_hidden_layers": 24}),
    "Mamba2-130m": (
        128_989_632,
        {"model_type": "mamba2", "hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24}
        | {"n_groups": 1, "vocab_size": 50288, "tie_word_embeddings": True},
    ),
    "Falcon-Mamba-7B": (
        7_272_665_088,
        {"model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64}
        | {"vocab_size": 65024, "tie_word_embeddings": False},
    ),
    "Qwen3-Next-80B-A3B": (79_674_391_296, {"model_type": "qwen3_next"}),
    "RecurrentGemma-2B": (
        2_682_862_080,
        {"model_type": "recurrent_gemma", "intermediate_size": 15360, "num_key_value_heads": 1},
    ),
    "Jamba-v0.1": (51_570_323_328, {"model_type": "jamba"}),
    "Bamba-9B": (
        9_780_235_392,
        {"model_type": "bamba", "attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}
        | {"mamba_d_head": 64, "vocab_size": 128256},
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_models_of_full_size_have_their_parameters_without_arrays(name):
    total, fields = FULL_SIZE[name]
    config = transformers.AutoConfig.for_model(**fields)
    with torch.device("meta"):
        assert transformers.AutoModelForCausalLM.from_config(config).num_parameters() == total
    assert interop.LAYOUTS[fields["model_type"]].read(config.to_dict()).cost(1).params == total
