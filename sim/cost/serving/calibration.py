"""The coefficients in use, with their intervals, and how wrong they have been for whom.

A deployment's class is its engine and its kind of model. Of a class that was measured, the errors
are those on deployments (model × chip × engine) that were held out; of one that was not, or on a
chip that was not, those on whole chips and whole families of models that were held out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.serving.clock import ENGINE, SHARED
from isoflop.sim.cost.serving.deployment import Deployment
from isoflop.sim.cost.serving.work import routed

FILE = "calibration.json"
UNSEEN = "unseen"


@dataclass(frozen=True)
class Spread:
    """Log errors (measured over predicted): standard deviations that hold 90 % within 1.645."""

    ttft: float
    tpot: float
    correlation: float
    points: int

    @property
    def covariance(self) -> NDArray[np.float64]:
        both = self.correlation * self.ttft * self.tpot
        return np.array([[self.ttft**2, both], [both, self.tpot**2]])


@dataclass(frozen=True)
class Check:
    """Of points that no fit had seen: their errors, and how many were where they were expected."""

    points: int
    ttft: float  # mean |predicted / measured − 1|
    tpot: float
    ttft_inside: float  # share inside the 90 % intervals that the errors of other points give
    tpot_inside: float


@dataclass(frozen=True)
class Calibration:
    """What `isoflop serve calibrate` writes."""

    source: str
    points: int
    chips: tuple[str, ...]
    shared: Mapping[str, float]
    engines: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, tuple[float, float]]  # 90 %, of `name` or `engine.name`
    spreads: Mapping[str, Spread]  # by class, and UNSEEN
    checks: Mapping[str, Check]  # by what was held out

    def engine(self, name: str) -> Mapping[str, float]:
        """An engine's overheads; of one that was not measured, the mean over those that were."""
        if name in self.engines:
            return self.engines[name]
        rows = list(self.engines.values())
        return {key: float(np.mean([row[key] for row in rows])) for key in ENGINE}

    def spread(self, on: Deployment) -> tuple[str, Spread]:
        """The class, in words, and its errors."""
        own = class_of(on.engine, on.model)
        named = f"{own} on {on.device.name}"
        if own not in self.spreads:
            return f"{named}: this class was not measured", self.spreads[UNSEEN]
        if on.device.name not in self.chips:
            return f"{named}: this chip was not measured", self.spreads[UNSEEN]
        spread = self.spreads[own]
        return f"{named}: {spread.points} measured points", spread

    def json(self) -> str:
        return json.dumps(_rounded(asdict(self)), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    """Four digits of every number: coefficients are known to fewer."""
    if isinstance(value, Mapping):
        return {name: _rounded(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(own) for own in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def class_of(engine: str, model: ModelConfig) -> str:
    """Engine and kind of model."""
    return f"{engine}, {kind_of(model)}"


def kind_of(model: ModelConfig) -> str:
    """Recurrent, where any state stays as it is when the context grows; else MoE or dense."""
    mixers = {block.mixer for block in model.blocks if block.mixer is not None}
    long = 2**20
    if any(m.state_size(model.d_model, long) == m.state_size(model.d_model, long // 2)
           and not getattr(m, "window", None) for m in mixers):  # fmt: skip
        return "recurrent"
    channels = {block.channel for block in model.blocks if block.channel is not None}
    return "MoE" if any(map(routed, channels)) else "dense"


def read(path: Path) -> Calibration:
    """A calibration's file. Raises UserError for one that is none."""
    try:
        return _calibration(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} must be a calibration as `isoflop serve calibrate` writes it ({error}); "
            "write it again"
        ) from None


@cache
def calibration() -> Calibration:
    """The committed one."""
    file = resources.files(__package__) / FILE
    return _calibration(json.loads(file.read_text()))


def _calibration(found: Any) -> Calibration:
    own = dict(found)
    own["chips"] = tuple(own["chips"])
    own["intervals"] = {name: (low, high) for name, (low, high) in own["intervals"].items()}
    own["spreads"] = {name: Spread(**spread) for name, spread in own["spreads"].items()}
    own["checks"] = {name: Check(**check) for name, check in own["checks"].items()}
    calibrated = Calibration(**own)
    for names, row in (
        (SHARED, own["shared"]),
        *((ENGINE, e) for e in own["engines"].values()),
    ):
        if set(names) != set(row):
            raise KeyError(f"coefficients must be {', '.join(names)}")
    return calibrated
