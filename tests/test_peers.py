"""The peers are the same models, which is checked before anything is timed."""

import importlib.util

import numpy as np
import pytest

from isoflop import experiments
from isoflop.experiments import peers
from isoflop.experiments.bench import Shape
from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.errors import UserError

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
