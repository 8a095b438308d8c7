"""What a run leaves behind: one record, in one directory, written so that a kill loses nothing.

    runs/<key>/spec.json           the run, so that the directory explains itself
    runs/<key>/model.safetensors   its weights
    runs/<key>/result.json         its record; written last: a run with this file is finished
    runs/jobs, runs/leases         work in progress (sim/grid/grid.py, sim/grid/leases.py)

Every file is written beside its place, synced, and renamed into it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import AliasChoices, Field, ValidationError, model_validator

from isoflop.models.base import Config
from isoflop.models.errors import UserError, quoted
from isoflop.models.lm import ModelConfig
from isoflop.sim.durable import Place, contents, place, remote, unwritable, why, write
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.readers import dotted
from isoflop.sim.spec import Cell, Run, canonical


class Record(Config):
    """The result of one run. A run that diverged or failed is a row with its reason, not a gap.

    `params` counts: total, active, non_embedding, active_non_embedding.
    `flops` is what the whole training run took under each of `sim.cost.names.CONVENTIONS`:
    executed, matmul, causal, 6ND, 6ND_non_embedding, 6ND_active.
    """

    key: str
    run: Run
    status: Literal["ok", "diverged", "failed"]
    reason: str = ""
    failures: int = 0  # how often it has failed; 0 once it has not
    metrics: dict[str, Metric] = Field(default_factory=dict)  # after the cooldown; {} if diverged
    entropy: float | None = None  # nats per token, where the data's is known exactly
    curve: tuple[tuple[int, float], ...] = ()  # (step, training loss, mean since the last point)
    params: dict[str, int] = Field(default_factory=dict)
    flops: dict[str, int] = Field(default_factory=dict)
    tokens: int = 0
    unique_bytes: int | None = None  # of training data seen; None for generated data
    epochs: float | None = None
    state_bytes: int = 0  # of one sequence's decoding state at the training length, fp32
    seconds: float = 0.0  # this run's own training steps, trunk included, per seed
    compile_seconds: float = 0.0  # of this run's job, all its programs
    compiled: int = 0  # programs of this run's job that were compiled
    cached: int = 0  # and that came from the persistent cache instead
    seed_batch: int = Field(  # seeds trained together
        default=1,
        validation_alias=AliasChoices("seed_batch", "lanes"),  # as records of before say
    )
    aux: dict[str, float] = Field(default_factory=dict)  # balance, router_z, dropped at the end
    data_digest: str = ""
    eval_digests: dict[str, str] = Field(default_factory=dict)  # of the data of Run.evals
    device: str = ""
    backend: str = ""  # of the kernels where one was asked for (models/kernels/platforms.py)
    layout: dict[str, int] = Field(default_factory=dict)  # of more than 1 (sim/train/sharding.py)
    versions: dict[str, str] = Field(default_factory=dict)
    sources: dict[str, str] = Field(
        default_factory=dict
    )  # module → digest (sim/records/provenance.py)

    @model_validator(mode="before")
    @classmethod
    def _from_fields(cls, data: Any) -> Any:
        return upgraded(data)

    def value(self, metric: str) -> float | None:
        """None where the run has no such metric."""
        found = self.metrics.get(metric)
        return None if found is None else found.value

    @property
    def loss(self) -> float | None:
        """Held-out, nats per token."""
        return self.value("loss")

    @property
    def loss_se(self) -> float | None:
        return self.metrics["loss"].se if "loss" in self.metrics else None

    @property
    def bits_per_byte(self) -> float | None:
        return self.value("bits_per_byte")

    @property
    def eval_tokens(self) -> int:
        return self.metrics["loss"].count if "loss" in self.metrics else 0

    @property
    def final(self) -> bool:
        """Trained to its end, well or badly. A failed run is tried again by the next command."""
        return self.status != "failed"


def upgraded(data: Any) -> Any:
    """A record's JSON, of one from before there were metrics by name, which were fields."""
    old = ("loss", "loss_se", "bits_per_byte", "eval_tokens")
    if not isinstance(data, dict) or "metrics" in data or not data.keys() & {*old}:
        return data
    loss, se, bits, count = (data.get(name) for name in old)
    metrics = {}
    if loss is not None:
        metrics["loss"] = {"value": loss, "se": se, "count": count or 0}
    if bits is not None:
        part = None if se is None or not loss else se * bits / loss
        metrics["bits_per_byte"] = {"value": bits, "se": part, "count": count or 0}
    return {name: value for name, value in data.items() if name not in old} | {"metrics": metrics}


class Row(Config):
    """A record under its experiment's labels: what figures, reports and committed results hold."""

    labels: dict[str, str | int | float] = Field(default_factory=dict)
    record: Record


STEP_WORDS = ("family", "device")
STEP_SHAPE = ("width", "depth", "seq_len", "batch")


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The table of `isoflop bench`."""
    return read_table(path, (*STEP_WORDS, "program"), (*STEP_SHAPE, "seconds"))


def layers(model: ModelConfig) -> str:
    """The kinds of its layers, whatever their sizes and order."""
    return " + ".join(sorted({part.kind for block in model.blocks for part in block.parts}))


def read_context(path: Path) -> list[dict[str, Any]]:
    """The table of `isoflop run context`."""
    return read_table(path, ("family", "quantity"), ("seq_len", "value"))


def measured_of(rows: Iterable[Row], measured: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a table that experiments share, what was measured of these rows' families: the name is
    one of theirs and, where the table says so, the kinds of layers are too.
    """
    known = {(row.labels.get("family"), layers(row.record.run.model)) for row in rows}
    families = {family for family, _ in known}
    return [
        dict(one)
        for one in measured
        if one["family"] in families
        and ("layers" not in one or (one["family"], one["layers"]) in known)
    ]


def join_step_seconds(rows: Iterable[Row], steps: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows, labelled `step_seconds` where `steps`, a table of `isoflop bench`, has the training
    step of their family and shape on their kind of device.

    Runs' own seconds do not compare: others trained beside them, or on another day.
    """
    seconds = {
        tuple(step[name] for name in (*STEP_WORDS, *STEP_SHAPE)): step["seconds"]
        for step in steps
        if step["program"] == "train_step"
    }

    def labelled(row: Row) -> Row:
        model, budget = row.record.run.model, row.record.run.budget
        size = model.d_model, len(model.blocks), budget.seq_len, budget.batch
        found = seconds.get((row.labels.get("family"), row.record.device, *size))
        own = {} if found is None else {"step_seconds": found}
        return row.model_copy(update={"labels": row.labels | own})

    return list(map(labelled, rows))


class Foreign(UserError):
    """A record that is whole, and of a kind or a version that this code does not know."""


def _record(path: Place, content: bytes) -> Record:
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        reason = brief(error)
    try:
        whole = isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        whole = False
    if whole:
        raise Foreign(
            f"{path} is a record that this code cannot read ({reason}); it is left as it is: use "
            "the code that wrote it, or another folder with --runs"
        )
    raise UserError(
        f"{path} is not a whole record ({reason}); delete the folder {path.parent} to train that "
        "run again"
    )


@dataclass(frozen=True)
class Store:
    """A runs directory, or an object store's folder by its URL (sim/durable.py)."""

    root: Place

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", place(self.root))

    def directory(self, key: str) -> Place:
        """Of a run. UserError for a name that would lead elsewhere."""
        if not key or key in (".", "..") or set(key) & {"/", "\\", "\0"}:
            raise UserError(
                f"a run's key must be one plain name, not {quoted(key)}; records of this runs "
                f"directory stay in {self.root}"
            )
        return self.root / key

    def load(self, key: str) -> Record | None:
        """The run's record; None before it has one. UserError if the file was damaged, and Foreign
        if it is whole and this code cannot read it.
        """
        path = self.directory(key) / "result.json"
        if not path.exists():
            return None
        if not path.is_file():  # to read a pipe would wait for ever
            raise UserError(f"{path} must be a file; remove what lies there")
        record = _record(path, contents(path))
        if record.key != key:
            raise UserError(
                f"{path} holds the record of run {record.key}, not of {key}; delete the folder "
                f"{path.parent} to train that run again"
            )
        return record

    def done(self, key: str) -> bool:
        """Whether the run has its final record."""
        record = self.load(key)
        return record is not None and record.final

    def all(self) -> tuple[list[Record], list[str]]:
        """Every record in the directory, ordered by key, and why others are left out: those of
        kinds that this code does not know, or damaged. They are nobody's business but their own.
        """
        records, left_out = [], []
        for path in sorted(self.root.glob("*/result.json")):
            try:
                if record := self.load(path.parent.name):
                    records.append(record)
            except UserError as error:
                left_out.append(str(error))
            except OSError as error:
                left_out.append(f"{path}: {why(error)}")
        return records, left_out

    def rows(self, cells: Iterable[Cell]) -> list[Row]:
        """The cells that have records, in the cells' order.

        A row's run is the cell's. A record holds its own as it was written down then, and where a
        default has changed since, the same run would no longer be of one cell with its other seeds.
        """
        found = ((cell, self.load(cell.run.key)) for cell in cells)
        return [
            Row(labels=cell.labels, record=record.model_copy(update={"run": cell.run}))
            for cell, record in found
            if record
        ]

    def save(self, record: Record, weights: Mapping[str, np.ndarray]) -> None:
        """Commit a run. A kill at any instant leaves it either finished or not begun.

        Raises UserError when the disk is full or forbids writing.
        """
        directory = self.directory(record.key)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write(directory / "spec.json", canonical(record.run).encode())
            if weights:
                # which writes an array's buffer, whatever its strides
                whole = {name: np.ascontiguousarray(array) for name, array in weights.items()}
                write(directory / "model.safetensors", safetensors.numpy.save(whole))
            write(directory / "result.json", record.model_dump_json().encode())
        except OSError as error:
            raise unwritable(directory, error) from error

    def weights(self, key: str) -> dict[str, np.ndarray]:
        """The trained parameters by name. UserError if the run has none."""
        path = self.directory(key) / "model.safetensors"
        if not path.is_file():
            raise UserError(f"run {key} has no weights at {path}; train it first")
        try:
            return safetensors.numpy.load(contents(path))
        except safetensors.SafetensorError as error:
            raise UserError(
                f"{path} is damaged ({error}); delete the folder {path.parent} to train that run "
                "again"
            ) from None

    def check(self, need_bytes: int) -> None:
        """UserError, before anything is trained, if records cannot be written or will not fit."""
        probe = self.root / ".probe"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write(probe, b"can this directory be written?")
            probe.unlink(missing_ok=True)  # another process may probe too
            free_bytes = None if remote(self.root) else shutil.disk_usage(self.root).free
        except OSError as error:
            raise UserError(
                f"the runs directory {self.root} cannot be written: {why(error)}; "
                f"choose another with --runs"
            ) from error
        if free_bytes is not None and free_bytes < need_bytes:
            raise UserError(
                f"the runs directory {self.root} has {free_bytes / 1e6:,.3g} MB free and this "
                f"grid needs about {need_bytes / 1e6:,.3g} MB; free some or choose another "
                f"with --runs"
            )


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One row a line, compact JSON: how results are committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, b"".join(row.model_dump_json().encode() + b"\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file. UserError naming the line that is not a row."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}:{number} is not a row ({brief(error)})") from None
    return rows


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Measured rows that are no runs, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())


def read_table(
    path: Path, words: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows that `write_table` wrote. UserError naming the line that is none, or that lacks one
    of the columns of `words` and `numbers`.
    """
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON ({error}); measure again") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} must be an object of columns; measure again")
        no_words = [name for name in words if not isinstance(row.get(name), str)]
        no_numbers = [name for name in numbers if type(row.get(name)) not in (int, float)]
        if bad := [f"text in {name!r}" for name in no_words] + [
            f"a number in {name!r}" for name in no_numbers
        ]:
            raise UserError(f"{path}:{number} must have {', '.join(bad)}; measure again")
        rows.append(row)
    return rows


def _lines(path: Path) -> list[bytes]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; run the experiment first")
    return path.read_bytes().splitlines()


def flatten(row: Row) -> dict[str, Any]:
    """A row's labels and numbers by name, as `columns` has them."""
    values = json.loads(row.record.model_dump_json(exclude={"curve", "sources"}))
    return columns(row.labels, values, row.record.run.trunk)


def columns(labels: Mapping[str, Any], record: Mapping[str, Any], trunk: str) -> dict[str, Any]:
    """Labels and numbers of a record, given as JSON has it; `run` names the trunk, whose branches
    share noise.

    A metric has three columns: loss, loss_se and loss_count; kjv.loss, kjv.loss_se, ….
    """
    run, budget = record["run"], record["run"]["budget"]
    flat: dict[str, Any] = dict(labels)
    flat |= {name: budget[name] for name in ("steps", "batch", "seq_len")}
    flat |= {"lr": run["optim"]["lr"], "seed": run["seed"], "run": trunk}
    for name, metric in record["metrics"].items():
        flat |= {
            name: metric["value"],
            f"{name}_se": metric["se"],
            f"{name}_count": metric["count"],
        }
    left_out = {"run", "curve", "sources", "metrics"}
    rest = {name: value for name, value in record.items() if name not in left_out}
    return flat | dict(dotted(rest))


def brief(error: ValidationError) -> str:
    """What is wrong, once and in one line; pydantic repeats itself for every branch it tried."""
    said = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        text = " ".join(problem["msg"].removeprefix("Value error, ").split())
        given = problem.get("input")
        simple = isinstance(given, str | int | float | bool) and problem["type"] != "value_error"
        value = f"={_shown(given)}" if simple and problem["type"] != "json_invalid" else ""
        said.append(f"{place}{value}: {text}" if place else text)
    return "; ".join(dict.fromkeys(said))


def _shown(value: object) -> str:
    """At most 60 characters; Python spells out no integer of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**59:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.60}"
