"""Task curves, specialists, students and worse data, from their rows to figures and verdicts."""

import math

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.experiments import data_quality, specialise, tasks
from isoflop.experiments.claims import RESULTS, account_methods
from isoflop.experiments.finished import finished
from isoflop.figures import distil as distil_figure
from isoflop.figures import specialise as specialise_figure
from isoflop.models.base import Init, Matrix
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.compare.specialists import less, not_above
from isoflop.sim.compare.task_curves import plateaus, predicted, smallest
from isoflop.sim.compare.trials import Trial
from isoflop.sim.cost.flops import training_flops
from isoflop.sim.data import Corpus
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Row, Store, read_table
from isoflop.sim.treatments.retrain import _low_rank

CODE = Corpus(name="sympy")
BASE = fakes.record(fakes.run())


def trial(n, accuracies, loss=1.0, edge=False):
    """Of a size, with a reporting seed for each accuracy."""
    metrics = [{"loss": Metric(value=loss), "accuracy": Metric(value=a)} for a in accuracies]
    records = [BASE.model_copy(update={"params": {"active": n}, "metrics": m}) for m in metrics]
    return Trial({}, 0.01, 3, edge, tuple(Row(record=record) for record in records))


def test_runs_without_a_result_are_left_out_and_told(tmp_path, capsys):
    cells, store = fakes.cells(width=(8,), steps=(50,)), Store(tmp_path)
    first, second = (fakes.record(cell.run) for cell in cells)
    store.save(first, {})
    store.save(second.model_copy(update={"status": "diverged", "reason": "not finite"}), {})
    assert [row.record.key for row in finished(cells, tmp_path, 1)] == [cells[0].run.key]
    assert "left out: 1 of 2 runs that have no result" in capsys.readouterr().err


def test_the_smallest_size_lies_between_that_of_the_first_seed_and_that_of_the_last():
    trials = [
        trial(10, [0.3, 0.2]), trial(20, [0.95, 0.4]), trial(40, [0.97, 0.96]),
        trial(80, [1.0, 0.99]),
    ]  # fmt: skip
    assert (smallest(trials).low, smallest(trials).high) == (10, 40)
    assert str(smallest(trials)) == "10 to 40"
    assert str(smallest(trials[2:])) == "at most 40"
    assert str(smallest(trials[:2])) == "more than 10"
    assert str(smallest(trials[:1])) == "more than 10"


def test_a_size_that_is_reached_once_and_lost_again_is_not_the_smallest():
    trials = [trial(10, [0.95, 0.95]), trial(20, [0.5, 0.95]), trial(40, [0.97, 0.96])]
    found = smallest(trials)
    assert (found.low, found.high) == (None, 40)


def test_plateaus_are_neighbouring_sizes_of_equal_accuracy_short_of_the_mark():
    means = [0.25, 0.27, 0.26, 0.6, 0.62, 0.95, 0.96]
    trials = [trial(10 * 2**i, [a, a]) for i, a in enumerate(means)]
    assert [(low, high) for low, high, _ in plateaus(trials)] == [(10, 40), (80, 160)]
    assert plateaus([trial(1, [0.99]), trial(2, [1.0])]) == []


def test_accuracy_is_predicted_exactly_where_it_is_a_sigmoid_of_what_predicts_it():
    def curve(x):
        return 0.25 + 0.75 / (1 + math.exp(-x))

    sizes = [1000, 2000, 4000, 8000, 16000]
    direct = [trial(n, [curve(math.log(n / 4e3))], loss=2 * n**-0.1) for n in sizes]
    found = predicted(direct, 0.25)
    assert found["direct"] == pytest.approx(found["measured"], abs=1e-5)
    by_loss = [
        trial(n, [curve(20 * (0.9 - 2 * n**-0.1))], loss=2 * n**-0.1) for n in sizes
    ]  # fmt: skip
    found = predicted(by_loss, 0.25)
    assert found["from_loss"] == pytest.approx(found["measured"], abs=1e-5)
    assert predicted(direct[:3], 0.25) is None
    assert predicted([trial(n, [1.0]) for n in sizes], 0.25) is None


def test_a_merged_change_of_low_rank_is_the_unmerged_one():
    config = zoo.FAMILIES["dense"](16, 1)
    params = jax.tree.map(jnp.asarray, nnx.state(config.build(init=Init(0))))
    pairs, view = _low_rank(params, 3, 0)
    rng = np.random.default_rng(0)
    pairs = [
        pair and (pair[0], jnp.asarray(rng.standard_normal(pair[1].shape), jnp.float32))
        for pair in pairs
    ]
    is_variable = {"is_leaf": lambda node: isinstance(node, nnx.Variable)}
    before, after = (jax.tree.leaves(tree, **is_variable) for tree in (params, view(pairs)))
    changed = 0
    for plain, merged, pair in zip(before, after, pairs, strict=True):
        if isinstance(plain, Matrix):
            x = jnp.asarray(rng.standard_normal((5, plain.shape[-2])), jnp.float32)
            apart = x @ plain[...] + (x @ pair[0]) @ pair[1]
            together = x @ merged[...]
            assert float(jnp.abs(apart - together).max()) <= 1e-6 * float(jnp.abs(apart).max())
            changed += 1
    assert changed >= 4


def test_arms_of_a_size_take_equal_flops_and_tuning_is_paid_with_its_parent():
    smallest_ones = 0
    for width in (32, 64):
        steps = specialise._as_long("dense", 32, width, 1000)
        cells = specialise._arms("dense", width, CODE, steps, 0.2, 0.3, 1)
        arms = {cell.labels["arm"]: cell.run for cell in cells}
        flops = {arm: training_flops(run)["executed"] for arm, run in arms.items()}
        general = flops["general"]
        assert flops["domain alone"] == flops["tuned"] == general
        assert flops["parent"] == pytest.approx(0.8 * general, rel=0.01)
        assert arms["tuned"].start == arms["parent"]
        smallest_ones = smallest_ones or general
        assert general == pytest.approx(smallest_ones, rel=0.01)
    with pytest.raises(UserError, match="raise --steps"):
        specialise._arms("dense", 32, CODE, 100, 0.2, 0.3, 0)


def test_a_book_is_a_domain_beside_code():
    book = Corpus(name="kjv", book="psalms")
    arms = {cell.labels["arm"]: cell.run
            for cell in specialise._arms("dense", 32, book, 1000, 0.2, 0.3, 0)}  # fmt: skip
    shares = [(part.data, part.share) for part in arms["general"].data.parts]
    assert shares == [(CODE, 3), (book, 1)]
    assert arms["tuned"].data == arms["domain alone"].data == book
    assert {one.name: one.data for one in arms["tuned"].evals} == {"domain": book, "code": CODE}
    with pytest.raises(UserError, match="module solvers or book psalms; leave out one"):
        specialise.measure(module="solvers", book="psalms")


def rows(**losses):
    """By `arm_width`, the loss on the domain; two seeds a little apart."""
    sizes = {32: 10_000, 48: 30_000, 112: 100_000}
    return [
        {"arm": arm.replace("_", " "), "width": width, "N": sizes[width], "seed": seed,
         "domain": value + 0.1 * seed + 0.001 * seed * width, "english": 2.0 + 0.1 * seed}
        for name, value in losses.items()
        for arm, _, tail in [name.rpartition("_")]
        for width in [int(tail)] for seed in range(3)
    ]  # fmt: skip


def test_seeds_are_paired():
    found = less(rows(tuned_32=1.0, general_32=1.2), ("tuned", 32), ("general", 32))
    assert found.mean == pytest.approx(-0.2)
    assert found.high == pytest.approx(-0.2)
    assert not_above(found) is True


@pytest.mark.parametrize(("small", "word"), [(1.0, "held"), (3.0, "refuted")])
def test_the_verdict_on_tuned_models_follows_the_table(small, word):
    table = rows(tuned_32=small, general_112=2.0, general_32=2.4)
    found = account_methods.tuned_small_beats_large.judge(table)
    assert found.holds is (word == "held")
    assert "10 times its size" in found.result


@pytest.mark.parametrize(
    ("alone", "holds"),
    [({"domain_alone_32": 1.0}, True), ({"domain_alone_32": 3.0}, False), ({}, None)],
)
def test_the_verdict_on_specialists_follows_the_table(alone, holds):
    table = rows(general_112=2.0, general_32=2.5, **alone)
    assert account_methods.specialist_is_smaller.judge(table).holds is holds


def test_the_verdict_on_compression_can_be_refuted_and_waits_for_a_student():
    row = {"family": "dense", "N": 1, "D": 1, "ratio": 0.97, "low": 0.95, "high": 0.99}
    good = [row | {"treatment": name} for name in ("weights int4", "prune 0.5")]
    judge = account_methods.compression_costs_little.judge
    assert judge(good).holds is None
    bad = [good[0], {"family": "dense", "N": 1, "D": 1, "treatment": "prune 0.5",
                     "reason": "…: N_eff/N is below 0.5"}]  # fmt: skip
    assert judge(bad).holds is False
    assert "below .9 in dense" in judge(bad).result
    assert judge([good[0] | {"low": 0.5, "high": 0.8}]).holds is False


def test_the_figures_are_drawn_from_their_tables(tmp_path):
    table = rows(tuned_32=1.0, tuned_112=0.9, general_32=1.3, general_112=1.1, parent_32=1.4,
                 parent_112=1.2, LoRA_32=1.2, LoRA_112=1.0, domain_alone_32=1.0)  # fmt: skip
    written = specialise_figure.draw(table, tmp_path)
    assert {path.suffix for path in written} == {".svg", ".png", ".json"}
    assert specialise_figure.draw([], tmp_path) == []
    books = [{"code" if k == "english" else k: v for k, v in row.items()} for row in table]
    told = specialise_figure.finding(specialise_figure.compared(books))
    assert "the largest's loss on code changes" in told
    students = [
        {"teacher": teacher, "teacher_width": 48 * (teacher == "run"), "width": 24, "share": share,
         "N": 9000, "seed": seed, "tokens": d, "floor": floor,
         "loss": 1 + 40 * (d * (1 + share)) ** -0.3 + 0.001 * seed,
         "train_flops": 1e6 * d + 1e12 * (teacher == "run"),
         "teacher_flops": 1e12 * (teacher == "run")}
        for teacher, share, floor in (("none", 0.0, None), ("run", 1.0, None), ("none", 0.0, 1.0),
                                      ("oracle", 1.0, 1.0))
        for d in (1e5, 2e5, 4e5, 8e5) for seed in (0, 1)
    ]  # fmt: skip
    assert len(distil_figure.draw(students, tmp_path)) == 3
    found = distil_figure.gains(distil_figure._runs(students[:16], "tokens"), "data alone")
    assert distil_figure.best(found)["ratio"] == pytest.approx(2.0, rel=0.02)
    assert distil_figure.draw([], tmp_path) == []
    assert len(distil_figure.draw(students[16:], tmp_path)) == 3  # the language alone
    assert len(distil_figure.draw(students[:16], tmp_path)) == 3


def test_the_committed_oracle_saves_tokens_and_no_student_is_below_the_entropy():
    table = read_table(RESULTS / "distil.jsonl")
    known = [row for row in table if row["floor"] is not None]
    assert {row["teacher"] for row in known} == {"none", "oracle"}
    assert all(row["loss"] > row["floor"] for row in known)
    found = distil_figure.gains(distil_figure._runs(known, "tokens"), "data alone")
    assert distil_figure.best(found)["low"] > 1.5


def test_grids_state_what_is_asked_of_them():
    with pytest.raises(UserError, match=r"must be \.25, \.5 or \.75"):
        data_quality.cells(mixed=(0.3,))
    cells = data_quality.cells(seeds=1)
    assert len({cell.labels["data"] for cell in cells}) == 6
    assert {cell.labels["task"] for cell in tasks.cells()} == set(tasks.TASKS)
