"""The planner promises the widths that fits then have, and refuses what no money can answer."""

import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest

from experiments import readme
from experiments.fit import plan as plan_command
from models.errors import UserError
from sim.design import (
    LAB,
    SHARED,
    Design,
    check,
    delta_widths,
    propose,
    refuse,
    simulated_widths,
    surface,
)
from sim.laws import Chinchilla
from sim.records import read_rows


def square(k, seeds):
    sizes = tuple(float(v) for v in np.geomspace(1e4, 3e5, k))
    return Design(sizes, tuple(float(v) for v in np.geomspace(10, 320, k)), seeds)


@pytest.mark.parametrize(("k", "seeds", "noise"), [(4, 1, 0.01), (5, 2, 0.005), (6, 3, 0.005)])
def test_delta_method_and_simulation_agree(k, seeds, noise):
    design = square(k, seeds)
    budgets = [design.largest, 10 * design.largest]
    by_delta = delta_widths(LAB, design, noise, budgets)
    by_simulation = simulated_widths(LAB, design, noise, budgets, repeats=400)
    for one, other in zip(by_delta, by_simulation, strict=True):
        for key in ("a", "n_star", "loss", "gain"):
            assert getattr(other, key) == pytest.approx(getattr(one, key), rel=0.15), key


@pytest.mark.parametrize("noise", [0.005, 1e-4], ids=["above delta", "below"])
def test_noise_that_branches_share_is_in_both_widths(noise):
    """And it matters: more runs of a trunk do not average it away."""
    design = square(5, 2)
    by_delta = delta_widths(LAB, design, noise, [design.largest], shared=0.5)[0]
    by_simulation = simulated_widths(LAB, design, noise, [design.largest], shared=0.5)[0]
    for key in ("a", "n_star", "loss", "gain"):
        assert getattr(by_simulation, key) == pytest.approx(getattr(by_delta, key), rel=0.15), key
    alone = delta_widths(LAB, design, noise, [design.largest])[0]
    assert by_delta.loss > 1.1 * alone.loss


def test_branches_of_a_trunk_are_one_size_and_seed():
    design = Design((1e4, 2e4), (10.0, 20.0, 40.0), 2)
    n, d = design.points()
    trunks = design.trunks()
    assert len(set(trunks)) == 4
    for trunk in set(trunks):
        assert len(set(n[trunks == trunk])) == 1
        assert sorted(d[trunks == trunk] / n[trunks == trunk]) == [10.0, 20.0, 40.0]


def test_the_share_is_what_the_committed_ladders_have():
    """From pairs of seeds: mean product of two branches' differences over that of one's square."""
    losses: dict[tuple, dict[tuple[int, int], float]] = defaultdict(dict)
    for records in readme.STUDIES:
        for row in read_rows(records):
            run = row.record.run
            at = records, *row.labels.values()
            losses[at][run.budget.steps, run.seed] = math.log(row.record.loss)
    by_family = defaultdict(list)
    for (records, family, *_), found in losses.items():
        steps, seeds = ({key[axis] for key in found} for axis in (0, 1))
        for a, b in itertools.combinations(seeds, 2):
            pairs = [found[s, a] - found[s, b] for s in steps if {(s, a), (s, b)} <= found.keys()]
            if len(pairs) == 3:
                by_family[records, family].append(pairs)
    scaled = [np.array(p) / np.sqrt(np.mean(np.square(p))) for p in by_family.values()]
    products = np.mean([np.outer(pair, pair) for pairs in scaled for pair in pairs], axis=0)
    off = (products.sum() - np.trace(products)) / 6
    assert off / (np.trace(products) / 3) == pytest.approx(SHARED, abs=0.01)


def test_promised_width_is_the_width_a_bootstrap_then_has():
    design, noise = square(5, 2), 0.005
    promised = delta_widths(LAB, design, noise, [design.largest])[0]
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(8):
        n, d = design.points()
        loss = LAB(n, d) * np.exp(noise * rng.standard_normal(len(n)))
        runs = {"N": n, "D": d, "loss": loss, "run": range(len(n))}
        fit = Chinchilla.fit(runs, draws=150, held_out=())
        widths.append(np.ptp(fit.interval["a"]) / 2)
    assert np.median(widths) == pytest.approx(promised.a, rel=0.35)


def test_four_times_the_runs_halve_the_width():
    one, four = (delta_widths(LAB, square(5, s), 0.005, [1e14])[0] for s in (1, 4))
    assert one.gain / four.gain == pytest.approx(2.0, rel=1e-6)


def test_noise_below_delta_costs_what_least_squares_costs_and_noise_above_pi_over_two():
    small, large = (delta_widths(LAB, square(5, 1), s, [1e14])[0].loss / s for s in (1e-5, 1e-1))
    assert large / small == pytest.approx(math.sqrt(math.pi / 2), rel=0.01)


def test_one_ratio_is_refused_whatever_the_noise():
    design = Design((1e4, 3e4, 1e5, 3e5), (20.0,), 5)
    assert "N and D move together" in refuse(design)
    assert check(design, noise=1e-6, gain=2.0).status == "refused"


def test_one_size_is_refused():
    assert "one model size" in refuse(Design((1e5,), (5.0, 20.0, 80.0, 320.0), 3))


def test_a_gain_inside_the_interval_is_refused_and_a_larger_one_is_answered():
    design = square(5, 2)
    small = check(design, noise=0.005, gain=1.02)
    large = check(design, noise=0.005, gain=1.5)
    assert small.status == "refused"
    assert "a gain of 1.02 × is inside the interval" in small.reason
    assert large.status == "answers"


def test_a_target_more_than_ten_times_out_is_refused_as_speculation():
    design = square(5, 2)
    found = check(design, noise=0.001, gain=2.0, target=30 * design.largest)
    assert found.status == "refused"
    assert "beyond 10 × is speculation" in found.reason


def test_a_proposal_stays_within_its_budget_and_uses_it():
    found = propose(1e15, families=4, noise=0.005, repeats=50)
    assert found.design is not None
    assert found.flops <= 1e15 * (1 + 1e-9)
    assert found.flops > 0.5e15
    assert refuse(found.design) == ""
    assert found.runs == 4 * len(found.design.points()[0])


def test_more_budget_never_resolves_less():
    gains = [propose(b, families=2, noise=0.005, target=1e13, repeats=0).delta[-1].gain
             for b in (3e14, 3e15)]  # fmt: skip
    assert gains[1] < gains[0]


def test_branches_cost_one_trunk_and_their_cooldowns():
    design = Design((1e4,), (10.0, 20.0, 40.0), 2)
    assert design.flops(branches=False) == 6 * 1e8 * 70 * 2
    assert design.flops(branches=True) == pytest.approx(6 * 1e8 * (40 + 0.2 * 30) * 2)


def test_impossible_requests_are_told_in_one_line():
    with pytest.raises(UserError, match="do not pay for 4 sizes"):
        propose(1e9, families=8, noise=0.005)
    with pytest.raises(UserError, match="noise is the seed spread"):
        check(square(4, 1), noise=5.0, gain=1.2)
    with pytest.raises(UserError, match="gain must be above 1"):
        check(square(4, 1), noise=0.01, gain=0.9)
    with pytest.raises(UserError, match="law must be one of"):
        surface("gpt")
    with pytest.raises(UserError, match="--seconds with --flops-per-second"):
        plan_command(seconds=3600.0)


def test_plan_command_prints_and_writes_the_widths(tmp_path, capsys):
    out = tmp_path / "plan.json"
    plan_command(seconds=7200.0, flops_per_second=2e11, families=8, json_out=out)
    data = json.loads(out.read_text())
    assert data["status"] in ("answers", "refused")
    assert data["simulated"][0]["gain"] > 0
    assert "CEG ±" in capsys.readouterr().out
