"""`isoflop choose`: which model to take for a task, a latency and a price, and how surely.

Question: is bigger better, for this task, at this latency and this price? Command: `isoflop choose
models.csv --p95 0.5 --per-query 0.01 --rate 167`. Duration: seconds to a minute. Expected: a
candidate with its probability, or which ones are not told apart and what to measure next.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import tyro

from isoflop.experiments.cli.text import console, si, table, write_json
from isoflop.experiments.scores import ORIGIN, TASKS, scores
from isoflop.models.errors import UserError, listed
from isoflop.sim.compare import candidates
from isoflop.sim.compare.candidates import Option
from isoflop.sim.compare.recommend import (
    SECONDS,
    Owner,
    Recommendation,
    limit_words,
    pays_words,
    plain,
    recommend,
)
from isoflop.sim.compare.served import Place, Traffic
from isoflop.sim.compare.treated import NUMBERS, WORDS, treated
from isoflop.sim.cost import prices
from isoflop.sim.cost.choose import METRICS, QUALITY
from isoflop.sim.cost.hardware import Price, device, flat
from isoflop.sim.records.readers import read
from isoflop.sim.records.store import read_rows, read_table
from isoflop.sim.records.tables import Columns, describe

LINES = 12  # of the table of candidates
LEFT = 3  # of what does not fit
UNITS = {"p95": ("P95, s", 1.0), "per_query": ("$ a query", 1.0), "memory": ("GB", 1e9),
         "joules": ("J a query", 1.0)}  # fmt: skip
BYTES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
Benchmark = Literal["mmlu", "arc_c", "hellaswag", "winograd", "gsm8k", "humaneval"]
Aim = Literal["quality", "p95", "per_query", "memory", "joules"]


def choose(
    file: Annotated[Path | None, tyro.conf.Positional] = None,
    quality: str = "quality",
    benchmark: Benchmark | None = None,
    law: str | None = None,
    sizes: tuple[float, ...] = (1e9, 3e9, 8e9, 14e9, 32e9, 70e9),
    tokens: float = 2e12,
    carry: str | None = None,
    gain: tuple[float, float, float] | None = None,
    records: Path | None = None,
    only: tuple[str, ...] = (),
    chip: str = "H100",
    chips: tuple[int, ...] = (1, 2, 4),
    formats: tuple[str, ...] = ("bf16",),
    prompt: int = 500,
    answer: int = 150,
    cached: float = 0.0,
    rate: float | None = None,
    volume: float | None = None,
    p95: float | None = None,
    per_query: float | None = None,
    memory: str | None = None,
    joules: float | None = None,
    at_least: float | None = None,
    aim: Aim = "quality",
    api: tuple[str, ...] = ("gpt-5-mini", "ministral-8b"),
    price: float | None = None,
    months: float = 12.0,
    utilisation: float = 0.4,
    own: bool = False,
    tune_tokens: float = 0.0,
    teacher: float = 0.0,
    cascade: float | None = None,
    busy: float = 1.0,
    seed: int = 0,
    out: Path | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> Recommendation:
    """Choose among models by quality, latency, price, memory and energy, and say how surely.

    Candidates are rows of a file, of a published benchmark, sizes on a published law, or arms that
    were trained here. Each is served on the chips and in the formats that are asked; what it takes
    is drawn with what such predictions have missed by. The share of draws in which a candidate is
    the one to take is its probability; below 95 % the choice is not resolved, and the output names
    the measurement that would settle it.

    Args:
        file: one candidate a row: model, a quality, and params where the model's name is unknown;
            quality_se or questions; p95, per_query, memory, joules where they were measured.
        quality: the file's column of quality; more is better.
        benchmark: instead of a file, 148 published base models by their score on this.
        law: instead of a file, sizes on a published law: chinchilla-corrected, for one.
        sizes: parameters, with --law.
        tokens: training tokens of each, with --law.
        carry: with --law, the same sizes of this architecture, by a gain of the lab's: an
            assumption, which the output prints.
        gain: low, middle and high of that gain, as README's table has them.
        records: instead of a file, a .jsonl that isoflop records wrote: families trained here; or
            what isoflop run compress wrote: treated runs beside plain ones.
        only: candidates whose names contain one of these, whatever their case.
        chip: what it is served on; see isoflop serve.
        chips: numbers of chips of one replica to try.
        formats: of the weights.
        prompt: tokens of a query.
        answer: tokens of its answer.
        cached: share of prompts in the prefix cache.
        rate: queries a second at the peak; 1 without it and without a volume.
        volume: instead of a rate, tokens a month, prompts and answers together.
        p95: the most seconds that 95 % of answers may take, whole.
        per_query: the most dollars a query.
        memory: the most memory of a replica, as in 24GB.
        joules: the most energy a query, in joules.
        at_least: the least quality.
        aim: what is best among those that meet the limits: quality, or the least of a cost.
        api: vendors' listed models to hold the costs against.
        price: dollars per chip-hour, instead of the chip's dated one.
        months: the horizon of training or tuning and of break-even volumes.
        utilisation: share of the chips' peak that training reaches.
        tune_tokens: tokens that every model of a file or benchmark is tuned on first.
        own: chips are bought and written off over three years, racked and powered, not rented.
        teacher: parameters of a model from which those tokens are distilled: its pass is paid too.
        cascade: the share that the cheapest candidate hands on to the chosen one, as a way to
            have answers of its own; its quality is not in the choice.
        busy: the mean rate over its peak: replicas are there for the peak.
        seed: of the draws.
        out: write a page there that draws the choice again as limits move, with its figure.
        json_out: write the result there as JSON.
    """
    limits = {"p95": p95, "per_query": per_query, "memory": _bytes(memory), "joules": joules}
    limits |= {QUALITY: at_least}
    traffic = Traffic(prompt, answer, _rate(rate, volume, prompt + answer, busy), cached, p95, busy)
    rent = None
    if price is not None:
        rent = prices.checked(
            flat(price, f"{date.today():%Y-%m}", "--price"), f"rent of {chip} (--price)"
        )
    if own:
        rent = _owned(chip, price)
    options, told, label = _options(
        file, quality, benchmark, law, sizes, tokens, carry, gain, records, only
    )
    places = [Place(device(chip), count, weights, rent) for count in chips for weights in formats]
    result = recommend(
        options, places, traffic, {k: v for k, v in limits.items() if v is not None},
        quality=label, aim=aim, vendors=[prices.api(name) for name in api],
        owner=Owner(months, utilisation, tune_tokens, teacher, cascade), seed=seed,
    )  # fmt: skip
    _show(result, told)
    if json_out is not None:
        write_json(json_out, result.json())
    if out is not None:
        from isoflop.figures import (
            choice as drawn,  # with matplotlib and altair behind them
        )
        from isoflop.figures.report import choice as page

        if out.suffix != ".html":
            raise UserError(f"--out must end in .html, and is {out.name!r}")
        written = [page.build(result, out, told), *drawn.draw(result, out.with_suffix(".png"))]
        console().print("written: " + ", ".join(map(str, written)))
    return result


def _owned(chip: str, price: float | None) -> Price:
    if price is not None:
        raise UserError("--own and --price both say what a chip-hour costs: give one of them")
    watts = device(chip).watts
    if chip not in prices.PURCHASE or watts is None:
        raise UserError(f"there is no price of a bought {chip}; it is of {listed(prices.PURCHASE)}")
    return prices.owned(prices.PURCHASE[chip], watts)


def _options(
    file: Path | None, quality: str, benchmark: str | None, law: str | None,
    sizes: Sequence[float], tokens: float, carry: str | None,
    gain: tuple[float, float, float] | None, records: Path | None, only: Sequence[str],
) -> tuple[list[Option], list[str], str]:  # fmt: skip
    """Candidates of the one origin that was named, what was left out, and what their quality is."""
    origins = {"a file": file, "--benchmark": benchmark, "--law": law, "--records": records}
    named = [name for name, value in origins.items() if value is not None]
    if len(named) != 1:
        raise UserError(
            f"candidates come from one of {', '.join(origins)}, as their qualities have different "
            f"scales, and {' and '.join(named) or 'none'} is given"
        )
    if law is None and (carry is not None or gain is not None):
        raise UserError("--carry and --gain put an architecture on a law: give --law too")
    if law is not None:
        found = candidates.published(law, sizes, tokens)
        if carry is not None:
            if gain is None:
                raise UserError(
                    f"--carry {carry} needs --gain LOW MIDDLE HIGH: {carry}'s gain over dense and "
                    "its interval, as README's table has it"
                )
            found += candidates.carried(law, carry, gain, sizes, tokens)
        return _only(found, only), [], candidates.LOSS
    if records is not None:
        found, out = _trained(records)
        return _only(found, only), out, candidates.LOSS
    columns: Columns = read(file) if file is not None else _scores(str(benchmark))
    found, dropped = candidates.rows(columns, quality if file is not None else "score")
    told = [f"{len(dropped)} rows left out: {describe(dropped)}"] if dropped else []
    found = _only(found, only)
    return found, told, quality if file is not None else f"{benchmark} score"


def _trained(path: Path) -> tuple[list[Option], list[str]]:
    """Families of a table of runs, or treated runs of a table of those."""
    if "treatment" in next(iter(read_table(path)), {}):
        return treated(read_table(path, WORDS, NUMBERS))
    return candidates.lab(read_rows(path))


def _only(found: list[Option], words: Sequence[str]) -> list[Option]:
    """Those whose names contain one of the words; all without words."""
    kept = [o for o in found if not words or any(w.lower() in o.name.lower() for w in words)]
    if not kept:
        names = listed([o.name for o in found])
        raise UserError(f"--only {' '.join(words)} leaves no candidate: they are {names}")
    return kept


def _scores(task: str) -> Columns:
    """The committed scores, under the names that `candidates.rows` knows."""
    found = [m for m in scores() if task in m.score]
    return {
        "model": [m.model for m in found],
        "score": [m.score[task] for m in found],
        "params": [m.params for m in found],
        "questions": [TASKS[task][0]] * len(found),
        "source": [ORIGIN] * len(found),
    }


def _bytes(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?([kMGT]?)i?B?", text.strip())
    try:
        return float(found[1]) * BYTES[found[2]] if found else _wrong(text)
    except ValueError:
        return _wrong(text)


def _wrong(text: str) -> float:
    raise UserError(f"--memory must be a number of bytes as in 24GB, and is {text!r}")


def _rate(rate: float | None, volume: float | None, tokens: int, busy: float) -> float:
    if not 0 < busy <= 1:
        raise UserError(f"--busy must be a share in (0, 1], and is {busy:g}")
    if rate is not None and volume is not None:
        raise UserError("--rate and --volume say the same: give one of them")
    asked = rate if volume is None else volume / max(tokens, 1) / SECONDS / busy
    if asked is not None and not 0 < asked < 1e9:
        raise UserError(f"--rate and --volume must be above 0, and give {asked:g} queries a second")
    return asked or 1.0


def _show(result: Recommendation, told: Sequence[str]) -> None:
    screen, choice = console(), result.choice
    limits = ", ".join(limit_words(choice.limits)) or "no limits"
    screen.print(
        f"{choice.words()} ({limits}; {result.traffic.rate:.4g} queries a second of "
        f"{result.traffic.prompt} + {result.traffic.answer} tokens)",
        soft_wrap=True,
    )
    shown = choice.standings[:LINES]
    costs = [name for name in METRICS if name in choice.costs]
    screen.print(
        table(
            [
                {
                    "candidate": s.candidate.name,
                    result.quality: between(s.quality),
                    **{UNITS[n][0]: between(s.costs[n], UNITS[n][1]) for n in costs},
                    "meets": f"{s.meets:.0%}",
                    "frontier": f"{s.frontier:.0%}",
                    "chosen": f"{s.wins:.0%}",
                }
                for s in shown
            ],
            left=("candidate",),
        ),
        soft_wrap=True,
    )
    if more := len(choice.standings) - len(shown):
        screen.print(f"{more} more candidates are in --json and --out")
    for m in choice.measurements[:3]:
        screen.print(f"would settle it: {m.what}: right in {m.right:.0%} instead of "
                     f"{choice.share:.0%} of worlds, at best", soft_wrap=True)  # fmt: skip
    screen.print(
        f"a month of {si(result.volume)} tokens: "
        + "; ".join(
            f"{name} " + " + ".join(f"${v:,.0f} {part}" for part, v in parts.items())
            for name, parts in result.monthly.items()
        ),
        soft_wrap=True,
    )
    for (own, other), volumes in result.pays.items():
        screen.print(f"{own} costs less than {other} {pays_words(volumes, result.owner.months)}",
                     soft_wrap=True)  # fmt: skip
    for line in (
        *(f"note: {n}" for n in result.notes),
        *(f"warning: {w}" for w in (*result.warnings, *told)),
        *(f"left out: {w}" for w in result.left_out[:LEFT]),
    ):
        screen.print(line, soft_wrap=True)
    if (more := len(result.left_out) - LEFT) > 0:
        screen.print(f"left out: {more} more, which are in --json and --out")


def between(spread: tuple[float, float, float], unit: float = 1.0) -> str:
    low, middle, high = (plain(v / unit) for v in spread)
    return middle if low == high else f"{middle} [{low}, {high}]"
