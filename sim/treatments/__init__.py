"""Treatments of finished runs: compress, prune, remove, and measure what that is worth.

A treatment is one frozen config with an `apply` from subject to subject (sim/treatments/base.py).
"""

from isoflop.sim.treatments.apply import Treated, apply, read_treated, write_treated
from isoflop.sim.treatments.base import AnyTreatment, Ledger, Subject, Treatment
from isoflop.sim.treatments.prune import Prune
from isoflop.sim.treatments.quantise import Activations, States, Weights
from isoflop.sim.treatments.remove import Remove

__all__ = [
    "Activations",
    "AnyTreatment",
    "Ledger",
    "Prune",
    "Remove",
    "States",
    "Subject",
    "Treated",
    "Treatment",
    "Weights",
    "apply",
    "read_treated",
    "write_treated",
]
