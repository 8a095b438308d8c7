"""Claims and their verdicts: a file for each body of claims, found by being here.

A module's `Claim`s are rows of `isoflop verdicts`, in the order in which they stand there:

    @claim("attention solves recall at constant width", source="2312.04927",
           setting="2 layers, widths 16 to 64", records=("recall",))
    def attention_recalls(rows: list[Row]) -> Finding:
        '''Reproduced if ...; not reproduced if ...; else not resolved.'''
        ...
        return Finding(holds=True, result="1.00 [.99, 1.00]", numbers={...})

`records` are names of files in experiments/results: `recall` is recall.jsonl, whose rows (of runs,
or of a measured table) are the function's arguments, in that order. Without the file the verdict is
"not run". `words=ACCOUNT` says held and refuted; `outside(...)` is a claim that nothing here can
decide.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from isoflop.sim.compare.verdicts import Claim, Verdict

RESULTS = Path(__file__).parents[1] / "results"


def files() -> list[str]:
    """Names of the modules here, as `literature`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def claims(file: str | None = None) -> list[Claim]:
    """All of them, or those of one file."""
    found = []
    for name in [file] if file else files():
        module = importlib.import_module(f"{__name__}.{name}")
        found += [value for value in vars(module).values() if isinstance(value, Claim)]
    return found


def verdicts(file: str | None = None, results: Path = RESULTS) -> list[Verdict]:
    """Every claim, judged by the records in `results`. Raises UserError for a damaged file."""
    return [claim.verdict(results) for claim in claims(file)]
