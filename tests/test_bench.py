"""The benchmark's table is whole, and its shares are arithmetic on its seconds."""

import pytest

from isoflop import experiments
from isoflop.experiments import bench
from isoflop.experiments.families import model
from isoflop.models.errors import UserError
from isoflop.sim.evaluate import context
from isoflop.sim.evaluate.probe import probe

SHAPE = bench.Shape(width=32, depth=1, seq_len=16, batch=2)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """With a product for the training step, which takes seconds to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SHAPES", {"tiny": SHAPE})
        patch.setattr(bench, "MATMULS", (16, 32))
        patch.setitem(context.PROGRAMS, "train_step", lambda *_: bench.matmul(8))
        return bench.measure(families=("linear",), shapes=("tiny",), repeats=3)


def test_a_row_has_its_shape_and_every_number(rows):
    assert [row["program"] for row in rows] == ["train_step", "prefill", "decode"]
    for row in rows:
        assert bench.Shape(**{name: row[name] for name in SHAPE._fields}) == SHAPE
        assert (row["family"], row["shape"]) == ("linear", "tiny")
        words = ("family", "shape", "program", "device")
        assert all(value > 0 for name, value in row.items() if name not in words)


def test_seconds_and_shares_are_medians_of_turns_and_their_ranges_the_ends():
    """The share of a turn is over that turn's peak: its median is not that of the medians."""
    config, fake = model("dense", 32, 1), probe(lambda state: (state, state), 1.0)
    work = 3 * config.cost(16, 2).matmul_flops
    turns, peaks = (4.0, 1.0, 2.0), [work / 2.0, work / 0.1, work / 0.6]
    row = bench._row("tiny", SHAPE, "train_step", "dense", config, fake, turns, peaks)
    assert [row[f"seconds{end}"] for end in ("_low", "", "_high")] == [1, 2, 4]
    shares = [row[f"matmul_share{end}"] for end in ("_low", "", "_high")]
    assert shares == pytest.approx([0.1, 0.3, 0.5])


def test_tokens_per_second_are_those_of_the_median(rows):
    step, prompt, token = (row["tokens_per_second"] * row["seconds"] for row in rows)
    assert (step, prompt, token) == pytest.approx((2 * 16, 2 * 16, 2))


def test_the_share_is_work_over_time_over_the_best_product_of_the_same_turn():
    config, fake = model("dense", 32, 1), probe(lambda state: (state, state), 1.0)
    work = 3 * config.cost(16, 2).matmul_flops
    turns, peaks = (1.0, 2.0), [work / 0.5, work / 1.0]
    row = bench._row("tiny", SHAPE, "train_step", "dense", config, fake, turns, peaks)
    assert row["matmul_share_low"] == row["matmul_share_high"] == pytest.approx(0.5)


def test_a_prompt_counts_one_tokens_logits_and_a_token_its_own_products():
    config = model("dense", 32, 1)
    prompt, whole = bench.matmul_flops("prefill", config, SHAPE), config.cost(16, 2).matmul_flops
    assert whole - prompt == 2 * 2 * 15 * 32 * config.vocab_size
    token = bench.matmul_flops("decode", config, SHAPE)
    assert token == config.step_cost(16, 2).matmul_flops


def test_a_matrix_product_is_the_product_and_costs_no_copy():
    square = bench.matmul(16)
    left, right = square.state, square.args[0]
    expected = left @ right
    handed_on, result = square.function(square.state, *square.args)
    assert (result == expected).all()
    assert handed_on.shape == (16, 16)
    assert square.memory_bytes < 4 * 16 * 16 * 4  # three matrices and some pointers


def test_a_shape_is_a_name_or_four_sizes():
    shapes = bench.read(("long", "64x2x1024x16"), ("decode",), 1)
    assert shapes == {"long": (64, 2, 8192, 1), "64x2x1024x16": (64, 2, 1024, 16)}
    for wrong in ("64x2x1024", "64x2x1024x0", "64x2x1024x1e3"):
        with pytest.raises(experiments.Unknown, match=f"no shape {wrong}"):
            bench.read((wrong,), (), 1)


def test_unknown_shapes_and_no_repeats_are_refused_before_anything_is_compiled():
    with pytest.raises(experiments.Unknown, match="no shape smal; perhaps you meant small"):
        bench.measure(shapes=("smal",))
    with pytest.raises(experiments.Unknown, match="no program train; perhaps you meant train_step"):
        bench.measure(programs=("train",))
    with pytest.raises(UserError, match="repeats=0 must be at least 1"):
        bench.measure(repeats=0)
