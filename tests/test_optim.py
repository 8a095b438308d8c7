"""Every optimiser's update is the published one, for every kind of parameter; schedules branch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import run
from flax import nnx

from isoflop.experiments.families import model
from isoflop.models.base import Embedding, Init, LoadBalancingBias, Matrix
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.flops import training_flops
from isoflop.sim.cost.jaxpr import matmul_flops
from isoflop.sim.optim import AdamW, Muon, Optim, apply
from isoflop.sim.optim.base import inside_block
from isoflop.sim.spec import Run, canonical, digest

STEPS = 3
BLOCK = Block(
    mixer=Attention(n_heads=2),
    channel=Moe(n_experts=2, top_k=1, d_expert=3, gate="sigmoid", steered=True),
)
MODEL = ModelConfig(d_model=8, vocab_size=12, blocks=tile(2, BLOCK))
SHARED = {"clip": 0.5, "weight_decay": 0.1, "base_width": 4}
OPTIMISERS = {
    "adamw": AdamW(lr=0.02, **SHARED),
    "muon": Muon(lr=0.05, adam_lr=0.01, **SHARED),
    "adamw over depth": AdamW(lr=0.02, base_depth=1, depth_power=0.75, eps=1e-3, **SHARED),
    "muon over depth": Muon(lr=0.05, base_depth=1, depth_power=0.75, eps=1e-3, **SHARED),
}


@cache
def parameters():
    return nnx.state(MODEL.build(init=Init(0)))


def gradients() -> list:
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32)  # noqa: E731
    return [jax.tree.map(draw, parameters()) for _ in range(STEPS)]


def named(tree) -> dict[tuple, nnx.Variable]:
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(tree)}


def trained(optim: Optim) -> dict[tuple, np.ndarray]:
    """The parameters after STEPS steps at the peak rates."""
    params, direction = parameters(), optim.direction(MODEL, parameters())
    rates, moments = optim.rates(MODEL, params), direction.init(params)
    for gradient in gradients():
        change, moments = jax.jit(direction.update)(gradient, moments, params)
        params = apply(params, change, rates, jnp.float32(1.0))
    return {path: np.asarray(leaf[...]) for path, leaf in named(params).items()}


def orthogonalised(m: np.ndarray) -> np.ndarray:
    """Five quintic Newton-Schulz steps on one matrix (Jordan et al. 2024)."""
    x = m / (np.linalg.norm(m) + 1e-8)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        a = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * a + 2.0315 * a @ a) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def by_hand(optim: Optim) -> dict[tuple, np.ndarray]:
    """The same in float64, parameter by parameter, from the papers' equations."""
    kinds = named(parameters())
    value = {path: np.asarray(leaf[...], np.float64) for path, leaf in kinds.items()}
    first = {path: np.zeros_like(x) for path, x in value.items()}
    second = {path: np.zeros_like(x) for path, x in value.items()}
    ratio = 1.0 if optim.base_depth is None else len(MODEL.blocks) / optim.base_depth
    for step, gradient in enumerate(gradients(), start=1):
        g = {path: np.asarray(leaf[...], np.float64) for path, leaf in named(gradient).items()}
        free = [path for path in g if not isinstance(kinds[path], LoadBalancingBias)]
        norm = np.sqrt(sum((g[path] ** 2).sum() for path in free))
        for path, kind in kinds.items():
            hidden = inside_block(path)
            deep_rate = ratio ** (optim.depth_power - 1) if hidden else 1.0
            eps = optim.eps * (ratio**-optim.depth_power if hidden else 1.0)
            if isinstance(kind, LoadBalancingBias):
                value[path] = value[path] - optim.steered_lr * np.sign(g[path])
                continue
            clipped = g[path] * min(1.0, optim.clip / norm)
            matrix = isinstance(kind, Matrix)
            if isinstance(optim, Muon) and matrix and hidden:
                beta = optim.momentum
                first[path] = beta * first[path] + (1 - beta) * clipped
                corrected = first[path] / (1 - beta ** (step + 1))
                nesterov = beta * corrected + (1 - beta) * clipped / (1 - beta**step)
                stack = nesterov.reshape(-1, *nesterov.shape[-2:])
                shape = max(1.0, nesterov.shape[-1] / nesterov.shape[-2]) ** 0.5
                update = shape * np.stack([orthogonalised(m) for m in stack])
                update, rate = update.reshape(nesterov.shape), optim.lr
            else:
                first[path] = optim.b1 * first[path] + (1 - optim.b1) * clipped
                second[path] = optim.b2 * second[path] + (1 - optim.b2) * clipped**2
                corrected = np.sqrt(second[path] / (1 - optim.b2**step))
                update = first[path] / (1 - optim.b1**step) / (corrected + eps)
                by_adam = optim.adam_lr if isinstance(optim, Muon) else optim.lr
                rate = by_adam * optim.base_width / MODEL.d_model if matrix else optim.vector_lr
                if isinstance(kind, Embedding):
                    rate = optim.embedding_lr
            decay = optim.weight_decay * value[path] if matrix else 0.0
            value[path] = value[path] - rate * deep_rate * (update + decay)
    return value


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_update_is_the_published_one_for_every_kind_of_parameter(name):
    optim = OPTIMISERS[name]
    ours, theirs = trained(optim), by_hand(optim)
    kinds = {type(variable) for variable in named(parameters()).values()}
    assert kinds == {Matrix, Embedding, LoadBalancingBias, nnx.Param}
    assert any(value.ndim == 3 for value in ours.values())  # a stack of experts
    for path, value in ours.items():
        np.testing.assert_allclose(value, theirs[path], rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_muon_orthogonalises_each_matrix_of_a_stack_by_itself():
    """Two experts' matrices, orthogonalised apart: each has spectral norm near 1, not 1/√2."""
    optim = Muon(lr=1.0, weight_decay=0.0, clip=1e9)
    direction = optim.direction(MODEL, parameters())
    moments = direction.init(parameters())
    update, _ = jax.jit(direction.update)(gradients()[0], moments, parameters())
    for path, change in named(update).items():
        if path[-1] in {"gate", "up", "down"}:
            shape = max(1.0, change.shape[-1] / change.shape[-2]) ** 0.5
            norms = np.linalg.norm(np.asarray(change[...]) / shape, ord=2, axis=(-2, -1))
            assert (np.abs(norms - 1.0) < 0.35).all(), path


def test_muons_rate_of_hidden_matrices_does_not_depend_on_the_width_and_adams_does():
    def rates(optim: Optim, width: int) -> dict[tuple, float]:
        wide = MODEL.model_copy(update={"d_model": width})
        return {path: float(x[...]) for path, x in named(optim.rates(wide, parameters())).items()}

    query, head = ("blocks", "0", "mixer", "q", "kernel"), ("head", "kernel")
    adam, muon = AdamW(lr=0.02), Muon(lr=0.02, adam_lr=0.03)
    assert rates(adam, 8)[query] == pytest.approx(2 * rates(adam, 16)[query])
    assert rates(muon, 8)[query] == rates(muon, 16)[query] == pytest.approx(0.02)
    assert rates(muon, 8)[head] == pytest.approx(2 * rates(muon, 16)[head])
    assert rates(muon, 64)[head] == pytest.approx(0.03)


def test_schedules_stay_on_one_trunk_until_they_branch():
    """Warm-up, then constant, cosine or linear: before its branch no run knows its length."""
    for fields, branches in (
        ({"cooldown": 0.25}, (75, 150)),
        ({"cooldown": 1.0, "decay": "cosine", "final": 0.1}, (10, 10)),
        ({"cooldown": 0.5, "decay": "linear"}, (50, 100)),
        ({"cooldown": 0.0}, (100, 200)),
    ):
        optim = AdamW(lr=0.01, warmup_steps=10, **fields)
        assert (optim.branch_step(100), optim.branch_step(200)) == branches
        short, long = optim.schedule(100, 0, 100), optim.schedule(200, 0, 200)
        assert (short[: branches[0]] == long[: branches[0]]).all()
        assert short[9] == 1.0
        assert (np.diff(short[branches[0] :]) < 0).all()
        if branches[0] < 100:
            assert short[-1] == pytest.approx(optim.final, abs=0.15)
    assert (AdamW(lr=0.01, cooldown=0.0).schedule(100, 50, 100) == 1).all()
    cosine = AdamW(lr=1.0, warmup_steps=0, cooldown=1.0, decay="cosine", final=0.1)
    assert cosine.schedule(999, 499, 500)[0] == pytest.approx(0.55)


def test_json_without_a_kind_is_adamw_and_its_digest_names_none():
    """So runs from before there were other optimisers keep their keys."""
    old = run().model_dump(mode="json")
    assert old["optim"].pop("kind") == "adamw"
    assert Run.model_validate(old).key == run().key
    assert digest(AdamW(lr=0.5)) == digest(AdamW(lr=0.5, decay="sqrt", cooldown=0.2))
    assert digest(AdamW(lr=0.5)) != digest(Muon(lr=0.5))
    other = run(optim=Muon(lr=0.02, warmup_steps=3))
    assert Run.model_validate_json(canonical(other)) == other
    with pytest.raises(ValueError, match="kind='adam' is not a Optim; use one of adamw, muon"):
        run(optim={"kind": "adam", "lr": 0.1})


def test_a_base_depth_wants_branches_scaled_for_it():
    optim = AdamW(lr=0.01, base_depth=2, warmup_steps=3)
    deep = model("dense", 32, 8, 512)
    with pytest.raises(ValueError, match=r"base_depth=2 .* 8 blocks by 0.25, .* use optim.deepen"):
        run(model=deep, optim=optim)
    assert run(model=optim.deepen(deep), optim=optim).model.branch_scale == 0.25
    at_base = model("dense", 32, 2, 512)
    assert optim.deepen(at_base) == at_base


def built(config: ModelConfig):
    graph, params = nnx.split(config.build(init=Init(0)))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize("family", ["dense", "gated_deltanet"])
def test_scaled_branches_add_so_much_less_to_the_stream_in_both_forms(family):
    """With a scale near 0 a model is its embedding and head; with 1, what it is without one."""
    plain = model(family, 32, 2, 64)
    tokens = jnp.arange(24).reshape(2, 12)

    def logits(config: ModelConfig) -> np.ndarray:
        lm = built(config)
        state = lm.init_state(2, 12)
        steps = []
        for t in range(12):
            state, out = lm.step(state, tokens[:, t])
            steps.append(np.asarray(out))
        parallel = np.asarray(lm(tokens)[0])
        np.testing.assert_allclose(np.stack(steps, 1), parallel, atol=2e-5)
        return parallel

    def scaled(by: float) -> np.ndarray:
        return logits(plain.model_copy(update={"branch_scale": by}))

    lm = built(plain)
    bare = np.asarray(lm.logits(lm.norm(lm.embed[...][tokens])))
    assert (scaled(1.0) == logits(plain)).all()
    near = np.abs(scaled(1e-3) - bare).max()
    assert 0 < near < 2e-2 < np.abs(scaled(1.0) - bare).max()


def test_the_matmuls_of_an_update_are_counted_as_executed():
    """By the jaxpr of one update; AdamW has none."""
    for name in ("adamw", "muon"):
        optim = OPTIMISERS[name]
        direction = optim.direction(MODEL, parameters())
        moments = direction.init(parameters())
        counted = matmul_flops(direction.update, gradients()[0], moments, parameters())
        assert counted == optim.matmul_flops(MODEL), name
    assert AdamW(lr=1.0).matmul_flops(MODEL) == 0 < Muon(lr=1.0).matmul_flops(MODEL)
    adam, muon = (run(optim=kind(lr=0.02, warmup_steps=3)) for kind in (AdamW, Muon))
    more = adam.budget.steps * muon.optim.matmul_flops(adam.model)
    for name, flops in training_flops(adam).items():
        extra = more if name in ("executed", "matmul", "causal") else 0
        assert training_flops(muon)[name] == flops + extra, name
