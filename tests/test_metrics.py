"""Every metric by its name: in points, figures, tables, fits and comparisons."""

import csv
import json
import math

import numpy as np
import pytest
import synthetic

from isoflop.experiments.cli.main import main
from isoflop.figures import quickstart
from isoflop.sim.compare.points import axis_label, points, usable
from isoflop.sim.records.metrics import Metric, buckets, by_position, measured
from isoflop.sim.records.readers import read
from isoflop.sim.records.store import Row, write_rows
from isoflop.sim.records.tables import falling
from isoflop.sim.records.writers import write_csv


def with_metrics(row: Row, **metrics: float) -> Row:
    more = {
        name.replace("__", "."): Metric(value=v, se=0.01, count=9) for name, v in metrics.items()
    }
    record = row.record.model_copy(update={"metrics": row.record.metrics | more})
    return row.model_copy(update={"record": record})


@pytest.fixture(scope="module")
def rows():
    """Two families; on the set kjv every loss is twice the held-out one, late in a sequence half,
    which the first run is too old to say.
    """
    found = synthetic.grid(families=("dense", "mamba"))
    twice = [with_metrics(row, kjv__loss=2 * row.record.loss) for row in found]
    return [twice[0], *(with_metrics(row, loss_at_64=row.record.loss / 2) for row in twice[1:])]


def test_a_point_is_of_the_metric_that_is_named(rows):
    for name, of in {
        "loss": lambda loss: loss,
        "kjv.loss": lambda loss: 2 * loss,
        "bits_per_byte": lambda loss: loss / math.log(2),
        "accuracy": lambda loss: 1 - math.exp(-loss),
    }.items():
        for point, plain in zip(points(rows, metric=name), points(rows), strict=True):
            assert point.metric == name
            assert point.losses.keys() == plain.losses.keys()
            for seed, loss in plain.losses.items():
                assert point.losses[seed] == pytest.approx(of(loss))
    assert "metric" not in points(rows)[0].numbers
    assert points(rows, metric="kjv.loss")[0].numbers["metric"] == "kjv.loss"


def test_a_run_without_a_metric_above_zero_is_no_point_of_it(rows):
    perfect = with_metrics(rows[0], accuracy=1.0)
    assert usable(perfect)
    assert not usable(perfect, "accuracy")
    assert not usable(rows[0], "sympy.loss")
    assert points(rows, metric="sympy.loss") == []


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("loss", "held-out loss (nats per token)"),
        ("kjv.loss", "loss on kjv (nats per token)"),
        ("bits_per_byte", "held-out loss (bits per byte)"),
        ("recall.accuracy", "error rate on recall (1 − accuracy)"),
        ("kjv.perplexity", "perplexity on kjv"),
        ("loss_at_0", "held-out loss at position 0 (nats per token)"),
        ("kjv.loss_at_64", "loss at positions 64 to 127 on kjv (nats per token)"),
        ("look_at_64", "held-out look_at_64"),
    ],
)
def test_an_axis_is_labelled_by_its_metric(name, label):
    assert axis_label(name) == label


def test_the_standard_figures_are_of_the_metric_that_is_named(rows, tmp_path):
    written = quickstart.draw(rows, tmp_path, "kjv.loss")
    assert {path.stem for path in written} == {"loss_vs_flops", "loss_vs_params"}
    found = json.loads((tmp_path / "loss_vs_flops.json").read_text())
    plain = [cell.loss for cell in points(rows)]
    assert [cell["loss"] for cell in found["cells"]] == pytest.approx([2 * x for x in plain])
    assert "loss on kjv" in (tmp_path / "loss_vs_flops.svg").read_text()
    quickstart.draw(rows, tmp_path, "bits_per_byte")
    drawn = (tmp_path / "loss_vs_flops.svg").read_text()
    assert "bits per byte" in drawn
    assert "nats" not in drawn


def test_figures_of_a_metric_by_the_command(rows, tmp_path, capsys):
    records = tmp_path / "quickstart.jsonl"
    write_rows(records, rows)
    options = ["--records", str(records), "--out", str(tmp_path)]
    assert main(["figures", "quickstart", "--metric", "kjv.loss", *options]) == 0
    folder = tmp_path / "quickstart" / "kjv.loss"
    assert {path.suffix for path in folder.iterdir()} == {".svg", ".png", ".json"}
    assert str(folder / "loss_vs_flops.svg") in capsys.readouterr().out
    assert main(["figures", "quickstart", "--metric", "kjv.lose", *options]) == 2
    told = capsys.readouterr().err
    assert (
        "no metric 'kjv.lose'; they have accuracy, bits_per_byte, kjv.loss, loss, loss_at_64"
        in told
    )


def test_an_old_run_without_a_metric_is_left_out_and_said(rows, tmp_path, capsys):
    quickstart.draw(rows, tmp_path, "loss_at_64")
    drawn = (tmp_path / "loss_vs_flops.svg").read_text()
    assert "loss at positions 64 to 127 (nats per token)" in drawn
    assert "1 without loss_at_64, or none above 0, not drawn" in drawn
    found = json.loads((tmp_path / "loss_vs_flops.json").read_text())
    assert sum(len(cell["seeds"]) for cell in found["cells"]) == len(rows) - 1
    file = tmp_path / "x.csv"
    write_csv(file, rows)
    assert main(["fit", str(file), "--loss", "loss_at_64", "--draws", "20"]) == 0
    assert main(["compare", str(file), "--loss", "loss_at_64", "--draws", "20"]) == 0
    assert capsys.readouterr().out.count("dropped: 1 × loss_at_64 is empty (row 1)") == 2


def test_a_table_has_columns_for_every_metric(rows, tmp_path):
    diverged = synthetic.row("dense", 32, 2, 500, seed=9, status="diverged", reason="nan")
    every = [*rows, diverged]
    write_csv(tmp_path / "x.csv", every)
    write_rows(tmp_path / "x.jsonl", every)
    with (tmp_path / "x.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, every, strict=True):
        for name in ("loss", "bits_per_byte", "accuracy", "kjv.loss", "loss_at_64"):
            metric = row.record.metrics.get(name)
            told = [line[name + end] for end in ("", "_se", "_count")]
            expected = ["", "", ""]
            if metric is not None:
                expected = [repr(metric.value), repr(metric.se), str(metric.count)]
            assert told == expected
    assert read(tmp_path / "x.jsonl")["kjv.loss"][:-1] == [2 * row.record.loss for row in rows]


def test_laws_and_gains_are_of_the_metric_that_is_named(rows, tmp_path, capsys):
    """Twice the loss has twice the E and equal exponents; an accuracy is fitted as its errors."""
    file = tmp_path / "x.jsonl"
    write_rows(file, rows)
    found = {}
    for name in ("loss", "kjv.loss", "accuracy"):
        out = tmp_path / "fit.json"
        options = ["--loss", name, "--draws", "20", "--json", str(out)]
        assert main(["fit", str(file), *options, "--group", "family"]) == 0
        found[name] = json.loads(out.read_text())["dense"]
    assert "column 'kjv.loss'" in json.dumps(found["kjv.loss"])
    assert "column '1 - accuracy'" in json.dumps(found["accuracy"])
    once, twice = (found[name]["estimate"] for name in ("loss", "kjv.loss"))
    assert twice["E"] == pytest.approx(2 * once["E"], rel=1e-3)
    assert twice["alpha"] == pytest.approx(once["alpha"], rel=1e-3)
    assert main(["compare", str(file), "--loss", "kjv.loss", "--draws", "20"]) == 0
    assert main(["compare", str(file), "--loss", "sympy.loss", "--draws", "20"]) == 2
    assert "column 'sympy.loss' must be in the table" in capsys.readouterr().err


def test_the_complement_of_an_accuracy_falls_and_bad_cells_stay_to_be_dropped():
    columns = {"accuracy": ["0.25", 1, None, "?"], "loss": [1, 2, 3, 4]}
    found, name = falling(columns, "accuracy")
    assert found[name][:2] == [0.75, 0.0]
    assert found[name][2:] == [None, "?"]
    assert falling(columns, "loss") == (columns, "loss")
    assert falling(columns, "kjv.accuracy") == (columns, "kjv.accuracy")


def test_without_weights_a_loss_is_the_mean_over_sequences_with_its_standard_error():
    rng = np.random.default_rng(0)
    loss, correct = rng.random(64).astype(np.float32), rng.random((64, 5)) < 0.3
    nats = np.tile(loss[:, None], 5)
    found = measured(loss, nats, correct, None, bytes_per_token=4.0)
    mean, se = loss.mean(dtype=float), loss.std(ddof=1, dtype=float) / 8
    assert found["loss"].value == mean
    assert found["loss"].se == pytest.approx(se)
    assert found["loss"].count == 320
    bits = found["bits_per_byte"]
    assert (bits.value, bits.se) == pytest.approx((mean / math.log(2) / 4, se / math.log(2) / 4))
    assert found["accuracy"].value == pytest.approx(correct.mean())
    weights = np.ones((64, 5), np.float32)
    assert measured(loss, nats, correct, weights, None)["loss"] == found["loss"]


def test_the_standard_error_of_a_ratio_is_what_it_varies_by():
    """Sequences with unequal weight, and losses that depend on it: over 2000 evaluations."""
    rng = np.random.default_rng(1)
    values, told = [], []
    for _ in range(2000):
        weights = np.repeat(rng.integers(0, 5, size=(100, 1)), 4, axis=1).astype(np.float32)
        nats = 1 + 0.3 * weights + rng.random((100, 4))
        found = measured(
            (weights * nats).mean(-1).astype(np.float32),
            *(nats, np.zeros((100, 4), bool), weights, None),
        )["loss"]
        values.append(found.value)
        told.append(found.se)
    assert np.mean(values) == pytest.approx(1.5 + 0.3 * (0 + 1 + 4 + 9 + 16) / 10, rel=0.01)
    assert np.mean(told) == pytest.approx(np.std(values), rel=0.06)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 8, 9, 100])
def test_every_target_is_in_one_bucket_of_positions(seq_len):
    found = buckets(seq_len)
    covered = np.concatenate([np.arange(seq_len)[places] for places in found.values()])
    assert (covered == np.arange(seq_len)).all()
    assert list(found) == [0, 1, 2, 4, 8, 16, 32, 64][: len(found)]


def test_losses_by_position_are_those_of_the_targets_there_with_their_standard_errors():
    rng = np.random.default_rng(2)
    nats = rng.random((50, 11)).astype(np.float32)
    found = by_position(nats, None)
    assert list(found) == ["loss_at_0", "loss_at_1", "loss_at_2", "loss_at_4", "loss_at_8"]
    for name, places in zip(found, [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9, 10]], strict=True):
        means = nats[:, places].astype(float).mean(-1)
        assert found[name].value == pytest.approx(means.mean(), rel=1e-12)
        assert found[name].se == pytest.approx(means.std(ddof=1) / math.sqrt(50), rel=1e-9)
        assert found[name].count == 50 * len(places)


def test_positions_without_weight_have_no_loss():
    weights = np.zeros((6, 8), np.float32)
    weights[:, 5] = weights[0, 1] = 2
    found = by_position(np.ones((6, 8), np.float32), weights)
    assert {name: metric.count for name, metric in found.items()} == {
        "loss_at_1": 1,
        "loss_at_4": 6,
    }
