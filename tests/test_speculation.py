"""Speculative decoding writes what the target would, and as much for each call as predicted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from isoflop.models.base import Init
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.speculation import expected_tokens, rollback_bytes, speculate

WORDS = 4


def model(family: str, seed: int, width: int = 16, strength: float = 3.0):
    """Untrained, with a head that is strong enough for predictions to differ."""
    lm = zoo.FAMILIES[family](width, 1, WORDS).build(init=Init(seed))
    nnx.update(lm, jax.tree.map(jnp.asarray, nnx.state(lm)))
    lm.head.kernel.set_value(strength * lm.head.kernel[...])
    return lm


def written(target, draft, rows: int, count: int, gamma: int = 3, seed: int = 0):
    prompt = jnp.broadcast_to(jnp.array([[1, 3, 0]], jnp.int32), (rows, 3))
    return prompt, speculate(target, draft, prompt, count, gamma, seed=seed)


def exact(lm, prompt, count: int) -> np.ndarray:
    """Probabilities of all continuations, in the order of itertools.product."""
    every = np.array(list(itertools.product(range(WORDS), repeat=count)), np.int32)
    before = np.broadcast_to(np.asarray(prompt[:1]), (len(every), prompt.shape[1]))
    logits = lm(jnp.asarray(np.concatenate([before, every], 1)))[0]
    log_p = np.asarray(jax.nn.log_softmax(logits, -1), float)
    first = prompt.shape[1] - 1
    picked = [log_p[np.arange(len(every)), first + i, every[:, i]] for i in range(count)]
    return np.exp(sum(picked))


def p_value(tokens: np.ndarray, p: np.ndarray) -> float:
    """χ² of continuations, those that are expected less than five times taken together."""
    number = tokens @ WORDS ** np.arange(tokens.shape[1] - 1, -1, -1)
    found = np.bincount(number, minlength=len(p)).astype(float)
    many = p * len(tokens) >= 5
    expected = np.append(p[many], p[~many].sum()) * len(tokens)
    seen = np.append(found[many], found[~many].sum())
    some = expected > 0
    return float(chisquare(seen[some], expected[some] * seen.sum() / expected[some].sum()).pvalue)


@pytest.mark.parametrize(
    ("rows", "count"), [(3000, 3), pytest.param(25_000, 4, marks=pytest.mark.slow)]
)
def test_what_is_written_has_the_target_s_distribution(rows, count):
    """Attention drafts for a recurrence, 10⁵ tokens in the slow test; the draft's own distribution
    is another one.
    """
    target, draft = model("linear", 0), model("dense", 1)
    prompt, found = written(target, draft, rows, count)
    tokens = np.asarray(found.tokens)
    assert p_value(tokens, exact(target, prompt, count)) > 1e-3
    assert p_value(tokens, exact(draft, prompt, count)) < 1e-6
    assert 0 < int(found.kept.sum()) < int(found.tried.sum())


@pytest.mark.parametrize(
    "family",
    ["lstm", *(pytest.param(name, marks=pytest.mark.slow)
               for name in ("mamba", "gated_deltanet", "rwkv7", "hybrid", "moe"))],
)  # fmt: skip
def test_a_state_that_is_rolled_back_is_that_of_the_kept_tokens(family):
    """Were a refused token still in the state, a nearly deterministic target would leave its own
    greedy path.
    """
    target, draft = model(family, 0, 32, strength=4e4), model("dense", 5)
    prompt, found = written(target, draft, 8, 12)
    greedy = target.generate(prompt, 12).tokens
    assert np.array_equal(found.tokens, greedy)
    assert int(found.tried.sum()) > int(found.kept.sum())


def memoryless(head: np.ndarray):
    """A model whose predictions do not depend on what it has read."""
    config = ModelConfig(d_model=8, vocab_size=WORDS, blocks=(Block(channel=SwiGLU(d_ff=8)),))
    lm = config.build(init=Init(0))
    lm.embed.set_value(jnp.ones((WORDS, 8)))
    lm.head.kernel.set_value(jnp.broadcast_to(jnp.asarray(head, jnp.float32)[None] / 8, (8, WORDS)))
    return lm


def test_a_draft_that_is_the_target_is_always_kept():
    target = memoryless(np.array([1.0, 0, 0, -1]))
    _, found = written(target, target, 64, 12)
    assert np.asarray(found.kept).tolist() == [9] * 64
    assert np.asarray(found.calls).tolist() == [3] * 64
    assert expected_tokens(1.0, 3) == 4


@pytest.mark.parametrize("gamma", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_tokens_a_call_are_those_that_are_predicted(gamma):
    target, draft = memoryless(np.array([1.0, 0, 0, -1])), memoryless(np.array([0, 0.8, 0, 0]))
    logits = [np.asarray(lm(jnp.zeros((1, 1), jnp.int32))[0], float)[0, 0]
              for lm in (target, draft)]  # fmt: skip
    p, q = (np.exp(x) / np.exp(x).sum() for x in logits)
    alpha = np.minimum(p, q).sum()
    assert 0.5 < alpha < 0.9
    _, found = written(target, draft, 400, 100, gamma)
    kept = np.asarray(found.kept) + np.asarray(found.calls)
    assert kept.sum() / found.calls.sum() == pytest.approx(expected_tokens(alpha, gamma), rel=0.02)
    assert found.overlap.sum() / found.tried.sum() == pytest.approx(alpha, rel=1e-3)
    assert found.kept.sum() / found.tried.sum() == pytest.approx(alpha, rel=0.02)


def test_what_must_be_kept_to_roll_back_is_the_state_that_does_not_grow():
    linear, dense = (zoo.FAMILIES[name](16, 1, WORDS) for name in ("linear", "dense"))
    assert rollback_bytes(linear, 32) == 4 * linear.state_size(32)
    assert rollback_bytes(dense, 32) == 0
    assert nnx.state(dense.abstract())


def test_models_of_other_tokens_and_nothing_to_write_are_refused():
    target = model("linear", 0)
    prompt = jnp.zeros((1, 2), jnp.int32)
    other = zoo.FAMILIES["linear"](16, 1, 9).build(init=Init(0))
    with pytest.raises(UserError, match="target's 4 tokens, and has 9"):
        speculate(target, other, prompt, 3)
    with pytest.raises(UserError, match="gamma of at least 1"):
        speculate(target, target, prompt, 3, gamma=0)
    with pytest.raises(UserError, match="temperature=0 must be a finite number above 0"):
        speculate(target, target, prompt, 3, temperature=0)
