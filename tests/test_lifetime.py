"""The inference-aware optimum against the paper's example, closed forms and its own surface."""

import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.lifetime import lifetime, tokens_for
from isoflop.sim.laws.published import PUBLISHED

SARDANA = PUBLISHED["sardana"].law


def of_13b() -> float:
    """The loss of the compute-optimal model of 13B parameters."""
    budgets = np.geomspace(1e21, 1e24, 3001)
    sizes, data = SARDANA.optimal(budgets)
    i = int(np.argmin(np.abs(sizes - 13e9)))
    return float(SARDANA(sizes[i], data[i]))


def test_13b_quality_at_2t_tokens_of_demand_is_a_7b_model_that_saves_17_percent():
    """2401.00448, figure 1: 1.7e22 FLOPs, 17 %."""
    found = lifetime(SARDANA, of_13b(), demand=2e12)
    assert found.train_params == pytest.approx(13e9, rel=0.01)
    assert found.params == pytest.approx(7e9, rel=0.01)
    assert found.saved == pytest.approx(0.17, abs=0.01)
    assert found.train_cost - found.cost == pytest.approx(1.7e22, rel=0.01)


def test_both_models_have_the_loss_that_was_asked():
    loss = of_13b()
    found = lifetime(SARDANA, loss, demand=2e12)
    for n, d in ((found.params, found.tokens), (found.train_params, found.train_tokens)):
        assert float(SARDANA(n, d)) == pytest.approx(loss, rel=1e-9)
    assert np.isinf(tokens_for(SARDANA, 1e6, loss))


def test_without_demand_the_optimum_is_chinchillas():
    found = lifetime(SARDANA, 2.2, demand=0.0)
    n, d = SARDANA.optimal(6 * found.params * found.tokens)
    assert found.params == pytest.approx(n, rel=0.01)
    assert found.tokens == pytest.approx(d, rel=0.01)
    assert found.saved == 0.0


def test_more_demand_never_asks_for_a_larger_model():
    sizes = [lifetime(SARDANA, 2.2, demand).params for demand in (0, 1e11, 1e12, 1e13, 1e15)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_an_architecture_whose_tokens_cost_less_to_serve_may_be_larger():
    """The same surface and demand: each architecture is held to its own FLOPs or dollars."""
    cheap = lifetime(SARDANA, 2.2, 1e13, serve=lambda n: 0.5 * n)
    assert cheap.params > lifetime(SARDANA, 2.2, 1e13).params
    dear = lifetime(SARDANA, 2.2, 1e13, train=lambda n, d: 60.0 * n * d)
    assert dear.params > lifetime(SARDANA, 2.2, 1e13).params


@pytest.mark.parametrize(
    ("loss", "demand", "told"),
    [
        (1.5, 1e12, "above the law's floor E=1.69, and is 1.5"),
        (2.2, -1.0, "demand=-1 must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(loss, demand, told):
    with pytest.raises(UserError, match=told):
        lifetime(Chinchilla(1.69, 406.4, 410.7, 0.336, 0.283), loss, demand)
