"""Windows of stored tokens: a pure function of seed and step, every target once an epoch."""

import itertools
import math

import numpy as np
import pytest
from sources import refusal

from isoflop.sim.data.source import Pieces, StoredTokens, shuffle, split


@pytest.fixture
def positions():
    """A source whose tokens are their own positions: training 0…999, held out 1000…1199."""
    every = np.arange(1200)
    return StoredTokens("positions", "", Pieces(every, [(0, 1000)]), Pieces(every, [(1000, 1200)]))


def test_batch_is_a_pure_function_of_seed_and_step(positions):
    first = positions.batch(7, 3, 4, 16).tokens
    positions.batch(0, 0, 4, 16)
    assert first.dtype == np.int32
    assert first.shape == (4, 17)
    np.testing.assert_array_equal(first, positions.batch(7, 3, 4, 16).tokens)
    assert not np.array_equal(first, positions.batch(8, 3, 4, 16).tokens)
    assert not np.array_equal(first, positions.batch(7, 4, 4, 16).tokens)


def test_a_window_is_consecutive_tokens_of_the_ring(positions):
    for step in range(20):
        window = positions.batch(step, 0, 8, 99).tokens
        np.testing.assert_array_equal((window[:, 1:] - window[:, :-1]) % 1000, 1)


@pytest.mark.parametrize("seq_len", [1, 30, 333, 999])
@pytest.mark.parametrize("batch", [1, 7])
def test_an_epoch_shows_no_target_twice(positions, seq_len, batch):
    windows = 1000 // seq_len
    steps = -(-2 * windows // batch)
    rows = np.concatenate(
        [positions.batch(i, 0, batch, seq_len).tokens[:, 1:] for i in range(steps)]
    )
    for epoch in (rows[:windows], rows[windows : 2 * windows]):
        assert len(np.unique(epoch)) == windows * seq_len
    if windows > 10:
        assert not np.array_equal(rows[:windows], rows[windows : 2 * windows])


def test_epochs_are_cut_at_different_offsets(positions):
    first, second = positions.batch(0, 0, 10, 100).tokens, positions.batch(1, 0, 10, 100).tokens
    assert len(np.unique(first[:, 0] % 100)) == len(np.unique(second[:, 0] % 100)) == 1
    assert first[0, 0] % 100 != second[0, 0] % 100


def test_unique_tokens_counts_the_distinct_targets(positions):
    seen = np.concatenate([positions.batch(i, 5, 1, 30).tokens[:, 1:].ravel() for i in range(66)])
    for tokens in (30, 600, 990):
        assert positions.unique_tokens(tokens) == len(np.unique(seen[:tokens]))
    for tokens in (1020, 1980):
        assert 0 <= positions.unique_tokens(tokens) - len(np.unique(seen[:tokens])) < 30


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_shuffle_is_a_permutation(n):
    rng = np.random.default_rng(n)
    assert sorted(shuffle(np.arange(n), n, rng)) == list(range(n))


def test_shuffle_sends_every_place_anywhere_equally_often():
    n, draws = 7, 2000
    count = np.zeros((n, n))
    for key in range(draws):
        rng = np.random.Generator(np.random.Philox(key=[0, key]))
        count[np.arange(n), shuffle(np.arange(n), n, rng)] += 1
    error = (count - draws / n) / math.sqrt(draws / n * (1 - 1 / n))
    assert np.abs(error).max() < 4


def test_shuffle_leaves_no_trace_of_order():
    n, draws = 30, 2000
    gap = np.zeros(n)
    for key in range(draws):
        rng = np.random.Generator(np.random.Philox(key=[0, key]))
        a, b = shuffle(np.array([11, 12]), n, rng)
        gap[(b - a) % n] += 1
    error = (gap[1:] - draws / (n - 1)) / math.sqrt(draws / (n - 1))
    assert gap[0] == 0
    assert np.abs(error).max() < 4


def test_held_out_windows_are_even_and_their_targets_do_not_overlap(positions):
    windows = positions.held_out(90, 30).tokens
    assert windows.shape == (3, 31)
    assert len(np.unique(windows[:, 1:])) == 90
    assert windows[0, 0] == 1000
    assert windows[-1, -1] >= 1198
    assert windows.min() >= 1000
    all_that_fit = positions.held_out(200, 40).tokens
    assert len(np.unique(all_that_fit[:, 1:])) == all_that_fit[:, 1:].size == 160


def test_held_out_gives_what_there_is_and_at_least_one_window(positions):
    assert positions.held_out(10**6, 30).tokens.shape == (6, 31)
    assert positions.held_out(10**6, 199).tokens.shape == (1, 200)
    assert "seq_len=200 needs 201" in refusal(positions.held_out, 1, 200)


def test_a_sequence_longer_than_the_data_is_refused(positions):
    assert positions.batch(0, 0, 1, 999).tokens.shape == (1, 1000)
    assert "the training split of positions has 1000" in refusal(positions.batch, 0, 0, 1, 1000)


@pytest.mark.parametrize("size", [4_000, 20_000, 2_000_000])
@pytest.mark.parametrize("line", [20, 10**7])
def test_split_covers_the_text_without_overlap_at_line_or_character_ends(size, line):
    words = "né für à " * (size // 12)
    text = "\n".join(words[i : i + line] for i in range(0, len(words), line)).encode()
    train, held_out = split(np.frombuffer(text, np.uint8))
    bounds = sorted(train.bounds + held_out.bounds)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    assert 0.02 < len(held_out) / len(text) < 0.08
    for begin, end in held_out.bounds:
        text[begin:end].decode()
        assert line > 20 or text[begin - 1 : begin] == b"\n"


def test_pieces_read_as_if_they_were_joined():
    pieces = Pieces(np.arange(100), [(3, 5), (10, 10), (40, 44)])
    joined = [3, 4, 40, 41, 42, 43]
    assert len(pieces) == 6
    np.testing.assert_array_equal(pieces.take(np.arange(6)), joined)
    np.testing.assert_array_equal(np.concatenate(pieces.slices()), joined)
