"""The planner promises the widths that fits then have, and refuses what no money can answer."""

import itertools
import json
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from isoflop.experiments.cli import plan as plan_module
from isoflop.experiments.cli import readme
from isoflop.experiments.cli.main import main
from isoflop.experiments.cli.plan import plan as plan_command
from isoflop.models.errors import UserError
from isoflop.sim.compare.design import (
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
from isoflop.sim.compare.gains import compare
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.records.store import read_rows


def square(k, seeds):
    sizes = tuple(float(v) for v in np.geomspace(1e4, 3e5, k))
    return Design(sizes, tuple(float(v) for v in np.geomspace(10, 320, k)), seeds)


@pytest.mark.parametrize(
    ("k", "seeds", "noise"),
    [(4, 1, 0.01), *(pytest.param(k, k - 3, 0.005, marks=pytest.mark.slow) for k in (5, 6))],
)
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


@pytest.mark.parametrize("share", [1.1, 30])
def test_a_target_where_compare_will_not_read_is_refused(share):
    design = square(5, 2)
    found = check(design, noise=0.001, gain=2.0, target=share * design.largest / 2.0)
    assert found.status == "refused"
    assert found.delta is None
    low, high = design.smallest * 2, design.largest / 2
    assert f"it is {low:.3g} to {high:.3g} FLOPs" in found.reason
    assert check(design, noise=0.001, gain=2.0, target=0.99 * high).status == "answers"
    wide = check(design, noise=0.001, gain=1e3)
    assert "this grid has none for a gain of 1000" in wide.reason


def test_a_proposal_stays_within_its_budget_and_uses_it():
    found = propose(1e15, families=4, noise=0.005, repeats=50)
    assert found.flops <= 1e15 * (1 + 1e-9)
    assert found.flops > 0.5e15
    assert refuse(found.design) == ""
    assert found.runs == 4 * len(found.design.points()[0])


def test_more_budget_never_resolves_less():
    plans = [propose(b, families=2, noise=0.005, target=1e13, repeats=0) for b in (3e14, 3e15)]
    few, many = (plan.delta.gain for plan in plans if plan.delta)
    assert many < few


def test_branches_cost_one_trunk_and_their_cooldowns():
    design = Design((1e4,), (10.0, 20.0, 40.0), 2)
    assert design.flops(branches=False) == 6 * 1e8 * 70 * 2
    assert design.flops(branches=True) == pytest.approx(6 * 1e8 * (40 + 0.2 * 30) * 2)


def test_impossible_requests_are_told_in_one_line():
    with pytest.raises(UserError, match="do not pay for 4 sizes"):
        propose(1e9, families=8, noise=0.005)
    with pytest.raises(UserError, match="noise must be the seed spread"):
        check(square(4, 1), noise=5.0, gain=1.2)
    with pytest.raises(UserError, match="gain must be above 1"):
        check(square(4, 1), noise=0.01, gain=0.9)
    with pytest.raises(UserError, match="law must be one of"):
        surface("gpt")
    with pytest.raises(UserError, match="--seconds with --flops-per-second"):
        plan_command(seconds=3600.0)


def test_plan_command_prints_and_writes_the_widths(tmp_path, capsys):
    out = tmp_path / "plan.json"
    for gain, status in ((1.0001, "refused"), (3.0, "answers")):
        asked = ["--seconds", 7200.0, "--flops-per-second", 2e11, "--families", 8, "--gain", gain]
        code = main(["plan", *map(str, asked), "--json", str(out)])
        assert code == (2 if status == "refused" else 0)
        data = json.loads(out.read_text())
        assert data["status"] == status
        assert 1.0001 < 1 + data["simulated"]["gain"] < 3
        said, err = capsys.readouterr()
        told = said.splitlines()
        assert err.startswith("error: refused: ") == (status == "refused")
    names = [line.partition(": ")[0] for line in told]
    assert all(line.partition(": ")[2] for line in told)
    assert len(set(names)) == len(names)
    assert "there, by simulation" in names
    assert sum("CEG ±" in line for line in told) == 3  # two methods and the verdict
    for name in ("cost", "window", "target"):
        assert name in names


REFUSED_FLAGS = [
    ["--flops", "nan"],
    ["--flops", "inf"],
    ["--flops", "0"],
    ["--flops", "-1e15"],
    ["--flops", "1e300"],
    [],
    ["--seconds", "60"],
    ["--flops", "1e15", "--seconds", "60"],
    ["--flops", "1e15", "--flops-per-second", "1e11"],
    ["--seconds", "nan", "--flops-per-second", "1e11"],
    ["--seconds", "1e39", "--flops-per-second", "1e39"],
    *(["--flops", "1e15", "--families", n] for n in ("0", "-2", "1" * 400)),
    *(["--flops", "1e15", "--noise", n] for n in ("0", "nan", "-1", "inf", "1e-300")),
    *(["--flops", "1e15", "--gain", n] for n in ("1", "nan", "inf", "0", "-2")),
    *(["--flops", "1e15", "--target", n] for n in ("nan", "0", "-1", "inf")),
    *(["--flops", "1e15", "--smallest", n] for n in ("0", "nan", "-1", "1e300", "1e9")),
    *(["--flops", "1e15", "--largest", n] for n in ("0", "nan", "1e4", "1e9", "inf")),
    ["--flops", "1e15", "--law", "[/b]"],
]


@pytest.mark.parametrize("flags", REFUSED_FLAGS, ids=" ".join)
def test_what_is_no_budget_number_or_size_is_one_line_and_exit_code_2(flags, capsys, tmp_path):
    assert main(["plan", *flags, "--json", str(tmp_path / "plan.json")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert len(err) < 400
    assert not list(tmp_path.iterdir())


def test_a_target_outside_the_window_is_refused_with_exit_code_2(capsys):
    assert main(["plan", "--flops", "1e15", "--target", "1e20"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: refused: ")
    assert "window: compare will read gains from" in out


def test_what_a_plan_leaves_of_its_budget_is_said_and_larger_models_use_it(monkeypatch, capsys):
    small = propose(1e20, families=3, noise=0.005, repeats=0)
    monkeypatch.setattr(plan_module, "propose", lambda *args, **options: small)
    plan_command(flops=1e20, families=3)
    assert "up to 300,000 parameters" in capsys.readouterr().out
    large = propose(1e20, families=3, noise=0.005, repeats=0, largest=3e7)
    assert small.unused.startswith("1e+20 of 1e+20 FLOPs: of the grids searched (4 to 8 sizes")
    assert large.design.sizes[-1] == pytest.approx(3e7)
    assert large.flops > 1000 * small.flops
    assert propose(1e15, families=2, noise=0.005, repeats=0).unused == ""


def test_a_refusal_asks_for_more_only_where_the_budget_is_spent():
    spent = propose(1e14, families=2, noise=0.1, repeats=0)
    left = propose(1e18, families=2, noise=0.4, repeats=0, gain=1.05)
    assert (spent.status, left.status) == ("refused", "refused")
    assert spent.flops > 0.9e14
    assert "spend about" in spent.reason
    assert left.flops < 0.1e18
    assert "spend" not in left.reason
    for plan, noise, gain in ((spent, 0.1, 1.2), (left, 0.4, 1.05)):
        assert plan.delta is not None
        lower = noise * math.log(gain) / plan.delta.gain
        assert f"lower the noise to {lower:.2g}, or ask" in plan.reason


@pytest.mark.parametrize("target", [1e10, pytest.param(3e12, marks=pytest.mark.slow), 1e13])
def test_a_target_stays_where_it_was_asked_for(target):
    found = propose(1e15, families=2, noise=0.005, target=target, repeats=0)
    assert found.target == target
    assert found.delta is not None
    assert found.delta.budget == target


def study(design, noise, factor, seed):
    """Rows of two arms on the planned grid; b needs `factor` times a's compute. Branches of a trunk
    share noise as the committed ladders' do.
    """
    rng = np.random.default_rng(seed)
    (n, d), trunk = design.points(), design.trunks()
    rows = []
    for arch, more in (("a", 1.0), ("b", factor)):
        own, common = rng.standard_normal(len(n)), rng.standard_normal(trunk.max() + 1)[trunk]
        loss = LAB(n / math.sqrt(more), d / math.sqrt(more))
        loss *= np.exp(noise * (math.sqrt(1 - SHARED) * own + math.sqrt(SHARED) * common))
        rows += [
            {
                **{"arch": arch, "N": n[i], "D": d[i], "flops": 6 * n[i] * d[i], "loss": loss[i]},
                **{"run": f"{arch} {trunk[i] // design.seeds}", "seed": trunk[i] % design.seeds},
            }
            for i in range(len(n))
        ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def kept(plan, noise, factor, seed, draws):
    """Whether `compare` reads a gain at the plan's target, within 1.6 × the width promised."""
    try:
        (found,) = compare(
            study(plan.design, noise, factor, seed), baseline="a", n="N", d="D", draws=draws,
            budgets=[plan.target],
        )  # fmt: skip
    except UserError:
        return False
    return bool(found.ceg) and (
        math.log(found.ceg[0].high / found.ceg[0].low) / 2 < 1.6 * plan.delta.gain
    )


@pytest.mark.parametrize("factor", [pytest.param(1 / 1.2, marks=pytest.mark.slow), 1.2])
def test_compare_reads_what_plan_promised(factor):
    plan = propose(3e13, families=2, noise=0.005, repeats=0)
    assert plan.status == "answers"
    assert kept(plan, 0.005, factor, seed=1, draws=100)
    beyond = replace(plan, target=1.25 * plan.design.largest)  # the old promise reached 10 ×
    assert not kept(beyond, 0.005, factor, seed=1, draws=100)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 1.2])
@pytest.mark.parametrize(
    "asked",
    [{"budget": 3e13}, {"budget": 1e15}, {"budget": 1e15, "target": 3.5e13}],
    ids=["small", "large", "at the window's edge"],
)
def test_compare_reads_what_plan_promised_in_35_of_40_studies(asked, factor):
    plan = propose(**asked, families=2, noise=0.005, repeats=0)
    assert sum(kept(plan, 0.005, factor, seed, draws=200) for seed in range(40)) >= 35


def test_planned_then_compared_by_the_commands(tmp_path, capsys):
    plan_command(flops=3e13, json_out=tmp_path / "plan.json")
    promised = json.loads((tmp_path / "plan.json").read_text())
    sizes, ratios, seeds = promised["design"].values()
    columns = study(Design(tuple(sizes), tuple(ratios), seeds), 0.005, 1.2, seed=3)
    lines = [
        ",".join(columns),
        *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
    ]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    capsys.readouterr()
    flags = ["--n", "N", "--d", "D", "--draws", "50", "--json", str(tmp_path / "gain.json")]
    budgets = ["--budgets", str(promised["target"])]
    assert main(["compare", str(tmp_path / "runs.csv"), *flags, *budgets]) == 0
    (gain,) = json.loads((tmp_path / "gain.json").read_text())["ceg"]
    assert gain["budget"] == promised["target"]
    capsys.readouterr()
    for bad, words in (("nan", "must be costs above zero"), ("1e20", "inside the window")):
        assert main(["compare", str(tmp_path / "runs.csv"), *flags, "--budgets", bad]) == 2
        assert words in capsys.readouterr().err
