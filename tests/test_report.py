"""Claims about the report: one file, true words, nothing hidden, nothing invented."""

from __future__ import annotations

import functools
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
import synthetic
import vl_convert

from isoflop.experiments.families import RESULTS
from isoflop.figures import palette
from isoflop.figures.report import page as report
from isoflop.figures.report import sampling
from isoflop.figures.report.summary import summarise
from isoflop.models.families import zoo
from isoflop.models.families.matching import uniform
from isoflop.sim.compare.slopes import slopes
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.names import CONVENTIONS
from isoflop.sim.records.store import Row, read_rows

SMALL: dict[str, Any] = {"sizes": ((32, 2), (48, 2), (64, 2)), "steps": (500, 2000)}
BROKEN = synthetic.row(
    "moe", 96, 2, 2000, status="failed", reason="out of memory: <needs> 5 GB & has 4"
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        *synthetic.grid(**SMALL, seeds=(0, 1)),
        *synthetic.grid(families=("hybrid",), **SMALL, seeds=(0,)),
        synthetic.row("retnet", 64, 2, 500),
        synthetic.row("mamba", 96, 2, 2000, status="diverged", reason="loss is nan from step 312"),
        BROKEN,
    ]


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report")
    path = report.build("quickstart", rows, out, synthetic.context(), synthetic.COMPANY, draws=20)
    assert path == out / "quickstart.html"
    return path.read_text(encoding="utf-8")


def specs(page: str) -> dict[str, Any]:
    found = re.search(r"^const specs = (.*);$", page, re.MULTILINE)
    assert found
    return json.loads(found[1])


def drawn(spec: dict[str, Any], layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a layer: its own, or those it names."""
    data = layer.get("data", spec.get("data"))
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


def words(rows: list[Row], measured: list[dict] | None = None) -> str:
    told = summarise(Study(rows), slopes=slopes(measured or []))
    return " ".join([*told.found, *told.beside, *told.open])


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "srcset", "data", "action", "poster"}
        self.found += [value for name, value in attrs if name in names and value]


def test_the_page_needs_nothing_but_itself(page: str):
    assert page.count("<script") == page.count("</script") == 2  # none hidden in the bundle
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("#mark-") for link in links.found)
    style = page[: page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_a_megabyte_not_ten(page: str):
    assert 0.8e6 < len(page.encode()) < 1.5e6


def test_every_chart_is_valid_and_names_its_axes(page: str):
    charts = specs(page)
    assert list(charts) == [
        *("flops", "params", "curves", "bits"),
        *("train_step_seconds", "prefill_seconds", "decode_seconds", "state_bytes"),
    ]
    for spec in charts.values():
        vl_convert.vegalite_to_vega(spec)
        for layer in spec["layer"]:
            assert all(
                layer["encoding"][axis]["title"] for axis in "xy" if axis in layer["encoding"]
            )


def test_what_follows_from_a_control_overwrites_no_data(page: str):
    """Else the second choice would read the first one's answer."""
    for spec in specs(page).values():
        for layer in spec["layer"]:
            made = {t["as"] for t in layer.get("transform", []) if "calculate" in t}
            read = set().union(*drawn(spec, layer))
            assert read
            assert not made & read


def test_every_convention_and_count_can_be_chosen(page: str):
    chosen = re.findall(r'<option value="(\w+)">', page)
    assert set(CONVENTIONS) <= set(chosen)
    assert {"total", "active", "non_embedding", "active_non_embedding"} <= set(chosen)
    told = {str(word) for word in CONVENTIONS.values()}
    assert all(formula.split(" × ")[0] in page for formula in told)


def test_failed_and_diverged_runs_are_in_the_table_and_in_no_chart(page: str, rows: list[Row]):
    lost = [row.record for row in rows if row.record.status != "ok"]
    assert all(page.count(record.key) == 1 for record in lost)
    assert "out of memory: &lt;needs&gt; 5 GB &amp; has 4" in page
    assert "2 runs failed or diverged" in page
    charts = json.dumps({name: specs(page)[name] for name in ("flops", "params", "curves", "bits")})
    assert '"width": 64' in charts
    assert '"width": 96' not in charts


def test_every_run_is_a_line_of_the_table(page: str, rows: list[Row]):
    table = page[page.index('id="runs"') :]
    assert all(f"<code>{row.record.key}</code>" in table for row in rows)


def test_unidentifiable_fits_are_told_with_their_reason(page: str, rows: list[Row]):
    surfaces = Study(rows, draws=20).laws
    assert len(surfaces) == 6
    for surface in surfaces.values():  # two values of D cannot determine β
        assert surface.verdict.startswith("not identifiable")
        assert html.escape(surface.fit.reason) in page


def test_compressors_keep_the_models_company(page: str):
    assert '"xz 2.04"' in page
    assert "bits per byte of held-out text, above the 1.78 of bzip2" in page


def test_how_it_was_measured_is_told(page: str):
    for fact in ("cpu: 2 cores", "jax 0.10.2", "9f1c2ab47e03d5b8", "131,072", "0, 1"):
        assert f">{fact}<" in page or fact in page


def test_the_same_rows_give_the_same_page(tmp_path: Path):
    few = synthetic.grid(families=("dense",), **SMALL, seeds=(0,))
    once, again = (report.build("x", few, tmp_path / f"{i}.html", draws=20) for i in "ab")
    assert once.name == "a.html"
    assert once.read_bytes() == again.read_bytes()


def test_of_very_many_runs_a_part_is_drawn_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few = synthetic.grid(families=("dense", "mamba"), steps=(500, 1000, 1500, 2000), seeds=(0, 1))
    assert len(few) == 2 * 4 * 4 * 2
    study = Study([*few, BROKEN])
    cells = study.points
    edges = {
        (family, cell.flops["executed"])
        for family, edge in study.frontiers["executed"].items()
        for cell in edge
    }
    whole = report.build("x", [*few, BROKEN], tmp_path / "whole.html", draws=20)
    for name, most in (("CELLS", 26), ("CURVES", 16), ("LINES", 20)):
        function = {"CELLS": "cells", "CURVES": "curves", "LINES": "lines"}[name]
        part = getattr(sampling, function)
        monkeypatch.setattr(sampling, function, functools.partial(part, most=most))
    page = report.build("x", [*few, BROKEN], tmp_path / "part.html", draws=20)
    page = page.read_text(encoding="utf-8")
    assert len(page) < len(whole.read_text(encoding="utf-8"))
    chart = specs(page)["flops"]
    marks = [r for layer in chart["layer"] for r in drawn(chart, layer) if "flops" in r]
    shown = {(r["family"], r["flops"]["executed"]) for r in marks if isinstance(r["flops"], dict)}
    assert edges <= shown
    assert 26 <= len(shown) < len(cells)
    assert f"{len(shown)} of {len(cells)} cells are drawn" in page
    curves = specs(page)["curves"]
    runs = {r["run"] for layer in curves["layer"] for r in drawn(curves, layer)}
    assert 4 <= len(runs) <= 20
    assert f"64 runs {len(runs)} are kept" in " ".join(page.split())
    table = page[page.index('id="runs"') :]
    assert table.count("<code>") == 20
    assert BROKEN.record.key in table
    assert "65 runs, 1 of them failed" in page
    assert "The table has 20: those that" in page
    assert "65 runs train dense" in page  # words are of all
    assert "(20 draws)" in page
    assert [sampling.draws(cells, most) for most in (20, 1000, 10**6)] == [20, 1000, 3125]
    assert sampling.draws(cells * 1000, 1000) == 100
    assert "cells are drawn" not in whole.read_text(encoding="utf-8")


def test_a_half_width_is_explained_only_where_three_lengths_give_one(tmp_path: Path, page: str):
    assert "± is the 90 % t interval of that line" in page
    assert "Slopes between 1k and 8k tokens" in page
    two = [m for m in synthetic.context() if m["seq_len"] in (1024, 4096)]
    out = report.build("x", [synthetic.row("dense", 32, 2, 500)], tmp_path, two, draws=20)
    told = out.read_text(encoding="utf-8")
    assert "±" not in told[: told.index("<script>")]
    assert "Slopes between 1k and 4k tokens" in told
    assert "From 1k to 4k tokens of context" in told


def test_every_chart_has_a_legend_of_its_families_marks(page: str):
    for name, spec in specs(page).items():
        begin = page.index(f'<div class="chart" id="{name}"></div>')
        legend = page[begin : page.index("</figure>", begin)]
        (shown,) = (p["value"] for p in spec["params"] if p["name"] == "shown")
        assert all(f"</svg>{family}</span>" in legend for family in shown)


def test_the_page_and_the_pictures_draw_a_family_alike(page: str):
    for family, look in palette.styles(["dense", "moe", "mamba", "linear", "retnet"]).items():
        button = page.index(f'data-family="{family}"')
        mark = re.search(r"#mark-(\d+)", page[button:])[1]
        assert f'id="mark-{mark}" viewBox="-1.35 -1.35 2.7 2.7"><path d="{look.path}"' in page
        assert f"--family-{mark}: {look.colour};" in page


def test_bands_lie_inside_the_charts_axis(page: str):
    chart = specs(page)["flops"]
    (area,) = (layer for layer in chart["layer"] if layer["mark"]["type"] == "area")
    low, high = area["encoding"]["y"]["scale"]["domain"]
    bands = drawn(chart, area)
    assert bands
    assert all(low <= band["low"] <= band["high"] <= high for band in bands)


@pytest.mark.parametrize("rows", [[], [BROKEN]], ids=["no runs", "only a failed run"])
def test_a_page_without_results_says_so(rows: list[Row], tmp_path: Path):
    page = report.build("empty", rows, tmp_path).read_text(encoding="utf-8")
    told = "None of the 1 runs finished" if rows else "No model was trained for this report."
    assert told in page
    assert "Not measured in this experiment." in page
    assert specs(page) == {}


# the words


def test_the_winner_of_the_known_surface_is_named_and_resolved():
    rows = synthetic.grid(families=("dense", "mamba"), **SMALL, noise=1e-4)
    assert "mamba has the lowest held-out loss" in words(rows)
    assert "a difference larger than the noise between seeds" in words(rows)


def test_two_names_of_one_family_are_not_resolved():
    rows = [
        row.model_copy(update={"labels": row.labels | {"family": name}})
        for name, seeds in (("dense", (0, 1, 2)), ("twin", (3, 4, 5)))
        for row in synthetic.grid(families=("dense",), **SMALL, seeds=seeds)
    ]
    renamed = [
        row.model_copy(
            update={
                "record": row.record.model_copy(
                    update={"run": row.record.run.model_copy(update={"seed": i % 3})}
                )
            }
        )
        for i, row in enumerate(rows)
    ]
    assert "a difference that the noise between seeds can explain" in words(renamed)
    assert "the interval includes zero" in words(renamed)


def test_one_seed_is_said_to_be_one_seed():
    said = words(synthetic.grid(families=("dense", "mamba"), **SMALL, seeds=(0,)))
    assert "The noise of dense and mamba: one seed, so no interval." in said
    assert "Whether mamba beats dense: fewer than two shared seeds" in said
    assert "larger than the noise" not in said


def test_a_winner_that_depends_on_the_convention_is_said_to():
    rows = synthetic.grid(families=("dense", "mamba"), **SMALL, noise=1e-4)
    assert "mamba is lowest under all 6 ways of counting FLOPs" in words(rows)
    free = [
        row.model_copy(
            update={
                "record": row.record.model_copy(
                    update={"flops": row.record.flops | {"6ND": row.record.flops["6ND"] // 1000}}
                )
            }
        )
        if row.labels["family"] == "dense" and row.record.tokens > 1e6
        else row
        for row in rows
    ]
    assert "How FLOPs are counted changes the winner: dense under 6·N·D (all" in words(free)


def test_short_runs_and_repeated_data_are_said_to_be_so():
    short = synthetic.row("dense", 32, 2, 400)
    often = short.model_copy(update={"record": short.record.model_copy(update={"epochs": 9.0})})
    said = words([often])
    assert "1 of 1 runs are shorter than 500 steps" in said
    assert "1 of 1 runs see their data more than 4 times" in said
    assert "Which family is best: these are runs of one, dense" in said


def test_slopes_of_context_are_told_together_where_they_are_equal():
    said = words([synthetic.row("dense", 32, 2, 500)], synthetic.context())
    assert (
        "the size of the decoding state 1.00 for dense and moe, 0.00 for mamba and linear" in said
    )


def test_families_of_unlike_size_are_told_on_the_page():
    def row(family, model):
        found = synthetic.row(family, 64, 2, 500)
        run = found.record.run.model_copy(update={"model": model})
        return found.model_copy(update={"record": found.record.model_copy(update={"run": run})})

    matched = zoo.dense(64, 2), zoo.mamba(64, 2)
    thin = uniform(64, 2, 256, matched[1].blocks[0].model_copy(update={"channel": None}))
    assert "not matched in size" not in words([row("a", matched[0]), row("b", matched[1])])
    said = words([row("a", matched[0]), row("b", thin)])
    assert "what its size: a and b are not matched in size: at width 64 and depth 2" in said


def test_the_title_is_the_experiments_own_question(tmp_path: Path):
    rows = synthetic.grid(families=("dense",), **SMALL, seeds=(0,))
    asked = report.build("mine", rows, tmp_path, draws=20, question="Do <big> states help?")
    page = asked.read_text(encoding="utf-8")
    assert "<h1>mine: Do &lt;big&gt; states help?</h1>" in page
    assert "<title>mine: Do &lt;big&gt; states help? · isoflop</title>" in page


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here")
def test_the_demo_s_page_fits_a_phone(tmp_path):
    """At 375 pixels nothing is wider than the screen but tables, which scroll in their frames."""
    rows = read_rows(RESULTS / "quickstart.jsonl")
    path = report.build("quickstart", rows, tmp_path)
    with browser.chromium(tmp_path / "profile") as page:
        page.size(375)
        page.open(path.as_uri(), "document.querySelectorAll('.chart svg').length >= 4")
        assert page.overflow() == 0
        ends = "[...document.querySelectorAll('.chart svg')].map(x => x.getBoundingClientRect())"
        assert page.value(f"Math.max(...{ends}.map(box => box.right))") <= 375
        assert page.said == []
