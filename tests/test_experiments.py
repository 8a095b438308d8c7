"""The committed experiments: their grids, their rates, and where those come from."""

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import synthetic

from isoflop import experiments
from isoflop.experiments import families, known_entropy, ladder, quickstart
from isoflop.experiments import lr_transfer as sweep_of_rates
from isoflop.experiments.cli.flags import RunFlags, parse
from isoflop.figures import known_entropy as entropy_figure
from isoflop.figures import lr_transfer
from isoflop.figures.report.summary import conclusion, interval
from isoflop.figures.style import scientific
from isoflop.models.errors import UserError
from isoflop.models.families.matching import unmatched
from isoflop.sim.compare import known_entropy as excesses
from isoflop.sim.compare import rates
from isoflop.sim.compare.points import points
from isoflop.sim.compare.rankings import rank
from isoflop.sim.cost.flops import param_counts
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.laws.forms import PowerLaw
from isoflop.sim.optim import AdamW
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Record, Row, read_rows, write_rows
from isoflop.sim.train.loop import train

TRAINING = {name: e for name, e in experiments.discover().items() if e.trains}


@pytest.mark.parametrize("name", experiments.discover())
def test_a_docstring_says_question_command_duration_and_expectation(name):
    doc = experiments.find(name).doc
    assert doc.split("\n\n")[0].endswith("?")
    for word in ("Command:", "Duration:", "Expected:"):
        assert word in doc


@pytest.mark.parametrize("name", TRAINING)
def test_a_grid_has_no_run_twice_and_labels_its_runs(name):
    cells = TRAINING[name].load().cells()
    assert len({cell.run.key for cell in cells}) == len(cells)
    assert all({"family", "width", "depth"} <= cell.labels.keys() for cell in cells)


def test_the_quickstart_spans_four_families_three_widths_two_depths_three_lengths_and_seeds():
    cells = quickstart.cells()
    for dial, least in (("family", 4), ("width", 3), ("depth", 2)):
        assert len({cell.labels[dial] for cell in cells}) >= least
    assert len({cell.run.budget.steps for cell in cells}) >= 3
    assert len({cell.run.seed for cell in cells}) >= 3


def test_the_committed_quickstart_answers_its_question_with_an_interval_as_its_docstring_says():
    rows = read_rows(families.RESULTS / "quickstart.jsonl")
    assert {row.record.key for row in rows} == {cell.run.key for cell in quickstart.cells()}
    ranking = rank(points(rows), "executed")
    best, second = ranking.standings[:2]
    expected = quickstart.__doc__.split("Expected:")[1]
    budget = (
        f"at {scientific(ranking.flops)} of them {best.family.title()}'s is the lowest by about"
    )
    assert f"{budget} .{round(10 * second.behind.mean)} nats" in " ".join(expected.split())
    assert second.resolved
    assert f"{second.family} is next, {interval(second.behind)} higher" in conclusion(rows)


def test_families_of_the_ladder_match_in_active_parameters():
    from isoflop.sim.cost.flops import param_counts

    counts = {}
    for cell in ladder.cells(steps=(500,), seeds=1):
        shape = cell.labels["width"], cell.labels["depth"]
        counts.setdefault(shape, []).append(param_counts(cell.run.model)["active_non_embedding"])
    assert all(max(c) / min(c) < 1.03 for c in counts.values())


def test_the_ladder_of_a_gpu_has_other_sizes_and_eight_times_the_tokens_a_step():
    laptop, gpu = (ladder.cells(families=("dense",), scale=scale) for scale in ("laptop", "gpu"))
    assert {cell.run.budget.batch_tokens for cell in laptop} == {512}
    assert {cell.run.budget.batch_tokens for cell in gpu} == {4096}
    assert not {cell.run.key for cell in laptop} & {cell.run.key for cell in gpu}
    assert len(ladder.cells(families=("dense",), scale="gpu", sizes=2)) == len(gpu) / 2
    with pytest.raises(UserError, match="sizes=5 must be between 1 and 4, the sizes there are"):
        ladder.cells(scale="gpu", sizes=5)


ROOT = Path(__file__).parent.parent
README, STUDIES = (ROOT / "README.md").read_text(), (ROOT / "experiments/README.md").read_text()


def test_the_gpu_studys_commands_in_the_readmes_are_of_its_168_runs():
    """Of seven families, in every place that names the command."""
    told = re.findall(r"`isoflop run ladder --scale gpu (.*?)`", README + STUDIES)
    assert len(told) == 2
    for options in told:
        _, where, cells = parse(
            "run", None, options.split(), RunFlags, Local, partial(ladder.cells, scale="gpu")
        )
        assert len(cells) == 168
        assert where.workers in (1, 14)


def test_the_readmes_experiment_is_matched_in_size():
    """As it stands there."""
    (source,) = re.findall(r'```python\n("""Does a wider Mamba.*?)```', README, re.DOTALL)
    module: dict = {}
    exec(source, module)
    cells = module["cells"]()
    assert len({cell.run.key for cell in cells}) == 9
    assert unmatched((cell.labels["family"], cell.run.model) for cell in cells) is None


def test_seeds_of_all_families_see_the_same_data():
    budgets = {(c.run.data, c.run.budget.batch, c.run.budget.seq_len) for c in ladder.cells()}
    assert len(budgets) == 1


def test_every_family_of_the_quickstart_has_a_tuned_rate_inside_its_sweep():
    table = families.tuned()
    for family in {cell.labels["family"] for cell in quickstart.cells()}:
        detail = table["families"][family]
        widest = max(detail["best"], key=int)
        tried = sorted(map(float, detail["loss"][widest]))
        assert tried[0] < table["rates"][family] < tried[-1]
    studied = [table["families"][family] for family in families.STUDIED]
    assert len({tuple(detail["trials"].items()) for detail in studied}) == 1


def the_fit_covers_the_entropy(rows: list[Row]) -> None:
    records = [row.record for row in rows]
    assert all(record.loss > record.entropy for record in records)
    columns = {"C": [r.tokens for r in records], "loss": [r.loss for r in records]}
    fit = PowerLaw.fit(columns, draws=300)
    low, high = fit.interval["E"]
    assert fit.ok
    assert low <= records[0].entropy <= high


def test_the_fitted_E_of_the_committed_known_entropy_runs_covers_the_entropy():
    rows = read_rows(families.RESULTS / "known_entropy.jsonl")
    assert {row.record.key for row in rows} == {cell.run.key for cell in known_entropy.cells()}
    the_fit_covers_the_entropy([row for row in rows if row.labels["part"] == "entropy"])


@pytest.mark.parametrize("planted", [-1 / 3, -0.6])
def test_an_exponent_planted_in_the_excess_is_found_and_held_to_theory(planted, tmp_path):
    rows = [excess(cell, planted) for cell in known_entropy.cells(("data", "capacity"), seeds=2)]
    line = excesses.in_data(rows)
    assert line.fitted.value == pytest.approx(planted, abs=0.01)
    assert line.theory == pytest.approx(-1 / 3)
    assert line.agrees is (planted == line.theory)
    assert len(excesses.in_capacity(rows).x) == 5
    assert any(path.suffix == ".png" for path in entropy_figure.draw(rows, tmp_path))


def excess(cell, exponent) -> Row:
    """A run of the cell with an excess ∝ D^exponent, which the seed changes by .2 %."""
    entropy = cell.run.data.open().entropy
    value = entropy + cell.run.budget.tokens**exponent * (1 + 0.002 * cell.run.seed)
    record = synthetic.grid(families=("dense",))[0].record.model_copy(
        update={
            "run": cell.run,
            "entropy": entropy,
            "metrics": {"loss": Metric(value=value)},
            "params": param_counts(cell.run.model),
            "tokens": cell.run.budget.tokens,
        }
    )
    return Row(labels=cell.labels, record=record)


@pytest.mark.slow
def test_known_entropy_trained_anew_covers_the_entropy():
    cells = known_entropy.cells(("entropy",))
    records = [record for record, _ in train([cell.run for cell in cells])]
    the_fit_covers_the_entropy([Row(record=record) for record in records])


@pytest.mark.parametrize(
    "name",
    [
        *("ladder", "ladder_gpu", "lr_transfer", "lr_transfer_zoo", "quickstart", "recall"),
        *("known_entropy", "power_law", "isoflop"),
    ],
)
def test_committed_records_are_of_the_runs_that_their_keys_name(name):
    """Seeds of one cell are told by their runs: one written down otherwise is a cell of its own."""
    committed = read_rows(families.RESULTS / f"{name}.jsonl")
    assert [row.record.key for row in committed] == [row.record.run.key for row in committed]


def test_the_rates_in_use_are_those_of_the_committed_sweep_of_equal_trials():
    committed = read_rows(families.RESULTS / "lr_transfer.jsonl")
    assert {row.record.key for row in committed} == {c.run.key for c in sweep_of_rates.cells()}
    sweep = rates.tuned(committed)
    assert set(sweep["rates"]) == set(families.STUDIED)
    assert families.tuned()["rates"].items() >= sweep["rates"].items()
    for found in sweep["families"].values():
        assert found["trials"] == {"32": 6, "64": 6}
        assert abs(found["shift"]) <= 1  # as the experiment expects, and sim/README.md says


def test_the_rest_of_the_zoo_has_rates_inside_sweeps_of_three_rates_or_more_or_is_refused():
    table = families.tuned()
    assert table["families"].keys() == families.zoo.FAMILIES.keys()
    assert table["rates"].keys() | table["refused"].keys() == families.zoo.FAMILIES.keys()
    for family, rate in table["rates"].items():
        tried = sorted(map(float, table["families"][family]["loss"]["64"]))
        assert len(tried) >= 3
        assert tried[0] < rate < tried[-1]


def test_an_untuned_family_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="lr_transfer"):
        families.optim("no-such-family", 64, 10)


def test_an_unknown_family_is_refused_with_those_known():
    with pytest.raises(UserError, match="dense"):
        families.model("no-such-family", 64)


def rows(losses: dict[int, dict[float, float | None]]) -> list[Row]:
    """Records of a sweep with the losses given by width and rate."""
    run = known_entropy.cells()[0].run
    return [
        Row(
            labels={"family": "dense", "width": width, "depth": 2, "lr": rate},
            record=Record(
                key="0",
                run=run.model_copy(update={"optim": AdamW(lr=rate)}),
                status="diverged" if loss is None else "ok",
                metrics={} if loss is None else {"loss": Metric(value=loss)},
            ),
        )
        for width, curve in losses.items()
        for rate, loss in curve.items()
    ]


def test_the_tuned_rate_is_the_best_at_the_widest_width():
    found = rates.tuned(
        rows({32: {0.01: 1.0, 0.02: 0.9, 0.04: 1.1}, 64: {0.01: 0.8, 0.02: 0.7, 0.04: None}})
    )
    assert found["rates"] == {"dense": 0.02}
    assert found["families"]["dense"]["shift"] == 0


def test_an_optimum_at_the_edge_is_refused_not_reported():
    found = rates.tuned(rows({64: {0.01: 0.8, 0.02: 0.7, 0.04: 0.6}}))
    assert found["rates"] == {}
    assert "edge" in found["refused"]["dense"]


def test_the_optimum_that_moves_is_reported_in_factors_of_two():
    found = rates.tuned(
        rows({32: {0.01: 0.5, 0.02: 0.9, 0.04: 1.1}, 64: {0.01: 0.8, 0.02: 0.7, 0.04: 1.0}})
    )
    assert found["families"]["dense"]["shift"] == math.log2(0.02 / 0.01)
    assert found["moved"] == {}


def test_a_family_whose_rule_fails_is_trained_at_the_rates_of_its_own_widths(monkeypatch):
    narrow, wide = {0.01: 0.5, 0.02: 0.9, 0.04: 1.1, 0.08: 1.3}, {0.02: 0.8, 0.04: 0.7, 0.08: 1.0}
    found = rates.tuned(rows({32: narrow, 64: wide}))
    assert "from 0.01 at width 32 to 0.04 at 64" in found["moved"]["dense"]
    monkeypatch.setattr(families, "tuned", lambda optim: found)
    assert [families.optim("dense", width, 50).lr for width in (32, 64)] == [0.01, 0.04]
    with pytest.raises(UserError, match=r"rule fails; run `.* dense` with --widths 48"):
        families.optim("dense", 48, 50)


def test_the_transfer_figure_shows_the_rates_that_the_experiments_train_with(tmp_path):
    swept = [row for path in families.RATES["adamw"] for row in read_rows(path)]
    paths = lr_transfer.draw(swept, tmp_path)
    numbers = next(path for path in paths if path.suffix == ".json")
    assert json.loads(numbers.read_text()) == families.tuned()


def test_a_sweep_added_to_the_records_is_trained_with_at_once(tmp_path, monkeypatch):
    """Nothing is made or copied between the runs of a sweep and the experiments that use it."""
    path = tmp_path / "sweep.jsonl"
    write_rows(path, rows({64: {0.01: 0.8, 0.02: 0.7, 0.04: 1.0}}))
    monkeypatch.setitem(families.RATES, "adamw", (path,))
    families.tuned.cache_clear()
    try:
        assert families.optim("dense", 64, 50).lr == 0.02
    finally:
        families.tuned.cache_clear()
