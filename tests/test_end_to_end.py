"""From a command to a page: real text, real training, nothing faked but the size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from isoflop.experiments import quickstart
from isoflop.experiments.cli.main import main
from isoflop.figures.report.summary import conclusion
from isoflop.sim.compare.points import points
from isoflop.sim.records.store import read_rows

SIZE = ("--families", "dense", "linear", "--steps", "64", "80", "--seeds", "2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, shared_cache: None):
    """The folder in which the commands ran; SHAPES is the only thing that has no flag."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(quickstart, "SHAPES", ((32, 1),))
        for verb in ("run", "records", "figures", "report"):
            assert main([verb, "quickstart", *SIZE]) == 0
        yield folder


def test_every_run_of_the_grid_has_a_record_with_a_loss_that_training_lowered(done: Path):
    rows = read_rows(done / "report" / "quickstart" / "quickstart.jsonl")
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row.record.status == "ok"
        assert 2 < row.record.loss < math.log(256)
        assert row.record.tokens == row.record.run.budget.steps * 8 * 128
    assert {len(cell.losses) for cell in points(rows)} == {2}


def test_the_figures_and_the_page_show_those_losses(done: Path):
    rows = read_rows(done / "report" / "quickstart" / "quickstart.jsonl")
    losses = {row.record.key: row.record.loss for row in rows}
    drawn = json.loads((done / "report" / "quickstart" / "loss_vs_flops.json").read_text())
    assert sorted(v for cell in drawn["cells"] for v in cell["losses"]) == sorted(losses.values())
    page = (done / "report" / "quickstart" / "quickstart.html").read_text(encoding="utf-8")
    for key, loss in losses.items():
        assert f">{loss:.4f}</td>" in page
        assert f"<code>{key}</code>" in page


def test_a_second_run_trains_nothing_and_prints_the_conclusion(done: Path, capsys):
    capsys.readouterr()
    assert main(["run", "quickstart", *SIZE]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0 of 8 runs trained, 8 finished before\n")
    said = conclusion(read_rows(done / "report" / "quickstart" / "quickstart.jsonl"))
    assert "has the lowest held-out loss: " in said
    assert "What these data do not resolve:\n- " in said
    assert said in out
