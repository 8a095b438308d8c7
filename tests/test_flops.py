"""The counter of FLOPs against counts made by hand, and the conventions against formulas."""

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Shape

from models import zoo
from models.attention import Attention
from models.errors import UserError
from models.lm import Block, ModelConfig, tile
from models.mlp import SwiGLU
from sim.data import Corpus
from sim.flops import causal_flops, matmul_flops, param_counts, training_flops
from sim.optim import AdamW
from sim.spec import Budget, Run

A, B = Shape((3, 5), jnp.float32), Shape((5, 7), jnp.float32)


def test_a_product_counts_two_per_multiply_and_add():
    assert matmul_flops(lambda a, b: a @ b, A, B) == 2 * 3 * 5 * 7


def test_batched_and_transposed_products_count_alike():
    q, k = Shape((2, 4, 6, 5), jnp.float32), Shape((2, 4, 9, 5), jnp.float32)
    assert matmul_flops(lambda q, k: jnp.einsum("bhtk,bhsk->bhts", q, k), q, k) == (
        2 * 2 * 4 * 6 * 9 * 5
    )


def test_a_scan_counts_its_body_once_per_iteration():
    def ten(a, b):
        return jax.lax.scan(lambda c, _: (c, a @ b), 0, length=10)[1]

    assert matmul_flops(ten, A, B) == 10 * 2 * 3 * 5 * 7


def test_jit_remat_vmap_and_custom_derivatives_are_seen_through():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    for wrap in (jax.jit, jax.checkpoint, lambda f: f):
        assert matmul_flops(wrap(product), A, B) == 2 * 3 * 5 * 7
    stacked = Shape((4, 3, 5), jnp.float32)
    assert matmul_flops(jax.vmap(product, (0, None)), stacked, B) == 4 * 2 * 3 * 5 * 7


def test_a_gradient_of_a_product_costs_two_more():
    assert matmul_flops(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1)), A, B) == (
        3 * 2 * 3 * 5 * 7
    )


def test_a_branch_counts_its_dearer_side():
    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert matmul_flops(either, A, B) == 2 * 3 * 5 * 7


def test_a_convolution_counts_its_taps():
    x, w = Shape((2, 8, 20), jnp.float32), Shape((6, 8, 4), jnp.float32)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "VALID")

    assert matmul_flops(conv, x, w) == 2 * 2 * 6 * 17 * 8 * 4


def test_a_loop_of_unknown_length_is_refused():
    def loop(a, b):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + (a @ b)[:, :5], a)

    with pytest.raises(UserError, match=r"jax\.lax\.scan"):
        matmul_flops(loop, A, B)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_model_costs_what_its_forward_pass_executes(family):
    from flax import nnx

    from models.base import Init

    config = zoo.FAMILIES[family](32, 3, 61)
    graph, params = nnx.split(nnx.eval_shape(lambda: config.build(init=Init(None))))
    tokens = Shape((2, 75), jnp.int32)
    assert config.cost(75, batch=2).matmul_flops == matmul_flops(
        lambda p, x: nnx.merge(graph, p)(x), params, tokens
    )
    state = jax.eval_shape(lambda p: nnx.merge(graph, p).init_state(2, 75), params)
    assert config.step_cost(75, batch=2).matmul_flops == matmul_flops(
        lambda p, s, x: nnx.merge(graph, p).step(s, x), params, state, Shape((2,), jnp.int32)
    )


def test_causal_attention_pays_for_the_keys_it_sees():
    d, h, length, vocab = 32, 4, 100, 50
    config = ModelConfig(
        d_model=d,
        vocab_size=vocab,
        blocks=tile(3, Block(mixer=Attention(n_heads=h), channel=SwiGLU(d_ff=64))),
    )
    pairs = length * (length + 1) // 2
    projections = 2 * length * (4 * d * d + 3 * d * 64)
    attention = 4 * d * pairs + 4 * h * pairs  # products, and softmax at 4 per score
    assert causal_flops(config, length) == 3 * (projections + attention) + 2 * length * d * vocab


def test_conventions_of_a_run_follow_their_formulas():
    config = zoo.moe(32, 2)
    run = Run(
        model=config,
        data=Corpus(name="kjv"),
        optim=AdamW(lr=0.01, warmup_steps=5),
        budget=Budget(steps=20, batch=4, seq_len=64),
    )
    flops, counts, tokens = training_flops(run), param_counts(config), 20 * 4 * 64
    assert flops["6ND"] == 6 * counts["total"] * tokens
    assert flops["6ND_non_embedding"] == 6 * (counts["total"] - 2 * 256 * 32) * tokens
    assert flops["6ND_active"] == 6 * counts["active_non_embedding"] * tokens
    assert flops["matmul"] == 3 * 20 * config.cost(64, 4).matmul_flops
    assert flops["causal"] < flops["executed"]
    assert counts["active"] < counts["total"]
