"""The optimum lies along what configurations cost, whatever that is, and misfit widens it."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import arms, compare
from isoflop.sim.laws.cost_model import SIX_ND, fit_cost
from isoflop.sim.laws.forms import Chinchilla, Coupled, fit_table
from isoflop.sim.laws.frontier import Frontier
from isoflop.sim.records.readers import read

CASES = Path(__file__).parent / "cases"
SURFACE = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
WIDTHS = np.array([256, 384, 512, 640, 768, 1024, 1280, 1536])


def transformer(width, vocab=50304, context=2048):
    """N, and FLOPs a token, of blocks of 12·d² whose number is d/64."""
    n = 12 * (width / 64) * width**2
    return n, 6 * n + 6 * vocab * width + 6 * (width / 64) * context * width


COSTS = {  # N ↦ cost of a token
    "6ND": lambda n: 6 * n,
    "attention and head": lambda n: transformer((n / 0.1875) ** (1 / 3))[1],
    "a part of N is free": lambda n: 6 * n / (1 + 40 * n ** (-1 / 3) + 300 * n ** (-2 / 3)),
    "seconds at a throughput that grows": lambda n: 1e-12 * n**0.83,
    "steps that wait": lambda n: 1e-7 + 3e-15 * n,
}


def grid(per_token, ratios=(5, 10, 20, 40, 80), power=1.0, name="a"):
    n = np.repeat(0.1875 * WIDTHS.astype(float) ** 3, len(ratios))
    d = n * np.tile(ratios, len(WIDTHS))
    cost = per_token(n) * d**power
    return {"arch": [name] * len(n), "N": n, "D": d, "C": cost, "loss": SURFACE(n, d)}


def least(per_token, C, power=1.0):
    """log N and loss of the optimum, by a search that knows the true cost."""

    def loss(log_n):
        n = np.exp(log_n)
        return SURFACE(n, (C / per_token(n)) ** (1 / power))

    found = minimize_scalar(loss, bounds=(8, 30), method="bounded", options={"xatol": 1e-10})
    return found.x, found.fun


def true_gain(arm, baseline, C):
    aim, at = least(arm, C)[1], np.log(C)
    return np.exp(brentq(lambda c: least(baseline, np.exp(c))[1] - aim, at - 1, at + 3) - at)


@pytest.mark.parametrize("power", [1.0, 0.9])
@pytest.mark.parametrize("kind", COSTS)
def test_the_optimum_is_that_of_the_true_cost_inside_the_runs_and_four_times_beyond(kind, power):
    runs = grid(COSTS[kind], power=power)
    model = fit_cost(runs["C"], runs["N"], runs["D"])
    assert model.misfit < 1e-8
    assert model(runs["N"], runs["D"]) == pytest.approx(runs["C"], rel=1e-7)
    for share in (1e-4, 1e-2, 1.0, 4.0):
        C = share * runs["C"].max()
        n, loss = least(COSTS[kind], C, power)
        assert np.log(SURFACE.optimal(C, model)[0]) == pytest.approx(n, abs=1e-5)
        assert Frontier(SURFACE, model)(C) == pytest.approx(loss, rel=1e-9)


def test_along_6nd_the_optimum_is_hoffmanns():
    C = np.array([1e15, 1e20])
    balance = SURFACE.alpha * SURFACE.A / (SURFACE.beta * SURFACE.B)
    G = balance ** (1 / (SURFACE.alpha + SURFACE.beta))
    n, d = SURFACE.optimal(C)
    assert n == pytest.approx(G * (C / 6) ** SURFACE.a, rel=1e-12)
    assert 6 * n * d == pytest.approx(C, rel=1e-12)
    coupled = Coupled(**SURFACE.params_raw(), gamma=0.7)
    assert np.array(coupled.optimal(C)) == pytest.approx(np.array([n, d]))


def test_a_frontier_and_its_inverse_agree_for_every_draw():
    runs = grid(COSTS["attention and head"])
    rough = runs["C"] * np.tile([0.9, 1.1], len(runs["C"]) // 2)
    rng = np.random.default_rng(0)
    many = Chinchilla(**{k: v * rng.uniform(0.9, 1.1, 50) for k, v in SURFACE.params().items()})
    curve = Frontier(many, fit_cost(rough, runs["N"], runs["D"]).draws(50, rng))
    C = np.geomspace(1e15, 1e21, 7)[:, None]
    assert curve(C).shape == (7, 50)
    assert curve.inverse(curve(C)) == pytest.approx(np.broadcast_to(C, (7, 50)), rel=1e-8)
    order = rng.permutation(50)
    assert (curve.take(order)(C) == curve(C)[:, order]).all()
    assert np.isinf(curve.inverse(0.9)).all()


def test_a_fit_of_costs_that_are_not_6nd_gives_the_right_optimum_and_no_run_beats_it():
    columns = read(CASES / "cost_not_6nd.csv")
    fit = fit_table(columns, flops="C", budgets=[2.71e20, 2.7143485225e20], draws=50, held_out=())
    told = [fit.estimate[f"{q}*(2.71e+20)"] for q in "NDL"]
    assert told == pytest.approx([1.451e9, 2.695e10, 2.450], rel=2e-3)
    C, loss = (np.array(columns[k], dtype=float) for k in ("C", "loss"))
    cost = fit_cost(C, *(np.array(columns[k], dtype=float) for k in "ND"))
    assert (loss >= Frontier(fit.law, cost)(C)).all()
    assert fit.checklist["cost of N and D"].endswith("; exact")
    assert "N*(2.71e+20) = 1.45e+09 lies outside the N of all runs" in fit.checklist["extrapolated"]


def test_gains_are_between_the_optima_of_each_arms_own_cost():
    columns = read(CASES / "cost_with_attention.csv")
    options = {"cost": "C", "n": "N", "d": "D", "draws": 50}
    pair, _ = arms(columns, **options)
    assert pair["t"].curve.optimal(2.64e21)[0] == pytest.approx(4.42e9, rel=1e-3)
    assert pair["t"].curve(2.64e21) == pytest.approx(2.2545, abs=2e-4)
    (found,) = compare(columns, baseline="t", **options)

    def costly(n):
        return 6 * n * (1 + (3e8 / n) ** (1 / 3))

    for item in found.ceg:
        truth = true_gain(COSTS["6ND"], costly, item.budget)
        assert item.value == pytest.approx(truth, rel=1e-5)
    assert [g.value for g in found.ceg[:2]] == pytest.approx([2.321, 1.903], abs=3e-3)


def test_what_a_large_vocabulary_costs_is_the_gain_of_a_small_one():
    per_token = {v: lambda n, v=v: transformer((n / 0.1875) ** (1 / 3), v)[1] for v in (256, 50304)}
    parts = [grid(per_token[v], name=str(v)) for v in (256, 50304)]
    columns = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    (found,) = compare(columns, baseline="50304", cost="C", n="N", d="D", draws=50)
    for item in found.ceg:
        truth = true_gain(per_token[256], per_token[50304], item.budget)
        assert item.value == pytest.approx(truth, rel=1e-5)
    assert [g.value for g in found.ceg] == pytest.approx([2.202, 1.482, 1.182], abs=6e-3)


def test_configurations_that_no_size_tells_the_cost_of_widen_the_gain():
    """Of one size, models of different shape cost up to a tenth more or less."""
    rng = np.random.default_rng(0)
    shape = np.repeat(np.exp(0.05 * rng.standard_normal(len(WIDTHS))), 5)
    exact, ragged = grid(COSTS["6ND"]), grid(COSTS["6ND"], name="b")
    ragged["C"] = ragged["C"] * shape
    columns = {k: np.concatenate([exact[k], ragged[k]]) for k in exact}
    (found,) = compare(columns, cost="C", n="N", d="D", draws=400)
    model = fit_cost(ragged["C"], ragged["N"], ragged["D"])
    assert model.misfit == pytest.approx(np.std(np.log(shape[::5])), rel=0.3)
    for item in found.ceg:
        assert item.low < 1.0 < item.high
        assert 1.1 < item.high / item.low < 1.35
    fit = fit_table(ragged, flops="C", draws=200, held_out=(), budgets=[1e19])
    low, high = fit.interval["L*(1e+19)"]
    assert high - low > 0.005
    assert "misfit" in fit.checklist["cost of N and D"]


def test_a_cost_that_no_token_adds_to_has_no_optimum():
    runs = grid(COSTS["6ND"])
    with pytest.raises(UserError, match="must grow with N and with D"):
        fit_cost(runs["N"], runs["N"], runs["D"])
    with pytest.raises(UserError, match="must grow with N and with D"):
        fit_table(runs | {"bytes": runs["N"]}, flops="bytes", draws=20)


def test_a_formula_is_printed_with_its_misfit():
    assert SIX_ND.words() == "C = D·6·N; exact"
    n, d = np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e10, 8) ** 0.9
    assert fit_cost(6 * n * d, n, d).words() == "C = D·6·N; exact"
