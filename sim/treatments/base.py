"""What is done to a finished model, as one value: a treatment maps a subject to another.

A subject is a trained model with what it costs to have and to run. Treatments compose by being
applied one after another, and none of them (32 bits, sparsity 0, …) gives the subject back as it
was, bit for bit. What it then predicts is measured on the run's own held-out tokens, so that a
treated model and the plain one are compared token by token.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from pydantic import BeforeValidator, SerializeAsAny

from isoflop.models.base import Config, Embedding, Matrix, Tagged, resolve
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.flops import training_flops
from isoflop.sim.data import Batch
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.spec import Run, canonical, essential
from isoflop.sim.train.program import cross_entropy, likeliest
from isoflop.sim.treatments.formats import Format, stored_bits

Params = Any  # nnx.State
Reads = Any  # the parameters; or (what is read without a treatment, the arrays that it adds)
Logits = Callable[[ModelConfig, Reads, Int[Array, "b t"]], Float[Array, "b t w"]]


class Ledger(Config):
    """What a treated model costs. FLOPs are executed ones; bytes are of one sequence's decoding at
    the training length.
    """

    train_flops: int  # of all training that it took, teachers' and retraining included
    teacher_flops: int = 0  # the part of them that is the teacher's: its training, its predictions
    step_flops: int  # of one decoded token
    read_bytes: float  # weights, state and store that one decoded token reads
    resident_bytes: float  # weights and state
    store_bytes: float = 0.0  # of what it looks things up in
    large_calls: float = 0.0  # tokens of a large model that it asks for, per token of its own


@dataclass(frozen=True)
class Leaf:
    """One parameter: its path, its values, and the axis that its matmul sums over (None: it has
    none, as norms and biases).
    """

    path: str
    variable: nnx.Variable
    sums: int | None

    @property
    def value(self) -> Array:
        return jnp.asarray(self.variable[...])

    @property
    def embedded(self) -> bool:
        return isinstance(self.variable, Embedding)

    @property
    def routed(self) -> bool:
        """Whether a token reads only some experts of it."""
        return "e" in (getattr(self.variable, "axes", None) or "")[:1]


@dataclass(frozen=True)
class Subject:
    """A trained model under treatment: how it predicts, and how its weights are stored."""

    run: Run
    model: ModelConfig
    params: Params
    logits: Logits
    formats: Mapping[str, tuple[Format, int]] = field(default_factory=dict)  # path → and scales
    kept: Mapping[str, int] = field(default_factory=dict)  # path → weights that a mask leaves
    state_bits: float = 32.0  # of an element of the decoding state, scales included
    train_flops: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)  # what the ledger's fields have more
    memory: tuple[Any, ...] = ()  # arrays that `logits` reads beside the parameters
    chosen: Mapping[str, float] = field(default_factory=dict)  # what treatments chose, by name
    runs: Path | None = None  # the directory of the run, where a treatment finds others
    speculated: bool = False  # whether its costs are those of decoding with drafts

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Subject:
        """A finished run. Raises UserError for a checkpoint of which no run is known."""
        run = checkpoint.run
        if run is None:
            raise UserError(
                f"{checkpoint.folder} is no run, and a treatment is measured on a run's held-out "
                "tokens; name a run's folder or key"
            )
        flops = training_flops(run)["executed"]
        params = jax.tree.map(jnp.asarray, checkpoint.params)
        runs = checkpoint.folder.parent
        return cls(run, checkpoint.model, params, parallel, train_flops=flops, runs=runs)

    def to(self, **changes: Any) -> Subject:
        """With these fields. Raises UserError where the model changes that a memory was made with,
        and where anything does after speculation.
        """
        if self.memory and changes.keys() & {"params", "logits"}:
            raise UserError(
                "weights are treated before what reads with them, and states and activations too: "
                "give neighbours, passages and cascade last"
            )
        return self._with(changes)

    def _with(self, changes: Mapping[str, Any]) -> Subject:
        if self.speculated:
            raise UserError(
                "drafts are kept as often as the model is like them, and save what it costs: give "
                "speculate after all other treatments"
            )
        return replace(self, **changes)

    def reading(self, logits: Logits, memory: Any, **changes: Any) -> Subject:
        """That predicts by `logits`, which reads (what it read until now, `memory`)."""
        return self._with({"logits": logits, "memory": (*self.memory, memory), **changes})

    def beside(self, key: str) -> Subject:
        """Another run of the same directory. Raises UserError where it is not there, or has other
        tokens.
        """
        if self.runs is None:
            raise UserError(f"run {key} is looked for beside the treated one; give a run's folder")
        other = Subject.of(Checkpoint.load(key, self.runs))
        if other.model.vocab_size != self.model.vocab_size:
            raise UserError(
                f"models that decode together must share their tokens; {key} has "
                f"{other.model.vocab_size} and the run {self.model.vocab_size}; take another run"
            )
        return other

    def costing(self, **more: float) -> dict[str, float]:
        """`extra` with so much more of each field."""
        return {
            name: self.extra.get(name, 0) + more.get(name, 0) for name in {**self.extra, **more}
        }

    @property
    def reads(self) -> Reads:
        """The second argument of `logits`."""
        return reduce(lambda read, more: (read, more), self.memory, self.params)

    def rewrite(self, change: Callable[[Leaf], Any]) -> Subject:
        """With every leaf's array replaced by `change(leaf)`."""

        def at(path: Any, variable: nnx.Variable) -> nnx.Variable:
            return variable.replace(change(_leaf(path, variable)))

        return self.to(params=_over(at, self.params))

    @property
    def leaves(self) -> list[Leaf]:
        flat, _ = jax.tree_util.tree_flatten_with_path(
            self.params, is_leaf=lambda node: isinstance(node, nnx.Variable)
        )
        return [_leaf(path, variable) for path, variable in flat]

    def _bits(self, leaf: Leaf) -> int:
        """Stored bits of a parameter: all of its numbers, or a mask and those that it leaves."""
        format, scales = self.formats.get(leaf.path, ("fp32", 0))
        size = leaf.variable.size
        kept = self.kept.get(leaf.path, size)
        masked = size + stored_bits(kept, scales, format)
        return min(stored_bits(size, scales, format), masked)

    @property
    def ledger(self) -> Ledger:
        """Of a decoded token's weights: all but idle experts' and an untied embedding's other rows,
        in expectation.
        """
        model, leaves = self.model, self.leaves
        context = self.run.budget.seq_len
        each = [self._bits(leaf) for leaf in leaves]
        table = 0 if model.tie_embeddings else (model.vocab_size - 1) * model.d_model
        idle = model.cost(1).params - model.touched_params(1) - table
        routed = sum(leaf.variable.size for leaf in leaves if leaf.routed)

        def read(leaf: Leaf) -> float:
            if leaf.routed:
                return 1.0 - idle / routed
            looked_up = leaf.embedded and not model.tie_embeddings
            return 1.0 / model.vocab_size if looked_up else 1.0

        touched = sum(read(leaf) * bits for leaf, bits in zip(leaves, each, strict=True))
        state = self.state_bits * model.state_size(context)
        own = {
            "train_flops": self.train_flops,
            "step_flops": model.step_cost(context).flops,
            "read_bytes": (touched + state) / 8,
            "resident_bytes": (sum(each) + state) / 8,
        }
        return Ledger(**own | {
            name: own.get(name, 0) + more for name, more in self.extra.items()
        })  # fmt: skip


class Treatment(Tagged, ABC):
    """Something that is done to a trained model. Its fields are all that it depends on."""

    @abstractmethod
    def apply(self, subject: Subject) -> Subject:
        """The treated model. Raises UserError where it cannot be treated so."""


AnyTreatment = Annotated[
    SerializeAsAny[Treatment], BeforeValidator(lambda value: resolve(Treatment, value))
]


def key(run: Run, treatments: tuple[Treatment, ...]) -> str:
    """The name of a treated run: a digest of the run's and of what is done to it, in order."""
    facts = canonical([run.key, [essential(one) for one in treatments]])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def parallel(model: ModelConfig, params: Params, tokens: Int[Array, "b t"]) -> Any:
    """Logits by the parallel form."""
    return nnx.merge(nnx.split(model.abstract())[0], params)(tokens)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _judge(logits: Logits, model: ModelConfig, reads: Reads, batch: Batch) -> tuple[Any, Any]:
    found = logits(model, reads, batch.tokens[:, :-1])
    return cross_entropy(found, batch.targets), likeliest(found, batch.targets)


def judge(
    subject: Subject, batch: Batch
) -> tuple[Float[np.ndarray, "n t"], Bool[np.ndarray, "n t"]]:
    """−log p of every target in nats, and whether it was the likeliest token."""
    return by_parts(
        subject.run, batch, lambda part: _judge(subject.logits, subject.model, subject.reads, part)
    )


def by_parts(run: Run, batch: Batch, function: Callable[[Batch], Any]) -> Any:
    """The arrays that a function gives of a batch's sequences, a row for each: called for as many
    at once as a training batch has tokens, the last ones filled up with zeros.
    """
    count, length = batch.tokens.shape
    rows = max(1, run.budget.batch_tokens // (length - 1))

    def part(start: int) -> Batch:
        def rows_of(x: Any) -> Any:
            some = x[start : start + rows]
            return jnp.asarray(np.pad(some, [(0, rows - len(some)), (0, 0)]))

        return jax.tree.map(rows_of, batch)

    parts = [function(part(start)) for start in range(0, count, rows)]
    return jax.tree.map(lambda *each: np.concatenate([np.asarray(x) for x in each])[:count], *parts)


def _leaf(path: Any, variable: nnx.Variable) -> Leaf:
    name = ".".join(str(getattr(part, "key", part)) for part in path)
    sums = -1 if isinstance(variable, Embedding) else -2 if isinstance(variable, Matrix) else None
    return Leaf(name, variable, sums)


def _over(change: Callable[[Any, nnx.Variable], Any], params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
        change, params, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
