"""A data gain is the one that was put in, holds it as often as it says, or is refused."""

import math

import numpy as np
import pytest
from sources import refusal

from isoflop.sim.compare.data_gain import data_gain, gains

LENGTHS = (1e5, 2e5, 4e5, 8e5, 1.6e6)


def loss(tokens: float) -> float:
    return 1.0 + 40 * tokens**-0.35


def plain(seeds=3, noise=0.0, rng=None):
    rng = rng or np.random.default_rng(0)
    return {s: {d: loss(d) * math.exp(noise * rng.normal()) for d in LENGTHS} for s in range(seeds)}


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_gain_is_the_one_that_was_put_in(ratio):
    found = data_gain(plain(), dict.fromkeys(range(3), loss(4e5 * ratio)), 4e5)
    assert found.ratio == pytest.approx(ratio, rel=1e-9)  # at a length that was trained
    between = data_gain(plain(), dict.fromkeys(range(3), loss(3e5)), 4e5)
    assert between.ratio == pytest.approx(0.75, rel=0.02)


def test_plain_runs_are_worth_one_and_no_seed_is_another_s():
    curves = plain(noise=0.02)
    losses = {seed: curves[seed][4e5] for seed in curves}
    same = data_gain(curves, losses, 4e5)
    assert (same.ratio, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))


def test_what_lies_outside_of_the_trained_lengths_is_refused_with_its_side():
    worse = data_gain(plain(), dict.fromkeys(range(3), loss(9e4)), 4e5)
    better = data_gain(plain(), dict.fromkeys(range(3), loss(2e6)), 4e5)
    assert "D_eff/D is below 0.25" in worse.reason
    assert "D_eff/D is above 4" in better.reason
    assert math.isnan(worse.ratio)
    assert "two seeds" in data_gain(plain(1), {0: loss(4e5)}, 4e5).reason
    assert "seed 5 has plain runs of 0" in refusal(data_gain, plain(), {5: 1.5}, 4e5)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Nominal 90 % over 400 worlds of three seeds with half a per cent of noise."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        truth = float(rng.uniform(0.6, 1.6))
        noisy = {s: loss(4e5 * truth) * math.exp(0.005 * rng.normal()) for s in range(3)}
        found = data_gain(plain(3, 0.005, rng), noisy, 4e5)
        held += found.low <= truth <= found.high
    assert 0.85 <= held / 400 <= 0.95


def test_gains_of_a_table_are_by_arm_and_length():
    runs = [("plain", s, d, loss(d)) for s in range(2) for d in LENGTHS]
    runs += [("half", s, d, loss(d / 2)) for s in range(2) for d in (2e5, 4e5)]
    found = {(row["arm"], row["tokens"]): row for row in gains(runs, "plain")}
    assert found["half", 4e5]["ratio"] == pytest.approx(0.5)
    assert found["plain", 1e5]["ratio"] == pytest.approx(1.0)
    assert found["half", 2e5]["runs"] == 2
    assert "none" in refusal(gains, runs, "other")
