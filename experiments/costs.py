"""What does each architecture cost at one matched size, before anything is trained?

Exact, from the configs: parameters, training FLOPs per token at several lengths under every
convention, and for one decoded token its FLOPs, the bytes it reads and the state it needs, at 2
bytes for a weight or an element of the state. The table of models/README.md is made of these rows
by `python -m isoflop.experiments.cli.readme`.

Command:   isoflop run costs --conventions executed causal
Duration:  seconds; nothing is trained or timed
Expected:  equal active parameters; attention's FLOPs grow with the length, and its state; a
           recurrence's do not, whatever convention is asked but those of parameters
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.experiments import pick
from isoflop.experiments.families import model
from isoflop.models.families import zoo
from isoflop.sim.cost.flops import param_counts, step_flops
from isoflop.sim.cost.hardware import decode
from isoflop.sim.cost.names import CONVENTIONS

STATE_BYTES = 2


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
