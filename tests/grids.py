"""Losses of a known surface on the lab's own grid."""

import numpy as np

from isoflop.sim.laws.forms import Chinchilla

TRUTH = Chinchilla(E=1.0, A=30.0, B=600.0, alpha=0.35, beta=0.42)


def lab(seeds=1, noise=0.0, rng=None, k=5, m=5, law=TRUTH):
    """10k to 300k parameters, 2M to 60M bytes."""
    n, d, s = np.meshgrid(np.geomspace(1e4, 3e5, k), np.geomspace(2e6, 6e7, m), np.arange(seeds))
    n, d, s = n.ravel(), d.ravel(), s.ravel()
    rng = rng or np.random.default_rng(0)
    loss = law(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    return {"N": n, "D": d, "loss": loss, "seed": s}
