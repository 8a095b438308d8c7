"""`isoflop serve`: what a model on chips gives its users, and what that costs.

Question: how fast, how many, at what price? Command: `isoflop serve llama-3.1-8b --device h100
--prompt 1024 --answer 256 --concurrency 32`. Duration: a second. Expected: latencies, throughput,
memory, dollars, joules and CO2, each with a 90 % interval and whether measurements are behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from isoflop.experiments.cli.flags import deferred, parse
from isoflop.experiments.cli.text import (
    check_output,
    console,
    grid,
    print_json,
    si,
    table,
    write_json,
)
from isoflop.models.checkpoints.published import facts, named
from isoflop.models.errors import UserError
from isoflop.sim.cost.hardware import DEVICES, flat
from isoflop.sim.cost.hardware import device as chip
from isoflop.sim.cost.serving import Deployment, Estimate, Serving, Speculation, Workload
from isoflop.sim.cost.serving import serve as served
from isoflop.sim.cost.serving.calibrate import REFITS, WITHIN
from isoflop.sim.cost.serving.calibrate import calibrate as calibrated
from isoflop.sim.cost.serving.calibration import calibration, read
from isoflop.sim.cost.serving.points import read as read_points
from isoflop.sim.cost.serving.points import trace as read_trace
from isoflop.sim.cost.serving.serve import GRID, replay, replica_of

WORDS = ("calibrate", "models", "devices")
UNITS = {  # quantity → (as it is called, factor, unit)
    "ttft": ("TTFT, median", 1e3, "ms"),
    "tpot": ("TPOT, median", 1e3, "ms"),
    "throughput": ("output tokens", 1.0, "/s"),
    "queries": ("queries", 1.0, "/s"),
    "capacity": ("queries at most", 1.0, "/s"),
    "per_query": ("price of a query", 1.0, "$"),
    "per_million": ("price of 1M output tokens", 1.0, "$"),
    "joules": ("energy of an output token", 1.0, "J"),
    "joules_per_query": ("energy of a query", 1.0, "J"),
    "grams": ("CO2 of a query", 1.0, "g"),
}


def verb(args: Sequence[str]) -> int:
    """`isoflop serve MODEL`, `serve calibrate TABLE`, `serve models`, `serve devices`."""
    word = args[0] if args and args[0] in WORDS else ""
    verbs: dict[str, Callable[..., Any]] = {
        "calibrate": calibrate, "models": models, "devices": devices, "": serve,
    }  # fmt: skip
    function = verbs[word]
    name = f"serve {word}".strip()
    about = (function.__doc__ or "").split("\n\n    Args:")[0]
    (bound,) = parse(name, about, args[1:] if word else args, deferred(function))
    bound()
    return 0


def serve(
    model: str,
    device: str = "h100",
    count: int = 1,
    tp: int = 0,
    dp: int = 1,
    ep: int = 1,
    weights: str = "bf16",
    activations: str | None = None,
    cache: str | None = None,
    engine: str = "vllm",
    prompt: int = 1024,
    answer: int = 256,
    concurrency: int | None = None,
    rate: float | None = None,
    trace: Path | None = None,
    cached: float = 0.0,
    p95: float | None = None,
    price: float | None = None,
    carbon: float | None = None,
    draft: str | None = None,
    draft_tokens: int = 4,
    acceptance: float | None = None,
    calibration: Path | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Tell what one replica of a model gives its users, and what that costs.

    Also: `isoflop serve models` and `isoflop serve devices` list what has a name here, and
    `isoflop serve calibrate TABLE` fits the coefficients to measurements of your own.

    Args:
        model: a published model's name, or the path of a config.json.
        device: the chip; see isoflop serve devices.
        count: chips of the replica, tp times dp.
        tp: chips that share attention, the MLP and every other mixer; 0: all that dp leaves.
        dp: groups of chips with attention and sequences of their own.
        ep: groups among which whole experts are split.
        weights: format of the weights: bf16, fp8, int8, fp4, mxfp4, int4, fp32.
        activations: format that is multiplied; by default the weights' where the chip has a unit.
        cache: format of keys and values; by default fp8 beside fp8 and fp4 weights, else bf16.
        engine: class of overheads: vllm, sglang, trtllm, or native, their mean.
        prompt: tokens of a prompt.
        answer: tokens of an answer.
        concurrency: users at once, each of whom sends a request after the last answer.
        rate: requests a second instead, at random.
        trace: requests of a CSV instead: arrived_at, num_prefill_tokens, num_decode_tokens.
        cached: share of the prompt that the prefix cache has.
        p95: seconds in which 95 % of whole answers should be there.
        price: dollars per chip-hour; by default the chip's listed range.
        carbon: grams of CO2 per kWh; by default the range from hydropower to coal.
        draft: a smaller model that proposes tokens (speculative decoding).
        draft_tokens: that it proposes at a time.
        acceptance: share of them that is accepted.
        calibration: coefficients as isoflop serve calibrate writes them.
        json_out: write the result there as JSON.
    """
    check_output(json_out, "--json")
    if acceptance is None and draft is not None:
        raise UserError("--draft needs --acceptance: the share of its tokens that is accepted")
    spoken = None
    if acceptance is not None:
        small = None if draft is None else named(draft).model
        spoken = Speculation(acceptance, draft_tokens, small)
    shape, own = named(model), chip(device)
    deployment = Deployment(
        shape.model, own, count, tp, dp, ep, weights, activations, cache, engine,
        None if price is None else flat(price, "given", "given"), spoken, shape.extra, model,
    )  # fmt: skip
    coefficients = None if calibration is None else read(calibration)
    if trace is not None:
        _replayed(deployment, trace, coefficients, json_out)
        return
    if concurrency is None and rate is None:
        concurrency = 1
    workload = Workload(prompt, answer, concurrency, rate, cached, p95)
    grams = GRID if carbon is None else (carbon, carbon, carbon)
    found = served(deployment, workload, coefficients, grams)
    _show(found)
    if json_out is not None:
        write_json(json_out, _json(found))


def _show(found: Serving) -> None:
    on, load, memory, screen = found.deployment, found.workload, found.memory, console()
    users = f"{load.rate:g} requests/s" if load.rate else f"{load.concurrency} users"
    screen.print(
        f"{on.name} on {on.count} {on.device.name}, {on.weights}, {on.engine}: {users} of "
        f"{load.prompt} + {load.answer} tokens",
        soft_wrap=True,
    )
    out = grid("", "quantity", "value", "90 % interval", "unit")
    for name, (word, factor, unit) in UNITS.items():
        estimate: Estimate | None = getattr(found, name)
        if estimate is not None:
            out.add_row(word, *_cells(estimate, factor), unit)
    for name, estimate in found.latency.items():
        out.add_row(f"whole answer, {name.upper()}", *_cells(estimate), "s")
    screen.print(out)
    lines = {
        "memory": f"{si(memory.weights)}B of weights, {si(memory.left)}B left for states of "
        f"{si(memory.capacity)}B; {si(memory.per_sequence)}B a sequence, "
        f"{memory.per_token:,.0f} B a token more",
        "largest batch": f"{memory.largest_batch} sequences of {load.prompt + load.answer} tokens",
        "preempted": f"{found.preempted} of {found.requests} requests" if found.preempted else "",
        "bound by": found.bound,
        "class": found.fits_class,
        "P95 target": "" if found.met is None else ("met" if found.met else "not met"),
        "price": "" if found.per_query else f"none of {on.device.name} is known; give --price",
        "chip": on.device.source,
    }
    for name, told in lines.items():
        if told:
            screen.print(f"{name}: {told}", soft_wrap=True)


def _cells(estimate: Estimate, factor: float = 1.0) -> tuple[str, str]:
    value, low, high = (f"{factor * v:.3g}" for v in (estimate.value, estimate.low, estimate.high))
    return value, f"{low} … {high}"


def _json(found: Serving) -> dict[str, Any]:
    """Everything but the draws; the model by its name."""
    on = found.deployment
    kept = ("count", "tensor", "data", "expert", "weights", "engine")
    told = {name: getattr(found, name) for name in UNITS}
    return {
        "model": on.name,
        "device": on.device.name,
        **{name: getattr(on, name) for name in kept},
        "workload": asdict(found.workload),
        **{name: asdict(value) for name, value in told.items() if value is not None},
        "latency": {name: asdict(value) for name, value in found.latency.items()},
        "memory": asdict(found.memory),
        "users": found.users,
        "class": found.fits_class,
        "bound": found.bound,
        "met": found.met,
    }


def _replayed(deployment: Deployment, path: Path, coefficients: Any, json_out: Path | None) -> None:
    """A trace through the event loop: how long its requests wait and take."""
    arrived, prompts, answers = read_trace(path)
    longest = Workload(int(prompts.max()), int(answers.max()), concurrency=1)
    timeline = replay(
        replica_of(deployment, longest), coefficients or calibration(),
        prompts=prompts, answers=answers, arrivals=arrived,
    )  # fmt: skip
    told = {
        "requests": len(arrived),
        "seconds": float(timeline.done.max() - arrived.min()),
        "busy": timeline.busy,
        "batch": timeline.batch,
        "preempted": timeline.preempted,
        **{
            f"{name}_p{q}": float(np.percentile(values, q))
            for name, values in (
                ("ttft", timeline.ttft), ("tpot", timeline.tpot), ("latency", timeline.latency),
            )
            for q in (50, 95, 99)
        },
    }  # fmt: skip
    print(table([{"of the trace": k, "value": f"{v:.4g}"} for k, v in told.items()],
                left=("of the trace",)))  # fmt: skip
    if json_out is not None:
        write_json(json_out, told)


def models(json: bool = False) -> None:
    """List the published models that have a name here, with their exact parameters.

    Args:
        json: print JSON instead of a table.
    """
    rows = [
        {"name": name, "repo": told.repo, "parameters": told.params, "source": told.source}
        for name, told in facts().items()
    ]
    if json:
        print_json(rows)
        return
    short = [{k: row[k] for k in ("name", "parameters", "repo")} for row in rows]
    print(table(short, left=("name", "repo")))


def devices(json: bool = False) -> None:
    """List the chips, with their peaks, prices, sources and dates.

    Args:
        json: print JSON instead of a table.
    """
    if json:
        print_json([asdict(own) for own in DEVICES.values()])
        return
    rows = [
        {
            "chip": own.name,
            "bf16 FLOP/s": si(own.flops_per_second),
            "B/s": si(own.bytes_per_second),
            "memory, B": si(own.memory_bytes),
            "links, B/s": si(own.link_bytes_per_second),
            "W": "" if own.watts is None else f"{own.watts:g}",
            "$/h": "" if own.listed is None else f"{own.listed.median:g} ({own.listed.date})",
            "announced": own.announced,
            "source": own.source,
        }
        for own in DEVICES.values()
    ]
    print(table(rows, left=("chip", "source")))


def calibrate(
    path: Path,
    out: Path = Path("calibration.json"),
    source: str | None = None,
    refits: int = REFITS,
) -> None:
    """Fit the coefficients of `isoflop serve` to a table of measured serving points.

    The columns are those of sim/cost/serving/points.py. Errors are of deployments (model × chip ×
    engine), of chips and of models that a fit had not seen. Three quarters of a minute for 1,500
    points.

    Args:
        path: the table, a CSV.
        out: where to write the coefficients, for isoflop serve --calibration.
        source: where the measurements are from, as the file says it; by default the table's name.
        refits: to deployments drawn with replacement, for the intervals.
    """
    check_output(out, "--out")
    read_in = read_points(path)
    for reason, count in read_in.left_out.items():
        console().print(f"left out: {count} rows with {reason}")
    found = calibrated(read_in.deployments, source or path.name, refits)
    rows = [
        {"coefficient": name, "value": f"{_value(found, name):.3g}",
         "90 % interval": f"{low:.3g} … {high:.3g}"}
        for name, (low, high) in found.intervals.items()
    ]  # fmt: skip
    print(table(rows, left=("coefficient",)))
    classes = [
        {
            "class": name,
            "points": spread.points,
            "TTFT within": f"×{np.exp(WITHIN * spread.ttft):.2f}",
            "TPOT within": f"×{np.exp(WITHIN * spread.tpot):.2f}",
        }
        for name, spread in found.spreads.items()
    ]
    print(table(classes, left=("class",)))
    checks = [
        {
            "held out": name,
            "points": check.points,
            "TTFT, mean |error|": f"{check.ttft:.0%}",
            "TPOT, mean |error|": f"{check.tpot:.0%}",
            "TTFT inside 90 %": f"{check.ttft_inside:.0%}",
            "TPOT inside 90 %": f"{check.tpot_inside:.0%}",
        }
        for name, check in found.checks.items()
    ]
    print(table(checks, left=("held out",)))
    out.write_text(found.json(), encoding="utf-8")
    print(f"written: {out}")


def _value(found: Any, name: str) -> float:
    engine, _, own = name.rpartition(".")
    return found.engines[engine][own] if engine else found.shared[name]
