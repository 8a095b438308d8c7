"""Published checkpoints give the published logits, survive a round trip, and are never guessed at.

The fixtures are what transformers computed (tests/fixtures/make.py); `make parity` compares live.
"""

import json
import os
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from fakes import run
from flax import nnx
from pydantic import AfterValidator
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel

from isoflop.experiments import context
from isoflop.experiments.cli.main import main
from isoflop.models.base import Init
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.checkpoints.formats import LAYOUTS
from isoflop.models.checkpoints.translation import essence
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.models.rotary import YarnScaling
from isoflop.sim.data import Corpus
from isoflop.sim.evaluate import checkpoint as inference
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget
from isoflop.sim.train.loop import names, train

FIXTURES = {
    path.stem: path
    for path in sorted((Path(__file__).parent / "fixtures").glob("*.npz"))
    if not path.stem.startswith("layer_")
}
every_family = pytest.mark.parametrize("name", FIXTURES)
SLOW = {"jamba", "qwen3_next"}  # seconds to compile; their parts are in the others
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "torch_dtype": "float16",
}


# turned into others by `plain`, or read by `read_pattern`
SPELLINGS = """
num_hidden_layers max_position_embeddings rope_parameters use_sliding_window layer_types
max_window_layers attn_layer_indices attn_layer_period attn_layer_offset expert_layer_period
expert_layer_offset block_types full_attention_interval shared_expert_intermediate_size
intermediate_size head_dim num_heads mamba_n_heads attn_rotary_emb partial_rotary_factor
hidden_ratio value_dim rope_scaling
"""


def folder(name: str, path: Path, config=(), **changed) -> Path:
    """The fixture as a checkpoint, with fields of its config and some of its tensors changed."""
    with np.load(FIXTURES[name]) as data:
        fields = json.loads(str(data["config"])) | dict(config)
        weights = {
            key.removeprefix("weights/"): data[key].astype(np.float32)
            for key in data.files
            if key.startswith("weights/")
        }
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(weights | changed, path / "model.safetensors")
    return path


def flat(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf[...]) for name, leaf in interop.names(params).items()}


def test_every_layout_has_a_fixture():
    assert set(FIXTURES) == set(LAYOUTS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FIXTURES]
)
def test_imported_weights_give_the_published_logits(name, tmp_path):
    model, params = interop.load(folder(name, tmp_path))
    graph = nnx.split(model.abstract())[0]
    with np.load(FIXTURES[name]) as data:
        tokens, want = data["tokens"], data["logits"]
    forward = jax.jit(lambda p, x: nnx.merge(graph, p)(x)[0]).lower(params, tokens)
    got = np.asarray(forward.compile()(params, tokens))
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@every_family
def test_import_and_export_are_one_table_in_two_directions(name, tmp_path):
    source = folder(name, tmp_path / "in")
    model, params = interop.load(source)
    interop.save(tmp_path / "out", model, flat(params), name)
    again, _ = interop.load(tmp_path / "out")
    assert essence(again) == essence(model)
    before, after = (
        safetensors.numpy.load_file(path / "model.safetensors")
        for path in (source, tmp_path / "out")
    )
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    for key, array in before.items():
        np.testing.assert_allclose(after[key], array, rtol=1e-6, atol=1e-6)


def test_shards_hold_what_one_file_holds(tmp_path):
    model, params = interop.load(folder("mixtral", tmp_path / "in"))
    written = interop.save(tmp_path / "out", model, flat(params), shard_bytes=1500)
    assert len(written) > 4
    again = flat(interop.load(tmp_path / "out")[1])
    for name, array in flat(params).items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("held", ["shards", "tokenizer.json", "merges.txt"])
def test_a_checkpoint_is_written_beside_no_other(held, tmp_path):
    """Whose index, or tokenizer, would be what is loaded; nothing of either is changed."""
    model, params = interop.load(folder("llama", tmp_path / "in"))
    out = tmp_path / "out"
    if held == "shards":
        interop.save(out, model, flat(params), shard_bytes=1500)
    else:
        out.mkdir()
        (out / held).write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    zeros = {name: np.zeros_like(array) for name, array in flat(params).items()}
    with pytest.raises(UserError, match=r"must hold no file of another.*; choose a new folder"):
        interop.save(out, model, zeros)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "README.md").write_text("a card")
    assert interop.save(tmp_path / "repository", model, zeros)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_files_of_a_checkpoint_have_the_umask_s_rights(umask, tmp_path):
    model, params = interop.load(folder("mixtral", tmp_path / "in"))
    before = os.umask(umask)
    try:
        written = interop.save(tmp_path / "out", model, flat(params), shard_bytes=1500)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("fields", "total", "active"),
    [
        (LLAMA, 6_738_415_616, 6_738_415_616),
        (
            LLAMA
            | {"model_type": "mixtral", "intermediate_size": 14336, "num_local_experts": 8}
            | {"num_experts_per_tok": 2, "num_key_value_heads": 8, "rope_theta": 1e6},
            46_702_792_704,
            12_879_925_248,
        ),
        (
            {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24}
            | {"vocab_size": 50280, "time_step_rank": 48, "intermediate_size": 1536},
            129_135_360,
            129_135_360,
        ),
    ],
    ids=["Llama-2-7B", "Mixtral-8x7B", "Mamba-130m"],
)
def test_published_configs_have_their_published_parameters(fields, total, active):
    cost = LAYOUTS[fields["model_type"]].read(fields).cost(1)
    assert (cost.params, cost.active_params) == (total, active)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("olmoe", {"clip_qkv": 8.0}, r"clip_qkv=8\.0 is not supported for olmoe, only None is"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu' is not supported for llama"),
        ("llama", {"attention_sinks": 4}, "field attention_sinks=4 is unknown for llama"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "type='dynamic' is not supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type=yarn lacks factor",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5}},
            "beta_slow=1.0 must be at most beta_fast=0.5",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}},
            "field rope_parameters.mscale=1.0 is unknown",
        ),
        ("mamba2", {"time_step_limit": [0.0, 0.5]}, r"time_step_limit=\[0\.0, 0\.5\] is not"),
        ("llama", {"is_causal": False}, "is_causal=False is not supported for llama, only True is"),
        ("mamba", {"is_causal": False}, "is_causal=False is not supported for mamba, only True is"),
        ("llama", {"attention_sinks": 0}, "field attention_sinks=0 is unknown for llama"),
        ("llama", {"a\nb": False}, r"field 'a\\nb'=False is unknown for llama"),
        ("llama", {"auto_map": {"AutoModel": "mine.Llama"}}, r"code of its own, 'mine\.Llama'"),
        ("jamba", {"auto_map": {"AutoModel": "mine.Jamba"}}, r"code of its own, 'mine\.Jamba'"),
        (
            "llama",
            {"architectures": ["MyForCausalLM"]},
            r"architectures=\['MyForCausalLM'\] is not",
        ),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (
            "qwen2",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 is not supported, only 1.0 is",
        ),
        ("bamba", {"partial_rotary_factor": 1.0}, "partial_rotary_factor=1.0 is not supported"),
        (
            "recurrent_gemma",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type=linear is not supported, only default is",
        ),
        ("bamba", {"attn_rotary_emb": 4}, "attn_rotary_emb=4 is not the 2 channels"),
        ("mistral", {"rope_theta": None}, "rope_theta=None is not possible"),
        ("mistral", {"rope_parameters": {"rope_theta": None}}, "rope_theta=None is not possible"),
        (
            "mistral",
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling and rope_parameters differ",
        ),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps=0 is not possible: input should be greater"),
        ("mamba", {"layer_norm_epsilon": -1.0}, r"layer_norm_epsilon=-1\.0 is not possible"),
        (
            "mixtral",
            {"num_experts_per_tok": 4},
            "num_experts_per_tok=4 must be at most num_local_experts=3; lower num_experts_per_tok",
        ),
        (
            "mistral",
            {"num_key_value_heads": 3},
            "num_attention_heads=2 must be a multiple of num_key",
        ),
        (
            "llama",
            {"num_attention_heads": 3},
            "hidden_size=8 must be a multiple of num_attention_he",
        ),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads=0 is not possible"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period=0 is not possible"),
        ("bamba", {"mamba_n_heads": 0}, "mamba_n_heads=0 is not possible"),
        ("qwen3_next", {"moe_intermediate_size": 0}, "moe_intermediate_size=0 is not possible"),
        ("rwkv7", {"hidden_ratio": "x"}, "hidden_ratio='x' is not possible"),
        ("recurrent_gemma", {"hidden_size": -16}, "hidden_size=-16 is not possible"),
        ("recurrent_gemma", {"logits_soft_cap": None}, "logits_soft_cap=None is not possible"),
        ("qwen3_next", {"partial_rotary_factor": "a"}, "partial_rotary_factor='a' is not possible"),
        ("llama", {"model_type": []}, r"model_type=\[\] is not supported; use one of llama"),
        ("llama", {"num_hidden_layers": 10_000}, "num_hidden_layers=10000 needs as many tensors"),
        ("recurrent_gemma", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not"),
        (
            "mixtral",
            {"num_local_experts": 10**9},
            "describes a model of .* parameters, and the wei",
        ),
        ("mamba", {"state_size": 2**31 - 1}, "describes a model of .* parameters, and the weights"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"]},
            "'sliding_attention' and there is no wind",
        ),
        ("qwen3", {"layer_types": ["chunked_attention"]}, "layer_types has 'chunked_attention'"),
        ("qwen3", {"num_hidden_layers": 7}, "layer_types names 1 layers and num_hidden_layers=7"),
        (
            "llama",
            {"hidden_size": "8"},
            "hidden_size='8' is not possible: input should be a valid integer",
        ),
        ("llama", {"model_type": "bert"}, "model_type='bert' is not supported; use one of llama"),
        ("llama", {"num_hidden_layers": 2}, r"lacks 13 tensors of a llama model: model\.layers\.1"),
        ("llama", {"attention_bias": False}, "has unexpected 4 tensors of a llama model"),
        (
            "llama",
            {"intermediate_size": 13},
            r"gate_proj\.weight has shape \(12, 8\) and config\.json says \(13, 8\)",
        ),
    ],
)
def test_what_is_not_understood_is_named(name, config, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        interop.load(folder(name, tmp_path, config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "llama",  # as SmolLM2's
            {
                "is_llama_config": True,
                "rope_interleaved": False,
                "_attn_implementation_autoset": True,
            }
            | {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}},
        ),
        ("bamba", {"attn_rotary_emb": 2}),
        ("llama", {"hidden_act": "swish"}),
        ("mamba", {"hidden_act": "swish"}),
        ("llama", {"is_causal": True, "partial_rotary_factor": 1.0, "temperature": 0.6}),
        (
            "jamba",
            {
                "auto_map": {
                    "AutoConfig": "configuration_jamba.JambaConfig",
                    "AutoModelForCausalLM": "modeling_jamba.JambaForCausalLM",
                }
            },
        ),
    ],
)
def test_fields_without_effect_at_their_values_change_nothing(name, config, tmp_path):
    plain, _ = interop.load(folder(name, tmp_path))
    model, _ = interop.load(folder(name, tmp_path, config))
    assert model == plain


@every_family
def test_no_field_is_declared_and_left_unread(name):
    """What is used by no table must be one of the spellings that `plain` turns into others."""
    layout = LAYOUTS[name]
    declared = layout.schema.model_fields
    told = {*layout.fields}.union(*(part.fields for part in layout.parts.values()))
    unread = {
        field
        for field, info in declared.items()
        if field not in told and not any(isinstance(m, AfterValidator) for m in info.metadata)
    }
    assert unread <= set(SPELLINGS.split())
    assert not set(layout.schema.without_effect.split()) & set(declared)


def test_a_head_beside_a_tied_embedding_must_be_its_copy(tmp_path):
    with np.load(FIXTURES["qwen2"]) as data:
        embed = data["weights/model.embed_tokens.weight"].astype(np.float32)
    interop.load(folder("qwen2", tmp_path, **{"lm_head.weight": embed}))
    for head in (embed + 1, embed[1:]):
        with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens"):
            interop.load(folder("qwen2", tmp_path, **{"lm_head.weight": head}))
    with pytest.raises(UserError, match=r"has unexpected 1 tensors .*: lm_head\.bias"):
        interop.load(folder("qwen2", tmp_path, **{"lm_head.bias": embed[:, 0]}))


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64", "uint16", "float8_e4m3fn"])
def test_only_floating_point_weights_are_read(dtype, tmp_path):
    norm = np.ones(8, np.dtype(dtype))
    path = folder("llama", tmp_path, **{"model.norm.weight": norm})
    with pytest.raises(
        UserError, match=r"model\.norm\.weight is stored as .*, and weights must be"
    ):
        interop.load(path)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_floating_point_weights_of_any_width_become_fp32(dtype, tmp_path):
    norm = np.full(8, 0.5, np.dtype(dtype))
    _, params = interop.load(folder("llama", tmp_path, **{"model.norm.weight": norm}))
    assert flat(params)["norm.scale"].dtype == np.float32
    np.testing.assert_array_equal(flat(params)["norm.scale"], 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    path = folder("llama", tmp_path, **{"model.norm.weight": np.full(8, value)})
    with pytest.raises(
        UserError, match=r"model\.norm\.weight has numbers that are NaN or infinite"
    ):
        interop.load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[" * 100_000, "config.json is nested too deeply"),
        ("config.json", '{"time_step_limit": {"__float__": []}}', "config.json is not JSON"),
        ("model.safetensors.index.json", '{"weight_map": null}', "must have a weight_map"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "must have a weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "must have a weight_map"),
        ("model.safetensors.index.json", "{}", "must have a weight_map"),
    ],
)
def test_damaged_json_is_refused_in_one_line(name, content, message, tmp_path):
    path = folder("llama", tmp_path)
    (path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        interop.load(path)
    assert "\n" not in str(error.value)


WITHOUT = {
    "jamba": {"attn_layer_period": 5, "attn_layer_offset": 4},
    "bamba": {"attn_layer_indices": []},
    "recurrent_gemma": {"block_types": ["recurrent"]},
    "qwen3_next": {"layer_types": ["linear_attention"] * 2},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_hybrid_without_attention_is_written_back(name, tmp_path):
    model = interop.read(folder(name, tmp_path, WITHOUT[name]))
    assert not any(isinstance(block.mixer, Attention) for block in model.blocks)
    weights = names(nnx.state(model.build(init=Init(0))))
    interop.save(tmp_path / "out", model, weights, name)
    again, params = interop.load(tmp_path / "out")
    assert essence(again) == essence(model)
    for key, array in flat(params).items():
        np.testing.assert_allclose(array, weights[key], atol=1e-6)


def test_what_a_format_cannot_say_is_not_written():
    def model(**options):
        block = Block(mixer=Attention(n_heads=2, **options), channel=SwiGLU(d_ff=8))
        return ModelConfig(d_model=16, vocab_size=9, blocks=(block,))

    for options, instead in (({"rope_dims": 4}, "bamba"), ({"rope_base": None}, "jamba")):
        for name in ("llama", "mistral", "qwen2", "qwen3"):
            with pytest.raises(UserError, match=f"a {name} checkpoint has no place") as error:
                interop.fitting(model(**options), name)
            assert "\n" not in str(error.value)
        assert interop.fitting(model(**options))[0].model_type == instead
    block = Block(mixer=Attention(n_heads=3, d_head=4), channel=SwiGLU(d_ff=8))
    odd = ModelConfig(d_model=16, vocab_size=9, blocks=(block,))
    with pytest.raises(
        UserError, match="hidden_size=16 must be a multiple of num_attention_heads=3"
    ):
        interop.fitting(odd, "llama")
    assert interop.fitting(odd)[0].model_type == "mistral"


def test_a_missing_field_is_named(tmp_path):
    fields = {name: value for name, value in LLAMA.items() if name != "vocab_size"}
    with pytest.raises(UserError, match=r"config\.json of a llama model lacks vocab_size"):
        LAYOUTS["llama"].read(fields)


def test_old_and_new_spellings_of_rope_are_one_model():
    linear = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert LAYOUTS["llama"].read(LLAMA | linear) == LAYOUTS["llama"].read(LLAMA | new)


def test_yarn_is_read_with_its_defaults_and_written_back():
    told = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    for more, scaling in (
        ({}, YarnScaling(factor=4, original=32)),
        (
            {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
            YarnScaling(factor=4, original=32, fast=16, slow=2, amplitude=1.3),
        ),
        ({"beta_fast": None, "attention_factor": None}, YarnScaling(factor=4, original=32)),
    ):
        model = LAYOUTS["llama"].read(LLAMA | {"rope_parameters": told | more})
        assert {block.mixer.rope_scaling for block in model.blocks} == {scaling}
        written = interop.fitting(model, "llama")[1]
        assert LAYOUTS["llama"].read(written) == model


def test_pickled_weights_are_refused_unread(tmp_path):
    folder("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    with pytest.raises(UserError, match=r"only as a pickle \(pytorch_model\.bin\)"):
        interop.load(tmp_path)


def test_nothing_is_read_before_all_shapes_are_known(tmp_path, monkeypatch):
    path = folder("llama", tmp_path, {}, **{"model.norm.weight": np.ones(9, np.float32)})
    monkeypatch.setattr(interop.Tensors, "read", None)
    with pytest.raises(UserError, match=r"has shape \(9,\) and config\.json says \(8,\)"):
        interop.load(path)


def test_tensors_are_read_one_at_a_time(tmp_path):
    """Reading takes the memory of the weights and little more; all at once, it took them twice."""
    block = Block(mixer=Attention(n_heads=4), channel=SwiGLU(d_ff=256))
    model = ModelConfig(d_model=128, vocab_size=64, blocks=tile(12, block))
    interop.save(tmp_path, model, names(nnx.state(model.build(init=Init(0)))))
    interop.load(tmp_path)  # imports and caches are not what is measured
    tracemalloc.start()
    _, params = interop.load(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * sum(array.nbytes for array in flat(params).values())


def test_a_model_without_a_published_layout_is_refused_with_the_reason():
    linear = ModelConfig(d_model=8, vocab_size=9, blocks=(Block(mixer=LinearAttention(n_heads=2)),))
    with pytest.raises(UserError, match="llama checkpoint has no place for the linear of block 0"):
        LAYOUTS["llama"].write(linear)
    gated = Block(mixer=Attention(n_heads=2, gate=True), channel=SwiGLU(d_ff=8))
    with pytest.raises(UserError, match=r"no place for blocks\.0\.mixer\.gate=True"):
        LAYOUTS["llama"].write(ModelConfig(d_model=8, vocab_size=9, blocks=(gated,)))
    unlike = tuple(Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=n)) for n in (8, 9))
    with pytest.raises(UserError, match="intermediate_size is one value in a llama checkpoint"):
        LAYOUTS["llama"].write(ModelConfig(d_model=8, vocab_size=9, blocks=unlike))


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_family_of_the_zoo_has_a_layout_or_is_refused_in_one_line(name):
    expected = {"dense": "llama", "moe": "mixtral"}
    model = zoo.FAMILIES[name](64)
    if name in expected:
        assert interop.fitting(model)[0].model_type == expected[name]
        return
    with pytest.raises(UserError, match="no published layout has a place") as error:
        interop.fitting(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("channel", "model_type"),
    [(SwiGLU(d_ff=8), "llama"), (Moe(n_experts=3, top_k=2, d_expert=4, block=8), "mixtral")],
)
def test_our_own_families_find_their_layout(channel, model_type, tmp_path):
    block = Block(mixer=Attention(n_heads=2), channel=channel)
    model = ModelConfig(d_model=8, vocab_size=9, blocks=tile(2, block))
    interop.save(tmp_path, model, names(nnx.state(model.build(init=Init(0)))))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    assert essence(interop.read(tmp_path)) == essence(model)


def test_tokens_are_those_of_tokenizer_json_or_bytes(tmp_path):
    block = Block(mixer=Attention(n_heads=2))
    model = ModelConfig(d_model=8, vocab_size=256, blocks=(block,))
    of_bytes = Checkpoint(tmp_path, model, None)
    assert of_bytes.decode(of_bytes.encode("naïve")) == "naïve"
    with pytest.raises(UserError, match=r"no tokenizer\.json, and vocab_size=99 is not the 256"):
        Checkpoint(tmp_path, model.model_copy(update={"vocab_size": 99}), None).encode("a")
    words = {"to": 0, "be": 1, "or": 2, "not": 3}
    Tokenizer(WordLevel(words)).save(str(tmp_path / "tokenizer.json"))
    of_words = Checkpoint(tmp_path, model, None)
    assert of_words.encode("not").tolist() == [3]
    assert of_words.decode(np.array([0, 1])) == "to be"
    with pytest.raises(UserError, match="gives token 3, and the model's vocab_size is 2"):
        Checkpoint(tmp_path, model.model_copy(update={"vocab_size": 2}), None).encode("not")


def byte_tokenizer(path: Path, template: str, **options) -> None:
    """A tokenizer.json of the 256 bytes and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    special = [("<s>", 256), ("</s>", 257)]
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    if options:
        tokenizer.enable_truncation(options["truncate"])
        tokenizer.enable_padding(length=options["pad"])
    tokenizer.save(str(path / "tokenizer.json"))


def forward(model):
    """(parameters, tokens) → the logits of the whole text at once."""
    graph = nnx.split(model.abstract())[0]
    return jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens[None])[0][0])


def nats(model, params, tokens) -> np.ndarray:
    """Of each token but the first."""
    log = np.asarray(jax.nn.log_softmax(forward(model)(params, tokens)[:-1]))
    return -log[np.arange(len(tokens) - 1), tokens[1:]]


def greedy(model, params, given, many) -> np.ndarray:
    """Tokens after those given."""
    logits = forward(model)
    tokens = np.zeros(len(given) + many, np.int32)
    tokens[: len(given)] = given
    for i in range(len(given), len(tokens)):
        tokens[i] = np.argmax(logits(params, tokens)[i - 1])
    return tokens[len(given) :]


def test_what_a_tokenizer_adds_is_context_and_no_text(tmp_path):
    """A template's tokens are neither predicted nor counted; truncation and padding are off."""
    block = Block(mixer=Attention(n_heads=2))
    model = ModelConfig(d_model=8, vocab_size=258, blocks=(block,))
    params = nnx.split(model.build(init=Init(0)))[1]
    text = "no text is longer than this one, " * 9
    n = len(text)
    found = {}
    for template in ("$A </s>", "<s> $A </s>"):
        byte_tokenizer(tmp_path, template, truncate=64, pad=400)
        found[template] = Checkpoint(tmp_path, model, params).loss(text, 1000)
        assert len(Checkpoint(tmp_path, model, params).encode(text)) == n
    ids = Checkpoint(tmp_path, model, params).encode(text)
    for template, tokens in (("$A </s>", ids), ("<s> $A </s>", np.concatenate([[256], ids]))):
        each = nats(model, params, tokens)
        assert found[template].tokens == len(each)
        np.testing.assert_allclose(found[template].nats_per_token, each.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            found[template].bits_per_byte, each.mean() / np.log(2), rtol=1e-5
        )


def test_windows_predict_every_token_of_a_text_once(tmp_path):
    block = Block(mixer=Attention(n_heads=2))
    model = ModelConfig(d_model=8, vocab_size=256, blocks=(block,))
    params = nnx.split(model.build(init=Init(0)))[1]
    one = Checkpoint(tmp_path, model, params)
    text = "of fifty-three bytes, which no window of sixteen fits"
    ids = one.encode(text)
    each = [nats(model, params, ids[i : i + 17]) for i in range(0, len(ids) - 1, 16)]
    loss = one.loss(text, 16)
    assert (loss.tokens, loss.window) == (len(ids) - 1, 16)
    np.testing.assert_allclose(loss.nats_per_token, np.concatenate(each).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":"1.0"', r'"version":"\u001b[31m\n"', "cannot read .*tokenizer.json"),
        (
            '"single":[{"SpecialToken":{"id":"<s>"',
            '"single":[{"SpecialToken":{"id":"<x>"',
            "<x>|no entry",
        ),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(old, new, message, tmp_path, capfd):
    byte_tokenizer(tmp_path, "<s> $A </s>")
    path = tmp_path / "tokenizer.json"
    text = json.dumps(json.loads(path.read_text()), separators=(",", ":"))
    assert old in text
    path.write_text(text.replace(old, new, 1))
    model = ModelConfig(d_model=8, vocab_size=258, blocks=(Block(mixer=Attention(n_heads=2)),))
    with pytest.raises(UserError, match=message) as error:
        Checkpoint(tmp_path, model, None).encode("a")
    assert str(error.value).isprintable()


def test_a_sample_follows_the_beginning_token_and_no_ending_one(tmp_path):
    block = Block(mixer=Attention(n_heads=2))
    model = ModelConfig(d_model=8, vocab_size=258, blocks=(block,))
    params = nnx.split(model.build(init=Init(0)))[1]
    byte_tokenizer(tmp_path, "<s> $A </s>")
    one = Checkpoint(tmp_path, model, params)
    after = one.decode(greedy(model, params, [256, *one.encode("In the")], 9))
    assert one.write("In the", 9) == after


def test_logits_in_pieces_are_the_logits_at_once(tmp_path, monkeypatch):
    block = Block(mixer=Attention(n_heads=2))
    model = ModelConfig(d_model=8, vocab_size=256, blocks=(block,))
    params = nnx.split(model.build(init=Init(0)))[1]
    text = "a text of some length, but not of many windows"
    whole = Checkpoint(tmp_path, model, params).loss(text, 40)
    monkeypatch.setattr(inference, "HEAD_ROWS", 7)
    pieces = Checkpoint(tmp_path, model, params).loss(text, 40)
    np.testing.assert_allclose(pieces.nats_per_token, whole.nats_per_token, rtol=1e-6)


def test_a_checkpoint_goes_through_the_context_experiment(tmp_path):
    path = folder("mistral", tmp_path / "mine")
    (row,) = context.measure(
        families=(), lengths=(16,), quantities=("state_bytes",), checkpoints=(path,)
    )
    assert (row["family"], row["value"]) == ("mine", 4 * interop.read(path).state_size(16))


def test_a_trained_run_is_exported_imported_measured_and_sampled(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = run(
        steps=80,
        data=Corpus(name="kjv"),
        model=run().model.model_copy(update={"vocab_size": 256}),
        budget=Budget(steps=80, batch=8, seq_len=32, eval_tokens=256),
        optim=run().optim.model_copy(update={"lr": 0.02}),
    )
    ((done, weights),) = train([one])
    Store(Path("runs")).save(done, weights)
    model = one.model
    assert main(["export", one.key[:6], "out"]) == 0
    Path("text.txt").write_text("a text of some length, but not of many windows")
    assert done.loss < 4
    capsys.readouterr()
    options = ["--text", "text.txt", "--sample", "In the", "--tokens", "5", "--seq-len", "16"]
    assert main(["import", "out", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == model.cost(1).params
    assert found["tokens"] == 45
    np.testing.assert_allclose(found["bits per byte"], found["nats per token"] / np.log(2))
    assert 2 < found["nats per token"] < 4.5  # untrained it is about log 256, 5.5
    assert len(found["samples"]["In the"]) > 0
    assert main(["import", "out", "--text", "gone.txt"]) == 2
    assert main(["export", "zzz", "out"]) == main(["export", "*", "out"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert main(["import", "out", *options, "--context", "9"]) == 2
    assert "a prompt of 6 tokens and 5 to write need" in capsys.readouterr().err
