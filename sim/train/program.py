"""What is compiled: the training step and the evaluation of one architecture, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from isoflop.models.base import Aux, Init
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.lm import ModelConfig
from isoflop.sim.data.source import Batch
from isoflop.sim.optim import Optim, apply
from isoflop.sim.train import sharding as layout


def cross_entropy(
    logits: Float[Array, "*batch w"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """−log softmax(logits)[target] in nats, fp32."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def likeliest(
    logits: Float[Array, "*batch w"], targets: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether argmax(logits) is the target, the first of equals: by comparisons, since XLA's argmax
    takes a fifth of an evaluation on a CPU.
    """
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    before = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < targets[..., None]
    return ~((logits > picked) | ((logits == picked) & before)).any(axis=-1)


def weighted(values: Float[Array, "*batch t"], batch: Batch) -> Float[Array, "*batch t"]:
    """w · values, or the values themselves where every target counts as 1."""
    return values if batch.weights is None else values * batch.weights


class Judged(NamedTuple):
    """What a model's predictions of held-out targets are worth, target by target."""

    loss: Float[Any, "*batch"]  # mean over each sequence of weight · nats
    nats: Float[Any, "*batch t"]  # −log p(target)
    correct: Bool[Any, "*batch t"]  # whether the likeliest token is the target


@dataclass(frozen=True)
class Program:
    """The pure functions of one architecture and optimiser, before compilation.

    Every array argument but `rates` and the step counts has a leading axis, seeds. They are
    computed one after another, or together with `batched`: a CPU gains nothing from that, and
    Mamba's scan loses a factor of 3 (LOG.md). In turn they equal the same seeds trained alone.
    With a `mesh`, weights, moments and batches are split over its devices (sim/train/sharding.py).
    `micro_batches` parts of a batch go one after another; gradients are averaged over them.
    """

    model: ModelConfig
    optim: Optim
    batched: bool = False
    mesh: Mesh | None = None
    micro_batches: int = 1

    @property
    def abstract(self) -> tuple[Any, Any]:
        """(graph, parameters' shapes), without allocating arrays."""
        return nnx.split(self.model.abstract())

    def init(self, seeds: Sequence[int], start: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """(parameters, optimiser state) of every seed; the former are `start`, if that is given."""
        models = start or [nnx.state(self.model.build(init=Init(seed))) for seed in seeds]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
        params = layout.put(params, self.shardings(params))
        init = jax.vmap(self._direction.init)
        places = self.shardings(jax.eval_shape(init, params))
        return params, jax.jit(init, out_shardings=places)(params)

    def shardings(self, state: Any) -> Any:
        """Where every leaf of a state is."""
        return layout.shardings(state, self.mesh)

    def put(self, batch: Batch) -> Batch:
        """Sequences on the devices that compute them."""
        return layout.put(batch, layout.rows(batch.tokens.ndim, self.mesh))

    def shapes(self, batch: int, seq_len: int, seeds: int = 1, steps: int = 1) -> tuple[Any, ...]:
        """The arguments of `advance` without arrays, to lower or compile it by."""

        def described(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        params = jax.tree.map(lambda x: described(x.dtype, seeds, *x.shape), self.abstract[1])
        state = params, jax.eval_shape(jax.vmap(self._direction.init), params)
        rates = jax.eval_shape(lambda: self.rates(self.optim))
        factors, count = described(jnp.float32, steps), described(jnp.int32)
        batches = Batch(described(jnp.int32, steps, seeds, batch, seq_len + 1))
        if (retrieval := self.model.retrieval) is not None:
            beside = described(jnp.int32, steps, seeds, batch, retrieval.beside(seq_len))
            batches = batches._replace(neighbours=beside)
        if self.mesh is not None:
            rows = jax.tree.map(lambda x: layout.rows(x.ndim, self.mesh), batches)
            state, batches = jax.tree.map(
                lambda leaf, place: leaf.update(sharding=place),
                (state, batches),
                (self.shardings(state), rows),
            )
        return state, rates, factors, batches, count

    @property
    def _direction(self) -> optax.GradientTransformation:
        return self.optim.direction(self.model, self.abstract[1])

    def over_seeds(self, function: Callable, *args: Any) -> Any:
        """`function` of every seed."""
        if self.batched:
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda one: function(*one), args)

    def rates(self, peak: Optim) -> Any:
        return peak.rates(self.model, self.abstract[1])

    def predict(
        self, params: Any, tokens: Int[Array, "b t"], neighbours: Int[Array, "b u"] | None = None
    ) -> tuple[Float[Array, "b t w"], Aux]:
        """Logits, and what the channel mixers report."""
        with layout.within(self.mesh):
            return nnx.merge(self.abstract[0], params)(tokens, neighbours=neighbours)

    def loss(self, params: Any, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean of weight · nats plus the channel mixers' penalties, and the former alone.

        Weights whose mean is 1 make it the weighted mean Σ w·nats / Σ w.
        """
        logits, aux = self.predict(params, batch.tokens[:, :-1], batch.neighbours)
        nats = weighted(cross_entropy(logits, batch.targets), batch).mean()
        return nats + aux.get("penalty", 0.0), nats

    @full_precision  # backward passes are traced outside the model
    def gradient(self, params: Any, batch: Batch) -> tuple[Any, Float[Array, ""]]:
        """Of the loss, and the weighted mean of nats: averaged over micro-batches of every n-th
        row. Weights are first divided by their mean over the whole batch, so that a part counts by
        the weight that it has and parts without any are no division by zero.
        """
        compute = jax.grad(self.loss, has_aux=True)
        if batch.weights is not None:
            batch = batch._replace(weights=batch.weights / batch.weights.mean())
        if self.micro_batches == 1:
            return compute(params, batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, compute(params, part)), None

        # rows that are neighbours are on one device, so each device has its share of every part
        parts = jax.tree.map(
            lambda x: rearrange(x, "(b n) s -> n b s", n=self.micro_batches), batch
        )
        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / self.micro_batches, total)

    def advance(self, state, rates, factors, batches: Batch, steps):
        """The first `steps` of the batches: the next state and each step's loss (step, seed)."""
        update = self._direction.update

        def one_seed(params, moments, batch, factor):
            gradient, nats = self.gradient(params, batch)
            change, moments = update(gradient, moments, params)
            return apply(params, change, rates, factor), moments, nats

        def body(i, carry):
            params, moments, losses = carry
            params, moments, nats = self.over_seeds(
                lambda p, m, batch: one_seed(p, m, batch, factors[i]),
                params,
                moments,
                jax.tree.map(lambda x: x[i], batches),
            )
            return params, moments, losses.at[i].set(nats)

        losses = jnp.zeros(batches.tokens.shape[:2], jnp.float32)
        params, moments, losses = jax.lax.fori_loop(0, steps, body, (*state, losses))
        return (params, moments), losses

    def evaluate(self, params, batches: Batch) -> tuple[Judged, Aux]:
        """Every held-out target of (n, b, seq_len) of every seed, and the scalars' means (seed,).

        Metrics are sums over these on the host: a new one needs no other program.
        """

        def one_seed(params):
            def chunk(batch):
                logits, aux = self.predict(params, batch.tokens[:, :-1], batch.neighbours)
                targets = batch.targets
                nats = cross_entropy(logits, targets)
                loss = weighted(nats, batch).mean(-1)
                return Judged(loss, nats, likeliest(logits, targets)), aux

            judged, aux = jax.lax.map(chunk, batches)
            return judged, jax.tree.map(jnp.mean, aux)

        return self.over_seeds(one_seed, params)


@cache
def jitted(program: Program) -> dict[str, Any]:
    """A program's functions; learning rates are arguments, so runs of a shape share them."""
    state = program.shardings(program.shapes(1, 1)[0])
    whole = layout.replicated(program.mesh)
    return {
        "advance": jax.jit(program.advance, donate_argnums=0, out_shardings=(state, whole)),
        "evaluate": jax.jit(program.evaluate, out_shardings=whole),
    }
