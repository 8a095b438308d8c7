"""What the literature says of time, memory, recall and state over a context."""

from __future__ import annotations

from typing import Any

from isoflop.sim.compare.slopes import slopes
from isoflop.sim.compare.verdicts import Finding, all_of, claim


@claim(
    "a training step of a selective state space grows linearly with the context, and of attention "
    "faster; decoding needs a state of constant size",
    source="Gu & Dao 2023, 2312.00752, sections 1 and 4.5",
    setting="width 64, 2 layers, batch 1, 1k to 8k tokens, 2 CPU cores; slopes of log seconds on "
    "log tokens with 90 % intervals of the line",
    records=("context",),
)
def cost_is_linear(rows: list[dict[str, Any]]) -> Finding:
    """Reproduced if the training step's slope is within 1.0 ± .1 for Mamba and above 1.1 for dense,
    and the slope of the state's bytes is 0 for Mamba and 1 for dense; not reproduced if one of
    these is not so by more than its interval; else not resolved.
    """
    fitted = slopes(rows)
    step, state = fitted["train_step_seconds"], fitted["state_bytes"]
    mamba, dense = step["mamba"], step["dense"]
    if mamba is None or dense is None or mamba.half is None or dense.half is None:
        return Finding(None, "fewer than three lengths between 1k and 8k tokens")
    off = abs(mamba.value - 1.0)
    linear = True if off <= 0.1 else None if off <= 0.1 + mamba.half else False
    faster = True if dense.value > 1.1 else None if dense.value + dense.half > 1.1 else False
    sizes = [state["mamba"], state["dense"]]
    held = all(s is not None and abs(s.value - i) < 1e-3 for i, s in enumerate(sizes))
    said = f"training step: Mamba {mamba}, dense {dense}; state bytes: {sizes[0]} and {sizes[1]}"
    return Finding(all_of([linear, faster, held]), said)
