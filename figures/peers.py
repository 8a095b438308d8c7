"""How many times as long PyTorch takes for the same model, and how much more memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures.bench import Panel, picture, size

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
    return picture(rows, PANELS, kind, note, out, "peers")


def kind(row: dict[str, Any]) -> str:
    """A row's device, shape and how its peer runs, in words."""
    form = "torch.compile" if row["compiled"] else "eager"
    return f"{row['device'].removeprefix('NVIDIA ')}: {size(row)}, {row['dtype']}, {form}"
