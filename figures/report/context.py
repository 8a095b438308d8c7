"""The page of `isoflop context`: what context buys each model, and what it costs, in one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.figures import charts, palette, style
from isoflop.figures import context as figure
from isoflop.figures.report import context_charts as marks
from isoflop.figures.report import vega
from isoflop.figures.report.page import render
from isoflop.sim.compare.context_study import ContextStudy
from isoflop.sim.compare.slopes import window
from isoflop.sim.evaluate.extrapolation import AS_TRAINED

Rows = list[dict[str, Any]]


def build(found: ContextStudy, page: Path) -> Path:
    """Write the page. A chart is there where it has something to show."""
    names = list(found.models)
    specs: dict[str, vega.Spec] = {"position": marks.by_position(_named(found.positions), names)}
    beyond = {name: _variants(found, name) for name in names}
    specs |= {
        f"beyond-{i}": marks.by_position(beyond[name])
        for i, name in enumerate(names)
        if beyond[name]
    }
    if found.copying:
        specs["copying"] = marks.recall(_named(found.copying), names)
    specs |= {q: charts.context_scaling(found.costs, q) for q in figure.QUANTITIES if found.costs}
    if found.throughput:
        specs["throughput"] = marks.throughput(_named(found.throughput), names)
    variants = dict.fromkeys(row["family"] for rows in beyond.values() for row in rows)
    styles = palette.apart(names) | palette.apart(variants, len(palette.PETROFF10) // 2)
    fitted = found.slopes
    values = {
        "title": "What does context buy, and what does it cost?",
        "specs": specs,
        "styles": styles,
        "order": {name: i for i, name in enumerate(styles)},
        "names": names,
        "finding": finding(found),
        "rows": table(found),
        "headings": HEADINGS,
        "beyond": {name: f"beyond-{i}" for i, name in enumerate(names) if beyond[name]},
        "longest": max((row["times"] for row in found.extrapolation), default=1),
        "differences": _differences(found),
        "extrapolation": [_extrapolated(row) for row in found.extrapolation],
        "copying": [_copied(row) for row in found.copying],
        "answers": [_answered(row) for row in found.answers],
        "quantities": {q: told.title for q, told in figure.QUANTITIES.items() if found.costs},
        "slopes": fitted,
        "window": tuple(map(style.tokens, window(fitted))),
        "ratios": ratios(found.costs),
        "crossings": found.crossings,
        "measured_on": figure.measured_on(found.costs) if found.costs else "",
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render("context.html.j2", values), encoding="utf-8")
    return page


def table(found: ContextStudy) -> Rows:
    """A row a model: what context buys it, what that costs."""
    rows = []
    for name, model in found.models.items():
        late = [row for row in found.positions if row["model"] == name][-1]
        plain, best = _beyond(found, name)
        copied = [row for row in found.copying if row["model"] == name]
        steps = found.slopes.get("train_step_seconds", {}).get(name)
        decode = [
            m for m in found.costs if (m["family"], m["quantity"]) == (name, "decode_seconds")
        ]
        fast = [row for row in found.throughput if row["model"] == name]
        rows.append(
            {
                "model": name,
                "parameters": style.short(model["params"]),
                "trained on": f"{model['trained']:,} tokens",
                "loss": _interval(model, "loss"),
                "late": f"{_interval(late, 'loss')} from {late['place']:,}",
                "beyond": _told_beyond(plain),
                "extended": _told_beyond(best, variant=True),
                "copies": f"{copied[-1]['accuracy']:.0%} of {copied[-1]['length']:,}"
                if copied
                else "—",
                "state": style.bytes_(model["state_bytes"]),
                "step": str(steps or "—"),
                "token": style.seconds(decode[-1]["value"]) if decode else "—",
                "rate": f"{fast[-1]['tokens_per_second']:,.0f} of {fast[-1]['batch']}"
                if fast
                else "—",
            }
        )
    return rows


HEADINGS = {
    "model": "model",
    "parameters": "parameters",
    "trained on": "trained on",
    "loss": "loss (nats per token)",
    "late": "loss late in the context",
    "beyond": "beyond the training length",
    "extended": "best extension",
    "copies": "copies",
    "state": "state",
    "step": "slope of a training step",
    "token": "a token",
    "rate": "tokens/s of a batch",
}


def finding(found: ContextStudy) -> list[str]:
    """Sentences, computed."""
    late = {row["model"]: row for row in found.positions}  # the last bucket of each
    told = {name: f"{_interval(row, 'loss')} nats per token" for name, row in late.items()}
    paired = {name for row in found.differences for name in (row["model"], row["over"])}
    order = sorted(paired, key=lambda name: late[name]["loss"])  # they read the same sequences
    said = []
    if order:
        last = f"{order[-1]} the highest, {_interval(late[order[-1]], 'loss')}"
        said.append(
            f"Late in the context {order[0]} has the lowest loss, {told[order[0]]}, and {last}."
        )
    said += [
        f"Late in its context (from place {late[name]['place']:,}) {name} has a loss of "
        f"{told[name]}."
        for name in late
        if name not in paired
    ]
    for name in found.models:
        plain, best = _beyond(found, name)
        if plain is None:
            continue
        words = f"Beyond its training length, at {plain['times']} times, {name} {_verdict(plain)}"
        if best is not None and best is not plain:
            words += f"; with {best['variant']} it {_verdict(best)}"
        said.append(words + ".")
    for one in found.crossings:
        if one.quantity == "state_bytes" and one.at is not None:
            said.append(
                f"The state of {one.attention} outgrows that of {one.recurrence} at {one.words}."
            )
    return said


def ratios(costs: Rows) -> list[tuple[str, list[str]]]:
    """Of each model, measured over predicted for each timed quantity: the range over lengths."""
    found = []
    for name in dict.fromkeys(m["family"] for m in costs):
        told = []
        for quantity in figure.QUANTITIES:
            values = [
                m["ratio"] for m in costs
                if (m["family"], m["quantity"]) == (name, quantity) and "ratio" in m
            ]  # fmt: skip
            told.append(f"{min(values):.3g} to {max(values):.3g}" if values else "—")
        found.append((name, told))
    return found


def _beyond(found: ContextStudy, name: str) -> tuple[dict | None, dict | None]:
    """At the longest length: the row as trained, and the row of the lowest loss."""
    rows = [
        row for row in found.extrapolation if row["model"] == name and row["beyond"] is not None
    ]
    longest = [row for row in rows if row["times"] == rows[-1]["times"]]
    plain = next((row for row in longest if row["variant"] == AS_TRAINED), None)
    return plain, min(longest, key=lambda row: row["beyond"], default=None)


def _verdict(row: dict) -> str:
    if row["beyond_high"] < 0:
        return f"goes on to gain: {_signed(row, 'beyond')} nats"
    if row["beyond_low"] > 0:
        return f"loses: {_signed(row, 'beyond')} nats"
    return f"neither gains nor loses what can be told: {_signed(row, 'beyond')} nats"


def _told_beyond(row: dict | None, variant: bool = False) -> str:
    if row is None:
        return "—"
    return f"{_signed(row, 'beyond')} at {row['times']}×" + (
        f", {row['variant']}" if variant else ""
    )


def _interval(row: dict, name: str) -> str:
    if row[name] is None:
        return "—"
    return f"{row[name]:.3f} [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]"


def _signed(row: dict, name: str) -> str:
    if row[name] is None:
        return "—"
    low, high = (f"{row[name + end]:+.3f}" for end in ("_low", "_high"))
    return f"{row[name]:+.3f} [{low}, {high}]".replace("-", "−")


def _named(rows: Rows) -> Rows:
    return [row | {"family": row["model"]} for row in rows]


def _variants(found: ContextStudy, name: str) -> Rows:
    """Loss by position at the longest length, a family a variant."""
    rows = [row for row in found.extrapolation if row["model"] == name]
    longest = max((row["times"] for row in rows), default=1)
    if longest == 1:
        return []
    return [
        place | {"family": row["variant"], "trained": row["seq_len"] // row["times"]}
        for row in rows
        if row["times"] == longest
        for place in row["positions"]
    ]


def _differences(found: ContextStudy) -> Rows:
    """A row a model, a column a bucket."""
    names = dict.fromkeys(row["model"] for row in found.differences)
    return [
        {
            "model": name,
            "over": row[0]["over"],
            "cells": [(r["place"], _signed(r, "loss")) for r in row],
        }
        for name in names
        for row in [[r for r in found.differences if r["model"] == name]]
    ]


def _extrapolated(row: dict) -> dict[str, str]:
    return {
        "model": row["model"],
        "variant": row["variant"],
        "length": f"{row['seq_len']:,} ({row['times']}×)",
        "loss": _interval(row, "loss"),
        "beyond": _signed(row, "beyond"),
    }


def _copied(row: dict) -> dict[str, str]:
    return {
        "model": row["model"],
        "length": f"{row['length']:,}",
        "state": style.bytes_(row["state_bytes"]),
        "accuracy": f"{row['accuracy']:.1%}",
        "first": f"{row['first']:.1%}",
        "gain": _signed(row, "gain"),
    }


def _answered(row: dict) -> dict[str, str]:
    def share(value: float | None) -> str:
        return "—" if value is None else f"{value:.1%}"

    settings: Iterable[str] = (f"{name} {value}" for name, value in row["settings"].items())
    accuracy = share(row["accuracy"])
    if row["accuracy"] is not None:
        accuracy += f" [{share(row['accuracy_low'])}, {share(row['accuracy_high'])}]"
    return {
        "model": row["model"],
        "set": f"{row['set']} ({', '.join([row['kind'], *settings])})",
        "length": f"{row['seq_len']:,}",
        "state": style.bytes_(row["state_bytes"]),
        "accuracy": accuracy,
        "loss": _interval(row, "loss"),
        "chance": share(row["chance"]),
        "optimum": share(row["optimum"]),
    }
