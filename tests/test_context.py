"""What the context experiment claims without a clock, and that its table is whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isoflop.experiments import context as experiment
from isoflop.experiments.families import model
from isoflop.models.base import Cost, Init
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare import slopes
from isoflop.sim.evaluate import context, machine
from isoflop.sim.evaluate import probe as timing

LENGTHS = (16, 8)  # any order
SMALL = {"MATMULS": (8,), "CACHED": 64, "COPIED": (64,)}  # arrays that a machine is measured by


def fake(result: object = 1.0) -> timing.Probe:
    return timing.Probe(lambda state: (state, result), None, (), 1.0, 1.0, 100)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Compiling a training step takes seconds: one stands alone below, here it is a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_step", "prefill"):
            patch.setitem(context.PROGRAMS, name, lambda config, seq_len, batch: fake())
        for name, size in SMALL.items():
            patch.setattr(machine, name, size)
        return experiment.measure(("linear",), LENGTHS, width=32, depth=1, repeats=2)


def at(rows: list[dict], quantity: str) -> list[dict]:
    return [row for row in rows if row["quantity"] == quantity]


def test_every_quantity_has_a_row_for_every_length_in_order(rows):
    assert [(row["family"], row["quantity"], row["seq_len"]) for row in rows] == [
        ("linear", quantity, length)
        for quantity in context.QUANTITIES
        for length in sorted(LENGTHS)
    ]


def test_a_value_is_the_median_of_its_turns_and_its_range_their_ends(monkeypatch):
    turns = {8: (3.0, 1.0, 2.0), 16: (6.0, 5.0, 4.0)}
    for name in context.PROGRAMS:
        monkeypatch.setitem(context.PROGRAMS, name, lambda *_: fake())
    monkeypatch.setattr(
        context,
        "interleave",
        lambda probes, repeats, tell: {
            key: turns[key[2]] if isinstance(key, tuple) else (1.0, 1.0) for key in probes
        },
    )
    for row in experiment.measure(("linear",), LENGTHS, context.TIMED, width=32, depth=1):
        low, middle, high = sorted(turns[row["seq_len"]])
        assert (row["low"], row["value"], row["high"]) == (low, middle, high)


def test_the_first_length_has_no_slope_and_every_later_one_has(rows):
    assert all(("slope" in row) == (row["seq_len"] > min(LENGTHS)) for row in rows)


def test_the_rows_are_what_the_figure_draws(rows):
    for quantity in slopes.QUANTITIES:
        assert [m["value"] for m in slopes.series(rows, quantity)["linear"]] == [
            row["value"] for row in at(rows, quantity)
        ]


def test_a_measurement_stands_beside_what_its_cost_takes_at_least(rows):
    for quantity in context.QUANTITIES:
        for row in at(rows, quantity):
            if quantity in context.WEIGHED:
                assert "predicted" not in row
                continue
            assert row["ratio"] == row["value"] / row["predicted"] > 0
    assert {row["ratio"] for row in at(rows, "state_bytes")} == {1.0}


def test_a_prediction_is_the_roofline_of_the_exact_cost():
    config, fast = model("dense", 64, 2), machine.Machine(100.0, 10.0, ((1, 1e9),))
    cost, unread = config.cost(32, 2), 2 * 2 * 31 * config.d_model * config.vocab_size
    assert machine.predicted(fast, config, "train_step_seconds", 32, 2) == pytest.approx(
        3 * cost.matmul_flops / 100 + 3 * cost.elementwise_flops / 10
    )
    assert machine.predicted(fast, config, "prefill_seconds", 32, 2) == pytest.approx(
        (cost.matmul_flops - unread) / 100 + cost.elementwise_flops / 10
    )
    slow = machine.Machine(1e30, 1e30, ((1, 4.0),))
    state = config.state_size(32)
    for quantity, numbers in {
        "train_step_seconds": 7 * cost.params,
        "prefill_seconds": cost.params + 2 * state,
        "decode_seconds": cost.params - config.vocab_size * config.d_model + 2 * state,
        "state_bytes": 4 * state,
    }.items():
        found = machine.predicted(slow, config, quantity, 32, 2)
        assert found == pytest.approx(numbers, rel=0.02), quantity


def test_bytes_move_at_the_rate_of_the_smallest_array_that_holds_them():
    here = machine.Machine(1.0, 1.0, ((100, 50.0), (1000, 5.0)))
    assert [here.seconds(Cost(), n) for n in (100, 101, 2000)] == [2, 101 / 5, 400]


def test_rates_are_the_work_of_a_turn_over_its_seconds(monkeypatch):
    for name, size in SMALL.items():
        monkeypatch.setattr(machine, name, size)
    seconds = {"matmul 8": 2.0, "elementwise": 4.0, "copy 64": 0.5}
    assert machine.rates(seconds) == machine.Machine(512, 64 * 64 / 2, ((256, 2048.0),))
    assert machine.probes().keys() == seconds.keys()
    assert all(item.seconds() > 0 for item in machine.probes().values())


@pytest.mark.parametrize("family", zoo.FAMILIES)
@pytest.mark.parametrize("length", [128, 8192])
def test_state_bytes_are_those_of_the_configs_arithmetic(family, length):
    config = model(family, 64, 2)
    assert context.state_bytes(config, length) == 4 * config.state_size(length)


def test_a_bfloat16_cache_takes_half_the_bytes_and_recurrent_states_stay_fp32():
    def half(config: ModelConfig) -> ModelConfig:
        return config.model_copy(update={"dtype": "bfloat16"})

    dense, linear = model("dense", 64, 2), model("linear", 64, 2)
    positions = 2 * 4  # one int32 in each of two layers
    full = context.state_bytes(dense, 256) - positions
    assert context.state_bytes(half(dense), 256) - positions == full / 2
    assert context.state_bytes(half(linear), 256) == context.state_bytes(linear, 256)


STATE_SLOPE = {"dense": 1, "moe": 1, "mamba": 0, "linear": 0, "gla": 0}


@pytest.mark.parametrize("family", STATE_SLOPE)
def test_decoding_state_is_linear_for_attention_and_constant_for_recurrences(family):
    rows = experiment.measure(
        families=(family,), lengths=(1024, 2048, 4096, 8192), quantities=("state_bytes",)
    )
    assert [row["slope"] for row in rows[1:]] == pytest.approx([STATE_SLOPE[family]] * 3, abs=0.001)


def test_a_repeated_training_step_computes_the_same():
    step = context.train_step(model("dense", 32, 1), 8)
    losses = []
    for _ in range(2):
        step.state, loss = step.function(step.state, *step.args)
        losses.append(loss.tolist())
    assert losses[0] == losses[1]
    assert (loss > 0).all()


def test_a_call_of_several_steps_tells_the_seconds_of_one(monkeypatch):
    """Three losses come back, and a call that takes six seconds is three steps of two."""
    step = context.train_step(model("dense", 32, 1), 8)
    _, losses = step.function(step.state, *step.args)
    assert losses.shape == (context.STEPS, 1) == (3, 1)
    assert (losses > 0).all()
    clock = iter((10.0, 16.0))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    step.function = lambda state, *args: (state, losses)
    assert step.seconds() == pytest.approx(2.0)


def test_prefill_and_decode_are_the_models_own():
    config = model("linear", 32, 1)
    graph, params = nnx.split(config.build(init=Init(0)))
    lm = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
    read, write = context.prefill(config, 8), context.decode(config, 8)
    logits, after = read.function(read.state, *read.args)[1]
    whole = jax.jit(lm.prefill)(lm.init_state(1, 8), jnp.asarray(read.args[0]))[0]
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(
        logits, jax.jit(lm)(*map(jnp.asarray, read.args))[0][:, -1], atol=1e-4
    )

    state, token = lm.init_state(1, 8), jnp.asarray(write.args[0])
    step = jax.jit(lm.step)
    for _ in range(context.DECODED):
        state, logits = step(state, token)
        token = logits.argmax(-1)
    assert (write.function(write.state, *write.args)[1] == token).all()
    assert write.share * context.DECODED == 1


def test_decoding_again_never_writes_past_the_state():
    """Calls are repeated on one state; attention would be NaN, which experts' routes depend on."""
    write = context.decode(model("dense", 32, 1), context.DECODED)
    first = write.function(write.state, *write.args)
    second = write.function(first[0], *write.args)
    assert (first[1] == second[1]).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(second[0]))
    with pytest.raises(UserError, match="16 tokens at a time, but a state for seq_len=15 takes 15"):
        context.decode(model("dense", 32, 1), context.DECODED - 1)


def test_turns_alternate_between_programs_and_the_first_is_not_counted():
    calls: list[str] = []

    def log(name: str) -> timing.Probe:
        return timing.Probe(lambda state: (calls.append(name), 1.0), None, (), 1.0, 1.0, 100)

    seconds = timing.interleave({name: log(name) for name in "ab"}, repeats=2)
    assert "".join(calls) == "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_slope_pairs_each_turn_with_itself():
    turns = {1024: (1.0, 10.0, 100.0), 4096: (4.0, 40.0, 1600.0)}  # linear, on a slowing machine
    first, second = context._line("dense", "prefill_seconds", turns)
    assert "slope" not in first
    assert second["slope"] == pytest.approx(1)
    assert (second["low"], second["value"], second["high"]) == (4, 40, 1600)


MISTAKES = {
    "there is no family 'transformer'; use one of dense": {"families": ("transformer",)},
    "lengths must be at least 1 token, got 0": {"lengths": (0, 128)},
    "repeats=0 must be at least 1": {"repeats": 0},
    "there is no quantity seconds; use one of train_step": {"quantities": ("seconds",)},
    "at least one family, one length and one quantity": {"lengths": ()},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_before_anything_is_compiled(words, monkeypatch):
    monkeypatch.setattr(context, "probe", None)
    with pytest.raises(UserError, match=words):
        experiment.measure(**MISTAKES[words])
