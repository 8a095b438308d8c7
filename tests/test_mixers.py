"""Every mixer × every claim. A new mixer is one row of MIXERS and buys all of these tests."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.models import kernels
from isoflop.models.base import Init, Mixer, MixerConfig, _import_all, _leaves, count
from isoflop.models.mixers.attention import Attention, SoftmaxAttention
from isoflop.models.mixers.delta import DeltaNet
from isoflop.models.mixers.linear import LinearAttention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mamba2 import Mamba2
from isoflop.models.mixers.mla import Mla
from isoflop.models.mixers.retro import ChunkedCrossAttention
from isoflop.models.mixers.rglru import RgLru
from isoflop.models.mixers.rnn import Lstm, MinGru
from isoflop.models.mixers.rwkv import Rwkv7, RwkvChannel
from isoflop.models.packing import positions
from isoflop.models.rotary import YarnScaling
from isoflop.sim.cost.jaxpr import executed_flops, matmul_flops

D_MODEL, LENGTH = 24, 81  # a length that no chunk or block divides
MIXERS = {
    "attention": Attention(n_heads=4),
    "gqa-window-qk-norm": Attention(n_heads=6, n_kv_heads=2, d_head=8, window=20, qk_norm=True),
    "mqa-nope": Attention(n_heads=3, n_kv_heads=1, d_head=5, rope_base=None),
    "attention-options": Attention(
        n_heads=4,
        n_kv_heads=2,
        rope_dims=4,
        rope_scaling=YarnScaling(factor=4, original=32),
        qk_norm="joint",
        qkv_bias=True,
        out_bias=True,
        gate=True,
    ),
    "mla": Mla(n_heads=3, kv_rank=10, q_rank=7, d_nope=5, d_rope=4, d_value=6),
    "mla-options": Mla(
        n_heads=2, kv_rank=6, d_nope=4, d_rope=2, d_value=5, rope_base=None, score_scale=1.5
    ),
    "mamba": Mamba(chunk=32),
    "mamba-wide-state": Mamba(d_state=5, expand=3, d_conv=3, dt_rank=7, chunk=16),
    "mamba-options": Mamba(d_state=6, conv_bias=False, bias=True, select_norm="learned"),
    "mamba2-groups": Mamba2(d_state=5, d_head=8, n_groups=3, chunk=32),
    "mamba2-options": Mamba2(d_state=5, d_head=8, conv_bias=False, bias=True, chunk=32),
    "linear": LinearAttention(n_heads=2, decay="none", chunk=32),
    "linear-keys": LinearAttention(n_heads=2, decay="none", normalizer="keys", chunk=32),
    "retention": LinearAttention(n_heads=3, decay="fixed", rope_base=1e4, chunk=32),
    "linear-scalar": LinearAttention(n_heads=3, d_key=5, d_value=7, decay="scalar", chunk=32),
    "gla": LinearAttention(n_heads=2, decay="channel"),
    "deltanet": DeltaNet(n_heads=3, decay="none"),
    "gated-deltanet": DeltaNet(n_heads=2, d_key=6, d_value=9, negative_eigenvalues=True),
    "delta-grouped": DeltaNet(n_heads=2, n_value_heads=6, d_key=6, d_value=5),
    "kda": DeltaNet(n_heads=2, decay="channel", d_conv=3),
    "rwkv7": Rwkv7(n_heads=3, rank_decay=5, rank_rate=6, rank_gate=7),
    "rwkv7-channel": RwkvChannel(d_ff=40),
    "rg-lru": RgLru(n_heads=2, d_rnn=32),
    "lstm": Lstm(d_hidden=10, chunk=16),
    "mingru": MinGru(expand=2, chunk=16),
}
ONES = {  # sizes of 1, where an axis is easily taken for another: of cost, state and outputs
    "attention-ones": Attention(n_heads=1, d_head=1, rope_base=None, window=1),
    "attention-one-group": Attention(n_heads=4, n_kv_heads=1, qk_norm="joint", qkv_bias=True),
    "mla-ones": Mla(n_heads=1, kv_rank=1, q_rank=1, d_nope=1, d_rope=0, d_value=1, rope_base=None),
    "mla-scaled": Mla(n_heads=2, kv_rank=3, d_nope=1, d_rope=2, d_value=1, score_scale=2.0),
    "mamba-ones": Mamba(d_state=1, expand=1, d_conv=1, dt_rank=1),
    "mamba-plain-norm": Mamba(d_state=1, select_norm="plain"),
    "mamba2-ones": Mamba2(d_state=1, d_head=1, expand=1, d_conv=1),
    "mamba2-one-head": Mamba2(d_state=1, d_head=48),
    "linear-ones": LinearAttention(n_heads=1, d_key=1, d_value=1, decay="scalar"),
    "gla-one-key": LinearAttention(n_heads=2, d_key=1, d_value=5, decay="channel"),
    "gla-keys": LinearAttention(n_heads=2, d_key=1, decay="channel", normalizer="keys"),
    "delta-ones": DeltaNet(n_heads=1, d_key=1, d_value=1, decay="scalar", d_conv=1),
    "kda-one-key": DeltaNet(n_heads=2, d_key=1, d_value=3, decay="channel"),
    "rwkv7-one-channel": Rwkv7(n_heads=D_MODEL, rank_decay=1, rank_rate=1, rank_gate=1),
    "rwkv7-one-head": Rwkv7(n_heads=1),
    "rwkv7-channel-one": RwkvChannel(d_ff=1),
    "rg-lru-ones": RgLru(n_heads=1, d_rnn=1, d_conv=1),
    "rg-lru-diagonal": RgLru(n_heads=D_MODEL),
    "lstm-one": Lstm(d_hidden=1),
    "mingru-chunk-one": MinGru(chunk=1),
}
CHUNKED = {name: m for name, m in MIXERS.items() if "chunk" in type(m).model_fields}

# Second rows of a class change one switch; `make test-slow` takes them through every claim.
VARIANTS = {
    "mqa-nope",
    "attention-options",
    "mla-options",
    "mamba-wide-state",
    "mamba-options",
    "mamba2-options",
    "linear",
    "linear-keys",
    "deltanet",
    "delta-grouped",
}
# These restart as another row does, most by a log-gate as gla: slow for the claim of packing.
RESTART_ALIKE = VARIANTS | {
    *("attention", "mla", "mamba2-groups", "linear-scalar", "gated-deltanet", "kda"),
}
# These have much of a kernel in common with another row: slow where gradients are compiled.
KERNELS_ALIKE = VARIANTS | {"attention", "mla", "retention", "kda"}


def slowly(value):
    return pytest.param(value, marks=pytest.mark.slow)


def table(rows: dict[str, MixerConfig], slow: set[str] = VARIANTS):
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "config",
        [pytest.param(m, id=name, marks=marks[name in slow]) for name, m in rows.items()],
    )


every_mixer, every_chunked = table(MIXERS), table(CHUNKED)
every_restart = table(MIXERS, RESTART_ALIKE)
every_size = table(MIXERS | ONES, set())


@cache
def build(config: MixerConfig):
    """(parameters, apply): the module with every parameter moved off its initial value."""
    graph = nnx.split(nnx.eval_shape(lambda: config.build(D_MODEL, init=Init(None))))[0]
    params = nnx.state(config.build(D_MODEL, init=Init(0)))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    return noisy, lambda p: nnx.merge(graph, p)


@cache
def mixed(config: MixerConfig):
    """x → y, compiled once per mixer and shape."""
    params, apply = build(config)
    return partial(jax.jit(lambda p, x: apply(p)(x)), params)


def tokens(length: int = LENGTH, batch: int = 2, seed: int = 1):
    return np.random.default_rng(seed).normal(size=(batch, length, D_MODEL)).astype(np.float32)


def recurrent(mixer, x):
    """The oracle: the step form, scanned."""
    state = mixer.init_state(x.shape[0], x.shape[1], x.dtype)
    return jnp.moveaxis(jax.lax.scan(mixer.step, state, jnp.moveaxis(x, 1, 0))[1], 0, 1)


def relative(got, want) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_every_mixer_has_a_row():
    """Every class of the package, and of the first rows of classes a default run takes all; what
    reads more than a row is in test_retro.py.
    """
    _import_all()
    classes = {cls for cls in _leaves(MixerConfig) if cls.__module__.startswith("isoflop.models.")}
    classes.remove(ChunkedCrossAttention)
    for rows in (MIXERS.keys() - VARIANTS, ONES):
        assert {type(MIXERS.get(name) or ONES[name]) for name in rows} == classes


@every_size
@pytest.mark.parametrize("length", [1, slowly(64), 81, slowly(200)])
def test_cost_is_what_the_jaxpr_executes(config, length):
    params, apply = build(config)
    x = jax.ShapeDtypeStruct((1, length, D_MODEL), jnp.float32)
    cost = config.cost(D_MODEL, length)
    executed = executed_flops(lambda p, x: apply(p)(x), params, x)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed


@every_size
@pytest.mark.parametrize("context", [1, slowly(7), 50])
def test_step_cost_is_what_the_jaxpr_executes(config, context):
    params, apply = build(config)
    state = apply(params).init_state(1, context)
    x = jax.ShapeDtypeStruct((1, D_MODEL), jnp.float32)
    cost = config.step_cost(D_MODEL, context)
    executed = executed_flops(lambda p, s, x: apply(p).step(s, x), params, state, x)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed


@every_size
def test_params_and_state_are_the_sizes_of_the_leaves(config):
    params, apply = build(config)
    cost = config.cost(D_MODEL, LENGTH)
    assert cost.params == cost.active_params == count(params)
    for context in (1, 7, 50):
        assert config.state_size(D_MODEL, context) == count(apply(params).init_state(1, context))


@table(MIXERS, KERNELS_ALIKE)
def test_step_matches_parallel_in_outputs_and_gradients(config):
    params, apply = build(config)
    x, weight = tokens(), tokens(seed=2)

    def value(form):
        return jax.jit(
            jax.value_and_grad(
                lambda p, x: (lambda y: (jnp.sum(y * weight), y))(form(apply(p), x)),
                argnums=(0, 1),
                has_aux=True,
            )
        )(params, x)

    (_, parallel), gradients = value(lambda mixer, x: mixer(x))
    (_, stepped), oracle = value(recurrent)
    assert relative(np.asarray(parallel), np.asarray(stepped)) < 1e-5
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(oracle), strict=True):
        assert relative(np.asarray(got), np.asarray(want)) < 1e-5


SPLITS = np.array([0, 1, 2, 16, 31, 32, 33, 64, 80, 81])  # chunk boundaries, beside them, ends


def split_rows(seed: int = 1):
    """(one text in every row, what follows each of SPLITS in it, and its length)."""
    x = np.repeat(tokens(batch=1, seed=seed), len(SPLITS), axis=0)
    after = np.stack([np.roll(row, -n, axis=0) for row, n in zip(x, SPLITS, strict=True)])
    return x, after, LENGTH - SPLITS


@cache
def prefilled(config):
    """Outputs and states, row by row: of the oracle after every token; after a prompt of each of
    SPLITS, as padded rows of one batch, and after what follows it.
    """
    params, apply = build(config)

    def oracle(params, x):
        mixer = apply(params)

        def step(state, x):
            state, y = mixer.step(state, x)
            return state, (y, state)

        state = mixer.init_state(1, LENGTH)
        return jax.lax.scan(step, state, x[:, None])[1]

    def twice(params, x, after):
        mixer = apply(params)
        state, first = mixer.prefill(x, mixer.init_state(len(x), LENGTH), jnp.asarray(SPLITS))
        last, second = mixer.prefill(after, state, jnp.asarray(LENGTH - SPLITS))
        return state, first, last, second

    x, after, _ = split_rows()
    (y, states) = jax.jit(oracle)(params, x[0])
    return y[:, 0], states, jax.jit(twice)(params, x, after)


def leaves(state, row):
    return [np.asarray(leaf)[row] for leaf in jax.tree.leaves(state)]


@every_mixer
def test_prefill_leaves_the_state_that_steps_leave_whatever_stands_in_the_padding(config):
    _, states, (state, _, last, _) = prefilled(config)
    params, apply = build(config)
    empty = apply(params).init_state(1, LENGTH)
    for row, n in enumerate(SPLITS):
        want = leaves(empty, 0) if n == 0 else [s[0] for s in leaves(states, n - 1)]
        for end, oracle in ((state, want), (last, [s[0] for s in leaves(states, -1)])):
            for got, expected in zip(leaves(end, row), oracle, strict=True):
                assert got.dtype == expected.dtype
                assert np.abs(got - expected).max() <= 1e-5 * max(1e-3, np.abs(expected).max())


@every_mixer
def test_prefill_in_two_parts_equals_the_parallel_form_wherever_it_is_split(config):
    want = np.asarray(mixed(config)(split_rows()[0][:2]))[0]
    _, _, (_, first, _, second) = prefilled(config)
    for row, n in enumerate(SPLITS):
        got = np.concatenate([first[row, :n], second[row, : LENGTH - n]])
        assert relative(got, want) < 1e-5


def test_every_mixer_prefills_in_parallel_and_one_that_does_not_token_by_token():
    """Whose own prefill is not written yet gets the definition's."""
    _import_all()
    modules = [cls for cls in _leaves(Mixer) if cls.__module__.startswith("isoflop.models.")]
    assert len(modules) > 8
    assert all("prefill" in vars(cls) for cls in modules)
    config = MIXERS["gqa-window-qk-norm"]
    params, apply = build(config)
    x, lengths = jnp.asarray(tokens(length=30)), jnp.asarray([30, 9])

    def prefill(params, form):
        mixer = apply(params)
        return form(mixer, x, mixer.init_state(2, 40), lengths)

    (state, y), (own_state, own) = (
        jax.jit(prefill, static_argnums=1)(params, form)
        for form in (Mixer.prefill, SoftmaxAttention.prefill)
    )
    for row, n in enumerate(lengths):
        assert relative(np.asarray(y[row, :n]), np.asarray(own[row, :n])) < 1e-5
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(own_state), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@every_mixer
def test_steps_after_a_prefill_equal_the_parallel_form_wherever_it_is_split(config):
    params, apply = build(config)
    x, after, _ = split_rows()
    want = np.asarray(mixed(config)(x[:2]))[0]

    def goes_on(params, state, x):
        return jax.lax.scan(apply(params).step, state, jnp.moveaxis(x, 1, 0))[1]

    state = prefilled(config)[2][0]
    got = np.moveaxis(np.asarray(jax.jit(goes_on)(params, state, after)), 0, 1)
    for row, n in enumerate(SPLITS[:-1]):
        assert np.abs(got[row, : LENGTH - n] - want[n:]).max() < 1e-5 * np.abs(want).max()


@every_mixer
@pytest.mark.slow
def test_gradients_pass_through_a_prefilled_state(config):
    params, apply = build(config)
    x, weight = tokens(), tokens(seed=2)

    def two_parts(mixer, x):
        state, first = mixer.prefill(x[:, :37], mixer.init_state(len(x), LENGTH))
        return jnp.concatenate([first, mixer.prefill(x[:, 37:], state)[1]], axis=1)

    def gradients(form):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(form(apply(p), x) * weight), argnums=(0, 1)))(
            params, x
        )

    got, want = gradients(two_parts), gradients(lambda mixer, x: mixer(x))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert relative(np.asarray(one), np.asarray(other)) < 1e-5


@pytest.mark.parametrize("name", ["attention", "gqa-window-qk-norm"])
def test_a_prompt_beyond_the_context_is_nan_from_there_on_and_of_its_own_row_alone(name):
    config, context = MIXERS[name], 19
    params, apply = build(config)
    x, lengths = tokens(length=30, batch=3), jnp.asarray([30, 19, 12])

    def prefill(params, x, more):
        mixer = apply(params)
        state, y = mixer.prefill(x, mixer.init_state(3, context), lengths)
        return y, mixer.prefill(more, state, jnp.asarray([1, 1, 9]))[1]

    y, more = (np.isnan(z).all(-1) for z in jax.jit(prefill)(params, x, x[:, :9]))
    assert (y == [[t >= context and row == 0 for t in range(30)] for row in range(3)]).all()
    assert (more[:, 0] == [True, True, False]).all()
    assert (more[2] == [t >= 7 for t in range(9)]).all()


def decode_beyond(config, context):
    """Against the parallel form, far beyond the context that the state was made for."""
    params, apply = build(config)
    x = tokens()

    def stepped(params, x):
        mixer = apply(params)
        state = mixer.init_state(len(x), context)
        return jax.lax.scan(mixer.step, state, jnp.moveaxis(x, 1, 0))[1]

    got = np.moveaxis(np.asarray(jax.jit(stepped)(params, x)), 0, 1)
    most = config.max_tokens(context)
    assert most in (None, context)
    end = LENGTH if most is None else most
    assert relative(got[:, :end], np.asarray(mixed(config)(x))[:, :end]) < 1e-5
    assert np.isnan(got[:, end:]).all()


@every_mixer
def test_a_state_goes_on_rightly_or_says_nan_never_silently_wrong(config):
    decode_beyond(config, context=30)


def test_a_window_longer_than_the_context_is_bounded_and_a_ring_of_it_takes_any_number():
    bounded = {name for name, m in MIXERS.items() if m.max_tokens(30) is not None}
    assert bounded == {"attention", "mqa-nope", "attention-options", "mla", "mla-options"}
    window = MIXERS["gqa-window-qk-norm"]
    assert [window.max_tokens(n) for n in (19, 20, 21)] == [19, None, None]
    assert window.state_size(D_MODEL, 20) == window.state_size(D_MODEL, 10**9)
    decode_beyond(window, context=19)


@every_mixer
def test_the_future_never_reaches_the_past(config):
    mix, x = mixed(config), tokens()
    before = np.asarray(mix(x))
    for cut in (1, 33, 64, 80):
        changed = x.copy()
        changed[:, cut:] += 1.0
        after = np.asarray(mix(changed))
        assert (after[:, :cut] == before[:, :cut]).all()
        assert (after[:, cut:] != before[:, cut:]).any(-1).all()


SEGMENTS = np.array([[1, 17, 2, 38, 23], [32, 1, 1, 7, 40]])  # lengths, in two packed rows
PLACES = [
    [(row, slice(end - size, end)) for row, (end, size) in enumerate(zip(ends, sizes, strict=True))]
    for ends, sizes in zip(SEGMENTS.cumsum(1).T, SEGMENTS.T, strict=True)
]


def packed():
    """Positions of two rows that hold SEGMENTS."""
    ids = np.array([np.repeat(np.arange(len(row)), row) for row in SEGMENTS])
    return positions(jnp.asarray(ids, jnp.int32))


ONE_FORM = {"lstm", "rwkv7-channel"}  # for all platforms


@table(MIXERS, KERNELS_ALIKE | {"linear-scalar", "mamba2-groups"})
def test_the_fast_forms_equal_the_reference_in_outputs_and_gradients(config):
    """And execute the same matmuls forward, whatever the platform, whose own program is one of
    them: which, test_kernels.py says.
    """
    params, apply = build(config)
    x, weight, place = tokens(), tokens(seed=2), packed()

    def value(params, x):
        y = apply(params)(x, place)
        return jnp.sum(y * weight), y

    step = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
    found, flops = {}, {}
    for name in (None, "reference", "cpu", "accelerator"):
        with kernels.use(name):
            flops[name] = matmul_flops(value, params, x)
            if name is not None:
                found[name] = jax.jit(step)(params, x)
    assert flops["cpu"] == flops["accelerator"] == flops[None]
    for name in ("cpu", "accelerator"):
        leaves = zip(*map(jax.tree.leaves, (found[name], found["reference"])), strict=True)
        assert all(relative(np.asarray(got), np.asarray(want)) < 1e-5 for got, want in leaves)


@every_mixer
def test_the_reference_has_no_gradient_by_hand_and_asks_for_no_platform(config):
    params, apply = build(config)

    def program(name):
        with kernels.use(name):
            value = jax.make_jaxpr(lambda p, x: apply(p)(x, packed()))(params, tokens())
        return re.findall(r"custom_vjp_call|platform_index", str(value))

    assert program("reference") == []
    assert "custom_vjp_call" in program(None)


@table({name: m for name, m in MIXERS.items() if name not in ONE_FORM})
def test_the_form_of_a_cpu_is_not_that_of_an_accelerator(config):
    params, apply = build(config)

    def program(name):
        with kernels.use(name):
            return str(jax.make_jaxpr(lambda p, x: apply(p)(x, packed()))(params, tokens()))

    assert program("cpu") != program("accelerator")
    assert "platform_index" in program(None)


@pytest.mark.parametrize("name", sorted(ONE_FORM))
def test_a_mixer_of_one_form_asks_for_no_platform(name, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", None)
    params, apply = build(MIXERS[name])
    jax.eval_shape(lambda p, x: apply(p)(x, packed()), params, tokens())


def unpack(x, places):
    """The segments at these places, each at the start of a row of zeros."""
    rows = np.zeros_like(x)
    for row, place in places:
        segment = x[row, place]
        rows[row, : len(segment)] = segment
    return rows


def repack(rows, places, into):
    for row, place in places:
        into[row, place] = rows[row, : place.stop - place.start]


@every_restart
def test_packed_segments_equal_the_same_alone(config):
    params, apply = build(config)
    x = tokens()
    y = jax.jit(lambda p, x, at: apply(p)(x, at))(params, x, packed())
    want = np.zeros_like(x)
    for places in PLACES:
        repack(mixed(config)(unpack(x, places)), places, want)
    assert relative(np.asarray(y), want) < 1e-5


@every_mixer
@pytest.mark.slow
def test_gradients_of_packed_segments_equal_those_alone(config):
    params, apply = build(config)
    x, weight = tokens(), tokens(seed=2)
    gradients = jax.jit(
        jax.grad(lambda p, x, weight, at: jnp.sum(apply(p)(x, at) * weight), argnums=(0, 1))
    )
    of_params, of_x = gradients(params, x, weight, packed())
    alone = jnp.tile(jnp.arange(LENGTH), (2, 1))
    want, want_of_x = [], np.zeros_like(x)
    for places in PLACES:
        parts = gradients(params, unpack(x, places), unpack(weight, places), alone)
        want.append(parts[0])
        repack(parts[1], places, want_of_x)
    assert relative(np.asarray(of_x), want_of_x) < 1e-5
    total = jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *want)
    for got, one in zip(jax.tree.leaves(of_params), jax.tree.leaves(total), strict=True):
        assert relative(np.asarray(got), one) < 1e-5


@every_mixer
def test_rows_of_a_batch_are_independent(config):
    mix, x = mixed(config), tokens()
    changed = x.copy()
    changed[1] += 1.0
    assert (np.asarray(mix(x))[0] == np.asarray(mix(changed))[0]).all()


@every_chunked
@pytest.mark.parametrize("chunk", [1, slowly(8), LENGTH])
def test_chunk_size_is_invisible(config, chunk):
    params, _ = build(config)
    x = tokens()

    def with_chunk(chunk):
        other = config.model_copy(update={"chunk": chunk})
        graph = nnx.split(nnx.eval_shape(lambda: other.build(D_MODEL, init=Init(None))))[0]
        return np.asarray(jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, x))

    own = np.asarray(mixed(config)(x))
    assert relative(with_chunk(chunk), own) < 1e-5


def bf16_errors(config, x):
    """Of each token: rms over its channels, in units of the whole output's rms."""
    fp32, bf16 = np.asarray(mixed(config)(x)), mixed(config)(x.astype(jnp.bfloat16))
    assert bf16.dtype == jnp.bfloat16
    error = np.asarray(bf16, np.float32) - fp32
    return np.sqrt(np.mean(error**2, axis=-1) / np.mean(fp32**2))


@every_mixer
@pytest.mark.parametrize(
    ("length", "seeds"), [(LENGTH, 40), pytest.param(512, 5, marks=pytest.mark.slow)]
)
def test_bf16_follows_fp32_and_keeps_its_dtype(config, length, seeds):
    """In three tokens of four of every input; and in the rms of all, unless a read-out is normed:
    that makes a whole vector of it even where little more than rounding is left.
    """
    linear = isinstance(config, LinearAttention) and config.normalizer == "norm"
    normed = linear or isinstance(config, DeltaNet)
    for seed in range(1, seeds + 1):
        errors = bf16_errors(config, tokens(length, seed=seed))
        assert np.quantile(errors, 0.75) < 2e-2  # which NaN is not
        assert normed or np.sqrt(np.mean(errors**2)) < 2e-2


def test_bf16_leaves_a_first_token_only_where_its_query_and_key_are_orthogonal():
    """Its read-out is (q · k) v, normed: ± v, by a sign that rounding decides."""
    config = MIXERS["retention"]
    params, apply = build(config)
    far, angles = [], []
    for seed in range(1, 41):
        x = tokens(seed=seed)
        q, k, *_ = jax.jit(lambda p, x: apply(p)._heads(x, None))(params, x[:, :1])
        norms = np.linalg.norm(q, axis=-1) * np.linalg.norm(k, axis=-1)
        angles.append(np.abs(np.sum(q * k, axis=-1) / norms)[..., 0].min(1))
        far.append(bf16_errors(config, x)[:, 0] > 0.2)
    far, angles = np.concatenate(far), np.concatenate(angles)
    assert far.any()
    assert angles[far].max() < 0.01 < np.median(angles)


@every_mixer
def test_outputs_are_of_order_one(config):
    """Measured: .26 (attention with all options) to 1.47 (RWKV's channel mixing)."""
    assert 0.2 < np.sqrt(np.mean(np.asarray(mixed(config)(tokens())) ** 2)) < 2
