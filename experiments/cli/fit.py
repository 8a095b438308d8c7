"""`isoflop fit` and `compare`: laws of any table of runs, and gains in it.

Question: what do these runs say, and how surely? Command: `isoflop fit runs.csv --n N --d D --loss
loss`. Duration: seconds. Expected: a law with intervals, or the reason why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table as Grid

from isoflop.experiments.cli.allocations import Allocated, allocate, draw, show
from isoflop.experiments.cli.text import check_output, console, grid, write_json
from isoflop.models.errors import UserError, listed, quoted
from isoflop.sim.compare.gains import Arm, Comparison, Ranked, arms, gain, ranking, warning
from isoflop.sim.laws.fit import Fit
from isoflop.sim.laws.forms import LAWS, fit_table
from isoflop.sim.laws.frontier import Frontier
from isoflop.sim.laws.isoflop import variable_projection
from isoflop.sim.laws.law import FLOPS_PER_ND
from isoflop.sim.laws.mixture import mixed
from isoflop.sim.laws.resample import Floats
from isoflop.sim.records.readers import read
from isoflop.sim.records.tables import (
    LEAST,
    MOST,
    Columns,
    Dropped,
    clean,
    describe,
    falling,
    groups,
    label,
    resolve_column,
)

JsonOut = Annotated[Path | None, tyro.conf.arg(name="json")]
DRAWS_MIN, DRAWS_MAX = 20, 100_000
SIDE_BY_SIDE = 4  # groups of one table
ROLES = ("run", "seed", "status", "loss_se")  # columns that are no labels of architectures
SYMBOLS = {  # legend of what a fit prints
    "a": "a: N* ∝ C^a where C ∝ N·D; above ½ parameters grow faster than tokens",
    "N*": "N*, D*, L*: parameters, tokens and loss of the best run that compute C buys",
    "L": "L: loss at compute C",
    "E": "E: loss that neither size nor data removes",
    "alpha": "alpha: how fast loss falls with size or compute",
    "beta": "beta: how fast loss falls with tokens",
}
GAIN = (
    "gain (CEG): how many times as much the baseline must spend for the loss that the architecture "
    "has at this budget; above 1 the architecture is better"
)
if TYPE_CHECKING:
    LawName = str
else:
    LawName = Literal[tuple(LAWS)]


def fit(
    file: Path,
    n: str | None = None,
    d: str | None = None,
    loss: str = "loss",
    flops: str | None = None,
    law: LawName = "chinchilla",
    group: str | None = None,
    approach: Literal["1", "2", "3"] = "3",
    budgets: tuple[float, ...] = (),
    curve: Literal["parabola", "akima"] = "parabola",
    at: tuple[float, ...] = (),
    figure: Path | None = None,
    draws: int = 1000,
    json_out: JsonOut = None,
) -> dict[str, Fit] | dict[str, Allocated]:
    """Fit a scaling law to the runs in a CSV, JSON lines or Parquet file.

    Approaches are Hoffmann's (2203.15556, §3): 1 the lower envelope of loss over compute; 2 IsoFLOP
    valleys, a parabola at each budget; 3 a surface of loss over N and D, with variable projection
    as a check. All give N* ∝ C^a; 3 also L* with intervals of everything.

    Cooldown branches of one trunk share a part of their noise. A column `run` names the trunk, as
    in a table that `isoflop records` wrote; without it runs of one N and seed are taken for
    branches, which the output says.

    Args:
        file: one run per row.
        n: column of parameters; without it N, or params.active of isoflop's records.
        d: column of training tokens; without it D, or tokens of isoflop's records.
        loss: column of final losses, nats per token, or of another metric: bits_per_byte, kjv.loss.
            Of one called accuracy, or kjv.accuracy, the error rate 1 - accuracy is fitted.
        flops: column of training FLOPs; without it compute is 6·N·D.
        law: which form.
        group: column of architectures, each fitted on its own, side by side.
        approach: 1 envelope, 2 IsoFLOP valleys, 3 surface.
        budgets: of approach 2, in FLOPs; without them those near which runs cluster (±10 %).
        curve: of approach 2, what finds a valley's minimum: a parabola near it, or an Akima spline
            through every size.
        at: compute to predict N*, D* and L* at, in FLOPs, also beyond the runs.
        figure: of approach 2, an .svg or .png of the valleys.
        draws: bootstrap draws behind the intervals.
        json_out: write the result there as JSON.
    """
    enough(draws)
    check_output(json_out, "--json")
    columns, loss = falling(read(file), loss)
    n, d = resolve_column(columns, "n", n), resolve_column(columns, "d", d)
    _refuse(approach, law, budgets, curve, at, figure, group)
    fits: dict[str, Fit] = {}
    found_groups, nameless = groups(columns, group) if group else _one_group(columns)
    if not found_groups:
        raise UserError(f"no row has a group: {describe(nameless)}; name another column")
    parts = {
        name: {key: [column[i] for i in rows] for key, column in columns.items()}
        for name, rows in found_groups.items()
    }
    names: dict[str, Any] = {"n": n, "d": d, "loss": loss, "flops": flops}
    if approach != "3":
        names |= {"budgets": budgets, "curve": curve, "at": at}
        return _allocations(parts, approach, names, figure, json_out, bool(group))
    reach = at or (_reach(parts, law, names) if group else None)
    for name, rows in found_groups.items():
        part = parts[name]
        stated = {"evaluation set": f"column {loss!r}"}
        stated |= {"which FLOPs": f"column {flops!r}"} if flops else {}
        stated |= {} if law == "power" and flops else {"which N": f"column {n!r}"}
        found = fit_table(part, law=law, **names, draws=draws, stated=stated, budgets=reach)
        # rows are numbered in the file, not in the group
        dropped = tuple(replace(x, row=rows[x.row - 1] + 1) for x in found.dropped) + nameless
        said = found.checklist | {"points dropped": describe(dropped)}
        if law == "chinchilla" and found.law is not None:
            said["variable projection"] = _projected(part, names)
        fits[name] = replace(found, dropped=dropped, checklist=said)
    screen = console()
    used = {*filter(None, names.values())}
    for result in fits.values():
        if group is None:
            _warn_mixed(screen, columns, result.dropped, result.residuals, used)
    if len(fits) > 1:
        screen.print("\n".join(_headline(name, result) for name, result in fits.items()))
    for table in _fit_tables(fits):
        screen.print(table)
    for name, result in fits.items():
        _say_dropped(screen, result.dropped, f"{name}: " if group else "")
    if legend := _legend(fits.values()):
        screen.print(legend)
    if json_out is not None:
        out = {name: result.json() for name, result in fits.items()}
        write_json(json_out, out if group else next(iter(out.values())))
    return fits


def compare(
    file: Path,
    arch: str | None = None,
    flops: str | None = None,
    loss: str = "loss",
    baseline: str | None = None,
    n: str | None = None,
    d: str | None = None,
    surface: bool = True,
    seed: str = "seed",
    budgets: tuple[float, ...] = (),
    draws: int = 1000,
    json_out: JsonOut = None,
) -> tuple[Comparison, ...]:
    """Compute-equivalent gain of every architecture in a file over a baseline.

    Few runs have wide intervals, with the noise of all architectures together. A direction of the
    gain is told only where every asymptote that the runs of both allow agrees.

    Args:
        file: one run per row.
        arch: column of architecture names; without it arch, or family of isoflop's records.
        flops: column of the cost to compare at: FLOPs in any convention, seconds, dollars; without
            it flops, or flops.executed of isoflop's records.
        loss: column of final losses, or of another metric, as in isoflop fit.
        baseline: the architecture compared against; the first in the file if not given.
        n: column of parameters; without it N, or params.active of isoflop's records.
        d: column of training tokens; without it D, or tokens of isoflop's records.
        surface: compare compute-optimal frontiers where the table has n and d; else the runs
            themselves, as without those columns.
        seed: column of seeds, for pairing.
        budgets: where to read gains, in the cost's unit; by default at three costs inside the
            window that both arms share, and never outside it.
        draws: bootstrap draws behind the intervals.
        json_out: write the result there as JSON.
    """
    enough(draws)
    check_output(json_out, "--json")
    for budget in budgets:
        if not LEAST <= budget <= MOST:
            raise UserError(f"--budgets must be costs above zero, and one is {budget:g}")
    columns, loss = falling(read(file), loss)
    arch, flops = resolve_column(columns, "arch", arch), resolve_column(columns, "flops", flops)
    n, d = surface_columns(columns, n, d, surface)
    fitted, dropped = arms(
        columns, arch=arch, cost=flops, loss=loss, n=n, d=d, seed=seed, draws=draws
    )
    names = list(fitted)
    if len(names) < 2:
        raise UserError(
            f"a comparison needs two architectures, and column {quoted(arch)} has {listed(names)} "
            f"in usable rows (dropped: {describe(dropped)}); name another column or add runs"
        )
    base = names[0] if baseline is None else label(baseline, "--baseline")
    if base not in fitted:
        raise UserError(f"baseline must be one of {listed(names)}, and is {quoted(base)}")
    found = tuple(
        gain(fitted[name], fitted[base], flops, budgets=budgets or None)
        for name in names
        if name != base
    )
    screen = console()
    rows = sum(len(arm.fit.residuals) for arm in fitted.values())
    screen.print(_gain_table(found, flops, f"{rows} of {rows + len(dropped)} rows"))
    screen.print(GAIN)
    for name, arm in fitted.items():
        if isinstance(arm.curve, Frontier):
            screen.print(f"cost of {name}: {arm.curve.cost.words()}")
    for one in found:
        if one.reason:
            screen.print(f"{one.arm}: {one.status}: {one.reason}")
        for cross in one.crossovers:
            at = f"{one.baseline} at {cross.budget:.3g} [{cross.low:.3g}, {cross.high:.3g}]"
            if cross.resolved:
                screen.print(f"{one.arm} crosses {at} in {cross.share:.0%} of draws")
            else:
                screen.print(
                    f"{one.arm} may cross {at}: not resolved, the gain is not told from 1 on both "
                    "sides of it"
                )
        if one.crossover_note:
            screen.print(f"{one.arm} crosses {one.baseline}: {one.crossover_note}")
        if one.trend_note:
            screen.print(f"trend of {one.arm} over {one.baseline}: {one.trend_note}")
    if told := warning(fitted.values()):
        screen.print(f"warning: {told}")
    ranks, unranked = _ranked(fitted, found, flops)
    if unranked:
        screen.print(f"no ranking: {unranked}")
    else:
        screen.print("ranking: " + ", ".join(f"{p.rank}. {p.arm}" for p in ranks))
    _say_dropped(screen, dropped)
    if json_out is not None:
        ceg = [
            {"arch": one.arm, "baseline": one.baseline, **gain_}
            for one in found
            for gain_ in one.json()["ceg"]
        ]
        write_json(
            json_out,
            {
                "cost": flops,
                "baseline": base,
                "ceg": ceg,
                "comparisons": [one.json() for one in found],
                "ranking": [{"rank": p.rank, "arch": p.arm} for p in ranks],
                "no ranking": unranked,
                "dropped": [x.json() for x in dropped],
            },
        )
    return found


def _ranked(
    fitted: dict[str, Arm], found: tuple[Comparison, ...], cost: str
) -> tuple[tuple[Ranked, ...], str]:
    """The ranking, or none and why."""
    if without := [one.arm for one in found if one.status != "converged"]:
        return (), f"no gain over the baseline is told of {listed(without)}"
    try:
        return ranking(fitted, cost), ""
    except UserError as error:
        return (), str(error)


def surface_columns(
    columns: Columns, n: str | None, d: str | None, surface: bool
) -> tuple[str | None, str | None]:
    """Columns of parameters and tokens, as told or as known; neither where one is missing."""
    if not surface:
        if n or d:
            raise UserError("--n and --d are of surfaces; leave them out or --no-surface")
        return None, None
    found = resolve_column(columns, "n", n), resolve_column(columns, "d", d)
    told = n is not None or d is not None
    return found if told or all(name in columns for name in found) else (None, None)


def enough(draws: int) -> None:
    if not DRAWS_MIN <= draws <= DRAWS_MAX:
        raise UserError(
            f"--draws must be {DRAWS_MIN} to {DRAWS_MAX:,}, and is {quoted(draws)}: the ends of a "
            f"90 % interval are the draws' 5th and 95th hundredth"
        )


def _one_group(columns: Columns) -> tuple[dict[str, list[int]], tuple[Dropped, ...]]:
    return {"all runs": list(range(len(next(iter(columns.values())))))}, ()


def _refuse(
    approach: str, law: str, budgets: tuple[float, ...], curve: str, at: tuple[float, ...],
    figure: Path | None, group: str | None,
) -> None:  # fmt: skip
    """Options that do not go together, and budgets that are none."""
    for flag, values in (("--budgets", budgets), ("--at", at)):
        if not all(LEAST <= c <= MOST for c in values):
            told = ", ".join(f"{c:g}" for c in values)
            raise UserError(f"{flag} must be FLOPs above zero, and is {told}")
    if budgets and approach != "2":
        raise UserError("--budgets are of approach 2; add --approach 2, or --at to predict")
    if curve != "parabola" and approach != "2":
        raise UserError("--curve is of the valleys of approach 2; add --approach 2")
    if figure and approach != "2":
        raise UserError("--figure draws valleys, which are of approach 2; add --approach 2")
    if figure:
        from isoflop.figures.valleys import check_suffix  # matplotlib, where it is needed

        check_suffix(figure)
        check_output(figure, "--figure")
    if figure and group:
        raise UserError(
            "--figure draws the valleys of one architecture, and --group asks for each of several; "
            "filter the table to one architecture and draw that"
        )
    if approach != "3" and law != "chinchilla":
        raise UserError(f"approach {approach} fits no law; leave out --law or use --approach 3")
    if at and not (LAWS[law].allocates or law == "power"):
        raise UserError(f"law {law} predicts no optimum; leave out --at or use --law chinchilla")


def _allocations(
    parts: dict[str, dict[str, list[Any]]], approach: Literal["1", "2"], options: dict[str, Any],
    figure: Path | None, json_out: Path | None, grouped: bool,
) -> dict[str, Allocated]:  # fmt: skip
    found = {name: allocate(part, approach, **options) for name, part in parts.items()}
    screen = console()
    for name, result in found.items():
        if not grouped:
            used = {options[key] for key in ("n", "d", "loss", "flops")} - {None}
            _warn_mixed(screen, parts[name], result.dropped, result.residuals, used)
        show(screen, name, result)
        _say_dropped(screen, result.dropped, f"{name}: " if grouped else "")
    screen.print(f"N*: parameters of least loss at compute C; {SYMBOLS['a']}")
    if figure is not None:
        (result,) = found.values()
        screen.print("\n".join(str(path) for path in draw(result, figure)))
    if json_out is not None:
        out = {name: result.json() for name, result in found.items()}
        write_json(json_out, out if grouped else next(iter(out.values())))
    return found


def _warn_mixed(
    screen: Console, columns: Columns, dropped: tuple[Dropped, ...], residuals: Floats,
    used: set[str],
) -> None:  # fmt: skip
    """Say, above what was found, where several architectures may have been fitted as one."""
    left = {x.row for x in dropped}
    kept = [i for i in range(len(next(iter(columns.values())))) if i + 1 not in left]
    for told in mixed(columns, kept, residuals, {*used, *ROLES}):
        screen.print(f"warning: {told}")


def _reach(
    parts: dict[str, dict[str, list[Any]]], law: str, names: dict[str, Any]
) -> list[float] | None:
    """Budgets at which groups are told side by side: the largest that all reach, and its tenth."""
    if not (LAWS[law].allocates or law == "power"):
        return None
    tops = []
    for part in parts.values():
        columns = [names["flops"]] if names["flops"] else [names["n"], names["d"]]
        if law == "power":
            columns = [names["flops"] or names["n"]]
        table = clean(part, {name: name for name in columns})
        if len(table):
            cost = np.prod([table[name] for name in columns], axis=0)
            tops.append(float(cost.max()) * (FLOPS_PER_ND if len(columns) == 2 else 1.0))
    return [min(tops) / 10.0, min(tops)] if tops else None


def _projected(part: dict[str, list[Any]], names: dict[str, Any]) -> str:
    table = clean(part, {"N": names["n"], "D": names["d"], "loss": names["loss"]})
    law = variable_projection(table["N"], table["D"], table["loss"])
    return f"a = {law.a:.4g}, E = {law.E:.4g}: another estimator, least squares on relative error"


def _fit_tables(fits: dict[str, Fit]) -> Iterator[Grid]:
    """One fit with its checklist, or groups side by side, a few to a table."""
    if len(fits) == 1:
        yield _fit_table(*next(iter(fits.items())))
        return
    every = list(fits)
    for first in range(0, len(every), SIDE_BY_SIDE):
        names = every[first : first + SIDE_BY_SIDE]
        form = next(iter(fits.values())).checklist.get("form", "")
        out = grid(f"{form}: value [90 % interval]", "quantity", *names)
        shown = [fits[name] for name in names]
        for key in dict.fromkeys(key for fit in shown for key in fit.estimate):
            out.add_row(key, *(_told(fit, key) for fit in shown))
        for key in dict.fromkeys(key for fit in shown for key in fit.checklist if key != "form"):
            out.add_row(key, *(fit.checklist.get(key, "") for fit in shown))
        if any(fit.reason for fit in shown):
            out.add_row("reason", *(fit.reason for fit in shown))
        yield out


def _told(fit: Fit, key: str) -> str:
    if key not in fit.estimate:
        return ""
    if key not in fit.interval:
        return f"{fit.estimate[key]:.4g}"
    low, high = fit.interval[key]
    return f"{fit.estimate[key]:.4g} [{low:.4g}, {high:.4g}]"


def _legend(fits: Iterable[Fit]) -> str:
    """What the letters of these fits mean."""
    keys = {key.split("(")[0] for fit in fits for key in fit.estimate}
    return "; ".join(text for key, text in SYMBOLS.items() if key in keys)


def _headline(name: str, result: Fit) -> str:
    form, count = result.checklist.get("form", ""), result.n_points
    rows = f"{count} of {count + len(result.dropped)} rows" if result.dropped else f"{count} runs"
    return f"{name}: {form}, {rows}, {result.status}"


def _fit_table(name: str, result: Fit) -> Grid:
    out = grid(_headline(name, result), "quantity", "value", "90 % interval")
    for key, value in result.estimate.items():
        low, high = result.interval.get(key, (math.nan, math.nan))
        out.add_row(key, f"{value:.4g}", f"{low:.4g} to {high:.4g}")
    for key, text in result.checklist.items():
        out.add_row(key, text)
    if result.reason:
        out.add_row("reason", result.reason)
    return out


def _gain_table(found: tuple[Comparison, ...], cost: str, rows: str) -> Grid:
    out = grid(
        f"compute-equivalent gain at equal loss, cost = {cost}, {rows}",
        "architecture", "over", "at budget", "gain", "90 % interval", "P(gain > 1)",
    )  # fmt: skip
    for one in found:
        for g in one.ceg:
            out.add_row(
                one.arm, one.baseline, f"{g.budget:.3g}", f"{g.value:.3g}",
                f"{g.low:.3g} to {g.high:.3g}", f"{g.p:.2f}",
            )  # fmt: skip
    return out


def _say_dropped(screen: Console, dropped: tuple[Dropped, ...], whose: str = "") -> None:
    if dropped:
        screen.print(f"{whose}dropped: {describe(dropped)}")
