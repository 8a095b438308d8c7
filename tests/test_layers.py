"""What small layers claim beside the claims of every mixer."""

import jax
import jax.numpy as jnp
import numpy as np

from models.layers import gated


def test_a_gate_keeps_nothing_but_its_inputs_for_the_backward_pass():
    gate, x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    out, pull = jax.vjp(lambda gate, x: gated(jax.nn.silu, gate, x), gate, x)
    np.testing.assert_allclose(out, jax.nn.silu(gate) * x, rtol=1e-6)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 1]
    assert len(kept) == 2
    for leaf, given in zip(kept, (gate, x), strict=True):
        np.testing.assert_array_equal(leaf, given)
