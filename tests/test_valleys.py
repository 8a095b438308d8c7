"""IsoFLOP valleys of anybody's runs, what a mixture of architectures says, and their commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from isoflop.experiments.cli.main import main
from isoflop.figures.valleys import heading
from isoflop.models.errors import UserError
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.isoflop import by_budget, isoflop
from isoflop.sim.laws.mixture import mixed
from isoflop.sim.records.readers import read

SURFACE = Chinchilla(E=1.8, A=480.0, B=480.0, alpha=0.35, beta=0.35)
BUDGETS = np.geomspace(1e18, 1e21, 6)
PORIAN = Path(__file__).parent / "fitdata" / "porian_isoflop.csv"


def valleys(rng=None, spread=0.0, noise=0.0, sizes=9, shift=1.0):
    """Runs around the optimum of six budgets, each run's compute off by up to `spread`."""
    rng = rng or np.random.default_rng(0)
    c = np.repeat(BUDGETS, sizes) * np.exp(spread * rng.uniform(-1, 1, sizes * len(BUDGETS)))
    centre = SURFACE.optimal(np.repeat(BUDGETS, sizes))[0] * shift
    n = centre * np.tile(np.geomspace(1 / 6, 6, sizes), len(BUDGETS))
    loss = SURFACE(n, c / (6 * n)) * np.exp(noise * rng.standard_normal(len(c)))
    return {"C": c, "N": n, "D": c / (6 * n), "loss": loss}


def write(path, columns):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows)]))
    return str(path)


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


def test_budgets_that_are_nearly_equal_are_one_valley_and_losses_are_moved_to_it():
    exact, off = valleys(), valleys(spread=0.08)
    found = isoflop(off["C"], off["N"], off["loss"])
    assert [len(v.N) for v in found.valleys] == [9] * 6
    assert found.a == pytest.approx(0.5, abs=0.01)
    true = SURFACE.optimal(found.C)[0]
    assert pytest.approx(true, rel=0.03) == found.N
    still = isoflop(exact["C"], exact["N"], exact["loss"])
    assert pytest.approx(SURFACE.optimal(BUDGETS)[0], rel=1e-3) == still.N


def test_given_budgets_take_runs_within_a_tenth_and_say_how_many_are_of_none():
    runs = valleys(spread=0.05)
    parts = by_budget(runs["C"], [BUDGETS[2], BUDGETS[4] * 1.5])
    assert [len(rows) for _, rows in parts] == [9, 0]
    found = isoflop(runs["C"], runs["N"], runs["loss"], budgets=list(BUDGETS[:3]))
    assert "27 of 54 runs lie within 10% of no budget" in found.warnings


def test_intervals_of_a_minimum_and_of_the_exponent_hold_them_nine_times_in_ten():
    rng, true = np.random.default_rng(1), SURFACE.optimal(BUDGETS)[0]
    held, exponent = [], []
    for _ in range(300):
        runs = valleys(rng, noise=0.004)
        found = isoflop(runs["C"], runs["N"], runs["loss"])
        ends = np.array([v.interval for v in found.valleys if not v.why])
        inside = np.isin(BUDGETS, [v.C for v in found.valleys if not v.why])
        exponent.append(found.interval[0] < 0.5 < found.interval[1])
        held.append((ends[:, 0] < true[inside]) & (true[inside] < ends[:, 1]))
    assert 0.85 <= np.concatenate(held).mean() <= 0.95
    assert 0.85 <= np.mean(exponent) <= 0.97  # HC3 errs to the wide side: .95 here


def test_a_minimum_of_three_sizes_has_no_interval():
    runs = valleys(sizes=3)
    assert all(
        np.isnan(v.interval[0]) for v in isoflop(*list(runs.values())[:2], runs["loss"]).valleys
    )


def test_runs_without_budgets_are_told_to_take_a_surface():
    n, c = np.geomspace(1e6, 1e9, 9), np.geomspace(1e15, 1e21, 9)
    with pytest.raises(UserError, match="or fit a surface: approach 3"):
        isoflop(c, n, SURFACE(n, c / (6 * n)))


@pytest.mark.parametrize(
    ("switches", "a"),
    [
        (("base", "long", "kaplan", "kaplan"), 0.834),
        (("base", "short", "chinchilla", "standard"), 0.572),
        (("tuned", "short", "const", "standard"), 0.497),
    ],
)
def test_the_command_reproduces_published_exponents(switches, a, tmp_path, capsys):
    columns, names = read(PORIAN), ("hparams", "warmup", "decay", "param_count")
    rows = [
        i for i, row in enumerate(zip(*map(columns.get, names), strict=True)) if row == switches
    ]
    file = write(tmp_path / "p.csv", {k: [v[i] for i in rows] for k, v in columns.items()})
    out = tmp_path / "p.json"
    asked = ("fit", file, "--n", "n", "--d", "t", "--flops", "flops", "--approach", "2")
    code, told, _ = run(capsys, *asked, "--curve", "akima", "--json", out)
    assert (code, round(json.loads(out.read_text())["a"], 3)) == (0, a)
    assert f"a = {a:.3f} [" in told


def test_the_figure_of_valleys_states_the_finding(tmp_path, capsys):
    file = write(tmp_path / "v.csv", valleys(noise=0.002))
    asked = ("fit", file, "--flops", "C", "--approach", "2", "--at", "1e23")
    code, told, _ = run(capsys, *asked, "--figure", tmp_path / "out.svg")
    assert code == 0
    assert "at 1e+23" in told
    svg = (tmp_path / "out.svg").read_text()
    assert "The size of least loss grows as C^0.5" in svg
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out.json").read_text())["a"] == pytest.approx(0.5, abs=0.05)


def test_a_title_says_which_grows_faster_only_where_the_interval_does():
    runs = valleys(noise=0.002)
    assert heading(isoflop(runs["C"], runs["N"], runs["loss"])).endswith("may grow alike")
    steep = runs["N"] * (runs["C"] / 1e19) ** 0.2
    said = heading(isoflop(runs["C"], steep, runs["loss"]))
    assert said.endswith("parameters should grow faster than tokens")


def test_the_envelope_is_a_command_too(tmp_path, capsys):
    file = write(tmp_path / "v.csv", valleys())
    code, told, _ = run(capsys, "fit", file, "--approach", "1", "--at", "1e22")
    assert code == 0
    assert "approach 1, envelope" in told


def mixture():
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 5)))
    rng, parts = np.random.default_rng(0), []
    for name, more in (("gru", 1.1), ("lstm", 1.0), ("ssm", 0.9)):
        loss = SURFACE(n, d) * more * np.exp(0.002 * rng.standard_normal(25))
        parts.append({"kind": [name] * 25, "N": n, "D": d, "loss": loss})
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def test_several_architectures_fitted_as_one_are_told(tmp_path, capsys):
    file = write(tmp_path / "m.csv", mixture())
    said = "one law is fitted through all 3 values of column 'kind'"
    _, told, _ = run(capsys, "fit", file, "--draws", 20)
    assert said in told
    assert "between which residuals differ; --group kind" in told
    assert "warning" not in run(capsys, "fit", file, "--draws", 20, "--group", "kind")[1]


@pytest.mark.parametrize("approach", ["1", "2", "3"])
@pytest.mark.parametrize("column", ["arch", "kind"])
def test_every_approach_tells_above_its_table_of_architectures_fitted_as_one(
    approach, column, tmp_path, capsys
):
    better = valleys() | {"loss": 0.95 * valleys()["loss"]}
    both = {k: np.concatenate([v, better[k]]) for k, v in valleys().items()}
    names = {column: np.repeat(["a", "b"], len(better["C"]))}
    file = write(tmp_path / "v.csv", names | both)
    asked = ("fit", file, "--flops", "C", "--approach", approach, "--draws", 20)
    code, told, _ = run(capsys, *asked)
    assert code == 0
    said = f"warning: one law is fitted through all 2 values of column '{column}'"
    assert said in told.split("┏")[0]
    assert f"--group {column}" in told
    if approach != "3":
        assert "one law" not in run(capsys, *asked, "--group", column)[1]


@pytest.mark.parametrize("approach", ["1", "2"])
def test_a_prediction_beyond_the_budgets_is_said_to_be_extrapolated(approach, tmp_path, capsys):
    file, out = write(tmp_path / "v.csv", valleys()), tmp_path / "v.json"
    asked = ("fit", file, "--flops", "C", "--approach", approach, "--json", out)
    _, told, _ = run(capsys, *asked, "--at", "1e23", "1e19", "1e17")
    assert "at 1e+23: extrapolated: 100 × the largest compute with a minimum" in told
    assert "at 1e+17: extrapolated: 0.1 × the smallest" in told
    assert "at 1e+19: extrapolated" not in told
    assert [bool(x["extrapolated"]) for x in json.loads(out.read_text())["at"]] == [1, 0, 1]


def test_what_names_architectures_is_told_by_its_name_or_by_residuals_or_by_their_heaps():
    rng = np.random.default_rng(0)
    noise, half = 0.01 * rng.standard_normal(40), np.repeat([-0.05, 0.05], 20)
    names = np.repeat(["a", "b"], 20)
    assert mixed({"arch": names}, range(40), noise, ())
    assert not mixed({"note": names}, range(40), noise, ())
    assert not mixed({"arch": ["a"] * 40}, range(40), noise, ())
    assert "--group note " in mixed({"note": names}, range(40), half + noise, ())[0]
    assert not mixed({"arch": names}, range(40), half, {"arch"})[1:]
    assert "heaps" in mixed({"N": np.arange(40)}, range(40), half + noise, {"N"})[0]
    assert not mixed({"N": np.arange(40)}, range(40), noise, {"N"})


def test_groups_stand_side_by_side_with_a_prediction_and_a_legend(tmp_path, capsys):
    file, out = write(tmp_path / "m.csv", mixture()), tmp_path / "m.json"
    asked = ("fit", file, "--group", "kind", "--draws", 50, "--at", "1e21", "--json", out)
    code, told, _ = run(capsys, *asked)
    assert code == 0
    assert told.count("quantity") == 1
    assert "│ quantity │ gru │ lstm │ ssm │".replace(" ", "") in told.replace("┃", "│").replace(
        " ", ""
    )
    assert "N*, D*, L*: parameters, tokens and loss of the best run that compute C buys" in told
    data = json.loads(out.read_text())
    for name, more in (("gru", 1.1), ("lstm", 1.0), ("ssm", 0.9)):
        best = more * SURFACE(*SURFACE.optimal(1e21))
        low, high = data[name]["interval"]["L*(1e+21)"]
        assert low < best * 1.01
        assert high > best * 0.99
        assert "variable projection" in data[name]["checklist"]


def test_groups_are_told_at_budgets_that_all_reach(tmp_path, capsys):
    columns, out = mixture(), tmp_path / "m.json"
    columns["D"] = columns["D"] * np.where(columns["kind"] == "ssm", 0.5, 1.0)
    file = write(tmp_path / "m.csv", columns)
    assert run(capsys, "fit", file, "--group", "kind", "--draws", 20, "--json", out)[0] == 0
    keys = {key for fit in json.loads(out.read_text()).values() for key in fit["estimate"]}
    assert {key for key in keys if key.startswith("N*")} == {"N*(3e+17)", "N*(3e+18)"}


REFUSED = {
    "--at must be FLOPs above zero, and is nan": ["--at", "nan"],
    "--budgets must be FLOPs above zero": ["--approach", "2", "--budgets", "1e18", "-1"],
    "--budgets are of approach 2": ["--budgets", "1e18"],
    "--curve is of the valleys of approach 2": ["--curve", "akima"],
    "--figure draws valleys": ["--figure", "x.svg"],
    "must end in .svg or .png": ["--approach", "2", "--figure", "x.pdf"],
    "filter the table to one architecture": [
        "--approach",
        "2",
        "--figure",
        "x.svg",
        "--group",
        "N",
    ],
    "approach 1 fits no law": ["--approach", "1", "--law", "power"],
    "law overtrained predicts no optimum": ["--at", "1e20", "--law", "overtrained"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_options_that_do_not_go_together_are_refused_in_one_line(words, tmp_path, capsys):
    file = write(tmp_path / "v.csv", valleys())
    code, _, err = run(capsys, "fit", file, *REFUSED[words])
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.fixture
def seeded():
    """Rows of two architectures at eight costs: a of four seeds, b of one."""
    rng = np.random.default_rng(0)
    return [
        {"arch": arch, "flops": c, "seed": seed,
         "loss": (2.0 + 300 * c**-0.15) * np.exp(0.002 * rng.standard_normal())}
        for arch, seeds in (("a", 4), ("b", 1)) for c in np.geomspace(1e15, 1e18, 8)
        for seed in range(seeds)
    ]  # fmt: skip


def jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


BAD_CELLS = {
    "an empty cost": {"flops": ""},
    "a failed row's word for a cost": {"flops": "5M", "status": "failed"},
    "a list": {"flops": [1, 2]},
    "a list for a seed": {"seed": [1]},
    "no label": {"arch": ""},
    "no cells": {"flops": None, "seed": None, "loss": None},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (i > 1)) for i, n in enumerate(BAD_CELLS)],
)
def test_selftest_drops_what_compare_drops_and_skips_what_has_one_seed(
    name, seeded, tmp_path, capsys
):
    seeded[0] |= {"arch": "a "}
    file = jsonl(tmp_path / "s.jsonl", [*seeded, seeded[1] | {"flops": 3e15} | BAD_CELLS[name]])
    code, told, err = run(capsys, "selftest", file, "--repeats", 3, "--draws", 20)
    assert (code, err) == (0, "")
    assert "dropped: 1 ×" in told
    assert "b: skipped: a self-test needs two seeds of b, and has 1" in told
    assert "too few to tell coverage" in told
    assert "this design sees a gain of 1.3" in told


def test_selftest_says_what_no_design_sees(seeded, tmp_path, capsys):
    file = jsonl(tmp_path / "s.jsonl", seeded)
    asked = ("selftest", file, "--repeats", 3, "--draws", 20, "--factor", 1.0001)
    assert "this design cannot see a gain of 1" in run(capsys, *asked)[1]


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({}, ("--flops", "nope"), "column 'nope' must be in the table"),
        ({"arch": ""}, (), "needs usable rows: 40 × arch is empty"),
        ({"arch": "one", "seed": 0}, (), "no architecture can be tested: one: a self-test needs"),
    ],
)
def test_selftest_refuses_in_one_line(change, flags, words, seeded, tmp_path, capsys):
    file = jsonl(tmp_path / "s.jsonl", [row | change for row in seeded])
    code, out, err = run(capsys, "selftest", file, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_selftest_finds_the_factor_put_in_and_nothing_else(tmp_path, capsys):
    c, seeds = np.repeat(np.geomspace(1e15, 1e18, 8), 6), np.tile(np.arange(6), 8)
    rng = np.random.default_rng(0)
    loss = (2.0 + 300 * c**-0.15) * np.exp(0.002 * rng.standard_normal(len(c)))
    file = write(tmp_path / "s.csv", {"flops": c, "loss": loss, "seed": seeds})
    out = tmp_path / "s.json"
    asked = ("selftest", file, "--repeats", 6, "--draws", 60, "--factor", 1.5, "--json", out)
    code, told, _ = run(capsys, *asked)
    assert code == 0
    data = json.loads(out.read_text())["all runs"]
    assert data["null"]["median"] == pytest.approx(1.0, abs=0.1)
    assert data["power"]["median"] == pytest.approx(1.5, abs=0.15)
    assert data["power"]["resolves"] >= 0.8
    assert "null: about 90 % should hold 1" in told
    assert "--factor must be above 1" in run(capsys, "selftest", file, "--factor", "nan")[2]
    assert "--repeats must be 1 to 1000" in run(capsys, "selftest", file, "--repeats", "0")[2]
