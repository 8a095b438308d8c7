"""Laws give back what was put in, have the optimum they claim, and say what their papers say."""

import math
from typing import get_args

import numpy as np
import pytest
from grids import TRUTH, lab

from isoflop.experiments.cli.fit import LawName
from isoflop.models.errors import UserError
from isoflop.sim.laws.forms import LAWS, Chinchilla, Coupled, Overtrained, PowerLaw
from isoflop.sim.laws.isoflop import envelope, isoflop, variable_projection
from isoflop.sim.laws.published import PUBLISHED
from isoflop.sim.laws.saturating import Repeated, Routed
from isoflop.sim.laws.sparse import Sparse

EXAMPLES = {
    "power": PowerLaw(A=40.0, alpha=0.2, E=0.8),
    "chinchilla": TRUTH,
    "coupled": Coupled(E=0.9, A=3e3, B=4e5, alpha=0.6, beta=0.8, gamma=0.5),
    "overtrained": Overtrained(E=0.9, a=12.0, b=60.0, eta=0.18),
    "routed": Routed(a=-0.08, b=-0.11, c=0.009, d=0.9, E_start=1.8, E_max=300.0),
    "repeated": Repeated(E=1.0, A=30.0, B=600.0, alpha=0.35, beta=0.42, R_N=5.0, R_D=15.0),
    "sparse": Sparse(a_S=8.0, b_S=0.8, c_S=20.0, b_N=0.3, a_D=3e5, b_D=0.35, c=0.7),
}


def example_columns(name):
    law = EXAMPLES[name]
    n, d = np.geomspace(1e4, 1e7, 6), np.geomspace(1e6, 1e9, 6)
    if name == "power":
        x = [np.geomspace(1e10, 1e16, 12)]
    elif name == "routed":
        x = np.meshgrid(n, [1.0, 4.0, 8.0, 32.0, 128.0, 512.0])
    elif name == "repeated":
        n, d, epochs = np.meshgrid(n, d, [1.0, 3.0, 10.0, 40.0])
        x = [n, d, d / epochs]
    elif name == "sparse":
        x = np.meshgrid(n, d, [1.0, 0.5, 0.25, 0.125])
    else:
        x = np.meshgrid(n, d)
    x = [v.ravel() for v in x]
    return dict(zip(law.inputs, x, strict=True)) | {"loss": law(*x)}, x


def test_the_command_offers_every_law_and_no_other():
    assert get_args(LawName) == tuple(LAWS)


@pytest.mark.parametrize("name", list(LAWS))
def test_noise_free_runs_give_the_law_back(name):
    columns, x = example_columns(name)
    fit = LAWS[name].fit(columns, draws=20, held_out=())
    assert fit.status == "converged", fit.reason
    np.testing.assert_allclose(fit.law(*x), columns["loss"], rtol=2e-6)
    if name == "coupled":
        # six parameters, one long valley: the curve is found, its γ within a per cent
        assert fit.law.gamma == pytest.approx(0.5, rel=1e-2)
    else:
        for key, value in EXAMPLES[name].params().items():
            assert fit.law.params()[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.parametrize("name", list(LAWS))
def test_slopes_used_by_the_fit_are_the_derivatives_of_the_law(name):
    columns, x = example_columns(name)
    y = np.log(columns["loss"])
    form, starts = LAWS[name].form(x, y)
    # off the start's symmetric point, where N is exactly the size the tokens call for
    off = 0.01 * np.arange(1, starts.shape[1] + 1)
    theta = np.clip(starts[:1] + off, form.lower, form.upper)
    law = LAWS[name].unpack(theta, x).at(0)
    np.testing.assert_allclose(form.predict(theta)[0], np.log(law(*x)), rtol=1e-9)
    u, du = form.terms(theta)
    share = np.exp(u - np.logaddexp.reduce(u, axis=-1)[..., None])
    slope = np.einsum("bnk,bnkp->bnp", share, np.broadcast_to(du, (*u.shape, theta.shape[1])))
    for p in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[p]
        numeric = (form.predict(theta + step) - form.predict(theta - step)) / 2e-6
        np.testing.assert_allclose(slope[..., p], numeric, atol=2e-7)


def test_optimum_is_the_least_loss_at_its_compute():
    n, d = TRUTH.optimal(1e14)
    assert 6 * n * d == pytest.approx(1e14, rel=1e-12)
    near = n * np.geomspace(0.5, 2.0, 201)
    assert near[np.argmin(TRUTH(near, 1e14 / (6 * near)))] == pytest.approx(n, rel=1e-9)
    assert np.log(TRUTH.optimal(1e15)[0] / n) / math.log(10) == pytest.approx(TRUTH.a)


def test_gamma_one_is_chinchilla_and_gadre_is_chinchilla_with_tied_exponents():
    n, d = np.array([1e5, 1e7]), np.array([1e7, 1e8])
    np.testing.assert_allclose(Coupled(**TRUTH.params(), gamma=1.0)(n, d), TRUTH(n, d))
    tied = Overtrained(E=1.0, a=6.0**0.2 * 30, b=6.0**0.2 * 600, eta=0.2)
    np.testing.assert_allclose(tied(n, d), Chinchilla(1.0, 30, 600, 0.4, 0.4)(n, d))


def test_repetition_is_free_at_one_epoch_and_worth_r_d_at_the_end():
    law = EXAMPLES["repeated"]  # at 1e4 parameters these tokens call for more, none are in excess
    np.testing.assert_allclose(law(1e4, 1e8, 1e8), TRUTH(1e4, 1e8), rtol=1e-12)
    np.testing.assert_allclose(law(1e4, 1e12, 1e8), TRUTH(1e4, 1e8 * (1 + 15.0)), rtol=1e-9)


def test_variable_projection_finds_the_same_surface_by_another_road():
    columns = lab()
    law = variable_projection(columns["N"], columns["D"], columns["loss"])
    for key, value in TRUTH.params().items():
        assert law.params()[key] == pytest.approx(value, rel=1e-3), key


def test_isoflop_recovers_a_and_says_how_far_a_parabola_is_off():
    c = np.repeat(np.geomspace(1e12, 1e15, 6), 9)
    n = TRUTH.optimal(c)[0] * np.tile(np.geomspace(1 / 8, 8, 9), 6)
    loss = TRUTH(n, c / (6 * n))
    found = isoflop(c, n, loss, reference=TRUTH)
    assert found.a == pytest.approx(TRUTH.a, abs=0.002)
    shifted = n * 2.9
    loss = TRUTH(shifted, c / (6 * shifted))
    off = isoflop(c, shifted, loss, window=64.0, reference=TRUTH)
    assert any("parabola is off by" in w for w in off.warnings)
    blind = isoflop(c, shifted, loss, window=64.0)
    assert any("biased off-centre" in w for w in blind.warnings)
    # the bias it warns of is the bias it has
    said = float(off.warnings[0].split("off by ")[1].split("%")[0]) / 100
    true = off.N[0] / TRUTH.optimal(off.C[0])[0] - 1
    assert said == pytest.approx(true, abs=6e-4)


def test_isoflop_leaves_out_budgets_whose_best_size_is_at_the_edge():
    c = np.repeat(np.geomspace(1e12, 1e15, 6), 9)
    n = TRUTH.optimal(c)[0] * np.tile(np.geomspace(1.5, 20, 9), 6)
    with pytest.raises(UserError, match="at 0; add sizes on both sides"):
        isoflop(c, n, TRUTH(n, c / (6 * n)))


def test_envelope_recovers_a_from_dense_sizes():
    c, n = (
        v.ravel() for v in np.meshgrid(np.geomspace(1e12, 1e16, 30), np.geomspace(1e4, 1e7, 60))
    )
    found = envelope(c, n, TRUTH(n, c / (6 * n)))
    assert found.a == pytest.approx(TRUTH.a, abs=0.01)
    assert found.interval[0] < TRUTH.a < found.interval[1]


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_an_envelope_of_one_run_at_each_compute_is_the_grid_and_no_result(noise):
    n, ratio = (
        v.ravel() for v in np.meshgrid(1e5 * 2.0 ** np.arange(8), 5.0 * 2.6 ** np.arange(4))
    )
    c = 6 * n * n * ratio
    loss = TRUTH(n, n * ratio) * np.exp(noise * np.random.default_rng(0).standard_normal(len(n)))
    with pytest.raises(UserError, match=r"unidentifiable: \d of the envelope's \d+ runs beat"):
        envelope(c, n, loss)


def test_only_choices_among_sizes_count_on_an_envelope():
    budgets = np.geomspace(1e12, 1e15, 6)
    c = np.concatenate([np.repeat(budgets, 9), 1.7 * budgets])
    n = TRUTH.optimal(c)[0] * np.concatenate([np.tile(np.geomspace(1 / 8, 8, 9), 6), [3.0] * 6])
    found = envelope(c, n, TRUTH(n, c / (6 * n)))
    assert pytest.approx(budgets) == found.C
    assert found.a == pytest.approx(TRUTH.a, abs=1e-6)
    assert found.warnings[0].startswith("6 of the envelope's 12 runs beat a larger and a smaller")


def test_without_asymptote_e_is_exactly_zero():
    columns, _ = example_columns("power")
    fit = PowerLaw.fit(columns, asymptote=False, draws=20, held_out=())
    assert fit.law.E == 0.0
    assert fit.status == "converged"


def test_published_laws_say_what_their_papers_say():
    law = PUBLISHED["chinchilla-corrected"].law
    assert isinstance(law, Chinchilla)
    assert law.a == pytest.approx(0.5126, abs=1e-4)  # Besiroglu et al. 2024, table 1
    n, d = law.optimal(5.76e23)  # Chinchilla's own budget: about 20 tokens per parameter
    assert 15 < d / n < 30
    printed = PUBLISHED["chinchilla-printed"].law
    assert isinstance(printed, Chinchilla)
    n, d = printed.optimal(5.76e23)
    assert d / n > 60  # the rounded law contradicts the 20 of the same paper
    kaplan = PUBLISHED["kaplan"].law
    alone = 6.4e13**0.076 * 1e9**-0.076  # eq. 1.5 at D → ∞ is a power law in N
    assert kaplan(1e9, 1e30) == pytest.approx(alone, rel=1e-3)
    repeated = PUBLISHED["muennighoff"].law
    rounded = [round(float(v)) for v in (repeated.A, repeated.B)]
    assert rounded == [521, 1488]  # appendix A, eq. 17
    assert all(entry.source and entry.counts for entry in PUBLISHED.values())


def test_a_bootstrap_is_a_law_with_one_entry_per_draw():
    fit = Chinchilla.fit(lab(seeds=2, noise=0.005), draws=64, held_out=())
    assert fit.draws(1e5, 1e7).shape == (64,)
    assert isinstance(fit.draws.at(3), Chinchilla)
