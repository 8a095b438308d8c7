"""FLOPs of any function, read from its jaxpr: those of matmuls, and of elementwise arithmetic.

XLA's own `cost_analysis` counts a scan's body once and sees no custom calls, so it is no oracle.
Here a scan's body counts in each of its turns, a `cond` by the branch that is taken there, and what
cannot be counted is refused. What no output needs does not count. Where a function has a form for
each platform (models/kernels/platforms.py), the form for CPUs counts.

    matmul       2·m·n·k for every dot product and convolution
    elementwise  1 for each element of the output of EACH, and for each that goes into SUMS or is
                 SCATTERED;
                 of floating-point numbers only, and whatever they are for: norms, biases and
                 activations as well as gates, decays and softmaxes

Nothing counts for moving, comparing or choosing numbers, for their format or their sign, for random
bits, or for integers. A primitive that has no place in this list is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

from isoflop.models.errors import UserError


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


EACH = _named(
    "add add_any sub mul div rem pow integer_pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p "
    "logistic tanh sinh cosh asinh acosh atanh sin cos tan asin acos atan atan2 erf erfc erf_inv "
    "lgamma digamma"
)
SUMS = _named("reduce_sum reduce_prod cumsum cumprod cumlogsumexp")
SCATTERED = _named("scatter-add scatter-mul scatter_add scatter_mul")  # one for each update
FREE = _named(
    "abs argmax argmin broadcast_in_dim ceil clamp concatenate convert_element_type copy copy_p "
    "cummax cummin dynamic_slice dynamic_update_slice expand_dims floor gather iota max min neg "
    "optimization_barrier pad random_bits random_seed random_unwrap random_wrap reduce_max "
    "reduce_min reduce_precision reshape rev round scatter select_n sharding_constraint sign slice "
    "sort split squeeze stop_gradient tile top_k transpose "
    "dot_general conv_general_dilated ragged_dot ragged_dot_general"
)

Jaxprs = Jaxpr | ClosedJaxpr
Rule = Callable[[Any], int]  # equation → FLOPs


def matmul_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """2·m·n·k of every dot product and convolution that `function(*args)` executes.

    Arguments may be arrays or `jax.ShapeDtypeStruct`s; nothing is computed. Raises UserError for a
    loop whose trip count, or a branch whose choice, the jaxpr does not hold.
    """
    return _counted(_matmul, _needed(function, args, kwargs))


def executed_flops(function: Callable, *args: Any, **kwargs: Any) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs that `function(*args)` executes.

    Arguments are as for `matmul_flops`. Raises UserError as it does, and for a primitive whose
    FLOPs are not known.
    """
    jaxpr = _needed(function, args, kwargs)
    return _counted(_matmul, jaxpr), _counted(_elementwise, jaxpr)


def _needed(function: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> ClosedJaxpr:
    """The function's jaxpr without what no output needs."""
    closed = jax.make_jaxpr(function)(*args, **kwargs)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), True)
    return ClosedJaxpr(jaxpr, closed.consts)


def _counted(rule: Rule, jaxpr: ClosedJaxpr) -> int:
    return _Turn(rule, jaxpr, [None] * len(jaxpr.in_avals)).flops()


def _matmul(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (lhs_contract, _), _ = eqn.params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in lhs_contract)
    if name == "conv_general_dilated":
        numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
        taps = math.prod(kernel[d] for d in numbers.rhs_spec[2:])
        return 2 * math.prod(eqn.outvars[0].aval.shape) * taps * kernel[numbers.rhs_spec[1]]
    if name in ("ragged_dot_general", "ragged_dot"):
        lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
        return 2 * math.prod(lhs) * rhs[-1]
    return 0


def _elementwise(eqn: Any) -> int:
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name in FREE or not jnp.issubdtype(out.dtype, jnp.inexact):
        return 0
    if name in EACH:
        return out.size
    if name in SUMS:
        return eqn.invars[0].aval.size
    if name in SCATTERED:
        return eqn.invars[2].aval.size
    raise UserError(
        f"the elementwise FLOPs of the primitive {name} are not known; name it in sim/cost/jaxpr.py"
    )


class _Turn:
    """One execution of a jaxpr. `known` has the values of some variables, None where a value is not
    known, or a function that gives either; others are computed when a branch asks for them.
    """

    def __init__(self, rule: Rule, jaxpr: Jaxprs, values: Sequence[Any]):
        self.rule, self.jaxpr = rule, jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        self.known = dict(zip(self.jaxpr.constvars, consts, strict=bool(consts)))
        self.known |= dict(zip(self.jaxpr.invars, values, strict=True))
        self.makers = {var: eqn for eqn in self.jaxpr.eqns for var in eqn.outvars}

    def flops(self) -> int:
        return sum(map(self._of, self.jaxpr.eqns))

    def value(self, var: Any) -> Any:
        """What integers `var` holds, or None if that depends on data."""
        if isinstance(var, Literal):
            return var.val
        if var not in self.known:
            self.known[var] = self._made(var)
        if callable(self.known[var]):
            self.known[var] = self.known[var]()
        return self.known[var]

    def _made(self, var: Any) -> Any:
        eqn = self.makers.get(var)
        if eqn is None or jnp.issubdtype(var.aval.dtype, jnp.inexact):
            return None
        inner = list(_inner(eqn.params))
        inputs = [self.value(x) for x in eqn.invars]
        if any(x is None for x in inputs) or (inner and eqn.primitive.name not in ("jit", "pjit")):
            return None
        if inner:
            return jaxpr_as_fun(eqn.params["jaxpr"])(*inputs)[eqn.outvars.index(var)]
        outs = eqn.primitive.bind(*inputs, **eqn.params)
        return outs[eqn.outvars.index(var)] if eqn.primitive.multiple_results else outs

    def _deferred(self, variables: Sequence[Any]) -> list[Callable[[], Any]]:
        return [partial(self.value, var) for var in variables]

    def _of(self, eqn: Any) -> int:
        name, inner = eqn.primitive.name, list(_inner(eqn.params))
        if name == "scan":
            return self._scan(eqn)
        if name == "cond":
            return self._cond(eqn)
        if not inner:
            return self.rule(eqn)
        flops = sum(self._inside(jaxpr, eqn.invars) for jaxpr in inner)
        if name == "while" and flops:
            raise UserError(
                "a while loop's trip count is not in its jaxpr, so its FLOPs cannot be counted; "
                "use jax.lax.scan"
            )
        return flops

    def _inside(self, jaxpr: Jaxprs, args: Sequence[Any]) -> int:
        count = len(jaxpr.in_avals if isinstance(jaxpr, ClosedJaxpr) else jaxpr.invars)
        values = self._deferred(args) if len(args) == count else [None] * count
        return _Turn(self.rule, jaxpr, values).flops()

    def _cond(self, eqn: Any) -> int:
        (index, *args), branches = eqn.invars, eqn.params["branches"]
        platforms = eqn.params.get("branches_platforms")
        if platforms is None:
            taken = self.value(index)
        else:
            taken = next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)
        if taken is not None:
            return self._inside(branches[int(taken)], args)
        counts = sorted({self._inside(branch, args) for branch in branches})
        if len(counts) > 1:
            raise UserError(
                "which branch is taken depends on data, so FLOPs cannot be counted where branches "
                f"differ (here {', '.join(map(str, counts))}); compute all of them and choose by "
                "jnp.where"
            )
        return counts[0]

    def _scan(self, eqn: Any) -> int:
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        first = eqn.params["num_consts"]
        last = first + eqn.params["num_carry"]
        values = self._deferred(eqn.invars)
        carry, rows = values[first:last], [x() if _chooses(body) else None for x in values[last:]]
        if all(x is None for x in rows) and not any(
            _chooses(body) and x() is not None for x in carry
        ):
            blank = [None] * (len(values) - first)
            return length * _Turn(self.rule, body, [*values[:first], *blank]).flops()
        total = 0
        for i in range(length)[:: -1 if eqn.params["reverse"] else 1]:
            row = [None if x is None else x[i] for x in rows]
            turn = _Turn(self.rule, body, [*values[:first], *carry, *row])
            total += turn.flops()
            carry = turn._deferred(turn.jaxpr.outvars[: last - first])
        return total


def _inner(params: dict[str, Any]) -> Iterator[Jaxprs]:
    """Jaxprs inside an equation: of jit, remat, custom derivatives, and the like."""
    for name, value in params.items():
        if name.endswith("jaxpr_thunk") or name in {"fwd", "bwd", "update_jaxpr"}:
            continue  # derivative rules, not executed here; and how a scatter adds
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxprs):
                yield item


@cache
def _chooses(jaxpr: Jaxprs) -> bool:
    """Whether a turn of it may differ from another: it has a branch, but for those of platforms."""
    opened = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return any(
        (eqn.primitive.name == "cond" and eqn.params.get("branches_platforms") is None)
        or any(map(_chooses, _inner(eqn.params)))
        for eqn in opened.eqns
    )
