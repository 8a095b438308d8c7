"""A gain is found where there is one, not where there is none, and never outside the runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from isoflop.experiments.cli.fit import compare as compare_command
from isoflop.experiments.cli.fit import fit as fit_command
from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import Comparison, arms, compare, gain, ranking, usable
from isoflop.sim.compare.null_test import null_test, power_test
from isoflop.sim.laws.forms import Chinchilla, PowerLaw

SURFACE = Chinchilla(E=1.0, A=30.0, B=600.0, alpha=0.35, beta=0.42)
A = PowerLaw(A=300.0, alpha=0.2, E=1.0)


def curve(law, name, noise=0.0, seeds=3, budgets=10, rng=None, low=1e11, high=1e14):
    c = np.repeat(np.geomspace(low, high, budgets), seeds)
    rng = rng or np.random.default_rng(0)
    loss = law(c) * np.exp(noise * rng.standard_normal(len(c)))
    return {
        "arch": [name] * len(c),
        "flops": c,
        "loss": loss,
        "seed": np.tile(np.arange(seeds), budgets),
    }


def grid(name, noise, rng, factor=1.0, seeds=2, k=5, m=5):
    n, d, s = np.meshgrid(np.geomspace(1e4, 3e5, k), np.geomspace(2e6, 6e7, m), np.arange(seeds))
    n, d, s = n.ravel(), d.ravel(), s.ravel()
    loss = SURFACE(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    cost = 6 * n * d * factor
    return {"arch": [name] * len(n), "N": n, "D": d, "flops": cost, "loss": loss, "seed": s}


def both(*parts):
    return {key: np.concatenate([np.asarray(p[key]) for p in parts]) for key in parts[0]}


def test_gain_of_a_law_that_needs_1_3_times_the_compute_is_1_3():
    needy = PowerLaw(A=A.A * 1.3**A.alpha, alpha=A.alpha, E=A.E)
    found = compare(both(curve(A, "a"), curve(needy, "b")), baseline="b", draws=30)[0]
    assert len(found.ceg) >= 3
    for item in found.ceg:
        assert item.value == pytest.approx(1.3, rel=1e-4)
        assert found.window[0] <= item.budget <= found.window[1]
    assert found.crossover_note == "none in window"


def test_compute_optimal_curve_of_a_surface_is_its_least_loss_at_each_cost():
    rng = np.random.default_rng(0)
    fitted, _ = arms(both(grid("a", 0.0, rng)), n="N", d="D", draws=20)
    budget = 1e12
    assert fitted["a"].curve(budget) == pytest.approx(SURFACE(*SURFACE.optimal(budget)), rel=1e-5)


def test_arms_without_an_asymptote_are_compared_inside_their_window():
    law, needy = (PowerLaw(A=30.0 * more**0.2, alpha=0.2, E=0.0) for more in (1.0, 1.3))
    rng = np.random.default_rng(1)
    runs = both(curve(law, "a", 0.001, rng=rng), curve(needy, "b", 0.001, rng=rng))
    pair, _ = arms(runs, draws=200)
    assert "at a bound" in {arm.fit.status for arm in pair.values()}
    told = gain(pair["a"], pair["b"], "flops").ceg
    assert [item.low < 1.3 < item.high < 1.4 for item in told] == [True] * 3


def test_a_curve_through_runs_that_cheaper_ones_beat_carries_a_caveat():
    rng = np.random.default_rng(0)
    grids, chosen = grid("a", 0.002, rng), curve(A, "b", 0.002, rng=rng)
    runs = both({key: grids[key] for key in chosen}, chosen)
    found = compare(runs, draws=20)[0]
    assert "a (" in found.warning
    assert "b (" not in found.warning
    assert found.json()["warning"] == found.warning
    surfaces = both(grid("a", 0.002, rng), grid("b", 0.002, rng))
    assert compare(surfaces, n="N", d="D", draws=20)[0].warning == ""


def test_any_column_is_a_cost_and_conventions_disagree():
    columns = both(curve(A, "a"), curve(A, "b"))
    columns["seconds"] = columns["flops"] * np.where(columns["arch"] == "b", 2.0, 1.0) / 1e12
    by_flops = compare(columns, baseline="b", draws=20)[0]
    by_seconds = compare(columns, baseline="b", cost="seconds", draws=20)[0]
    assert by_flops.ceg[1].value == pytest.approx(1.0, rel=1e-4)
    assert by_seconds.ceg[1].value == pytest.approx(2.0, rel=1e-4)


def test_crossover_is_where_the_curves_cross():
    steep = PowerLaw(A=300.0 * 1e12**0.05, alpha=0.25, E=1.0)  # meets A at 1e12
    parts = [curve(A, "a", 0.002, seeds=4), curve(steep, "b", 0.002, seeds=4)]
    found = compare(both(*parts), baseline="a", draws=200)[0]
    (cross,) = found.crossovers
    assert cross.low < 1e12 < cross.high
    assert cross.budget == pytest.approx(1e12, rel=0.2)
    assert cross.resolved
    assert cross.share > 0.95


def test_arms_whose_losses_do_not_overlap_are_not_compared():
    worse = PowerLaw(A=3000.0, alpha=0.2, E=4.0)
    found = compare(both(curve(A, "a"), curve(worse, "b")), draws=20)[0]
    assert (found.status, found.ceg) == ("unidentifiable", ())
    assert "do not overlap" in found.reason


def test_budgets_outside_the_window_are_refused():
    with pytest.raises(UserError, match="inside the window both arms share"):
        compare(both(curve(A, "a"), curve(A, "b")), budgets=[1e18], draws=20)


def test_architectures_that_are_not_resolved_share_a_rank():
    rng = np.random.default_rng(1)
    needy = PowerLaw(A=A.A * 2.0**A.alpha, alpha=A.alpha, E=A.E)
    parts = [curve(law, n, 0.003, rng=rng) for law, n in ((A, "x"), (needy, "slow"), (A, "y"))]
    fitted, _ = arms(both(*parts), draws=100)
    places = {p.arm: p.rank for p in ranking(fitted, "flops")}
    assert places == {"x": 1, "y": 1, "slow": 3}


def test_equal_grids_are_paired_and_others_are_not():
    rng = np.random.default_rng(1)
    same = compare(both(curve(A, "a", 0.01, rng=rng), curve(A, "b", 0.01, rng=rng)), draws=20)[0]
    other = compare(both(curve(A, "a", 0.01), curve(A, "b", 0.01, seeds=2)), draws=20)[0]
    assert same.paired
    assert not other.paired


def test_pairing_on_shared_noise_narrows_the_interval():
    rng = np.random.default_rng(1)
    shared = both(*(curve(A, n, 0.01, rng=np.random.default_rng(7)) for n in "ab"))
    own = both(curve(A, "a", 0.01, rng=rng), curve(A, "b", 0.01, rng=rng))
    widths = [compare(c, draws=100)[0].ceg[1] for c in (shared, own)]
    assert widths[0].high - widths[0].low < 1e-9
    assert widths[1].high - widths[1].low > 0.01


@pytest.mark.parametrize("surface", [False, True])
def test_self_tests_run_on_ones_own_records(surface):
    rng = np.random.default_rng(2)
    if surface:
        columns, options = grid("a", 0.003, rng, seeds=4), {"n": "N", "d": "D"}
    else:
        columns, options = curve(A, "a", 0.003, seeds=6, rng=rng), {}
    runs = usable(columns, **options)
    null = null_test(runs, "a", repeats=6, draws=60)
    power = power_test(runs, "a", repeats=6, draws=60)
    assert null.median == pytest.approx(1.0, abs=0.1)
    assert power.median == pytest.approx(1.3, abs=0.1)
    assert null.covers >= 0.5
    assert power.resolves >= 0.8


def test_self_tests_need_seeds():
    columns = curve(A, "a", seeds=1)
    with pytest.raises(UserError, match="needs two seeds of a"):
        null_test(usable(columns), "a")


def study(repeats, noise, factor, draws, surface):
    rng = np.random.default_rng(3)
    covered, values = [], []
    for _ in range(repeats):
        if surface:
            columns = both(grid("a", noise, rng), grid("b", noise, rng, factor))
            found = compare(columns, baseline="b", n="N", d="D", draws=draws)[0]
        else:
            parts = [curve(A, n, noise, rng=rng) for n in "ab"]
            parts[1]["flops"] = parts[1]["flops"] * factor
            found = compare(both(*parts), baseline="b", draws=draws)[0]
        covered.append([g.low <= factor <= g.high for g in found.ceg])
        values.append([g.value for g in found.ceg])
    return np.mean(covered), np.median(values)


@pytest.mark.slow
@pytest.mark.parametrize("surface", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_intervals_of_the_gain_cover_between_85_and_95_percent(surface, factor):
    share, middle = study(200, 0.005, factor, 200, surface)
    print(surface, factor, share, middle)
    assert 0.85 <= share <= 0.95
    assert middle == pytest.approx(factor, rel=0.01)


def write(path: Path, columns):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows)]))
    return path


def test_compare_command_writes_the_promised_json(tmp_path, capsys):
    file = write(tmp_path / "runs.csv", both(curve(A, "a", 0.002), curve(A, "b", 0.002)))
    out = tmp_path / "gain.json"
    found = compare_command(file, baseline="b", draws=50, json_out=out)
    assert isinstance(found[0], Comparison)
    data = json.loads(out.read_text())
    assert set(data["ceg"][0]) == {"arch", "baseline", "budget", "value", "low", "high", "p"}
    assert "compute-equivalent gain" in capsys.readouterr().out
    with pytest.raises(UserError, match="baseline must be one of 'a', 'b'"):
        compare_command(file, baseline="c", draws=20)
    with pytest.raises(UserError, match="'tflops' must be in the table"):
        compare_command(file, flops="tflops")


def test_fit_command_writes_the_promised_json_and_numbers_rows_as_the_file_does(tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = both(grid("a", 0.002, rng), grid("b", 0.002, rng))
    columns["loss"] = [*map(float, columns["loss"][:-1]), "oops"]
    file, out = write(tmp_path / "runs.csv", columns), tmp_path / "fit.json"
    fit_command(file, group="arch", draws=50, json_out=out)
    data = json.loads(out.read_text())
    promised = {
        "law",
        "params",
        "interval",
        "status",
        "objective",
        "held_out",
        "n_points",
        "dropped",
    }
    assert promised <= set(data["b"])
    assert data["a"]["dropped"] == []
    assert data["b"]["dropped"] == [{"row": 100, "reason": "loss is not a number: 'oops'"}]
    assert "converged" in capsys.readouterr().out
