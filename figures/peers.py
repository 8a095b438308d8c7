"""How many times as long PyTorch takes for the same model, and how much more memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.figures.bench import Panel, picture, size

TIMES = "peer's seconds / ours"
PANELS = (
    Panel("train_step", "ratio", "Training step", TIMES, even=True),
    Panel("prefill", "ratio", "Prefill (read the prompts)", TIMES, even=True),
    Panel("decode", "ratio", "Decode (one token of each sequence)", TIMES, even=True),
    Panel(
        "train_step",
        "peer_memory_bytes",
        "Memory of a training step",
        "peer's bytes / ours",
        over="memory_bytes",
        even=True,
    ),
)


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture, a panel for each program and the memory; none where nothing was measured."""
    note = "median and range of ratios in the same turn; above 1 ours is faster, or smaller"
    return picture(rows, PANELS, kind, (finding(rows), note), out, "peers")


def finding(rows: list[dict]) -> str:
    """On each device, the range of times as long that the peers' training steps take."""
    steps = [row for row in rows if PANELS[0].shows(row)]
    said = []
    for device in dict.fromkeys(row["device"] for row in steps):
        mine = sorted((row for row in steps if row["device"] == device), key=PANELS[0].of)
        low, high = mine[0], mine[-1]
        said.append(
            f"{PANELS[0].of(low):.2g} ({low['family']}) to {PANELS[0].of(high):.2g} "
            f"({high['family']}) times as long on {device}"
        )
    if not said:
        return "PyTorch's programs beside ours"
    return f"PyTorch's training steps take {'; '.join(said)}"


def kind(row: dict[str, Any]) -> str:
    """A row's device, shape and how its peer runs, in words."""
    form = "torch.compile" if row["compiled"] else "eager"
    return f"{row['device'].removeprefix('NVIDIA ')}: {size(row)}, {row['dtype']}, {form}"
