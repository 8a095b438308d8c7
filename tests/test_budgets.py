"""Experiments that spend budgets of FLOPs: IsoFLOP valleys, and a line of ever larger models."""

import json

import numpy as np
import pytest

from isoflop.experiments import isoflop, power_law
from isoflop.experiments.families import RESULTS, corpus_of
from isoflop.figures import isoflop as isoflop_figure
from isoflop.figures import power_law as power_law_figure
from isoflop.models.errors import UserError
from isoflop.sim.compare.family_fits import valleys
from isoflop.sim.compare.points import families, points
from isoflop.sim.data import Corpus, File
from isoflop.sim.laws.cost_model import fit_cost
from isoflop.sim.records.store import read_rows


def group_of(name):
    (group,) = families(points(read_rows(RESULTS / f"{name}.jsonl"))).values()
    return group


@pytest.mark.parametrize("experiment", [isoflop, power_law])
def test_committed_runs_are_those_of_the_grid(experiment):
    rows = read_rows(RESULTS / f"{experiment.__name__.rpartition('.')[2]}.jsonl")
    assert {row.record.key for row in rows} == {cell.run.key for cell in experiment.cells()}
    assert all(row.record.status == "ok" for row in rows)


def test_minima_lie_inside_the_sizes_at_every_budget_and_have_finite_intervals():
    group = group_of("isoflop")
    found = valleys(group)
    assert len(found.C) == len(isoflop.BUDGETS) >= 3
    sizes = sorted({cell.params["active"] for cell in group})
    for valley in found.valleys:
        assert valley.why == ""
        assert sizes[0] < valley.interval[0] < valley.best < valley.interval[1] < sizes[-1]
    for budget in found.C:
        low, high = found.band(float(budget))
        assert 0 < low < float(found(budget)) < high < np.inf
    assert np.isfinite(found.interval).all()


def test_a_budget_is_spent_to_half_a_step_and_too_small_a_one_is_told():
    for cell in isoflop.cells():
        budget = cell.run.budget
        spent = 3 * cell.run.model.cost(budget.seq_len, budget.batch).flops * budget.steps
        near = min(isoflop.BUDGETS, key=lambda flops: abs(spent - flops))
        assert abs(spent - near) <= 0.5 * spent / budget.steps * 1.001
    with pytest.raises(UserError, match="must pay for 63 steps"):
        isoflop.cells(budgets=(1e9,))


def test_a_corpus_is_known_by_its_name_or_is_a_file(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("In the beginning " * 1000)
    assert corpus_of("kjv") == Corpus(name="kjv")
    assert corpus_of(str(text)) == File(path=str(text))
    with pytest.raises(UserError, match=r"must be kjv, sympy or a file of text, as book\.txt"):
        corpus_of("bible")
    data = {cell.run.data for cell in power_law.cells(corpus=str(text))}
    assert data == {File(path=str(text))}


def test_the_pictures_state_their_findings(tmp_path):
    for figure, name, said in (
        (isoflop_figure, "isoflop", "The size of least loss grows as C^"),
        (power_law_figure, "power_law", "off the law of the others"),
    ):
        written = figure.draw(read_rows(RESULTS / f"{name}.jsonl"), tmp_path / name)
        assert {path.suffix for path in written} == {".svg", ".png", ".json"}
        (svg,) = (path for path in written if path.suffix == ".svg")
        assert said in svg.read_text(encoding="utf-8").replace("\n", " ")


def test_the_tokens_that_a_budget_pays_for_cost_that_budget():
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 4)))
    cost = fit_cost(d * (6 * n + 40 * n ** (2 / 3)), n, d)
    assert np.exp(cost.log_tokens(np.log(cost(n, d)), np.log(n))) == pytest.approx(d, rel=1e-9)


def test_the_law_of_the_cheaper_models_predicts_the_costliest_as_the_rule_asks(tmp_path):
    written = power_law_figure.draw(read_rows(RESULTS / "power_law.jsonl"), tmp_path)
    found = json.loads(written[-1].read_text())
    last = max(found["cells"], key=lambda cell: cell["flops"]["executed"])
    law = found["law"]["params"]
    predicted = law["A"] * last["flops"]["executed"] ** -law["alpha"]
    assert abs(predicted / last["loss"] - 1) < 0.03
