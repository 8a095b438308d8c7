"""The coordinate check tells a rule that holds from none."""

from pathlib import Path

import pytest

from isoflop.experiments import coordinates
from isoflop.experiments.families import BASE_DEPTH, BASE_WIDTH, STUDIED, optim
from isoflop.models.errors import UserError
from isoflop.sim.records.store import read_table


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return coordinates.measure(families=("dense",), widths=(32, 64), steps=8, seeds=1)


def slope(rows: list[dict], rule: str) -> float:
    (row,) = (r for r in rows if r["rule"] == rule and r["quantity"] == "logits" and "slope" in r)
    return row["slope"]


@pytest.mark.slow
def test_logits_move_alike_at_both_widths_under_the_rule_and_not_without_it(rows):
    assert abs(slope(rows, "1/width")) < 0.3 < slope(rows, "none")


@pytest.mark.slow
def test_at_the_base_width_the_rule_changes_nothing(rows):
    at_base = [r for r in rows if r["width"] == 64 and r["quantity"] == "activations"]
    assert len({row["change"] for row in at_base}) == 1


def test_the_committed_slopes_are_those_expected():
    """Under the rule for every family and width; without it as far as the logits can tell."""
    path = Path(coordinates.__file__).parent / "results" / "coordinates.jsonl"
    logits = [r for r in read_table(path) if r["quantity"] == "logits" and "slope" in r]
    ruled, free = ([r for r in logits if r["rule"] == rule] for rule in ("1/width", "none"))
    assert len(ruled) == len(free) == len(STUDIED) * 3  # steps from width to width
    assert all(abs(row["slope"]) < 0.1 for row in ruled)
    assert all(row["slope"] > 0.2 for row in free if row["width"] < 256)


def test_over_depth_the_rules_are_completep_and_none():
    ruled = coordinates._rules("depth", optim("dense", BASE_WIDTH, 0), BASE_WIDTH)
    assert {rule: own.base_depth for rule, own in ruled.items()} == {
        "completep": BASE_DEPTH, "none": None,
    }  # fmt: skip


@pytest.mark.slow
def test_rules_over_depth_are_completep_and_none_and_differ_beyond_the_base_depth():
    """One step: the scaled branches move the logits less in a deep model than unscaled ones."""
    rows = coordinates.measure(families=("dense",), widths=(16,), depths=(2, 4), steps=1, seeds=1)
    change = {(r["rule"], r["depth"]): r["change"] for r in rows if r["quantity"] == "logits"}
    assert change["completep", 2] == change["none", 2]
    assert change["completep", 4] < change["none", 4]
    slopes = {r["rule"]: r["slope"] for r in rows if "slope" in r and r["quantity"] == "logits"}
    assert slopes["completep"] < slopes["none"]


def test_one_width_shows_nothing():
    with pytest.raises(
        UserError, match=r"a check needs two widths or two depths.*got widths=\(64,\)"
    ):
        coordinates.measure(widths=(64, 64))
