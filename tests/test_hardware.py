"""Published rooflines and bills, to be met from configurations alone."""

import csv
from pathlib import Path

import pytest

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mamba import Mamba
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.cost import hardware
from isoflop.sim.cost.hardware import Work, decode, dollars, flat, joules, roofline

GPT_FAST = Path(__file__).parent / "fitdata" / "gptfast_a100.csv"
DAY = 24 * 3600


def llama(
    d_model: int, depth: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int
) -> ModelConfig:
    attention = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads)
    block = Block(mixer=attention, channel=SwiGLU(d_ff=d_ff))
    return ModelConfig(d_model=d_model, vocab_size=vocab_size, blocks=tile(depth, block))


LLAMA_2_7B = llama(4096, 32, 32, 32, 11008, 32000)
LLAMA_3_70B = llama(8192, 80, 64, 8, 28672, 128256)


@pytest.fixture
def gpt_fast() -> list[dict[str, str]]:
    with GPT_FAST.open(newline="") as file:
        return list(csv.DictReader(file))


def test_gpt_fast_reads_llama_7b_at_69_percent_of_an_a100s_bandwidth(gpt_fast):
    best = next(row for row in gpt_fast if row["technique"] == "bf16")
    assert (best["model"], float(best["tokens_per_s"])) == ("Llama-2-7B", 104.9)
    work = Work(0, float(best["bytes_per_param"]) * float(best["params_total"]))
    least = roofline(work, hardware.device("A100-80"))
    assert least.bound == "memory"
    assert least.seconds * float(best["tokens_per_s"]) == pytest.approx(0.69, abs=0.005)


def test_our_count_of_llama_7bs_traffic_agrees_with_gpt_fasts(gpt_fast):
    """Theirs is tokens/s times their weights (embedding left out) in bytes per second."""
    work = decode(LLAMA_2_7B, context=200)
    assert 104.9 * work.bytes == pytest.approx(1397.31e9, rel=0.01)


def test_no_measured_decode_beats_the_roofline(gpt_fast):
    assert len(gpt_fast) == 20
    for row in gpt_fast:
        work = Work(0, float(row["bytes_per_param"]) * float(row["params_total"]))
        least = roofline(work, hardware.device("A100-80"), chips=int(row["n_gpu"]))
        assert least.seconds * float(row["tokens_per_s"]) < 1, row


def test_llama_3_70b_in_int8_on_8_v5e_takes_17_ms_a_step():
    work = decode(LLAMA_3_70B, context=8192, batch=32, weight_bytes=1, state_bytes=1)
    least = roofline(work, hardware.device("v5e"), chips=8)
    assert work.bytes / 1e9 == pytest.approx(112, abs=1)
    assert least.bound == "memory"
    assert round(1000 * least.seconds) == 17


def test_deepseek_v3s_day_costs_87072_dollars():
    price = flat(2.0, "2025-02", "DeepSeek-V3/R1 inference system overview")
    assert dollars(price, DAY, chips=226.75 * 8) == (87_072, 87_072, 87_072)


def test_a_large_batch_touches_every_expert_and_one_sequence_touches_the_active_ones():
    model = zoo.moe(64, 2)
    cost, table = model.cost(1), model.vocab_size * model.d_model
    assert model.touched_params(1) == cost.active_params - table + model.d_model
    assert model.touched_params(10_000) == pytest.approx(cost.params)
    between = [model.touched_params(batch) for batch in (1, 2, 4, 8, 16)]
    assert between == sorted(between)


def test_without_experts_every_weight_but_the_unused_embeddings_is_touched():
    model = zoo.dense(64, 2)
    rows = (3 - model.vocab_size) * model.d_model
    assert model.touched_params(3) == model.cost(1).params + rows
    tied = model.model_copy(update={"tie_embeddings": True})
    assert tied.touched_params(3) == tied.cost(1).params


def test_a_training_step_is_compute_bound_and_three_forward_passes():
    work = hardware.train_step(LLAMA_2_7B, seq_len=4096, batch=4)
    assert work.flops == 3 * LLAMA_2_7B.cost(4096, 4).flops
    assert roofline(work, hardware.device("H100")).bound == "compute"


def test_chips_share_work_and_joules_and_dollars_count_each():
    work, chip = Work(1e15, 1e12), hardware.device("H100")
    one, four = roofline(work, chip), roofline(work, chip, chips=4)
    assert one.seconds == pytest.approx(4 * four.seconds)
    assert joules(chip, four.seconds, chips=4) == pytest.approx(700 * one.seconds)
    low, median, high = dollars(chip.price, 3600, chips=10)
    assert (low, high) == pytest.approx((19.9, 50.0))
    assert low < median < high


def test_the_break_even_context_is_where_cache_and_state_weigh_the_same():
    state = Mamba().state_size(64, 1)
    tokens = hardware.break_even_context(4, 16, state, cache_bytes=2, state_bytes=4)
    cache = 2 * (Attention(n_heads=4).state_size(64, round(tokens)) - 1)  # without its position
    assert cache == pytest.approx(4 * state, rel=0.01)


def test_every_device_and_price_names_its_source_and_date():
    for name, chip in hardware.DEVICES.items():
        assert chip.name == name
        assert chip.source
        assert chip.announced.startswith("20")
        if chip.listed is not None:
            assert 0 < chip.listed.low <= chip.listed.median <= chip.listed.high
            assert chip.listed.source
            assert chip.listed.date.startswith("20")


def test_what_is_not_known_is_refused_in_one_line():
    with pytest.raises(UserError, match="no device 'H1000'; use one of A100-80, H100"):
        hardware.device("H1000")
    with pytest.raises(UserError, match="v6e has no published power"):
        joules(hardware.device("v6e"), 1.0)
    with pytest.raises(UserError, match="B200 has no dated price here; pass a Price"):
        _ = hardware.device("B200").price
    with pytest.raises(UserError, match="chips=0 must be greater than 0"):
        roofline(Work(1, 1), hardware.device("H100"), chips=0)
