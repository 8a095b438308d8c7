"""What context buys each of some finished models, and what it costs: one value, of plain rows.

positions      loss by position at the training length, with 90 % intervals over sequences
differences    of each model from the first, paired: of models that read the same sequences
extrapolation  loss at multiples of the training length, as trained and extended; of data whose
               every token counts, since the length of a task is a setting of its own (answers)
copying        recall of text that is repeated, beside the bytes of the state that holds it
answers        accuracy and loss of every evaluation set of a run's record, by its settings
costs          seconds and bytes at growing lengths, beside what the exact cost takes at least
throughput     decoded tokens per second of a batch
crossings      from which length on attention costs more than a recurrence
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.sim.compare.context_crossings import Crossing, crossings
from isoflop.sim.compare.slopes import Slope, slopes
from isoflop.sim.evaluate import context
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.copying import copying
from isoflop.sim.evaluate.extrapolation import TIMES, extrapolate
from isoflop.sim.evaluate.position import Part, difference, held_out, judge, loss_by_position
from isoflop.sim.evaluate.probe import Tell, interleave
from isoflop.sim.records.metrics import Z90, Metric
from isoflop.sim.records.store import Store, layers
from isoflop.sim.train.program import Judged

Rows = list[dict[str, Any]]

LENGTHS = (128, 1024, 4096)  # that costs are measured at
BATCHES = (1, 8, 32)  # sequences that are decoded together
TOKENS = 32_768  # targets that each loss is the mean of
REPEATS = (8, 4, 2)  # parts of the training length that are repeated to be copied


@dataclass(frozen=True)
class ContextStudy:
    """Rows of plain values; `model` is a name in `models`."""

    models: dict[str, dict[str, Any]]
    positions: Rows
    differences: Rows
    extrapolation: Rows
    copying: Rows
    answers: Rows
    costs: Rows
    throughput: Rows
    crossings: list[Crossing]

    @property
    def slopes(self) -> dict[str, dict[str, Slope | None]]:
        return slopes(self.costs)

    def json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        lines = {q: {m: s and dataclasses.asdict(s) for m, s in found.items()}
                 for q, found in self.slopes.items()}  # fmt: skip
        return plain | {"slopes": lines}


def named(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """By names to read: a run's are its layers, its size and the beginning of its key. Raises
    UserError for one that is named twice.
    """
    found: dict[str, Checkpoint] = {}
    for one in checkpoints:
        model, name = one.model, one.folder.resolve().name
        if one.run is not None:
            kinds = layers(model).removesuffix(" + swiglu").replace(" + swiglu", "")
            name = f"{kinds} {model.d_model}×{len(model.blocks)} {name[:6]}"
        if name in found:
            raise UserError(f"{one.folder} is named twice, as {name}; name each model once")
        found[name] = one
    return found


def study(
    checkpoints: Mapping[str, Checkpoint],
    text: str | None = None,
    tokens: int = TOKENS,
    times: Sequence[int] = TIMES,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    repeats: int = 3,
    trained: int | None = None,
    tell: Tell = lambda text: None,
) -> ContextStudy:
    """Of models by name. `text` is read by all; None: each run reads its own held-out data.
    `trained` stands for a training length that no file says.

    Raises UserError for what cannot be read or measured, before anything is compiled where that is
    known before.
    """
    for one in checkpoints.values():
        for length in lengths:
            context.check_room(one.model, length)
    spans = {name: _trained(name, one, trained) for name, one in checkpoints.items()}
    draws = {name: held_out(one, tokens, text) for name, one in checkpoints.items()}
    for name, draw in draws.items():
        if draw(spans[name]).weights is None:  # each token counts, and so at any length
            draw(spans[name] * max(times, default=1))
    models: dict[str, dict[str, Any]] = {}
    read: dict[str, tuple[Judged, Any]] = {}
    positions: Rows = []
    extended: Rows = []
    copied: Rows = []
    answers: Rows = []
    for name, one in checkpoints.items():
        tell(f"{name}: loss by position")
        span, batch = spans[name], draws[name](spans[name])
        read[name] = judge(one, batch), batch
        models[name] = _described(one, span, text)
        models[name] |= _told("loss", Part.of(read[name][0].nats, batch.weights, WHOLE).mean)
        positions += _rows({"model": name}, loss_by_position(*read[name]))
        tell(f"{name}: lengths beyond {span} tokens")
        for row in extrapolate(one, draws[name], span, times) if batch.weights is None else []:
            whole = {"model": name, "variant": row.variant, "times": row.times}
            whole |= {"seq_len": row.seq_len, **_told("loss", row.loss)}
            whole |= _told("beyond", row.beyond)
            extended.append(whole | {"positions": _rows({}, row.by_position)})
        if _is_text(one, text):
            tell(f"{name}: copying")
            spread = [length for part in REPEATS if (length := span // part) >= 2]
            for found in copying(one, draws[name], spread or [2]):
                copied.append(
                    {"model": name, "length": found.length}
                    | {"state_bytes": context.state_bytes(one.model, 2 * found.length)}
                    | _told("accuracy", found.accuracy) | _told("first", found.first)
                    | _told("loss", found.loss) | _told("gain", found.gain)
                )  # fmt: skip
        answers += _answers(name, one)
    configs = {name: one.model for name, one in checkpoints.items()}
    costs = context.measure(configs, lengths, repeats=repeats, tell=tell) if lengths else []
    attends = [name for name, model in configs.items() if _attends_to_all(model)]
    return ContextStudy(
        models,
        positions,
        _differences(read),
        extended,
        copied,
        answers,
        costs,
        _throughput(configs, max(spans.values()), batches, repeats, tell),
        crossings(costs, attends, ["train_step_seconds", *LATER]),
    )


WHOLE = slice(None)
LATER = ("prefill_seconds", "decode_seconds", "state_bytes")


def _attends_to_all(model: ModelConfig) -> bool:
    """Whether every mixer is attention, one of them without a window."""
    mixers = [block.mixer for block in model.blocks if block.mixer is not None]
    return all(isinstance(m, Attention) for m in mixers) and any(
        isinstance(m, Attention) and m.window is None for m in mixers
    )


def _trained(name: str, one: Checkpoint, trained: int | None) -> int:
    found = trained or one.context
    if found is None:
        raise UserError(f"nothing says what length {name} was trained on; give it with --trained")
    return found


def _is_text(one: Checkpoint, text: str | None) -> bool:
    if text is not None:
        return True
    assert one.run is not None
    return one.run.data.open().bytes_per_token is not None


def _described(one: Checkpoint, span: int, text: str | None) -> dict[str, Any]:
    cost = one.model.cost(span)
    return {
        "folder": str(one.folder),
        "layers": layers(one.model),
        "params": cost.params,
        "trained": span,
        "data": "the text" if text is not None or one.run is None else one.run.data.kind,
        "flops_per_token": cost.flops // span,
        "state_bytes": context.state_bytes(one.model, span),
    }


def _told(name: str, metric: Metric | None) -> dict[str, float | None]:
    """A value with its 90 % interval."""
    if metric is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    value, half = metric.value, Z90 * (metric.se or 0.0)
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def _rows(same: dict[str, Any], found: Mapping[str, Metric]) -> Rows:
    return [
        same | {"place": int(name.rpartition("_")[2]), **_told("loss", metric)}
        for name, metric in found.items()
    ]


def _differences(read: Mapping[str, tuple[Judged, Any]]) -> Rows:
    first = next(iter(read))
    judged, batch = read[first]
    return [
        row
        for name, (other, theirs) in read.items()
        if name != first
        and batch.tokens.shape == theirs.tokens.shape
        and (batch.tokens == theirs.tokens).all()
        for row in _rows({"model": name, "over": first}, difference(other, judged, batch))
    ]


def _answers(name: str, one: Checkpoint) -> Rows:
    """Of a run's own data and evaluation sets, where targets have weights or the run has sets."""
    if one.run is None:
        return []
    record = Store(one.folder.parent).load(one.folder.name)
    if record is None or not ("exact" in record.metrics or one.run.evals):
        return []
    rows = []
    for split in one.run.splits:
        prefix = f"{split.name}." if split.name else ""
        settings = split.data.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
        row: dict[str, Any] = {
            "model": name,
            "set": split.name or "its own",
            "kind": split.data.kind,
        }
        row |= {"settings": settings, "seq_len": split.seq_len}
        row |= {"state_bytes": context.state_bytes(one.model, split.seq_len)}
        for kind in ("accuracy", "loss"):
            row |= _told(kind, record.metrics.get(prefix + kind))
        source = split.data.open()
        rows.append(row | {"chance": source.chance, "optimum": source.optimum})
    return rows


def _throughput(
    models: Mapping[str, ModelConfig],
    length: int,
    batches: Sequence[int],
    repeats: int,
    tell: Tell,
) -> Rows:
    """Tokens per second of batches, against states made for `length` tokens."""
    probes = {}
    for name, model in models.items():
        for batch in sorted(set(batches)):
            tell(f"{name}: compiling the decoding of {batch} sequences")
            probes[name, batch] = context.decode(model, length, batch)
    rows = []
    for (name, batch), turns in interleave(probes, repeats, tell).items():
        rate, low, high = (batch / f(turns) for f in (statistics.median, max, min))
        row = {"model": name, "batch": batch, "seq_len": length}
        rows.append(row | {"tokens_per_second": rate, "low": low, "high": high})
    return rows


def load(names: Sequence[str], runs: Path) -> dict[str, Checkpoint]:
    """Every model of a command line, before anything is compiled. Raises UserError for none."""
    if not names:
        raise UserError("name at least one run (its folder or key) or Hugging Face folder")
    return named([Checkpoint.load(name, runs) for name in names])
