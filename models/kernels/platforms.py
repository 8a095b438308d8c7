"""What depends on the kind of device, and nothing else does: forms and precision.

A CPU is fast with loops over what its caches hold, an accelerator with few large kernels. Both
forms of a function compute the same to rounding, execute the same matrix products forward, and are
tested on a CPU; which one a program has is settled when it is lowered, so that a program for
another platform is right as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax


def by_platform(cpu: Callable, accelerator: Callable, tpu: Callable | None = None) -> Callable:
    """The function that is `cpu` on CPUs, `tpu` on TPUs if told, and `accelerator` elsewhere."""
    others = {} if tpu is None else {"tpu": tpu}

    def choose(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, cpu=cpu, **others, default=accelerator)

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
