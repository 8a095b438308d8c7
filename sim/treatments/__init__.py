"""Treatments of finished runs: compress, retrieve, cascade, and measure what that is worth.

A treatment is one frozen config with an `apply` from subject to subject (sim/treatments/base.py).
"""

from isoflop.sim.treatments.apply import Treated, apply, read_treated, write_treated
from isoflop.sim.treatments.base import AnyTreatment, Ledger, Subject, Treatment
from isoflop.sim.treatments.cascade import Cascade
from isoflop.sim.treatments.neighbours import Neighbours
from isoflop.sim.treatments.passages import Passages
from isoflop.sim.treatments.prune import Prune
from isoflop.sim.treatments.quantise import Activations, States, Weights
from isoflop.sim.treatments.remove import Remove
from isoflop.sim.treatments.retrain import Distil, Retrain
from isoflop.sim.treatments.speculate import Speculate

__all__ = [
    "Activations",
    "AnyTreatment",
    "Cascade",
    "Distil",
    "Ledger",
    "Neighbours",
    "Passages",
    "Prune",
    "Remove",
    "Retrain",
    "Speculate",
    "States",
    "Subject",
    "Treated",
    "Treatment",
    "Weights",
    "apply",
    "read_treated",
    "write_treated",
]
