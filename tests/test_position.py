"""Loss by position, beyond the training length, and of what stands in the context."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from isoflop.models.base import Init
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.rnn import MinGru
from isoflop.models.rotary import LinearScaling, NTKScaling, YarnScaling
from isoflop.sim.data.source import Batch
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.copying import copying
from isoflop.sim.evaluate.extrapolation import extrapolate, variants
from isoflop.sim.evaluate.position import (
    Part,
    cut,
    difference,
    held_out,
    judge,
    loss_by_position,
)

ROPE, RNN = Attention(n_heads=2), Block(mixer=MinGru())
HYBRID = ModelConfig(
    d_model=8, vocab_size=256, blocks=(RNN, Block(mixer=ROPE, channel=SwiGLU(d_ff=8)))
)


def attention(**options) -> ModelConfig:
    block = Block(mixer=Attention(n_heads=2, **options))
    return ModelConfig(d_model=8, vocab_size=256, blocks=(block,))


def checkpoint(model: ModelConfig, folder, seed: int = 0) -> Checkpoint:
    return Checkpoint(folder, model, nnx.state(model.build(init=Init(seed))))


def random(seq_len: int, rows: int = 12) -> Batch:
    tokens = np.random.default_rng(0).integers(256, size=(rows, 64), dtype=np.int32)
    return Batch(tokens[:, : seq_len + 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(HYBRID, tmp_path_factory.mktemp("x"))


@pytest.fixture(scope="module")
def extended(model):
    return extrapolate(model, random, 6, (1, 2, 4))


def test_targets_are_judged_as_the_whole_logits_say(model, monkeypatch):
    """With heads of five tokens at a time, parts of one sequence, and the last part filled up."""
    monkeypatch.setattr("isoflop.sim.evaluate.checkpoint.HEAD_ROWS", 5)
    batch = random(7)
    found = judge(replace(model), batch)
    logits = np.stack([model.logits(row) for row in batch.tokens[:, :-1]])
    chance = np.asarray(jax.nn.log_softmax(logits))
    nats = -np.take_along_axis(chance, batch.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nats, nats, atol=1e-5)
    assert (found.correct == (logits.argmax(-1) == batch.targets)).all()


def test_a_paired_difference_is_the_difference_and_narrower_than_an_unpaired_one():
    """Sequences that are hard for both: the difference of two models is known far better."""
    rng = np.random.default_rng(0)
    batch = random(63, 12)
    hard = 3 * rng.random((12, 1))
    both = [hard + gap + 0.1 * rng.standard_normal((12, 63)) for gap in (0.2, 0.0)]
    one, other = (model_of(nats.astype(np.float32)) for nats in both)
    found = difference(one, other, batch)
    alone = [loss_by_position(x, batch) for x in (one, other)]
    assert found.keys() == alone[0].keys()
    for name, metric in found.items():
        assert metric.value == pytest.approx(alone[0][name].value - alone[1][name].value)
        unpaired = math.hypot(*(x[name].se for x in alone))
        assert metric.se < unpaired / 3
    assert abs(found["loss_at_32"].value - 0.2) < 4 * found["loss_at_32"].se


def model_of(nats):
    from isoflop.sim.train.program import Judged

    return Judged(nats.mean(-1), nats, nats < 0)


def test_the_difference_of_two_parts_is_paired_also_where_sequences_weigh_differently():
    """Against 400 draws of it: its standard error is what it varies by."""
    rng, values, told = np.random.default_rng(1), [], []
    for _ in range(400):
        hard, weights = rng.random((60, 1)), rng.integers(0, 3, size=(60, 8)).astype(np.float32)
        nats = hard + np.arange(8) / 8 + 0.2 * rng.standard_normal((60, 8))
        late, early = (Part.of(nats, weights, p) for p in (slice(4, 8), slice(0, 4)))
        found = late.less(early)
        values.append(found.value)
        told.append(found.se)
    assert np.mean(values) == pytest.approx(0.5, abs=0.01)
    assert np.mean(told) == pytest.approx(np.std(values), rel=0.1)
    assert late.less(Part.of(nats, 0 * weights, slice(0, 4))) is None


def test_the_beginning_of_a_batch_has_its_beginnings_targets():
    batch = Batch(random(9).tokens, np.arange(120, dtype=np.float32).reshape(12, 10)[:, :9])
    part = cut(batch, 4)
    assert part.tokens.shape == (12, 5)
    assert (part.targets == batch.targets[:, :4]).all()
    assert (part.weights == batch.weights[:, :4]).all()


def test_what_extends_attention_is_offered_where_it_applies():
    def names(model, times=4):
        return list(variants(model, 16, times))

    assert names(HYBRID) == ["as trained", "linear", "ntk", "yarn", "window"]
    assert names(HYBRID, 1) == ["as trained"]
    assert names(attention(rope_base=None)) == ["as trained", "window"]  # NoPE
    assert names(attention(window=16)) == ["as trained", "linear", "ntk", "yarn"]
    assert names(attention(rope_scaling=NTKScaling(factor=2))) == ["as trained", "window"]
    assert names(ModelConfig(d_model=8, vocab_size=9, blocks=(RNN,))) == ["as trained"]
    found = variants(HYBRID, 16, 4)
    scaled = {name: found[name].blocks[1].mixer.rope_scaling for name in ("linear", "ntk", "yarn")}
    assert scaled["linear"] == LinearScaling(factor=4)
    assert scaled["ntk"] == NTKScaling(factor=4)
    assert scaled["yarn"] == YarnScaling(factor=4, original=16)
    assert found["window"].blocks[1].mixer == ROPE.model_copy(update={"window": 16})
    assert all(one.blocks[0] == RNN for one in found.values())


def test_a_layer_that_is_extended_already_stays_as_it_is():
    short, long = (Block(mixer=Attention(n_heads=2, window=w)) for w in (4, None))
    found = variants(ModelConfig(d_model=8, vocab_size=9, blocks=(short, long)), 16, 2)
    assert found["window"].blocks[0] == short
    assert found["window"].blocks[1].mixer.window == 16


def test_every_length_is_the_beginning_of_the_same_sequences(model, extended):
    plain = [row for row in extended if row.variant == "as trained"]
    assert [(row.times, row.seq_len) for row in plain] == [(1, 6), (2, 12), (4, 24)]
    nats = judge(model, random(24)).nats
    for row in plain:
        assert row.loss.value == pytest.approx(nats[:, : row.seq_len].mean(), rel=1e-6)
        names = ["loss_at_0", "loss_at_1", "loss_at_2"]
        assert all(row.by_position[n] == plain[0].by_position[n] for n in names)
    assert plain[0].beyond is None
    late, early = nats[:, 6:24].mean(1), nats[:, 3:6].mean(1)
    assert plain[2].beyond.value == pytest.approx((late - early).mean(), rel=1e-4)
    assert plain[2].beyond.se == pytest.approx((late - early).std(ddof=1) / math.sqrt(12), rel=1e-3)


def test_a_variant_is_the_model_with_its_own_config_and_the_same_weights(model, extended):
    (yarn,) = (row for row in extended if (row.variant, row.times) == ("yarn", 2))
    config = variants(HYBRID, 6, 2)["yarn"]
    logits = replace(model, model=config).logits(random(12).tokens[0, :-1])
    chance = np.asarray(jax.nn.log_softmax(logits))
    nats = judge(replace(model, model=config), random(12)).nats
    picked = chance[np.arange(12), random(12).targets[0]]
    np.testing.assert_allclose(nats[0], -picked, atol=1e-5)
    assert yarn.loss.value == pytest.approx(nats.mean(), rel=1e-6)
    plain = next(r for r in extended if (r.variant, r.times) == ("as trained", 2))
    assert yarn.loss.value != plain.loss.value


def test_copying_is_of_the_second_reading_alone(model, monkeypatch):
    """A model that always gives the token eight places back has all of a repeat of 8 right."""
    (found,) = copying(model, random, (8,))
    text = random(8).tokens[:, :8]
    nats = judge(model, Batch(np.concatenate([text, text], 1))).nats
    assert found.loss.value == pytest.approx(nats[:, 8:].mean(), rel=1e-6)
    assert found.gain.value == pytest.approx((nats[:, :7] - nats[:, 8:]).mean(), rel=1e-3)
    assert found.accuracy.count == 12 * 7

    def back(checkpoint, batch):
        correct = np.zeros(batch.targets.shape, bool)
        correct[:, 7:] = batch.targets[:, 7:] == batch.tokens[:, :-8]
        return model_of(np.where(correct, 0, 1.0).astype(np.float32))._replace(correct=correct)

    monkeypatch.setattr("isoflop.sim.evaluate.copying.judge", back)
    (perfect,) = copying(model, random, (8,))
    assert (perfect.accuracy.value, perfect.first.value) == (1, 0)
    assert (perfect.loss.value, perfect.gain.value, perfect.gain.se) == (0, 1, 0)


MISTAKES = {
    "is no run, so it has no held-out data of its own; give a text with --text": lambda m: held_out(
        m, 100
    ),
    "tokens are 1 windows of 8, and a standard error needs 2": lambda m: held_out(m, 9, "x" * 10)(
        8
    ),
    "token 300 is none of the model's vocab_size=256": lambda m: judge(
        m, Batch(np.full((2, 5), 300, np.int32))
    ),
    "a training length of at least 2 tokens": lambda m: extrapolate(m, random, 1),
    "a repeat has at least 2 tokens": lambda m: copying(m, random, (1,)),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_line(words, model):
    with pytest.raises(UserError, match=words) as error:
        MISTAKES[words](model)
    assert "\n" not in str(error.value)


def test_a_text_gives_windows_evenly_spaced_over_it(model):
    text = "".join(map(chr, range(40, 100)))
    batch = held_out(model, 24, text)(8)
    assert batch.tokens.shape == (3, 9)
    assert batch.tokens[0].tolist() == list(range(40, 49))
    assert batch.tokens[-1, -1] == 99
    assert batch.weights is None
