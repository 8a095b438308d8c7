"""How fast is a fit of a scaling law, beside one run of L-BFGS from each of many starts?

Chinchilla's law on runs of a known surface, sizes × lengths × seeds with 1 % of noise: the best of
all starts, and bootstrap draws that converge again from there. Ours is a batched Newton method
(sim/laws/resample.py). The other is the recipe of the literature (Hoffmann et al. 2022, 2203.15556,
appendix D.2; Besiroglu et al. 2024, 2404.10102): scipy's L-BFGS-B on the same summed Huber loss,
given its exact gradient, from 3⁵ starts, and from the best for every draw. The two take turns.
`ratio` is the other's seconds over ours in the same turn; `excess` is how far our objective is
above the other's, relative to it, at most for any draw.

Command:   isoflop run fitting --json
Duration:  2 minutes on 2 cores
Expected:  ratios above 10, and no objective above the recipe's by more than 1e-6 of it
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize

from isoflop.experiments.cli.text import tell
from isoflop.models.errors import UserError
from isoflop.sim.compare.design import LAB
from isoflop.sim.evaluate.probe import interleave
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.resample import DELTA, Floats, Form, cell_weights, huber, minimise

NOISE = 0.01  # of log loss, between seeds
STARTS = ((-2.0, -1.0, 0.0), (-2.0, -1.0, 0.0), (-1.0, -0.5, 0.0), (0.1, 0.5, 1.0), (0.1, 0.5, 1.0))
SCALE = 1e4  # of the objective: L-BFGS stops by absolute sizes


def measure(
    sizes: int = 7, lengths: int = 7, seeds: int = 5, draws: int = 1000, repeats: int = 3
) -> list[dict]:
    """The table.

    Args:
        sizes: of models, 10k to 300k parameters.
        lengths: of training, 2M to 60M tokens.
        seeds: of each size and length.
        draws: bootstrap draws.
        repeats: turns that are timed, after one that is not.
    """
    if min(sizes, lengths) < 3 or min(seeds, draws, repeats) < 1:
        raise UserError(
            f"sizes={sizes} and lengths={lengths} must be at least 3, and seeds={seeds}, "
            f"draws={draws} and repeats={repeats} at least 1"
        )
    n, d = np.geomspace(1e4, 3e5, sizes), np.geomspace(2e6, 6e7, lengths)
    x = [np.repeat(axis.ravel(), seeds) for axis in np.meshgrid(n, d)]
    rng = np.random.default_rng(0)
    y = np.log(LAB(*x)) + NOISE * rng.standard_normal(len(x[0]))
    form, starts = Chinchilla.form(x, y)
    weights = cell_weights(np.arange(len(y)), draws, rng, starts.shape[1])

    found = minimise(form, y, starts)
    best = found.theta[np.argmin(found.objective)]
    drawn = np.tile(best, (draws, 1))
    ways = {
        ("fit", "ours"): Way(lambda: minimise(form, y, starts).objective.min(keepdims=True)),
        ("fit", "L-BFGS"): Way(lambda: l_bfgs(form, y, recipe()).min(keepdims=True)),
        ("draws", "ours"): Way(lambda: minimise(form, y, drawn, weights=weights).objective),
        ("draws", "L-BFGS"): Way(lambda: l_bfgs(form, y, drawn, weights)),
    }
    turns = interleave(ways, repeats, tell)
    tell("")
    rows = []
    for what, count in (("fit", len(recipe())), ("draws", draws)):
        ours, theirs = turns[what, "ours"], turns[what, "L-BFGS"]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        excess = ways[what, "ours"].objective / ways[what, "L-BFGS"].objective - 1
        rows.append(
            {
                "what": what,
                "runs": len(y),
                "L-BFGS starts": count,
                "seconds": statistics.median(ours),
                "L-BFGS seconds": statistics.median(theirs),
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "excess": float(excess.max()),
            }
        )
    return rows


def recipe() -> Floats:
    """3⁵ starts (s, 5) around data whose logs are centred."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*STARTS)], axis=1)


@dataclass
class Way:
    """Problems solved by one method: their objectives, and the time that they took."""

    solve: Callable[[], Floats]
    objective: Floats = field(default_factory=lambda: np.zeros(0))

    def seconds(self) -> float:
        start = time.perf_counter()
        self.objective = self.solve()
        return time.perf_counter() - start


def l_bfgs(form: Form, y: Floats, starts: Floats, weights: Floats | None = None) -> Floats:
    """The objective (s,) that L-BFGS reaches from each start (s, p), with weights (s, n) if given.

    `form` must be linear in its parameters inside the logarithm of its sum, as Chinchilla's is.
    """
    u = form.terms(starts[:1])[1][0]  # (n, k, p)

    def objective(theta: Floats, w: Floats) -> tuple[float, Floats]:
        terms = u @ theta
        f = np.logaddexp.reduce(terms, axis=-1)
        slope = np.einsum("nk,nkp->np", np.exp(terms - f[:, None]), u)
        pull = w * np.clip(f - y, -DELTA, DELTA)
        return SCALE * float(np.sum(w * huber(f - y))), SCALE * (pull @ slope)

    options = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12}
    weights = np.ones((len(starts), len(y))) if weights is None else weights
    found = [
        minimize(objective, start, args=(w,), jac=True, method="L-BFGS-B", options=options).fun
        for start, w in zip(starts, weights, strict=True)
    ]
    return np.array(found) / SCALE
