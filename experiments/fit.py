"""`isoflop fit` and `compare`: laws of any table of runs, and gains in it.

Question: what do these runs say, and how surely? Command: `isoflop fit runs.csv --n N --d D --loss
loss`. Duration: seconds. Expected: a law with intervals, or the reason why there is none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table as Grid

from experiments.text import console, grid, write_json
from models.errors import UserError, listed, quoted
from sim.compare import Comparison, arms, caveat, gain, ranking
from sim.fitting import Fit
from sim.laws import fit_table
from sim.readers import read
from sim.tables import LEAST, MOST, Columns, Dropped, called, describe, groups, label

JsonOut = Annotated[Path | None, tyro.conf.arg(name="json")]
DRAWS_MIN, DRAWS_MAX = 20, 100_000
LawName = Literal["power", "chinchilla", "coupled", "overtrained", "routed", "repeated"]


def fit(
    file: Path,
    n: str | None = None,
    d: str | None = None,
    loss: str = "loss",
    flops: str | None = None,
    law: LawName = "chinchilla",
    group: str | None = None,
    draws: int = 1000,
    json_out: JsonOut = None,
) -> dict[str, Fit]:
    """Fit a scaling law to the runs in a CSV, JSON lines or Parquet file.

    Cooldown branches of one trunk share a part of their noise. A column `run` names the trunk, as
    in a table that `isoflop records` wrote; without it runs of one N and seed are taken for
    branches, which the output says.

    Args:
        file: one run per row.
        n: column of parameters; without it N, or params.active of isoflop's records.
        d: column of training tokens; without it D, or tokens of isoflop's records.
        loss: column of final losses, nats per token.
        flops: column of training FLOPs; without it compute is 6·N·D.
        law: which form.
        group: column of architectures, each fitted on its own.
        draws: bootstrap draws behind the intervals.
        json_out: write the result there as JSON.
    """
    _enough(draws)
    columns = read(file)
    n, d = called(columns, "n", n), called(columns, "d", d)
    fits = {}
    found_groups, nameless = groups(columns, group) if group else _one_group(columns)
    if not found_groups:
        raise UserError(f"no row has a group: {describe(nameless)}; name another column")
    for name, rows in found_groups.items():
        part = {key: [column[i] for i in rows] for key, column in columns.items()}
        stated = {"evaluation set": f"column {loss!r}"}
        stated |= {"which FLOPs": f"column {flops!r}"} if flops else {}
        stated |= {} if law == "power" and flops else {"which N": f"column {n!r}"}
        found = fit_table(
            part, law=law, n=n, d=d, loss=loss, flops=flops, draws=draws, stated=stated
        )
        # rows are numbered in the file, not in the group
        dropped = tuple(replace(x, row=rows[x.row - 1] + 1) for x in found.dropped) + nameless
        said = found.checklist | {"points dropped": describe(dropped)}
        fits[name] = replace(found, dropped=dropped, checklist=said)
    screen = console()
    for name, result in fits.items():
        screen.print(_fit_table(name, result))
        _say_dropped(screen, result.dropped)
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
        loss: column of final losses.
        baseline: the architecture compared against; the first in the file if not given.
        n: column of parameters; with it and d, compute-optimal frontiers are compared.
        d: column of training tokens.
        seed: column of seeds, for pairing.
        budgets: where to read gains, in the cost's unit; by default at three costs inside the
            window that both arms share, and never outside it.
        draws: bootstrap draws behind the intervals.
        json_out: write the result there as JSON.
    """
    _enough(draws)
    for budget in budgets:
        if not LEAST <= budget <= MOST:
            raise UserError(f"--budgets must be costs above zero, and one is {budget:g}")
    columns = read(file)
    arch, flops = called(columns, "arch", arch), called(columns, "flops", flops)
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
    if told := caveat(fitted.values()):
        screen.print(f"caveat: {told}")
    places = []
    if all(one.status == "converged" for one in found):
        places = list(ranking(fitted, flops))
        screen.print("ranking: " + ", ".join(f"{p.rank}. {p.arm}" for p in places))
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
                "ranking": [{"rank": p.rank, "arch": p.arm} for p in places],
                "dropped": [x.json() for x in dropped],
            },
        )
    return found


def _enough(draws: int) -> None:
    if not DRAWS_MIN <= draws <= DRAWS_MAX:
        raise UserError(
            f"--draws must be {DRAWS_MIN} to {DRAWS_MAX:,}, and is {quoted(draws)}: the ends of a "
            f"90 % interval are the draws' 5th and 95th hundredth"
        )


def _one_group(columns: Columns) -> tuple[dict[str, list[int]], tuple[Dropped, ...]]:
    return {"all runs": list(range(len(next(iter(columns.values())))))}, ()


def _fit_table(name: str, result: Fit) -> Grid:
    form = result.checklist.get("form", "")
    count = result.n_points
    rows = f"{count} of {count + len(result.dropped)} rows" if result.dropped else f"{count} runs"
    out = grid(f"{name}: {form}, {rows}, {result.status}", "quantity", "value", "90 % interval")
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


def _say_dropped(screen: Console, dropped: tuple[Dropped, ...]) -> None:
    if dropped:
        screen.print(f"dropped: {describe(dropped)}")
