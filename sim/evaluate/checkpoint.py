"""A finished model, of a run or a Hugging Face folder: its logits, its loss on a text, and what it
writes after prompts.

Tokens are those of the run's data, or of a tokenizer.json beside the weights, or bytes
(sim/evaluate/text.py). What the tokenizer puts before a text is context: it is never predicted and
counts in no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Shaped
from pydantic import ValidationError

from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.checkpoints.fields import escaped
from isoflop.models.errors import UserError
from isoflop.models.generation import Sampling
from isoflop.models.lm import ModelConfig
from isoflop.sim.evaluate.text import Tokenizer, Tokens
from isoflop.sim.records.store import Store, brief
from isoflop.sim.spec import Run
from isoflop.sim.train.program import Judged, cross_entropy, likeliest

HEAD_ROWS = 1024  # tokens that are read, and whose logits are in memory, at once
PROMPT_STEP = 64  # prompts are padded to a multiple, so that most lengths share a program


@dataclass(frozen=True)
class Loss:
    """Of a model on a text. Windows share no context, so early tokens of each have little."""

    tokens: int
    window: int
    nats_per_token: float
    bits_per_byte: float


def run_folder(run: str | Path, runs: Path = Path("runs")) -> Path | None:
    """The folder of a trained run that `run` names: as a folder with a spec.json, or by the
    beginning of its key in the directory `runs`. None if it is a folder of anything else.

    Raises UserError if it is no folder, and no or several keys begin so.
    """
    folder = Path(run)
    if (folder / "spec.json").is_file():
        return folder
    if str(run) and folder.is_dir():
        return None
    found = sorted(path.parent.name for path in runs.glob("*/spec.json"))
    keys = [key for key in found if key.startswith(str(run))]
    if len(keys) != 1:
        raise UserError(
            f"{len(keys)} runs in {runs} have a key that begins with {str(run)!r:.80}, and no "
            "folder is called so; give the whole key of one, as `isoflop records` shows it, or the "
            "path of a run or of a Hugging Face checkpoint"
        )
    return runs / keys[0]


def config(run: str | Path, runs: Path = Path("runs")) -> tuple[str, ModelConfig]:
    """The name of the folder that `Checkpoint.load` would read, and its model, without weights."""
    folder = run_folder(run, runs)
    if folder is None:
        return Path(run).name, interop.read(Path(run))
    return folder.name, read_spec(folder).model


@dataclass(frozen=True)
class Checkpoint:
    """A model, its parameters, its folder, and the run that trained it (None: another's)."""

    folder: Path
    model: ModelConfig
    params: Any
    run: Run | None = None

    @classmethod
    def load(cls, run: str | Path, runs: Path = Path("runs")) -> Checkpoint:
        """Of a trained run (its folder, or its key's beginning in `runs`) or a Hugging Face folder.

        Raises UserError if there is none, or one that this code cannot read.
        """
        folder = run_folder(run, runs)
        if folder is None:
            return cls(Path(run), *interop.load(Path(run)))
        spec = read_spec(folder)
        weights = Store(folder.parent).weights(folder.name)
        return cls(folder, spec.model, _parameters(folder, spec.model, weights), spec)

    @cached_property
    def _graph(self) -> Any:
        return nnx.split(self.model.abstract())[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError if there is none."""
        if self.run is not None:
            return Tokenizer.of_data(self.run.data)
        return Tokenizer.of_folder(self.folder, self.model.vocab_size)

    @property
    def context(self) -> int | None:
        """Tokens that the model was trained on at once, if that is known."""
        if self.run is not None:
            return self.run.budget.seq_len
        return interop.trained_context(self.folder)

    def encode(self, text: str) -> Tokens:
        """The tokens of the text itself."""
        return self.tokenizer.encode(text)[1]

    def decode(self, tokens: Tokens) -> str:
        return self.tokenizer.decode(tokens)

    def logits(self, text: str | Sequence[int] | Tokens) -> Float[np.ndarray, "t w"]:
        """Of the token after each of a text, which is one or is token ids; fp32."""
        tokens = self._given(text)
        return np.asarray(self._logits(self.params, tokens[None])[0])

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(lambda params, tokens: nnx.merge(self._graph, params)(tokens)[0])

    def _given(self, text: str | Sequence[int] | Tokens) -> Tokens:
        """The tokens of a prompt, with what the tokenizer puts before a text."""
        if isinstance(text, str):
            before, own = self.tokenizer.encode(text)
            tokens = np.concatenate([before, own]) if len(own) else own
        else:
            tokens = np.asarray(text, np.int32).reshape(-1)
        if not len(tokens):
            raise UserError("a prompt needs at least one token; give one")
        if not 0 <= tokens.min() <= tokens.max() < self.model.vocab_size:
            raise UserError(
                f"token ids must be from 0 to {self.model.vocab_size - 1}, got "
                f"{tokens.min()} to {tokens.max()}"
            )
        return tokens

    def loss(self, text: str, seq_len: int) -> Loss:
        """Mean over the text's tokens, read in windows of `seq_len` targets that none shares."""
        before, own = self.tokenizer.encode(text)
        tokens = np.concatenate([before, own])
        counted = np.arange(len(tokens)) >= max(1, len(before))
        if not counted.any():
            raise UserError(f"a text of {len(own)} tokens has none to predict; give a longer one")
        seq_len = min(seq_len, len(tokens) - 1)
        windows, counted = _windows(tokens, seq_len), _windows(counted, seq_len)[:, 1:]
        nats = float(self.judge(windows).nats.sum(where=counted, dtype=np.float64) / counted.sum())
        if not math.isfinite(nats):
            raise UserError(
                "the model's loss on this text is not a finite number; its weights overflow fp32"
            )
        bytes_per_token = len(text.encode()) / len(own)
        bits_per_byte = nats / math.log(2) / bytes_per_token
        return Loss(int(counted.sum()), seq_len, nats, bits_per_byte)

    def judge(
        self,
        tokens: Int[np.ndarray, "n s"],
        targets: Int[np.ndarray, "n t"] | None = None,
        neighbours: Int[np.ndarray, "n u"] | None = None,
    ) -> Judged:
        """Target by target of sequences: what follows each token (None: the next one). Sequences
        are read by about HEAD_ROWS tokens at once, and logits are in memory of as many.
        """
        targets = tokens[:, 1:] if targets is None else targets
        n, seq_len = targets.shape
        rows = max(1, HEAD_ROWS // seq_len)
        inputs, asked, beside = (
            None if x is None else np.pad(x, [(0, -n % rows), (0, 0)]).reshape(-1, rows, x.shape[1])
            for x in (tokens[:, :-1], targets, neighbours)
        )
        found = self._judge(self.params, inputs, asked, beside)
        nats, correct = (np.asarray(x).reshape(-1, seq_len)[:n] for x in found)
        return Judged(nats.mean(-1), nats, correct)

    @cached_property
    def _judge(self) -> Any:
        @jax.jit
        def judge(params, inputs, targets, neighbours):
            lm = nnx.merge(self._graph, params)

            def head(cut):
                hidden, targets = cut
                logits = lm.logits(hidden)
                return cross_entropy(logits, targets), likeliest(logits, targets)

            def some(part):
                inputs, targets, beside = part
                hidden = lm.hidden(inputs, neighbours=beside)[0].reshape(targets.size, -1)
                cuts = [_cut(x, min(HEAD_ROWS, targets.size)) for x in (hidden, targets.ravel())]
                found = jax.lax.map(head, cuts)
                return [x.reshape(-1)[: targets.size] for x in found]

            return jax.lax.map(some, (inputs, targets, neighbours))

        return judge

    def generate(
        self,
        prompts: Sequence[str | Sequence[int] | Tokens],
        tokens: int = 64,
        sampling: Sampling = Sampling(),  # noqa: B008 - a value
        seed: int = 0,
        context: int | None = None,
    ) -> list[Tokens]:
        """At most `tokens` after each prompt, of all prompts at once: one parallel pass over them,
        then a compiled loop. `context` bounds the decoding state, in tokens; None: as it takes.

        Raises UserError where such a state is too small for a prompt and what is to follow.
        """
        check_seed(seed)
        if tokens < 1 or not len(prompts):
            raise UserError("writing needs at least one prompt, and one token to write")
        given = [self._given(prompt) for prompt in prompts]
        lengths = np.array(list(map(len, given)), np.int32)
        longest = int(lengths.max())
        most = None if context is None else self.model.max_tokens(context)
        if most is not None and longest + tokens - 1 > most:
            raise UserError(
                f"a prompt of {longest} tokens and {tokens} to write need a decoding state for "
                f"{longest + tokens - 1} tokens, but context={context}; write fewer, or raise "
                "context"
            )
        size = -(-longest // PROMPT_STEP) * PROMPT_STEP
        padded = np.stack([np.pad(row, (0, size - len(row))) for row in given])
        lm = nnx.merge(self._graph, self.params)
        found = lm.generate(jnp.asarray(padded), tokens, jnp.asarray(lengths), sampling, seed)
        if not np.asarray(found.finite).all():
            raise UserError("the model's logits are not finite numbers; its weights overflow fp32")
        written, ends = np.asarray(found.tokens), np.asarray(found.lengths)
        return [row[:end] for row, end in zip(written, ends, strict=True)]

    def write(
        self, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 0, context: int = 8192
    ) -> str:
        """The text of `generate` after one prompt, greedily or sampled at a temperature."""
        sampling = Sampling(temperature or None)
        return self.decode(self.generate([prompt], tokens, sampling, seed, context)[0])


def read_spec(folder: Path) -> Run:
    """The run that a run's folder explains. Raises UserError if this code cannot read it."""
    path = folder / "spec.json"
    try:
        return Run.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} is no run that this code can read ({brief(error)}); use the code that wrote it"
        ) from None


def _parameters(folder: Path, model: ModelConfig, weights: dict[str, np.ndarray]) -> Any:
    """The weights of a run as its model's parameters. Raises UserError where they do not match."""
    want = {name: leaf.shape for name, leaf in interop.names(nnx.state(model.abstract())).items()}
    found = {name: array.shape for name, array in weights.items()}
    if wrong := sorted(set(want.items()) ^ set(found.items())):
        raise UserError(
            f"{folder / 'model.safetensors'} does not hold the weights of its spec.json: "
            f"{escaped(wrong[0][0])} is missing, unexpected or of another shape; train it again"
        )
    return interop.from_names(model, weights)


def check_seed(seed: int) -> None:
    """UserError for what no generator takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} must be from 0 to 2^63 - 1; choose a smaller one")


def _cut(x: Any, rows: int) -> Any:
    """Parts of so many rows, the last filled up with zeros."""
    padded = jnp.pad(x, [(0, -len(x) % rows), *[(0, 0)] * (x.ndim - 1)])
    return padded.reshape(-1, rows, *x.shape[1:])


def _windows(values: Shaped[np.ndarray, "_"], seq_len: int) -> Shaped[np.ndarray, "n s"]:
    """Inputs and, shifted by one, targets; zeros fill up the last window: no earlier token sees
    them.
    """
    starts = np.arange(0, len(values) - 1, seq_len)[:, None]
    padded = np.pad(values, (0, seq_len))
    return padded[starts + np.arange(seq_len + 1)]
