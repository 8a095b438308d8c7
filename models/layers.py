"""The small layers that every mixer is made of: linear, norm, short convolution.

Weights live in fp32 and are cast to the activations' dtype where they are used; norms are computed
in fp32 whatever that dtype is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from isoflop.models.base import Init, Matrix
from isoflop.models.packing import Lengths, Position, last

BATCH = ("data", "fsdp", "expert")  # axes of a mesh over which a batch lies
# elementwise FLOPs of jax.nn's activations for one number, as their jaxprs have them
SIGMOID, SILU, GELU, ELU, SOFTPLUS = 1, 2, 8, 2, 5  # log_sigmoid is a softplus
SOFTMAX = 4  # subtract the maximum, exp, sum, divide


def lift(vector: ArrayLike, x: Array) -> Array:
    """`vector` along all the leading axes of `x`, so that it meets its last axes.

    Its gradient is then one sum over all of them. Where an axis of size 1 is left out of it, XLA's
    CPU code takes 25 times as long.
    """
    vector = jnp.asarray(vector)
    return jnp.broadcast_to(vector, x.shape[: x.ndim - vector.ndim] + vector.shape)


def in_rows(normalize: Callable[[Array], Array], x: Float[Array, "*batch d"]) -> Array:
    """`normalize(x)`, which is along the last axis, in fp32 and with one leading axis: if the first
    of several has size 1, XLA's CPU code for the gradient takes 4 times as long.
    """
    return normalize(x.astype(jnp.float32).reshape(-1, x.shape[-1])).reshape(x.shape)


def by_rms(x: Float[Array, "n d"], eps: float) -> Float[Array, "n d"]:
    """x / √(mean x² + eps)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def centred(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return x - jnp.mean(x, -1, keepdims=True)


class Linear(nnx.Module):
    """y = x W (+ bias), W of shape (d_in, d_out) drawn from N(0, 1/d_in): unit variance stays.

    `axes` names W's axes (see Matrix): from the width into a layer, unless told otherwise.
    """

    def __init__(self, d_in: int, d_out: int, *, axes: str = "di", init: Init, bias: bool = False):
        self.kernel = Matrix(init.normal((d_in, d_out), d_in**-0.5), axes=axes)
        self.bias = nnx.Param(init.full((d_out,), 0.0)) if bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.biased(product(x, self.kernel.astype(x.dtype)))

    def biased(self, y: Float[Array, "*batch o"]) -> Float[Array, "*batch o"]:
        return y if self.bias is None else y + lift(self.bias.astype(y.dtype), y)


@jax.custom_vjp
def product(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """x W, whose gradient dW = xᵀ dy transposes the narrower of x and dy.

    A CPU's products want the first operand's rows in a row, so one of the two is laid out anew.
    Autodiff always takes dy: the wider one of a gate, and another copy for each map of the same x.
    """
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, dy):
    x, kernel = saved
    flat, d_flat = (z.reshape(-1, z.shape[-1]) for z in (x, dy))
    if flat.shape[1] <= d_flat.shape[1]:
        d_kernel = jnp.einsum("ni,no->io", flat, d_flat)
    else:
        d_kernel = jnp.einsum("no,ni->oi", d_flat, flat).T
    return dy @ kernel.T, d_kernel


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def again(function: Callable[..., Array], late: Any, *rest: Any) -> Array:
    """`function(late, *rest)`, whose backward pass computes what it needs of it again.

    As `jax.checkpoint`, but what depends on `late` is not computed before the gradient is there:
    XLA's CPU backend drops the barriers that are to see to it, and a checkpoint's recomputed
    arrays are then made in the forward pass and held (LOG.md).
    """
    return function(late, *rest)


def _again_forward(function, late, *rest):
    return function(late, *rest), (late, rest)


def _again_backward(function, saved, dy):
    late, rest = saved
    if jax.sharding.get_abstract_mesh().empty:
        nothing = 0 * dy[(0,) * dy.ndim]  # which no compiler may leave out: it might be NaN
        late = jax.tree.map(lambda x: x + nothing.astype(x.dtype), late)
    else:  # one element of what is split costs a transfer
        late, dy = jax.lax.optimization_barrier((late, dy))
    return jax.vjp(function, late, *rest)[1](dy)


again.defvjp(_again_forward, _again_backward)


def gated(activation: Callable[[Array], Array], gate: Array, x: Array) -> Array:
    """activation(gate) ⊙ x. The backward pass computes the activation again: that is cheaper than
    to keep it, its sigmoid and the product, and to read them (LOG.md).
    """
    return again(lambda gate, x: activation(gate) * x, gate, x)


def place(x: Float[Array, "..."], *axes: str | tuple[str, ...]) -> Float[Array, "..."]:
    """`x` with its leading axes along these of a mesh of devices, where a mesh is set, and whole
    along the others: for what split weights would otherwise pull over to their own axes.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*axes))


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, in fp32 (Zhang & Sennrich 2019, 1910.07467); scale 1 if not `learned`."""

    def __init__(self, size: int, eps: float = 1e-6, *, init: Init, learned: bool = True):
        self.scale = nnx.Param(init.full((size,), 1.0)) if learned else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        y = in_rows(lambda x: by_rms(x, self.eps), x)
        return (y if self.scale is None else y * lift(self.scale[...], x)).astype(x.dtype)

    @staticmethod
    def flops(size: int, learned: bool = True) -> int:
        """Elementwise FLOPs of one vector: square, sum, scale by the rms; of the rms; scale."""
        return 3 * size + 3 + size * learned


class LayerNorm(nnx.Module):
    """(x − mean) / deviation · scale + bias, in fp32 (Ba et al. 2016, 1607.06450)."""

    def __init__(self, size: int, eps: float = 1e-5, *, init: Init):
        self.scale = nnx.Param(init.full((size,), 1.0))
        self.bias = nnx.Param(init.full((size,), 0.0))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        y = in_rows(lambda x: by_rms(centred(x), self.eps), x)
        return (y * lift(self.scale[...], x) + lift(self.bias[...], x)).astype(x.dtype)

    @staticmethod
    def flops(size: int) -> int:
        """Elementwise FLOPs of one vector: less the mean, by the rms, scale and bias."""
        return 2 * size + 1 + RMSNorm.flops(size) + size


class ShortConv(nnx.Module):
    """Causal depthwise convolution over the last `width` tokens, as shifted adds.

    Shifted adds rather than a grouped convolution: XLA's CPU code for the latter is 18 times
    slower. The state of the step form holds the last width − 1 inputs.
    """

    def __init__(self, channels: int, width: int, *, init: Init, bias: bool = True):
        bound = width**-0.5
        self.kernel = nnx.Param(init.uniform((width, channels), -bound, bound))
        self.bias = nnx.Param(init.full((channels,), 0.0)) if bias else None
        self.width, self.channels = width, channels

    def __call__(
        self, x: Float[Array, "b t i"], position: Position = None, first: int = 0
    ) -> Float[Array, "b t i"]:
        """Of all channels, or of some from the `first` on."""
        history = jnp.zeros((x.shape[0], self.width - 1, x.shape[-1]), x.dtype)
        return self._mix(jnp.concatenate([history, x], axis=1), x.shape[1], position, first)

    def prefill(
        self, x: Float[Array, "b t i"], state: Float[Array, "b w i"], lengths: Lengths = None
    ) -> tuple[Float[Array, "b w i"], Float[Array, "b t i"]]:
        """The last inputs, and the outputs of all tokens after those that `state` holds."""
        window = jnp.concatenate([state, x], axis=1)
        return last(window, self.width - 1, lengths), self._mix(window, x.shape[1])

    def init_state(self, batch: int, dtype: Any) -> Float[Array, "b w i"]:
        return jnp.zeros((batch, self.width - 1, self.channels), dtype)

    def step(
        self, state: Float[Array, "b w i"], x: Float[Array, "b i"]
    ) -> tuple[Float[Array, "b w i"], Float[Array, "b i"]]:
        window = jnp.concatenate([state, x[:, None]], axis=1)
        return window[:, 1:], self._mix(window, 1)[:, 0]

    def _mix(
        self, padded: Float[Array, "b p i"], length: int, position: Position = None, first: int = 0
    ) -> Float[Array, "b t i"]:
        own = slice(first, first + padded.shape[-1])
        kernel = self.kernel.astype(padded.dtype)[:, own]
        shifted = (padded[:, w : w + length] for w in range(self.width))
        taps = [x * lift(kernel[w], x) for w, x in enumerate(shifted)]
        if position is not None:
            back = range(self.width - 1, -1, -1)
            inside = ((position >= w)[..., None] for w in back)
            taps = [jnp.where(i, tap, 0) for i, tap in zip(inside, taps, strict=True)]
        out = functools.reduce(jnp.add, taps)
        return out if self.bias is None else out + lift(self.bias.astype(padded.dtype)[own], out)

    @staticmethod
    def flops(channels: int, width: int, bias: bool = True) -> int:
        """Elementwise FLOPs of one token: a product for each tap, their sum, the bias."""
        return channels * (2 * width - 1 + bias)
