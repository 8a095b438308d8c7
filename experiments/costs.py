"""What does each architecture cost at one matched size, before anything is trained?

Exact, from the configs: parameters, training FLOPs per token at several lengths under every
convention, and for one decoded token its FLOPs, the bytes it reads and the state it needs, at 2
bytes for a weight or an element of the state. The README's table is made of these rows by
`python -m experiments.costs README.md`.

Command:   isoflop run costs --conventions executed causal
Duration:  seconds; nothing is trained or timed
Expected:  equal active parameters; attention's FLOPs grow with the length, and its state; a
           recurrence's do not, whatever convention is asked but those of parameters
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import pick
from experiments.families import model
from experiments.text import si
from models import zoo
from sim.flops import CONVENTIONS, param_counts, step_flops
from sim.hardware import decode

STATE_BYTES = 2
BEGIN, END = "<!-- costs: python -m experiments.costs README.md -->", "<!-- /costs -->"


def measure(
    families: tuple[str, ...] = tuple(zoo.FAMILIES),
    width: int = 256,
    lengths: tuple[int, ...] = (512, 2048, 8192, 32768),
    contexts: tuple[int, ...] = (8192, 131072),
    conventions: tuple[str, ...] = tuple(CONVENTIONS),
) -> list[dict]:
    """The table, a row for each family and convention.

    Args:
        families: names of the zoo's families.
        width: the dial; depth follows.
        lengths: of the training sequences, one in a batch.
        contexts: for which a decoding state is made; the first is that of the decoded token.
        conventions: of counting training FLOPs.
    """
    for name in conventions:
        pick(name, CONVENTIONS, "convention")
    return [
        _row(family, width, name, lengths, contexts) for family in families for name in conventions
    ]


def _row(
    family: str, width: int, convention: str, lengths: Sequence[int], contexts: Sequence[int]
) -> dict[str, Any]:
    config = model(family, width)
    counts = param_counts(config)
    token = decode(config, contexts[0], state_bytes=STATE_BYTES)
    return {
        "family": family,
        "convention": convention,
        "params": counts["total"],
        "active_params": counts["active"],
        **{f"flops_at_{t}": step_flops(config, t, 1)[convention] / t for t in lengths},
        "decode_flops": token.flops,
        "decode_bytes": token.bytes,
        **{f"state_bytes_at_{t}": STATE_BYTES * config.state_size(t) for t in contexts},
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of the README, three digits of each number."""
    names = [name for name in rows[0] if name != "convention"]
    heads = [name.replace("_", " ") for name in names]
    lines = [heads, ["---", *["---:"] * (len(names) - 1)]]
    for row in rows:
        lines.append([f"`{row['family']}`", *(si(row[name]) for name in names[1:])])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def insert(text: str) -> str:
    """The README with its table made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{markdown(measure(conventions=('executed',)))}\n\n{END}{after}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(insert(readme.read_text(encoding="utf-8")), encoding="utf-8")
