"""Generated parts of the documents, made again by `python -m isoflop.experiments.cli.readme`.

Each stands between two comments that name it, and a test holds every file to what is made here; the
tables of what there is are in `experiments/cli/catalogue.py`. The committed runs are first given
the FLOPs that the code counts now, so that one table has one count even after a form of a mixer has
changed, and as a label the seconds of a step, where its shape was timed in turns with the others';
`isoflop figures` then has to draw them again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from isoflop.experiments import claims, costs
from isoflop.experiments.cli import catalogue
from isoflop.experiments.cli.catalogue import ROOT, markdown
from isoflop.experiments.cli.text import si
from isoflop.models.mixers import rnn
from isoflop.sim.compare.study import ends
from isoflop.sim.cost.flops import training_flops
from isoflop.sim.cost.names import CONVENTIONS
from isoflop.sim.records.readers import finite
from isoflop.sim.records.store import (
    Row,
    join_step_seconds,
    read_rows,
    read_table,
    write_rows,
    write_table,
)

STUDIES = {  # records → what was made of them
    ROOT / "experiments" / "results" / f"{name}.jsonl": ROOT / "figures" / "out" / at / "study.json"
    for name, at in (("ladder", "ladder"), ("ladder_gpu", "gpu/ladder"))
}
LAPTOP, GPU = STUDIES.values()
RUNS = (  # committed records of runs
    *STUDIES,
    *(
        ROOT / "experiments" / "results" / f"{name}.jsonl"
        for name in (
            *("quickstart", "power_law", "isoflop", "known_entropy", "ladder_muon", "recall"),
            *(
                "lr_transfer",
                "lr_transfer_zoo",
                "lr_transfer_gpu",
                "lr_transfer_muon",
                "lr_transfer_depth",
            ),
        )
    ),
)
STEPS = ROOT / "experiments" / "results" / "ladder_steps.jsonl"  # isoflop run bench
VERDICTS = ROOT / "experiments" / "results" / "verdicts.jsonl"  # isoflop verdicts
ACCOUNT = ("account_scale", "account_methods", "account_costs")
LITERATURE = ("context", "scaling", "compression")  # files of claims
PROGRAMS = {"train_step": "step", "prefill": "prefill", "decode": "decode"}
SHOWN = ("executed", "causal", "6ND_non_embedding", "seconds", "state_bytes")  # gains printed


def recounted(row: Row) -> Row:
    """The row with the FLOPs that the code counts for its run."""
    record = row.record.model_copy(update={"flops": training_flops(row.record.run)})
    return row.model_copy(update={"record": record})


def cost_table() -> str:
    """What each family costs at one size."""
    rows = costs.measure(conventions=("executed",))
    names = [name for name in rows[0] if name != "convention"]
    body = [[f"`{row['family']}`", *(si(row[name]) for name in names[1:])] for row in rows]
    return markdown([name.replace("_", " ") for name in names], body)


def conventions_table() -> str:
    """The same training FLOPs per token under the other conventions; 6ND knows no length."""
    others = tuple(name for name in CONVENTIONS if name != "executed")
    columns: dict[str, dict[str, float]] = {}  # family → column → FLOPs
    for row in costs.measure(conventions=others):
        cells = columns.setdefault(row["family"], {})
        for name, flops in row.items():
            if name.startswith("flops_at_"):
                length = "" if row["convention"].startswith("6ND") else name.removeprefix("flops_")
                cells[f"{row['convention']} {length}".strip()] = flops
    body = [[f"`{family}`", *map(si, cells.values())] for family, cells in columns.items()]
    heads = [name.replace("_", " ") for name in next(iter(columns.values()))]
    return markdown(["family", *heads], body)


def shortest_mixer() -> str:
    """A whole mixer and its row in the table of tests."""
    table = (ROOT / "tests" / "test_mixers.py").read_text(encoding="utf-8").splitlines()
    row = next(line.strip() for line in table if "MinGru(" in line)
    code = "\n\n".join(inspect.getsource(part) for part in (rnn.MinGru, rnn.MinimalGru))
    return f"```python\n{code}```\n\nand in `tests/test_mixers.py`\n\n```python\n{row}\n```"


def ladder_table(path: Path) -> str:
    """Each family's best loss, its gains over dense, and the error of its law on held-out runs."""
    study = json.loads(path.read_text(encoding="utf-8"))
    shown = [cost for cost in SHOWN if cost in study["gains"]]
    gains = {cost: {item["arm"]: item for item in study["gains"][cost]} for cost in shown}
    body = []
    for family, best in study["best"].items():
        told = [_gain(gains[cost].get(family)) for cost in shown]
        noise = study["noise"][family]["seeds"]
        body.append(
            [
                f"`{family}`",
                f"{best['loss']:.3f} ({best['width']})",
                *told,
                f"{noise:.2%}",
                _held_out(study, family),
            ]
        )
    heads = [
        "family",
        "best loss (width)",
        *(f"gain, {cost}" for cost in shown),
        "seed noise",
        "held out",
    ]
    return markdown(heads, body)


def gains_table() -> str:
    """Gains over dense at the far end of both studies' windows, in the costs that differ most."""
    laptop, gpu = (json.loads(path.read_text(encoding="utf-8"))["gains"] for path in (LAPTOP, GPU))
    columns = {
        "executed FLOPs": laptop["executed"],
        "seconds of 2 CPU cores": laptop["seconds"],
        "executed FLOPs, H100": gpu["executed"],
    }
    gains = {head: {item["arm"]: item for item in items} for head, items in columns.items()}
    body = [
        [f"`{arm}`", *(_gain(found[arm]) if arm in found else "—" for found in gains.values())]
        for arm in gains["executed FLOPs"]
    ]
    return markdown(["family", *columns], body)


def peers_table() -> str:
    """How many times as long the peers' programs take and how much memory, by device and shape."""
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read_table(ROOT / "experiments" / "results" / "peers.jsonl"):
        shape = f"d {row['width']} L {row['depth']} T {row['seq_len']} batch {row['batch']}"
        key = f"`{row['family']}`", shape, row["dtype"], row["device"]
        cells = table.setdefault(key, {})
        form = ", compiled" if row["compiled"] else ""
        told = f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        cells[PROGRAMS[row["program"]] + form] = told
        if "memory_bytes" in row:
            cells["memory" + form] = f"{row['peer_memory_bytes'] / row['memory_bytes']:.2f}"
    heads = [*PROGRAMS.values(), "memory", *(f"{name}, compiled" for name in ("step", "prefill"))]
    body = [[*key, *(cells.get(head, "—") for head in heads)] for key, cells in table.items()]
    return markdown(["family", "shape", "dtype", "device", *heads], body)


def judged() -> list[dict[str, Any]]:
    """Every claim with its verdict, as JSON has it."""
    return [finite(verdict.json()) for verdict in claims.verdicts()]


def verdicts_table(files: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """The verdicts on the claims of some files, as they were last judged."""
    body = [
        [catalogue.prose(str(row[name])) for name in columns]
        for row in read_table(VERDICTS, columns)
        if row["file"] in files
    ]
    return markdown(columns, body, numbers=False)


def _gain(item: dict[str, Any] | None) -> str:
    if item is None:
        return "1"
    if not item["ceg"]:
        return "not resolved"
    far = item["ceg"][-1]
    low, high = ends(far)
    text = f"{_short(far['value'])} [{_short(low)}, {_short(high)}]"
    return f"({text})" if low <= 1 <= high else text


def _short(gain: float) -> str:
    return f"{gain:.2f}" if gain < 10 else f"{gain:.0f}"


def _held_out(study: dict[str, Any], family: str) -> str:
    """Error of the law above a quarter of the largest compute; then E = 0, then two points."""
    first = next(iter(study["laws"][family]["held_out"]), None)
    if first is None or first["error"] is None:
        return "—"
    parts = (first["error"], first["no_asymptote"], first["last_two"])
    return " / ".join("—" if part is None else f"{part:.1%}" for part in parts)


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {  # file → its generated parts
    "README.md": {
        "gains": gains_table,
        "verdicts": partial(verdicts_table, LITERATURE, ("claim", "source", "verdict", "result")),
    },
    "experiments/launch/README.md": {},
    "models/README.md": {
        "mixers": catalogue.mixers,
        "families": catalogue.zoo_families,
        "costs": cost_table,
        "conventions": conventions_table,
        "formats": catalogue.formats,
        "mixer": shortest_mixer,
    },
    "sim/README.md": {
        "sources": catalogue.sources,
        "tasks": catalogue.tasks,
        "optimisers": catalogue.optimisers,
        "conventions": catalogue.conventions,
        "laws": catalogue.laws,
    },
    "experiments/README.md": {
        "catalogue": catalogue.catalogue,
        "lessons": catalogue.lessons,
        "ladder": partial(ladder_table, LAPTOP),
        "ladder_gpu": partial(ladder_table, GPU),
        "peers": peers_table,
        "verdicts": partial(verdicts_table, LITERATURE, ("claim", "setting", "rule", "verdict")),
        "account": partial(verdicts_table, ACCOUNT, ("claim", "source", "verdict", "result")),
    },
    "LOG.md": {"index": catalogue.log_index},
    "experiments/site/verdicts.md": {
        "verdicts": partial(verdicts_table, LITERATURE, ("claim", "source", "verdict", "result")),
        "account": partial(verdicts_table, ACCOUNT, ("claim", "source", "verdict", "result")),
    },
}
for page in sorted((ROOT / "experiments" / "site").glob("*.md")):
    DOCUMENTS.setdefault(f"experiments/site/{page.name}", {})


def insert(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """The text with its generated parts made again."""
    for name, make in parts.items():
        begin, end = (
            f"<!-- {mark}{name}: python -m isoflop.experiments.cli.readme -->" for mark in ("", "/")
        )
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for path in RUNS:
        write_rows(path, join_step_seconds(map(recounted, read_rows(path)), read_table(STEPS)))
    write_table(VERDICTS, judged())
    for name, parts in DOCUMENTS.items():
        document = ROOT / name
        document.write_text(insert(document.read_text(encoding="utf-8"), parts), encoding="utf-8")
