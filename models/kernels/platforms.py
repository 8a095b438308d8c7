"""Which form of a kernel a program has, and what else depends on the kind of device: precision.

Every kernel in this folder has a plain reference form beside its fast ones:

    reference     the definition, token by token or every pair at once, differentiated by JAX; slow
    cpu           loops over what a CPU's caches hold, gradients by hand
    accelerator   few large kernels, gradients by hand

All compute the same to rounding, and are tested against each other on a CPU. Which of the fast ones
a program has is settled by the platform it is lowered for, so that a program that was traced here
is right elsewhere as well. One of the three can be asked for instead, by a block of code or by a
whole process, so that a doubt about a fast form is settled by running the same thing without it:

    with kernels.use("reference"):                    loss = model(tokens)
    ISOFLOP_BACKEND=reference isoflop run quickstart  (read once, by each process)

With "reference" the rewrites for XLA's CPU backend (xla_cpu.py) are off too: nothing of the model
has a gradient written by hand. JAX knows of the choice: a jitted function is compiled anew for
each, and programs that differ are apart in its persistent cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial, wraps
from typing import Any, Literal, get_args

import jax

from isoflop.models.errors import UserError, quoted

Backend = Literal["reference", "cpu", "accelerator"]
VARIABLE = "ISOFLOP_BACKEND"
_asked = jax.make_user_context(default_value=None)  # part of what jit finds compiled programs by


def use(name: str | None) -> AbstractContextManager[None]:
    """A block of this thread in which kernels are traced in that form; the innermost block counts.

    None is the process's own choice again: that of ISOFLOP_BACKEND, or by platform. UserError for
    another name.
    """
    return _asked(None if name is None else _checked(name, "backend"))


def backend() -> Backend | None:
    """The form that was asked for; None: by platform, when lowered. UserError if ISOFLOP_BACKEND
    names none.
    """
    return _asked.value or _of_process()


@cache
def _of_process() -> Backend | None:
    name = os.environ.get(VARIABLE)
    return _checked(name, VARIABLE) if name else None


def _checked(name: str, said: str) -> Any:
    if name not in get_args(Backend):
        raise UserError(
            f"{said}={quoted(name)} is no backend; choose {', '.join(get_args(Backend))}, or none "
            "for that of the platform"
        )
    return name


def keep(trainer: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`trainer`, which takes the form that is asked for here along to other processes."""
    return partial(_under, backend(), trainer)


def _under(name: Backend | None, trainer: Callable, *args: Any, **options: Any) -> Iterator[Any]:
    with use(name):
        yield from trainer(*args, **options)


def by_platform(
    cpu: Callable,
    accelerator: Callable,
    tpu: Callable | None = None,
    *,
    reference: Callable | None = None,
) -> Callable:
    """The function that is `cpu` on CPUs, `tpu` on TPUs if told, and `accelerator` elsewhere, or
    the one whose name is asked for. Without `reference` the caller has seen to that.
    """
    others = {} if tpu is None else {"tpu": tpu}

    def choose(*args: Any) -> Any:
        asked = backend()
        if asked == "reference" and reference is not None:
            return reference(*args)
        if asked == "cpu":
            return cpu(*args)
        if asked == "accelerator" and tpu is None:
            return accelerator(*args)
        own = accelerator if asked == "accelerator" else cpu
        return jax.lax.platform_dependent(*args, cpu=own, **others, default=accelerator)

    return choose


def full_precision(function: Callable) -> Callable:
    """`function` with fp32 products in fp32, forward and backward, whatever the device's default.

    GPUs would round the operands to 10 bits of mantissa (TF32: 3e-4 of the largest entry of a
    product of side 1024), TPUs to 7. Products of bf16 operands are not touched.
    """

    @wraps(function)
    def exact(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return exact
