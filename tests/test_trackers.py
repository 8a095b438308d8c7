"""Trackers mirror records: each run once, late ones too, and never at the cost of the grid.

The packages are not there: fakes have the part of their API that is called. `pytest -m trackers`
runs the same on the real ones, in an environment that has them.
"""

import importlib.util
import json
import sys
import types

import fakes
import pytest
from test_cli import TOY

from isoflop import experiments
from isoflop.experiments.cli.main import main
from isoflop.models import errors
from isoflop.sim.records.store import Row
from isoflop.sim.records.trackers.base import Shown, find, names
from isoflop.sim.train import loop

CURVE = ((10, 3.5), (20, 3.0))


class Recorder:
    """A module, class or function of a tracker: every call is written down, and returns another."""

    def __init__(self, calls, path, fields):
        self.calls, self.path, self.fields = calls, path, fields

    def __call__(self, *args, **fields):
        self.calls.append((self.path, args, fields))
        return Recorder(self.calls, self.path, fields | dict(enumerate(args)))

    def __getitem__(self, name):
        self.calls.append((name, (), {}))
        return self

    def __setattr__(self, name, value):
        if "fields" in self.__dict__:
            self.calls.append((name, (value,), {}))
        super().__setattr__(name, value)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Recorder(self.calls, f"{self.path}.{name}", {})


MODULES = {
    "tensorboard": ["compat.proto.event_pb2", "compat.proto.summary_pb2", "plugins.hparams",
                    "summary.writer.event_file_writer"],
    "wandb": [], "trackio": [], "mlflow": ["entities", "tracking"],
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """What is called of all four packages."""
    called = []
    real = importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util, "find_spec", lambda name: name in MODULES or real(name)
    )
    for package, inside in MODULES.items():
        for path in ["", *inside]:
            name = f"{package}.{path}".rstrip(".")
            for i in range(1, name.count(".") + 2):
                part = ".".join(name.split(".")[:i])
                module = types.ModuleType(part)
                module.__getattr__ = Recorder(called, part, {}).__getattr__
                module.__path__ = []
                if part not in sys.modules or part == package:
                    monkeypatch.setitem(sys.modules, part, module)
    return called


def shown(**changes):
    (cell,) = fakes.cells(width=[8], steps=[50], seed=[0])
    record = fakes.record(cell.run, 2.5, curve=CURVE, params={"total": 30}).model_copy(
        update=changes
    )
    return Shown.of(Row(labels=cell.labels, record=record))


def test_what_is_shown_is_the_records_options_curve_and_results():
    one = shown()
    assert one.name == "family dense, width 8, steps 50, seed 0"
    assert one.options["optim.lr"] == 1e-3
    assert (one.options["family"], one.options["status"]) == ("dense", "ok")
    assert one.results["loss"] == 2.5
    assert one.results["params.total"] == 30
    assert (one.curve, one.steps) == (CURVE, 50)
    assert all(isinstance(value, str | int | float) for value in one.options.values())


@pytest.mark.parametrize("name", names())
def test_every_number_of_a_record_reaches_the_tracker(name, calls, tmp_path):
    find(name)(tmp_path / name).log(shown())
    told = set(_leaves([(args, fields) for _, args, fields in calls]))
    assert {2.5, 3.5, 3.0, 10, 20, 50, 30.0, "train/loss", "dense"} <= {*told, *map(str, told)}


def _leaves(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *_leaves(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, Recorder):
        yield from _leaves(value.fields)
    else:
        yield value


@pytest.fixture
def isoflop(tmp_path, monkeypatch, capsys):
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "toy.py").write_text(TOY)
    monkeypatch.setattr(experiments, "__path__", [str(package)])
    monkeypatch.setattr(loop, "train", fakes.train)
    monkeypatch.chdir(tmp_path)
    yield lambda *args: (main(args), *capsys.readouterr())
    sys.modules.pop("isoflop.experiments.toy", None)


def mirrored(calls):
    return [fields["id"] for name, _, fields in calls if name == "wandb.init"]


def test_a_tracker_has_every_run_once_those_from_before_it_was_asked_for_too(isoflop, calls):
    isoflop("run", "toy", "--seeds", "1", "--quiet")
    assert isoflop("run", "toy", "--quiet", "--tracker", "wandb")[0] == 0
    keys = {cell.run.key for cell in fakes.cells()}
    assert (len(mirrored(calls)), set(mirrored(calls))) == (8, keys)
    isoflop("run", "toy", "--quiet", "--tracker", "wandb")
    assert len(mirrored(calls)) == 8


def test_a_tracker_that_fails_is_told_once_and_the_grid_goes_on(isoflop, calls, monkeypatch):
    def fail(**fields):
        raise ConnectionError("no server")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail, raising=False)
    code, out, err = isoflop("run", "toy", "--quiet", "--tracker", "wandb")
    assert (code, out.startswith("8 of 8 runs trained")) == (0, True)
    assert err == "warning: wandb is no longer written: ConnectionError: no server\n"


def test_a_missing_or_unknown_tracker_is_one_line_before_anything_is_trained(
    isoflop, monkeypatch, tmp_path
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util, "find_spec", lambda n: None if n == "mlflow" else find_spec(n)
    )
    code, _, err = isoflop("run", "toy", "--tracker", "mlflow")
    assert (code, err.count("\n")) == (2, 1)
    assert "mlflow needs the package mlflow; pip install 'isoflop[mlflow]'" in err
    code, _, err = isoflop("run", "toy", "--tracker", "tensorbord")
    assert (code, "perhaps you meant tensorboard" in err) == (2, True)
    assert not list(tmp_path.glob("runs/*/result.json"))


@pytest.mark.trackers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", names())
def test_the_real_tracker_keeps_a_run(name, tmp_path, monkeypatch):
    """What it wrote is read back by its own means where it has some, else found on the disk."""
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(variable, raising=False)
    one = shown()
    find(name)(tmp_path / name).log(one)
    assert {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}[
        name
    ](tmp_path / name, one) == [(10, 3.5), (20, 3.0)]


def _tensorboard(folder, one):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / one.key))
    events.Reload()
    assert events.Scalars("result/loss")[0].value == 2.5
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def _wandb(folder, one):
    (file,) = folder.rglob(f"run-{one.key}.wandb")
    assert b"train/loss" in file.read_bytes()
    return list(CURVE)


def _mlflow(folder, one):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("isoflop").experiment_id])
    assert run.data.metrics["result/loss"] == 2.5
    assert run.data.params["family"] == "dense"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    return sorted((metric.step, metric.value) for metric in history)


def _trackio(folder, one):
    import sqlite3

    (file,) = folder.rglob("isoflop*.db")
    rows = (
        sqlite3.connect(file).execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    )
    found = [(step, json.loads(metrics)) for step, metrics in rows]
    return [(step, values["train/loss"]) for step, values in found if "train/loss" in values]
