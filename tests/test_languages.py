"""Languages whose entropy is known: fresh, pure, and as dear as they say."""

import itertools
import math

import numpy as np
import pytest
from sources import LANGUAGES, refusal

from isoflop.sim.data import ContextFacts, HiddenMarkov, HierarchyGrammar, Markov, ZipfFacts
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


def test_a_hidden_markov_model_predicts_as_all_its_paths_do():
    """The forward algorithm, and the entropy of windows, by a sum over every path of states."""
    opened = HiddenMarkov(states=2, symbols=3, seed=4).open()
    every = np.array(list(itertools.product(range(3), repeat=4)))
    p = np.zeros(len(every))
    for path in itertools.product(range(2), repeat=4):
        likely = opened.stationary[path[0]] * opened.emit[path[0], every[:, 0]]
        for t in range(1, 4):
            likely = likely * opened.move[path[t - 1], path[t]] * opened.emit[path[t], every[:, t]]
        p += likely
    assert p.sum() == pytest.approx(1, abs=1e-12)
    first = p.reshape(3, -1).sum(axis=1)
    nats = -np.log(p) + np.log(first)[every[:, 0]]
    np.testing.assert_allclose(opened.optimal(every).sum(axis=1), nats, rtol=1e-12)
    assert opened.floor(3) == pytest.approx(p @ nats / 3, rel=1e-12)


@pytest.mark.parametrize("dials", [{"states": 3, "symbols": 5}, {"concentration": 0.2, "seed": 1}])
def test_a_hidden_markov_model_costs_its_entropy(dials):
    opened = HiddenMarkov(**dials).open()
    cost = opened.optimal(opened.held_out(60_000, 60).tokens).mean(axis=1)
    assert abs(cost.mean() - opened.floor(60)) < 4 * cost.std() / math.sqrt(len(cost))
    assert opened.floor(60) > opened.entropy
    assert opened.floor(10**6) == pytest.approx(opened.entropy, abs=1e-5)


def test_a_hidden_markov_model_of_one_state_has_tokens_that_know_nothing_of_each_other():
    opened = HiddenMarkov(states=1, symbols=4).open()
    p = opened.emit[0]
    assert opened.entropy == opened.floor(5) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)


def test_a_hidden_markov_model_whose_entropy_is_not_known_is_refused():
    told = refusal(HiddenMarkov(states=16, symbols=16, concentration=0.3).open)
    assert "and must be to 0.001; use fewer symbols or states" in told


def test_facts_of_a_context_are_recalled_from_it_and_cost_what_its_floor_says():
    dials = {"facts": 40, "symbols": 7, "alpha": 0.6, "seed": 3}
    opened, plain = ContextFacts(fresh=0.5, **dials).open(), ZipfFacts(**dials).open()
    tokens = opened.batch(0, 0, 3000, 64).tokens
    known, cost = plain.symbol, np.zeros(tokens.shape)
    cost[:, 0::2] = -np.log(plain.p)[tokens[:, 0::2]]
    assert opened.fresh.sum() == 20
    for row, line in enumerate(tokens):
        own = {}
        for place, (k, z) in enumerate(zip(line[:-1:2], line[1::2], strict=True)):
            if not opened.fresh[k]:
                assert z == known[k]
            elif k in own:
                assert z == own[k]
            else:
                own[k], cost[row, 2 * place + 1] = z, math.log(7)
    mean = cost[:, 1:].mean(axis=1)
    assert abs(mean.mean() - opened.floor(64)) < 4 * mean.std() / math.sqrt(len(mean))
    assert opened.entropy == plain.entropy < opened.floor(512) < opened.floor(64)


def test_facts_of_a_context_without_fresh_ones_are_zipf_facts():
    dials = {"facts": 40, "symbols": 7, "alpha": 0.6, "seed": 3}
    opened, plain = ContextFacts(fresh=0, **dials).open(), ZipfFacts(**dials).open()
    for give in (lambda source: source.batch(3, 1, 8, 64), lambda source: source.held_out(512, 64)):
        np.testing.assert_array_equal(give(opened).tokens, give(plain).tokens)
    assert opened.floor(64) == plain.floor(64)


def test_windows_are_whole_sentences():
    assert "must be a multiple of 2" in refusal(LANGUAGES[0].open().batch, 0, 0, 1, 63)
    assert "must be a multiple of 16" in refusal(LANGUAGES[1].open().held_out, 1, 40)
