"""Serving: exact bytes, what fits, queues with closed forms, and how far off predictions are."""

import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig, tile
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.cost.hardware import device
from isoflop.sim.cost.serving import Deployment, Workload, serve
from isoflop.sim.cost.serving.queue import Engine, simulate


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
    assert served.latency["p50"].value < served.latency["p95"].value <= served.latency["p99"].value


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
