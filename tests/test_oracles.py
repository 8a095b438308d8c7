"""Equal to published layers that transformers lacks: `make parity` runs these beside the others.

Each mixer, all parameters moved off their initial values, against tests/oracles.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import safetensors.numpy
from flax import nnx

from models import interop
from models.base import Init
from models.delta import DeltaNet
from models.linear import LinearAttention

pytestmark = pytest.mark.parity
D_MODEL, LENGTH = 24, 83
MIXERS = {
    "gla-odd-heads": (oracles.gla, LinearAttention(n_heads=3, decay="channel")),
    "gla-unequal": (oracles.gla, LinearAttention(n_heads=2, d_key=5, d_value=9, decay="channel")),
    "gla-one-head": (oracles.gla, LinearAttention(n_heads=1, decay="channel", chunk=7)),
    "retnet-odd-heads": (oracles.retnet, LinearAttention(n_heads=3, decay="fixed")),
    "retnet-unequal": (
        oracles.retnet,
        LinearAttention(n_heads=4, d_key=3, d_value=10, decay="fixed", chunk=32),
    ),
    "retnet-one-head": (oracles.retnet, LinearAttention(n_heads=1, decay="fixed", chunk=9)),
    "kda-odd-heads": (oracles.kda, DeltaNet(n_heads=3, decay="channel")),
    "kda-unequal": (oracles.kda, DeltaNet(n_heads=2, d_key=7, d_value=5, decay="channel")),
    "kda-one-head": (oracles.kda, DeltaNet(n_heads=1, decay="channel", d_conv=3, chunk=11)),
}


def assert_close(got, want):
    assert np.abs(np.asarray(got) - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", MIXERS)
def test_both_forms_give_the_published_layers_outputs(name):
    oracle, config = MIXERS[name]
    rng = np.random.default_rng(0)
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
    x = rng.normal(size=(LENGTH, D_MODEL)).astype(np.float32)
    weights = {k: np.asarray(leaf[...], np.float64) for k, leaf in interop.names(params).items()}
    want = oracle(weights, x.astype(np.float64), config.n_heads)
    assert_close(jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, x[None])[0], want)

    def recurrent(params, x):
        mixer = nnx.merge(graph, params)
        return jax.lax.scan(mixer.step, mixer.init_state(1, LENGTH), x[:, None])[1][:, 0]

    assert_close(jax.jit(recurrent)(params, x), want)


@pytest.mark.parametrize(
    ("layers", "d", "heads"), [(1, 12, 3), (3, 24, 2), (4, 30, 5)], ids=["one", "three", "four"]
)
def test_rwkv7_gives_the_published_logits_in_both_forms_and_survives_export(
    layers, d, heads, tmp_path
):
    rng = np.random.default_rng(layers)
    weights, config = oracles.random_rwkv7(rng, layers, d, heads, vocab=37)
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    model, params = interop.load(tmp_path)
    assert model.cost(1).params == sum(array.size for array in weights.values())
    graph = nnx.split(nnx.eval_shape(lambda: model.build(init=Init(None))))[0]
    tokens = rng.integers(0, 37, (2, LENGTH)).astype(np.int32)
    want = oracles.rwkv7(weights, config, tokens)
    assert_close(jax.jit(lambda p, x: nnx.merge(graph, p)(x)[0])(params, tokens), want)

    def recurrent(params, tokens):
        lm = nnx.merge(graph, params)
        return jnp.moveaxis(jax.lax.scan(lm.step, lm.init_state(2, LENGTH), tokens.T)[1], 0, 1)

    assert_close(jax.jit(recurrent)(params, tokens), want)
    flat = {name: np.asarray(leaf[...]) for name, leaf in interop.names(params).items()}
    interop.save(tmp_path / "out", model, flat)
    again = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)
