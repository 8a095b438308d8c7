"""A run that goes on from another begins where that ended, and is charged for it."""

import fakes
import numpy as np
import pytest
from pydantic import ValidationError

from isoflop.sim.cost.flops import training_flops
from isoflop.sim.data import Markov
from isoflop.sim.grid.grid import execute, jobs
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Cell, Run, canonical
from isoflop.sim.train.loop import train

STILL = AdamW(  # moves no weight of fp32
    lr=1e-30, embedding_lr=1e-30, vector_lr=1e-30, warmup_steps=1
)
LEARNS = AdamW(lr=0.03, warmup_steps=5)
BUDGET = Budget(steps=1, batch=2, seq_len=16, eval_tokens=640)


def pair(seed=0, **changes) -> tuple[Run, Run]:
    """A parent, and a run of one step that goes on from it."""
    parent = fakes.run(steps=30, seed=seed, budget=BUDGET.model_copy(update={"steps": 30}),
                       optim=LEARNS)  # fmt: skip
    fields = {"optim": STILL, "budget": BUDGET} | changes
    return parent, Run(**dict(parent) | fields | {"start": parent})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A runs directory with two pairs, children first in the list, and the pairs."""
    root, pairs = tmp_path_factory.mktemp("runs"), [pair(seed) for seed in (0, 1)]
    cells = [Cell(run=run) for both in pairs for run in reversed(both)]
    outcome = execute(cells, root, train)
    assert outcome.count("ok") == 4
    return Store(root), pairs


def test_it_begins_with_the_loss_that_its_parent_ended_with_to_the_last_bit(trained):
    store, pairs = trained
    for parent, child in pairs:
        assert store.load(child.key).metrics == store.load(parent.key).metrics
        before, after = store.weights(parent.key), store.weights(child.key)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    first, second = (store.load(child.key).loss for _, child in pairs)
    assert first != second  # each its own parent's


def test_it_learns_on_from_there(trained):
    store, ((parent, _), _) = trained
    budget = BUDGET.model_copy(update={"steps": 40})
    optim = LEARNS.model_copy(update={"lr": 0.01})
    child = Run(**dict(parent) | {"start": parent, "budget": budget, "optim": optim})
    execute([Cell(run=child)], store.root, train)
    record = store.load(child.key)
    assert record.loss < store.load(parent.key).loss
    assert record.flops == training_flops(child)
    alone = training_flops(child.model_copy(update={"start": None}))
    assert all(record.flops[k] == alone[k] + training_flops(parent)[k] for k in alone)


def test_seeds_are_one_cell_and_one_job_though_each_has_a_parent_of_its_own():
    children = [pair(seed)[1] for seed in (0, 1)]
    assert len({child.key for child in children}) == 2
    assert len({child.cell for child in children}) == len({c.trunk for c in children}) == 1
    both = [Cell(run=run) for run in (*children, children[0].start)]
    assert [len(job.runs) for job in jobs(both)] == [1, 2]  # parents first
    assert jobs(both)[1].runs[0].lineage == (children[0].start,)


def test_what_it_goes_on_from_is_in_its_key_and_none_renames_no_run():
    parent, child = pair()
    alone = child.model_copy(update={"start": None})
    assert child.key != alone.key
    assert child.cell != alone.cell
    assert Run.model_validate_json(canonical(child)) == child
    longer = parent.model_copy(update={"budget": BUDGET.model_copy(update={"steps": 31})})
    assert child.model_copy(update={"start": longer}).trunk != child.trunk


def test_the_same_data_are_read_on_and_others_from_their_beginning():
    parent, child = pair()
    assert (parent.first_step, child.first_step) == (0, 30)
    again = Run(**dict(child) | {"start": child})
    assert again.first_step == 31
    other = Markov(symbols=13, order=1)
    assert Run(**dict(child) | {"data": other}).first_step == 0
    wider = BUDGET.model_copy(update={"batch": 4})
    assert Run(**dict(child) | {"budget": wider}).first_step == 0


def test_another_model_or_seed_is_refused_and_so_is_a_parent_that_is_not_there(tmp_path):
    parent, child = pair()
    for changes in ({"seed": 1}, {"model": fakes.run(width=16).model}):
        with pytest.raises(ValidationError, match=f"start.{next(iter(changes))} must be the"):
            Run(**dict(child) | changes)
    outcome = execute([Cell(run=child)], tmp_path, train)
    assert outcome.count("failed") == 1
    assert f"run {parent.key} has no weights" in outcome.mistakes[0]
    assert "train it first" in outcome.mistakes[0]
