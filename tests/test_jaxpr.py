"""The counter of FLOPs against counts made by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape

from isoflop.models.base import Init
from isoflop.models.errors import UserError
from isoflop.models.layers import ELU, GELU, SIGMOID, SILU, SOFTMAX, SOFTPLUS, LayerNorm, RMSNorm
from isoflop.models.mixers.attention import Attention
from isoflop.sim.cost.jaxpr import executed_flops, matmul_flops

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


def test_a_branch_inside_a_loop_counts_where_it_is_taken():
    """By the index of a map, scanned either way, and by a counter that is carried."""

    def branch(i, a, b):
        return jax.lax.switch(i // 4, [lambda: a @ b, lambda: jnp.zeros((3, 7))])

    def mapped(a, b):
        return jax.lax.map(lambda i: branch(i, a, b), jnp.arange(10))

    def backwards(a, b):
        first = jnp.arange(10).at[0].set(9)  # of the ten, only 1, 2 and 3 are below 4 then
        return jax.lax.scan(lambda c, i: (c, branch(i, a, b)), 0, first, reverse=True)[1]

    def counted(a, b):
        return jax.lax.fori_loop(3, 10, lambda i, c: c + branch(i, a, b), jnp.zeros((3, 7)))

    for function, turns in ((mapped, 4), (backwards, 3), (counted, 1)):
        assert matmul_flops(function, A, B) == turns * 2 * 3 * 5 * 7
        assert matmul_flops(jax.jit(jax.checkpoint(function)), A, B) == turns * 2 * 3 * 5 * 7


def test_a_loop_whose_turns_are_alike_is_walked_once():
    def deep(a, b):
        def turn(a, _):
            return jax.lax.cond(jnp.ones(()) > 0, lambda: a, lambda: a), jnp.sum(a @ b)

        return jax.lax.scan(turn, a, length=10**6)[1]

    assert matmul_flops(deep, A, B) == 10**6 * 2 * 3 * 5 * 7


def test_a_branch_that_data_choose_is_refused_unless_all_cost_the_same():
    def either(other):
        return lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: other(a, b))

    assert matmul_flops(either(lambda a, b: -a @ b), A, B) == 2 * 3 * 5 * 7
    with pytest.raises(UserError, match=r"depends on data.*\(here 0, 210\); .*jnp\.where"):
        matmul_flops(either(lambda a, b: jnp.zeros((3, 7))), A, B)


def test_of_forms_for_platforms_that_for_cpus_counts():
    def both(a, b):
        return jax.lax.platform_dependent(
            a, b, tpu=lambda a, b: jnp.zeros((3, 7)), cpu=lambda a, b: a @ b, default=twice
        )

    def twice(a, b):
        return (a @ b) @ jnp.ones((7, 7))

    assert matmul_flops(both, A, B) == 2 * 3 * 5 * 7


def test_what_no_output_needs_is_not_counted():
    def partly(a, b):
        return jax.jit(lambda: (a @ b, jnp.exp(a), a + 1))()[1]

    assert executed_flops(partly, A, B) == (0, 15)


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


N = 15  # numbers in A


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda a: a + 2 * a / (a - 1), 4 * N),
        (lambda a: jnp.exp(jnp.sin(a)) ** 2 + a**0.3, 5 * N),
        (lambda a: jax.lax.rsqrt(a) * jnp.tanh(a), 3 * N),
        (lambda a: a.sum(0), N),
        (lambda a: jnp.cumsum(a, 0), N),
        (lambda a: jnp.zeros(7).at[jnp.arange(15) % 7].add(a.reshape(-1)), N),
        (lambda a: -jnp.where(a > 0, a, jnp.abs(a)).T.astype(jnp.bfloat16).max(0), 0),
        (lambda a: jnp.sort(a)[:, ::-1], 0),
        (lambda a: jnp.arange(9) * 3 + jnp.argmax(a), 0),
        (lambda a: jax.lax.scan(lambda c, row: (c * row, c + 1), a[0], a)[0], N),
        (jax.nn.sigmoid, SIGMOID * N),
        (jax.nn.silu, SILU * N),
        (jax.nn.gelu, GELU * N),
        (jax.nn.elu, ELU * N),
        (jax.nn.softplus, SOFTPLUS * N),
        (jax.nn.log_sigmoid, SOFTPLUS * N),
        (jax.nn.softmax, SOFTMAX * N),
        (RMSNorm(5, init=Init(None)), 3 * RMSNorm.flops(5)),
        (RMSNorm(5, init=Init(None), learned=False), 3 * RMSNorm.flops(5, learned=False)),
        (LayerNorm(5, init=Init(None)), 3 * LayerNorm.flops(5)),
    ],
)
def test_elementwise_flops_follow_their_rule(function, flops):
    assert executed_flops(function, A) == (0, flops)


def test_a_primitive_that_the_rule_does_not_name_is_refused():
    with pytest.raises(UserError, match=r"igamma are not known; name it in sim/cost/jaxpr\.py"):
        executed_flops(lambda a: jax.scipy.special.gammainc(a, a), A)


@pytest.mark.parametrize("window", [None, 700, 5000])
@pytest.mark.parametrize("length", [2049, 4096, 8192, 20_000])
def test_attention_of_long_rows_costs_what_it_executes(length, window):
    """Where rows are taken in a loop of branches, and beyond, pair by pair of tiles."""
    config = Attention(n_heads=2, window=window)
    graph, params = nnx.split(nnx.eval_shape(lambda: config.build(8, init=Init(None))))
    x = Shape((1, length, 8), jnp.float32)
    cost = config.cost(8, length)
    executed = executed_flops(lambda p, x: nnx.merge(graph, p)(x), params, x)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed
