"""`isoflop selftest`: would a comparison of runs like these find what is there, and only that?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.experiments.cli.fit import JsonOut, enough
from isoflop.experiments.cli.text import console, grid, write_json
from isoflop.models.errors import UserError
from isoflop.sim.compare.null_test import SelfTest, null_test, power_test
from isoflop.sim.records.readers import read
from isoflop.sim.records.tables import called, groups


def selftest(
    file: Path,
    arch: str | None = None,
    flops: str | None = None,
    loss: str = "loss",
    n: str | None = None,
    d: str | None = None,
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
    factor, and told from 1.

    Args:
        file: one run per row, at least two seeds of each architecture.
        arch: column of architectures; without it arch, or family of isoflop's records; without
            such a column all runs are of one.
        flops: column of the cost; without it flops, or flops.executed of isoflop's records.
        loss: column of final losses.
        n: column of parameters; with it and d, compute-optimal frontiers are compared.
        d: column of training tokens.
        seed: column of seeds.
        factor: the gain put in by the power test; above 1.
        repeats: how many random splits.
        draws: bootstrap draws behind each interval.
        json_out: write the result there as JSON.
    """
    enough(draws)
    if not 1.0 < factor < 1e3:
        raise UserError(f"--factor must be above 1 and below 1000, and is {factor:.6g}")
    if not 1 <= repeats <= 1000:
        raise UserError(f"--repeats must be 1 to 1000, and is {repeats}")
    columns = read(file)
    cost, by = called(columns, "flops", flops), called(columns, "arch", arch)
    if by not in columns and arch is None:
        columns = {**columns, by: ["all runs"] * len(next(iter(columns.values())))}
    names, _ = groups(columns, by)
    options: dict[str, Any] = {"arch": by, "cost": cost, "loss": loss, "n": n, "d": d, "seed": seed}
    options |= {"draws": draws, "repeats": repeats}
    found = {
        name: (
            null_test(columns, name, **options),
            power_test(columns, name, factor=factor, **options),
        )
        for name in names
    }
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
    worst = min(found.items(), key=lambda item: item[1][0].covers)
    error = np.sqrt(0.9 * 0.1 / repeats)
    if worst[1][0].covers < 0.9 - 2 * error:
        screen.print(
            f"warning: {worst[0]}: {worst[1][0].covers:.0%} of the null test's intervals hold 1, "
            "fewer than nine in ten: intervals of such runs are too narrow"
        )
    if json_out is not None:
        write_json(json_out, {
            name: {"null": asdict(null), "power": asdict(power)}
            for name, (null, power) in found.items()
        })  # fmt: skip
    return found
