"""The budget table adds up, and each weakness of a design is told exactly when it is there."""

import fakes
import jax
import pytest

from isoflop.models.errors import UserError
from isoflop.models.lm import Block
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.mixers.moe import Moe
from isoflop.sim.cost.flops import param_counts, training_flops
from isoflop.sim.data import Corpus
from isoflop.sim.grid.estimate import ASSUMED_COMPILE_SECONDS, ASSUMED_FLOPS_PER_SECOND, plan
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Cell


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_the_table_states_each_runs_counts_and_compiles_nothing(store):
    compiled = []

    def listen(event, seconds, **kwargs):
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        rows = plan(fakes.cells(), store).rows
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not [event for event in compiled if "compile" in event]
    for row, cell in zip(rows, fakes.cells(), strict=True):
        counts = param_counts(cell.run.model)
        assert (row.params, row.active_params) == (counts["total"], counts["active"])
        assert row.non_embedding_params == counts["non_embedding"]
        assert row.tokens == cell.run.budget.tokens
        assert row.flops == training_flops(cell.run)["executed"]
        assert row.epochs is None  # a generated language never repeats


def test_branches_are_charged_for_the_steps_they_add_to_their_trunk(store):
    rows = plan(fakes.cells(width=[8], steps=(50, 100), seed=(0, 1)), store).rows
    per_step = rows[0].flops / 50 / ASSUMED_FLOPS_PER_SECOND
    judging = 131_072 / 32 / 3  # held-out tokens, in steps: a forward pass alone
    assert [row.seconds / per_step for row in rows] == pytest.approx(
        [50 + judging, 50 + judging, 60 + judging, 60 + judging]  # the trunk ended at 40
    )
    assert plan(fakes.cells(), store, workers=1).jobs == 2


def test_finished_runs_cost_nothing_and_set_the_rate(store):
    grid = fakes.cells()
    before = plan(grid, store)
    assert "assuming" in before.basis
    done = grid[0].run
    flops = training_flops(done)
    rate = 5e6
    store.save(
        fakes.record(
            done, flops=flops, seconds=flops["executed"] / rate, compile_seconds=3.0, compiled=2
        ),
        {},
    )
    after = plan(grid, store)
    assert "from 1 finished run" in after.basis
    assert after.rows[0].finished
    assert (after.rows[0].seconds, after.rows[0].disk_bytes) == (0, 0)
    assert after.disk_bytes == before.disk_bytes - before.rows[0].disk_bytes
    slower = ASSUMED_FLOPS_PER_SECOND / rate
    assert after.rows[-1].seconds == pytest.approx(slower * before.rows[-1].seconds)
    trained = sum(row.seconds for row in after.rows)
    assert after.seconds == pytest.approx(trained + 2 * 3.0)


def test_compiling_is_of_jobs_that_found_nothing_compiled_and_shared_where_programs_are(store):
    """A sweep of rates compiles once; its other jobs' 0 s, and a cache's .5 s, are no estimate."""
    done = [fakes.run(optim=AdamW(lr=lr, warmup_steps=10)) for lr in (0.1, 0.2, 0.3)]
    spent = [(30.0, 2, 0), (0.0, 0, 0), (0.5, 0, 2)]
    flops = training_flops(done[0])
    for run, (seconds, compiled, cached) in zip(done, spent, strict=True):
        counted = {"compile_seconds": seconds, "compiled": compiled, "cached": cached}
        store.save(fakes.record(run, flops=flops, seconds=1.0, **counted), {})
    rates = [Cell(run=fakes.run(optim=AdamW(lr=lr, warmup_steps=10))) for lr in (1e-4, 1e-3, 1e-2)]
    after = plan(rates, store)
    assert after.jobs == 3
    assert after.compile_seconds == 30
    assert after.seconds == pytest.approx(30 + sum(row.seconds for row in after.rows))
    assert plan(rates, store, workers=3).compile_seconds == 30


def test_the_rate_is_that_of_the_steps_nearest_in_size(store):
    """Small steps leave a machine idle."""
    for width, rate in ((8, 1e9), (64, 8e9)):
        run = fakes.run(width=width)
        flops = training_flops(run)
        store.save(fakes.record(run, flops=flops, seconds=flops["executed"] / rate), {})
    for width, rate in ((8, 1e9), (12, 1e9), (48, 8e9), (128, 8e9)):
        one = fakes.run(width=width, seed=3)
        (row,) = plan([Cell(run=one)], store).rows
        executed = training_flops(one)["executed"] * (1 + 131_072 / 3 / row.tokens)
        assert row.seconds == pytest.approx(executed / rate)


def test_workers_divide_the_time_but_no_job_is_cut(store):
    def seconds(workers, **grid):
        return plan(fakes.cells(**grid), store, workers=workers).seconds

    assert seconds(2) < seconds(1)
    assert seconds(64) == seconds(2)
    assert seconds(1, width=[8]) == seconds(2, width=[8])
    assert seconds(64) > ASSUMED_COMPILE_SECONDS


def test_a_shard_plans_its_own_part(store):
    parts = [plan(fakes.cells(), store, shard=(i, 2)) for i in range(2)]
    whole = plan(fakes.cells(), store)
    assert sorted(r.key for p in parts for r in p.rows) == sorted(r.key for r in whole.rows)


def test_a_sequence_longer_than_its_data_is_refused_before_training(store):
    run = fakes.run(data=Corpus(name="kjv"), budget=Budget(steps=100, batch=1, seq_len=4_000_000))
    with pytest.raises(UserError, match="seq_len=4000000 needs"):
        plan([Cell(run=run)], store)


def grid(width=(8, 16, 32), steps=(500, 1000, 2000), seeds=3, batch=8, cells=None, **changes):
    """A design without a weakness, unless it is given one."""
    pairs = cells or [(w, s) for w in width for s in steps]
    return [
        Cell(
            labels={"family": "dense"},
            run=fakes.run(
                width=w,
                seed=seed,
                budget=Budget(steps=s, batch=batch, seq_len=32, **changes),
            ),
        )
        for w, s in pairs
        for seed in range(seeds)
    ]


def looking_ahead(cells):
    """The same, with experts that choose their tokens."""
    block = Block(channel=Moe(n_experts=2, top_k=1, d_expert=4, route="expert"))
    return [
        cell.model_copy(
            update={
                "run": cell.run.model_copy(
                    update={"model": cell.run.model.model_copy(update={"blocks": (block,)})}
                )
            }
        )
        for cell in cells
    ]


WEAK = {
    "move together": grid(cells=[(8, 500), (16, 1000), (32, 2000), (64, 4000)]),
    "too few to fit": grid(steps=(500, 1000)),
    "off-centre": grid(batch=200),
    "fewer than 500 steps": grid(steps=(499, 1000, 2000)),
    "some points have 2 seeds": grid(seeds=2),
    "9,000 held-out tokens": grid(eval_tokens=9000),
    "causal=False": looking_ahead(grid()),
}


def test_a_sound_design_is_not_warned_about(store):
    assert plan(grid(), store).warnings == ()


@pytest.mark.parametrize("words", WEAK)
def test_a_weak_design_is_warned_about_in_one_sentence(store, words):
    warnings = plan(WEAK[words], store).warnings
    (warning,) = [warning for warning in warnings if words in warning]
    assert warning.startswith("dense: ")
    assert "\n" not in warning


def test_more_than_four_epochs_are_warned_about(store):
    text = Corpus(name="kjv")
    tokens = text.open().train_tokens
    for epochs, warned in ((3.9, False), (4.1, True)):
        steps = round(epochs * tokens / 40_000)
        run = fakes.run(data=text, budget=Budget(steps=steps, batch=100, seq_len=400))
        (row,) = plan([Cell(run=run)], store).rows
        assert row.epochs == pytest.approx(epochs, rel=1e-2)
        told = [w for w in plan([Cell(run=run)], store).warnings if "read their text" in w]
        assert bool(told) == warned


def test_families_of_unlike_size_are_told_once_with_the_worst_pair(store):
    """The own words of sim/README.md: matched within 3 %."""
    cells = fakes.cells(family="dense")

    def other(d_ff):
        block = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=d_ff))
        return [
            Cell(
                labels={"family": "other"},
                run=cell.run.model_copy(
                    update={"model": cell.run.model.model_copy(update={"blocks": (block,)})}
                ),
            )
            for cell in cells
            if cell.run.model.d_model == 16
        ]

    def told(d_ff):
        return [w for w in plan(cells + other(d_ff), store).warnings if "not matched" in w]

    assert told(33) == []  # 2.5 % more
    (warning,) = told(40)
    assert warning == (
        "other and dense are not matched in size: at width 16 and depth 1 they have 2,992 and "
        "2,608 active non-embedding parameters, 15% apart, where at most 3% is fair; size the MLPs "
        "with isoflop.models.families.matching.with_mlp"
    )


def test_a_weakness_that_families_share_is_told_once(store):
    cells = fakes.cells(family="dense") + fakes.cells(family="moe")
    warnings = plan(cells, store).warnings
    assert any(warning.startswith("dense, moe: ") for warning in warnings)
    assert len(warnings) == len(set(warnings))
