"""Serving: exact bytes, what fits, queues with closed forms, and how far off predictions are."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.models.checkpoints.published import published
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.retro import ChunkedCrossAttention
from isoflop.sim.cost.hardware import decode, device, roofline
from isoflop.sim.cost.serving import Deployment, Speculation, Workload, serve
from isoflop.sim.cost.serving.calibration import calibration
from isoflop.sim.cost.serving.clock import COUNTED, PARTS, times
from isoflop.sim.cost.serving.points import read as points_of
from isoflop.sim.cost.serving.points import trace as trace_of
from isoflop.sim.cost.serving.queue import Engine, simulate
from isoflop.sim.cost.serving.serve import load, replay, replica_of


def llama(d_model, depth, n_heads, n_kv_heads, d_ff, vocab_size):
    attention = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads)
    block = Block(mixer=attention, channel=SwiGLU(d_ff=d_ff))
    return ModelConfig(d_model=d_model, vocab_size=vocab_size, blocks=tile(depth, block))


LLAMA_70B = llama(8192, 80, 64, 8, 28672, 128256)
H100 = device("h100")
USERS = Workload(1024, 256, concurrency=16)


@pytest.fixture(scope="module")
def served():
    return serve(Deployment(LLAMA_70B, H100, count=4), USERS)


def test_a_cache_of_llama_70b_in_bf16_takes_327680_bytes_a_token(served):
    assert served.memory.per_token == 327_680
    assert served.memory.weights == 2 * 70_553_706_496


def test_every_quantity_is_inside_its_interval_and_joint_draws_agree(served):
    quantities = (served.ttft, served.tpot, *served.latency.values(), served.throughput,
                  served.capacity, served.per_query, served.joules, served.grams)  # fmt: skip
    for estimate in quantities:
        assert 0 < estimate.low < estimate.value < estimate.high
    drawn = served.sample(500, seed=3)
    assert np.corrcoef(drawn["tpot"], drawn["p95"])[0, 1] > 0.8
    assert served.latency["p50"].value <= served.latency["p95"].value <= served.latency["p99"].value


def lindley(arrivals):
    """When a server that takes a second for each is done (Lindley 1952)."""
    turn = np.arange(len(arrivals))
    return turn + 1 + np.maximum.accumulate(arrivals - turn)


def test_without_batching_the_loop_is_a_queue_with_one_server():
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1.25, 2000))
    engine = Engine(lambda *step: 1.0, lambda context: 0.0, 1.0, slots=1, budget=8)
    ones = np.ones(2000, int)
    assert simulate(engine, ones, ones, arrivals).done == pytest.approx(lindley(arrivals))


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_such_a_queue_waits_as_the_closed_form_of_m_d_1_says(load):
    """Mean wait ρ/(2(1 − ρ)) of a service time (Pollaczek 1930, Khinchine 1932)."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / load, 2_000_000))
    waits = lindley(arrivals) - arrivals - 1
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.02)


def test_what_cannot_be_served_is_told_in_one_line():
    with pytest.raises(UserError, match=r"needs 141.1 GB of bf16 weights .* lacks 69.1 GB"):
        serve(Deployment(LLAMA_70B, H100, name="llama"), USERS)
    cross = ChunkedCrossAttention(n_heads=2)
    reader = LLAMA_70B.model_copy(update={"blocks": (Block(mixer=cross),)})
    with pytest.raises(UserError, match="the model reads neighbours"):
        Deployment(reader, H100)
    with pytest.raises(UserError, match="tensor=3 must divide the 64 heads"):
        Deployment(LLAMA_70B, H100, count=3)
    with pytest.raises(UserError, match="tensor=4 · data=3 must be the 8 chips"):
        Deployment(LLAMA_70B, H100, count=8, tensor=4, data=3)
    with pytest.raises(UserError, match="no device 'H1000'"):
        device("H1000")
    with pytest.raises(UserError, match="rate=-1 must be above 0"):
        Workload(1024, 256, rate=-1.0)
    with pytest.raises(UserError, match=r"more than the [\d.]+ that this replica sustains"):
        serve(Deployment(LLAMA_70B, H100, count=4), Workload(1024, 256, rate=1000.0))


POINTS = Path(__file__).parent / "fitdata" / "serving_points.csv"
TRACE = Path(__file__).parent / "fitdata" / "trace_conversation.csv"
GPT_FAST = Path(__file__).parent / "fitdata" / "gptfast_a100.csv"
NATIVE = {"Llama-2-7B": "llama-2-7b", "Llama-2-70B": "llama-2-70b",
          "Llama-3.1-8B": "llama-3.1-8b", "Llama-3.1-70B": "llama-3.1-70b"}  # fmt: skip


@pytest.fixture(scope="module")
def points():
    return points_of(POINTS)


def errors_of(table, found):
    """(2, n) log measured − log predicted by the committed coefficients."""
    errors = []
    for m in table.deployments:
        made = times(m.replica, m.load, found.shared, found.engine(m.on.engine))
        errors.append(np.log([m.ttft, m.tpot]) - np.log(np.array(made)))
    return np.concatenate(errors, axis=1)


@pytest.mark.slow
def test_predictions_of_measured_points_are_as_good_as_the_log_says(points):
    """In sample; errors on deployments held out are in the calibration's spreads and in LOG.md."""
    assert points.left_out == {"more than 8 chips": 21}
    errors = errors_of(points, calibration())
    assert errors.shape == (2, 1523)
    off = np.abs(np.exp(-errors) - 1)
    assert np.median(off[1]) < 0.10
    assert np.median(off[0]) < 0.25
    assert abs(np.median(errors[1])) < 0.05


def test_no_coefficient_lets_a_chip_beat_its_roofline():
    found = calibration()
    for name in PARTS:
        assert found.shared[name] >= (0 if name in COUNTED else 1)
    low, high = zip(*found.intervals.values(), strict=True)
    assert np.all(np.array(low) <= np.array(high))


def test_gpt_fasts_int8_and_int4_speed_ups_are_predicted():
    """1.48 and 1.88 for Llama-2-7B on an A100, one user."""
    chip, one = device("A100-80"), Workload(5, 200, concurrency=1)
    own = replace(chip, multiples=())  # weights alone are in the format
    pace = {
        weights: serve(
            Deployment(published("llama-2-7b"), own, weights=weights, activations="bf16",
                       cache="bf16", engine="native"), one,
        ).tpot.value
        for weights in ("bf16", "int8", "int4")
    }  # fmt: skip
    assert pace["bf16"] / pace["int8"] == pytest.approx(1.48, rel=0.15)
    assert pace["bf16"] / pace["int4"] == pytest.approx(1.88, rel=0.15)


def test_no_gpt_fast_point_beats_the_roofline_of_the_published_config():
    with GPT_FAST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    for row in rows:
        weight = float(row["bytes_per_param"])
        work = decode(published(NATIVE[row["model"]]), 100, weight_bytes=weight)
        least = roofline(work, device("A100-80"), int(row["n_gpu"])).seconds
        assert least * float(row["tokens_per_s"]) < 1, row


def test_a_public_trace_is_replayed_to_its_last_request():
    arrived, prompts, answers = trace_of(TRACE)
    on = Deployment(published("llama-3.1-8b"), H100)
    longest = Workload(int(prompts.max()), int(answers.max()), concurrency=1)
    line = replay(replica_of(on, longest), calibration(), prompts=prompts, answers=answers,
                  arrivals=arrived)  # fmt: skip
    assert np.all(line.first > arrived)
    assert np.all(line.done >= line.first)
    assert 0 < line.busy <= 1
    assert line.preempted == 0


def test_full_memory_gives_up_the_youngest_and_every_answer_is_still_given():
    engine = Engine(lambda *step: 1.0, lambda context: float(context), 30.0, slots=8, budget=64)
    prompts, answers = np.full(6, 5), np.full(6, 9)
    line = simulate(engine, prompts, answers, np.zeros(6))
    assert line.preempted > 0
    assert np.all(line.done > 0)
    with pytest.raises(UserError, match="a request of 40 tokens needs"):
        simulate(engine, np.array([30]), np.array([10]), np.zeros(1))


def test_speculation_gives_the_papers_tokens_a_turn():
    """(1 − α^(γ+1)) / (1 − α): 2211.17192, eq. 1."""
    assert Speculation(0.8, 4).per_turn == pytest.approx((1 - 0.8**5) / 0.2)
    assert Speculation(1.0, 3).per_turn == 4
    plain = serve(Deployment(LLAMA_70B, H100, count=4), Workload(1024, 256, concurrency=1))
    spoken = Deployment(LLAMA_70B, H100, count=4, speculation=Speculation(0.8))
    quick = serve(spoken, Workload(1024, 256, concurrency=1))
    assert 1.5 < plain.tpot.value / quick.tpot.value < Speculation(0.8).per_turn
    with pytest.raises(UserError, match="acceptance=2 in"):
        Speculation(2.0)


def test_a_class_that_was_not_measured_is_named_and_has_a_wider_interval(served):
    assert served.fits_class.endswith("measured points")
    cheap = served.deployment.device.listed
    strange = replace(H100, name="X1", listed=cheap)
    new = serve(Deployment(LLAMA_70B, strange, count=4), USERS)
    assert "this chip was not measured" in new.fits_class
    assert new.tpot.high / new.tpot.low > served.tpot.high / served.tpot.low
    mamba = serve(Deployment(published("mamba2-2.7b"), H100), USERS)
    assert "recurrent" in mamba.fits_class
    assert "this class was not measured" in mamba.fits_class
    assert mamba.memory.per_token == 0


def test_deepseek_v3s_day_is_within_a_factor_of_two():
    """14.8k tokens a second and node of 8 H800 while decoding, 4,989 tokens of cache on average,
    18 nodes a unit (deepseek-ai/open-infra-index, day 6): decoding alone, prompts are elsewhere.
    """
    on = Deployment(published("deepseek-v3"), device("h800"), 144, 1, 144, 16, weights="fp8")
    asked = Workload(4861, 256, concurrency=144 * 64, cached=0.999)
    replica, found = replica_of(on, asked), calibration()
    users = float(asked.concurrency)
    _, tpot = times(replica, load(replica, asked, users), found.shared, found.engine("sglang"))
    assert 14_800 / 2 < users / tpot / 18 < 14_800 * 2


def test_tables_that_cannot_be_read_are_told_by_line(tmp_path):
    text = POINTS.read_text().splitlines()
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([text[0], text[1].replace("trtllm", "mystery")]))
    with pytest.raises(UserError, match="line 2: engine='mystery' is not known"):
        points_of(bad)
    bad.write_text("\n".join([text[0], text[1].rsplit(",", 1)[0] + ",soon"]))
    with pytest.raises(UserError, match="line 2: tpot_ms='soon' must be a number above 0"):
        points_of(bad)
    bad.write_text("model,chip\n")
    with pytest.raises(UserError, match="lacks the column engine"):
        points_of(bad)
