"""The contracts of `models`: what a mixer costs, how it is configured, what it computes.

Axis legend, used in every annotation and einsum of this package:

    b batch    t query time   s key time   d d_model   h heads (g: key/value heads)
    k key or state channels   v value channels          f d_ff      e expert
    c position inside a chunk n chunk                   i d_inner   j state of an SSM channel
    w vocabulary              r rank of a low-rank product
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    field_validator,
)
from pydantic_core import PydanticKnownError

from isoflop.models.errors import UserError
from isoflop.models.packing import Lengths, Position, is_real, lengths_of

State = Any  # a pytree of arrays whose leading axis is the batch
Aux = dict[str, Array]  # scalars a channel mixer reports beside its output
CrossLayerState = dict[
    str, Array
]  # by name: what layers read of layers below, beside the residual stream


@dataclass(frozen=True)
class Cost:
    """What a forward pass over one sequence takes, in exact integers.

    `matmul_flops` is 2·m·n·k for every dot product that is executed, as the jaxpr shows it.
    `elementwise_flops` is one for each floating-point addition, subtraction, multiplication,
    division, power, root and elementary function that is executed, whatever it is for, and one for
    each number that goes into a sum. Nothing counts for moving, comparing or choosing numbers, for
    their sign or format, or for integers; nor what the output does not need, as a router's
    statistics. The form for CPUs is counted (models/kernels/platforms.py). What depends on weights
    alone is computed once for a whole batch, and counted for each of its sequences.
    sim/cost/jaxpr.py has the rule by primitives, and tests hold every formula to it.
    """

    matmul_flops: int = 0
    elementwise_flops: int = 0
    params: int = 0
    active_params: int = 0  # touched by one token; equals params unless routed

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.elementwise_flops

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __radd__(self, zero: int) -> Cost:
        return self  # so that sum() works


class Retrieval(NamedTuple):
    """What a row of tokens is read with: after each `chunk` of them `nearest` passages, its
    neighbours, of `length` tokens each. Chunks that a row does not fill have none.
    """

    chunk: int
    nearest: int
    length: int

    @property
    def tokens(self) -> int:
        """Of the neighbours of one chunk."""
        return self.nearest * self.length

    def beside(self, seq_len: int) -> int:
        """Tokens of all neighbours of a row of `seq_len`."""
        return seq_len // self.chunk * self.tokens


class Config(BaseModel):
    """A frozen, validated, hashable value that survives a round trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LARGEST: ClassVar[int] = 2**63 - 1  # integer, which NumPy's generators and counters can hold
    incidental: ClassVar[frozenset[str]] = frozenset()  # fields that name nothing: in no digest

    @field_validator("*")
    @classmethod
    def _is_held(cls, value: Any) -> Any:
        if isinstance(value, int) and value > cls.LARGEST:
            raise PydanticKnownError("less_than_equal", {"le": cls.LARGEST})
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"must be text that UTF-8 can hold ({error.reason})") from None
        return value


class Sizes(Config):
    """A config whose integers are sizes of arrays, which XLA indexes by int32."""

    LARGEST = 2**31 - 1


class Tagged(Config):
    """A config that names its own class in JSON, by a field `kind` that every subclass pins."""

    kind: str

    implied: ClassVar[bool] = False  # the one that JSON without a kind means, which no digest names


T = TypeVar("T", bound=Tagged)


@cache
def _import_all(name: str = __package__) -> None:
    """Import every file of a package: a mixer is known by being there, without a registry."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)


def _leaves(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _leaves(sub)


def resolve(base: type[T], value: Any) -> Any:
    """The subclass of `base` whose `kind` the JSON object names; other values pass unchanged.

    Files beside that of `base` are imported for it. Raises UserError for an unknown kind.
    """
    if not isinstance(value, dict):
        return value
    _import_all(base.__module__.rpartition(".")[0])
    own = [sub for sub in _leaves(base) if "kind" in inspect.get_annotations(sub)]
    kinds = {sub.model_fields["kind"].default: sub for sub in own}
    implied = [sub for sub in kinds.values() if sub.implied and "kind" not in value]
    kind = value.get("kind")
    chosen = implied[0] if implied else kinds.get(kind) if isinstance(kind, str) else None
    if chosen is None:
        known = ", ".join(sorted(map(str, kinds)))
        raise UserError(f"kind={kind!r:.60} is not a {base.__name__}; use one of {known}")
    return chosen.model_validate(value)


class MixerConfig(Tagged, Sizes):
    """A sequence mixer's hyper-parameters and its exact arithmetic, which needs no arrays."""

    def check(self, d_model: int) -> None:
        """Raise UserError if this mixer cannot have width `d_model`."""

    @property
    def reads(self) -> frozenset[str]:
        """Names of the cross-layer state that a layer below must have written."""
        return frozenset()

    @property
    def writes(self) -> frozenset[str]:
        """Names of the cross-layer state that this mixer writes."""
        return frozenset()

    @property
    def retrieval(self) -> Retrieval | None:
        """The neighbours that it reads beside its row; None: none."""
        return None

    def read_cost(self, d_model: int) -> Cost:
        """To read the neighbours of one chunk, which `cost` and `step_cost` leave out."""
        return Cost()

    def resolved(self, d_model: int) -> MixerConfig:
        """The same mixer with the sizes that it takes from `d_model` written out."""
        return self

    def build(self, d_model: int, *, init: Init) -> Mixer:
        raise TypeError(f"{type(self).__name__} has no build")

    def cost(self, d_model: int, seq_len: int) -> Cost:
        """Parallel form over one sequence of `seq_len` tokens."""
        raise TypeError(f"{type(self).__name__} has no cost")

    def step_cost(self, d_model: int, context: int) -> Cost:
        """One decoded token against a state that was made for `context` tokens."""
        raise TypeError(f"{type(self).__name__} has no step_cost")

    def state_size(self, d_model: int, context: int) -> int:
        """Elements of the decoding state of one sequence, made for `context` tokens."""
        raise TypeError(f"{type(self).__name__} has no state_size")

    @property
    def state_parts(self) -> int | None:
        """Equal parts in which devices can hold the state, as key/value heads; None: any number."""
        return None

    def max_tokens(self, context: int) -> int | None:
        """Tokens that a state made for `context` tokens can take; None: any number."""
        return None


class Mixer(nnx.Module):
    """Mixes along time. `step` has the signature of `lax.scan`'s body: the oracle is scan(step)."""

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        """The whole sequence at once; `position` restarts it (models/packing.py)."""
        raise TypeError(f"{type(self).__name__} has no parallel form")

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        """The state before any token. Caches hold `dtype`; recurrent states are always fp32."""
        raise TypeError(f"{type(self).__name__} has no state")

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        """A prompt at once, after what `state` has taken: the state after it, and all outputs.

        Row i has lengths[i] tokens at the left (None: all); the rest is padding, which changes no
        state and no token's output, and gets some output. This is the definition, token by token;
        a mixer's own is its parallel form.
        """
        real = is_real(lengths_of(x, lengths), x.shape[1])

        def token(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            x, real = inputs
            after, y = self.step(state, x)
            kept = jax.vmap(jnp.where)  # by row
            return jax.tree.map(partial(kept, real), after, state), y

        state, y = jax.lax.scan(token, state, (jnp.moveaxis(x, 1, 0), real.T))
        return state, jnp.moveaxis(y, 0, 1)

    def read(self, state: State, neighbours: Float[Array, "b s d"]) -> State:
        """The state with the neighbours of the chunk that the next token ends; as it is where the
        mixer reads none (`MixerConfig.retrieval`).
        """
        return state

    def room(self, state: State) -> Int[Array, " b"] | None:
        """Tokens that each sequence's state still takes; None: any number."""
        return None

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        """One token on. Beyond what the state can take, a sequence's outputs are NaN."""
        raise TypeError(f"{type(self).__name__} has no step form")

    def forward(
        self,
        x: Float[Array, "b t d"],
        cross: CrossLayerState,
        position: Position = None,
    ) -> tuple[Float[Array, "b t d"], CrossLayerState]:
        """The parallel form inside a model; a mixer with cross-layer state has its own."""
        return self(x, position), cross

    def forward_prefill(
        self,
        x: Float[Array, "b t d"],
        state: State,
        cross: CrossLayerState,
        lengths: Lengths = None,
    ) -> tuple[State, Float[Array, "b t d"], CrossLayerState]:
        """The prefill form inside a model."""
        return (*self.prefill(x, state, lengths), cross)

    def forward_step(
        self, state: State, x: Float[Array, "b d"], cross: CrossLayerState
    ) -> tuple[State, Float[Array, "b d"], CrossLayerState]:
        """The step form inside a model."""
        return (*self.step(state, x), cross)


class ChannelConfig(Tagged, Sizes):
    """A channel mixer (MLP, experts): the same arithmetic contract, over tokens instead of time."""

    def check(self, d_model: int) -> None:
        """Raise UserError if this channel mixer cannot have width `d_model`."""

    def resolved(self, d_model: int) -> ChannelConfig:
        """The same with the sizes that it takes from `d_model` written out."""
        return self

    def build(self, d_model: int, *, init: Init) -> Channel:
        raise TypeError(f"{type(self).__name__} has no build")

    def cost(self, d_model: int, tokens: int) -> Cost:
        """`tokens` mixed in one call (all sequences of a batch: experts share their dispatch)."""
        raise TypeError(f"{type(self).__name__} has no cost")

    def touched_params(self, d_model: int, tokens: int) -> float:
        """Weights that `tokens` tokens of one call read, in expectation at uniform routing."""
        return self.cost(d_model, tokens).params

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on a later token; a property of every mixer."""
        return True

    @property
    def micro_batch_invariant(self) -> bool:
        """Whether a batch's output and mean penalty are those of its parts, each in its own call:
        with the gradients, which is what matters to whoever adds up micro-batches.
        """
        return True


class Channel(nnx.Module):
    """Mixes channels of each token; reports scalars (`balance`, `router_z`, `dropped`) beside."""

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        raise TypeError(f"{type(self).__name__} has no forward")

    def prefill(self, x: Float[Array, "b t d"], lengths: Lengths = None) -> Float[Array, "b t d"]:
        """The output alone, where the tokens from lengths[i] on of row i are padding; only a
        channel mixer that shares something between tokens differs.
        """
        return self(x)[0]


AnyMixer = Annotated[
    SerializeAsAny[MixerConfig],
    BeforeValidator(lambda value: resolve(MixerConfig, value)),
]
AnyChannel = Annotated[
    SerializeAsAny[ChannelConfig],
    BeforeValidator(lambda value: resolve(ChannelConfig, value)),
]


class Matrix(nnx.Param):
    """A weight matrix that acts on the width: its learning rate falls as 1 / width (2203.03466).

    `axes` has a letter of the legend for each axis, by which a mesh of devices splits it: d is the
    residual stream's width, i any channels inside a layer (heads × their size, d_inner, d_ff).
    """


class Embedding(nnx.Param):
    """A look-up table: its own learning rate, independent of width. `axes` as a Matrix has them."""


class LoadBalancingBias(nnx.Param):
    """A bias on a router's choice of experts, moved by the sign of its gradient alone, at a rate of
    its own.
    """


class Init:
    """Draws initial values on the host, since compiling `jax.random` for every shape of a grid
    takes as long as compiling the training step. `Init(None)` gives shapes for `nnx.eval_shape`.
    """

    def __init__(self, seed: int | None):
        self._rng = None if seed is None else np.random.Generator(np.random.Philox(seed))

    def draw(self, shape: tuple[int, ...], values: Callable[[np.random.Generator], Any]) -> Any:
        """`values(rng)` as fp32 of `shape`."""
        if self._rng is None:
            return jnp.zeros(shape, jnp.float32)
        return np.broadcast_to(np.asarray(values(self._rng), np.float32), shape)

    def normal(self, shape: tuple[int, ...], std: float) -> Any:
        """N(0, std²)."""
        return self.draw(shape, lambda rng: std * rng.standard_normal(shape, np.float32))

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> Any:
        """Uniform in [low, high)."""
        return self.draw(shape, lambda rng: rng.uniform(low, high, shape))

    def full(self, shape: tuple[int, ...], value: float) -> Any:
        """A constant."""
        return self.draw(shape, lambda rng: value)


def count(tree: Any) -> int:
    """Elements in all leaves of a pytree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
