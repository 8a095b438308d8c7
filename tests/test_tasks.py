"""Targets have weights: a loss and its gradient are of what counts, however a batch is split."""

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recall
from pydantic import ValidationError
from recall import Recall
from sources import refusal

from isoflop.models.families import zoo
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.data import Batch, DataConfig, Markov, Source
from isoflop.sim.data.source import drawn, judged_on
from isoflop.sim.grid.estimate import plan
from isoflop.sim.optim import AdamW
from isoflop.sim.records.metrics import buckets
from isoflop.sim.records.store import Record, Store
from isoflop.sim.spec import Budget, Cell, Eval, Run
from isoflop.sim.train.loop import train
from isoflop.sim.train.program import Program, cross_entropy, likeliest

ROOT = Path(recall.__file__).parent.parent
BLOCK = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=32))
MODEL = ModelConfig(d_model=16, vocab_size=64, blocks=(BLOCK,))


def run(**changes) -> Run:
    fields = {
        "model": zoo.dense(32, 1, vocab_size=64),
        "data": Recall(),
        "optim": AdamW(lr=0.01, warmup_steps=2),
        "budget": Budget(steps=20, batch=8, seq_len=8, eval_tokens=1024),
    }
    return Run(**fields | changes)


@pytest.fixture
def batch():
    return Recall().open().batch(0, 0, 8, 8)


def program(micro_batches=1):
    return Program(MODEL, AdamW(lr=0.01), micro_batches=micro_batches)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf[0], program().init([0])[0])


def test_the_loss_is_the_mean_over_answers_alone(batch, params):
    _, loss = jax.jit(program().gradient)(params, batch)
    logits, _ = jax.jit(program().predict)(params, batch.tokens[:, :-1])
    nats = np.asarray(cross_entropy(logits, jnp.asarray(batch.tokens[:, 1:])))
    assert 0 < (batch.weights > 0).mean() < 0.5
    np.testing.assert_allclose(loss, np.average(nats, weights=batch.weights), rtol=1e-6)


def test_targets_without_weight_have_no_gradient(batch, params):
    """Exactly: another token in the last place, which is a target alone, changes no bit of it."""
    other = batch.tokens.copy()
    other[:, -1] = (other[:, -1] + 1) % 64
    assert not batch.weights[:, -1].any()
    compute = jax.jit(program().gradient)
    one, two = (compute(params, batch._replace(tokens=tokens)) for tokens in (batch.tokens, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert compute(params, Batch(batch.tokens))[1] != compute(params, Batch(other))[1]


@pytest.mark.parametrize("weights", ["answers", "half of the rows", "unequal"])
def test_micro_batches_count_by_the_weight_that_they_have(batch, params, weights):
    rows = np.arange(8)[:, None]
    given = {
        "answers": batch.weights,
        "half of the rows": batch.weights * (rows % 4 < 2),
        "unequal": batch.weights * (1 + rows) + 0.25,
    }[weights].astype(np.float32)
    whole, parts = (
        jax.jit(program(n).gradient)(params, Batch(batch.tokens, given)) for n in (1, 4)
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * float(abs(one).max()))


def test_weights_of_one_are_no_weights(batch, params):
    ones = np.ones_like(batch.weights)
    with_, without = (
        jax.jit(program().gradient)(params, Batch(batch.tokens, w)) for w in (ones, None)
    )
    for one, other in zip(jax.tree.leaves(with_), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * float(abs(other).max()))


@cache
def on_eight_devices() -> dict:
    """Losses of three steps on one device and on eight, as tests/recall.py computes them."""
    done = subprocess.run(
        [sys.executable, recall.__file__],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / ".package")},
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_weighted_losses_on_eight_devices_equal_those_on_one():
    found = on_eight_devices()
    np.testing.assert_allclose(found["eight"], found["one"], rtol=1e-5)
    np.testing.assert_allclose(found["one and micro-batches"], found["one"], rtol=1e-5)


@pytest.fixture(scope="module")
def learnt():
    """A run on the task, judged on itself, on another seed of it, and on text of one state."""
    evals = (
        Eval(name="again", data=Recall(seed=5), tokens=1024),
        Eval(name="longer", data=Recall(seed=5), tokens=2048, seq_len=16),
        Eval(name="plain", data=Markov(symbols=4), tokens=1000, seq_len=20),
    )
    ((record, weights),) = train([run(evals=evals)])
    return record, weights


def test_a_run_has_every_metric_of_every_evaluation_set(learnt):
    record, _ = learnt
    assert (record.status, record.reason) == ("ok", "")
    expected = {
        name + kind
        for name in ("", "again.", "longer.", "plain.")
        for kind in ("loss", "accuracy", "exact")
        if (name, kind) != ("plain.", "exact")
    }
    assert {name for name in record.metrics if "_at_" not in name} == expected
    assert record.metrics["loss"].count == 128  # answers: one to a sequence
    assert record.metrics["longer.accuracy"].count == 2 * 128
    assert record.metrics["plain.loss"].count == 1000
    assert record.eval_digests.keys() == {"again", "longer", "plain"}
    assert record.eval_digests["plain"] == Markov(symbols=4).open().digest
    assert 0 < record.metrics["accuracy"].value < 1


def test_metrics_are_those_of_the_targets_that_count(learnt):
    """Recomputed from the weights by the definition, in double precision."""
    record, weights = learnt
    found = Program(record.run.model, record.run.optim)
    state = jax.tree.map(lambda leaf: leaf[0], found.init([0])[0])
    leaves = [weights[".".join(map(str, path))] for path in recall.paths(state)]
    params = jax.tree.unflatten(jax.tree.structure(state), leaves)
    for split in record.run.splits:
        batch = split.draw(split.data.open())
        logits, _ = jax.jit(found.predict)(params, batch.tokens[:, :-1])
        targets = batch.tokens[:, 1:]
        nats = np.asarray(cross_entropy(logits, jnp.asarray(targets)), np.float64)
        w = np.ones_like(nats) if batch.weights is None else batch.weights.astype(np.float64)
        hits = np.asarray(logits).argmax(-1) == targets
        name = f"{split.name}." if split.name else ""
        for kind, values in (("loss", nats), ("accuracy", hits)):
            metric = record.metrics[name + kind]
            mean = (w * values).sum() / w.sum()
            np.testing.assert_allclose(metric.value, mean, rtol=1e-6)
            residual = (w * (values - mean)).sum(1)
            n = len(residual)
            se = math.sqrt(n / (n - 1) * (residual**2).sum()) / w.sum()
            np.testing.assert_allclose(metric.se, se, rtol=1e-4)
            assert metric.count == (w > 0).sum()
        parts = {
            first: (record.metrics[f"{name}loss_at_{first}"].value, w[:, places].sum())
            for first, places in buckets(w.shape[1]).items()
            if w[:, places].any()
        }
        assert len(parts) == sum(one.startswith(f"{name}loss_at_") for one in record.metrics)
        whole = sum(value * weight for value, weight in parts.values()) / w.sum()
        assert abs(whole - record.metrics[f"{name}loss"].value) < 1e-6


def test_evaluation_sets_change_no_training_and_no_key_of_a_run_without_them(learnt):
    record, weights = learnt
    ((alone, same),) = train([run()])
    assert alone.curve == record.curve
    assert all((weights[name] == same[name]).all() for name in weights)
    assert {name: record.metrics[name] for name in alone.metrics} == alone.metrics
    assert run().key == run(evals=()).key != record.run.key


def test_a_source_in_a_file_of_ones_own_is_read_back_by_its_kind():
    text = run().model_dump_json()
    assert isinstance(Run.model_validate_json(text).data, Recall)
    assert Run.model_validate_json(text) == run()
    with pytest.raises(ValueError, match=r"kind='remember' is not a DataConfig; use one of .*reca"):
        Run.model_validate_json(text.replace('"recall"', '"remember"'))


def test_evaluation_sets_are_checked_before_anything_is_trained(tmp_path):
    twice = (Eval(name="a", data=Recall()), Eval(name="a", data=Recall(seed=1)))
    with pytest.raises(ValidationError, match="evals must have a name each, and are a, a; rename"):
        run(evals=twice)
    with pytest.raises(ValidationError, match="must cover the data's 100 tokens"):
        run(evals=(Eval(name="a", data=Markov(symbols=100)),))
    with pytest.raises(ValidationError, match="name"):
        Eval(name="a.b", data=Recall())
    few = run(evals=(Eval(name="few", data=Markov(symbols=4), tokens=8, seq_len=8),))
    told = refusal(plan, [Cell(run=few)], Store(tmp_path))
    assert "tokens of evaluation set few=8" in told
    assert told == refusal(lambda: list(train([few])))


class Wrong(DataConfig):
    """Gives what a source must not give."""

    kind: Literal["wrong"] = "wrong"
    how: str

    @property
    def vocab_size(self) -> int:
        return 64

    def open(self) -> Source:
        return _Wrong(self.how)


WRONG = {
    "no answer": (lambda t, w: (t, w * 0), "somewhere above 0"),
    "negative": (lambda t, w: (t, -w), "at least 0"),
    "nan": (lambda t, w: (t, w * np.float32("nan")), "finite"),
    "a weight for every input": (
        lambda t, w: (t, np.ones(t.shape, np.float32)),
        r"float32 \(8, 8\)",
    ),
    "double": (lambda t, w: (t, w.astype(float)), "are float64"),
    "short": (lambda t, w: (t[:, :-1], w), r"int32 \(8, 9\), and are int32 \(8, 8\)"),
    "tokens as floats": (lambda t, w: (t.astype(np.float32), w), "int32"),
    "a label for every token": (lambda t, w: (t, w, t), r"labels of _Wrong must be int32 \(8, 8\)"),
}


class _Wrong(Source):
    digest = "wrong"

    def __init__(self, how: str):
        self.how = how

    def batch(self, step, seed, batch, seq_len):
        tokens, weights, *_ = Recall().open().batch(step, seed, batch, seq_len)
        return Batch(*WRONG[self.how][0](tokens, weights))

    def held_out(self, tokens, seq_len):
        return self.batch(0, 0, tokens // seq_len, seq_len)


@pytest.mark.parametrize("how", WRONG)
def test_a_source_that_breaks_its_contract_is_told_which_rule(how):
    source = Wrong(how=how).open()
    for give in (lambda: drawn(source, 0, 0, 8, 8), lambda: judged_on(source, 64, 8)):
        told = refusal(give)
        assert "_Wrong" in told or "standard error" in told


def test_a_task_is_learnt_by_its_answers_alone():
    """The answer repeats an earlier token: below chance level only where answers are learnt."""
    long = run(budget=Budget(steps=150, batch=16, seq_len=8, eval_tokens=2048))
    ((record, _),) = train([long])
    assert record.loss < 0.5 * math.log(8)
    assert record.metrics["accuracy"].value > 0.5


def test_a_source_without_a_part_of_its_contract_cannot_be_made():
    class Half(Source):
        digest = ""

        def batch(self, step, seed, batch, seq_len):
            raise NotImplementedError

    with pytest.raises(TypeError, match="held_out"):
        Half()


OLD = {
    "loss": 2.5,
    "loss_se": 0.01,
    "bits_per_byte": 3.5,
    "eval_tokens": 4096,
}


def test_records_from_before_metrics_had_names_are_read():
    new = Record(key=run().key, run=run(), status="ok")
    text = json.loads(new.model_dump_json())
    del text["metrics"], text["eval_digests"]
    record = Record.model_validate_json(json.dumps(text | OLD))
    assert (record.loss, record.loss_se, record.bits_per_byte) == (2.5, 0.01, 3.5)
    assert record.eval_tokens == 4096
    assert record.metrics["bits_per_byte"].se == pytest.approx(0.01 * 3.5 / 2.5)
    assert Record.model_validate_json(record.model_dump_json()) == record
    diverged = dict.fromkeys(OLD) | {"eval_tokens": 4096, "status": "diverged"}
    assert Record.model_validate_json(json.dumps(text | diverged)).metrics == {}
    with pytest.raises(ValidationError, match="loss"):
        Record.model_validate(json.loads(record.model_dump_json()) | OLD)


def test_the_likeliest_token_is_the_first_of_equals():
    logits = np.random.default_rng(0).integers(4, size=(50, 6)).astype(np.float32)
    for target in range(6):
        targets = np.full(50, target, np.int32)
        found = likeliest(jnp.asarray(logits), jnp.asarray(targets))
        np.testing.assert_array_equal(found, logits.argmax(-1) == target)
