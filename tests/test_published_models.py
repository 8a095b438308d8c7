"""Published models from their config.json: parameters and bytes of state, exactly."""

import json

import pytest

from isoflop.models.checkpoints import shapes
from isoflop.models.checkpoints.published import facts, named, published, shape
from isoflop.models.errors import UserError

PER_TOKEN = {  # bytes of cache that a token adds at 16 bits
    "llama-2-7b": 524_288,  # 2 · 32 layers · 32 heads · 128 · 2 bytes
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "llama-3.1-405b": 516_096,
    "qwen3-32b": 262_144,
    "qwen3-235b-a22b": 192_512,
    "deepseek-v3": 70_272,  # 61 · (512 + 64) · 2: 70 KB a token (2505.09343, table 1)
    "deepseek-v2-lite": 31_104,
    "mixtral-8x7b": 131_072,
}


def per_token(name, context):
    model = published(name)
    return 2 * (model.state_size(context) - model.state_size(context - 1))


@pytest.mark.parametrize("name", list(facts()))
def test_parameters_are_the_published_ones_exactly(name):
    found, told = shape(name), facts()[name]
    assert found.model.cost(1).params + found.extra == told.params
    assert told.source


@pytest.mark.parametrize("name", PER_TOKEN)
def test_a_token_of_context_adds_the_published_bytes_of_cache(name):
    assert per_token(name, 1000) == PER_TOKEN[name]


def test_windows_stop_growing_and_recurrences_never_grow():
    assert per_token("mistral-7b", 4096) == 131_072
    assert per_token("mistral-7b", 4097) == 0
    assert per_token("gpt-oss-120b", 128) == 73_728  # 36 layers · 2 · 8 heads · 64 · 2 bytes
    assert per_token("gpt-oss-120b", 129) == 36_864  # half of the layers
    assert per_token("gemma-3-1b", 5000) == 4096  # 4 of 26 layers · 2 · 256 · 2 bytes
    assert per_token("jamba-v0.1", 1000) == 16_384  # 4 of 32 layers
    assert per_token("qwen3-next-80b-a3b", 1000) == 24_576  # 12 of 48 layers
    assert per_token("kimi-linear-48b-a3b", 1000) == 8064  # 7 of 27 layers, latent
    for name in ("mamba2-2.7b", "mamba-2.8b", "falcon-mamba-7b"):
        assert per_token(name, 1000) == 0
        assert published(name).state_size(1) > 0


def test_active_parameters_are_the_published_ones():
    """Qwen3: 22B of 235B, 3B of 30B; DeepSeek-V3: 37B; Mixtral: 12.9B."""
    billions = {"qwen3-235b-a22b": 22, "qwen3-30b-a3b": 3.3, "deepseek-v3": 37.5,
                "mixtral-8x7b": 12.9}  # fmt: skip
    for name, active in billions.items():
        assert published(name).cost(1).active_params / 1e9 == pytest.approx(active, rel=0.02)


def test_any_config_json_is_read_and_what_cannot_be_is_told(tmp_path):
    path = tmp_path / "config.json"
    told = dict(facts()["llama-3.1-8b"].config) | {"torch_dtype": "bfloat16"}
    scaled = {"rope_scaling": {"rope_type": "new"}, "quantization_config": {"quant_method": "fp8"}}
    path.write_text(json.dumps(told | scaled))
    for place in (path, tmp_path):
        assert named(str(place)).model == published("llama-3.1-8b")
    with pytest.raises(UserError, match="no published model 'llama-9'; use one of llama-2-7b"):
        named("llama-9")
    with pytest.raises(UserError, match="model_type='t5' is not known; use one of llama"):
        shapes.of({"model_type": "t5"})
    with pytest.raises(UserError, match="deepseek_v3 model lacks"):
        shapes.of({"model_type": "deepseek_v3", "hidden_size": 8})
    with pytest.raises(UserError, match="sizes that cannot be"):
        shapes.of(dict(facts()["phi-4"].config) | {"hidden_size": "many"})
