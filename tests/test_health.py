"""What is wrong with a run is told by rules, with the last good step."""

import jax
import numpy as np
import pytest
from fakes import run
from sources import refusal

from isoflop.models.lm import Block
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.moe import Moe
from isoflop.sim.spec import Budget
from isoflop.sim.train import health
from isoflop.sim.train.sharding import Layout


@pytest.fixture
def losses():
    """Of a healthy training: falling, with noise."""
    noise = np.random.default_rng(0).normal(size=2000) * 0.05
    return 2 + 3 * np.exp(-np.arange(2000) / 200) + noise


def test_a_healthy_training_has_no_spike_whatever_its_noise(losses):
    for scale in (0.0, 0.1, 1.0, 10.0):
        assert not health.spikes(scale * losses).size
    assert health.spiked(losses) == health.unsteady(losses) == ""


def test_a_spike_is_told_with_the_step_before_it(losses):
    losses[1499:1504] += 1.5
    assert health.spikes(losses)[0] == 1500
    said = health.spiked(losses)
    assert "loss spikes, the first at step 1500" in said
    assert f"the last good step is 1499 ({losses[1498]:.4g} nats)" in said


def test_a_loss_is_compared_with_the_thousand_before_it_alone():
    """The rule, written once more as a loop."""
    rng = np.random.default_rng(1)
    losses = 3 + 0.1 * rng.standard_t(3, size=1800)
    expected = [
        step + 1
        for step in range(health.LEAST, 1800)
        for before in [losses[max(0, step - 1000) : step]]
        if losses[step] > before.mean() + 7 * before.std()
    ]
    assert expected
    assert health.spikes(losses).tolist() == expected


def test_a_loss_that_is_not_finite_is_told_with_the_last_that_was(losses):
    bad = losses.copy()
    bad[700:] = np.nan
    assert health.unsteady(bad) == (
        "training loss was not finite at step 701; the last good step is 700 "
        f"({losses[699]:.4g} nats)"
    )
    bad[600] = 1e3
    assert "; before it, a loss spike at step 601" in health.unsteady(bad)
    bad[0] = np.inf
    assert health.unsteady(bad) == "training loss was not finite at step 1, the first"


FULL = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand so on"
)


def test_a_full_device_halves_the_micro_batches_until_they_are_single_sequences():
    runs = [run(budget=Budget(steps=20, batch=8, seq_len=16))]
    layout = Layout()
    for many in (2, 4, 8):
        layout = health.smaller(FULL, layout, runs)
        assert layout == Layout(micro_batches=many)
    told = refusal(health.smaller, FULL, layout, runs)
    assert told.startswith("out of memory with batch=8, seq_len=16 (RESOURCE_EXHAUSTED")
    assert "shorter sequences" in told


def test_experts_that_are_balanced_over_a_batch_are_not_cut_into_others():
    block = Block(mixer=Attention(n_heads=2), channel=Moe(n_experts=4, top_k=2, d_expert=16))
    model = run().model.model_copy(update={"blocks": (block,)})
    told = refusal(health.smaller, FULL, Layout(), [run(model=model)])
    assert "micro_batches=2 changes the loss of experts" in told


def test_another_error_of_the_device_is_raised_as_it_is():
    other = jax.errors.JaxRuntimeError("INTERNAL: the device fell off the bus")
    with pytest.raises(jax.errors.JaxRuntimeError, match="fell off"):
        health.smaller(other, Layout(), [run()])
