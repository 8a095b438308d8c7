"""Tokens sent to their experts, SwiGLUs of one shape each, and back.

The reference runs every expert on every token and sums what comes out by shares:

    y = Σ_e share_e · (silu(x G_e) ⊙ x U_e) D_e

The fast form, for every platform, lays tokens out expert by expert in blocks of rows, so that all
is one batched product of matrices; moving rows and gathering kernels have gradients by hand that
move and multiply as well, where a GPU's scatters are slow and in no fixed order. Axes: t token,
e expert, k choice, n r blocks of r rows, d width, f hidden width of an expert.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from isoflop.models.kernels.platforms import backend
from isoflop.models.kernels.xla_cpu import rematerialise

Kernels = tuple[Float[Array, "e d f"], Float[Array, "e d f"], Float[Array, "e f d"]]


def reference(x: Float[Array, "t d"], kernels: Kernels, shares: Float[Array, "t e"]) -> Array:
    """The sum above for each token (t d); `kernels` are G, U and D."""
    gate, up, down = kernels
    hidden = jax.nn.silu(jnp.einsum("td,edf->etf", x, gate)) * jnp.einsum("td,edf->etf", x, up)
    served = jnp.einsum("etf,efd->etd", hidden, down)
    return jnp.einsum("te,etd->td", shares.astype(x.dtype), served)


def by_token(
    x: Float[Array, "t d"],
    kernels: Kernels,
    gates: Float[Array, "t k"],
    chosen: Int[Array, "t k"],
    row: Int[Array, " tk"],
    kept: Bool[Array, " tk"],
    block_expert: Int[Array, " n"],
    rows: int,
) -> Float[Array, "t d"]:
    """Each token's sum over its `chosen` experts, times their gates, of choices that are `kept`.

    `row` of each choice is its row among all of the blocks of `rows` rows, out of range where it is
    not kept; `block_expert` is the expert of each block.
    """
    if backend() == "reference":
        one_hot = jax.nn.one_hot(chosen, len(kernels[0]), dtype=gates.dtype)
        counted = jnp.where(kept.reshape(gates.shape), gates, 0.0)
        return reference(x, kernels, jnp.einsum("tk,tke->te", counted, one_hot))
    choices, choice = gates.shape[1], jnp.arange(chosen.size)
    source = jnp.full(len(block_expert) * rows, chosen.size).at[row].set(choice, mode="drop")
    sent = _moved(jnp.repeat(x, choices, axis=0), source, row)
    served = _served(rearrange(sent, "(n r) d -> n r d", r=rows), kernels, block_expert)
    weighted = _moved(served, row, source) * gates.reshape(-1, 1).astype(x.dtype)
    return rearrange(weighted, "(t k) d -> t k d", k=choices).sum(1)


def by_expert(
    x: Float[Array, "t d"],
    kernels: Kernels,
    gates: Float[Array, "e r"],
    token: Int[Array, "e r"],
) -> Float[Array, "t d"]:
    """Each token's sum over the experts that chose it, by gates; e chose the tokens token[e]."""
    if backend() == "reference":
        expert = jnp.arange(len(token))[:, None]
        shares = jnp.zeros((len(x), len(token)), gates.dtype).at[token, expert].add(gates)
        return reference(x, kernels, shares)
    served = _served(x[token], kernels, jnp.arange(len(token)))
    weighted = served * gates.reshape(-1, 1).astype(x.dtype)
    return jnp.zeros_like(x).at[token.reshape(-1)].add(weighted)


def _served(
    x: Float[Array, "n r d"], kernels: Kernels, expert: Int[Array, " n"]
) -> Float[Array, "nr d"]:
    gate, up, down = kernels
    gate, up = (rematerialise(_routed, w, x, expert) for w in (gate, up))
    y = rematerialise(_gated_routed, (gate, down), up, expert)
    return rearrange(y, "n r d -> (n r) d")


@jax.custom_vjp
def _moved(x: Float[Array, "n d"], to: Int[Array, " m"], back: Int[Array, " n"]) -> Array:
    """Rows x[to], zeros where `to` is out of range. `back` is the inverse, so that the gradient is
    moved as well and not added up: a GPU's scatters are slow and in no fixed order.
    """
    return x.at[to].get(mode="fill", fill_value=0)


def _moved_forward(x, to, back):
    return _moved(x, to, back), (to, back)


def _moved_backward(saved, dy):
    to, back = saved
    return _moved(dy, back, to), None, None


_moved.defvjp(_moved_forward, _moved_backward)


@jax.custom_vjp
def _of_blocks(kernels: Float[Array, "e i o"], expert: Int[Array, " n"]) -> Float[Array, "n i o"]:
    """Each block's kernel, that of its expert. The gradient sums blocks by a product, where a
    scatter on a GPU would be slow and in no fixed order.
    """
    return kernels[expert]


def _of_blocks_forward(kernels, expert):
    return kernels[expert], jax.nn.one_hot(expert, len(kernels), dtype=kernels.dtype)


def _of_blocks_backward(owned, dy):
    return jnp.einsum("ne,nio->eio", owned, dy), None


_of_blocks.defvjp(_of_blocks_forward, _of_blocks_backward)


def _routed(kernels: Float[Array, "e i o"], x: Float[Array, "n r i"], expert: Int[Array, " n"]):
    """Each block of rows times the kernel of its expert."""
    return jnp.einsum("nri,nio->nro", x, _of_blocks(kernels, expert))


def _gated_routed(
    late: tuple[Float[Array, "n r f"], Float[Array, "e f d"]],
    up: Float[Array, "n r f"],
    expert: Int[Array, " n"],
):
    """`_routed` of SwiGLU's hidden layer; the gate and the kernels are what comes late."""
    gate, kernels = late
    return _routed(kernels, jax.nn.silu(gate) * up, expert)
