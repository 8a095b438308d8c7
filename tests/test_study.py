"""What the ladder's study says of runs whose truth is known."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import synthetic

from isoflop.experiments.cli import readme
from isoflop.figures import ladder
from isoflop.models.errors import UserError
from isoflop.sim.compare.family_fits import surface
from isoflop.sim.compare.points import longest, points
from isoflop.sim.compare.study import Study
from isoflop.sim.laws import fit
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.records.store import join_step_seconds, read_rows, read_table

DRAWS = 60
SIZES = ((32, 2), (48, 2), (64, 2), (96, 4))


@pytest.fixture(scope="module")
def rows():
    return synthetic.grid(("dense", "mamba", "slow"), SIZES, (300, 600, 1200), (0, 1), noise=0.002)


@pytest.fixture(scope="module")
def found(rows):
    return Study(rows, draws=DRAWS).json()


def in_seconds(rows):
    """Gains by family, as the study has them."""
    gains = Study(rows, draws=DRAWS, costs=("seconds",)).gains
    assert list(gains) == ["seconds"]
    return {item["arm"]: item for item in (gain.json() for gain in gains["seconds"])}


def test_gains_have_the_sign_of_the_surfaces_they_come_from(found):
    far = {item["arm"]: item["ceg"][-1] for item in found["gains"]["executed"]}
    assert far["mamba"]["low"] > 1  # its A and B are .96 of dense's
    assert far["slow"]["high"] < 1  # and these are 1.1 of them


def test_gains_in_seconds_are_those_in_flops_where_seconds_go_as_flops(rows, found):
    """Steps of a device that does one FLOP in a nanosecond, and mamba's in two."""
    assert "seconds" not in found["gains"]  # no step was timed
    steps = [
        {
            "program": "train_step",
            "family": row.labels["family"],
            "device": row.record.device,
            "width": row.labels["width"],
            "depth": row.labels["depth"],
            "seq_len": row.record.run.budget.seq_len,
            "batch": row.record.run.budget.batch,
            "seconds": row.record.flops["executed"] / row.record.run.budget.steps * nanoseconds,
        }
        for row in rows
        for nanoseconds in [2e-9 if row.labels["family"] == "mamba" else 1e-9]
    ]
    gains = Study(join_step_seconds(rows, steps), draws=DRAWS).json()["gains"]
    flops, seconds = (
        {item["arm"]: item["ceg"][-1]["value"] for item in gains[cost]}
        for cost in ("executed", "seconds")
    )
    assert seconds["slow"] == pytest.approx(flops["slow"])
    assert seconds["mamba"] == pytest.approx(flops["mamba"] / 2, rel=0.02)


def test_a_cost_that_does_not_grow_with_n_is_told_and_the_others_stand(rows):
    """As seconds of small models on an idle device."""
    idle = [
        row.model_copy(update={"labels": row.labels | {"step_seconds": 1e-3}})
        if row.labels["family"] == "mamba"
        else row.model_copy(
            update={"labels": row.labels | {"step_seconds": row.record.run.model.d_model}}
        )
        for row in rows
    ]
    told = in_seconds(idle)
    assert told["mamba"]["status"] == "unidentifiable"
    assert "the cost must grow with N" in told["mamba"]["reason"]
    assert told["slow"]["ceg"]


def test_a_surface_whose_cost_cannot_be_told_is_not_identifiable_and_ends_no_report(
    rows, monkeypatch
):
    def refuse(*columns):
        raise UserError("the cost must grow with N and with D")

    monkeypatch.setattr(fit, "fit_cost", refuse)
    found = surface(points(rows), draws=20)
    assert (found.status, found.reason) == (
        "unidentifiable",
        "the cost must grow with N and with D",
    )


def test_state_bytes_are_compared_at_the_longest_runs_of_each_size(rows):
    cells = longest(points(rows))
    assert len(cells) == 3 * len(SIZES)
    assert {cell.tokens for cell in cells} == {1200 * 8 * 128}


def test_the_optimum_is_that_of_the_true_surface(found):
    """Within the factor by which a law without the truth's E moves the optimum."""
    points = found["windows"]["dense"]["optimum"]
    inside = [point for point in points if point["measured"]]
    assert inside
    for point in inside:
        n, d = point["N*"][0], point["D*"][0]
        best = min(
            synthetic.surface(n * f, d / f, "dense") for f in (0.25, 0.5, 0.8, 1, 1.25, 2, 4)
        )
        assert synthetic.surface(n, d, "dense") < best * 1.005


def test_noise_is_what_was_put_in(found):
    expected = math.hypot(0.002, 0.001)
    assert expected / 1.6 < found["noise"]["dense"]["seeds"] < expected * 1.6
    assert found["noise"]["dense"]["evaluation"] == pytest.approx(0.006 / 2, rel=0.3)


def test_parts_of_one_familys_runs_predict_alike(found):
    told = [item for item in found["subsets"] if "predicted" in item]
    assert len(told) >= 5
    assert all(abs(item["predicted"] / item["measured"] - 1) < 0.02 for item in told)


@pytest.mark.parametrize("records", readme.RUNS, ids=lambda path: path.stem)
def test_committed_runs_have_the_flops_that_the_code_counts_and_the_seconds_timed(records):
    rows = read_rows(records)
    now = join_step_seconds(map(readme.recounted, rows), read_table(readme.STEPS))
    assert rows == now, "run: python -m isoflop.experiments.cli.readme"


@pytest.mark.parametrize("records", readme.STUDIES, ids=lambda path: path.stem)
def test_the_committed_study_is_of_the_committed_records(records):
    """Without fitting anew: its best cells and its noise; `isoflop figures ladder` makes it."""
    rows = read_rows(records)
    committed = json.loads(readme.STUDIES[records].read_text(encoding="utf-8"))
    study = Study(rows)
    assert committed["runs"] == len(rows)
    shown = committed["best"]["dense"].keys()
    told = {name: {k: cell.numbers[k] for k in shown} for name, cell in study.best.items()}
    assert committed["best"] == told
    assert committed["noise"] == study.noise


def test_each_fit_is_made_once_whoever_asks(rows, monkeypatch):
    """Figures, tables and the page draw one value: no fit is made for the second reader."""
    made = []
    for form in (Chinchilla, PowerLaw):
        monkeypatch.setattr(form, "fit", partial(recorded, made, form.fit))
    study = Study(rows, draws=10, costs=("executed", "matmul"))
    first = study.json()
    count, families = len(made), len(study.families)
    assert count == len({json.dumps(key) for key in made})  # no fit of the same runs, twice
    assert study.json() == first
    assert study.lines("executed") is study.lines("executed")
    assert len(made) == count >= 2 * families


def recorded(made, fit, columns, **options):
    stated = {k: v for k, v in options.items() if k != "held_out"}
    made.append([np.asarray(columns["loss"]).tolist(), stated, sorted(columns)])
    return fit(columns, **options)


def committed(path: Path, convention: str = "executed") -> dict[str, list[dict]]:
    """Each family's gains by budget."""
    gains = json.loads(path.read_text(encoding="utf-8"))["gains"][convention]
    return {item["arm"]: item["ceg"] for item in gains}


def test_what_is_said_to_be_resolved_is_in_the_committed_study():
    far = {arm: gains[-1] for arm, gains in committed(readme.LAPTOP).items()}
    assert far["lstm"]["low"] > 2
    assert all(far[name]["low"] < 2 < far[name]["value"] for name in ("mamba", "hybrid"))
    assert all(
        1 < far[name]["low"] < 1.5 < far[name]["high"] for name in ("gated_deltanet", "mamba2")
    )
    idle = committed(readme.LAPTOP, "6ND_non_embedding")["moe"][-1]
    assert far["moe"]["low"] > 1
    assert idle["low"] < 1 < idle["high"]
    told = json.loads(readme.LAPTOP.read_text(encoding="utf-8"))
    for name, law in told["laws"].items():
        assert law["status"] == ("at a bound" if name in ("mamba", "linear") else "converged")
        low, high = law["interval"]["E"]
        assert low == 0 < told["best"][name]["loss"] / 3 < high
        assert law["held_out"][0]["error"] > 0


def test_what_is_said_of_seconds_and_state_is_in_the_committed_study():
    seconds, state = (
        {arm: gains[-1] for arm, gains in committed(readme.LAPTOP, cost).items()}
        for cost in ("seconds", "state_bytes")
    )
    assert sorted(seconds, key=lambda arm: -seconds[arm]["value"])[:2] == ["hybrid", "lstm"]
    assert {arm for arm, at in seconds.items() if at["low"] > 1} == {"hybrid", "lstm"}
    assert {arm for arm, at in seconds.items() if at["high"] < 1} == {"linear"}
    assert min(state, key=lambda arm: state[arm]["value"]) == "moe"
    assert all(1 < state["moe"]["low"] <= at["low"] for at in state.values())
    assert 200 < state["lstm"]["low"] < state["lstm"]["value"] < 450


def test_what_is_said_of_more_compute_is_in_the_committed_studies():
    small, large = (committed(path) for path in (readme.LAPTOP, readme.GPU))
    far = {name: gains[-1] for name, gains in large.items()}
    for name in ("mamba", "hybrid", "gated_deltanet", "mamba2"):
        assert small[name][-1]["value"] > far[name]["value"]
    assert {name for name, gain in far.items() if gain["low"] > 1} == {"mamba", "hybrid"}
    assert {name for name, gain in far.items() if gain["high"] < 1} == {"linear"}
    gains = json.loads(readme.GPU.read_text(encoding="utf-8"))["gains"]["executed"]
    directions = {item["arm"]: item["trend"]["direction"] for item in gains}
    falling = {name for name, direction in directions.items() if direction == "falls"}
    assert falling == {"mamba", "gated_deltanet", "mamba2"}
    assert {directions[name] for name in directions.keys() - falling} == {"not identifiable"}


@pytest.mark.slow
def test_every_figure_is_drawn_with_its_numbers(rows, tmp_path: Path):
    names = {path.name for path in ladder.draw(rows, tmp_path, draws=DRAWS)}
    stems = {
        "study",
        "flop_conventions",
        "optima",
        "gains",
        "gains_by_compute",
        "residuals",
        "subsets",
    }
    assert {f"{stem}.json" for stem in stems} <= names
    assert json.loads((tmp_path / "study.json").read_text())["runs"] == len(rows)
