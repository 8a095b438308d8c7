"""`isoflop verdicts`: what the committed records say of the claims of others."""

from __future__ import annotations

from pathlib import Path

from isoflop import experiments
from isoflop.experiments import claims
from isoflop.experiments.cli.flags import Usage
from isoflop.experiments.cli.text import print_json, visible
from isoflop.sim.records.readers import finite


def verdicts(file: str = "", records: Path = claims.RESULTS, json: bool = False) -> None:
    """Judge published claims by committed records: the rule, the result with its interval, and
    whether the claim is reproduced, not reproduced, not resolved or not run.

    Args:
        file: the claims of one file of experiments/claims, as literature; all by default.
        records: the folder of the records, as `isoflop records` writes them.
        json: print JSON instead of text.
    """
    if file:
        experiments.pick(file, claims.files(), "file of claims called")
    if not records.is_dir():
        raise Usage(f"there is no folder {records}; name one that holds NAME.jsonl")
    found = claims.verdicts(file or None, records)
    if json:
        print_json(finite([verdict.json() for verdict in found]))
        return
    for verdict in found:
        claim = verdict.claim
        print(f"{verdict.word.upper()}: {claim.claim} ({claim.source})")
        told = {"setting": claim.setting, "rule": claim.rule, "result": verdict.result}
        print("\n".join(f"  {name:8} {visible(text)}" for name, text in told.items()), end="\n\n")
