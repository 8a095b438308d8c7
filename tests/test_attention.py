"""What tiles of attention must hold beside the claims of every mixer: memory, and skipped work."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from isoflop.models.base import Init
from isoflop.models.kernels import attention as tiled
from isoflop.models.mixers.attention import Attention


def arrays(jaxpr: Jaxpr) -> Iterator[int]:
    """Sizes of everything a jaxpr and those inside it compute."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from arrays(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(x) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


def in_form(form: str, monkeypatch) -> None:
    """Trace what that platform runs."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **forms: forms[form](*args))


@pytest.mark.parametrize("form", ["cpu", "default", "tpu"])
@pytest.mark.parametrize("length", [2048, 8192, 32768])
def test_what_is_held_at_once(length, form, monkeypatch):
    """Forward and backward; the largest arrays are activations, or a part of one head's row on a
    CPU, every head's diagonal on a GPU, and a tile of every head on a TPU and of too many tiles.
    """
    in_form(form, monkeypatch)
    config, d = Attention(n_heads=4), 32
    graph, params = nnx.split(nnx.eval_shape(lambda: config.build(d, init=Init(None))))
    x = jax.ShapeDtypeStruct((1, length, d), jnp.float32)
    gradient = jax.grad(lambda p, x: jnp.sum(nnx.merge(graph, p)(x) ** 2), argnums=(0, 1))
    largest = max(arrays(jax.make_jaxpr(gradient)(params, x).jaxpr))
    tile = config.tile(length)
    part = min(tile, tiled.SIDE)
    scores = {"cpu": part * length, "default": 4 * tile * length, "tpu": 4 * tile * tile}
    if length // tile > (tiled.ROWS if form == "cpu" else tiled.UNROLLED):
        form = "tpu"
    assert largest == max(length * d, scores[form])


def test_sines_are_computed_only_where_positions_are_not_known_beforehand():
    graph, params = nnx.split(Attention(n_heads=2).build(16, init=Init(0)))
    x, place = jnp.zeros((1, 8, 16)), jnp.arange(8)[None]

    def text(position: jax.Array | None) -> str:
        return str(jax.make_jaxpr(lambda x: nnx.merge(graph, params)(x, position))(x))

    assert "= sin " in text(place)
    assert "= sin " not in text(None)


def test_long_rows_go_in_equal_parts_that_are_neither_long_nor_short():
    sides = {tile: tiled._side(8192, tile) for tile in (64, 256, 320, 448, 512, 1024)}
    assert sides == {64: 64, 256: 256, 320: 160, 448: 224, 512: 256, 1024: 256}
    assert tiled._side(8192, 257) == 257  # a prime goes whole
    assert tiled._side(tiled.LONG - 1, 512) == 512


def held(batch: int, heads: int, length: int, tile: int) -> int:
    """Bytes of temporary memory of attention, forward and backward."""
    q = jax.ShapeDtypeStruct((batch, heads, length, 8), jnp.float32)

    def both(q, k, v, d_out):
        out, pull = jax.vjp(partial(tiled.attend, position=None, tile=tile, window=None), q, k, v)
        return out, pull(d_out)

    return jax.jit(both).lower(q, q, q, q).compile().memory_analysis().temp_size_in_bytes


def test_long_rows_are_held_one_after_another():
    """Scores, weights and their gradients of one row; of all eight rows there would be 13.8."""
    length, tile = 2048, 256
    assert held(1, 1, length, tile) < 4 * (4 * tile * length)


def test_heads_are_held_some_after_others():
    """Two rows of all heads' scores, beside their inputs; of all at once there are 7.5."""
    assert held(16, 8, 256, 64) < 2 * (4 * 16 * 8 * 64 * 256)


def test_heads_go_in_equal_parts_that_hold_about_a_mebibyte_of_scores():
    parts = {length: tiled._at_once(128, 64 * length) for length in (64, 256, 512, 8192)}
    assert parts == {64: 64, 256: 16, 512: 8, 8192: 1}
    assert tiled._at_once(17, 64 * 256) == 17  # a prime goes whole rather than one by one


ONE, TWO, ALL, PLAIN, MASKED = 1, 2**17, 2**30, (None, False), (100, True)  # heads at once


@pytest.mark.parametrize(
    ("scores", "window", "packed"),
    [
        (TWO, *MASKED),
        (ALL, *PLAIN),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in ((ONE, *MASKED), (ONE, *PLAIN), (TWO, *PLAIN), (ALL, *MASKED))
        ),
    ],
)
def test_all_forms_agree(scores, window, packed, monkeypatch):
    """Outputs and gradients by rows, side by side and in a loop over parts of them, by diagonals
    and pair by pair; two queries share a key.
    """
    length = 300
    monkeypatch.setattr(tiled, "SCORES", scores)
    rng = np.random.default_rng(0)
    q, k, v, direction = (
        jnp.asarray(rng.normal(size=(2, heads, length, 8)), jnp.float32) for heads in (4, 2, 2, 4)
    )
    position = None
    if packed:
        position = jnp.stack([jnp.arange(length) % size for size in (100, 170)])

    def outputs(form: str) -> list[np.ndarray]:
        in_form(form, monkeypatch)
        attend = partial(tiled.attend, position=position, tile=128, window=window)
        out, pull = jax.vjp(jax.jit(lambda q, k, v: attend(q, k, v)), q, k, v)
        return [np.asarray(x) for x in (out, *pull(direction))]

    rows, *others = (outputs(form) for form in ("cpu", "default", "tpu"))
    monkeypatch.setattr(tiled, "LONG", 1)
    monkeypatch.setattr(tiled, "SIDE", 64)
    others.append(outputs("cpu"))
    for one, *same in zip(rows, *others, strict=True):
        for other in same:
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


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
    """Beyond 512 tokens the default tile grows; what it computes does not."""
    config = Attention(n_heads=2, window=300)
    assert (config.tile(512), config.tile(513), config.tile(1100)) == (64, 128, 192)
    narrow = config.model_copy(update={"chunk": 64})
    graph, params = nnx.split(config.build(8, init=Init(0)))
    graphs = [graph, nnx.split(narrow.build(8, init=Init(0)))[0]]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1100, 8)), jnp.float32)
    wide, fine = (jax.jit(lambda p, x, g=g: nnx.merge(g, p)(x))(params, x) for g in graphs)
    np.testing.assert_allclose(wide, fine, rtol=1e-5, atol=1e-6)
