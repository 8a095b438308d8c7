"""Where attention and a recurrence cross, of costs whose crossing is known."""

import numpy as np
import pytest

from isoflop.sim.compare.context_crossings import crossing, crossings

LENGTHS = (128, 512, 2048, 8192, 32768)


def line(family, cost, noise=0.0, turns=5, rng=None, lengths=LENGTHS):
    rows = []
    for t in lengths:
        drawn = [
            cost(t) * np.exp(noise * rng.standard_normal() if noise else 0.0) for _ in range(turns)
        ]
        rows.append(
            {"family": family, "quantity": "prefill_seconds", "seq_len": t, "turns": drawn}
            | {"value": float(np.median(drawn))}
        )
    return rows


def found(attention, recurrence):
    (one,) = crossings([*attention, *recurrence], ["dense"], ["prefill_seconds"])
    return one


def test_power_laws_cross_where_they_are_equal():
    one = found(line("dense", lambda t: t**1.5), line("mamba", lambda t: 40 * t))
    assert one.at == pytest.approx(1600)
    assert (one.low, one.high) == (pytest.approx(1600), pytest.approx(1600))
    assert one.words == "1,600 tokens [1,600, 1,600]"


def test_what_never_crosses_is_said_to_lie_on_the_side_where_it_is():
    dense = line("dense", lambda t: t)
    assert found(dense, line("mamba", lambda t: 2 * t)).words.startswith("beyond 32,768 tokens")
    assert found(dense, line("mamba", lambda t: t / 2)).words.startswith("below 128 tokens")
    assert found(dense, line("mamba", lambda t: t**2 / 1000)).words.startswith("none: cheaper at")
    assert found(dense, line("mamba", lambda t: t, lengths=(64,))).words == "no length in common"


def test_there_is_an_interval_of_three_turns_that_all_cross_and_of_no_fewer():
    dense, mamba = (lambda t: t**1.5), (lambda t: 40 * t)
    two = found(line("dense", dense, turns=2), line("mamba", mamba, turns=2))
    assert (two.at, two.low, two.high) == (pytest.approx(1600), None, None)
    some = line("dense", dense, turns=3)
    for row in some:
        row["turns"][0] = 1e-9
    assert found(some, line("mamba", mamba, turns=3)).low is None
    old = [{k: v for k, v in row.items() if k != "turns"} for row in line("dense", dense)]
    assert found(old, line("mamba", mamba)).low is None


def test_the_interval_covers_the_crossing_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        one = found(
            line("dense", lambda t: t**1.5, 0.05, rng=rng),
            line("mamba", lambda t: 40 * t, 0.05, rng=rng),
        )
        inside += one.low <= 1600 <= one.high
    assert 0.85 <= inside / 400 <= 0.95


def test_of_several_crossings_the_last_counts():
    assert crossing((1, 2, 4, 8), (0.5, 2, 0.5, 2)) == pytest.approx(4 * 2**0.5)
