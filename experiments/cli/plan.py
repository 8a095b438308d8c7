"""`isoflop plan`: the grid for a budget, and how wide its answers will be, before it is spent.

Question: what can this much compute tell? Command: `isoflop plan --flops 1e15`. Duration: seconds.
Expected: a grid, the half-widths of its intervals where `isoflop compare` will read them, and
whether they answer the question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from isoflop.experiments.cli.text import check_output, console, write_json
from isoflop.models.errors import UserError
from isoflop.sim.compare.design import Plan, propose, surface
from isoflop.sim.records.tables import LEAST, MOST


def plan(
    flops: float | None = None,
    seconds: float | None = None,
    flops_per_second: float | None = None,
    families: int = 2,
    noise: float = 0.005,
    gain: float = 1.2,
    target: float | None = None,
    law: str = "lab",
    smallest: float = 1e4,
    largest: float | None = None,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> Plan:
    """Propose a grid for a budget and say how wide the answers will be, before it is spent.

    The widths are those that `isoflop compare runs.csv --n N --d D --budgets TARGET` will have.
    A grid that cannot answer is told, written, and refused: exit code 2.

    Args:
        flops: training FLOPs for all families together.
        seconds: the budget in device seconds instead, with flops-per-second.
        flops_per_second: what the device sustains, measured, not its peak.
        families: how many architectures share the budget.
        noise: standard deviation of log loss between seeds; .005 is half a per cent.
        gain: the compute-equivalent gain that must be told from 1.
        target: FLOPs of a run at which the answer is wanted, inside the grid's window; by default
            a budget that compare reads by itself.
        law: the surface planned with: lab, or a published Chinchilla fit.
        smallest: parameters of the smallest model.
        largest: parameters of the largest model; by default what the budget affords, and at most
            30 times the smallest.
        json_out: write the plan there as JSON.
    """
    check_output(json_out, "--json")
    result = propose(
        _budget(flops, seconds, flops_per_second), families=families, noise=noise, gain=gain,
        target=target, law=surface(law), smallest=smallest, largest=largest,
    )  # fmt: skip
    design, screen = result.design, console()
    chosen = "as asked" if target is not None else "chosen: every grid searched has it"
    lines = {
        "sizes": ", ".join(f"{v:,.0f}" for v in design.sizes) + " parameters",
        "data": ", ".join(f"{v:.0f}" for v in design.tokens_per_param) + " tokens per parameter",
        "seeds": str(design.seeds),
        "runs": f"{result.runs} in {families} {'family' if families == 1 else 'families'}",
        "cost": f"{result.flops:.3g} FLOPs in all",
        "unused": result.unused,
        "window": "compare will read gains from {:.3g} to {:.3g} FLOPs".format(*result.window),
        "target": f"{result.target:.3g} FLOPs ({chosen})",
        "there, by the delta method": result.delta.words() if result.delta else "",
        "there, by simulation": result.simulated.words() if result.simulated else "",
        "read as": "half-widths of 90 % intervals; a is of N* ∝ C^a, N* and L* are parameters and "
        "loss of the best run that the target buys, CEG is a gain in compute",
        "answers": result.reason if result.status == "answers" else "",
        "next": f"train these runs into runs.csv, then isoflop compare runs.csv --n N --d D "
        f"--budgets {result.target:.3g}"
        if result.status == "answers"
        else "",
    }
    for name, told in lines.items():
        if told:
            screen.print(f"{name}: {told}", soft_wrap=True)
    if json_out is not None:
        write_json(json_out, result.json())
    if result.status == "refused":
        raise UserError(f"refused: {result.reason}")
    return result


def _budget(flops: float | None, seconds: float | None, flops_per_second: float | None) -> float:
    """Training FLOPs, told in one of two ways."""
    given = f"flops={flops}, seconds={seconds}, flops_per_second={flops_per_second}"
    for value in (flops, seconds, flops_per_second):
        if value is not None and not LEAST <= value <= MOST:
            raise UserError(f"a budget must be of numbers above zero, and is {given}; change it")
    if flops is not None and seconds is None and flops_per_second is None:
        return flops
    if flops is None and seconds is not None and flops_per_second is not None:
        return seconds * flops_per_second
    raise UserError(
        f"a plan needs one budget: --flops alone, or --seconds with --flops-per-second, and got "
        f"{given}; leave one out or add what is missing"
    )
