"""Tables of measured serving points, and request traces, as others publish them.

A row of points is a deployment under so many users, with the medians that a benchmark client saw:
the columns of COLUMNS, as of aiconfigurator's silicon samples. `model` is a published model's name
or repository, `precision` the format of the weights (none: bf16). Empty parallelism is 1. A mixture
of experts lies on expert_tensor · expert chips, and attention in as many data groups as its tensor
split leaves; `concurrency` is that of one group. Rows on more chips than a node has (`NODE`) are
left out, since links between nodes are not modelled, and rows whose model does not fit.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.models.checkpoints.published import facts, shape
from isoflop.models.errors import UserError, quoted
from isoflop.sim.cost.hardware import device
from isoflop.sim.cost.serving.deployment import Deployment
from isoflop.sim.cost.serving.measured import Measured, measured
from isoflop.sim.cost.serving.work import routed

NODE = 8
FORMATS = {"": "bf16"}  # as tables spell them, where not as ours
COLUMNS = (
    "model", "chip", "engine", "precision", "prompt_tokens", "answer_tokens", "concurrency",
    "tensor_parallel", "attention_data_parallel", "expert_tensor_parallel", "expert_parallel",
    "ttft_ms", "tpot_ms",
)  # fmt: skip
TRACE = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


@dataclass(frozen=True)
class Table:
    """Deployments with their points, and how many rows were left out, by the reason."""

    deployments: tuple[Measured, ...]
    left_out: dict[str, int]


def read(path: Path) -> Table:
    """A table of points. Raises UserError naming the line and the cell that is not possible."""
    grouped: dict[Deployment, list[tuple[float, ...]]] = defaultdict(list)
    names: dict[Deployment, str] = {}
    left_out: dict[str, int] = defaultdict(int)
    for line, row in _rows(path, COLUMNS):
        try:
            found = _deployment(row)
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        if isinstance(found, str):
            left_out[found] += 1
            continue
        users = _number(path, line, row, "concurrency") * found.data
        numbers = [
            _number(path, line, row, name)
            for name in ("prompt_tokens", "answer_tokens", "ttft_ms", "tpot_ms")
        ]
        grouped[found].append((numbers[0], numbers[1], users, numbers[2] / 1e3, numbers[3] / 1e3))
        names[found] = found.name
    if not grouped:
        raise UserError(f"{path} has no row that can be used; see `isoflop serve calibrate --help`")
    made = [measured(on, names[on], *np.array(rows).T) for on, rows in grouped.items()]
    return Table(tuple(made), dict(left_out))


def trace(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """(seconds of arrival, tokens of prompts, tokens of answers) of a request trace, (n,) each."""
    rows = [
        [_number(path, line, row, name, least=0.0 if name == TRACE[0] else 1.0) for name in TRACE]
        for line, row in _rows(path, TRACE)
    ]
    if not rows:
        raise UserError(f"{path} has no requests; give a trace with one a line")
    arrived, prompts, answers = np.array(rows).T
    order = np.argsort(arrived, kind="stable")
    return arrived[order], prompts[order].astype(np.int64), answers[order].astype(np.int64)


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path} lacks the column {missing[0]}; it needs {', '.join(columns)}"
                )
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); name another file") from None


def _number(path: Path, line: int, row: dict[str, str], name: str, least: float = 1e-9) -> float:
    text = row[name] or ""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e12:
        raise UserError(
            f"{path}, line {line}: {name}={quoted(text)} must be a number above 0; correct it"
        )
    return value


def _whole(row: dict[str, str], name: str) -> int:
    text = row[name] or "1"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1e6 and value == int(value)):
        raise UserError(f"{name}={quoted(text)} must be a whole number; correct it")
    return max(1, int(value))


def _deployment(row: dict[str, str]) -> Deployment | str:
    """The deployment of a row, or why it is left out."""
    name = known(row["model"])
    found, chip = shape(name), device(row["chip"].removesuffix("_sxm"))
    tensor, data = _whole(row, "tensor_parallel"), _whole(row, "attention_data_parallel")
    expert = _whole(row, "expert_parallel")
    count = tensor * data
    if any(routed(block.channel) for block in found.model.blocks[:8] if block.channel):
        count = max(count, expert * _whole(row, "expert_tensor_parallel"))
    else:
        expert = 1
    if count > NODE:
        return f"more than {NODE} chips"
    if count % tensor:
        return "parallelism that does not divide"
    weights = FORMATS.get(row["precision"], row["precision"])
    on = Deployment(
        found.model, chip, count, tensor, count // tensor, expert, weights, engine=row["engine"],
        extra_params=found.extra, name=name,
    )  # fmt: skip
    held = found.model.cost(1).params * on.weight_bytes
    return on if held < count * chip.memory_bytes else "a model that does not fit"


def known(model: str) -> str:
    """The published name of a model or of a repository, quantised and tuned ones being as theirs.

    Raises UserError for another.
    """
    plain = model.lower()
    for ending in ("-fp8", "-instruct", "-hf"):
        plain = plain.removesuffix(ending)
    for name, told in facts().items():
        repo = told.repo.lower().removesuffix("-hf").removesuffix("-instruct")
        if plain in (name, repo):
            return name
    raise UserError(f"there is no published model {quoted(model)}; use one of {', '.join(facts())}")
