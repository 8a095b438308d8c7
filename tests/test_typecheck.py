"""Wrong types and shapes are found wherever the package is called, by the checker of the tests."""

import jax.numpy as jnp
import pytest
import typecheck
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from isoflop.models.base import Cost
from isoflop.models.kernels import attention, recurrence
from isoflop.models.layers import by_rms
from isoflop.sim.compare.trials import steps_to

WRONG = (BeartypeCallHintViolation, TypeCheckError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: steps_to("rows", "dense"),  # types alone
        lambda: steps_to([], "dense", accuracy="high"),
        lambda: Cost(matmul_flops="many"),  # of a dataclass
        lambda: by_rms(jnp.zeros((2, 3), int), 1e-6),
        lambda: by_rms(jnp.zeros((2, 3)), "small"),
    ],
)
def test_a_wrong_type_is_found(call):
    with pytest.raises(WRONG):
        call()


def test_shapes_that_do_not_fit_together_are_found():
    q, seen = jnp.zeros((2, 1, 3, 4)), jnp.ones((1, 1, 1, 3, 3), bool)
    assert attention.reference(q, q, q, seen).shape == q.shape
    with pytest.raises(WRONG):
        attention.reference(q, q[:, :, :2], q, seen)


def test_shapes_are_found_behind_a_name():
    def both(sums: recurrence.Sums) -> int:
        return len(sums)

    checked = typecheck.jaxtyped(typechecker=typecheck.checked)(both)
    one = jnp.ones((1, 2, 3, 4))
    assert checked((one, one)) == 2
    with pytest.raises(WRONG):
        checked((one, one[:, :1]))
