"""What small layers claim beside the claims of every mixer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import Init
from isoflop.models.layers import LayerNorm, RMSNorm, ShortConv, gated
from isoflop.models.mixers.delta import unit


class Unit(nnx.Module):
    def __call__(self, x):
        return unit(x)


SUMMED = {
    "rms": lambda: RMSNorm(8, init=Init(0)),
    "layer": lambda: LayerNorm(8, init=Init(0)),
    "conv": lambda: ShortConv(8, 4, init=Init(0)),
    "unit": Unit,
}


def test_a_gate_keeps_nothing_but_its_inputs_for_the_backward_pass():
    gate, x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    out, pull = jax.vjp(lambda gate, x: gated(jax.nn.silu, gate, x), gate, x)
    np.testing.assert_allclose(out, jax.nn.silu(gate) * x, rtol=1e-6)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 1]
    assert len(kept) == 2
    for leaf, given in zip(kept, (gate, x), strict=True):
        np.testing.assert_array_equal(leaf, given)


@pytest.mark.parametrize("make", SUMMED.values(), ids=SUMMED.keys())
def test_one_sequence_is_summed_as_fast_as_many(make):
    """XLA's CPU code takes 4 to 25 times as long where a sum leaves out a leading axis of 1."""
    graph, state = nnx.split(make())

    def loss(state, x):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))

    x = jnp.ones((1, 16, 8))
    gradient = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(state, x).jaxpr
    sums = [eqn for eqn in gradient.eqns if eqn.primitive.name == "reduce_sum"]
    assert sums
    for eqn in sums:
        assert eqn.invars[0].aval.shape[0] > 1 or 0 in eqn.params["axes"]


def held(channel):
    """Bytes of temporary memory of the gradient of eight of these layers."""

    def loss(x, weights):
        for w in weights:
            x = x + channel(x, w)
        return (x * x).sum()

    x, weights = jnp.ones((512, 256)), [jnp.ones((3, 256, 256))] * 8
    compiled = jax.jit(jax.grad(loss)).lower(x, weights).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_what_is_computed_again_is_not_held_since_the_forward_pass():
    """A checkpoint's activations are: XLA's CPU code knows no barrier."""

    def by_checkpoint(x, w):
        gate = jax.checkpoint(lambda gate, x: jax.nn.silu(gate) * x)
        return gate(x @ w[0], x @ w[1]) @ w[2]

    def by_gate(x, w):
        return gated(jax.nn.silu, x @ w[0], x @ w[1]) @ w[2]

    assert held(by_gate) < held(by_checkpoint) - 4 * (512 * 256 * 4)
