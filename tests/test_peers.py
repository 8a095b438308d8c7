"""The peers are the same models, which is checked before anything is timed."""

import importlib.util

import numpy as np
import pytest

import experiments
from experiments import peers
from experiments.bench import Shape
from models import interop
from models.errors import UserError

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


def test_a_peers_seconds_are_those_of_one_step_of_as_many_as_ours_has(monkeypatch):
    peer, steps = object.__new__(peers.Peer), []
    peer.device, peer.step = "cpu", lambda: steps.append(1)
    clock = iter((10.0, 16.0))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(clock))
    assert peer.seconds() == pytest.approx(6.0 / peers.STEPS)
    assert len(steps) == peers.STEPS


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@every_peer
def test_a_peer_has_as_many_parameters_and_trains(family):
    """Equal counts are the peer's own condition; with a rate of 0 its weights stay."""
    pytest.importorskip("transformers")
    config = peers.compared(family, TINY)
    peer = peers.Peer(peers.published(family, config), config, TINY, "float32")
    before = [weight.detach().numpy().copy() for weight in peer.model.parameters()]
    assert peer.seconds() > 0
    for old, new in zip(before, peer.model.parameters(), strict=True):
        np.testing.assert_array_equal(old, new.detach().numpy())
