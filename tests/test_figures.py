"""Claims about the figures: what is drawn, with which interval, the same every time."""

from __future__ import annotations

import html
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from isoflop.experiments import families
from isoflop.figures import (
    bench,
    context,
    ladder,
    lr_transfer,
    palette,
    peers,
    quickstart,
    scaling,
    style,
)
from isoflop.models.families import zoo
from isoflop.sim.compare import rankings, slopes
from isoflop.sim.compare.family_fits import FamilyFit, line, surface
from isoflop.sim.compare.points import Point, _intervals, envelope, points
from isoflop.sim.compare.study import Study
from isoflop.sim.laws.forms import Chinchilla, PowerLaw


def cell(family: str, flops: float, losses: dict[int, float], **other: object) -> Point:
    plain = Point(
        **{"family": family, "width": 64, "depth": 2, "tokens": 1000, "bits_per_byte": None},
        losses=losses,
        params={"total": 10, "active": 10},
        flops={"executed": int(flops)},
        batch_tokens=8,
        trunk=str(flops),
        curves={},
    )
    return replace(plain, **other)  # type: ignore[arg-type]


# style


def test_a_family_looks_the_same_whoever_else_is_there():
    """Known or not; the second of two names that are hashed to one look moves on."""
    for name in ("mamba", "zebra", "$a^{b$"):
        alone = style.styles([name])[name]
        assert style.styles(["linear", name, "dense", "aardvark"])[name] == alone


def test_every_family_of_the_zoo_has_its_own_look_and_an_unknown_one_none_of_theirs():
    assert set(palette.FAMILIES) == set(zoo.FAMILIES)
    assert len(set(palette.FAMILIES.values())) == len(zoo.FAMILIES)
    unknown = [f"mine {i}" for i in range(len(palette.FREE))]
    styles = style.styles([*zoo.FAMILIES, *unknown])
    assert len(set(styles.values())) == len(styles)
    many = style.styles([*zoo.FAMILIES, *(f"mine {i}" for i in range(300))])
    assert not {many[f"mine {i}"] for i in range(300)} & set(palette.FAMILIES.values())


def test_the_studied_families_differ_in_colour_and_in_mark():
    styles = style.styles(families.STUDIED).values()
    assert len({look.colour for look in styles}) == len({look.marker for look in styles}) == 8


def test_what_is_no_family_has_no_family_s_colour_or_mark():
    kinds = palette.kinds(f"device {i}" for i in range(15)).values()
    assert not {kind.colour for kind in kinds} & set(palette.PETROFF10)
    assert not {kind.marker for kind in kinds} & set(palette.PATHS)


def test_every_colour_stands_out_from_a_dark_page():
    def light(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    styles = [palette.Style(colour, "o") for colour in palette.PETROFF10]
    assert all((light(look.on_dark) + 0.05) / (light("#1b1f26") + 0.05) >= 3 for look in styles)


@pytest.mark.parametrize("low", [0.012, 0.9, 1.53, 37.0])
@pytest.mark.parametrize("ratio", [1.02, 1.3, 2.5, 6.0, 25.0])
def test_ticks_are_few_enough_to_read_and_inside_the_axis(low: float, ratio: float):
    values = style.ticks(low, low * ratio)
    assert 2 <= len(values) <= 8
    assert values == sorted(values)
    assert low <= values[0]
    assert values[-1] <= low * ratio


# points


def test_seeds_of_one_cell_are_one_point():
    rows = [synthetic.row("dense", 32, 2, 500, seed=seed) for seed in (2, 0, 1)]
    (point,) = points(rows)
    assert point.losses == {row.record.run.seed: row.record.loss for row in rows}


def test_runs_that_differ_in_the_learning_rate_are_different_points():
    row = synthetic.row("dense", 32, 2, 500)
    run = row.record.run
    other = run.model_copy(update={"optim": run.optim.model_copy(update={"lr": 0.02})})
    twin = row.model_copy(update={"record": row.record.model_copy(update={"run": other})})
    assert len(points([row, twin])) == 2


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_without_a_result_is_no_point(status: str):
    rows = [synthetic.row("dense", 32, 2, 500, status=status), synthetic.row("dense", 32, 2, 1000)]
    assert [point.tokens for point in points(rows)] == [1000 * 1024]


def test_one_seed_has_no_interval():
    (point,) = points([synthetic.row("dense", 32, 2, 500)])
    assert point.low is None
    assert point.high is None


def test_intervals_over_seeds_cover_the_truth_nine_times_in_ten():
    chance = random.Random(0)
    covered = 0
    for _ in range(600):
        cells = [
            cell("dense", c, {s: 2.0 * math.exp(chance.gauss(0, 0.01)) for s in range(2)})
            for c in (1e9, 2e9, 3e9)
        ]
        first = _intervals(cells)[0]
        assert first.low is not None
        assert first.high is not None
        covered += first.low < 2.0 < first.high
    assert 0.86 < covered / 600 < 0.94


def test_no_cell_is_cheaper_and_better_than_the_envelope():
    cells = points(synthetic.grid(families=("dense",), seeds=(0,)))
    edge = envelope(cells, "executed")
    assert len(edge) > 2
    for point in edge:
        rivals = [c for c in cells if c.flops["executed"] < point.flops["executed"]]
        assert all(rival.loss > point.loss for rival in rivals)


# the common budget


def power(flops: float, scale: float) -> float:
    return scale * flops**-0.1


def test_loss_at_a_budget_between_cells_lies_on_the_power_law_through_them():
    cells = [cell("a", c, {0: power(c, 30), 1: power(c, 33)}) for c in (1e9, 4e9, 9e9)]
    at = rankings.losses_at(cells, "executed", 6e9)
    assert at == pytest.approx({0: power(6e9, 30), 1: power(6e9, 33)})
    assert rankings.losses_at(cells, "executed", 5e8) == {}


def test_noise_that_families_share_by_seed_does_not_hide_a_difference():
    shared = {0: 1.0, 1: 1.1, 2: 0.9}
    cells = [
        cell(family, c, {s: power(c, scale) * f for s, f in shared.items()})
        for family, scale in (("a", 30.0), ("b", 30.3))
        for c in (1e9, 4e9)
    ]
    ranking = rankings.rank(cells, "executed")
    assert ranking is not None
    best, second = ranking.standings
    assert (best.family, second.family) == ("a", "b")
    assert second.resolved
    assert best.loss.high is not None
    assert best.loss.high > second.loss.mean  # unpaired, the intervals overlap


def test_a_family_against_itself_is_rarely_resolved():
    chance = random.Random(1)
    resolved = 0
    for _ in range(400):
        cells = [
            cell(family, c, {s: power(c, 30) * math.exp(chance.gauss(0, 0.01)) for s in range(3)})
            for family in "ab"
            for c in (1e9, 4e9)
        ]
        ranking = rankings.rank(cells, "executed")
        assert ranking is not None
        resolved += ranking.standings[1].resolved
    assert resolved / 400 < 0.14  # 5 % in each tail, either of two may lead


def test_one_shared_seed_resolves_nothing():
    cells = [
        cell(family, c, losses)
        for family, losses in (("a", {0: 1.0, 1: 1.01}), ("b", {0: 2.0, 5: 2.0}))
        for c in (1e9, 4e9)
    ]
    ranking = rankings.rank(cells, "executed")
    assert ranking is not None
    behind = ranking.standings[1].behind
    assert behind == rankings.Interval(1.0, None, None, 1)
    assert not ranking.standings[1].resolved


def test_a_family_of_one_point_is_not_ranked():
    cells = [cell(f, c, {0: power(c, 30)}) for f in "ab" for c in (1e9, 4e9)]
    ranking = rankings.rank([*cells, cell("c", 2e9, {0: 0.1})], "executed")
    assert ranking is not None
    assert ranking.absent == ("c",)
    assert ranking.flops == 4e9


# fits


def test_the_envelope_s_exponent_is_recovered():
    cells = [cell("a", c, {0: power(c, 30)}) for c in (1e9, 2e9, 4e9, 8e9, 16e9)]
    fit = FamilyFit("a", PowerLaw, line(cells, "executed", draws=20), (1e9, 16e9))
    assert fit.fit.estimate["alpha"] == pytest.approx(0.1, rel=1e-4)
    assert "α 0.1 [" in fit.verdict
    ends = [fit.band()[i]["loss"] for i in (0, -1)]
    assert ends == pytest.approx([power(1e9, 30), power(16e9, 30)], rel=1e-4)


def test_collinear_size_and_data_are_told_and_not_drawn():
    cells = [
        replace(cell("a", 6.0 * n * 20 * n, {0: power(n, 9)}), params={"active": n}, tokens=20 * n)
        for n in (10_000, 20_000, 40_000, 80_000, 160_000, 320_000)
    ]
    fit = FamilyFit("a", Chinchilla, surface(cells, draws=20))
    assert fit.verdict.startswith("not identifiable: N and D move together")
    assert fit.band() == []


def test_bands_stay_inside_the_frame():
    class Wide(FamilyFit):
        def band(self, n: int = 40) -> list[dict[str, float]]:
            return [{"flops": c, "loss": 3.0, "low": 1.0, "high": 9.0} for c in self.span]

    study = Study(synthetic.grid(families=("dense",)), draws=20)
    (found,) = study.lines("executed")
    with style.sheet() as (_, (axes,)):
        scaling.loss_vs_flops(axes, study)
        bottom, top = axes.get_ylim()
        assert 1 < bottom < top < 9
        scaling.bands(axes, [Wide(found.family, found.form, found.fit, found.span)])
        bottom, top = axes.get_ylim()
    assert bottom < 1
    assert top > 9


# context


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_slope_is_the_exponent_of_a_power_law(exponent: float):
    lengths = [512, 1024, 2048, 4096, 8192]
    values = [1e9, *(3e-4 * t**exponent for t in lengths[1:])]  # 512 lies outside the window
    found = slopes.slope(lengths, values)
    assert found is not None
    assert found.value == pytest.approx(exponent, abs=1e-9)
    assert found.half == pytest.approx(0, abs=1e-9)


def test_slope_needs_two_lengths_and_its_interval_three():
    assert slopes.slope([512, 1024], [1.0, 2.0]) is None
    two = slopes.slope([1024, 2048], [1.0, 2.0])
    assert two is not None
    assert (two.n, two.half, str(two)) == (2, None, "1.00")


def test_a_context_figure_says_size_machine_and_units_and_a_half_width_only_where_there_is_one(
    tmp_path: Path,
):
    at = {"width": 48, "depth": 3, "device": "cpu, 2 cores"}
    whole = [m | at for m in synthetic.context()]
    few = [m for m in whole if m["seq_len"] in (1024, 4096)]
    context.draw(whole, tmp_path / "whole")
    context.draw(few, tmp_path / "few")
    told, short = (words(tmp_path / n / "context_scaling.svg") for n in ("whole", "few"))
    for text in (told, short):
        assert "width 48, depth 3, on cpu, 2 cores" in text
        assert " ms " in text
        assert " MB " in text
    assert "log-log slope, 1k to 8k" in told
    assert "±: 90 % t interval" in told
    assert "log-log slope, 1k to 4k" in short
    assert "±" not in short


def test_what_a_cost_takes_at_least_is_drawn_beside_the_measurement(tmp_path: Path):
    measured = [m | {"predicted": m["value"] / 3} for m in synthetic.context(("dense", "mamba"))]
    context.draw(measured, tmp_path / "with")
    context.draw(synthetic.context(("dense", "mamba")), tmp_path / "without")
    told, silent = (words(tmp_path / n / "context_scaling.svg") for n in ("with", "without"))
    assert "dotted: what the exact cost takes at least" in told
    assert "dotted" not in silent
    drawn = (tmp_path / "with" / "context_scaling.svg").read_text(encoding="utf-8")
    assert drawn.count("stroke-dasharray: 1,1.65") == 3 * 2  # seconds, of two families


def test_a_missing_quantity_is_a_missing_panel(tmp_path: Path):
    measured = [m for m in synthetic.context() if m["quantity"] == "state_bytes"]
    *_, numbers = context.draw(measured, tmp_path)
    found = json.loads(numbers.read_text(encoding="utf-8"))["slopes"]
    assert list(found) == ["state_bytes"]
    assert found["state_bytes"]["dense"]["slope"] == pytest.approx(1)
    assert found["state_bytes"]["mamba"]["slope"] == pytest.approx(0, abs=1e-12)
    assert context.draw([], tmp_path) == []


# files


def test_draw_writes_svg_png_and_the_numbers_that_it_plots(tmp_path: Path):
    rows = [
        *synthetic.grid(families=("dense", "moe"), sizes=((32, 2), (64, 2)), seeds=(0, 1)),
        synthetic.row("mamba", 32, 2, 500),
        synthetic.row("mamba", 64, 2, 500, status="diverged", reason="loss is nan"),
    ]
    written = quickstart.draw(rows, tmp_path)
    assert {path.suffix for path in written} == {".svg", ".png", ".json"}
    assert all(path.stat().st_size > 1000 for path in written)
    numbers = json.loads((tmp_path / "loss_vs_flops.json").read_text(encoding="utf-8"))["cells"]
    assert [n["family"] for n in numbers] == ["dense"] * 6 + ["moe"] * 6 + ["mamba"]
    assert sorted(v for n in numbers for v in n["losses"]) == sorted(
        row.record.loss for row in rows if row.record.loss is not None
    )
    assert "1 failed or diverged" in words(tmp_path / "loss_vs_flops.svg")


def words(svg: Path) -> str:
    """Matplotlib draws text as paths and leaves the words in comments, a line in each."""
    parts = svg.read_text(encoding="utf-8").split("<!-- ")[1:]
    return " ".join(" ".join(html.unescape(part.split(" -->")[0]) for part in parts).split())


def drawn(tmp_path: Path, rows: list, measured: list[dict]) -> dict[str, str]:
    """The words of every figure, by its name."""
    ladder.draw(rows, tmp_path, draws=20)
    context.draw(measured, tmp_path)
    swept = [
        row.model_copy(update={"labels": row.labels | {"lr": row.record.run.budget.steps / 1e5}})
        for row in rows
    ]
    lr_transfer.draw(swept, tmp_path)
    for name, module in (("bench", bench), ("peers", peers)):
        families = dict.fromkeys(row.labels["family"] for row in rows)
        module.draw([speed(family) for family in families], tmp_path)
        assert (tmp_path / f"{name}.svg").exists()
    return {path.stem: words(path) for path in tmp_path.glob("*.svg")}


def speed(family: str) -> dict:
    ends = {"ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5, "dtype": "float32"}
    share = {"matmul_share": 0.5, "matmul_share_low": 0.4, "matmul_share_high": 0.6}
    return measured(family, "train_step", compiled=False, device="cpu", **ends, **share)


AWKWARD = ("$a^{b$", "_hidden", "<script>[/b]", r"\frac{&%s{0}")


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every figure of a baseline and of families whose names mean something to somebody."""
    sizes = ((32, 2), (48, 2), (64, 2), (96, 4))
    rows = synthetic.grid(("dense", *AWKWARD), sizes, (300, 600, 1200), (0, 1), noise=0.002)
    measured = [
        m | {"family": AWKWARD[("dense", "moe", "mamba", "linear").index(m["family"])]}
        for m in synthetic.context()
    ]
    return drawn(tmp_path_factory.mktemp("awkward"), rows, measured)


def test_any_name_of_a_family_is_drawn_as_it_is_written(awkward: dict[str, str]):
    for name in AWKWARD:
        for figure in ("loss_vs_flops", "loss_vs_params", "loss_curves", "flop_conventions"):
            assert name in awkward[figure], figure
        assert name in awkward["lr_transfer"]
        assert name in awkward["gains"]
    assert all(name in awkward["context_scaling"] for name in AWKWARD)


def test_titles_say_what_the_data_say(awkward: dict[str, str]):
    """Of a surface where dense, whose A and B are smallest, beats all others."""
    begin = {
        "loss_vs_flops": r"dense is lowest at \d\.\d × 10¹² FLOPs: \d\.\d{3} nats;",
        "loss_vs_params": r"After 1\.23M tokens the largest model over the smallest gains from 0\.",
        "loss_curves": r"At the end of training \S+ is lowest \(\d\.\d\d nats per token\) and",
        "flop_conventions": "dense is lowest under all 6 ways of counting FLOPs",
        "optima": r"At the end of each window N\* is from [\d.]+[kM]",
        "gains": "No gain over dense is resolved in executed FLOPs",
        "gains_by_compute": "Through the window the gain over dense ",
        "residuals": r"The law without E misses a cell by at most \d\.\d%",
        "subsets": r"α of dense is 0\.\d\d to 0\.\d\d by which",
        "context_scaling": "From 1k to 8k tokens, training step grows as T to the",
        "lr_transfer": r"From (width|depth) \d+ to \d+ (the best rate moves|no best rate)",
        "bench": r"At width 64 a training step runs at 0\.50 \(dense\)",
        "peers": r"PyTorch's training steps take 2 \(dense\) to 2 \(",
    }
    assert set(begin) == set(awkward)
    for figure, pattern in begin.items():
        assert re.search(pattern, awkward[figure]), (figure, awkward[figure][:300])


def test_the_same_rows_give_the_same_bytes_without_a_date(tmp_path: Path):
    measured = [m for m in synthetic.context() if m["quantity"] == "state_bytes"]
    once, again = (context.draw(measured, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert b"<dc:date>" not in once[0].read_bytes()


@pytest.mark.parametrize("draw", [quickstart.draw, ladder.draw])
def test_nothing_is_drawn_when_no_run_finished(draw, tmp_path: Path):
    rows = [synthetic.row("dense", 32, 2, 500, status="failed", reason="out of memory")]
    assert draw(rows, tmp_path) == []
    assert draw([], tmp_path) == []


# speed


def measured(family: str, program: str, **other: object) -> dict:
    shape = {"width": 64, "depth": 2, "seq_len": 1024, "batch": 4}
    return {"family": family, "program": program, **shape, **other}


def test_a_value_is_told_over_its_unit_or_another_value_with_its_range():
    share, _, decode, memory = bench.PANELS
    row = measured("dense", "decode", seconds=0.002, seconds_low=0.001, seconds_high=0.004)
    assert [decode.of(row, end) for end in ("", "low", "high")] == [0.002, 0.001, 0.004]
    assert decode.told(0.002) == "2 ms"
    assert not share.shows(row)
    *_, times = peers.PANELS
    row = measured("dense", "train_step", memory_bytes=2**20, peer_memory_bytes=2**22)
    assert (memory.of(row), memory.of(row, "low"), times.of(row)) == (2**20, 2**20, 4)
    assert memory.told(2**20) == "1.05 MB"
    assert not times.shows(measured("dense", "train_step", ratio=2.0))  # was not weighed


def test_a_panel_is_drawn_for_each_program_that_was_measured(tmp_path: Path):
    ends = {"ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5, "device": "cpu", "dtype": "float32"}
    rows = [
        measured(family, program, compiled=compiled, **ends)
        for family in ("dense", "moe")
        for program, compiled in (("train_step", False), ("train_step", True), ("decode", False))
    ]
    assert {path.suffix for path in peers.draw(rows, tmp_path)} == {".svg", ".png", ".json"}
    text = (tmp_path / "peers.svg").read_text()
    told = [part.split("-->")[0].strip() for part in text.split("<!--")[1:]]
    assert [panel.title in told for panel in peers.PANELS] == [True, False, True, False]
    assert any(name.endswith("torch.compile") for name in told)
    assert peers.draw([], tmp_path) == []
