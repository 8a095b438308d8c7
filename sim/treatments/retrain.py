"""Train on: a finished run's weights as the start, or its predictions as the goal.

`Retrain` goes on from the run's weights: on its own text or another's, all of them or a change of
low rank (LoRA: Hu et al. 2021, 2106.09685, §4.1). Masks are kept, so after pruning it is
retraining. With `weights`, every forward pass rounds them to that format and the gradient passes
through as if it had not (straight-through): quantisation-aware training.
`Distil` trains another, usually smaller model from its beginning on

    loss = (1 − λ)·(−log p(target)) + λ·Σ_v q(v)·(log q(v) − log p(v))

with p the student's prediction and q the teacher's (Hinton et al. 2015, 1503.02531, at T = 1;
Busbridge et al. 2025, 2502.08606, eq. 6); or q may be a Markov language's own probabilities of the
next token, the oracle that no teacher can beat.

Rates are the run's own, times `rate`, warmed up over a tenth of the steps and then falling
linearly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from isoflop.models.base import Embedding, Init, Matrix, Sizes
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.data import AnyData, Batch, DataConfig
from isoflop.sim.data.languages import Markov
from isoflop.sim.data.source import drawn
from isoflop.sim.optim import Optim
from isoflop.sim.optim.base import apply, by_parameter
from isoflop.sim.train.program import cross_entropy, weighted
from isoflop.sim.treatments.base import Params, Subject, Treatment, parallel
from isoflop.sim.treatments.formats import Format, groups_of, through

View = Callable[[Any], Params]  # of what is trained, the parameters that it makes
Goal = Callable[[Any, Batch], Float[Array, "b t w"]]  # probabilities of a teacher's next tokens
FIRST = 2**20  # the batches of a run's own text that no run of the lab has reached


class Retrain(Treatment, Sizes):
    """More steps from where the run ended."""

    kind: Literal["retrain"] = "retrain"
    steps: NonNegativeInt
    data: AnyData | None = None  # None: the run's own
    rate: PositiveFloat = 0.3  # times the run's peak rates
    weights: Format = "fp32"  # of every forward pass
    group: PositiveInt = 32
    lora_rank: PositiveInt | None = None  # of what is added to each matrix; None: all are trained

    @model_validator(mode="after")
    def _one_way(self) -> Retrain:
        if self.lora_rank is not None and self.weights != "fp32":
            raise ValueError("weights are rounded in full training; leave out lora_rank or weights")
        return self

    def apply(self, subject: Subject) -> Subject:
        if self.steps == 0:
            return subject
        _check(subject)
        if self.lora_rank is not None:
            trained, view = _low_rank(subject.params, self.lora_rank, subject.run.seed)
        else:
            trained, view = subject.params, self._view(subject)
        data = self.data or subject.run.data
        params = _train(subject, subject.model, trained, view, data, self.steps, self.rate)
        flops = self.steps * _flops(subject, subject.model)
        formats = subject.formats
        if self.weights != "fp32":
            formats = {**formats, **{
                leaf.path: (self.weights, groups_of(leaf.variable.shape, leaf.sums, self.group))
                for leaf in subject.leaves
                if leaf.sums is not None
            }}  # fmt: skip
        return subject.to(params=params, formats=formats, train_flops=subject.train_flops + flops)

    def _view(self, subject: Subject) -> View:
        """Masked, and as they are in the format, with the gradient of what they were."""
        masks = {leaf.path: leaf.value != 0 for leaf in subject.leaves if leaf.path in subject.kept}

        def at(path: tuple[str, ...], variable: nnx.Variable) -> Any:
            value, name = jnp.asarray(variable[...]), ".".join(path)
            if name in masks:
                value = jnp.where(masks[name], value, 0)
            axis = -1 if isinstance(variable, Embedding) else -2
            if isinstance(variable, Embedding | Matrix) and self.weights != "fp32":
                kept = through(value, self.weights, axis, self.group)
                value = value + jax.lax.stop_gradient(kept - value)
            return value

        return lambda params: by_parameter(at, params)


class Distil(Treatment, Sizes):
    """A student that is trained on a finished run's predictions."""

    kind: Literal["distil"] = "distil"
    student: ModelConfig
    steps: PositiveInt
    share: float = Field(1.0, ge=0, le=1)  # λ: of the teacher in the loss
    teacher: Literal["run", "oracle"] = "run"
    rate: PositiveFloat = 1.0  # times the run's peak rates, at the student's width
    seed: NonNegativeInt = 0

    def apply(self, subject: Subject) -> Subject:
        _check(subject)
        if self.student.vocab_size != subject.model.vocab_size:
            raise UserError(
                f"a student must have its teacher's {subject.model.vocab_size} tokens, and has "
                f"{self.student.vocab_size}; change vocab_size"
            )
        params = jax.tree.map(jnp.asarray, nnx.state(self.student.build(init=Init(self.seed))))
        params = _train(
            subject, self.student, params, _itself, subject.run.data, self.steps, self.rate,
            self._goal(subject), self.share, self.seed,
        )  # fmt: skip
        own = self.steps * _flops(subject, self.student)
        asked = self.share > 0 and self.teacher == "run"
        taught = subject.train_flops + self.steps * _flops(subject, subject.model) // 3
        return Subject(
            subject.run, self.student, params, parallel,
            train_flops=own + asked * taught, runs=subject.runs,
            extra={"teacher_flops": asked * taught},
        )  # fmt: skip

    def _goal(self, subject: Subject) -> Goal | None:
        if self.share == 0:
            return None
        if self.teacher == "run":
            return _Predicted(subject.model)
        if not isinstance(subject.run.data, Markov):
            raise UserError(
                f"the oracle is a Markov language's own probabilities, and the run's data are "
                f"{subject.run.data.kind}; use teacher='run'"
            )
        return _oracle(subject.run.data)


def _itself(params: Params) -> Params:
    return params


@dataclass(frozen=True)
class _Predicted:
    """A teacher's probabilities. A value, as what it is compiled into is kept by it."""

    model: ModelConfig

    def __call__(self, teacher: Params, batch: Batch) -> Float[Array, "b t w"]:
        return jax.nn.softmax(parallel(self.model, teacher, batch.tokens[:, :-1]), -1)


@cache
def _oracle(data: Markov) -> Goal:
    """The language's probabilities; for the first targets, which lack context, those of it given
    nothing but the tokens that there are would differ: they take the target itself.
    """
    table, order, symbols = jnp.asarray(data.after), data.order, data.symbols

    def goal(_: Any, batch: Batch) -> Any:
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        context = jnp.zeros_like(inputs)
        for back in reversed(range(order)):
            shifted = jnp.pad(inputs, ((0, 0), (back, 0)))[:, : inputs.shape[1]]
            context = context * symbols + shifted
        known = (jnp.arange(inputs.shape[1]) >= order - 1)[None, :, None]
        return jnp.where(known, table[context], jax.nn.one_hot(targets, symbols))

    return goal


def _check(subject: Subject) -> None:
    if subject.logits is not parallel:
        raise UserError(
            "training is by the parallel form in fp32; give it before treatments of states and "
            "activations"
        )


def _flops(subject: Subject, model: ModelConfig) -> int:
    """Executed, of one training step."""
    budget = subject.run.budget
    return step_flops(model, budget.seq_len, budget.batch)["executed"]


def _low_rank(params: Params, rank: int, seed: int) -> tuple[Any, View]:
    """Changes A·B of every matrix, zero at first, and the view that adds them to the params."""
    rng = np.random.default_rng(seed)
    flat, structure = jax.tree.flatten(params, is_leaf=lambda n: isinstance(n, nnx.Variable))

    def pair(variable: nnx.Variable) -> Any:
        if not isinstance(variable, Matrix):
            return None
        *experts, inward, out = variable.shape
        first = rng.standard_normal((*experts, inward, rank)) * inward**-0.5
        return jnp.asarray(first, jnp.float32), jnp.zeros((*experts, rank, out), jnp.float32)

    pairs = [pair(variable) for variable in flat]

    def view(pairs: Any) -> Params:
        whole = [
            v if pair is None else v.replace(v[...] + pair[0] @ pair[1])
            for v, pair in zip(flat, pairs, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    return pairs, view


def _train(
    subject: Subject, model: ModelConfig, trained: Any, view: View, data: DataConfig, steps: int,
    rate: float, goal: Goal | None = None, share: float = 0.0, seed: int | None = None,
) -> Params:  # fmt: skip
    """The parameters after so many steps of the run's optimiser. Raises UserError if the loss stops
    being a number, and for data of other tokens than the model's.
    """
    if data.vocab_size > model.vocab_size:
        raise UserError(
            f"the model's vocab_size={model.vocab_size} must cover the data's {data.vocab_size} "
            "tokens; use other data"
        )
    run, source = subject.run, data.open()
    budget, optim = run.budget, run.optim
    step = _step(model, optim, view, goal)
    direction, rates = _direction(optim, model, trained, rate)
    state, teacher = direction.init(trained), subject.params
    first = FIRST if data == run.data else 0
    nats = jnp.zeros(())
    for i in range(steps):
        batch = drawn(source, first + i, run.seed if seed is None else seed, budget.batch,
                      budget.seq_len)  # fmt: skip
        factor = min(1.0, (i + 1) / max(1, steps // 10)) * (1 - i / steps)
        trained, state, nats = step(
            trained, state, rates, batch, teacher, jnp.float32(factor), jnp.float32(share)
        )
    if not bool(jnp.isfinite(nats)):
        raise UserError(f"the loss is not a number after {steps} steps; lower rate={rate:g}")
    return view(trained)


def _direction(
    optim: Optim, model: ModelConfig, trained: Any, rate: float
) -> tuple[optax.GradientTransformation, Any]:
    """The optimiser's own where all parameters are trained; Adam, at the rate of matrices, of
    low-rank changes.
    """
    if isinstance(trained, nnx.State):
        rates = jax.tree.map(lambda r: rate * r, optim.rates(model, trained))
        return optim.direction(model, trained), rates
    direction = optax.chain(
        optax.clip_by_global_norm(optim.clip), optax.scale_by_adam(0.9, 0.95, 1e-8)
    )
    return direction, jax.tree.map(lambda _: jnp.float32(rate * optim.lr), trained)


@lru_cache(maxsize=8)
def _step(model: ModelConfig, optim: Optim, view: View, goal: Goal | None) -> Callable[..., Any]:
    graph = nnx.split(model.abstract())[0]

    def loss(trained: Any, batch: Batch, teacher: Any, share: Array) -> tuple[Array, Array]:
        logits, aux = nnx.merge(graph, view(trained))(batch.tokens[:, :-1])
        nats = cross_entropy(logits, batch.targets)
        if goal is not None:
            q = jax.lax.stop_gradient(goal(teacher, batch))
            known = jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny))
            apart = (q * (known - jax.nn.log_softmax(logits, -1))).sum(-1)
            nats = (1 - share) * nats + share * apart
        mean = weighted(nats, batch).mean()
        return mean + aux.get("penalty", 0.0), mean

    def step(trained, state, rates, batch, teacher, factor, share):
        gradient, nats = jax.grad(loss, has_aux=True)(trained, batch, teacher, share)
        direction, _ = _direction(optim, model, trained, 1.0)
        change, state = direction.update(gradient, state, trained)
        return apply(trained, change, rates, factor), state, nats

    return jax.jit(step, donate_argnums=(1,))
