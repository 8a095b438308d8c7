"""Treatments of finished runs: compress, prune, remove, and measure what that is worth.

A treatment is one frozen config with an `apply` from subject to subject (sim/treatments/base.py).
"""

from isoflop.sim.treatments.apply import Treated, apply, read_treated, write_treated
from isoflop.sim.treatments.base import AnyTreatment, Ledger, Subject, Treatment
from isoflop.sim.treatments.prune import Prune
from isoflop.sim.treatments.quantise import Activations, States, Weights
from isoflop.sim.treatments.remove import Remove
from isoflop.sim.treatments.retrain import Distil, Retrain

__all__ = [
    "Activations",
    "AnyTreatment",
    "Distil",
    "Ledger",
    "Prune",
    "Remove",
    "Retrain",
    "States",
    "Subject",
    "Treated",
    "Treatment",
    "Weights",
    "apply",
    "read_treated",
    "write_treated",
]
