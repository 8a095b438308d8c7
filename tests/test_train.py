"""Training is deterministic, resumable, and the same for a run alone as beside others."""

import errno
import hashlib
import itertools
import math
import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from sources import refusal

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.data import Corpus, File, ZipfFacts, cache
from isoflop.sim.grid.estimate import plan
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train import checkpoints, preemption
from isoflop.sim.train import loop as training
from isoflop.sim.train.loop import train
from isoflop.sim.train.preemption import Preempted


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
    assert record.seed_batch == 1
    assert abs(record.loss - together[run(12, 1).key][0].loss) < 1e-4


def test_seeds_differ_and_longer_training_is_better(together):
    losses = {key: record.loss for key, (record, _) in together.items()}
    assert losses[run(12, 0).key] != losses[run(12, 1).key]
    assert losses[run(40, 0).key] < losses[run(12, 0).key] < math.log(256)


def test_a_resumed_trunk_gives_the_same_bits(together, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    runs = [run(steps, seed) for steps in (12, 40) for seed in (0, 1)]
    first = next(iter(train(runs, tmp_path)))  # killed after the first record
    assert first[0].run.budget.steps == 12
    assert any(tmp_path.iterdir())
    steps = []
    longer = {run(40, 0).key, run(40, 1).key}
    resumed = results(runs, tmp_path, lambda event: steps.append(event.step), longer)
    assert all(same(resumed[key], together[key]) for key in longer)
    assert steps[-1] == 40 - 10  # went on from the saved branch point of the shorter run


class Killed(BaseException):
    """As kill -9: nothing of the trainer's runs after it."""


@pytest.mark.parametrize(
    "after", [1, 3, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5))]
)
def test_a_run_killed_at_any_step_goes_on_from_there_with_the_same_bits(
    together, tmp_path, monkeypatch, after
):
    """Inside the trunk, at its branch points, inside its branches."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "DISPATCH", 7)
    runs = [run(steps, seed) for steps in (12, 40) for seed in (0, 1)]
    found, seen = {}, []

    def kill(event):
        seen.append(event.step)
        if len([step for step in seen if step]) > after:
            raise Killed

    with pytest.raises(Killed):
        found.update((r.key, (r, weights)) for r, weights in train(runs, tmp_path, kill))
    again = []
    wanted = {one.key for one in runs} - found.keys()
    found |= results(runs, tmp_path, lambda event: again.append(event.step), wanted)
    assert all(same(found[key], together[key]) for key in together)
    whole = 42  # steps of the trunk and its branches
    assert again[-1] <= whole - (seen[-1] - 7)


def test_a_checkpoint_of_another_trunk_is_not_taken_up(together, tmp_path, monkeypatch):
    """Of another learning rate, with equal shapes; nor one of fewer seeds."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    results([run(12, seed, lr=0.02) for seed in (0, 1)], tmp_path)
    results([run(12, seed) for seed in (0, 2)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    found = results([run(12, seed) for seed in (0, 1)], tmp_path)
    assert all(same(found[key], together[key]) for key in found)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken_up(
    together, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "DISPATCH", 8)
    runs = [run(40, 0), run(40, 1)]
    job = training.Job(runs)

    def kill(event):
        if event.step == 32:
            raise Killed

    with pytest.raises(Killed):
        list(train(runs, tmp_path, kill))
    kept = [tmp_path / f"{job.digest}.trunk.{step}" for step in (24, 32)]
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    (kept[1] / "manifest.ocdbt").write_bytes(b"")
    events = []
    found = results(runs, tmp_path, events.append)
    notes = [event.text for event in events if isinstance(event, training.Note)]
    assert len(notes) == 1
    assert "trunk.32 is damaged (manifest.ocdbt is another)" in notes[0]
    assert all(same(found[key], together[key]) for key in found)
    assert events[-1].step == 40 - 24


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(together, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "DISPATCH", 7)
    monkeypatch.setattr(os, "fsync", full)
    notes = []
    found = results([run(12, 0), run(12, 1)], tmp_path, notes.append)
    assert [note.text for note in notes if isinstance(note, training.Note)] == [
        "cannot save a checkpoint, and goes on without: the disk is full; what was finished is "
        "kept; free some space and run again"
    ]
    assert all(same(found[key], together[key]) for key in found)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_saves_the_state_and_ends_the_job_which_goes_on_with_the_same_bits(
    together, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "DISPATCH", 7)
    runs = [run(steps, seed) for steps in (12, 40) for seed in (0, 1)]
    found, steps = {}, []

    def strike(event):
        if event.step == 19:
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted) as ended, preemption.watched():
        found.update((r.key, (r, weights)) for r, weights in train(runs, tmp_path, strike))
    assert ended.value.signal == signal.SIGUSR1
    assert "stopped by SIGUSR1" in str(ended.value)
    wanted = {one.key for one in runs} - found.keys()
    found |= results(runs, tmp_path, lambda event: steps.append(event.step), wanted)
    assert all(same(found[key], together[key]) for key in together)
    assert steps[-1] == 42 - 26  # the steps after the signal are those of the call under way


def test_a_run_beyond_its_time_is_saved_and_goes_on_with_more(together, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DISPATCH", 7)
    runs = [run(40, seed) for seed in (0, 1)]
    for _ in range(2):
        told = refusal(lambda: list(train(runs, tmp_path, time_limit=1e-9)))
    assert told.startswith("the time limit of 1e-09 s was reached at step 14 of 40; raise")
    found = results(runs, tmp_path, time_limit=1e9)
    assert all(same(found[key], together[key]) for key in found)


def test_a_full_device_is_said_and_the_job_goes_on_in_micro_batches(together, monkeypatch):
    whole = training.Job.call

    def call(job, name, *args):
        if job.layout.micro_batches == 1 and name == "advance":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(job, name, *args)

    monkeypatch.setattr(training.Job, "call", call)
    notes = []
    ((record, _),) = results([run(12, 0)], emit=notes.append).values()
    assert "out of memory; goes on with 2 micro-batches a step" in {
        note.text for note in notes if isinstance(note, training.Note)
    }
    assert record.layout == {"micro_batches": 2}
    assert record.loss == pytest.approx(together[run(12, 0).key][0].loss, rel=1e-4)


def test_slow_steps_are_computed_few_at_a_time_so_that_signals_are_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CALL_SECONDS", 0.0)
    steps = []
    results([run(40, seed) for seed in (0, 1)], emit=lambda event: steps.append(event.step))
    assert {b - a for a, b in itertools.pairwise(steps)} >= {1}
    assert steps[-1] == 40


def test_one_held_out_window_is_refused_before_anything_is_compiled(tmp_path):
    budget = Budget(steps=12, batch=2, seq_len=32, eval_tokens=32)
    lone = run(12).model_copy(update={"budget": budget})
    events = []
    told = refusal(lambda: list(train([lone], emit=events.append)))
    assert "eval_tokens=32" in told
    assert "1 window, and the standard error of a loss needs 2" in told
    assert events == []
    assert told == refusal(plan, [Cell(run=lone)], Store(tmp_path))


def test_a_file_overwritten_while_it_is_trained_on_changes_nothing(tmp_path, own_cache):
    """In place and shorter, which would end a process that had mapped it."""
    text = Corpus(name="kjv").open().train.array[:50_000].tobytes()
    path = tmp_path / "own.txt"
    path.write_bytes(text)
    config = File(path=str(path))
    ((whole, _),) = results([run(12, data=config)]).values()

    def overwrite(event):
        with open(path, "r+b") as file:
            file.truncate(100)
            file.write(b"E" * 100)

    ((record, _),) = results([run(12, data=config)], emit=overwrite).values()
    assert record.loss == whole.loss
    assert record.data_digest == hashlib.sha256(text).hexdigest()


def test_data_that_change_under_a_run_are_its_reason_to_fail(tmp_path, own_cache):
    path = tmp_path / "own.txt"
    path.write_bytes(Corpus(name="kjv").open().train.array[:50_000].tobytes())

    def spoil(event):
        for copy in own_cache.glob("file-*"):
            with open(copy, "r+b") as file:
                file.write(b"E" * 100)

    told = refusal(lambda: results([run(12, data=File(path=str(path)))], emit=spoil))
    assert "changed in the cache while they were in use" in told


def test_a_record_carries_what_its_numbers_mean(together):
    record, weights = together[run(12, 0).key]
    assert record.tokens == 12 * 2 * 32
    assert record.eval_tokens >= 256
    assert record.bits_per_byte == pytest.approx(record.loss / math.log(2))
    assert sum(w.size for w in weights.values()) == record.params["total"]
    assert record.curve[-1][0] == 12
    assert set(record.versions) >= {"jax", "flax", "optax", "numpy", "isoflop"}
    assert record.unique_bytes == record.tokens
    assert record.data_digest == run(12, 0).data.open().digest


def test_too_high_a_rate_is_a_row_that_says_why():
    wild = AdamW(lr=1e6, embedding_lr=1e6, vector_lr=1e6, warmup_steps=0, clip=1e9)
    ((record, _),) = results([run(12).model_copy(update={"optim": wild})]).values()
    assert record.status == "diverged"
    assert record.loss is None
    assert "not finite" in record.reason or "not below" in record.reason


def test_a_job_whose_every_seed_has_diverged_computes_no_more_and_says_when(monkeypatch):
    whole = training.Job.call

    def call(job, name, *args):
        found = whole(job, name, *args)
        called.append(name)
        return (found[0], found[1] * np.nan) if len(called) == 2 else found

    called: list[str] = []
    monkeypatch.setattr(training, "DISPATCH", 7)
    monkeypatch.setattr(training.Job, "call", call)
    ((record, _),) = results([run(40, 0)]).values()
    assert called == ["advance", "advance", "evaluate"]
    assert record.status == "diverged"
    assert record.reason.startswith("training loss was not finite at step 8; the last good step is")
    assert record.curve[-1][0] == 7


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
