"""Routed experts: nothing is lost, nothing is reordered, and everything is counted."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import ChannelConfig, Init, _import_all, _leaves, count
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.mlp import Gelu, SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.jaxpr import executed_flops
from isoflop.sim.optim import AdamW, apply

D_MODEL = 12
FORMS = {
    "dropless": Moe(n_experts=5, top_k=2, d_expert=7, block=4),
    "shared": Moe(n_experts=4, top_k=3, d_expert=6, n_shared=2, gate="sigmoid", block=8),
    "shared-gate": Moe(n_experts=4, top_k=2, d_expert=6, n_shared=1, shared_gate=True, block=8),
    "capacity": Moe(n_experts=4, top_k=2, d_expert=7, capacity_factor=1.0),
    "ample-capacity": Moe(n_experts=4, top_k=1, d_expert=5, n_shared=1, capacity_factor=4.0),
    "steered": Moe(n_experts=6, top_k=2, d_expert=3, gate="sigmoid", steered=True, block=4),
    "experts-choose": Moe(n_experts=4, top_k=2, d_expert=7, route="expert"),
}
CHANNELS = FORMS | {  # and what costs otherwise
    "sigmoid-not-renormalized": Moe(
        n_experts=3, top_k=2, d_expert=5, gate="sigmoid", renormalize=False, n_shared=1
    ),
    "experts-choose-by-sigmoid": Moe(
        n_experts=3, top_k=1, d_expert=5, gate="sigmoid", route="expert", n_shared=1
    ),
    "one-expert": Moe(n_experts=1, top_k=1, d_expert=1, renormalize=False),
    "swiglu": SwiGLU(d_ff=20),
    "geglu": SwiGLU(d_ff=20, activation="gelu", bias=True),
    "gelu": Gelu(d_ff=20),
    "gelu-of-one": Gelu(d_ff=1, bias=False),
}
every_form = pytest.mark.parametrize(
    "config",
    [
        pytest.param(form, id=name, marks=[pytest.mark.slow] if form.steered else [])
        for name, form in FORMS.items()
    ],
)


def tokens(batch: int = 2, length: int = 21, seed: int = 1):
    shape = (batch, length, D_MODEL)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@cache
def compiled(graph):
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x))


def run(module, x):
    graph, params = nnx.split(module)
    return compiled(graph)(params, x)


def swiglu(x, gate, up, down):
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def dense_sum(module, x):
    """Every expert on every token, weighted by the gate: the slow obvious form."""
    config = module.config
    logits = jnp.exp(x @ module.router.kernel[...])
    scores = logits / logits.sum(-1, keepdims=True)
    if config.gate == "sigmoid":
        scores = logits / (1 + logits)
    threshold = jnp.sort(scores, -1)[..., -config.top_k, None]
    if config.route == "expert":  # of all tokens in the call
        rows = -(-scores[..., 0].size * config.top_k // config.n_experts)
        threshold = jnp.sort(scores.reshape(-1, config.n_experts), 0)[-rows][None, None]
    gates = jnp.where(scores >= threshold, scores, 0)
    if config.renormalize and config.route == "token":
        gates = gates / gates.sum(-1, keepdims=True)
    experts = zip(module.gate[...], module.up[...], module.down[...], strict=True)
    y = sum(gates[..., e, None] * swiglu(x, *weights) for e, weights in enumerate(experts))
    shared = module.shared
    if shared is None:
        return y
    return y + swiglu(x, *(layer.kernel[...] for layer in (shared.gate, shared.up, shared.out)))


def assert_close(got, want):
    assert np.abs(np.asarray(got) - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    "config",
    [
        Moe(n_experts=5, top_k=5, d_expert=7, block=4),
        Moe(n_experts=5, top_k=5, d_expert=7, gate="sigmoid", renormalize=False),
        Moe(n_experts=6, top_k=2, d_expert=7, block=4, n_shared=1),
        Moe(n_experts=4, top_k=1, d_expert=7, renormalize=False),
        Moe(n_experts=4, top_k=2, d_expert=5, capacity_factor=4.0),
        Moe(n_experts=4, top_k=1, d_expert=5, route="expert"),
    ],
    ids=["all", "all-sigmoid", "top-2-shared", "top-1", "capacity-for-all", "experts-choose"],
)
def test_experts_equal_the_gate_weighted_dense_sum_in_outputs_and_gradients(config):
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))
    weight = tokens(seed=2)

    def value(form):
        def weighted(params, x):
            y, *aux = form(nnx.merge(graph, params), x)
            return jnp.sum(y * weight), (y, *aux)

        step = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))
        return step(params, tokens())

    (_, (y, aux)), gradients = value(lambda module, x: module(x))
    (_, (want,)), oracle = value(lambda module, x: (dense_sum(module, x),))
    assert_close(y, np.asarray(want))
    np.testing.assert_allclose(aux["dropped"], np.mean((want == 0).all(-1)), atol=1e-6)
    for got, one in zip(*map(jax.tree.leaves, (gradients, oracle)), strict=True):
        assert_close(got, np.asarray(one))


def test_the_backward_pass_scatters_only_what_the_choice_of_experts_needs():
    """What a scatter adds up is slow on a GPU and in no fixed order: not rows, and not kernels."""
    graph, params = nnx.split(FORMS["dropless"].build(D_MODEL, init=Init(0)))
    gradient = jax.grad(lambda params, x: jnp.sum(nnx.merge(graph, params)(x)[0]), argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(params, tokens()))
    assert re.findall(r"f32\[(\S+)\] = scatter-add", program) == ["42,5"]  # tokens × experts


@every_form
def test_a_form_looks_ahead_only_if_its_config_says_so(config):
    """Later tokens change earlier outputs: measured, and named by `causal`."""
    module = config.build(D_MODEL, init=Init(0))
    x = tokens()
    y, _ = run(module, x)
    changed, _ = run(module, x.at[:, 15:].multiply(3.0))
    looks_ahead = (np.asarray(y) != np.asarray(changed))[0, :15].any()
    assert looks_ahead == (not config.causal)
    assert config.causal == (config.route == "token")


def test_permuting_experts_changes_nothing():
    module = FORMS["dropless"].build(D_MODEL, init=Init(0))
    y, aux = run(module, tokens())
    order = np.array([3, 0, 4, 2, 1])
    for weight in (module.gate, module.up, module.down):
        weight.set_value(weight[...][order])
    module.router.kernel.set_value(module.router.kernel[...][:, order])
    permuted, permuted_aux = run(module, tokens())
    assert_close(permuted, np.asarray(y))
    for name in aux:
        np.testing.assert_allclose(permuted_aux[name], aux[name], rtol=1e-6)


@every_form
def test_balance_is_one_at_uniform_routing(config):
    """One-hot tokens through a diagonal router: every expert serves as many."""
    module = config.build(D_MODEL, init=Init(0))
    e = config.n_experts
    cyclic = np.zeros((e, D_MODEL), np.float32)
    kernel = np.zeros((D_MODEL, e), np.float32)
    for i in range(e):
        cyclic[i, i] = 1
        kernel[i] = -((np.arange(e) - i) % e)  # token i prefers i, then i + 1, …
    module.router.kernel.set_value(jnp.asarray(kernel))
    _, aux = run(module, jnp.tile(cyclic, (2, 4, 1)))
    np.testing.assert_allclose(aux["balance"], 1, rtol=1e-6)
    np.testing.assert_allclose(aux["dropped"], 0, atol=1e-6)


def test_balance_is_n_experts_when_one_expert_takes_all():
    config = Moe(n_experts=4, top_k=1, d_expert=3)
    module = config.build(D_MODEL, init=Init(0))
    module.router.kernel.set_value(jnp.zeros((D_MODEL, 4)).at[:, 2].set(100.0))
    _, aux = run(module, jnp.abs(tokens()))
    np.testing.assert_allclose(aux["balance"], 4, rtol=1e-6)


def test_what_capacity_drops_is_counted_and_gets_no_output():
    config = Moe(n_experts=4, top_k=1, d_expert=3, capacity_factor=1.0)
    module = config.build(D_MODEL, init=Init(0))
    module.router.kernel.set_value(jnp.zeros((D_MODEL, 4)).at[:, 2].set(1.0))
    x = jnp.abs(tokens(batch=1, length=20))  # all want expert 2, which has room for 5
    y, aux = run(module, x)
    assert aux["dropped"] == 0.75
    assert (np.asarray(y[0, 5:]) == 0).all()
    assert_close(y[:, :5], dense_sum(module, x[:, :5]))


@every_form
def test_padding_takes_no_token_s_room(config):
    """Tokens that every expert would take first, as padding before the next row's tokens."""
    module = config.build(D_MODEL, init=Init(0))
    graph, params = nnx.split(module)
    lengths = jnp.asarray([8, 21])
    prefill = jax.jit(lambda p, x, n: nnx.merge(graph, p).prefill(x, n))
    quiet = tokens()
    loud = quiet.at[0, 8:].multiply(30.0)
    few, many = (np.asarray(prefill(params, x, lengths)) for x in (quiet, loud))
    assert np.isfinite(many).all()
    assert (few[0, :8] == many[0, :8]).all()
    assert (few[1] == many[1]).all()
    assert_close(prefill(params, quiet, jnp.asarray([21, 21])), run(module, quiet)[0])


def test_every_channel_mixer_has_a_row():
    _import_all()
    classes = {
        cls for cls in _leaves(ChannelConfig) if cls.__module__.startswith("isoflop.models.")
    }
    assert {type(config) for config in CHANNELS.values()} == classes


@pytest.mark.parametrize("config", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 21), (3, 64)])
def test_cost_is_what_the_jaxpr_executes(config, batch, length):
    graph, params = nnx.split(nnx.eval_shape(lambda: config.build(D_MODEL, init=Init(None))))
    x = jax.ShapeDtypeStruct((batch, length, D_MODEL), jnp.float32)
    cost = config.cost(D_MODEL, batch * length)
    executed = executed_flops(lambda p, x: nnx.merge(graph, p)(x)[0], params, x)
    assert (cost.matmul_flops, cost.elementwise_flops) == executed


@every_form
def test_params_are_the_leaves_and_active_ones_serve_one_token(config):
    cost = config.cost(D_MODEL, 1)
    assert cost.params == count(nnx.state(config.build(D_MODEL, init=Init(0))))
    unused = (config.n_experts - config.top_k) * SwiGLU(d_ff=config.d_expert).cost(
        D_MODEL, 1
    ).params
    assert cost.params - cost.active_params == unused


@every_form
def test_bf16_follows_fp32_where_routing_agrees(config):
    """Scores are fp32 from the same bf16 tokens, so both choose the same experts."""
    module = config.build(D_MODEL, init=Init(0))
    x = jnp.asarray(tokens(), jnp.bfloat16)
    y, aux = run(module, x)
    want, _ = run(module, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert all(value.dtype == jnp.float32 for value in aux.values())
    error = np.asarray(y, np.float32) - np.asarray(want)
    assert float(np.sqrt(np.mean(error**2) / np.mean(np.asarray(want) ** 2))) < 2e-2


@every_form
def test_gradients_are_finite_and_reach_router_and_experts(config):
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))

    def loss(params, x):
        y, aux = nnx.merge(graph, params)(x)
        return jnp.sum(y**2) + aux["penalty"]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, tokens())
    for g in jax.tree.leaves(gradients):
        assert np.isfinite(np.asarray(g)).all()
        assert np.abs(np.asarray(g)).max() > 0


def test_more_choices_than_experts_is_refused():
    with pytest.raises(ValueError, match="top_k=3 must be at most n_experts=2; lower top_k"):
        Moe(n_experts=2, top_k=3, d_expert=4)


def test_experts_that_choose_are_not_steered():
    with pytest.raises(ValueError, match=r"route='expert'.* leave out steered"):
        Moe(n_experts=2, top_k=1, d_expert=4, route="expert", steered=True)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("steered", [True, False])
def test_sigmoids_far_from_zero_choose_and_share_as_their_logits_say(renormalize, steered):
    """In fp32 σ(x) is 0 below −87 and 1 above 17."""
    config = Moe(
        n_experts=4, top_k=2, d_expert=3, gate="sigmoid", renormalize=renormalize, steered=steered
    )
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))
    x = tokens(batch=1, length=3).at[..., 0].set(1.0)

    @jax.jit
    def step(params, x):
        def loss(params, x):
            y, aux = nnx.merge(graph, params)(x)
            return jnp.sum(y**2) + aux["penalty"]

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    for level in (-1e4, -90.0, 0.0, 90.0):
        logits = level + np.array([[0.0, 2.0, 1.0, 0.5]])
        gates, chosen = nnx.merge(graph, params)._choose(jnp.asarray(logits, jnp.float32))
        assert steered or chosen.tolist() == [[1, 2]]
        logs = -np.logaddexp(0, -np.take_along_axis(logits, np.asarray(chosen), 1))
        want = np.exp(logs)
        if renormalize:
            want = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        np.testing.assert_allclose(gates, want, rtol=1e-5, atol=1e-37)
        params["router"]["kernel"].set_value(jnp.zeros((D_MODEL, 4)).at[0].set(logits[0]))
        for leaf in jax.tree.leaves(step(params, x)):
            assert np.isfinite(np.asarray(leaf)).all()


def test_a_steered_bias_moves_the_choice_and_not_the_gates():
    config = Moe(n_experts=4, top_k=1, d_expert=3, gate="sigmoid", renormalize=False, steered=True)
    module = config.build(D_MODEL, init=Init(0))
    module.bias.set_value(jnp.array([0.0, 0.0, 100.0, 0.0]))
    x = tokens()
    y, _ = run(module, x)
    gate = 1 / (1 + np.exp(-np.asarray(x) @ np.asarray(module.router.kernel[...])[:, 2]))
    weights = (module.gate[...][2], module.up[...][2], module.down[...][2])
    assert_close(y, gate[..., None] * swiglu(np.asarray(x), *weights))


def test_steering_balances_the_load_by_steps_of_its_own_rate():
    """Tokens that all prefer one expert: its bias falls, the others' rise, until they share."""
    config = Moe(n_experts=4, top_k=1, d_expert=3, steered=True, balance_weight=0.0)
    graph, params = nnx.split(config.build(D_MODEL, init=Init(0)))
    kernel = params["router"]["kernel"]
    kernel.set_value(jnp.asarray(0.1 * kernel[...]).at[:, 2].add(0.1))
    x = jnp.abs(tokens(batch=4))
    optim = AdamW(lr=1e-9, vector_lr=1e-9, steered_lr=0.005)
    model = ModelConfig(d_model=D_MODEL, vocab_size=2, blocks=(Block(channel=config),))
    rates, direction = optim.rates(model, params), optim.direction(model, params)

    @jax.jit
    def step(params, moments):
        def penalty(params):
            aux = nnx.merge(graph, params)(x)[1]
            return aux["penalty"], aux["balance"]

        gradient, balance = jax.grad(penalty, has_aux=True)(params)
        change, moments = direction.update(gradient, moments, params)
        return apply(params, change, rates, jnp.float32(1)), moments, (balance, gradient)

    moments, first = direction.init(params), None
    for _ in range(60):
        before, (params, moments, (balance, gradient)) = params, step(params, moments)
        first = balance if first is None else first
    moved = np.asarray(params["bias"][...] - before["bias"][...])
    np.testing.assert_allclose(moved, -0.005 * np.sign(gradient["bias"][...]), rtol=1e-4)
    assert abs(float(gradient["bias"][...].sum())) < 1e-6
    assert first > 1.5
    assert balance < 1.1


def test_blocks_are_an_eighth_of_an_even_load_within_32_to_128_rows_and_a_sixteenth_of_more():
    experts = Moe(n_experts=8, top_k=2, d_expert=16)
    rows = {tokens: experts.layout(tokens)[1] for tokens in (4, 512, 2048, 8192, 16384)}
    assert rows == {4: 1, 512: 32, 2048: 64, 8192: 128, 16384: 256}
    assert Moe(n_experts=8, top_k=2, d_expert=16, block=48).layout(16384)[1] == 48
