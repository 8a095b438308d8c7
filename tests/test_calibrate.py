"""Calibration: known coefficients are found again, and the committed ones are the table's."""

from pathlib import Path

import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.hardware import device
from isoflop.sim.cost.serving import Deployment
from isoflop.sim.cost.serving.calibrate import calibrate, fit
from isoflop.sim.cost.serving.calibration import calibration
from isoflop.sim.cost.serving.clock import times
from isoflop.sim.cost.serving.measured import measured, side_by_side
from isoflop.sim.cost.serving.points import read

POINTS = Path(__file__).parent / "fitdata" / "serving_points.csv"
TRUTH = calibration()


def model(depth, channel):
    return ModelConfig(
        d_model=4096, vocab_size=32_000,
        blocks=tile(depth, Block(mixer=Attention(n_heads=32, n_kv_heads=8), channel=channel)),
    )  # fmt: skip


MODELS = {
    "short": model(16, SwiGLU(d_ff=8192)),
    "long": model(48, SwiGLU(d_ff=8192)),
    "experts": model(24, Moe(n_experts=32, top_k=4, d_expert=2048)),
}


def points(name, chip, engine, noise=0.0, **split):
    """What the committed coefficients say of a deployment, times lognormal noise.

    All engines have the overheads of their mean, so that holding them alike costs nothing.
    """
    on = Deployment(MODELS[name], device(chip), engine=engine, name=name, **split)
    prompt, answer, users = np.meshgrid([256.0, 4096.0], [128.0, 1024.0], [1.0, 8.0, 64.0])
    shape = [values.ravel() for values in (prompt, answer, users)]
    asked = measured(on, name, *shape, np.ones(12), np.ones(12))
    found = np.array(times(asked.replica, asked.load, TRUTH.shared, TRUTH.engine("native")))
    rng = np.random.default_rng(len(name) + 7 * len(chip) + len(engine))
    return measured(on, name, *shape, *found * np.exp(noise * rng.standard_normal(found.shape)))


def world(noise=0.0):
    return [
        points("short", "H100", "vllm", noise),
        points("long", "H100", "vllm", noise, count=2),
        points("experts", "H100", "vllm", noise, count=4, expert=4),
        points("experts", "H200", "trtllm", noise, count=2, data=2, expert=2),
        points("short", "H200", "trtllm", noise, count=2),
        points("long", "B200", "trtllm", noise),
        points("experts", "B200", "vllm", noise),
    ]


@pytest.fixture(scope="module")
def table():
    return world()


def test_points_side_by_side_take_the_times_that_their_deployments_say(table):
    own = [times(m.replica, m.load, TRUTH.shared, TRUTH.engine("vllm")) for m in table]
    together = side_by_side(table)
    engine = {name: np.full(len(together), v) for name, v in TRUTH.engine("vllm").items()}
    assert np.array(together.times(TRUTH.shared, engine)) == pytest.approx(
        np.concatenate(own, axis=1), rel=1e-12
    )
    some = together.take(np.array([5, 5, 40]))
    picked = {name: values[:3] for name, values in engine.items()}
    assert np.array(some.times(TRUTH.shared, picked)) == pytest.approx(
        np.concatenate(own, axis=1)[:, [5, 5, 40]], rel=1e-12
    )


def test_times_of_known_coefficients_are_found_again(table):
    """Not each coefficient: parts that seven deployments do not tell apart share their seconds."""
    together = side_by_side(table)
    assert np.abs(fit(together).errors(together)).max() < 0.02


def test_noise_is_what_the_intervals_say_and_unseen_deployments_are_inside():
    found = calibrate(world(0.1), "a world that is known", refits=3)
    seen = found.checks["deployments"]
    assert seen.points == 84
    assert 0.08 < seen.tpot < 0.25
    assert seen.ttft_inside > 0.75
    assert seen.tpot_inside > 0.75
    assert set(found.spreads) == {
        "vllm, dense",
        "vllm, MoE",
        "trtllm, dense",
        "trtllm, MoE",
        "unseen",
    }
    for spread in found.spreads.values():
        assert 0.05 < spread.tpot < 0.4


def test_too_few_deployments_are_refused(table):
    with pytest.raises(UserError, match=r"needs 5 deployments .* and these points are of 2"):
        calibrate(table[:2], "two")


def test_90_percent_intervals_hold_85_to_95_percent_of_deployments_that_were_held_out():
    """Of the committed file: each fold by the errors of the other folds."""
    seen = TRUTH.checks["deployments"]
    assert seen.points == TRUTH.points == 1523
    assert 0.85 <= seen.ttft_inside <= 0.95
    assert 0.85 <= seen.tpot_inside <= 0.95


@pytest.mark.slow
def test_the_committed_calibration_is_that_of_the_committed_points():
    found = calibrate(read(POINTS).deployments, TRUTH.source)
    for name, value in TRUTH.shared.items():
        assert found.shared[name] == pytest.approx(value, rel=0.01, abs=1e-3), name
    for name, check in TRUTH.checks.items():
        assert found.checks[name].tpot == pytest.approx(check.tpot, abs=0.01)
        assert found.checks[name].ttft == pytest.approx(check.ttft, abs=0.01)
