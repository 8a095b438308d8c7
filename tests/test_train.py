"""Training is deterministic, resumable, and the same for a run alone as beside others."""

import math

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from models import zoo
from models.errors import UserError
from sim import cache
from sim import train as training
from sim.data import Corpus, ZipfFacts
from sim.optim import AdamW
from sim.spec import Budget, Run
from sim.train import train


def run(steps=12, seed=0, *, lr=0.01, model=None, data=None, **optim) -> Run:
    return Run(
        model=model or zoo.dense(32, 1),
        data=data or Corpus(name="kjv"),
        optim=AdamW(lr=lr, warmup_steps=2, **optim),
        budget=Budget(steps=steps, batch=2, seq_len=32, eval_tokens=256),
        seed=seed,
    )


def results(runs, *args, **kwargs):
    return {r.run.key: (r, w) for r, w in train(runs, *args, **kwargs)}


@pytest.fixture(scope="module")
def together():
    """Two lengths and two seeds, trained as one job."""
    return results([run(steps, seed) for steps in (12, 40) for seed in (0, 1)])


def same(one, other) -> bool:
    (a, weights), (b, others) = one, other
    return (
        a.loss == b.loss
        and a.curve == b.curve
        and all((weights[name] == others[name]).all() for name in weights)
    )


def test_the_same_run_twice_gives_the_same_bits(together):
    again = results([run(steps, seed) for steps in (12, 40) for seed in (0, 1)])
    assert all(same(again[key], together[key]) for key in together)


def test_a_branch_equals_its_run_without_the_other_branches(together):
    alone = results([run(40, 0), run(40, 1)])
    assert all(same(alone[key], together[key]) for key in alone)


def test_wanting_one_record_changes_none_of_its_bits(together):
    key = run(40, 1).key
    runs = [run(steps, seed) for steps in (12, 40) for seed in (0, 1)]
    wanted = results(runs, wanted={key})
    assert set(wanted) == {key}
    assert same(wanted[key], together[key])


def test_a_seed_alone_equals_its_lane_to_rounding(together):
    """A batched product may add in another order than a single one: 1e-4 nats after 12 steps."""
    record, _ = results([run(12, 1)])[run(12, 1).key]
    assert record.lanes == 1
    assert abs(record.loss - together[run(12, 1).key][0].loss) < 1e-4


def test_seeds_differ_and_longer_training_is_better(together):
    losses = {key: record.loss for key, (record, _) in together.items()}
    assert losses[run(12, 0).key] != losses[run(12, 1).key]
    assert losses[run(40, 0).key] < losses[run(12, 0).key] < math.log(256)


def test_a_resumed_trunk_gives_the_same_bits(together, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    runs = [run(steps, seed) for steps in (12, 40) for seed in (0, 1)]
    first = next(iter(train(runs, tmp_path)))  # killed after the first record
    assert first[0].run.budget.steps == 12
    assert any(tmp_path.iterdir())
    steps = []
    longer = {run(40, 0).key, run(40, 1).key}
    resumed = results(runs, tmp_path, lambda event: steps.append(event.step), longer)
    assert all(same(resumed[key], together[key]) for key in longer)
    assert steps[-1] == 40 - 10  # went on from the saved branch point of the shorter run


def test_a_record_carries_what_its_numbers_mean(together):
    record, weights = together[run(12, 0).key]
    assert record.tokens == 12 * 2 * 32
    assert record.eval_tokens >= 256
    assert record.bits_per_byte == pytest.approx(record.loss / math.log(2))
    assert sum(w.size for w in weights.values()) == record.params["total"]
    assert record.curve[-1][0] == 12
    assert set(record.versions) >= {"jax", "flax", "optax", "numpy", "isoflop"}
    assert record.unique_bytes == record.tokens
    assert record.data_digest


def test_too_high_a_rate_is_a_row_that_says_why():
    wild = AdamW(lr=1e6, embedding_lr=1e6, vector_lr=1e6, warmup_steps=0, clip=1e9)
    ((record, _),) = results([run(12).model_copy(update={"optim": wild})]).values()
    assert record.status == "diverged"
    assert record.loss is None
    assert "not finite" in record.reason or "not below" in record.reason


def test_a_package_that_is_not_installed_is_told_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(training, "PACKAGES", ("jax", "isotone"))
    events: list[training.Event] = []
    with pytest.raises(UserError, match="isotone is not installed"):
        next(train([run()], emit=events.append))
    assert events == []


def test_schedule_warms_up_stays_and_cools_down_without_reaching_zero():
    factors = run(100, cooldown=0.2).optim.schedule(100, 0, 100)
    assert factors[0] == 0.5
    assert (factors[1:80] == 1).all()
    assert (np.diff(factors[79:]) < 0).all()
    assert factors[-1] > 0


def test_schedule_before_the_branch_does_not_depend_on_the_length():
    assert (run(100).optim.schedule(100, 0, 80) == run(100).optim.schedule(1000, 0, 80)).all()


def test_bf16_activations_train_as_fp32_ones_and_keep_fp32_weights(together):
    model = zoo.dense(32, 1).model_copy(update={"dtype": "bfloat16"})
    ((record, weights),) = results([run(12, 0, model=model)]).values()
    assert record.loss == pytest.approx(together[run(12, 0).key][0].loss, rel=2e-2)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}


def test_zipf_facts_are_approached_from_above():
    data = ZipfFacts(facts=16, symbols=8, alpha=0.5)
    model = zoo.dense(32, 1, data.vocab_size)
    budget = Budget(steps=40, batch=8, seq_len=32, eval_tokens=4096)
    short = run(40, model=model, data=data, lr=0.03).model_copy(update={"budget": budget})
    long = short.model_copy(update={"budget": budget.model_copy(update={"steps": 400})})
    records = [record for record, _ in train([short, long])]
    excess = [record.loss - record.entropy for record in records]
    assert excess[0] > excess[1] > -3 * records[1].loss_se
    assert excess[1] < 0.05


def test_a_second_start_compiles_nothing_and_gives_the_same_bits(together, tmp_path, monkeypatch):
    def start() -> tuple:
        jax.clear_caches()  # a new process has compiled nothing
        compilation_cache.reset_cache()
        monkeypatch.setattr(training, "_compiled", {})
        return next(iter(results([run(12, seed) for seed in (0, 1)]).values()))

    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    assert settings.keys() - {"jax_enable_compilation_cache"} == {
        *map(str.lower, cache.compilation())
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        first, second = start(), start()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert (first[0].compiled, first[0].cached) == (2, 0)
    assert (second[0].compiled, second[0].cached) == (0, 2)
    assert same(first, second)
