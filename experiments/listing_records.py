"""How long does it take to list, choose and index as many records as a large study has?

Command: isoflop run listing_records
Duration: 3 minutes on 2 idle cores, most of it writing the records
Expected: a listing takes less than 3 s from the index, and the index is made in less than 60 s.

`cpu_seconds` are those of this process, whatever else the machine does. The records are copies of
one of a small dense model, each with its own key, seed and loss.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.models.families import zoo
from isoflop.sim.data import ZipfFacts
from isoflop.sim.optim import AdamW
from isoflop.sim.records.index import opened, place
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Budget, Run, canonical


def measure(records: int = 100_000) -> list[dict]:
    """Seconds of each thing that is asked of an index.

    Args:
        records: how many the runs directory has.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        rows = [_timed("write the records", records, _write, root, records)]
        try:
            rows.append(_timed("make the index", records, _list, root))
            rows.append(_timed("list all, nothing new", records, _list, root))
            rows.append(_timed("choose by two columns", records, _list, root, CHOICE))
        finally:
            place(root).unlink(missing_ok=True)
    return rows


CHOICE = "seed >= 90 and loss < 2.5"


def _timed(what: str, records: int, do: Callable[..., Any], *args: Any) -> dict[str, Any]:
    start, busy = time.perf_counter(), time.process_time()
    found = do(*args)
    return {
        "what": what,
        "records": records,
        "found": found,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
    }


def _list(root: Path, where: str = "") -> int:
    with opened(root, print) as index:
        return len(index.listing(where))


def _write(root: Path, records: int) -> int:
    """A record's two files each, as text: to make values of them all would take longer."""
    data = ZipfFacts(facts=100, symbols=16, alpha=0.5)
    run = Run(
        model=zoo.dense(64, 2, data.vocab_size),
        data=data,
        optim=AdamW(lr=0.01, warmup_steps=5),
        budget=Budget(steps=500, batch=8, seq_len=128),
    )
    losses = tuple((step, 3.0) for step in range(5, 505, 5))
    one = Record(
        key="KEY",
        run=run,
        status="ok",
        metrics={"loss": Metric(value=9.0, se=0.01, count=4096)},
        curve=losses,
        params={"total": 100, "active": 100},
        flops={"executed": 10**9, "6ND": 10**9},
    ).model_dump_json()
    spec = canonical(run)
    for i in range(records):
        key = f"{i:016x}"
        folder = root / key
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(spec)
        text = one.replace('"KEY"', f'"{key}"').replace('"seed":0', f'"seed":{i % 100}')
        text = text.replace('"value":9.0', f'"value":{2 + i / records}')
        (folder / "result.json").write_text(text)
    return records
