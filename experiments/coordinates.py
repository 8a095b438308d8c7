"""Do activations move as much in a large model as in a small one, under the rules for its rates?

The coordinate check of muP (Yang et al. 2022, 2203.03466, App. D.1): each family takes a few steps
at its tuned rate. Over widths, once with the rule (a matrix's rate falls as 1/width) and once with
the rate of the base width for all. Over depths, once with CompleteP (residual branches scaled by
1/depth) and once without. `change` is the root mean square over held-out tokens of how far the
normed activations before the head, or the logits, have moved. `slope` is its local power of the
size, from the next smaller one: near 0 where a rate transfers, positive where large models move
more.

Command:   isoflop run coordinates --json (--depths 2 4 8 16 --widths 64 for depth)
Duration:  about 12 minutes on 2 idle cores, most of it compiling
Expected:  over widths the logits' slopes are within ±.1 under the rule, and between .2 and .8
           without it as long as the base width's rate still trains; over depths they are within
           ±.15 under CompleteP, and above .15 without; activations, being normed, tell less
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import BASE_DEPTH, BASE_WIDTH, STUDIED, model, optim, seeds_of
from isoflop.models.base import Init
from isoflop.models.errors import UserError
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import Batch, Corpus
from isoflop.sim.evaluate.context import power
from isoflop.sim.optim import Optim
from isoflop.sim.train.program import Program, jitted

BATCH, SEQ_LEN = 8, 128
QUANTITIES = ("activations", "logits")


def measure(
    families: tuple[str, ...] = STUDIED,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    depths: tuple[int, ...] = (BASE_DEPTH,),
    steps: int = 8,
    seeds: int = 3,
) -> list[dict]:
    """The table.

    Args:
        families: names of families with a tuned learning rate.
        widths: d_model; one, where several depths are compared.
        depths: blocks; several, for the rule over depth.
        steps: training steps, of 1024 tokens, without warm-up.
        seeds: seeds over which the changes are averaged.
    """
    sizes = sorted({(width, depth) for width in widths for depth in depths})
    if len(sizes) < 2 or min(len(set(widths)), len(set(depths))) > 1 or steps < 1 or seeds < 1:
        raise UserError(
            f"a check needs two widths or two depths (not both), a step and a seed; got "
            f"widths={tuple(sorted(set(widths)))}, depths={tuple(sorted(set(depths)))}, "
            f"steps={steps}, seeds={seeds}"
        )
    dial = "width" if len(set(widths)) > 1 else "depth"
    rates = {family: optim(family, BASE_WIDTH, 0) for family in families}
    rows: list[dict[str, Any]] = []
    for family, rate in rates.items():
        found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
        for width, depth in sizes:
            tell(f"{family}, width {width}, depth {depth}")
            for rule, ruled in _rules(dial, rate, width).items():
                moved = changes(ruled.deepen(model(family, width, depth)), ruled, steps, seeds)
                for quantity, change in moved.items():
                    found.setdefault((rule, quantity), {})[width, depth] = change
        for (rule, quantity), by_size in sorted(found.items()):
            rows += _line({"family": family, "rule": rule, "quantity": quantity}, dial, by_size)
    tell("")
    return rows


def _rules(dial: str, rate: Optim, width: int) -> dict[str, Optim]:
    """The rate under the rule for this dial, and without one."""
    if dial == "width":
        bases = {"1/width": BASE_WIDTH, "none": width}
        return {rule: rate.model_copy(update={"base_width": base}) for rule, base in bases.items()}
    return {"completep": rate.model_copy(update={"base_depth": BASE_DEPTH}), "none": rate}


def changes(model: ModelConfig, rate: Optim, steps: int, seeds: int) -> dict[str, float]:
    """How far activations and logits of held-out tokens move in `steps` steps."""
    program = Program(model, rate.compiled)
    source = Corpus(name="kjv").open()
    probe = jnp.asarray(source.held_out(BATCH * SEQ_LEN, SEQ_LEN).tokens[:, :-1])
    drawn = seeds_of(seeds)
    tokens = [
        [source.batch(i, seed, BATCH, SEQ_LEN).tokens for seed in drawn] for i in range(steps)
    ]
    batches = Batch(np.array(tokens, np.int32))

    def observe(params):
        observed, alone = _observer(model), range(seeds)
        return [observed(jax.tree.map(lambda leaf, i=i: leaf[i], params), probe) for i in alone]

    state, ones = program.init(list(drawn)), np.ones(steps, np.float32)
    before = observe(state[0])
    advance = jitted(program)["advance"]
    state, _ = advance(state, program.rates(rate), ones, batches, np.int32(steps))
    squares = jax.tree.map(lambda new, old: np.mean((new - old) ** 2), observe(state[0]), before)
    return {q: float(np.mean([square[q] for square in squares])) ** 0.5 for q in QUANTITIES}


@cache
def _observer(model: ModelConfig) -> Any:
    """(parameters, tokens) → normed activations and logits."""
    graph = nnx.split(nnx.eval_shape(lambda: model.build(init=Init(None))))[0]

    @jax.jit
    @full_precision
    def observed(params, probe):
        lm = nnx.merge(graph, params)
        hidden = lm.hidden(probe)[0]
        return dict(zip(QUANTITIES, (hidden, lm.logits(hidden)), strict=True))

    return observed


def _line(
    labels: Mapping[str, str], dial: str, moved: Mapping[tuple[int, int], float]
) -> Iterator[dict[str, Any]]:
    """The rows of one family, rule and quantity, by increasing size."""
    before: tuple[int, float] | None = None
    for (width, depth), change in moved.items():
        row: dict[str, Any] = {**labels, "width": width, "depth": depth, "change": change}
        now = (width if dial == "width" else depth), change
        if before is not None:
            row["slope"] = power(before, now)
        before = now
        yield row
