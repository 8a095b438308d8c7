"""`isoflop explore`: what a budget buys, as one page to drag through, from any runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from isoflop.experiments.claims import RESULTS
from isoflop.experiments.cli.text import check_output
from isoflop.models.errors import UserError
from isoflop.sim.records.tables import Columns

LADDERS = {"laptop": "ladder", "one GPU": "ladder_gpu"}  # what a page is of by default
COSTS = "flops."  # how columns of FLOPs begin in tables that isoflop writes


def explore(
    records: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    n: str | None = None,
    d: str | None = None,
    loss: str = "loss",
    flops: tuple[str, ...] = (),
    arch: str | None = None,
    draws: int = 400,
    out: Path = Path("report/explore.html"),
) -> None:
    """Write a page on which a budget is dragged: the size, tokens and loss that it buys, by family.

    Each file is a choice on the page: runs as `isoflop records` writes them (NAME.jsonl), under
    every FLOP convention, at several contexts and with their decoding states; or a table with one
    run a row, as in isoflop fit. The page is one file that needs no network. Bands are 90 %, widen
    outside the runs, and say so.

    Args:
        records: .jsonl, .csv, .json or .parquet files; without any, the committed ladders.
        n: of tables, the column of parameters; without it N, or params.active.
        d: of tables, the column of training tokens; without it D, or tokens.
        loss: of tables, the column of final losses, nats per token, or of another metric, as in
            isoflop fit.
        flops: of tables, columns of costs to count in, FLOPs first; without it flops, or those that
            begin with flops.; 6·N·D where there is none.
        arch: of tables, the column of architectures; without it arch, or family; else all rows are
            one.
        draws: bootstrap draws behind the bands.
        out: the page to write; its name ends in .html.
    """
    from isoflop.experiments.cli.fit import enough
    from isoflop.figures.report.explorer import build
    from isoflop.sim.compare.explorer import Explorer, of_columns, of_rows
    from isoflop.sim.records.readers import read
    from isoflop.sim.records.store import read_rows
    from isoflop.sim.records.tables import KNOWN, describe, falling, require, resolve_column

    enough(draws)
    if out.suffix != ".html":
        raise UserError(f"--out must end in .html, and is {out.name!r}")
    check_output(out, "--out")
    files = {path.stem: path for path in records}
    if len(files) < len(records):
        raise UserError("two files have one name, and the page calls runs by it; rename one")
    recall = []
    if not records:
        files = {name: RESULTS / f"{stem}.jsonl" for name, stem in LADDERS.items()}
        recall = read_rows(RESULTS / "recall.jsonl")
    found: dict[str, Explorer] = {}
    told = []

    def known(columns: Columns) -> str | None:
        name = resolve_column(columns, "arch", arch)
        return name if arch is not None or name in columns else None

    def costs(columns: Columns) -> tuple[str, ...]:
        if flops:
            require(columns, flops)
            return flops
        own = [name for name in columns if name in KNOWN["flops"]]
        return tuple(dict.fromkeys([*own, *(c for c in columns if c.startswith(COSTS))]))

    for name, path in files.items():
        if _holds_records(path):
            found[name] = of_rows(read_rows(path), draws)
        else:
            columns, shown = falling(read(path), loss)
            found[name] = of_columns(
                columns, arch=known(columns), costs=costs(columns), loss=shown,
                n=resolve_column(columns, "n", n), d=resolve_column(columns, "d", d), draws=draws,
            )  # fmt: skip
            if dropped := found[name].table.dropped:
                told.append(f"{name}: {len(dropped)} rows left out: {describe(dropped)}")
        if not found[name].families:
            raise UserError(f"no law of {path} can be read: {'; '.join(found[name].left_out)}")
        told += [f"{name}: not drawn: {line}" for line in found[name].left_out]
    print("\n".join([*(f"warning: {line}" for line in told), str(build(found, out, recall, told))]))


def _holds_records(path: Path) -> bool:
    """Whether a file's first line is a record of isoflop's with its labels."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() == {"labels", "record"}
