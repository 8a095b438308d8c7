"""A class budget: what students buy, what they pay, what they predict and how they are ranked."""

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import classes
import fakes
import numpy as np
import pytest
from scipy.special import gammaincinv, ndtri

from isoflop.experiments.cli.main import main
from isoflop.models.errors import UserError
from isoflop.sim.classroom import ledger, scoring, teacher, work
from isoflop.sim.classroom.entries import Predicted
from isoflop.sim.classroom.rules import Design, Target, flops_of
from isoflop.sim.grid.executors import local
from isoflop.sim.records import cs336
from isoflop.sim.records.readers import read
from isoflop.sim.records.store import Row
from isoflop.sim.train import loop
from isoflop.sim.train.health import TimeLimit

GOOD = Design(family="dense", width=16, depth=1, lr=1e-3)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def room(tmp_path):
    return classes.room(tmp_path / "class")


def failing(runs, work, emit, wanted):
    raise ZeroDivisionError("a bug")
    yield


def diverging(runs, work, emit, wanted):
    """A loss that is a number for 40 of 100 steps."""
    for run in runs:
        yield (
            fakes.record(run).model_copy(
                update={"status": "diverged", "metrics": {}, "curve": ((20, 3.0), (40, 9.0))}
            ),
            {},
        )


# buying


def test_a_run_is_reserved_then_trained_and_charged_what_it_took(room):
    cell = classes.cell(room)
    purchase, new = room.submit("ada", cell)
    assert new
    assert purchase.settled is None
    account = room.account("ada")
    assert (account.reserved, account.spent) == (flops_of(cell.run), 0)
    assert work.train(room, fakes.train) == 1
    account = room.account("ada")
    assert (account.reserved, account.spent) == (0, flops_of(cell.run))
    assert account.left == account.budget - flops_of(cell.run)
    assert room.account("ben").left == room.rules.budget


def test_ones_own_run_again_is_free_while_it_waits_and_when_it_is_done(room):
    room.submit("ada", classes.cell(room))
    before = room.account("ada")
    waiting, new = room.submit("ada", classes.cell(room))
    assert (new, waiting.settled, room.account("ada")) == (False, None, before)
    work.train(room, fakes.train)
    before = room.account("ada")
    done, new = room.submit("ada", classes.cell(room))
    assert (new, done.settled.status, room.account("ada")) == (False, "ok", before)


def test_anothers_run_costs_what_it_took_and_is_not_trained_again(room):
    room.submit("ada", classes.cell(room))
    work.train(room, fakes.train)
    purchase, new = room.submit("ben", classes.cell(room))
    assert new
    assert purchase.settled.charge == flops_of(classes.cell(room).run)
    assert work.train(room, fakes.never) == 0
    assert room.account("ben").spent == room.account("ada").spent > 0


def test_whoever_cannot_pay_for_anothers_run_does_not_see_it(tmp_path):
    room = classes.room(tmp_path / "class", budget=11 * 10**7, largest=10**8)
    big, small = classes.cell(room, width=8, steps=150), classes.cell(room, width=8, steps=140)
    room.submit("ada", big)
    work.train(room, fakes.train)
    room.submit("ben", small)
    with pytest.raises(UserError, match="of ben's budget of"):
        room.submit("ben", big)
    assert len(room.account("ben").purchases) == 1


def test_equal_runs_of_two_students_that_wait_are_trained_once_and_paid_by_both(room):
    for name in ("ada", "ben"):
        room.submit(name, classes.cell(room))
    trained = []

    def counted(runs, folder, emit, wanted):
        trained.extend(runs)
        yield from fakes.train(runs, folder, emit, wanted)

    assert work.train(room, counted) == 2
    assert len(trained) == 1
    assert room.account("ada").spent == room.account("ben").spent > 0


def test_more_than_the_budget_or_than_a_run_may_take_is_refused(room):
    with pytest.raises(UserError, match="a run may take 4e"):
        room.submit("ada", classes.cell(room, width=64, steps=1000))

    def buys():
        for steps in range(100, 200):
            room.submit("ada", classes.cell(room, width=32, steps=steps))

    with pytest.raises(UserError, match="are left; make it smaller or shorter"):
        buys()
    account = room.account("ada")
    assert 0 <= account.left < flops_of(classes.cell(room, width=32).run) * 2
    with pytest.raises(UserError, match="must be one of this class's: dense, lstm"):
        classes.cell(room, family="mamba")


def test_a_failed_run_is_refunded_and_may_be_bought_again(room):
    for _ in range(2):  # the first failure does not refund the second purchase
        purchase, new = room.submit("ada", classes.cell(room))
        assert new
        assert purchase.settled is None
        work.train(room, failing)
        end = room.account("ada").purchases[-1].settled
        assert (end.status, end.charge, room.account("ada").spent) == ("failed", 0, 0)
        assert "a bug" in end.reason
    room.submit("ada", classes.cell(room))
    work.train(room, fakes.train)
    assert room.account("ada").spent == flops_of(classes.cell(room).run)


def test_a_run_that_diverged_costs_the_steps_that_were_computed(room):
    cell = classes.cell(room)
    room.submit("ada", cell)
    work.train(room, diverging)
    assert room.account("ada").spent == flops_of(cell.run) * 40 // 100
    assert room.submit("ada", cell)[1] is False  # and is a result
    assert room.price(cell) == flops_of(cell.run)  # tells nobody that it diverges
    assert room.submit("ben", cell)[0].settled.charge == flops_of(cell.run) * 40 // 100


def test_students_take_turns(room):
    for steps in (100, 110, 120):
        room.submit("ada", classes.cell(room, steps=steps))
    room.submit("ben", classes.cell(room, width=16))
    turns = []
    work.train(room, fakes.train, on_turn=lambda turn: turns.append(set(turn)))
    assert turns == [{"ada", "ben"}, {"ada"}, {"ada"}]


def test_a_student_s_name_leads_nowhere_else(room):
    for name in ("../ada", "Ada", "", "a/b", "-x", "a" * 41):
        with pytest.raises(UserError, match="student"):
            room.account(name)
        with pytest.raises(UserError, match="a student's name must be"):
            room.enrol(name)
    with pytest.raises(UserError, match="is in the class already"):
        room.enrol("ada")


# seconds


@pytest.fixture
def timed(tmp_path):
    return classes.room(tmp_path / "class", unit="seconds", budget=10.0, largest=5.0)


def test_seconds_are_reserved_and_charged_as_measured(timed):
    limits = []

    def trained(runs, folder, emit, wanted, time_limit):
        limits.append(time_limit)
        for record, weights in fakes.train(runs, folder, emit, wanted):
            yield record.model_copy(update={"seconds": 1.5}), weights

    timed.submit("ada", classes.cell(timed), 4.0)
    timed.submit("ben", classes.cell(timed, seed=1), 3.0)  # of the same trunk: trained alone
    assert timed.account("ada").left == 6.0
    work.train(timed, trained)
    assert limits == [4.0, 3.0]
    assert timed.account("ada").spent == 1.5
    with pytest.raises(UserError, match="a run may take 5 s in this class"):
        timed.submit("ada", classes.cell(timed, steps=200), 5.5)
    with pytest.raises(UserError, match="say so with --seconds"):
        timed.submit("ada", classes.cell(timed, steps=200))


def test_anothers_seconds_are_those_that_it_would_have_taken(timed):
    """Whoever reserves fewer has a run that is stopped, as if it were trained again."""

    def trained(runs, folder, emit, wanted, time_limit):
        for record, weights in fakes.train(runs, folder, emit, wanted):
            yield record.model_copy(update={"seconds": 3.0}), weights

    cell = classes.cell(timed)
    timed.submit("ada", cell, 4.0)
    work.train(timed, trained)
    assert timed.price(cell, 1.0) == 1.0  # tells nothing of ada's
    purchase, new = timed.submit("ben", cell, 1.0)
    assert new
    assert (purchase.settled.status, purchase.settled.charge) == ("failed", 1.0)
    purchase, new = timed.submit("ben", cell, 4.0)
    assert (purchase.settled.status, purchase.settled.charge, new) == ("ok", 3.0, True)
    assert timed.account("ben").spent == 4.0


def test_a_run_that_takes_all_its_seconds_costs_them(timed):
    def late(runs, folder, emit, wanted, time_limit):
        raise TimeLimit(f"the time limit of {time_limit:g} s was reached")
        yield

    timed.submit("ada", classes.cell(timed), 4.0)
    work.train(timed, late)
    (purchase,) = timed.account("ada").purchases
    assert (purchase.settled.status, purchase.settled.charge) == ("failed", 4.0)
    assert "buy it with more seconds" in purchase.settled.reason


def test_equal_runs_of_different_seconds_end_each_as_if_alone(timed):
    """Which takes 3 s: trained under the larger limit, or first under the smaller one alone."""
    limits = []

    def trained(runs, folder, emit, wanted, time_limit):
        limits.append(time_limit)
        if time_limit < 3:
            if len(limits) == 1:  # and meanwhile
                timed.submit("ben", classes.cell(timed), 4.0)
            raise TimeLimit("the time limit was reached")
        for record, weights in fakes.train(runs, folder, emit, wanted):
            yield record.model_copy(update={"seconds": 3.0}), weights

    def ends(name):
        return [(one.settled.status, one.settled.charge) for one in timed.account(name).purchases]

    timed.submit("ada", classes.cell(timed), 1.0)
    work.train(timed, trained)
    assert limits == [1.0, 4.0]
    assert (ends("ada"), ends("ben")) == ([("failed", 1.0)], [("ok", 3.0)])
    timed.submit("ada", classes.cell(timed, steps=110), 1.0)
    timed.submit("ben", classes.cell(timed, steps=110), 4.0)
    work.train(timed, trained)
    assert limits[2:] == [4.0]
    assert (ends("ada")[1], ends("ben")[1]) == (("failed", 1.0), ("ok", 3.0))


def test_seconds_that_nobody_names_are_twice_the_estimate(timed):
    cell = classes.cell(timed)
    assert work.limit(timed, cell) == work.LEAST_SECONDS
    assert work.limit(timed, cell, 2.5) == 2.5
    long = classes.cell(timed, width=256, steps=10_000)
    rate = 1e10  # that a plan assumes
    assert work.limit(timed, long) == pytest.approx(2 * flops_of(long.run) / rate, rel=0.05)
    assert work.limit(timed, long, 1.0) == 1.0  # nobody knows better yet
    timed.store.save(fakes.record(cell.run, seconds=0.1, flops={"executed": 10**9}), {})
    with pytest.raises(UserError, match="this run would take about"):
        work.limit(timed, long, 1.0)


# many at once


def test_thirty_students_in_two_threads_each_spend_no_budget_twice(tmp_path):
    names = [f"s{i}" for i in range(30)]
    room = classes.room(tmp_path / "class", names, budget=18 * 10**7, largest=10**8)
    start, errors = threading.Barrier(60), []

    def buys(name, first):
        start.wait()
        try:
            for i in range(100):
                room.submit(name, classes.cell(room, steps=100 + first + 2 * i))
        except UserError as error:
            if "are left" not in str(error):
                errors.append(error)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=buys, args=(n, half)) for n in names for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for name in names:
        account = room.account(name)
        keys = [one.key for one in account.purchases]
        assert len(set(keys)) == len(keys) > 1
        assert sum(one.cost for one in account.purchases) <= account.budget
        assert account.left < flops_of(classes.cell(room, steps=301).run)


@pytest.mark.slow
def test_kills_of_students_and_workers_lose_nothing_and_overspend_nothing(tmp_path):
    """crowd.py kills thirty students' processes and three workers again and again."""
    script = Path(__file__).with_name("crowd.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "class")],
        capture_output=True, text=True, timeout=300, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["killed_students"] >= 20
    assert told["killed_workers"] >= 3
    room = ledger.load(tmp_path / "class")
    assert len(room.students) == 30
    acknowledged = 0
    for name in room.students:
        account = room.account(name)
        assert list(account.waiting) == []
        assert account.spent <= account.budget
        keys = {one.key for one in account.purchases}
        assert len(keys) == len(account.purchases)
        lines = (tmp_path / f"told-{name}").read_text().split()
        assert set(lines) <= keys  # what a student was told is bought stays so
        acknowledged += len(lines)
        for one in account.purchases:
            assert one.settled.charge == flops_of(one.submitted.cell.run)
            assert room.store.done(one.key)
    assert acknowledged > 60
    trained = (tmp_path / "trained").read_text().split()
    assert {*trained} == {path.parent.name for path in room.root.glob("runs/*/result.json")}


def environment():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}


def test_a_damaged_line_of_a_log_is_told_and_stops_no_other_student(room):
    room.submit("ada", classes.cell(room))
    (room.root / "students" / "ada" / "2.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"2\.json is no whole line of a student's log"):
        room.account("ada")
    room.submit("ben", classes.cell(room))


# the target


def test_the_target_is_nowhere_in_the_folder_until_it_is_announced(room):
    def places():
        told = str(classes.TARGET.flops).encode()
        return [p.name for p in room.root.rglob("*") if p.is_file() and told in p.read_bytes()]

    room.submit("ada", classes.cell(room))
    assert places() == []
    with pytest.raises(UserError, match="not the target that the class was founded with"):
        room.announce(Target(flops=classes.TARGET.flops, salt="4567"))
    room.announce(classes.TARGET)
    assert places() == ["target.json"]
    assert room.target == classes.TARGET
    (room.root / "target.json").write_text(Target(flops=5, salt="0123").model_dump_json())
    with pytest.raises(UserError, match="not the target that the class was founded with"):
        _ = room.target


def test_what_is_within_reach_is_no_target(tmp_path):
    with pytest.raises(UserError, match="must be beyond the largest run"):
        classes.room(tmp_path / "class", budget=2 * 10**12, largest=10**12)
    assert not (tmp_path / "class" / "class.json").exists()


def test_runs_end_where_predictions_begin_and_predictions_where_the_class_is_closed(room):
    with pytest.raises(UserError, match="the target is not announced yet"):
        room.predict("ada", GOOD, 2.0, 1.9, 2.1)
    with pytest.raises(UserError, match="nobody could predict it"):
        room.close()
    room.announce(classes.TARGET)
    with pytest.raises(UserError, match="no more runs are taken"):
        room.submit("ada", classes.cell(room))
    room.predict("ada", GOOD, 2.0, 1.9, 2.1)
    room.predict("ada", GOOD, 2.0, 1.8, 2.1)
    assert room.account("ada").prediction.low == 1.8
    room.close()
    with pytest.raises(UserError, match="takes no more predictions"):
        room.predict("ada", GOOD, 2.0, 1.9, 2.1)
    assert room.account("ada").prediction.low == 1.8


def test_a_class_may_know_its_target_from_the_beginning(tmp_path):
    room = classes.room(tmp_path / "class", announced=True)
    room.submit("ada", classes.cell(room))
    room.predict("ada", GOOD, 2.0, 1.9, 2.1)
    room.close()
    with pytest.raises(UserError, match="the class is closed, and no more runs are taken"):
        room.submit("ada", classes.cell(room, steps=200))


def test_a_design_is_trained_for_as_long_as_the_target_pays(room):
    room.announce(classes.TARGET)
    run = room.predict("ada", GOOD.model_copy(update={"seed": 5}), 2.0, 1.9, 2.1).cell.run
    each = flops_of(run) // run.budget.steps
    assert 0 <= classes.TARGET.flops - flops_of(run) < each
    assert run.seed == 0
    with pytest.raises(UserError, match="of which 50 warm up; hand in a smaller model"):
        room.predict("ada", GOOD.model_copy(update={"width": 4096}), 2.0, 1.9, 2.1)
    for low, loss, high in ((2.1, 2.0, 2.2), (1.0, 2.0, 1.9), (0.0, 1.0, 2.0)):
        with pytest.raises(ValueError, match=r"interval|greater than 0"):
            room.predict("ada", GOOD, loss, low, high)
    with pytest.raises(ValueError, match="finite"):
        room.predict("ada", GOOD, 2.0, 1.0, math.inf)


# scoring


def test_the_interval_score_is_winkler_s():
    assert scoring.interval_score(1.0, 2.0, 1.5, 0.9) == pytest.approx(1.0)
    assert scoring.interval_score(1.0, 2.0, 0.9, 0.9) == pytest.approx(1.0 + 20 * 0.1)
    assert scoring.interval_score(1.0, 2.0, 2.3, 0.5) == pytest.approx(1.0 + 4 * 0.3)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("belief", ["normal", "skewed"])
def test_the_honest_interval_has_the_best_expected_score(level, belief):
    """Among intervals that are narrower, wider, or moved, of whoever believes rightly."""
    inverse = ndtri if belief == "normal" else lambda p: gammaincinv(2.0, p)
    x = 2.0 + 0.05 * inverse((np.arange(400) + 0.5) / 400)
    low, high = 2.0 + 0.05 * inverse(np.array([(1 - level) / 2, (1 + level) / 2]))

    def expected(left, right):
        ends = low - left * (high - low), high + right * (high - low)
        return np.mean([scoring.interval_score(*ends, one, level) for one in x])

    rest = {(a, b) for a in (-0.3, -0.1, 0, 0.1, 0.3) for b in (-0.3, -0.1, 0, 0.1, 0.3)}
    found = {ends: expected(*ends) for ends in rest}
    assert min(found, key=found.get) == (0, 0)


def predicted(room, width, low, high):
    cell = room.rules.affordable(GOOD.model_copy(update={"width": width}), classes.TARGET.flops)
    return Predicted(cell=cell, loss=(low + high) / 2, low=low, high=high)


def test_models_are_ranked_by_loss_and_intervals_against_the_best_with_fresh_seeds(room):
    handed = {
        "ada": predicted(room, 8, 1.9, 2.3),
        "ben": predicted(room, 16, 2.05, 2.15),
        "cyd": predicted(room, 16, 2.0, 2.05),
        "dan": predicted(room, 32, 2.05, 2.15),
    }
    records = {}
    for one, loss in zip(handed.values(), (2.2, 2.0, 2.0, None), strict=True):
        run = one.cell.run
        records[run.key] = fakes.record(run, loss or 1.0)
        if loss is None:
            changed = {"status": "diverged", "metrics": {}}
            records[run.key] = records[run.key].model_copy(update=changed)
    assert scoring.board(handed, records, 0.9, 2) is None  # the best was not trained again
    best = scoring.best(handed, records)
    assert best == handed["ben"].cell
    for cell, loss in zip(scoring.fresh(best, 2), (2.08, 2.12), strict=True):
        records[cell.run.key] = fakes.record(cell.run, loss)
    board = scoring.board(handed, records, 0.9, 2)
    assert board.loss == pytest.approx(2.1)  # not the 2.0 that made it the best
    assert board.se == pytest.approx(0.02)
    ranked = {one.student: one for one in board.standings}
    assert {n: s.model_rank for n, s in ranked.items()} == {"ben": 1, "cyd": 1, "ada": 3, "dan": 4}
    assert {n: s.interval_rank for n, s in ranked.items()} == {
        "ben": 1, "dan": 1, "ada": 3, "cyd": 4}  # fmt: skip
    assert ranked["cyd"].score == pytest.approx(0.05 + 20 * 0.05)
    assert [one.student for one in board.standings] == ["ben", "cyd", "dan", "ada"]
    assert board.held == 3
    without = scoring.board(handed, records, 0.9, 0)
    assert (without.loss, without.se) == (2.0, None)


def test_a_class_is_scored_once_and_each_design_is_trained_once(room):
    room.announce(classes.TARGET)
    for name in ("ada", "ben"):
        room.predict(name, GOOD, 1.5, 1.0, 2.0)
    with pytest.raises(UserError, match="first isoflop class close"):
        work.score(room, fakes.train)
    room.close()
    assert work.board(room) is None
    found = work.score(room, fakes.train)
    assert len(found.standings) == 2
    assert len(list(room.root.glob("runs/*/result.json"))) == 1 + room.rules.fresh
    assert work.board(room) == work.score(room, fakes.never) == found


def test_a_target_that_could_not_be_trained_is_told(room):
    room.announce(classes.TARGET)
    room.close()
    with pytest.raises(UserError, match="nobody handed in a prediction"):
        work.score(room, fakes.train)


# CS336's lists


CURVES = [
    {"parameters": n, "compute_budget": c, "final_loss": 2 + (math.log(n / c**0.5)) ** 2 / 100}
    for c in (1e18, 1e19, 1e20, 1e21)
    for n in (c**0.5 * 2.0**i for i in range(-3, 4))
]
RUN = {"d_model": 64, "num_layers": 2, "num_heads": 4, "batch_size": 128, "learning_rate": 1e-3,
       "train_flops": 10**13, "loss": 6.5}  # fmt: skip
EXPERIMENT = {
    "experiment_id": 7,
    "training_config": {
        "architecture_config": {
            "attention_bias": False, "head_dim": 16, "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False,
            "dtype": "float32", "vocab_size": 32000,
        },
        "optimizer_config": {"lr_scheduler": {"peak_value": 3e-4}, "weight_decay": 0.01},
        "train_batch_size": 128, "val_batch_size": 32, "n_evals": 16,
        "total_train_tokens": 8388608, "max_runtime_seconds": 60.0, "model_seed": 0,
    },
    "status": {"status_type": "completed", "queued_at": "2026-05-01T00:00:00Z",
               "used_runtime_seconds": 31.5, "val_losses": [7.0, 6.0]},
}  # fmt: skip


def table_of(tmp_path, value):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(value))
    return read(path)


def test_the_three_lists_of_cs336_become_the_columns_of_a_fit(tmp_path):
    curves = table_of(tmp_path, CURVES)
    assert curves["D"][0] == pytest.approx(CURVES[0]["compute_budget"] / 6 / curves["N"][0])
    for value in ([RUN], {"previous_runs": [RUN]}):
        runs = table_of(tmp_path, value)
        assert (runs["N"], runs["flops"], runs["loss"]) == ([12 * 2 * 64**2], [10**13], [6.5])
        assert runs["D"][0] == pytest.approx(10**13 / 6 / (12 * 2 * 64**2))
    late = EXPERIMENT | {"status": {"status_type": "running", "val_losses": []}}
    new = table_of(tmp_path, [EXPERIMENT, late, EXPERIMENT | {"training_config": {}}])
    assert new["N"][0] == 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert (new["D"][0], new["loss"][0], new["seconds"][0]) == (8388608, 6.0, 31.5)
    assert new["flops"][0] == 6 * new["N"][0] * 8388608
    assert new["status"][:2] == ["completed", "running"]
    assert "unreadable" in new["status"][2]
    assert table_of(tmp_path, [{"a": {"b": 1}}, {"a": {"b": 2}}]) == {"a.b": [1, 2]}
    for bad in (3, [3], {"a": 1}):
        with pytest.raises(UserError, match="must be a list of objects, one a run"):
            table_of(tmp_path, bad)


def test_cs336_s_curves_are_fitted_without_naming_a_column(tmp_path, capsys):
    path, out = tmp_path / "isoflops_curves.json", tmp_path / "fit.json"
    path.write_text(json.dumps(CURVES))
    assert main(["fit", str(path), "--approach", "2", "--json", str(out)]) == 0
    assert "0.5" in capsys.readouterr().out
    assert json.loads(out.read_text())["a"] == pytest.approx(0.5, abs=0.01)


def test_runs_go_out_and_come_back(room, tmp_path):
    run = classes.cell(room, width=16, steps=200).run
    counts = {"params": {"non_embedding": 1000}, "flops": {"6ND_non_embedding": 6 * 1000 * 6400}}
    rows = [Row(labels={"family": "dense"}, record=fakes.record(run, 2.25, **counts))]
    bad = fakes.record(run).model_copy(update={"status": "diverged", "metrics": {}})
    rows.append(Row(labels={}, record=bad))
    out = cs336.runs(rows)
    (line,) = out["previous_runs"]
    assert line == {
        "d_model": 16, "num_layers": 1, "num_heads": line["num_heads"], "batch_size": 2,
        "learning_rate": 1e-3, "train_flops": 6 * 1000 * 6400, "loss": 2.25, "family": "dense",
    }  # fmt: skip
    assert line["num_heads"] > 0
    assert {*cs336.RUN} <= line.keys()
    assert table_of(tmp_path, out)["family"] == ["dense"]
    back = table_of(tmp_path, cs336.curves(rows))
    assert (back["N"], back["D"], back["loss"]) == ([1000], [6400.0], [2.25])


# the command


@pytest.fixture
def isoflop(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", fakes.train)
    monkeypatch.setattr(local, "Apart", local.Local)  # which starts a process for each job
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main(["class", *map(str, args)])
        return code, *capsys.readouterr()

    return call


def test_a_class_from_its_beginning_to_its_leaderboard(isoflop, tmp_path):
    shape = ("--width", 16, "--depth", 1)
    made = isoflop("create", "c", "--budget", 1e11, "--target", 1e12, "--students", "ada", "ben")
    assert made[0] == 0, made
    tokens = dict(line.split() for line in made[1].splitlines()[2:4])
    secret = next((tmp_path / "config").rglob("*.json"))
    assert json.loads(secret.read_text())["tokens"] == tokens
    assert secret.stat().st_mode & 0o077 == 0
    ada = ("--student", "ada")
    told = isoflop("submit", "c", *ada, *shape, "--steps", 100, "--price")[1]
    assert "ada has 1e+11 FLOPs left" in told
    assert "it waits to be trained" in isoflop("submit", "c", *ada, *shape, "--steps", 100)[1]
    assert "1 runs came to an end" in isoflop("work", "c")[1]
    again = isoflop("submit", "c", *ada, *shape, "--steps", 100)[1]
    assert "you have this run already; loss" in again
    assert "nothing is charged" in again
    now = json.loads(isoflop("submit", "c", *ada, *shape, "--steps", 200, "--now", "--json")[1])
    assert (now["status"], now["new"]) == ("ok", True)
    assert now["loss"] > 0
    rows = json.loads(isoflop("status", "c", "--json")[1])["students"]
    assert [row["runs"] for row in rows] == [2, 0]
    assert "1e+11" in isoflop("status", "c")[1]
    assert "loss" not in str(rows)  # of nobody's runs
    assert "dense, width 16, depth 1, 200 steps" in isoflop("status", "c", *ada)[1]
    assert "the target is 1e+12 FLOPs" in isoflop("announce", "c")[1]
    handed = isoflop("predict", "c", *ada, *shape, "--low", 1.1, "--high", 1.3)
    assert "loss 1.2000 in [1.1000, 1.3000]" in handed[1]
    assert isoflop("close", "c")[0] == 0
    code, out, _ = isoflop("score", "c")
    assert code == 0
    assert "of honest ones 90% would" in out
    assert json.loads(isoflop("score", "c", "--json")[1])["standings"][0]["student"] == "ada"
    assert "points" in isoflop("status", "c", *ada)[1]


def test_only_the_teacher_announces_and_closes(isoflop, tmp_path, monkeypatch):
    isoflop("create", "c", "--budget", 1e11, "--target", 1e12)
    monkeypatch.setenv("ISOFLOP_CONFIG", str(tmp_path / "another"))
    for words in (("announce", "c"), ("close", "c"), ("enrol", "c", "eve")):
        code, _, err = isoflop(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert "only the teacher of this class" in err


def test_the_classs_own_text_travels_with_its_folder(isoflop, tmp_path):
    (tmp_path / "own.txt").write_text("In the beginning. " * 2000)
    made = isoflop("create", "c", "--budget", 1e11, "--target", 1e12, "--data", "own.txt",
                   "--students", "ada")  # fmt: skip
    assert made[0] == 0, made
    (tmp_path / "own.txt").unlink()
    (tmp_path / "c").rename(tmp_path / "d")
    data = ledger.load(tmp_path / "d").rules.data
    assert data.open().train_tokens > 10_000
    assert isoflop("submit", "d", "--student", "ada", "--width", 16, "--depth", 1, "--steps", 100)[
        0
    ] == 0  # fmt: skip


MISTAKES = {
    "there is no class in nowhere": ["status", "nowhere"],
    "--budget is needed": ["create", "x", "--target", "1e12"],
    "--target is needed": ["create", "x", "--budget", "1e12"],
    "must be at most the budget": [
        *("create", "x", "--budget", "1", "--target", "9", "--largest", "2")],
    "there is no family 'dnse'": [
        *("create", "x", "--budget", "1e9", "--target", "1e12", "--families", "dnse")],
    "a student's name must be": [
        *("create", "x", "--budget", "1e9", "--target", "1e12", "--students", "../ada")],
    "name each student once": [
        *("create", "x", "--budget", "1e9", "--target", "1e12", "--students", "a", "a")],
    "is a class in": ["create", "c", "--budget", "1e9", "--target", "1e12"],
    "--student is needed": ["submit", "c", "--width", "16", "--depth", "1", "--steps", "100"],
    "there is no student 'eve'": [
        *("submit", "c", "--student", "eve", "--width", "16", "--depth", "1", "--steps", "100")],
    "--steps is needed": ["submit", "c", "--student", "ada", "--width", "16", "--depth", "1"],
    "steps=5 must be at least": [
        *("submit", "c", "--student", "ada", "--width", "16", "--depth", "1", "--steps", "5")],
    "leave out --seconds": [
        *("submit", "c", "--student", "ada", "--width", "16", "--depth", "1", "--steps", "100"),
        *("--seconds", "3")],
    "must be one of this class's": [
        *("submit", "c", "--student", "ada", "--family", "mamba", "--width", "16"),
        *("--depth", "1", "--steps", "100")],
    "the target is not announced yet": [
        *("predict", "c", "--student", "ada", "--width", "16", "--depth", "1", "--low", "1"),
        *("--high", "2")],
    "first isoflop class close": ["score", "c"],
    "command of isoflop class called": ["sumbit", "c"],
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(isoflop, tmp_path, words):
    assert isoflop("create", "c", "--budget", 1e11, "--target", 1e12, "--students", "ada")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    code, _, err = isoflop(*MISTAKES[words])
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert before == {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    assert not (tmp_path / "x").exists()


def test_a_lost_secret_is_told_and_a_found_one_is_the_class_s(room, tmp_path):
    with pytest.raises(UserError, match="only the teacher"):
        teacher.read(room.rules)
    path = teacher.keep(room.rules, teacher.Secret(target=classes.TARGET, tokens={"ada": "x"}))
    assert teacher.read(room.rules).tokens == {"ada": "x"}
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        teacher.read(room.rules)
