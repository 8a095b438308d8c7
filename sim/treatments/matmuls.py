"""The matmuls that a model's weights are in, found in the jaxpr of its forward pass.

No mixer has to know of it: a weight is followed from the parameters through what only lays it out
anew, into jitted functions, custom derivatives and loops, to the `dot_general` that takes it. There
its other operand, the activations, can be seen or be replaced. Traced on the kernels' reference
form, in which every expert's matmul has its own weights as an operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float

from isoflop.models import kernels

LAYOUT = {
    "broadcast_in_dim", "convert_element_type", "copy", "reshape", "slice", "squeeze", "transpose",
}  # fmt: skip
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Matmul(NamedTuple):
    """One matmul of activations and a weight."""

    leaf: int  # of the flattened parameters, the one that the weight is
    x: Float[Array, "..."]
    axes: tuple[int, ...]  # of `x` that are summed over
    weight: Float[Array, "..."]
    weight_axes: tuple[int, ...]  # of the weight as it lies there
    batch_axes: tuple[tuple[int, ...], tuple[int, ...]]  # of both
    looped: bool = False  # whether it stands in a loop over time, of which one turn is traced


Visit = Callable[[Matmul], Any]  # returns the activations to go on with


def visiting(function: Callable[..., Any], visit: Visit) -> Callable[..., Any]:
    """`function(params, *args)` with `visit` called at every matmul of a weight, which sees the
    activations and returns those to use. Arguments are arrays or tracers.
    """

    def visited(params: Any, *args: Any) -> Any:
        with kernels.use("reference"):
            closed, shape = jax.make_jaxpr(function, return_shape=True)(params, *args)
        leaves = jax.tree.leaves(params)
        values = [*leaves, *jax.tree.leaves(args)]
        origins = [*range(len(leaves)), *[None] * (len(values) - len(leaves))]
        outs = _run(closed.jaxpr, closed.consts, values, origins, visit)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return visited


def _run(
    jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], origins: Sequence[Any], visit: Visit
) -> list[Any]:
    """The jaxpr's outputs; `origins` has the leaf that each value is, or None."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))
    leaf = {var: at for var, at in zip(jaxpr.invars, origins, strict=True) if at is not None}
    for eqn in jaxpr.eqns:
        args = [x.val if isinstance(x, Literal) else env[x] for x in eqn.invars]
        from_ = [None if isinstance(x, Literal) else leaf.get(x) for x in eqn.invars]
        if all(at is None for at in from_):
            outs = _bind(eqn, args)
        else:
            outs = _visited(eqn, args, from_, visit)
            if eqn.primitive.name in LAYOUT:
                leaf[eqn.outvars[0]] = from_[0]
        env |= dict(zip(eqn.outvars, outs, strict=True))
    return [x.val if isinstance(x, Literal) else env[x] for x in jaxpr.outvars]


def _bind(eqn: Any, args: Sequence[Any]) -> Sequence[Any]:
    """One equation as it is."""
    outs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return outs if eqn.primitive.multiple_results else [outs]


def _visited(eqn: Any, args: list[Any], leaf: list[Any], visit: Visit) -> Sequence[Any]:
    """An equation of which some arguments are weights."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _bind(eqn, _matmul(eqn, args, leaf, visit))
    if name in CALLS | CUSTOM:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        jaxpr, consts = (
            (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
        )
        return _run(jaxpr, consts, args, leaf, visit)
    if name == "scan":
        return _scan(params, args, leaf, visit)
    if name == "cond":
        index, *rest = args
        branches = [
            lambda *xs, b=branch: _run(b.jaxpr, b.consts, xs, leaf[1:], visit)
            for branch in params["branches"]
        ]
        return jax.lax.switch(index, branches, *rest)
    return _bind(eqn, args)


def _matmul(eqn: Any, args: list[Any], leaf: list[Any], visit: Visit) -> list[Any]:
    (summed, batch) = eqn.params["dimension_numbers"]
    weight = 1 if leaf[1] is not None else 0
    x = 1 - weight
    if leaf[x] is not None:  # a product of two weights: no activations
        return args
    seen = Matmul(
        leaf[weight], args[x], tuple(summed[x]), args[weight], tuple(summed[weight]),
        (tuple(batch[x]), tuple(batch[weight])),
    )  # fmt: skip
    changed = visit(seen)
    return [changed if i == x else args[i] for i in range(2)]


def _scan(params: Any, args: list[Any], leaf: list[Any], visit: Visit) -> Sequence[Any]:
    """A loop over time: weights are among its constants."""
    first, carried = params["num_consts"], params["num_carry"]
    last, body = first + carried, params["jaxpr"]
    consts = args[:first]
    within = [*leaf[:first], *[None] * (len(args) - first)]

    def looped(matmul: Matmul) -> Any:
        return visit(matmul._replace(looped=True))

    def turn(carry: Any, row: Any) -> tuple[Any, Any]:
        outs = _run(body.jaxpr, body.consts, [*consts, *carry, *row], within, looped)
        return tuple(outs[:carried]), tuple(outs[carried:])

    carry, rows = jax.lax.scan(
        turn, tuple(args[first:last]), tuple(args[last:]),
        length=params["length"], reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    return [*carry, *rows]


def second_moments(
    function: Callable[..., Any], params: Any, *args: Any
) -> dict[int, Float[np.ndarray, "e i i"]]:
    """Σ x xᵀ / n of the activations that each weight multiplies, by leaf: one matrix for each
    expert, else one. A leaf in several matmuls has their mean; one inside a loop over time has
    none, since it is traced once.
    """

    def moments(params: Any, *args: Any) -> dict[int, Any]:
        found: dict[int, list[Any]] = {}

        def see(matmul: Matmul) -> Any:
            if not matmul.looped:
                found.setdefault(matmul.leaf, []).append(_second_moment(matmul))
            return matmul.x

        visiting(function, see)(params, *args)
        return {leaf: sum(each) / len(each) for leaf, each in found.items()}

    return {leaf: np.asarray(each) for leaf, each in jax.jit(moments)(params, *args).items()}


def _second_moment(matmul: Matmul) -> Float[Array, "e i i"]:
    batch, x = matmul.batch_axes[0], matmul.x.astype(jnp.float32)
    rest = [i for i in range(x.ndim) if i not in (*batch, *matmul.axes)]
    experts, width = (math.prod(x.shape[i] for i in axes) for axes in (batch, matmul.axes))
    rows = jnp.transpose(x, [*batch, *rest, *matmul.axes]).reshape(experts, -1, width)
    return jnp.einsum("eni,enj->eij", rows, rows, precision="highest") / rows.shape[1]
