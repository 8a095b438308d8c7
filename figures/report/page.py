"""One self-contained interactive page per experiment: it opens from a file, with no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert

from isoflop.figures import charts, context, style
from isoflop.figures.palette import ORDER
from isoflop.figures.report import sampling, vega
from isoflop.figures.report.summary import headline, interval, summarise
from isoflop.sim.compare.points import Point, family, label, usable
from isoflop.sim.compare.rankings import Ranking
from isoflop.sim.compare.slopes import slopes as slopes_of
from isoflop.sim.compare.slopes import window
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.names import CONVENTIONS, PARAMETERS
from isoflop.sim.records.store import Row

TEMPLATES = Path(__file__).parent / "templates"


def build(
    name: str,
    rows: list[Row],
    out: Path,
    context: list[dict] | None = None,
    compressors: dict[str, float] | None = None,
    draws: int = 1000,
    question: str = "",
) -> Path:
    """Write `out`/`name`.html, or `out` itself if it ends in .html.

    `question` is the experiment's, for the title. `context` holds measurements as in
    `figures.context`, `compressors` other compressors' bits per byte on the same held-out text,
    `draws` is the number of bootstrap draws behind the fits.
    """
    page = out if out.suffix == ".html" else out / f"{name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    values = _values(name, rows, context or [], compressors or {}, draws)
    page.write_text(render("report.html.j2", values | {"question": question}), encoding="utf-8")
    return page


def render(template: str, values: dict[str, Any]) -> str:
    """A whole page with the charts' script inside it, under the name `script`."""
    return environment().get_template(template).render(values, script=_script())


@cache
def environment() -> jinja2.Environment:
    """Of every template: what is put into one is escaped, and nothing is left out unseen."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


@cache
def _script() -> str:
    """Vega, Vega-Lite and vegaEmbed, bundled with the wheel, for altair's version of Vega-Lite."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def _values(
    name: str, rows: list[Row], measured: list[dict], compressors: dict[str, float], draws: int
) -> dict[str, Any]:
    study = Study(rows, draws, order=ORDER)
    study = replace(study, draws=sampling.draws(study.points, draws))
    cells, ways = study.points, study.conventions
    rankings = list(study.rankings.values())
    laws = list(study.laws.values()) if ways else []
    lines = study.lines(ways[0]) if ways else []
    slopes = slopes_of(measured)
    text = summarise(study, [*laws, *lines], slopes, compressors)
    specs: dict[str, vega.Spec] = {}
    if ways:
        specs["flops"] = charts.loss_vs_flops(study)
        specs["params"] = charts.loss_vs_params(study)
    if any(curve for cell in cells for curve in cell.curves.values()):
        specs["curves"] = charts.loss_curves(study)
    if any(cell.bits_per_byte is not None for cell in cells):
        specs["bits"] = charts.bits_per_byte(study, compressors)
    drawn, curves, listed = sampling.cells(study), sampling.curves(study), sampling.lines(rows)
    specs |= {quantity: charts.context_scaling(measured, quantity) for quantity in slopes}
    named = [cell.family for cell in cells] + [str(m["family"]) for m in measured]
    styles = style.styles([*named, *map(family, rows)])
    return {
        "name": name,
        "summary": text,
        "specs": specs,
        "styles": styles,
        "order": {name: i for i, name in enumerate(styles)},
        "ways": ways,
        "way_names": {way: style.named(way) for way in ways},
        "count_names": {count: style.named(count) for count in study.counts},
        "budgets": sorted({cell.tokens for cell in cells}),
        "cells": (len(drawn), len(cells)),
        "curves": (_runs_of(curves), _runs_of(cells)),
        "bars": any(cell.low is not None for cell in cells),
        "bands": any(item.fit.ok for item in lines),
        "headline": headline(rankings[0] if rankings else None, [*study.families]),
        "total": len(rows),
        "draws": study.draws,
        "window": tuple(map(style.tokens, window(slopes))),
        "half_widths": any(s and s.half is not None for by in slopes.values() for s in by.values()),
        "measured_on": context.measured_on(measured),
        "standings": [_standing(ranking) for ranking in rankings[:1]],
        "lost": study.lost,
        "fits": [*lines, *laws],
        "slopes": slopes,
        "measured": list(style.styles(name for found in slopes.values() for name in found)),
        "quantities": context.QUANTITIES,
        "compressors": compressors,
        "noise": _noise(study),
        "runs": [_run(row) for row in listed],
        "facts": _facts(rows),
        "rates": _rates(rows),
        "conventions": {style.named(way): told for way, told in CONVENTIONS.items()},
        "parameters": {style.named(count): told for count, told in PARAMETERS.items()},
        "short": style.short,
    }


def _runs_of(cells: Iterable[Point]) -> int:
    return sum(len(cell.losses) for cell in cells)


def _standing(ranking: Ranking) -> dict[str, Any]:
    return {
        "flops": style.scientific(ranking.flops),
        "convention": style.named(ranking.convention),
        "rows": [
            {
                "family": standing.family,
                "loss": interval(standing.loss),
                "behind": "—" if standing.behind is None else interval(standing.behind),
                "verdict": _verdict(i, standing.resolved, standing.behind),
            }
            for i, standing in enumerate(ranking.standings)
        ],
    }


def _verdict(place: int, resolved: bool, behind: Any) -> str:
    if place == 0:
        return "lowest"
    if behind is None or behind.low is None:
        return "no interval: one shared seed"
    return "higher, resolved" if resolved else "not resolved by the seeds"


def _noise(study: Study) -> dict[str, str]:
    """Pooled seed noise of each family, as a share of the loss."""
    noise = {name: told["seeds"] for name, told in study.noise.items()}
    return {name: "one seed" if value is None else f"{value:.2%}" for name, value in noise.items()}


def _run(row: Row) -> dict[str, Any]:
    """A line of the table of runs; `numbers` are (to sort by, to read)."""
    record = row.record
    optional: list[tuple[Any, Callable[[Any], str]]] = [
        (record.params.get("total"), style.short),
        (record.tokens or record.run.budget.tokens, style.short),
        (record.loss, "{:.4f}".format),
        (record.bits_per_byte, "{:.3f}".format),
        (record.run.seed, str),
        (record.flops.get("executed"), style.scientific),
        (record.run.optim.lr, style.short),
        (record.seconds, "{:.1f}".format),
    ]
    return {
        "family": family(row),
        "numbers": [
            *((label(row, name), label(row, name)) for name in ("width", "depth")),
            *(("", "—") if value is None else (value, told(value)) for value, told in optional),
        ],
        "status": record.status,
        "reason": record.reason,
        "key": record.key,
        "lost": not usable(row),
    }


def _facts(rows: Iterable[Row]) -> dict[str, str]:
    """What was the same for all runs, and where it was not, every value."""
    records = [row.record for row in rows]
    done = [row.record for row in rows if usable(row)]
    versions = {f"{k} {v}" for record in done for k, v in record.versions.items()}
    errors = [record.loss_se for record in done if record.loss_se is not None]
    facts = {
        "Device": _each(record.device for record in done),
        "Versions": _each(versions),
        "Data": _each(_data(record.run.data.model_dump(mode="json")) for record in records),
        "Digest of the data": _each(record.data_digest for record in done),
        "Unique bytes seen": _span(record.unique_bytes for record in done),
        "Epochs": _span(record.epochs for record in done),
        "Held-out tokens": _each(f"{record.eval_tokens:,}" for record in done),
        "Standard error of a held-out loss": _span(errors, " nats"),
        "Seeds": _each(str(record.run.seed) for record in records),
        "Sequence length": _each(str(record.run.budget.seq_len) for record in records),
        "Batch": _each(f"{record.run.budget.batch} sequences" for record in records),
        "Steps": _each(str(record.run.budget.steps) for record in records),
        "Entropy of the source": _each(
            f"{record.entropy:.4f} nats per token" for record in done if record.entropy
        ),
        "Training time": f"{sum(record.seconds for record in done):,.0f} s in all",
        "Precision": _each(record.run.model.dtype for record in records),
    }
    return {name: told for name, told in facts.items() if told}


def _data(config: dict[str, Any]) -> str:
    return ", ".join(str(value) for key, value in config.items() if value is not None)


def _each(values: Iterable[str]) -> str:
    found = {value for value in values if value}
    return ", ".join(sorted(found, key=lambda v: (len(v) if v.isdigit() else 0, v)))


def _span(values: Iterable[float | None], unit: str = "") -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    low, high = style.short(min(found)), style.short(max(found))
    return (low if low == high else f"{low} to {high}") + unit


def _rates(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Learning rates and schedule, one line per family and setting."""
    lines = {}
    for row in rows:
        optim = row.record.run.optim
        lines[family(row), json.dumps(optim.model_dump(mode="json"), sort_keys=True)] = optim
    return [{"family": name, "optim": optim} for (name, _), optim in lines.items()]
