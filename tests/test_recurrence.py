"""The gated recurrence: its three forms are one function, for gates however near to 0 or 1."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isoflop.models.kernels import delta_rule, recurrence, rwkv7, selective_scan
from isoflop.models.mixers.delta import unit

LENGTH, D_K, D_V = 40, 3, 4
FORMS = {
    "associative": recurrence.associative,
    "chunked": lambda *x: recurrence.chunked(*x, chunk=16)[1],
    "chunk-of-all": lambda *x: recurrence.chunked(*x, chunk=1000)[1],
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
scalar_or_channel = pytest.mark.parametrize("gates", [1, D_K], ids=["scalar", "channel"])


def inputs(batch: int, gates: int, log_a, length: int = LENGTH, dtype=np.float32):
    """q, k, v, log_a for two heads; `log_a(rng, shape)` draws the gates."""
    rng = np.random.default_rng(batch + gates)
    q, k, v = (
        jnp.asarray(rng.normal(size=(batch, 2, length, size)), dtype) for size in (D_K, D_K, D_V)
    )
    return q, k, v, jnp.asarray(log_a(rng, (batch, 2, length, gates)), dtype)


def moderate(rng, shape):
    return np.log(rng.uniform(0.5, 1, shape))


def extreme(rng, shape):
    """Every magnitude from 1e-8 to 1e4, runs of exact zeros, and resets."""
    gates = -(10.0 ** rng.uniform(-8, 4, shape))
    kind = rng.integers(0, 4, (shape[0], 1, 1, 1))
    gates = np.where(kind == 1, np.where(rng.random(shape) < 0.9, -1e-3, gates), gates)
    gates = np.where(kind == 2, np.where(rng.random(shape) < 0.9, 0.0, -1e4), gates)
    return np.where(kind == 3, gates[:, :, :1], gates)


def value_and_gradients(form):
    def loss(*x):
        out = form(*x)
        return jnp.sum(
            out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        ), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@cache
def sequential(gates: int):
    return value_and_gradients(recurrence.sequential)(*inputs(2, gates, moderate))


def assert_close(got, want):
    scale = np.abs(np.asarray(want)).max()
    assert np.abs(np.asarray(got) - np.asarray(want)).max() <= 1e-5 * scale


@every_form
@scalar_or_channel
def test_every_form_equals_the_sequential_one(form, gates):
    x = inputs(2, gates, moderate)
    (_, want), oracle = sequential(gates)
    (_, got), gradients = value_and_gradients(form)(*x)
    assert_close(got, want)
    for one, other in zip(gradients, oracle, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("batch", [1, 3])
def test_heads_of_values_share_a_head_of_keys(batch):
    """Two heads of keys for six of values equal each head of keys written three times."""
    q, k, *_ = inputs(batch, 1, moderate)
    rng = np.random.default_rng(0)
    v = jnp.asarray(rng.normal(size=(batch, 6, LENGTH, D_V)), jnp.float32)
    log_a = jnp.asarray(moderate(rng, (batch, 6, LENGTH, 1)), jnp.float32)

    def repeated(q, k, v, log_a):
        return recurrence.sequential(jnp.repeat(q, 3, 1), jnp.repeat(k, 3, 1), v, log_a)

    (_, want), oracle = value_and_gradients(repeated)(q, k, v, log_a)
    (_, got), gradients = value_and_gradients(FORMS["chunked"])(q, k, v, log_a)
    assert_close(got, want)
    for one, other in zip(gradients, oracle, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("together", "length", "calls"),
    [(4, 128, 4), (8, 128, 8), (16, 128, 16), (100, 128, 32), (16, 13 * 16, 4), (64, 5, 4)],
    ids=["1", "2", "4", "all 8", "13 is prime", "shorter than a chunk"],
)
def test_few_sequences_take_several_chunks_at_once(monkeypatch, together, length, calls):
    """`calls`: sequences × chunks that the body sees. The result is that of one at a time."""
    x = inputs(4, 1, moderate, length)
    want = recurrence.chunked(*x, chunk=16)[1]
    seen, body = [], recurrence._by_heads
    monkeypatch.setattr(recurrence, "TOGETHER", [2 * together] * 2)  # there are two heads
    monkeypatch.setattr(recurrence, "_by_heads", lambda S, x: seen.append(len(x[0])) or body(S, x))
    assert_close(recurrence.chunked(*x, chunk=16)[1], want)
    assert seen == [calls]


def test_a_cpu_takes_many_sequences_chunk_by_chunk_and_an_accelerator_all_at_once(monkeypatch):
    """80 heads of 3 chunks: one loop over chunks there, one over the states between them here."""
    x = inputs(40, 1, moderate)
    form = {}
    for name in ("cpu", "default"):
        with monkeypatch.context() as patch:
            patch.setattr(
                jax.lax, "platform_dependent", lambda *args, name=name, **forms: forms[name](*args)
            )
            program = jax.make_jaxpr(lambda *x: recurrence.chunked(*x, chunk=16)[1])(*x)
            form[name] = re.findall(r"length=(\d+)", str(program))
    assert form == {"cpu": ["1", "3"], "default": ["3", "1"]}  # the inner loop is printed first


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "gates", [pytest.param(1, marks=pytest.mark.slow), D_K], ids=["scalar", "channel"]
)
def test_ten_thousand_extreme_gates_change_nothing(gates, dtype):
    """Two heads of 1250 sequences a case: beside the oracle, and finite gradients."""
    x = inputs(1250, gates, extreme, dtype=dtype)
    want = np.asarray(jax.jit(recurrence.sequential)(*x))
    (_, got), gradients = value_and_gradients(lambda *x: recurrence.chunked(*x, chunk=32)[1])(*x)
    scale = np.abs(want).max((2, 3))
    assert (np.abs(np.asarray(got) - want).max((2, 3)) <= 1e-5 * scale).all()
    for g in gradients:
        assert g.dtype == dtype
        assert np.isfinite(np.asarray(g, np.float32)).all()


def test_gates_of_one_sum_and_gates_of_zero_forget():
    q, k, v, _ = inputs(1, 1, moderate)
    keep = recurrence.chunked(q, k, v, jnp.zeros((1, 2, LENGTH, 1)), chunk=16)[1]
    causal = np.tril(np.einsum("bhtk,bhsk->bhts", q, k))
    assert_close(keep, np.einsum("bhts,bhsv->bhtv", causal, v))
    forget = recurrence.chunked(q, k, v, jnp.full((1, 2, LENGTH, 1), -1e4), chunk=16)[1]
    assert_close(forget, np.einsum("bhtk,bhtk->bht", q, k)[..., None] * v)


@pytest.mark.parametrize("beta", [1.0, 1.9])
def test_a_repeated_key_keeps_its_digits_in_the_delta_rule(beta):
    """Powers of L reach 1e21 here before they cancel: the inverse must not be made of them."""
    lower = np.tril(np.full((1, 1, 64, 64), beta, np.float32), -1)
    exact = np.linalg.inv(np.eye(64) + lower[0, 0].astype(np.float64))
    assert_close(jax.jit(delta_rule.unit_lower_inverse)(jnp.asarray(lower))[0, 0], exact)


def half_rounded(*x):
    """The second half of the sequences as bf16 holds them: mixers compute from that in fp32."""
    half = x[0].shape[0] // 2
    return tuple(z.at[half:].set(z[half:].astype(jnp.bfloat16).astype(z.dtype)) for z in x)


def stepped(step):
    """A rule's step, scanned over its inputs (b, h, t, …), the state first."""

    def run(*x):
        S = jnp.zeros((*x[0].shape[:2], D_K, D_V))
        tokens = tuple(jnp.moveaxis(z, 2, 0) for z in x)
        return jnp.moveaxis(jax.lax.scan(lambda S, z: step(S, *z), S, tokens)[1], 0, 2)

    return jax.jit(run)


def assert_same_and_finite(form, oracle, x):
    """Within 1e-5 of each head's largest value, with finite gradients."""
    want = np.asarray(oracle(*x))
    (_, got), gradients = value_and_gradients(form)(*x)
    scale = np.abs(want).max((2, 3))
    assert (np.abs(np.asarray(got) - want).max((2, 3)) <= 1e-5 * scale).all()
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)


@scalar_or_channel
def test_extreme_gates_change_nothing_in_the_delta_rule(gates):
    q, k, v, log_a = inputs(500, gates, extreme)
    rng = np.random.default_rng(0)
    beta = jnp.asarray(rng.uniform(0, 2, (500, 2, LENGTH, 1)), jnp.float32)
    q, k, v, beta, log_a = half_rounded(q, k, v, beta, log_a)
    x = (q, unit(k), v, beta, log_a)
    assert_same_and_finite(
        lambda *x: delta_rule.chunked(*x, chunk=16)[1], stepped(delta_rule.step), x
    )


@pytest.mark.slow
def test_extreme_gates_change_nothing_in_rwkv7():
    r, k, v, log_w = inputs(500, D_K, extreme)
    rng = np.random.default_rng(0)
    key, rate = (jnp.asarray(rng.uniform(-1, 1, k.shape), jnp.float32) for _ in range(2))
    r, k, v, key, rate, log_w = half_rounded(r, k, v, key, jnp.abs(rate), log_w)
    x = (r, k, v, unit(key), rate * unit(key), log_w)
    assert_same_and_finite(lambda *x: rwkv7.chunked(*x, chunk=16)[1], stepped(rwkv7.step), x)


def sequential_mamba(u, dt, A, B, C):
    tokens = tuple(jnp.moveaxis(z, 1, 0) for z in (u, dt, B, C))
    h = jnp.zeros((len(u), *A.shape))
    y = jax.lax.scan(lambda h, x: selective_scan.step(A, h, x), h, tokens)[1]
    return jnp.moveaxis(y, 0, 1)


def test_states_that_forget_at_once_keep_the_digits_of_their_gradient():
    """A state less its inflow would be what is left of the last one, but for rounding."""
    rng = np.random.default_rng(0)
    u, dt = (jnp.asarray(z, jnp.float32) for z in rng.uniform(0.5, 1.5, (2, 2, LENGTH, 3)))
    B, C = (jnp.asarray(z, jnp.float32) for z in rng.normal(size=(2, 2, LENGTH, 2)))
    A = -jnp.asarray([[1.0] * 3, [16.0] * 3], jnp.float32)

    def gradient(form):
        return np.asarray(jax.grad(lambda A: form(u, dt, A, B, C).sum())(A))

    got = gradient(lambda *x: selective_scan.scan(*x, None, chunk=16)[1])
    for state, want in zip(got, gradient(sequential_mamba), strict=True):
        assert_close(state, want)


@pytest.mark.parametrize("most", [1, 2, 11], ids=["one", "two", "all 6"])
def test_chunks_side_by_side_equal_tokens_in_turn(monkeypatch, most):
    """An accelerator's form of Mamba's scan, with this many of 6 chunks at a time."""
    rng = np.random.default_rng(0)
    u, dt = (jnp.asarray(z, jnp.float32) for z in rng.uniform(0.1, 1, (2, 2, 48, 3)))
    B, C = (jnp.asarray(z, jnp.float32) for z in rng.normal(size=(2, 2, 48, 2)))
    keep = jnp.asarray(rng.uniform(size=(2, 48, 1)) > 0.1, jnp.float32)
    A = -jnp.asarray([[1.0] * 3, [4.0] * 3], jnp.float32)

    def value(A, B, C, tokens):
        return selective_scan.scan(*tokens, A, B, C, keep, chunk=32)[1]

    x = A, B, C, (u, dt)
    want = value_and_gradients(value)(*x)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    monkeypatch.setattr(
        selective_scan, "BESIDE", most * selective_scan.SHORT * u[:, 0].size * len(A)
    )
    lengths = set(re.findall(r"length=(\d+)", str(jax.make_jaxpr(value)(*x))))
    assert lengths == {str(selective_scan.SHORT), str(6 // min(most, 6))}
    got = value_and_gradients(value)(*x)
    for one, other in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_close(one, other)


def test_extreme_steps_change_nothing_in_mambas_scan():
    """Its gradient is written by hand: beside autodiff's of the sequential form."""
    rng = np.random.default_rng(0)
    batch, d_inner, d_state = 2500, 3, 2
    u = rng.normal(size=(batch, LENGTH, d_inner))
    dt = 10.0 ** rng.uniform(-8, 4, u.shape)
    B, C = rng.normal(size=(2, batch, LENGTH, d_state))
    u, dt, B, C = half_rounded(*(jnp.asarray(z, jnp.float32) for z in (u, dt, B, C)))
    A = -jnp.asarray([[1e-3, 1.0, 16.0], [1e-6, 4.0, 1e3]], jnp.float32)

    def sequential(u, dt, B, C):
        return sequential_mamba(u, dt, A, B, C)

    def chunked(u, dt, B, C):
        return selective_scan.scan(u, dt, A, B, C, None, chunk=16)[1]

    for got, want in zip(
        jax.tree.leaves(value_and_gradients(chunked)(u, dt, B, C)),
        jax.tree.leaves(value_and_gradients(sequential)(u, dt, B, C)),
        strict=True,
    ):
        assert np.isfinite(np.asarray(got)).all()
        assert_close(got, want)
