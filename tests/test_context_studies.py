"""Studies on tasks and contexts: from rows of their grids to figures and verdicts."""

import json
import math
from functools import cache

import pytest
import synthetic

from isoflop.experiments import claims, context_training, copying, mad, recall, state_tracking
from isoflop.experiments.cli.main import main
from isoflop.figures import context_training as context_figure
from isoflop.figures import copying as copying_figure
from isoflop.figures import mad as mad_figure
from isoflop.figures import recall as recall_figure
from isoflop.figures import state_tracking as state_figure
from isoflop.models.errors import UserError
from isoflop.sim.compare.contexts import Contexts, means
from isoflop.sim.compare.trials import chosen, recalled
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Row, read_rows

JUDGES = {one.name: one.judge for one in claims.claims("context")}


@cache
def base():
    return synthetic.grid(families=("dense",))[0].record


def rows(cells, value):
    """The grid's rows: `value(labels, run)` is every accuracy, the loss falls with it."""
    found = []
    for cell in cells:
        accuracy = value(cell.labels, cell.run)
        names = ["accuracy", *(f"{one.name}.accuracy" for one in cell.run.evals)]
        metrics = {name: Metric(value=accuracy, se=0.01) for name in names}
        metrics["loss"] = Metric(value=2.0 - accuracy, se=0.01)
        record = base().model_copy(update={"run": cell.run, "metrics": metrics})
        found.append(Row(labels=cell.labels, record=record))
    return found


def title(paths):
    (svg,) = [path for path in paths if path.suffix == ".svg"]
    return svg.read_text(encoding="utf-8")


def test_parity_is_judged_and_drawn_by_the_seeds_that_did_not_choose(tmp_path):
    solved = {"gated_deltanet_negative": 1.0, "lstm": 0.995}
    cells = state_tracking.cells(tasks=("parity",), rates=(0.005, 0.01, 0.02), seeds=3)
    best = rows(
        cells,
        lambda of, run: solved.get(of["family"], 0.5) - (0.01 if of["lr"] != 0.01 else 0.0),
    )
    found = JUDGES["parity_needs_negative_eigenvalues"](best)
    assert found.holds is True
    assert "gated_deltanet_negative 1.00" in found.result
    said = title(state_figure.draw(best, tmp_path))
    assert "Parity at 240 bits, trained on at most 40, is solved by" in said
    chance = rows(cells, lambda of, run: 0.5)
    assert JUDGES["parity_needs_negative_eigenvalues"](chance).holds is None  # at a sweep's edge
    assert JUDGES["words_need_depth"](best).holds is None


NEVER = 9  # layers, which none has


@pytest.mark.parametrize(
    ("least", "holds"),
    [
        ({"dense": (1, 2), "mamba": (2, 4), "lstm": (1, 1)}, True),
        ({"dense": (1, NEVER), "mamba": (2, 4), "lstm": (1, 1)}, True),
        ({"dense": (1, 1), "mamba": (2, 4), "lstm": (1, 1)}, False),
        ({"dense": (1, 2), "mamba": (2, 4), "lstm": (1, NEVER)}, False),
        ({"dense": (NEVER, NEVER), "mamba": (2, 4), "lstm": (1, NEVER)}, None),
    ],
)
def test_words_are_judged_by_the_least_depth(least, holds, tmp_path):
    cells = state_tracking.cells(
        tasks=("S3", "A5"), families=tuple(least), rates=(0.005, 0.01, 0.02), seeds=2
    )

    def value(of, run):
        return 0.95 if of["depth"] >= least[of["family"]][of["task"] == "A5"] else 0.3

    found = JUDGES["words_need_depth"](rows(cells, value))
    assert found.holds is holds
    if holds:
        assert found.result.startswith("dense: S3 from 1 layer on, A5 ")
        assert state_figure.draw(rows(cells, value), tmp_path)
        nearly = state_figure.finding(chosen(rows(cells, value)))  # .95 of the answers
        assert nearly == "words of S3 by no family; words of A5 by no family"
        more = state_figure.finding(chosen(rows(cells, lambda *run: value(*run) + 0.05)))
        assert more.startswith("words of S3 by dense, lstm and mamba; words of A5 by ")


def recalls(most, spread=0.001):
    """Rows of recall: by family and width, the most pairs that are recalled; `spread` is what each
    further seed has less.
    """
    cells = recall.cells(families=("dense", "mamba"), widths=(24, 64), rates=(0.01,))
    found = rows(cells, lambda of, run: 0.9)
    for row in found:
        for split in row.record.run.evals:
            solved = int(split.name[5:]) <= most[row.labels["family"]][row.labels["width"]]
            value = (0.99 if solved else 0.3) - spread * row.record.run.seed
            row.record.metrics[f"{split.name}.accuracy"] = Metric(value=value, se=0.01)
    return found


def late(power):
    """Rows of context_training whose late positions fall as N to −.1 + power, the early to −.1."""
    grid = context_training.cells(families=("dense", "mamba"), lengths=(128, 512), steps=(250,))
    found = []
    for i, row in enumerate(rows(grid, lambda of, run: 0.5)):
        size, context = row.labels["width"] ** 2, row.labels["context"]
        metrics = dict(row.record.metrics)
        for first in (0, *(2**n for n in range(9))):
            if first < context:
                slope = power * (2 * first >= context) - 0.1
                nats = size**slope * (1 + 0.002 * (-1) ** i * (first == 1))
                metrics[f"loss_at_{first}"] = Metric(value=nats, count=max(first, 1))
        changed = {"metrics": metrics, "params": row.record.params | {"active": size}}
        found.append(Row(labels=row.labels, record=row.record.model_copy(update=changed)))
    return found


@pytest.mark.parametrize(
    ("most", "power", "holds"),
    [
        ({"dense": {24: 4, 64: 16}, "mamba": {24: 0, 64: 8}}, -0.05, True),
        ({"dense": {24: 8, 64: 8}, "mamba": {24: 8, 64: 4}}, 0.05, False),
        ({"dense": {24: 4, 64: 16}, "mamba": {24: 8, 64: 8}}, -0.05, None),  # they disagree
        ({"dense": {24: 16, 64: 16}, "mamba": {24: 0, 64: 0}}, 0.05, None),  # none has a say
        ({"dense": {24: 4, 64: 16}, "mamba": {24: 0, 64: 8}}, 0.0, None),
    ],
)  # fmt: skip
def test_longer_contexts_of_larger_models_are_judged_by_recall_and_by_position(most, power, holds):
    judge = next(c for c in claims.claims() if c.name == "larger_keeps_longer_contexts").judge
    found = judge(recalls(most), late(power))
    assert found.holds is holds
    assert f"dense at 512: {power:z.2f} [" in found.result


def test_pairs_on_which_seeds_disagree_are_recalled_perhaps_and_decide_nothing():
    most = {"dense": {24: 4, 64: 16}, "mamba": {24: 0, 64: 8}}
    told = {(t["family"], t["width"]): recalled(t, 0.9) for t in chosen(recalls(most, 0.2))}
    assert told["dense", 24] == (0, 4)
    assert told["dense", 64] == (0, 16)
    assert told["mamba", 24] == (0, 0)
    judge = next(c for c in claims.claims() if c.name == "larger_keeps_longer_contexts").judge
    assert judge(recalls(most, 0.2), late(-0.05)).holds is None


def at(context, *families):
    """Rows of a known surface, whose optimum is inside the sizes, with a label of their context."""
    grid = synthetic.grid(families, ((24, 2), (40, 2), (64, 2), (96, 4)), (2000, 8000, 32000))
    return [Row(labels=row.labels | {"context": context}, record=row.record) for row in grid]


def test_optima_are_those_of_the_families_that_the_claim_names():
    pair = [*at(128, "dense", "mamba"), *at(512, "dense", "mamba")]
    judge = JUDGES["optimum_falls_with_context"]
    alone = judge(pair)
    assert alone.numbers.keys() == {"dense", "mamba"}
    smaller = [row for row in at(128, "linear") if row.labels["width"] < 96]
    assert judge([*pair, *smaller]) == alone


def test_contexts_are_compared_by_the_families_trained_at_both_ends(tmp_path):
    changes = {"dense": {128: 1.4, 512: 1.5}, "mamba": {128: 1.4, 512: 1.3}, "linear": {128: 1.0}}
    told = "the loss at equal tokens changes by −0.10 nats (mamba) to +0.10 nats (dense)"
    found = context_figure.finding({family: {"loss": loss} for family, loss in changes.items()})
    assert found == f"From 128 to 512 tokens of context {told}"
    drawn = [*at(128, "dense", "linear"), *at(512, "dense")]
    assert "nats (dense)" in title(context_figure.draw(drawn, tmp_path))


def test_runs_that_all_diverged_are_one_line_or_no_picture(tmp_path):
    drawn = [
        *at(128, "dense"),
        *at(512, "dense"),
        *recalls({"dense": {24: 4, 64: 8}, "mamba": {24: 4, 64: 4}}),
    ]
    lost = {"status": "diverged", "reason": "loss is nan", "metrics": {}}
    rows = [Row(labels=r.labels, record=r.record.model_copy(update=lost)) for r in drawn]
    with pytest.raises(UserError, match="share no executed FLOPs"):
        context_figure.draw([row for row in rows if "context" in row.labels], tmp_path)
    assert recall_figure.draw([row for row in rows if "lr" in row.labels], tmp_path) == []


def test_losses_at_equal_tokens_are_of_one_size_and_length_at_every_context():
    rows = [*at(128, "dense"), *at(512, "dense")]
    short = [
        row
        for row in rows
        if row.labels["context"] == 128 or (row.labels["width"] < 96 and row.record.tokens < 2e7)
    ]
    found = Contexts(short).at_equal_tokens("dense")
    assert len({(point.width, point.tokens) for point in found.values()}) == 1
    assert found[512].width == 64
    apart = [row for row in rows if (row.labels["context"] == 128) == (row.labels["width"] == 96)]
    assert Contexts(apart).at_equal_tokens("dense") == {}


def test_runs_that_failed_say_nothing_of_their_model(tmp_path):
    def failed(rows):
        lost = {"status": "failed", "reason": "no time", "metrics": {}}
        return [Row(labels=r.labels, record=r.record.model_copy(update=lost)) for r in rows]

    copied = failed(rows(copying.cells(families=("dense",), lengths=(8,)), lambda of, run: 1.0))
    assert copying_figure.draw(copied, tmp_path) == []
    scored = failed(rows(mad.cells(seeds=1), lambda of, run: 1.0))
    assert mad_figure.draw(scored, tmp_path) == []
    assert chosen(failed(recalls({"dense": {24: 4, 64: 16}, "mamba": {24: 0, 64: 8}}))) == []


def test_steps_are_compared_where_both_were_tried():
    cells = copying.cells(families=("dense", "mamba"), lengths=(8,), seeds=1)
    found = rows(cells, lambda of, run: float(run.budget.steps > 500))
    judge = JUDGES["attention_copies_sooner"]
    assert "dense: 1000 at 8; mamba: 1000 at 8" in judge(found).result
    less = [r for r in found if r.labels["family"] == "dense" or r.record.run.budget.steps == 250]
    assert judge(less).holds is None


def written(rows, folder):
    file = folder / "rows.jsonl"
    file.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    return str(file)


SOME = {"dense": {24: 4, 64: 16}, "mamba": {24: 0, 64: 8}}


def test_another_experiment_s_records_are_told_by_the_label_they_lack(tmp_path, capsys):
    file = written(recalls(SOME), tmp_path)
    assert main(["figures", "copying", "--records", file, "--out", str(tmp_path)]) == 2
    assert "rows.jsonl lacks 'length', which figures of copying" in capsys.readouterr().err


def test_a_label_that_is_there_and_is_missed_is_a_bug_with_its_traceback(tmp_path, monkeypatch):
    def draw(rows, out):
        raise KeyError("width")

    monkeypatch.setattr(recall_figure, "draw", draw)
    file = written(recalls(SOME), tmp_path)
    with pytest.raises(KeyError):
        main(["figures", "recall", "--records", file, "--out", str(tmp_path)])


def test_stability_is_judged_by_two_widths():
    judge = next(c for c in claims.claims() if c.name == "larger_is_less_stable").judge
    assert judge(synthetic.grid(("dense",), ((32, 2),), (500,))).holds is None


def test_what_a_figure_lacks_is_said(tmp_path, capsys):
    some = [row for row in recalls(SOME) if row.record.run.seed == 0]
    file = written(some, tmp_path)
    assert main(["figures", "recall", "--records", file, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"the {len(some)} runs of recall make no figure. One picture; none without a" in said


def test_a_context_of_fewer_than_eight_tokens_has_no_early_and_late():
    short = [Row(labels=row.labels | {"context": 4}, record=row.record) for row in late(0.0)]
    assert Contexts(short).late_slopes("dense") == {}
    assert list(Contexts(late(0.0)).late_slopes("dense")) == [128, 512]


def test_copying_is_judged_and_drawn_by_the_steps_it_takes(tmp_path):
    takes = {"dense": 500, "mamba": 1000}
    cells = copying.cells(families=tuple(takes), lengths=(8, 16), seeds=2)
    found = rows(cells, lambda of, run: float(run.budget.steps >= takes[of["family"]]))
    verdict = JUDGES["attention_copies_sooner"](found)
    assert verdict.holds is True
    assert "dense: 500 at 8, 500 at 16; mamba: 1000 at 8" in verdict.result
    apart = [r for r in found if (r.labels["family"] == "dense") == (r.labels["length"] == 16)]
    assert JUDGES["attention_copies_sooner"](apart).holds is None
    said = title(copying_figure.draw(found, tmp_path))
    assert "16 letters are copied, in steps: from 500 on by dense" in said
    steps = {"dense": {16: 250, 32: 250}, "mamba": {16: 1000, 32: math.inf}, "lstm": {16: 1000}}
    assert copying_figure.finding(steps).endswith("on by dense; not within these steps by mamba")


def test_mad_scores_are_ranked_beside_the_ladder(tmp_path):
    ladder = read_rows(claims.RESULTS / "ladder.jsonl")
    order = ("hybrid", "mamba", "mamba2", "lstm", "gated_deltanet", "moe", "linear", "dense")
    cells = mad.cells(seeds=1)
    found = rows(cells, lambda of, run: 0.9 - 0.1 * order.index(of["family"]))
    verdict = JUDGES["mad_ranks_as_loss_does"](found, ladder)
    assert verdict.holds is True
    assert verdict.result.startswith("rank correlation 1.00, p = 0.00")
    paths = mad_figure.draw(found, tmp_path)
    assert "hybrid has the highest mean accuracy, 0.90, and leads on 6 of 6 tasks" in title(paths)
    some = [row for row in found if row.labels["task"] != "compression" or
            row.labels["family"] != "dense"]  # fmt: skip
    (numbers,) = [path for path in mad_figure.draw(some, tmp_path) if path.suffix == ".json"]
    assert "dense" not in json.loads(numbers.read_text())


def test_the_committed_recall_is_drawn_with_who_reaches_and_who_does_not(tmp_path):
    committed = read_rows(claims.RESULTS / "recall.jsonl")
    said = title(recall_figure.draw(committed, tmp_path))
    assert "At 16 pairs 6 of 10 families reach 90 %, rwkv7 with the least state" in said
    assert JUDGES["attention_recalls"](committed).holds is True


def test_losses_by_position_are_means_over_runs():
    found = [
        Row(record=base().model_copy(update={"metrics": {"loss_at_0": Metric(value=value)}}))
        for value in (2.0, 3.0)
    ]
    assert means(found) == {0: pytest.approx(2.5)}
