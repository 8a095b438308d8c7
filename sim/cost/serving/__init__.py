"""Serving: what a deployment gives its users under a workload, and what that costs."""

from isoflop.sim.cost.serving.deployment import Deployment, Speculation, Workload
from isoflop.sim.cost.serving.memory import Memory
from isoflop.sim.cost.serving.serve import Estimate, Serving, serve

__all__ = [
    "Deployment",
    "Estimate",
    "Memory",
    "Serving",
    "Speculation",
    "Workload",
    "serve",
]
