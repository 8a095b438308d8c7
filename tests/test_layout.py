"""A job split over devices, or over time, computes what one device computes at once."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import eight
import jax
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import Embedding, Matrix
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.data import Batch, Corpus
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Run
from isoflop.sim.train.loop import train
from isoflop.sim.train.program import Program
from isoflop.sim.train.sharding import ONE_DEVICE, RULES, Layout, partition

ROOT = Path(eight.__file__).parent.parent
# recurrences take long to compile for eight devices; the bias's experts are experts
SPLIT = [
    pytest.param(family, layout, marks=[pytest.mark.slow] * (family in ("moe", "mamba", "delta")))
    for family, layouts in eight.LAYOUTS.items()
    for layout in layouts
]


@cache
def simulated(family: str) -> dict:
    """What tests/eight.py computed on eight devices."""
    command = [sys.executable, eight.__file__, family]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / ".package")},
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("family", "layout"), SPLIT, ids=str)
def test_losses_on_eight_devices_equal_those_on_one(family, layout):
    one, all_ = (
        simulated(family)[eight.name(family, how)]["losses"] for how in (ONE_DEVICE, layout)
    )
    assert len(all_) == eight.STEPS
    np.testing.assert_allclose(all_, one, rtol=1e-5)


def test_every_device_holds_its_share_of_weights_and_moments_after_a_step():
    dense, moe = simulated("dense"), simulated("steered")
    assert set(dense["dense"]["share"]) == {1.0}
    assert set(dense["dense fsdp=8"]["share"]) == {1 / 8}
    assert set(dense["dense data=2 fsdp=2 tensor=2"]["share"]) == {1 / 4}
    assert min(moe["steered fsdp=2 tensor=2 expert=2"]["share"]) == 1 / 8


@pytest.mark.parametrize(("family", "layout"), SPLIT, ids=str)
def test_a_trunk_saved_on_eight_devices_is_taken_up_there_on_four_or_on_one(family, layout):
    assert simulated(family)[eight.name(family, layout)]["restored"]


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_weight_names_its_axes_and_most_can_be_split(family):
    """The declaration beside each layer is all that a layout knows of a mixer."""
    params = nnx.state(zoo.FAMILIES[family](256, 4).abstract())
    weights = [v for _, v in nnx.to_flat_state(params) if isinstance(v, Matrix | Embedding)]
    for weight in weights:
        assert len(weight.axes) == weight.get_value().ndim
    split = [weight for weight in weights if "d" in weight.axes and RULES.keys() & set(weight.axes)]
    assert sum(v.get_value().size for v in split) > 0.9 * sum(v.get_value().size for v in weights)


def gradient(channel, micro_batches: int):
    block = Block(mixer=Attention(n_heads=2), channel=channel)
    model = ModelConfig(d_model=16, vocab_size=64, blocks=(block,))
    program = Program(model, AdamW(lr=0.01), micro_batches=micro_batches)
    params = jax.tree.map(lambda leaf: leaf[0], program.init([0])[0])
    tokens = np.random.default_rng(0).integers(64, size=(8, 9), dtype=np.int32)
    return jax.jit(program.gradient)(params, Batch(tokens))


@pytest.mark.parametrize(
    "channel",
    [
        SwiGLU(d_ff=32),
        Moe(n_experts=4, top_k=2, d_expert=16, steered=True, balance_weight=0.0),
    ],
    ids=["dense", "steered"],
)
def test_the_mean_over_micro_batches_is_the_whole_batch(channel):
    whole, parts = gradient(channel, 1), gradient(channel, 4)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * float(abs(one).max()))


def test_a_record_says_how_its_job_was_laid_out_and_its_key_does_not():
    budget = Budget(steps=4, batch=4, seq_len=16, eval_tokens=64)
    optim = AdamW(lr=0.01, warmup_steps=1)
    run = Run(model=zoo.mingru(32, 1), data=Corpus(name="kjv"), optim=optim, budget=budget)
    record, _ = next(train([run], layout=Layout(micro_batches=2)))
    assert record.layout == {"micro_batches": 2}
    assert (record.key, record.status) == (run.key, "ok")


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(data=3), r"batch=8 must be a multiple of .*=3; choose"),
        (Layout(data=4, micro_batches=4), r"batch=8 must be a multiple of .*micro_batches=16"),
        (Layout(fsdp=8), r"fsdp=8 must divide axis d of .*, which is 36; choose a divisor"),
        (Layout(tensor=8), r"tensor=8 must divide axis i of blocks\.0\.mixer.*, which is 36"),
        (Layout(expert=4), r"expert=4 must divide axis e of .*, which is 6"),
        (Layout(micro_batches=2), r"micro_batches=2 changes the loss of experts"),
    ],
    ids=str,
)
def test_what_does_not_divide_is_told_without_arrays(layout, said):
    channel = Moe(n_experts=6, top_k=2, d_expert=64)
    block = Block(mixer=Attention(n_heads=2), channel=channel)
    model = ModelConfig(d_model=36, vocab_size=64, blocks=(block,))
    with pytest.raises(UserError, match=said):
        layout.check(model, 8)


def test_too_few_devices_are_told_with_a_way_to_simulate_them():
    with pytest.raises(UserError, match=r"fsdp=64 needs 64 devices and there are .*_count=64"):
        Layout(fsdp=64).mesh()


def test_a_seed_batch_is_never_split():
    weight = Matrix(np.zeros((3, 8, 4)), axes="di")
    assert tuple(partition(weight, {"fsdp": 2, "tensor": 2})) == (None, "fsdp", "tensor")
