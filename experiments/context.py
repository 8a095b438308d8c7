"""How do time and memory grow with the context length of each architecture?

A small model of each family trains one step, reads a prompt and writes tokens at growing sequence
lengths; its decoding state is weighed, and each program at its peak. Programs take turns, so that
slopes hold on a busy machine while seconds do not travel. `slope` is local, from the next shorter
length: 1 is linear in T, 2 quadratic, 0 constant. `predicted` is what the model's exact cost takes
at least here, by the rates of matmuls, of elementwise arithmetic and of copying in the same turns,
and `ratio` what was measured over it.

Command:   isoflop run context && isoflop figures context
Duration:  about 12 minutes on 2 idle cores; fewer --lengths take less, and 65536 fits 8 GiB
Expected:  from 2k to 32k tokens the training step of Mamba and linear attention is linear (slope
           1 ± 0.1) and that of attention is near 2; decoding state and time are constant for the
           former, and linear for the latter once reading the cache outweighs the weights
"""

from __future__ import annotations

from pathlib import Path

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import model
from isoflop.sim.evaluate import context
from isoflop.sim.evaluate.checkpoint import config


def measure(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "linear"),
    lengths: tuple[int, ...] = (128, 2048, 8192, 32768),
    quantities: tuple[str, ...] = context.QUANTITIES,
    width: int = 64,
    depth: int = 2,
    repeats: int = 3,
    batch: int = 1,
    checkpoints: tuple[Path, ...] = (),
    checkpoint_runs: Path = Path("runs"),
) -> list[dict]:
    """The table.

    Args:
        families: names of the zoo's families.
        lengths: sequence lengths, in tokens.
        quantities: of train_step_seconds, prefill_seconds, decode_seconds, train_step_bytes,
            prefill_bytes, decode_bytes, state_bytes.
        width: d_model.
        depth: layers.
        repeats: turns that are timed, after one that is not.
        batch: sequences that share a training step, a prompt and a token.
        checkpoints: runs (a folder, or a key's beginning in --checkpoint-runs) and folders of
            Hugging Face checkpoints, at their own size beside the families, named as their folders.
        checkpoint_runs: the runs directory, for runs that are named by their keys.
    """
    models = {family: model(family, width, depth) for family in families}
    models |= dict(config(name, checkpoint_runs) for name in checkpoints)
    rows = context.measure(models, lengths, quantities, repeats, batch, tell)
    tell("")
    return rows
