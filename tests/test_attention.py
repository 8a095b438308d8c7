"""What tiles of attention must hold beside the claims of every mixer: memory, and skipped work."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from models import tiled
from models.attention import Attention
from models.base import Init


def arrays(jaxpr: Jaxpr) -> Iterator[int]:
    """Sizes of everything a jaxpr and those inside it compute."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from arrays(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(x) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


@pytest.mark.parametrize("form", ["cpu", "default"])
@pytest.mark.parametrize("length", [2048, 8192])
def test_nothing_grows_with_the_square_of_the_length(length, form, monkeypatch):
    """Forward and backward; the largest arrays are activations, or of every head one tile on a CPU
    and one diagonal of tiles on an accelerator.
    """
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **forms: forms[form](*args))
    config, d = Attention(n_heads=4), 32
    graph, params = nnx.split(nnx.eval_shape(lambda: config.build(d, init=Init(None))))
    x = jax.ShapeDtypeStruct((1, length, d), jnp.float32)
    gradient = jax.grad(lambda p, x: jnp.sum(nnx.merge(graph, p)(x) ** 2), argnums=(0, 1))
    largest = max(arrays(jax.make_jaxpr(gradient)(params, x).jaxpr))
    tile = config.tile(length)
    scores = config.n_heads * tile * (tile if form == "cpu" else length)
    assert largest == max(length * d, scores)


@pytest.mark.parametrize("window", [None, 1, 5, 8, 9, 100])
@pytest.mark.parametrize("tile", [1, 4, 7, 64])
def test_the_tiles_are_those_with_a_key_that_is_seen(tile, window):
    length = 3 * 7 * 4
    place = jnp.arange(length)
    seen = np.asarray(tiled.seen(place, place, window, None))[0, 0, 0]
    padded = np.pad(seen, [(0, -length % tile)] * 2)
    n = len(padded) // tile
    some = padded.reshape(n, tile, n, tile).any((1, 3))
    assert (tiled.pairs(length, tile, window) == np.argwhere(some)).all()
    assert tiled.count(length, tile, window) == some.sum()


def test_a_sequence_of_a_wide_tile_equals_one_of_narrow_tiles():
    """Beyond 1024 tokens the default tile changes; what it computes does not."""
    config = Attention(n_heads=2, window=300)
    assert (config.tile(1024), config.tile(1025)) == (64, 256)
    narrow = config.model_copy(update={"chunk": 64})
    graph, params = nnx.split(config.build(8, init=Init(0)))
    graphs = [graph, nnx.split(narrow.build(8, init=Init(0)))[0]]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1100, 8)), jnp.float32)
    wide, fine = (jax.jit(lambda p, x, g=g: nnx.merge(g, p)(x))(params, x) for g in graphs)
    np.testing.assert_allclose(wide, fine, rtol=1e-5, atol=1e-6)
