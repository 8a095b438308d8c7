"""Languages whose entropy is known: fresh, pure, and as dear as they say."""

import itertools
import math

import numpy as np
import pytest
from sources import LANGUAGES, refusal

from isoflop.sim.data import HierarchyGrammar, Markov, ZipfFacts
from isoflop.sim.data.languages import GRID

each_language = pytest.mark.parametrize("config", LANGUAGES, ids=lambda config: config.kind)


@each_language
def test_a_language_is_fresh_and_pure(config):
    opened = config.open()
    first = opened.batch(4, 1, 8, 64).tokens
    assert first.dtype == np.int32
    assert first.shape == (8, 65)
    assert 0 <= first.min() <= first.max() < config.vocab_size
    np.testing.assert_array_equal(first, config.open().batch(4, 1, 8, 64).tokens)
    held_out = opened.held_out(512, 64).tokens
    np.testing.assert_array_equal(held_out, config.open().held_out(512, 64).tokens)
    others = [
        opened.batch(5, 1, 8, 64).tokens,
        opened.batch(4, 2, 8, 64).tokens,
        opened.batch(0, 0, 8, 64).tokens,
    ]
    rows = np.concatenate([first, held_out, *others])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert (opened.train_tokens, opened.bytes_per_token) == (None, None)
    assert opened.unique_tokens(10**9) is None


@each_language
def test_a_language_has_its_own_seed_and_digest(config):
    other = config.model_copy(update={"seed": 1})
    assert other.open().digest != config.open().digest
    assert not np.array_equal(
        other.open().batch(0, 0, 8, 64).tokens, config.open().batch(0, 0, 8, 64).tokens
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_zipf_facts_cost_half_the_entropy_of_their_numbers(alpha):
    config = ZipfFacts(facts=500, symbols=8, alpha=alpha)
    opened = config.open()
    weight = [k ** -(1 + alpha) for k in range(1, 501)]
    p = np.array(weight) / math.fsum(weight)
    assert opened.entropy == pytest.approx(-math.fsum(x * math.log(x) for x in p) / 2, rel=1e-12)
    for tokens in (opened.held_out(65_536, 128).tokens, opened.batch(0, 0, 512, 128).tokens):
        number, symbol = tokens[:, 0:-1:2].ravel(), tokens[:, 1::2].ravel()
        assert number.max() < 500 <= symbol.min()
        assert len(np.unique(np.stack([number, symbol]), axis=1).T) == len(np.unique(number))
        cost = -np.log(p[tokens[:, 2::2]])
        error = cost.mean() / 2 - opened.entropy
        assert abs(error) < 4 * cost.std() / 2 / math.sqrt(cost.size)
    cost = -np.log(p[opened.held_out(65_536, 128).tokens[:, 2::2]])
    assert cost.mean() / 2 == pytest.approx(opened.entropy, abs=1e-3)


def test_a_grammar_has_exactly_the_sentences_that_its_entropy_counts():
    config = HierarchyGrammar(symbols=3, rules=2, branching=2, depth=2)
    opened = config.open()
    assert config.sentence == 4
    sentences = opened.batch(0, 0, 3000, 8).tokens[:, :8].reshape(-1, 4)
    _, count = np.unique(sentences, axis=0, return_counts=True)
    possible = 3 * 2**3
    assert opened.entropy == pytest.approx(math.log(possible) / 4, rel=1e-12)
    assert len(count) == possible
    error = (count - 6000 / possible) / math.sqrt(6000 / possible)
    assert np.abs(error).max() < 4


def test_a_markov_language_costs_its_entropy_and_its_floor():
    opened = Markov(symbols=3, order=2).open()
    step = np.zeros((9, 9))
    np.add.at(step, (np.arange(9).repeat(GRID), opened.next), 1 / GRID)
    np.testing.assert_allclose(opened.stationary @ step, opened.stationary, atol=1e-14)

    def probability(tokens):
        """Of a window, by multiplication along it."""
        context = tokens[0] * 3 + tokens[1]
        p = opened.stationary[context]
        for token in tokens[2:]:
            p *= step[context, context * 3 % 9 + token]
            context = context * 3 % 9 + token
        return p

    every = [probability(tokens) for tokens in itertools.product(range(3), repeat=6)]
    first = opened.stationary.reshape(3, 3).sum(1)
    total = -sum(p * math.log(p) for p in every if p)
    floor = (total + sum(p * math.log(p) for p in first)) / 5
    assert sum(every) == pytest.approx(1, abs=1e-12)
    assert opened.floor(5) == pytest.approx(floor, abs=1e-12)
    assert opened.floor(5) > opened.entropy

    tokens = opened.held_out(100_000, 100).tokens
    context = tokens[:, :-2] * 3 + tokens[:, 1:-1]
    cost = -np.log(step[context, context * 3 % 9 + tokens[:, 2:]])
    assert abs(cost.mean() - opened.entropy) < 4 * cost.std() / math.sqrt(cost.size)


def test_markov_of_order_one_has_no_start_to_pay_for():
    opened = Markov(symbols=9).open()
    assert opened.floor(1) == pytest.approx(opened.entropy, abs=1e-12)


def test_windows_are_whole_sentences():
    assert "must be a multiple of 2" in refusal(LANGUAGES[0].open().batch, 0, 0, 1, 63)
    assert "must be a multiple of 16" in refusal(LANGUAGES[1].open().held_out, 1, 40)
