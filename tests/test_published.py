"""Equal to published layers, for random small ones: `make parity` runs these beside whole models.

Each mixer, all parameters moved off their initial values, against tests/published.py.
"""

from importlib import import_module

import jax
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import Init
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mla import Mla
from isoflop.models.mixers.rnn import Lstm, MinGru
from isoflop.models.rotary import YarnScaling

pytest.importorskip("torch")
published = import_module("published")  # needs torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
SQUARE = (1 + 0.1 * np.log(40)) ** 2  # of YaRN at a factor of 40, DeepSeek-V3's
D_MODEL, LENGTH = 24, 83  # a length that no chunk divides


def sizes(kind, **options):
    """Odd heads; heads of other sizes than d_model / n_heads; one head and another chunk."""
    return {
        "odd-heads": kind(n_heads=3, **options),
        "unequal": kind(n_heads=2, d_key=6, d_value=9, **options),
        "one-head": kind(n_heads=1, chunk=7, **options),
    }


ROWS = {
    "linear-keys": (published.linear, sizes(LinearAttention, decay="none", normalizer="keys")),
    "linear": (published.linear, sizes(LinearAttention, decay="none")),
    "simple-gla": (published.linear, sizes(LinearAttention, decay="scalar")),
    "gla": (published.linear, sizes(LinearAttention, decay="channel")),
    "retnet": (published.linear, sizes(LinearAttention, decay="fixed", rope_base=1e4)),
    "deltanet": (published.delta, sizes(DeltaNet, decay="none", d_conv=3)),
    "gated-deltanet": (published.delta, sizes(DeltaNet)),
    "gated-deltanet-negative": (published.delta, sizes(DeltaNet, negative_eigenvalues=True)),
    "kda": (published.delta, sizes(DeltaNet, decay="channel")),
    "kimi": (
        published.kimi,
        {
            "odd-heads": DeltaNet(n_heads=3, decay="channel"),
            "other-size": DeltaNet(n_heads=5, d_key=6, d_value=6, decay="channel", d_conv=3),
            "one-head": DeltaNet(n_heads=1, decay="channel", norm_eps=1e-3, chunk=11),
        },
    ),
    "mla": (
        published.mla,
        {
            "queries-ranked": Mla(n_heads=3, kv_rank=10, q_rank=7, d_nope=5, d_rope=4, d_value=6),
            "queries-straight": Mla(n_heads=2, kv_rank=5, d_nope=4, d_rope=6, d_value=3, chunk=16),
            "yarn": Mla(
                n_heads=2,
                kv_rank=8,
                d_nope=4,
                d_rope=8,
                d_value=4,
                score_scale=SQUARE,
                rope_scaling=YarnScaling(factor=40, original=64, amplitude=1.0),
            ),
        },
    ),
    "lstm": (
        published.lstm,
        {"same": Lstm(), "wider": Lstm(d_hidden=31), "narrower": Lstm(d_hidden=7, chunk=5)},
    ),
    "mingru": (
        published.mingru,
        {"same": MinGru(), "wider": MinGru(expand=2), "chunked": MinGru(expand=3, chunk=5)},
    ),
}


@pytest.mark.parametrize(
    ("layer", "config"),
    [
        pytest.param(layer, config, id=f"{name}-{size}")
        for name, (layer, configs) in ROWS.items()
        for size, config in configs.items()
    ],
)
def test_both_forms_give_the_published_layers_outputs(layer, config):
    rng = np.random.default_rng(0)
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
    x = rng.normal(size=(LENGTH, D_MODEL)).astype(np.float32)
    weights = {k: np.asarray(leaf[...], np.float64) for k, leaf in interop.names(params).items()}
    want = layer(weights, x.astype(np.float64), config)

    def recurrent(params, x):
        mixer = nnx.merge(graph, params)
        return jax.lax.scan(mixer.step, mixer.init_state(1, LENGTH), x[:, None])[1][:, 0]

    parallel = jax.jit(lambda p, x: nnx.merge(graph, p)(x[None])[0])
    for form in (parallel, jax.jit(recurrent)):
        assert np.abs(np.asarray(form(params, x)) - want).max() < 1e-4 * np.abs(want).max()
