"""One seed chooses a rate and the others report; a threshold lies between two states."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.stats
import synthetic

from isoflop.experiments import recall
from isoflop.models.errors import UserError
from isoflop.sim.compare.rankings import rank_correlation
from isoflop.sim.compare.trials import Threshold, chosen, steps_to, threshold
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Record, Row

RATES = (0.005, 0.01, 0.02)


WIDTHS = (24, 32, 64)


@cache
def cells() -> dict:
    found = recall.cells(families=("linear",), widths=WIDTHS, rates=RATES, seeds=3)
    return {(c.labels["width"], c.labels["lr"], c.run.seed): c for c in found}


@cache
def base() -> Record:
    return synthetic.grid(families=("dense",))[0].record


def row(losses, accuracies, seed, rate, width=32) -> Row:
    """By rate: the held-out loss, and the accuracy on some set."""
    cell = cells()[width, rate, seed]
    metrics = {"loss": Metric(value=losses[rate]), "x.accuracy": Metric(value=accuracies[rate])}
    changed = {"run": cell.run, "metrics": metrics, "state_bytes": 100 * width}
    return Row(labels=cell.labels, record=base().model_copy(update=changed))


def grid(losses, fresh, lucky=1.0, width=32):
    """Accuracies of the seed that chooses are `lucky`, those of the others `fresh`."""
    same = dict.fromkeys(RATES, lucky)
    return [
        row(losses, same if seed == 0 else fresh, seed, rate, width)
        for rate in RATES
        for seed in range(3)
    ]


BEST = {0.005: 3.0, 0.01: 2.0, 0.02: 2.5}


def test_the_best_rate_is_the_first_seeds_and_its_accuracy_the_others():
    (trial,) = chosen(grid(BEST, {0.005: 0.9, 0.01: 0.4, 0.02: 0.8}))
    assert (trial.rate, trial.tried, trial.edge) == (0.01, 3, False)
    found = trial.interval("x.accuracy")
    assert (found.mean, found.n) == (0.4, 2)
    assert trial.interval("nothing") is None


def test_an_optimum_at_the_edge_is_marked():
    (trial,) = chosen(grid({0.005: 1.0, 0.01: 2.0, 0.02: 2.5}, dict.fromkeys(RATES, 0.5)))
    assert trial.edge


def test_a_rate_that_lacks_a_seed_is_no_trial_and_one_seed_reports_nothing():
    rows = grid(BEST, dict.fromkeys(RATES, 0.5))
    (trial,) = chosen([r for r in rows if (r.labels["lr"], r.record.run.seed) != (0.01, 2)])
    assert (trial.rate, trial.tried) == (0.02, 2)
    assert chosen([r for r in rows if r.record.run.seed == 0]) == []


def test_a_threshold_lies_between_the_largest_state_that_fails_and_the_smallest_that_does_not():
    def trials(*accuracies):
        pairs = zip(WIDTHS, accuracies, strict=True)
        return [chosen(grid(BEST, dict.fromkeys(RATES, a), width=w))[0] for w, a in pairs]

    assert threshold(trials(0.2, 0.95, 1.0), "x.accuracy") == Threshold(2400, 3200)
    assert threshold(trials(0.2, 0.3, 0.4), "x.accuracy") == Threshold(6400, None)
    assert threshold(trials(0.9, 0.3, 1.0), "x.accuracy") == Threshold(None, 2400, dips=True)
    assert str(threshold(trials(0.2, 0.95, 1.0), "x.accuracy")) == "2.4 kB to 3.2 kB"
    dip = threshold(trials(0.9, 0.3, 1.0), "x.accuracy")
    assert str(dip) == "at most 2.4 kB (not at a larger one)"


def test_fewer_than_two_seeds_are_refused():
    with pytest.raises(UserError, match="one chooses the rate, others report"):
        recall.cells(seeds=1)


def test_a_rank_correlation_has_the_share_of_orders_that_are_as_far_from_none():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == (1.0, 2 / 24)
    rng = np.random.default_rng(1)
    for n in (6, 12):
        x, y = rng.normal(size=(2, n)).tolist()
        found, p = rank_correlation(x, y)
        want = scipy.stats.spearmanr(x, y)
        assert abs(found - want.statistic) < 1e-12
        assert abs(p - want.pvalue) < 0.06  # whose p is of a t distribution
    assert rank_correlation([1, 1, 1], [1, 2, 3])[1] == 1.0


def test_steps_to_an_accuracy_are_those_from_which_on_all_runs_have_it():
    def runs(**accuracies):
        return [
            row({0.01: 1.0}, {0.01: 0.0}, 0, 0.01).model_copy(
                update={
                    "labels": {"family": "dense", "length": 8},
                    "record": base().model_copy(
                        update={
                            "run": base().run.model_copy(update={"budget": budget(int(steps[1:]))}),
                            "metrics": {"accuracy": Metric(value=value)},
                        }
                    ),
                }
            )
            for steps, value in accuracies.items()
        ]

    def budget(steps):
        return base().run.budget.model_copy(update={"steps": steps})

    assert steps_to(runs(s100=0.5, s200=0.96, s400=0.99), "dense") == {8: 200}
    assert steps_to(runs(s100=0.96, s200=0.5, s400=0.99), "dense") == {8: 400}
    assert steps_to(runs(s100=0.5, s200=0.5), "dense") == {8: math.inf}
    assert steps_to(runs(s100=0.5), "mamba") == {}
