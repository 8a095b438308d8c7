"""Apply treatments to finished runs and keep what came of it: `sim.treatments.base` by the runs.

A result has a key of its own, a digest of the run's and of the treatments in their order, and lies
in the run's folder. What is there is not computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from isoflop.models.base import Config
from isoflop.models.errors import UserError
from isoflop.sim.cost.flops import param_counts
from isoflop.sim.durable import unwritable, write
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.records.metrics import Metric, measured
from isoflop.sim.records.store import brief
from isoflop.sim.treatments.base import AnyTreatment, Ledger, Subject, Treatment, judge, key

FOLDER = "treated"


class Treated(Config):
    """A treated run: what it predicts on the held-out tokens that the run was judged on, its own
    data's and those of its further evaluation sets, and what it costs.
    """

    key: str
    run: str  # the key of the run that was treated
    treatments: tuple[AnyTreatment, ...]
    metrics: dict[str, Metric]  # of the treated model (sim/records/metrics.py)
    plain: dict[str, Metric]  # of the run as it was, on the same tokens
    changes: dict[str, Metric]  # loss, NAME.loss: treated − plain, token by token, with the
    # difference's own standard error
    params: dict[str, int]  # of the treated model, by PARAMETERS
    chosen: dict[str, float] = Field(default_factory=dict)  # what a treatment chose by itself
    ledger: Ledger
    plain_ledger: Ledger

    @property
    def change(self) -> Metric:
        """Of the loss on the run's own data."""
        return self.changes["loss"]

    def over(self, control: Treated) -> Treated:
        """Compared with the same run under another treatment instead of the run as it was, to which
        only costs stay compared; a change's standard error is that of two changes that know nothing
        of each other. Raises UserError for another run's.
        """
        if control.run != self.run:
            raise UserError(
                f"a control is of the same run, and is of {control.run} beside {self.run}; apply "
                "it to that"
            )

        def less(change: Metric, other: Metric) -> Metric:
            error = math.hypot(change.se or 0.0, other.se or 0.0)
            return change.model_copy(update={"value": change.value - other.value, "se": error})

        changes = {name: less(one, control.changes[name]) for name, one in self.changes.items()}
        return self.model_copy(update={"changes": changes, "plain": control.metrics})


def apply(run: str | Path, treatments: Sequence[Treatment], runs: Path = Path("runs")) -> Treated:
    """The treated run, from its folder if it lies there. Raises UserError for what is no run, for
    one without weights, and for one that cannot be treated so.
    """
    checkpoint = Checkpoint.load(run, runs)
    plain = Subject.of(checkpoint)
    name = key(plain.run, tuple(treatments))
    path = checkpoint.folder / FOLDER / f"{name}.json"
    if path.is_file():
        return _read(path)
    subject = plain
    for one in treatments:
        subject = one.apply(subject)
    metrics: dict[str, Metric] = {}
    reference: dict[str, Metric] = {}
    changes: dict[str, Metric] = {}
    for split in plain.run.splits:
        source = split.data.open()
        batch = split.draw(source)
        before, after = judge(plain, batch), judge(subject, batch)
        if not np.isfinite(after[0]).all():
            raise UserError(
                f"the treated model's loss is not a finite number; {_told(treatments)} is too much "
                f"for run {plain.run.key}"
            )
        weights = np.ones_like(before[0]) if batch.weights is None else batch.weights
        for into, (nats, correct) in ((reference, before), (metrics, after)):
            found = measured(
                (weights * nats).mean(-1), nats, correct, batch.weights, source.bytes_per_token
            )
            into |= {split.metric(name): value for name, value in found.items()}
        changes[split.metric("loss")] = _change(after[0], before[0], weights)
    treated = Treated(
        key=name,
        run=plain.run.key,
        treatments=tuple(treatments),
        metrics=metrics,
        plain=reference,
        changes=changes,
        params=param_counts(subject.model),
        chosen=dict(subject.chosen),
        ledger=subject.ledger,
        plain_ledger=plain.ledger,
    )
    try:
        path.parent.mkdir(exist_ok=True)
        write(path, treated.model_dump_json().encode())
    except OSError as error:
        raise unwritable(path, error) from error
    return treated


def of_runs(keys: Sequence[str], runs: Path) -> list[Treated]:
    """What was applied to these runs in a runs directory, by run and key."""
    return [_read(path) for key in keys for path in sorted((runs / key / FOLDER).glob("*.json"))]


def _change(after: np.ndarray, before: np.ndarray, weights: np.ndarray) -> Metric:
    """Weighted mean of the differences, with its standard error over sequences."""
    mean = float(weights.mean(dtype=np.float64))
    value = (weights * (after - before)).mean(-1, dtype=np.float64) / mean
    share = weights.mean(-1, dtype=np.float64) / mean
    middle = float(value.mean())
    error = float(np.std(value - middle * share, ddof=1) / np.sqrt(len(value)))
    return Metric(value=middle, se=error, count=int((weights > 0).sum()))


def _read(path: Path) -> Treated:
    try:
        return Treated.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        said = brief(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is no treated run ({said}); delete it to apply again") from None


def write_treated(path: Path, found: Sequence[Treated]) -> None:
    """One a line: how they are committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, b"".join(one.model_dump_json().encode() + b"\n" for one in found))


def read_treated(path: Path) -> list[Treated]:
    """What `write_treated` wrote. UserError naming the line that is none."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; apply treatments first")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(Treated.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}:{number} is no treated run ({brief(error)})") from None
    return rows


def _told(treatments: Sequence[Treatment]) -> str:
    return ", ".join(json.dumps(one.model_dump(mode="json")) for one in treatments)
