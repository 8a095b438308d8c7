"""A choice says how sure it is, and is right that often; ties are not resolved."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.sim.cost.choose import Candidate, choose, on_frontier, shrunk, winners

N = 1000


def candidate(name, quality, se=0.0, p95=0.1, per_query=0.001, cost_se=0.0, seed=0):
    rng = np.random.default_rng(seed)
    costs = {"p95": p95, "per_query": per_query}
    return Candidate(
        name,
        quality + se * rng.standard_normal(N),
        {k: v * np.exp(cost_se * rng.standard_normal(N)) for k, v in costs.items()},
        "test",
    )


def world(rng, k, spread, noise):
    """Candidates whose true qualities and latencies are known, and which is truly the one."""
    truth, latency = spread * rng.standard_normal(k), 0.5 * np.exp(0.4 * rng.standard_normal(k))
    seen = truth + noise * rng.standard_normal(k)
    timed = latency * np.exp(0.15 * rng.standard_normal(k))
    found = [
        Candidate(
            str(i),
            seen[i] + noise * rng.standard_normal(N),
            {"p95": timed[i] * np.exp(0.15 * rng.standard_normal(N))},
            "test",
        )
        for i in range(k)
    ]
    meets = latency <= 0.5
    return found, int(np.argmax(np.where(meets, truth, -np.inf))) if meets.any() else None


@pytest.mark.parametrize(
    ("spread", "noise"), [(1.0, 1.0), pytest.param(1.0, 0.3, marks=pytest.mark.slow)]
)
def test_of_choices_called_80_to_100_percent_80_to_100_percent_are_right(spread, noise):
    """300 worlds of five candidates, a limit on P95, and truths that only the test knows."""
    rng = np.random.default_rng(4)
    called = []
    for _ in range(300):
        candidates, truth = world(rng, 5, spread, noise)
        try:
            choice = choose(candidates, {"p95": 0.5})
        except UserError:  # nothing meets the limit in most worlds
            continue
        called.append((choice.winner.wins, choice.winner.candidate.name == str(truth)))
    share, right = np.array(called, dtype=float).T
    sure = share >= 0.8
    assert sure.sum() >= 20
    assert 0.8 <= right[sure].mean() <= 1.0
    assert abs(share.mean() - right.mean()) < 0.08  # and all of them together


def test_equal_candidates_are_not_resolved():
    same = [candidate("a", 0.7, 0.02, seed=1), candidate("b", 0.7, 0.02, seed=2)]
    choice = choose(same)
    assert not choice.resolved
    assert set(choice.contenders) == {"a", "b"}
    assert "not resolved between" in choice.words()
    rng, resolved = np.random.default_rng(0), 0
    for _ in range(200):  # noise may tell equal ones apart in a tenth of worlds at most
        drawn = [candidate(n, 0.7 + 0.02 * rng.standard_normal(), 0.02, seed=i)
                 for i, n in enumerate("ab")]  # fmt: skip
        resolved += choose(drawn).resolved
    assert resolved <= 20


def test_one_exact_tie_is_shared_and_broken_by_no_order_of_names():
    first, second = candidate("a", 0.7), candidate("b", 0.7)
    choice = choose([first, second, candidate("c", 0.6)])
    assert [s.wins for s in choice.standings] == [0.5, 0.5, 0.0]
    assert not choice.resolved


def test_a_clear_lead_is_resolved_and_needs_no_measurement():
    choice = choose([candidate("large", 0.9, 0.01), candidate("small", 0.6, 0.01, seed=1)])
    assert choice.resolved
    assert choice.winner.candidate.name == "large"
    assert choice.winner.wins > 0.99
    assert choice.measurements == ()


def test_a_limit_takes_the_best_out_and_a_cost_may_be_the_aim():
    options = [
        candidate("large", 0.9, p95=2.0, per_query=0.02),
        candidate("middle", 0.8, p95=0.4, per_query=0.004),
        candidate("small", 0.6, p95=0.1, per_query=0.001),
    ]
    assert choose(options).winner.candidate.name == "large"
    assert choose(options, {"p95": 0.5}).winner.candidate.name == "middle"
    cheap = choose(options, {"quality": 0.7}, aim="per_query")
    assert cheap.winner.candidate.name == "middle"
    assert all(s.frontier == 1.0 for s in choose(options).standings)


def test_the_measurement_to_buy_is_of_what_decides():
    """Quality is known; whether the better one keeps the limit is not."""
    doubtful = candidate("better", 0.8, p95=0.5, cost_se=0.2, seed=1)
    choice = choose([doubtful, candidate("safe", 0.7, p95=0.1, seed=2)], {"p95": 0.5})
    assert not choice.resolved
    best = choice.measurements[0]
    assert (best.candidate, best.quantity) == ("better", "p95")
    assert best.right > 0.95
    close = choose([candidate("a", 0.70, 0.02, seed=3), candidate("b", 0.71, 0.002, seed=4)])
    assert (close.measurements[0].candidate, close.measurements[0].quantity) == ("a", "quality")


def test_the_frontier_is_that_of_a_direct_search():
    rng = np.random.default_rng(0)
    quality, cost = rng.standard_normal((20, 6)), rng.standard_normal((20, 6))
    meets = rng.random((20, 6)) < 0.7
    found = on_frontier(quality, {"p95": cost}, meets)
    for row in range(20):
        for i in range(6):
            beaten = any(
                meets[row, j] and quality[row, j] > quality[row, i] and cost[row, j] < cost[row, i]
                for j in range(6)
            )
            assert found[row, i] == (meets[row, i] and not beaten)


def test_a_world_has_one_winner_or_none():
    rng = np.random.default_rng(1)
    meets = rng.random((50, 4)) < 0.4
    wins = winners(rng.standard_normal((50, 4)), {}, meets, "quality")
    assert (wins.sum(axis=1) == meets.any(axis=1)).all()
    assert not wins[~meets].any()


def test_of_one_model_served_in_two_ways_the_cheaper_that_meets_the_limits_is_taken():
    ways = [replace(candidate("slow", 0.7, p95=0.9, per_query=0.001), model="it"),
            replace(candidate("fast", 0.7, p95=0.2, per_query=0.002), model="it")]  # fmt: skip
    assert choose(ways).winner.candidate.name == "slow"
    choice = choose(ways, {"p95": 0.5})
    assert choice.winner.candidate.name == "fast"
    assert choice.models == {"it": 1.0}
    assert choice.words().startswith("it is the choice in 100% of 1000 worlds, best as fast")


def test_noise_is_shrunk_and_differences_beyond_it_are_kept():
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((4000, 8))
    alike = shrunk(noise + rng.standard_normal(8), rng).mean(axis=0)
    assert np.ptp(alike) < 1.5  # of eight equal ones, whose estimates lie about 2.8 apart
    apart = 100.0 * np.arange(8)
    assert shrunk(noise + apart, rng).mean(axis=0) == pytest.approx(apart, abs=0.5)
    exact = np.tile([0.1, 0.2], (10, 1))
    assert shrunk(exact, rng) is exact


def test_noise_that_candidates_share_tells_nothing_of_their_order():
    """Two sizes of one law move together: the difference is known better than either."""
    rng = np.random.default_rng(3)
    common = rng.standard_normal(N)
    both = [Candidate(n, q + common + 0.05 * rng.standard_normal(N), {}, "law")
            for n, q in (("a", 0.0), ("b", 0.5))]  # fmt: skip
    choice = choose(both)
    assert choice.resolved
    assert choice.winner.candidate.name == "b"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"p95": 0.05}, r"P95 latency of at most 0.05 s binds: no candidate meets it, and small "
                        r"comes nearest with 0.1 s \(2 ×\)"),
        ({"quality": 0.95}, r"quality of at least 0.95 binds: .* large .* 0.9 \(0.05 short\)"),
        ({"p95": 0.5, "quality": 0.8}, "no candidate meets all limits at once"),
    ],
)  # fmt: skip
def test_limits_that_nothing_meets_say_which_binds_and_by_how_much(limits, told):
    options = [candidate("large", 0.9, p95=2.0), candidate("small", 0.6, p95=0.1)]
    with pytest.raises(UserError, match=told) as refused:
        choose(options, limits)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("candidates", "options", "told"),
    [
        (["a"], {}, "needs two candidates or more, and has 1"),
        (["a", "a"], {}, "'a' is two"),
        (["a", "b"], {}, "have one quality, 0.5, without an error"),
        (["a", "b"], {"limits": {"p95": -1.0}}, "limit of p95 must be a number above 0"),
        (["a", "b"], {"limits": {"speed": 1.0}}, "a limit must be of quality, p95, per_query"),
        (["a", "b"], {"aim": "speed"}, "aim must be one of quality, p95"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(candidates, options, told):
    with pytest.raises(UserError, match=told):
        choose([candidate(name, 0.5) for name in candidates], **options)


def test_the_same_candidates_give_the_same_choice():
    options = [candidate("a", 0.7, 0.05, seed=1), candidate("b", 0.72, 0.05, seed=2)]
    one, two = choose(options), choose(options)
    assert [s.wins for s in one.standings] == [s.wins for s in two.standings]
    assert one.measurements == two.measurements
