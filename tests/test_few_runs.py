"""Few runs are told with intervals that are wide enough, and no direction that a floor decides."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grids import lab
from scipy import stats

from isoflop.experiments import coverage
from isoflop.experiments.cli.fit import compare as compare_command
from isoflop.experiments.cli.fit import fit as fit_command
from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import Comparison, Floored, Trend, arms, compare, gain
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.laws.noise import SHARED, Noise, misfit, pooled, residual_noise, shared, together
from isoflop.sim.laws.resample import percentile, units
from isoflop.sim.records.readers import read

CASES = Path(__file__).parent / "cases"
LINE = PowerLaw(A=300.0, alpha=0.2, E=1.0)


def test_one_law_twice_with_six_runs_an_arm_has_no_resolved_gain_and_no_crossing(capsys):
    (found,) = compare_command(CASES / "null_six_runs.csv", n="N", d="D")
    assert all(gain.low < 1.0 < gain.high for gain in found.ceg)
    assert all(gain.high / gain.low < 1.5 for gain in found.ceg)  # and still says something
    assert not any(cross.resolved for cross in found.crossovers)
    out = " ".join(capsys.readouterr().out.split())
    assert "not resolved" in out
    assert "6 runs an arm: the direction is not identifiable" in out
    assert "ranking: 1. b, 1. a" in out


def test_the_floor_decides_the_direction_of_eight_published_runs(tmp_path, capsys):
    (found,) = compare_command(CASES / "moe_fast_track.csv", json_out=tmp_path / "gain.json")
    assert all(3.0 < gain.low < 4.3 and 3.8 < gain.value < 4.3 for gain in found.ceg)
    assert found.trend.direction == "not identifiable"
    low, high = found.trend.floors
    assert (low.end < low.start, high.end > high.start) == (True, True)
    assert 0.0 <= low.E < 1.0 < 1.5 < high.E < 2.1
    out = " ".join(capsys.readouterr().out.split())
    assert "4 runs an arm: the direction is not identifiable" in out
    assert f"{low.start:.3g} to {low.end:.3g} with E = {low.E:.3g}" in out
    told = json.loads((tmp_path / "gain.json").read_text())["comparisons"][0]
    assert not told["paired"]  # equally many runs at other costs
    assert told["trend"]["direction"] == "not identifiable"


def curve(law, runs, noise, rng, name="a"):
    flops = np.geomspace(1e11, 1e14, runs)
    loss = law(flops) * np.exp(noise * rng.standard_normal(runs))
    return {"arch": [name] * runs, "flops": flops, "loss": loss}


def both(*parts):
    return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in parts[0]}


def test_the_interval_of_a_line_through_four_runs_is_students():
    runs = curve(replace(LINE, E=0.0), 4, 0.02, np.random.default_rng(3))
    fit = PowerLaw.fit(
        {"C": runs["flops"], "loss": runs["loss"]}, asymptote=False, delta=1e3, draws=8000,
        held_out=(),
    )  # fmt: skip
    line = stats.linregress(np.log(runs["flops"]), np.log(runs["loss"]))
    half = stats.t.ppf(0.95, 2) * line.stderr
    assert fit.noise.dof == 2
    assert fit.interval["alpha"] == pytest.approx(
        (-line.slope - half, -line.slope + half), rel=0.05
    )


def test_noise_that_branches_share_is_that_of_the_whole_matrices():
    rng = np.random.default_rng(0)
    columns = lab(noise=0.01, k=4, m=4, rng=rng)
    x, y = [columns["N"], columns["D"]], np.log(columns["loss"])
    trunk = np.unique(columns["N"], return_inverse=True)[1]
    form, found = Chinchilla.solve(x, y, asymptote=True, delta=1e3, log=True)
    theta = found.theta[np.argmin(found.objective)]
    step = 1e-6 * np.eye(5)
    J = np.stack([form.predict(theta + s)[0] - form.predict(theta - s)[0] for s in step], axis=1)
    M = np.eye(16) - J @ np.linalg.pinv(J)
    R = (1 - SHARED) * np.eye(16) + SHARED * np.equal.outer(trunk, trunk)
    r = form.predict(theta)[0] - y
    trace = np.trace(M @ R)
    noise = residual_noise(form, y, theta, trunk)
    assert noise.dof == pytest.approx(trace**2 / np.trace(M @ R @ M @ R), rel=1e-4)
    assert noise.variance == pytest.approx(r @ r / trace, rel=1e-4)
    assert misfit(r, trunk)[0] == pytest.approx(r @ np.linalg.inv(R) @ r, rel=1e-9)
    alone = residual_noise(form, y, theta, np.arange(16))
    assert (alone.dof, shared(np.arange(16))) == (11, 0.0)
    assert misfit(r, np.arange(16))[0] == pytest.approx(r @ r)


def test_one_trunk_for_all_runs_is_told():
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 1e5, 3), np.geomspace(1e6, 1e7, 3)))
    columns = {"N": n, "D": d, "loss": 2 + 1e3 / n, "run": np.array(["a"] * 9, object)}
    warned = units(columns, ["N", "D"], 5, np.log(columns["loss"])).warning
    assert warned.startswith("column `run` has one name for all runs, as of one trunk; give each")
    columns["run"] = np.arange(len(columns["run"])).astype(str)
    assert units(columns, ["N", "D"], 5, np.log(columns["loss"])).warning == ""


def test_arms_pool_their_noise_where_it_may_be_the_same():
    assert pooled([Noise(1.0, 1.0), Noise(3.0, 3.0)]) == Noise(2.5, 4.0)
    few = {"a": Noise(1.0, 2.0), "b": Noise(4.0, 2.0)}
    assert together(few) == dict.fromkeys("ab", Noise(2.5, 4.0))
    loud = {"a": Noise(1.0, 9.0), "b": Noise(1.0, 9.0), "c": Noise(3.0, 9.0)}
    assert together(loud)["c"] == loud["c"]
    assert together(loud)["a"].dof > 9.0  # a quiet arm is told from the others less readily
    quiet = {"a": Noise(1.0, 9.0), "b": Noise(1.0, 9.0), "c": Noise(0.1, 9.0)}
    assert together(quiet)["c"] == quiet["c"]
    assert together({"a": Noise(1.0, 1.0)}) == {"a": Noise(1.0, 1.0)}
    assert together(dict.fromkeys("ab", Noise(0.0, 1.0)))["a"].variance == 0.0


def test_a_few_quiet_runs_beside_noisy_ones_get_the_noise_of_both():
    rng = np.random.default_rng(0)
    quiet, loud = curve(LINE, 5, 1e-3, rng, "a"), curve(LINE, 5, 4e-3, rng, "b")
    fitted, _ = arms(both(quiet, loud), draws=200)
    alone = PowerLaw.fit({"C": quiet["flops"], "loss": quiet["loss"]}, draws=200, held_out=())
    told = fitted["a"].fit
    assert told.noise == alone.noise  # what its own runs say
    assert "4.0 degrees of freedom" in told.checklist["interval"]
    assert "2.0 degrees of freedom" in alone.checklist["interval"]


def test_a_draw_without_a_value_lies_in_both_tails():
    draws = np.r_[np.linspace(0.0, 1.0, 80), [math.nan] * 20]
    assert percentile(draws, 0.9) == (-np.inf, np.inf)
    assert percentile(np.r_[np.linspace(0.0, 1.0, 99), math.nan], 0.9)[1] < 1.0


def trunks(sizes, seeds, share, rng):
    """Losses of the lab's grid whose noise the runs of one size and seed have in part in common."""
    columns = lab(seeds=seeds, k=sizes, m=5)
    _, trunk = np.unique(np.stack([columns["N"], columns["seed"]]), axis=1, return_inverse=True)
    own, common = rng.standard_normal(len(trunk)), rng.standard_normal(trunk.max() + 1)
    moved = math.sqrt(1 - share) * own + math.sqrt(share) * common[trunk]
    return columns | {"loss": columns["loss"] * np.exp(0.005 * moved)}


def test_runs_of_one_size_and_seed_are_taken_for_branches_and_the_column_is_named(tmp_path, capsys):
    columns = trunks(4, 1, 0.0, np.random.default_rng(1))
    named = columns | {"run": np.arange(20)}
    open_, told = (Chinchilla.fit(c, draws=300, held_out=()) for c in (columns, named))
    assert "may be cooldown branches of one trunk" in open_.warning
    assert "column `run`" in open_.warning
    assert (told.warning, len(set(told.trunk.tolist()))) == ("", 20)
    assert np.ptp(open_.interval["a"]) > 1.4 * np.ptp(told.interval["a"])
    same = columns | {"run": columns["N"]}
    fit = Chinchilla.fit(same, draws=300, held_out=())
    assert fit.warning == ""
    assert np.ptp(fit.interval["a"]) == pytest.approx(np.ptp(open_.interval["a"]), rel=0.2)
    assert "4 trunks" in fit.checklist["interval"]

    columns["arch"] = ["a"] * 20
    rows = zip(*columns.values(), strict=True)
    file = tmp_path / "runs.csv"
    file.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows)]))
    fit_command(file, draws=20)
    assert "may be cooldown branches" in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_a_comparison_says_that_branches_may_share_noise():
    rng = np.random.default_rng(1)
    parts = [trunks(4, 1, 0.0, rng) for _ in range(2)]
    columns = both(*parts) | {"arch": np.repeat(["a", "b"], 20)}
    columns["flops"] = 6 * columns["N"] * columns["D"]
    found = compare(columns, n="N", d="D", draws=20)[0]
    assert "may be cooldown branches of one trunk" in found.warning


@pytest.mark.parametrize(("share", "name"), [(0.0, "runs of one"), (SHARED, "trunks")])
def test_seeds_show_whether_runs_of_one_size_share_noise(share, name):
    fit = Chinchilla.fit(trunks(5, 3, share, np.random.default_rng(2)), draws=20, held_out=())
    assert ("of their noise, as cooldown branches" in fit.warning) == (share > 0)
    assert ("15 trunks" in fit.checklist["interval"]) == (share > 0)
    assert ("25 cells" in fit.checklist["interval"]) == (share == 0)


def test_units_that_are_enough_are_drawn_and_few_are_not():
    cost = np.geomspace(1.0, 10.0, 12)
    for runs, p, few in ((11, 3, True), (12, 3, False), (12, 6, True)):
        assert units({"C": cost[:runs]}, ["C"], p, np.zeros(runs)).few == few


def test_arms_are_paired_where_cells_share_costs_and_seeds_and_nowhere_else():
    def seeded(factor=1.0, first=0):
        flops = factor * np.repeat(np.geomspace(1e11, 1e14, 10), 2)
        seeds = np.tile([first, first + 1], 10)
        loss = LINE(flops) * np.exp(0.005 * np.random.default_rng(5).standard_normal(20))
        return {"flops": flops, "loss": loss, "seed": seeds}

    def paired(a, b):
        columns = both(a, b) | {"arch": np.repeat(["a", "b"], 20)}
        return compare(columns, draws=20)[0].paired

    assert paired(seeded(), seeded())
    assert paired(seeded(), seeded(factor=1.05))
    assert not paired(seeded(), seeded(factor=2.0))
    assert not paired(seeded(), seeded(first=7))
    unseeded = {k: v for k, v in seeded().items() if k != "seed"}
    assert not paired(unseeded, unseeded)


@pytest.mark.parametrize(
    ("alpha", "direction"),
    [(0.16, "falls"), (0.2, "not identifiable"), (0.24, "rises")],
)
def test_a_direction_is_told_where_every_floor_agrees(alpha, direction):
    rng = np.random.default_rng(0)
    steep = PowerLaw(A=300.0 * (3e12) ** (alpha - 0.2), alpha=alpha, E=1.0)
    columns = both(curve(steep, 20, 0.001, rng), curve(LINE, 20, 0.001, rng, "b"))
    found = compare(columns, baseline="b", draws=200)[0]
    assert found.trend.direction == direction
    assert ("not identifiable" in found.trend_note) == (direction == "not identifiable")


def test_a_pinned_floor_gives_no_direction_that_other_floors_deny():
    runs = read(CASES / "moe_fast_track.csv")
    found = compare(runs, baseline="dense", asymptote=False, draws=200)[0]
    first, last = found.ceg[0], found.ceg[-1]
    assert first.value > 4.3 > 4.1 > last.value  # with E = 0 it falls
    assert found.trend.floors[1].end > found.trend.floors[1].start
    assert found.trend.direction == "not identifiable"


def test_a_pinned_floor_gives_no_direction_however_many_seeds_agree_on_it():
    """Four runs of each published one: with E = 0 every draw falls, and other floors fit better."""
    runs = {key: np.repeat(column, 4) for key, column in read(CASES / "moe_fast_track.csv").items()}
    noise = 0.002 * np.random.default_rng(0).standard_normal(32)
    runs |= {"loss": runs["loss"].astype(float) * np.exp(noise), "seed": np.tile(np.arange(4), 8)}
    runs["flops"] = runs["flops"].astype(float)
    pinned, _ = arms(runs, asymptote=False, draws=200)
    found = gain(pinned["moe"], pinned["dense"], "flops")
    ends = [pinned["dense"].draws.inverse(pinned["moe"].draws(c)) / c for c in found.window]
    assert (ends[1] < ends[0]).mean() > 0.95
    assert found.trend.floors[1].end > found.trend.floors[1].start
    assert found.trend.direction == "not identifiable"


def test_a_trend_that_ends_where_the_baseline_never_comes_is_plain_json():
    floors = Floored(0.5, 2.0, math.inf), Floored(1.0, math.nan, 3.0)
    trend = Trend("not identifiable", floors, (4, 5))
    told = Comparison("a", "b", "flops", "converged", "", trend=trend)
    assert json.loads(json.dumps(told.json(), allow_nan=False))["trend"]["floors"] == [
        {"E": 0.5, "start": 2.0, "end": None},
        {"E": 1.0, "start": None, "end": 3.0},
    ]
    assert "4 and 5 runs an arm" in told.trend_note


FEW = {"power 4": ("exponent", "L*"), "power 6": ("exponent", "L*"), "n/d 6": ("N*", "L*")}


@pytest.mark.parametrize(
    "design",
    ["power 4", pytest.param("power 6", marks=pytest.mark.slow), "n/d 6"],
)
def test_intervals_of_few_runs_hold_the_truth_most_of_the_time(design):
    (row,) = (row for row in coverage.measure(16, 40, only=design) if row["design"] == design)
    told = {key: row[key] for key in (*FEW[design], "CEG")}
    assert min(told.values()) >= 0.75, told  # 16 tables: the slow test has the sharp bounds
    assert row["false crossings"] <= 0.1
    assert row["declined"] == 0


def test_coverage_of_a_design_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="part of a design's name, and they are: power 4"):
        coverage.measure(only="cubic")
    with pytest.raises(UserError, match="repeats=0"):
        coverage.measure(repeats=0)


@pytest.mark.slow
@pytest.mark.parametrize("arms", coverage.DESIGNS, ids=lambda arms: arms.name)
def test_90_percent_intervals_of_any_design_cover_about_nine_times_in_ten(arms):
    (row,) = (row for row in coverage.measure(only=arms.name) if row["design"] == arms.name)
    print(row)
    told = [row[key] for key in ("exponent", "N*", "L*", "CEG") if key in row]
    if arms.share > SHARED:  # more than is assumed: the log says how far that is off
        assert min(told) > 0.5
        return
    assert min(told) >= 0.85 - 2 * 0.03, row  # of 100 tables the standard error is .03
    if arms.share in (0.0, SHARED) and (arms.column or arms.share or arms.form == "power"):
        assert np.mean(told) <= 0.95 + 0.03, row
    assert row["false crossings"] <= 0.1
