"""`isoflop selftest`: would a comparison of runs like these find what is there, and only that?"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isoflop.experiments.cli.fit import JsonOut, enough, surface_columns
from isoflop.experiments.cli.text import check_output, console, grid, tell, write_json
from isoflop.models.errors import UserError, printable
from isoflop.sim.compare.gains import usable
from isoflop.sim.compare.null_test import SelfTest, null_test, power_test, verdict
from isoflop.sim.records.readers import read
from isoflop.sim.records.tables import describe, resolve_column


def selftest(
    file: Path,
    arch: str | None = None,
    flops: str | None = None,
    loss: str = "loss",
    n: str | None = None,
    d: str | None = None,
    surface: bool = True,
    seed: str = "seed",
    factor: float = 1.3,
    repeats: int = 20,
    draws: int = 200,
    json_out: JsonOut = None,
) -> dict[str, tuple[SelfTest, SelfTest]]:
    """Null and power test on your own runs: each architecture against itself.

    Its seeds are split in two halves at random, again and again, and the halves compared as two
    architectures are. The null test: without a difference, nine of ten 90 % intervals should hold
    1. The power test: with one half's cost multiplied by `factor`, the gain found should be that
    factor, and told from 1. An architecture that cannot be tested is skipped, with the reason.

    Args:
        file: one run per row, at least two seeds of each architecture.
        arch: column of architectures; without it arch, or family of isoflop's records; without
            such a column all runs are of one.
        flops: column of the cost; without it flops, or flops.executed of isoflop's records.
        loss: column of final losses.
        n: column of parameters; without it N, or params.active of isoflop's records.
        d: column of training tokens; without it D, or tokens of isoflop's records.
        surface: compare compute-optimal frontiers where the table has n and d, as compare does;
            else the runs themselves.
        seed: column of seeds.
        factor: the gain put in by the power test; above 1.
        repeats: how many random splits.
        draws: bootstrap draws behind each interval.
        json_out: write the result there as JSON.
    """
    enough(draws)
    check_output(json_out, "--json")
    if not 1.0 < factor < 1e3:
        raise UserError(f"--factor must be above 1 and below 1000, and is {factor:.6g}")
    if not 1 <= repeats <= 1000:
        raise UserError(f"--repeats must be 1 to 1000, and is {repeats}")
    columns = read(file)
    cost, by = resolve_column(columns, "flops", flops), resolve_column(columns, "arch", arch)
    if by not in columns and arch is None:
        columns = {**columns, by: ["all runs"] * len(next(iter(columns.values())))}
    if seed not in columns:
        raise UserError(f"a self-test splits the seeds, and there is no column {seed!r}; name it")
    n, d = surface_columns(columns, n, d, surface)
    runs = usable(columns, arch=by, cost=cost, loss=loss, n=n, d=d, seed=seed)
    found: dict[str, tuple[SelfTest, SelfTest]] = {}
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(runs["arch"]):
        said = functools.partial(_progress, name, repeats)
        options: dict[str, Any] = {"draws": draws, "repeats": repeats}
        try:
            found[name] = (
                null_test(runs, name, **options, on_repeat=functools.partial(said, "null")),
                power_test(
                    runs, name, factor=factor, **options,
                    on_repeat=functools.partial(said, "power"),
                ),
            )  # fmt: skip
        except UserError as error:
            skipped[name] = str(error)
    tell("")
    if not found:
        told = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
        raise UserError(f"no architecture can be tested: {told}")
    screen = console()
    out = grid(
        f"halves of the seeds compared, {repeats} splits, cost = {cost}",
        "architecture", "test", "gain put in", "gain found (median)", "intervals that hold it",
        "told from 1",
    )  # fmt: skip
    for name, pair in found.items():
        for kind, test in zip(("null", "power"), pair, strict=True):
            out.add_row(
                name, kind, f"{test.factor:.3g}", f"{test.median:.4g}", f"{test.covers:.0%}",
                f"{test.resolves:.0%}",
            )  # fmt: skip
    screen.print(out)
    screen.print(
        "null: about 90 % should hold 1, so about 10 % be told from it; power: the more are told "
        "from 1, the surer a gain of this size is found. Halves have half the seeds: all runs "
        "together tell more."
    )
    for name, pair in found.items():
        screen.print(f"{name}: {verdict(*pair)}")
    for name, why in skipped.items():
        screen.print(f"{name}: skipped: {why}")
    if runs.dropped:
        screen.print(f"dropped: {describe(runs.dropped)}")
    if json_out is not None:
        write_json(json_out, {
            name: {"null": asdict(null), "power": asdict(power), "verdict": verdict(null, power)}
            for name, (null, power) in found.items()
        } | {name: {"skipped": why} for name, why in skipped.items()})  # fmt: skip
    return found


def _progress(name: str, repeats: int, kind: str, done: int) -> None:
    tell(f"{printable(name)}: {kind} test, split {done} of {repeats}")
