"""What is written in a roundabout way because XLA's CPU backend is slow at the plain one.

Each function computes what its plain form does, which its docstring names together with the
measurement that justifies it (CPU time of the form here over that of the plain one, or both; more
in LOG.md). An accelerator loses nothing by them. With `kernels.use("reference")` those that alter a
gradient's computation are the plain form. When XLA is changed, measure again, and delete from here.

Not here, since they are a kernel's own layout: rows of tiles and heads in parts (attention.py),
chunks computed together (recurrence.py), tokens in turn (selective_scan.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from isoflop.models.kernels.platforms import backend


def broadcast_to_batch(vector: ArrayLike, x: Array) -> Array:
    """`vector` broadcast to the batch axes of `x`: all before the last ones, which it has itself.

    Plain: broadcasting by an axis of size 1. The vector's gradient is here one sum over all batch
    axes at once; over those that remain, of which one is often 1, XLA's library for sums is slow:
    of [1, 16384, 192] over the middle axis 124 ms, where [16, 1024, 192] takes 3.3.
    """
    vector = jnp.asarray(vector)
    return jnp.broadcast_to(vector, x.shape[: x.ndim - vector.ndim] + vector.shape)


def in_rows(normalize: Callable[[Array], Array], x: Float[Array, "*batch d"]) -> Array:
    """`normalize(x)`, which is along the last axis, in fp32.

    Plain: the same with all of x's batch axes. They are one here: where the first of several has
    size 1, a norm's gradient takes 21 ms instead of 5.1 ([1, 16384, 192]).
    """
    x32 = x.astype(jnp.float32)
    if backend() == "reference":
        return normalize(x32)
    return normalize(x32.reshape(-1, x.shape[-1])).reshape(x.shape)


def product(x: Float[Array, "*batch i"], kernel: Any) -> Float[Array, "*batch o"]:
    """x W, whose gradient dW = xᵀ dy transposes the narrower of x and dy.

    Plain: `x @ kernel`. A CPU's matmul wants the first operand's rows in a row, so one of the two
    is laid out anew, and autodiff takes dy: the wider one of a gate, and another copy for each map
    of the same x. Of a dense training step at d 128: .81 [.76, .88].
    """
    return x @ kernel if backend() == "reference" else _product(x, kernel)


@jax.custom_vjp
def _product(x, kernel):
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


_product.defvjp(_product_forward, _product_backward)


def rematerialise(function: Callable[..., Array], late: Any, *rest: Any) -> Array:
    """`function(late, *rest)`, whose backward pass computes what it needs of it again.

    Plain: `jax.checkpoint`. Here what depends on `late` is not computed before the gradient is
    there. XLA's CPU backend drops the barriers that are to see to that before it schedules, so that
    a checkpoint's recomputed arrays are made in the forward pass and held: 5.5 MiB a layer of a
    step at T 8192, whose memory went from 173 to 137 MiB for MoE; no time (1.00 to 1.01).
    """
    if backend() == "reference":
        return function(late, *rest)
    return _rematerialised(function, late, *rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rematerialised(function, late, *rest):
    return function(late, *rest)


def _rematerialise_forward(function, late, *rest):
    return function(late, *rest), (late, rest)


def _rematerialise_backward(function, saved, dy):
    late, rest = saved
    if jax.sharding.get_abstract_mesh().empty:
        nothing = 0 * dy[(0,) * dy.ndim]  # which no compiler may leave out: it might be NaN
        late = jax.tree.map(lambda x: x + nothing.astype(x.dtype), late)
    else:  # one element of what is split costs a transfer
        late, dy = jax.lax.optimization_barrier((late, dy))
    return jax.vjp(function, late, *rest)[1](dy)


_rematerialised.defvjp(_rematerialise_forward, _rematerialise_backward)


def running_sums(x: Float[Array, "b h c a"], reverse: bool = False) -> Float[Array, "b h c a"]:
    """Sums over c from its start, or from its end on, as a product with a triangle of ones.

    Plain: `jnp.cumsum`, which XLA adds up again for every pair of tokens that it is used
    for. Training step: linear attention .80 [.78, .80], Mamba-2 .76 [.75, .77], Gated DeltaNet .89
    [.82, .93].
    """
    ones = jnp.ones((x.shape[2],) * 2, x.dtype)
    return jnp.einsum("ts,bhsa->bhta", jnp.triu(ones) if reverse else jnp.tril(ones), x)


def by_terms(x: Float[Array, "*batch r s"], y: Float[Array, "*batch s q"]) -> Array:
    """x @ y of a few rows, term by term.

    Plain: `x @ y`, whose call costs more than so little work. Half a thousand products of 4 × 4
    took 1 ms of a triangular inverse's 2.9 (128 heads, chunks of 32); .88 ms term by term, and .85
    to .90 of Gated DeltaNet's training step.
    """
    terms = (x[..., :, s, None] * y[..., None, s, :] for s in range(x.shape[-1]))
    return functools.reduce(jnp.add, terms)


def by_dots(axis: int, x: Float[Array, "*b j i"], y: Float[Array, "*b z"]) -> Float[Array, "*b y"]:
    """Σ x ⊙ y over axis 1 (j, where y is b j) or 2 (i, where y is b i), as a product of matrices.

    Plain: `jnp.sum`, whose terms XLA writes down first, where those of a product are not. The
    backward pass of Mamba's scan (batch 16, T 256, d_inner 256), whose sum with A is written out
    too: 77 to 87 ms instead of 129.
    """
    return jnp.einsum("...ji,...j->...i" if axis == 1 else "...ji,...i->...j", x, y)
