"""Do activations move as much in a wide model as in a narrow one, under the rule for its rates?

The coordinate check of muP (Yang et al. 2022, 2203.03466, App. D.1): each family takes a few steps
at its tuned rate, once with the rule (a matrix's rate falls as 1/width) and once with the rate of
the base width for all widths. `change` is the root mean square over held-out tokens of how far the
normed activations before the head, or the logits, have moved. `slope` is its local power of the
width, from the next narrower one: near 0 where a rate transfers, positive where wide models move
more.

Command:   isoflop run coordinates --json
Duration:  about 12 minutes on 2 idle cores, most of it compiling
Expected:  the logits' slopes are within ±.1 under the rule, and between .2 and .8 without it as
           long as the base width's rate still trains; activations, being normed, tell less
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import BASE_WIDTH, STUDIED, model, optim, seeds_of
from isoflop.models.errors import UserError
from isoflop.models.kernels.platforms import full_precision
from isoflop.sim.data import Corpus
from isoflop.sim.evaluate.context import power
from isoflop.sim.optim import Optim
from isoflop.sim.train.program import Program, jitted

BATCH, SEQ_LEN = 8, 128
QUANTITIES = ("activations", "logits")


def measure(
    families: tuple[str, ...] = STUDIED,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    steps: int = 8,
    seeds: int = 3,
) -> list[dict]:
    """The table.

    Args:
        families: names of families with a tuned learning rate.
        widths: d_model, with two layers each.
        steps: training steps, of 1024 tokens, without warm-up.
        seeds: lanes over which the changes are averaged.
    """
    widths = tuple(sorted(set(widths)))
    if len(widths) < 2 or steps < 1 or seeds < 1:
        raise UserError(
            f"a check needs two widths, a step and a seed; got widths={widths}, steps={steps}, "
            f"seeds={seeds}"
        )
    rates = {family: optim(family, BASE_WIDTH, 0) for family in families}
    rows: list[dict[str, Any]] = []
    for family, rate in rates.items():
        found = {}
        for width in widths:
            tell(f"{family}, width {width}")
            rules = {"1/width": BASE_WIDTH, "none": width}
            ruled = {r: rate.model_copy(update={"base_width": base}) for r, base in rules.items()}
            found[width] = changes(family, width, ruled, steps, seeds)
        for rule in rules:
            for quantity in QUANTITIES:
                moved = {width: found[width][rule][quantity] for width in widths}
                rows += _line(family, rule, quantity, moved)
    tell("")
    return rows


def changes(
    family: str, width: int, ruled: Mapping[str, Optim], steps: int, seeds: int
) -> dict[str, dict[str, float]]:
    """How far activations and logits of held-out tokens move in `steps` steps, under each rule."""
    first = next(iter(ruled.values()))
    program = Program(
        model(family, width, 2), first.model_copy(update={"lr": 1.0, "base_width": 1})
    )
    source = Corpus(name="kjv").open()
    probe = jnp.asarray(source.held_out(BATCH * SEQ_LEN, SEQ_LEN)[:, :-1])
    lanes = seeds_of(seeds)
    batches = np.array(
        [[source.batch(i, seed, BATCH, SEQ_LEN) for seed in lanes] for i in range(steps)], np.int32
    )

    @jax.jit
    @full_precision
    def look(params):
        lm = nnx.merge(program.abstract[0], params)
        hidden = lm.hidden(probe)[0]
        return dict(zip(QUANTITIES, (hidden, lm.logits(hidden)), strict=True))

    def looks(params):
        return [look(jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in lanes]

    def moved(rate: Optim) -> dict[str, float]:
        state, ones = program.init(list(lanes)), np.ones(steps, np.float32)
        before = looks(state[0])
        advance = jitted(program)["advance"]
        state, _ = advance(state, program.rates(rate), ones, batches, np.int32(steps))
        squares = jax.tree.map(lambda new, old: np.mean((new - old) ** 2), looks(state[0]), before)
        return {q: float(np.mean([lane[q] for lane in squares])) ** 0.5 for q in QUANTITIES}

    return {rule: moved(rate) for rule, rate in ruled.items()}


def _line(
    family: str, rule: str, quantity: str, moved: Mapping[int, float]
) -> Iterator[dict[str, Any]]:
    """The rows of one family, rule and quantity, by increasing width."""
    before: tuple[int, float] | None = None
    for width, change in moved.items():
        row = {"family": family, "rule": rule, "quantity": quantity, "width": width}
        row["change"] = change
        if before is not None:
            row["slope"] = power(before, (width, change))
        before = width, change
        yield row
