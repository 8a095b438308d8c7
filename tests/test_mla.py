"""Latent attention as DeepSeek-V3 publishes it; its cache is a latent and a rotary key."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import Init, count
from isoflop.models.errors import UserError
from isoflop.models.mixers.mla import Mla

FIXTURE = Path(__file__).parent / "fixtures" / "layer_mla.npz"
V3 = Mla(n_heads=128, kv_rank=512, q_rank=1536)


@pytest.fixture(scope="module")
def layer():
    """(mixer with the published layer's weights, its input, its output)."""
    with np.load(FIXTURE) as file:
        arrays = {name: file[name] for name in file.files}
    config = Mla(**json.loads(str(arrays["config"])))
    graph, params = nnx.split(config.build(arrays["x"].shape[1], init=Init(0)))
    told = {
        path: leaf.replace(jnp.asarray(arrays[f"weights/{'.'.join(map(str, path))}"], jnp.float32))
        for path, leaf in nnx.to_flat_state(params)
    }
    mixer = nnx.merge(graph, nnx.from_flat_state(told.items()))
    return mixer, arrays["x"], arrays["out"]


def test_the_plain_and_the_absorbed_form_give_deepseek_v3s_outputs(layer):
    mixer, x, want = layer[0], jnp.asarray(layer[1]), layer[2]
    plain = mixer(x[None])[0]
    state = mixer.init_state(1, len(x))
    _, absorbed = jax.lax.scan(mixer.step, state, x[:, None])
    _, prompt = mixer.prefill(x[None], mixer.init_state(1, len(x)))
    for got in (plain, absorbed[:, 0], prompt[0]):
        assert np.abs(np.asarray(got) - want).max() < 1e-5 * np.abs(want).max()


def test_a_token_of_deepseek_v3s_cache_is_576_numbers_a_layer():
    """2405.04434, table 1: 4.5 d_h n_layers of d_h = 128, in place of 2 · 128 heads · 128."""
    assert V3.state_size(7168, 101) - V3.state_size(7168, 100) == 512 + 64
    small = Mla(n_heads=2, kv_rank=5, d_nope=4, d_rope=2, d_value=3)
    shapes = jax.eval_shape(lambda: small.build(8, init=Init(0)).init_state(1, 11))
    assert count(shapes) == small.state_size(8, 11)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="d_value=9 must be at most d_nope \\+ d_rope = 6"):
        Mla(n_heads=1, kv_rank=4, d_nope=4, d_rope=2, d_value=9).check(8)
    with pytest.raises(UserError, match="even number"):
        Mla(n_heads=1, kv_rank=4, d_rope=3).check(8)
