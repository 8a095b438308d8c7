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
from jaxtyping import Array, Float

from isoflop.models.base import Init, Matrix
from isoflop.models.kernels.xla_cpu import broadcast_to_batch, in_rows, product, rematerialise
from isoflop.models.packing import Lengths, Position, last

BATCH = ("data", "fsdp", "expert")  # axes of a mesh over which a batch lies
# elementwise FLOPs of jax.nn's activations for one number, as their jaxprs have them
SIGMOID, SILU, GELU, ELU, SOFTPLUS = 1, 2, 8, 2, 5  # log_sigmoid is a softplus
SOFTMAX = 4  # subtract the maximum, exp, sum, divide


def by_rms(x: Float[Array, "*batch d"], eps: float) -> Float[Array, "*batch d"]:
    """x / √(mean x² + eps)."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def centred(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
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
        return y if self.bias is None else y + broadcast_to_batch(self.bias.astype(y.dtype), y)


def gated(activation: Callable[[Array], Array], gate: Array, x: Array) -> Array:
    """activation(gate) ⊙ x. The backward pass computes the activation again: that is cheaper than
    to keep it, its sigmoid and the product, and to read them (LOG.md).
    """
    return rematerialise(lambda gate, x: activation(gate) * x, gate, x)


def sharding_constraint(
    x: Float[Array, "..."], *axes: str | tuple[str, ...]
) -> Float[Array, "..."]:
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
        if self.scale is not None:
            y = y * broadcast_to_batch(self.scale[...], x)
        return y.astype(x.dtype)

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
        scale, bias = (broadcast_to_batch(p[...], x) for p in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)

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
        taps = [x * broadcast_to_batch(kernel[w], x) for w, x in enumerate(shifted)]
        if position is not None:
            back = range(self.width - 1, -1, -1)
            inside = ((position >= w)[..., None] for w in back)
            taps = [jnp.where(i, tap, 0) for i, tap in zip(inside, taps, strict=True)]
        out = functools.reduce(jnp.add, taps)
        if self.bias is not None:
            out = out + broadcast_to_batch(self.bias.astype(padded.dtype)[own], out)
        return out

    @staticmethod
    def flops(channels: int, width: int, bias: bool = True) -> int:
        """Elementwise FLOPs of one token: a product for each tap, their sum, the bias."""
        return channels * (2 * width - 1 + bias)
