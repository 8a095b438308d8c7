"""Data made worse are worse by exactly what they say, in training alone."""

import numpy as np
import pytest
from sources import refusal

from isoflop.sim.data import Corpus, Corrupted, Duplicated, Markov, Mixture, Part
from isoflop.sim.data.tasks.recall import MQAR

CLEAN = Markov(symbols=7, order=1)
SEQ_LEN = 32


def batches(data, steps=20, seed=1, batch=5):
    source = data.open()
    return np.stack([source.batch(i, seed, batch, SEQ_LEN).tokens for i in range(steps)])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 1.0])
def test_exactly_the_stated_share_of_each_batch_is_another_token(rate):
    clean, found = batches(CLEAN), batches(Corrupted(data=CLEAN, rate=rate))
    other = (clean != found).reshape(20, -1)
    assert (other.sum(1) == round(rate * other.shape[1])).all()
    assert 0 <= found.min() <= found.max() < 7


def test_what_replaces_a_token_is_each_other_one_equally_often():
    clean, found = batches(CLEAN, 200), batches(Corrupted(data=CLEAN, rate=1.0), 200)
    share = np.bincount(((found - clean) % 7).ravel(), minlength=7) / clean.size
    assert share[0] == 0
    assert np.abs(share[1:] - 1 / 6).max() < 0.01


def test_a_corrupted_token_is_its_windows_own_and_a_pure_function():
    data = Corrupted(data=CLEAN, rate=0.3)
    np.testing.assert_array_equal(batches(data), batches(data))
    assert not np.array_equal(batches(data), batches(data, seed=2))


@pytest.mark.parametrize("worse", [{"rate": 0.5, "kind": "corrupted"},
                                   {"tokens": 64, "kind": "duplicated"}])  # fmt: skip
@pytest.mark.parametrize("clean", [CLEAN, MQAR(pairs=4, vocab=24, length=32)])
def test_the_held_out_split_and_what_is_known_of_it_stay(worse, clean):
    kind = {"corrupted": Corrupted, "duplicated": Duplicated}[worse["kind"]]
    source, plain = kind(data=clean, **worse).open(), clean.open()
    for a, b in zip(source.held_out(640, SEQ_LEN), plain.held_out(640, SEQ_LEN), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (source.entropy, source.optimum) == (plain.entropy, plain.optimum)
    assert source.floor(SEQ_LEN) == plain.floor(SEQ_LEN)
    assert source.digest != plain.digest
    batch, before = source.batch(0, 0, 2, SEQ_LEN), plain.batch(0, 0, 2, SEQ_LEN)
    assert (batch.weights is None) == (before.weights is None)


def test_duplicates_are_the_same_sequences_each_once_an_epoch_in_another_order():
    tokens = batches(Duplicated(data=CLEAN, tokens=4 * SEQ_LEN + 3), steps=12, batch=1)[:, 0]
    epochs = tokens.reshape(3, 4, -1)
    first = {row.tobytes() for row in epochs[0]}
    assert len(first) == 4
    assert all({row.tobytes() for row in epoch} == first for epoch in epochs)
    assert {
        row.tobytes()
        for row in batches(Duplicated(data=CLEAN, tokens=4 * SEQ_LEN), steps=4, seed=9, batch=1)[
            :, 0
        ]
    } == first
    orders = {
        tuple(row.tobytes() for row in epoch)
        for epoch in batches(Duplicated(data=CLEAN, tokens=8 * SEQ_LEN), steps=40, batch=1)[
            :, 0
        ].reshape(5, 8, -1)
    }
    assert len(orders) == 5
    assert Duplicated(data=CLEAN, tokens=128).open().unique_tokens(1000) == 128


def test_a_share_of_duplicates_is_a_mixture_of_whole_and_few():
    few = Duplicated(data=CLEAN, tokens=SEQ_LEN)
    data = Mixture(parts=(Part(data=CLEAN, share=3), Part(data=few, share=1)))
    rows = batches(data, steps=10, batch=8).reshape(80, -1)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert sorted(counts)[-1] == 20
    assert (counts == 1).sum() == 60


def test_fewer_than_a_sequence_and_more_than_there_are_are_refused(shared_cache):
    few = Duplicated(data=CLEAN, tokens=31)
    assert "at least one sequence" in refusal(few.open().batch, 0, 0, 1, SEQ_LEN)
    assert "at most the" in refusal(Duplicated(data=Corpus(name="kjv"), tokens=2**23).open)
