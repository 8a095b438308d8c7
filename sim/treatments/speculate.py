"""Speculate: a small run drafts, and the treated one, the target, reads several tokens at once.

Nothing that is predicted changes (models/speculation.py), only what a token costs. How often drafts
are kept, α = E Σ min(p, q), is measured on a second held-out split, at temperature 1; a reading of
the target then gives (1 − α^(γ+1))/(1 − α) tokens, if one token's chance is like another's.
A recurrent model is read twice for each call, to verify and to roll its state back; caches of keys
and values are cut back.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field, PositiveInt

from isoflop.models.base import Sizes
from isoflop.models.speculation import expected_tokens, rollback_bytes
from isoflop.sim.data import Batch
from isoflop.sim.treatments.base import Subject, Treatment, by_parts
from isoflop.sim.treatments.splits import second


class Speculate(Treatment, Sizes):
    """Decoding with drafts of a smaller run."""

    kind: Literal["speculate"] = "speculate"
    draft: str = Field(pattern="^[0-9a-f]{16}$")  # the key of a run beside this one
    gamma: PositiveInt = 4  # tokens that are drafted for each reading of the target

    def apply(self, subject: Subject) -> Subject:
        draft = subject.beside(self.draft)
        alpha = acceptance(subject, draft, second(subject.run))
        each, gamma = expected_tokens(alpha, self.gamma), self.gamma
        context = subject.run.budget.seq_len
        kept = [rollback_bytes(one.model, context) for one in (subject, draft)]
        twice = [float(size > 0) for size in kept]  # whether it is read again to be rolled back
        now, small = subject.ledger, draft.ledger
        flops = (gamma + 1 + twice[0] * each) * now.step_flops
        flops += (gamma + twice[1] * each) * small.step_flops
        read = (1 + twice[0]) * now.read_bytes + (gamma + twice[1]) * small.read_bytes
        return subject.to(
            speculated=True,
            chosen={**subject.chosen, "alpha": alpha, "tokens_per_call": each},
            extra=subject.costing(
                train_flops=small.train_flops,
                step_flops=round(flops / each) - now.step_flops,
                read_bytes=(read + sum(kept)) / each - now.read_bytes,
                resident_bytes=small.resident_bytes + sum(kept),
            ),
        )


def acceptance(target: Subject, draft: Subject, batch: Batch) -> float:
    """Mean of Σ min(p, q) over the tokens of held-out sequences."""
    ways = (target.logits, target.model), (draft.logits, draft.model)
    reads = target.reads, draft.reads
    both = by_parts(target.run, batch, lambda part: _overlap(ways, reads, part.tokens[:, :-1]))
    return float(both.mean(dtype=np.float64))


@partial(jax.jit, static_argnums=0)
def _overlap(ways: Any, reads: Any, tokens: Int[Array, "b t"]) -> Float[Array, "b t"]:
    p, q = (
        jax.nn.softmax(logits(model, read, tokens), -1)
        for (logits, model), read in zip(ways, reads, strict=True)
    )
    return jnp.minimum(p, q).sum(-1)
