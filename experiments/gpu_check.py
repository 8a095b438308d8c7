"""Does an accelerator compute what the definitions say, and what does context cost there?

Every family's fast form is compared with the reference on the device itself: loss and gradient in
fp32 and bf16; reading a prompt and decoding after it with the parallel form; what it writes with
what it would have written token by token. A step of AdamW and of Muon is compared with a CPU's, and
a job that is killed and resumed with one that is not. Then a training step, a prompt and a decoded
token are timed at growing lengths, alone on the device. Programs are compiled by many processes
first. `ok` says whether `value` is within `limit`, where there is one; a check that fails is a row.

Command:   make gpu-check
Duration:  about 3.5 minutes on an H100 with 16 cores, most of it compiling
Expected:  gradients and decoding in fp32 within 1e-5 of the reference, bf16 within 2e-2; the same
           bits after a kill unless a sum's order is the device's; slopes of recurrences 1.0 ± .1
           between 2k and 32k tokens, attention's towards 2, decoding flat for recurrences
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import model
from isoflop.models import kernels
from isoflop.models.families import zoo
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import Batch, Corpus, cache
from isoflop.sim.evaluate import context
from isoflop.sim.optim import AdamW, Muon
from isoflop.sim.records.store import write_table
from isoflop.sim.spec import Budget, Run
from isoflop.sim.train import checkpoints
from isoflop.sim.train.loop import train
from isoflop.sim.train.program import Program

WIDTH, BATCH, LENGTH = 64, 2, 200  # a length that no tile or chunk divides
DECODED = 16  # tokens after a prompt
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}  # of ‖fast − reference‖ / ‖reference‖
STEP_LIMIT = 1e-3  # of a change of all weights by one step, a CPU's beside the device's
TIE = 1e-4  # between the two likeliest tokens, below which either may be written
TIMED = ("dense", "mamba", "mamba2", "linear", "gla", "gated_deltanet", "rwkv7", "hybrid", "samba")

Rows = list[dict[str, Any]]


def measure(
    families: tuple[str, ...] = tuple(zoo.FAMILIES),
    timed: tuple[str, ...] = TIMED,
    lengths: tuple[int, ...] = (2048, 8192, 32768),
    repeats: int = 3,
    workers: int = 14,
    out: Path | None = None,
) -> list[dict]:
    """The table.

    Args:
        families: names of the zoo's families that are checked.
        timed: those whose costs over context are timed.
        lengths: sequence lengths of the latter, in tokens.
        repeats: turns that are timed, after one that is not.
        workers: processes that check and compile side by side.
        out: also write the rows here as they come, for a machine that may be taken away.
    """
    checks: list[Callable[[], Rows]] = [
        partial(check, family) for check in (agreement, decoding) for family in families
    ]
    checks += [partial(one_step, family) for family in ("dense", "moe") if family in families]
    checks += [resumption]
    checks += [
        partial(compiled, family, name, length)
        for length in sorted(lengths, reverse=True)
        for family in timed
        for name in context.PROGRAMS
    ]
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | cache.compilation()
    rows: Rows = []

    def keep(more: Rows) -> None:
        rows.extend(more)
        if out is not None:
            write_table(out, rows)

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _begin, (settings,)) as pool:
        waiting = {pool.submit(_guarded, check): check for check in checks}
        for i, done in enumerate(as_completed(waiting), 1):
            tell(f"{i} of {len(waiting)} checks and programs")
            keep(_rows(done, waiting[done]))
    _begin(settings)
    for family in timed:
        keep(_guarded(partial(costs, family, lengths, repeats)))
    tell("")
    return rows


def _begin(settings: dict[str, str]) -> None:
    """Of a process: compiled programs are kept for the others."""
    os.environ.update(settings)
    jax.config.update("jax_compilation_cache_dir", settings["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _guarded(check: Callable[[], Rows]) -> Rows:
    """Its rows; an exception is one."""
    try:
        return check()
    except Exception as error:
        return [_named(check) | {"ok": False, "error": f"{type(error).__name__}: {error!s:.200}"}]


def _rows(done: Future, check: Callable[[], Rows]) -> Rows:
    """Those of a process that may have died."""
    error = done.exception()
    return done.result() if error is None else [_named(check) | {"ok": False, "error": str(error)}]


def _named(check: Any) -> dict[str, Any]:
    function, args = (check.func, check.args) if isinstance(check, partial) else (check, ())
    return {"check": function.__name__, "family": args[0] if args else "dense"}


def agreement(family: str) -> Rows:
    """Loss, logits and gradient of the fast form beside the reference's, in both dtypes."""
    return [row for dtype in LIMITS for row in _agreement(family, dtype)]


def _agreement(family: str, dtype: str) -> Iterator[dict[str, Any]]:
    program = Program(_model(family, dtype), AdamW(lr=1e-3))
    params = jax.tree.map(lambda x: x[0], program.init([0])[0])
    batch = Batch(_tokens(program.model, LENGTH + 1))
    found = {}
    for form in ("accelerator", "reference"):
        with kernels.use(form):
            gradient, loss = jax.jit(program.gradient)(params, batch)
        found[form] = {"loss": loss, "gradient": gradient}
    for name in ("loss", "gradient"):
        value = distance(found["accelerator"][name], found["reference"][name])
        yield _row(name, family, value, LIMITS[dtype], dtype=dtype)


def decoding(family: str) -> Rows:
    """Prompts of unequal lengths, read and gone on with, beside the parallel form."""
    lm = _model(family).abstract()
    graph = nnx.split(lm)[0]
    params = jax.tree.map(lambda x: x[0], Program(_model(family), AdamW(lr=1e-3)).init([0])[0])
    tokens = jnp.asarray(_tokens(_model(family), LENGTH))
    prompts = jnp.array([LENGTH - DECODED, LENGTH // 2])

    @jax.jit
    def compared(params: Any) -> tuple[Any, Any]:
        lm = nnx.merge(graph, params)
        whole = lm(tokens)[0]
        state, first = lm.prefill(lm.init_state(BATCH, LENGTH), tokens, prompts)
        rest = tokens[jnp.arange(BATCH)[:, None], prompts[:, None] + jnp.arange(DECODED)]

        def step(state: Any, token: Any) -> tuple[Any, Any]:
            return lm.step(state, token)

        _, after = jax.lax.scan(step, state, rest.T)
        decoded = jnp.concatenate([first[None], after]).swapaxes(0, 1)[:, :DECODED]
        at = prompts[:, None] - 1 + jnp.arange(DECODED)
        return decoded, whole[jnp.arange(BATCH)[:, None], at]

    rows = [_row("prefill and step", family, distance(*compared(params)), LIMITS["float32"])]
    lm = nnx.merge(graph, params)
    written = lm.generate(tokens[:, : LENGTH // 2], DECODED)
    text = jnp.concatenate([tokens[:, : LENGTH // 2], written.tokens], axis=1)
    logits = jax.jit(lambda params: nnx.merge(graph, params)(text)[0])(params)
    logits = np.asarray(logits)[:, LENGTH // 2 - 1 : -1]
    chosen = np.take_along_axis(logits, np.asarray(written.tokens)[..., None], -1)[..., 0]
    lead = float((logits.max(-1) - chosen).max())  # of the likeliest token over the written one
    return [*rows, _row("generate", family, lead, TIE)]


def one_step(family: str) -> Rows:
    """The change of all weights by a step of each optimiser, beside a CPU's."""
    rows = []
    for optim in (AdamW(lr=0.01), Muon(lr=0.02)):
        program = Program(_model(family), optim)
        batches = Batch(_tokens(program.model, 65)[None, None])
        changes = []
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            with jax.default_device(device):
                state = program.init([0])
                before = jax.tree.map(np.asarray, state[0])
                args = program.rates(optim), np.ones(1, np.float32), batches, np.int32(1)
                after = jax.jit(program.advance)(state, *args)[0][0]
                changes.append(jax.tree.map(lambda a, b: np.asarray(a) - b, after, before))
        rows.append(_row(f"step of {optim.kind}", family, distance(*changes), STEP_LIMIT))
    return rows


class _Killed(Exception):
    pass


def resumption() -> Rows:
    """Losses and weights of a job, trained twice, and once more with a kill in the middle."""
    budget = Budget(steps=100, batch=4, seq_len=64, eval_tokens=4096)
    data = Corpus(name="kjv")
    run = Run(model=_model("dense"), data=data, optim=AdamW(lr=0.01), budget=budget)
    checkpoints.CHECKPOINT_SECONDS = 0.0

    def kill(event: Any) -> None:
        if getattr(event, "step", 0) >= 50:
            raise _Killed

    def trained(folder: str) -> tuple[float, Any]:
        ((record, weights),) = train([run], Path(folder))
        return record.loss or np.nan, dict(weights)

    found = []
    for interrupted in (False, False, True):
        with tempfile.TemporaryDirectory() as folder:
            if interrupted:
                with contextlib.suppress(_Killed):
                    list(train([run], Path(folder), kill))
            found.append(trained(folder))
    first, *others = found
    return [
        _row(name, "dense", max(abs(first[0] - loss), distance(weights, first[1])), 0.0)
        for name, (loss, weights) in zip(("repeat", "kill and resume"), others, strict=True)
    ]


def compiled(family: str, name: str, length: int) -> Rows:
    """A program of `costs`, for the cache."""
    context.PROGRAMS[name](model(family, WIDTH, 2), length)
    return []


def costs(family: str, lengths: tuple[int, ...], repeats: int) -> Rows:
    """Seconds and bytes against the length, with slopes."""
    found = context.measure({family: model(family, WIDTH, 2)}, lengths, repeats=repeats)
    return [{"check": row["quantity"], "ok": True} | row for row in found]


def distance(got: Any, want: Any) -> float:
    """‖got − want‖ / ‖want‖ over all arrays of two trees."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    arrays = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    apart = sum(float(((a - b) ** 2).sum()) for a, b in arrays)
    return float(np.sqrt(apart / sum(float((b**2).sum()) for _, b in arrays)))


def _model(family: str, dtype: str = "float32") -> ModelConfig:
    return model(family, WIDTH, 2).model_copy(update={"dtype": dtype})


def _tokens(model: ModelConfig, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(model.vocab_size, size=(BATCH, length), dtype=np.int32)


def _row(check: str, family: str, value: float, limit: float, **more: Any) -> dict[str, Any]:
    """NaN is not within any limit, and no number of JSON."""
    finite = bool(np.isfinite(value))
    row = {"check": check, "family": family} | more | {"value": value if finite else None}
    return row | {"limit": limit, "ok": finite and value <= limit, "device": context.device()}
