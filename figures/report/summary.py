"""The report's words, computed from the records: what was found, and what the data leave open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isoflop.figures.palette import ORDER
from isoflop.figures.style import listed, named, scientific, short, tokens
from isoflop.models.families.matching import unmatched
from isoflop.sim.compare.family_fits import FamilyFit
from isoflop.sim.compare.points import LOSS, Point, noun, unit
from isoflop.sim.compare.rankings import Interval, Ranking, Standing
from isoflop.sim.compare.slopes import Slope, window
from isoflop.sim.compare.study import Study
from isoflop.sim.records.store import Row
from isoflop.sim.spec import EPOCHS_MAX, STEPS_MIN


@dataclass(frozen=True)
class Summary:
    """Sentences: what was found about loss, about context and compressors, and what stays open."""

    found: list[str]
    beside: list[str]
    open: list[str]


def summarise(
    study: Study,
    fits: Iterable[FamilyFit] = (),
    slopes: Mapping[str, Mapping[str, Slope | None]] | None = None,
    compressors: dict[str, float] | None = None,
) -> Summary:
    """In words, of the first convention that ranks families; `fits` are those that are shown."""
    rows, cells, rankings = study.rows, study.points, list(study.rankings.values())
    first = rankings[0] if rankings else None
    found = [
        _runs(study),
        *_best(first),
        *across(rankings),
    ]
    beside = [*_context(slopes or {}), *_compressors(cells, compressors or {})]
    unresolved = [
        *_ranking_open(first, cells),
        *_one_seed(cells),
        *_fits_open(fits),
        *_design(rows),
        *_window(cells),
    ]
    return Summary(found, beside, unresolved)


def conclusion(rows: Sequence[Row]) -> str:
    """What a finished grid of several families says, for a terminal; empty where it ranks none."""
    study = Study(rows, order=ORDER)
    if not study.rankings:
        return ""
    told = summarise(study)
    lines = [*told.found, "What these data do not resolve:", *(f"- {item}" for item in told.open)]
    return "\n".join(lines)


def headline(ranking: Ranking | None, families: Sequence[str], metric: str = LOSS) -> str:
    """The ranking in a line, for a picture's title."""
    if ranking is None:
        one = len(families) == 1
        what = f"{noun(metric).capitalize()} against training compute"
        return f"{what} of {families[0]}" if one else f"{what}: no common budget of two families"
    best, second = ranking.standings[0], ranking.standings[1]
    at = f"{best.family} is lowest at {scientific(ranking.flops)} FLOPs"
    said = f"{at}: {best.loss.mean:.3f} {unit(metric)}"
    if second.behind is None or second.behind.low is None:
        ahead = second.loss.mean - best.loss.mean
        return f"{said}; {second.family} is {ahead:.3f} higher, of one seed: no interval"
    verdict = "" if second.resolved else ", not resolved"
    return f"{said}; {second.family} is {interval(second.behind)} higher{verdict}"


def _runs(study: Study) -> str:
    rows, cells, lost, families = study.rows, study.points, study.lost, list(study.families)
    if not rows:
        return "No model was trained for this report."
    if not cells:
        return f"None of the {len(rows)} runs finished; the table below says why."
    seeds = {seed for cell in cells for seed in cell.losses}
    said = (
        f"{len(rows)} runs train {listed(families)} models of "
        f"{_range(cell.params['total'] for cell in cells)} parameters on "
        f"{_range(cell.tokens for cell in cells)} tokens, with {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''}"
    )
    verb = "run" if lost == 1 else "runs"
    return said + (f"; {lost} {verb} failed or diverged." if lost else "; every run finished.")


def _best(ranking: Ranking | None) -> list[str]:
    if ranking is None:
        return []
    best, second = ranking.standings[0], ranking.standings[1]
    said = (
        f"At {scientific(ranking.flops)} training FLOPs ({named(ranking.convention)}), the largest "
        f"budget that every ranked family reached, {best.family} has the lowest held-out loss: "
        f"{interval(best.loss)} nats per token."
    )
    if second.behind is None or second.behind.low is None:
        return [said]
    verdict = (
        "a difference larger than the noise between seeds"
        if second.resolved
        else "a difference that the noise between seeds can explain"
    )
    return [f"{said} {second.family} is next, {interval(second.behind)} higher: {verdict}."]


def across(rankings: Sequence[Ranking]) -> list[str]:
    """Whether the winner depends on what is counted; nothing of fewer than two rankings."""
    if len(rankings) < 2:
        return []
    winner = rankings[0].standings[0].family
    others: dict[str, list[str]] = {}
    for ranking in rankings[1:]:
        best = ranking.standings[0].family
        if best != winner:
            others.setdefault(best, []).append(named(ranking.convention))
    if not others:
        return [f"{winner} is lowest under all {len(rankings)} ways of counting FLOPs."]
    told = "; ".join(f"{family} under {listed(names)}" for family, names in others.items())
    return [f"How FLOPs are counted changes the winner: {told}."]


def _context(slopes: Mapping[str, Mapping[str, Slope | None]]) -> list[str]:
    said = []
    words = {
        "train_step_seconds": "a training step's time",
        "decode_seconds": "the time to decode a token",
        "state_bytes": "the size of the decoding state",
    }
    for quantity, what in words.items():
        alike: dict[str, list[str]] = {}
        for name, slope in slopes.get(quantity, {}).items():
            if slope is not None:
                alike.setdefault(slope.power, []).append(name)
        if alike:
            told = [f"{power} for {listed(names)}" for power, names in alike.items()]
            said.append(f"for {what} {', '.join(told)}")
    if not said:
        return []
    low, high = window(slopes)
    return [
        f"From {tokens(low)} to {tokens(high)} tokens of context, the log-log slope (1: twice the "
        f"context costs twice as much; 0: no more) is, {'; '.join(said)}."
    ]


def _compressors(cells: Sequence[Point], compressors: dict[str, float]) -> list[str]:
    bits = {cell.bits_per_byte: cell.family for cell in cells if cell.bits_per_byte is not None}
    if not bits or not compressors:
        return []
    best, strongest = min(bits), min(compressors, key=lambda name: compressors[name])
    word = "below" if best < compressors[strongest] else "above"
    return [
        f"The best cell ({bits[best]}) needs {best:.2f} bits per byte of held-out text, {word} the "
        f"{compressors[strongest]:.2f} of {strongest}, the best of the compressors."
    ]


def _ranking_open(ranking: Ranking | None, cells: Sequence[Point]) -> list[str]:
    if not cells:
        return []
    if ranking is None:
        if len(found := {cell.family for cell in cells}) == 1:
            return [f"Which family is best: these are runs of one, {min(found)}."]
        return ["Which family is best: no two families have points at a common budget."]
    best = ranking.standings[0].family
    close = [
        f"{standing.family} ({interval(standing.behind)} nats)"
        for standing in ranking.standings[1:]
        if standing.behind and standing.behind.low is not None and not standing.resolved
    ]
    said = [f"Whether {best} beats {listed(close)}: the interval includes zero."] if close else []
    unpaired = [s.family for s in ranking.standings[1:] if _unpaired(s)]
    if unpaired:
        said.append(
            f"Whether {best} beats {listed(unpaired)}: fewer than two shared seeds, so no interval."
        )
    if ranking.absent:
        said.append(
            f"Where {listed(ranking.absent)} would stand: too few points, or none at the common "
            "budget."
        )
    return said


def _unpaired(standing: Standing) -> bool:
    return standing.behind is None or standing.behind.low is None


def _one_seed(cells: Sequence[Point]) -> list[str]:
    families = dict.fromkeys(cell.family for cell in cells)
    single = [
        name
        for name in families
        if all(len(cell.losses) == 1 for cell in cells if cell.family == name)
    ]
    if not single:
        return []
    return [f"The noise of {listed(single)}: one seed, so no interval."]


def _fits_open(fits: Iterable[FamilyFit]) -> list[str]:
    """One sentence per law, families with the same reason together."""
    asked: dict[str, dict[str, list[str]]] = {}
    for item in fits:
        if not item.fit.ok:
            asked.setdefault(item.asked, {}).setdefault(item.fit.reason, []).append(item.family)
    return [
        f"{what} is not identifiable for "
        + "; for ".join(f"{listed(families)}: {reason}" for reason, families in reasons.items())
        + "."
        for what, reasons in asked.items()
    ]


def _design(rows: Sequence[Row]) -> list[str]:
    said = []
    apart = unmatched((str(row.labels.get("family", "")), row.record.run.model) for row in rows)
    if apart:
        said.append(f"What is the architecture's and what its size: {apart}.")
    brief = sum(row.record.run.budget.steps < STEPS_MIN for row in rows)
    if brief:
        said.append(
            f"How much is the optimiser's start: {brief} of {len(rows)} runs are shorter than "
            f"{STEPS_MIN} steps."
        )
    often = sum((row.record.epochs or 0) > EPOCHS_MAX for row in rows)
    if often:
        said.append(
            f"What fresh data would do: {often} of {len(rows)} runs see their data more than "
            f"{EPOCHS_MAX} times."
        )
    return said


def _window(cells: Sequence[Point]) -> list[str]:
    top = max((cell.flops.get("executed", 0) for cell in cells), default=0)
    if not top:
        return []
    return [f"Anything beyond {scientific(top)} FLOPs: families may cross outside the window."]


def interval(value: Interval | None, digits: int = 3) -> str:
    """1.596 [1.589, 1.604]."""
    if value is None:
        return "—"
    mean = f"{value.mean:.{digits}f}"
    if value.low is None or value.high is None:
        return f"{mean} (one seed)"
    return f"{mean} [{value.low:.{digits}f}, {value.high:.{digits}f}]".replace("-", "−")


def _range(values: Iterable[int]) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return short(low) if low == high else f"{short(low)} to {short(high)}"
