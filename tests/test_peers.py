"""The peers are the same models, which is checked before anything is timed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from isoflop import experiments
from isoflop.experiments import peers
from isoflop.experiments.bench import Shape
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError
from isoflop.sim.records.store import read_table

PEERS = Path(peers.__file__).parent / "results" / "peers.jsonl"
TINY = Shape(width=64, depth=2, seq_len=32, batch=2)

every_peer = pytest.mark.parametrize("family", peers.TYPES)


@every_peer
def test_a_peers_config_is_that_of_our_model(family):
    """As a layout reads it; transformers' DeltaNet beside an MLP is in no published checkpoint."""
    config = peers.compared(family, TINY)
    fields = peers.published(family, config)
    if family == "gated_deltanet":
        assert fields["intermediate_size"] == config.blocks[0].channel.d_ff
        assert fields["mlp_only_layers"] == [0, 1]
    else:
        read = interop.LAYOUTS[peers.TYPES[family]].read(fields)
        assert read.cost(1).params == config.cost(1).params


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_mambas_are_stacks_of_their_layers_alone(family):
    assert all(block.channel is None for block in peers.compared(family, TINY).blocks)


def test_mistakes_are_told_before_anything_is_compiled(monkeypatch):
    with pytest.raises(
        experiments.Unknown, match="no family with a peer mamba3; perhaps you meant"
    ):
        peers.measure(families=("mamba3",))
    with pytest.raises(experiments.Unknown, match="no shape smal"):
        peers.measure(shapes=("smal",))
    with pytest.raises(UserError, match="repeats=0 must be at least 1"):
        peers.measure(repeats=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the peers need torch; pip install"):
        peers.measure()


@pytest.mark.parametrize(("program", "run"), {"train_step": "train", "decode": "write"}.items())
def test_a_peers_seconds_are_those_of_one_step_or_token_of_as_many_as_ours_has(
    program, run, monkeypatch
):
    peer, asked = object.__new__(peers.Peer), []
    peer.device, peer.program, peer.cache = "cpu", program, {"held": [1]}
    for name in ("train", "read", "write"):
        monkeypatch.setattr(peers.Peer, name, lambda self, times, name=name: called(name, times))

    def called(name: str, times: int) -> None:
        asked.append((name, times))
        peer.cache["held"].append(2)  # as decoding does

    clock = iter((10.0, 16.0))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(clock))
    seconds = peer.seconds()
    ((name, times),) = asked
    assert name == run
    assert times == {"train": peers.STEPS, "write": peers.DECODED}[run]
    assert seconds == pytest.approx(6.0 / times)
    assert peer.cache == {"held": [1]}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@every_peer
def test_a_peer_has_as_many_parameters_and_trains(family):
    """Equal counts are the peer's own condition; with a rate of 0 its weights stay."""
    peer = made(family, "train_step")
    before = [weight.detach().numpy().copy() for weight in peer.weights]
    assert peer.seconds() > 0
    for old, new in zip(before, peer.weights, strict=True):
        np.testing.assert_array_equal(old, new.detach().numpy())
    held = sum(weight.nbytes for weight in peer.weights)
    assert peer.memory_bytes() > 4 * held  # the weights, their gradients and two moments


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@every_peer
def test_a_peer_decodes_what_it_would_read(family):
    """A token against the cache, after a call that used it, is that of the whole prompt read."""
    peer = made(family, "decode")
    assert peer.seconds() > 0
    token, _ = peer.forward(peer.tokens[:, -1:], use_cache=True)
    whole = made(family, "prefill")
    whole.model.load_state_dict(peer.model.state_dict())
    prompt = peer.torch.cat([peer.tokens[:, : -peers.DECODED], peer.tokens[:, -1:]], dim=1)
    assert (token == whole.forward(prompt, use_cache=False)[0]).all()


def made(family: str, program: str) -> peers.Peer:
    pytest.importorskip("transformers")
    config = peers.compared(family, TINY)
    return peers.Peer(peers.published(family, config), config, TINY, "float32", program)


def test_what_the_readme_says_of_two_cores_is_in_the_committed_table():
    table = [row for row in read_table(PEERS) if row["device"] == "cpu"]
    rows = [row for row in table if not row["compiled"]]
    recurrences = [row for row in rows if row["family"] not in ("dense", "moe")]
    steps = [row for row in recurrences if row["program"] == "train_step"]
    slowest, fastest = (pick(row["ratio"] for row in steps) for pick in (min, max))
    assert (slowest, fastest) == pytest.approx((1.6, 9.6), abs=0.05)
    assert all(1.45 < row["peer_memory_bytes"] / row["memory_bytes"] < 4.5 for row in steps)
    assert all(row["ratio"] > 2.6 for row in rows if row["program"] == "decode")
    ratios = {
        (row["family"], row["seq_len"], row["program"]): row["ratio"]
        for row in rows
        if row["family"] in ("dense", "moe") and row["program"] != "decode"
    }
    expected = {
        ("dense", 256, "train_step"): 1.27,
        ("moe", 256, "train_step"): 0.9,
        ("dense", 256, "prefill"): 1.2,
        ("moe", 256, "prefill"): 0.75,
        ("dense", 8192, "train_step"): 0.85,
        ("moe", 8192, "train_step"): 0.85,
    }
    assert ratios == pytest.approx(expected, abs=0.025)
    more = {
        (row["family"], row["seq_len"]): row["memory_bytes"] / row["peer_memory_bytes"]
        for row in rows
        if row["family"] in ("dense", "moe") and row["program"] == "train_step"
    }
    expected = {("dense", 256): 1.01, ("moe", 256): 1.07, ("dense", 8192): 0.9, ("moe", 8192): 0.93}
    assert more == pytest.approx(expected, abs=0.02)
    eager, compiled = (
        {
            row["family"]: row["ratio"]
            for row in table
            if (row["shape"], row["program"], row["compiled"]) == ("medium", "train_step", mode)
        }
        for mode in (False, True)
    )
    assert compiled["gated_deltanet"] == pytest.approx(1.2, abs=0.05)
    changes = {name: compiled[name] / eager[name] for name in ("mamba2", "mamba")}
    assert changes == pytest.approx({"mamba2": 1 / 1.3, "mamba": 2}, abs=0.1)
