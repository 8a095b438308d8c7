"""What is compiled: the training step and the evaluation of one architecture, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from isoflop.models.base import Aux, Init
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.lm import ModelConfig
from isoflop.sim.optim import Optim, apply
from isoflop.sim.train import sharding as layout


def cross_entropy(
    logits: Float[Array, "*batch w"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """−log softmax(logits)[target] in nats, fp32."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@dataclass(frozen=True)
class Program:
    """The pure functions of one architecture and optimiser, before compilation.

    Every array argument but `rates` and the step counts has a leading axis of seed lanes. They are
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
        return nnx.split(nnx.eval_shape(lambda: self.model.build(init=Init(None))))

    def init(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """(parameters, optimiser state) of every lane."""
        lanes = [nnx.state(self.model.build(init=Init(seed))) for seed in seeds]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)
        params = jax.device_put(params, self.shardings(params))
        init = jax.vmap(self._direction.init)
        places = self.shardings(jax.eval_shape(init, params))
        return params, jax.jit(init, out_shardings=places)(params)

    def shardings(self, state: Any) -> Any:
        """Where every leaf of a state is."""
        return layout.shardings(state, self.mesh)

    def tokens(self, tokens: Int[np.ndarray, "*batch b s"]) -> Int[Array, "*batch b s"]:
        """Tokens on the devices that compute them."""
        return jax.device_put(tokens, layout.rows(tokens.ndim, self.mesh))

    def shapes(self, batch: int, seq_len: int, lanes: int = 1, steps: int = 1) -> tuple[Any, ...]:
        """The arguments of `advance` without arrays, to lower or compile it by."""

        def described(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        params = jax.tree.map(lambda x: described(x.dtype, lanes, *x.shape), self.abstract[1])
        state = params, jax.eval_shape(jax.vmap(self._direction.init), params)
        rates = jax.eval_shape(lambda: self.rates(self.optim))
        factors, count = described(jnp.float32, steps), described(jnp.int32)
        batches = described(jnp.int32, steps, lanes, batch, seq_len + 1)
        if self.mesh is not None:
            state, batches = jax.tree.map(
                lambda leaf, place: leaf.update(sharding=place),
                (state, batches),
                (self.shardings(state), layout.rows(batches.ndim, self.mesh)),
            )
        return state, rates, factors, batches, count

    @property
    def _direction(self) -> optax.GradientTransformation:
        return self.optim.direction(self.model, self.abstract[1])

    def over_lanes(self, function: Callable, *args: Any) -> Any:
        """`function` of every lane."""
        if self.batched:
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda lane: function(*lane), args)

    def rates(self, peak: Optim) -> Any:
        return peak.rates(self.model, self.abstract[1])

    def predict(self, params: Any, tokens: Int[Array, "b t"]) -> tuple[Float[Array, "b t w"], Aux]:
        """Logits, and what the channel mixers report."""
        with layout.within(self.mesh):
            return nnx.merge(self.abstract[0], params)(tokens)

    def loss(
        self, params: Any, tokens: Int[Array, "b s"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean nats per token plus the channel mixers' penalties, and the former alone."""
        logits, aux = self.predict(params, tokens[:, :-1])
        nats = cross_entropy(logits, tokens[:, 1:]).mean()
        return nats + aux.get("penalty", 0.0), nats

    @full_precision  # backward passes are traced outside the model
    def gradient(self, params: Any, tokens: Int[Array, "b s"]) -> tuple[Any, Float[Array, ""]]:
        """Of the loss, and the mean nats: averaged over micro-batches of every n-th row."""
        compute = jax.grad(self.loss, has_aux=True)
        if self.micro_batches == 1:
            return compute(params, tokens)

        def add(total, part):
            return jax.tree.map(jnp.add, total, compute(params, part)), None

        # rows that are neighbours are on one device, so each device has its share of every part
        parts = rearrange(tokens, "(b n) s -> n b s", n=self.micro_batches)
        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32)
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / self.micro_batches, total)

    def advance(self, state, rates, factors, batches, steps):
        """The first `steps` of the batches: the next state and each step's loss (step, lane)."""
        update = self._direction.update

        def lane(params, moments, tokens, factor):
            gradient, nats = self.gradient(params, tokens)
            change, moments = update(gradient, moments, params)
            return apply(params, change, rates, factor), moments, nats

        def body(i, carry):
            params, moments, losses = carry
            params, moments, nats = self.over_lanes(
                lambda p, m, tokens: lane(p, m, tokens, factors[i]), params, moments, batches[i]
            )
            return params, moments, losses.at[i].set(nats)

        losses = jnp.zeros(batches.shape[:2], jnp.float32)
        params, moments, losses = jax.lax.fori_loop(0, steps, body, (*state, losses))
        return (params, moments), losses

    def evaluate(self, params, tokens: Int[Array, "n b s"]):
        """Nats of each held-out sequence (lane, n, b), and the scalars' means (lane,)."""

        def lane(params):
            def chunk(tokens):
                logits, aux = self.predict(params, tokens[:, :-1])
                return cross_entropy(logits, tokens[:, 1:]).mean(-1), aux

            nats, aux = jax.lax.map(chunk, tokens)
            return nats, jax.tree.map(jnp.mean, aux)

        return self.over_lanes(lane, params)


@cache
def jitted(program: Program) -> dict[str, Any]:
    """A program's functions; learning rates are arguments, so runs of a shape share them."""
    state = program.shardings(program.shapes(1, 1)[0])
    return {
        "advance": jax.jit(program.advance, donate_argnums=0, out_shardings=(state, None)),
        "evaluate": jax.jit(program.evaluate),
    }
