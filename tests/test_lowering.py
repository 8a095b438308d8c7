"""Every family's program can be handed to GPUs and TPUs; lowering needs none of them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from isoflop.models.families import zoo
from isoflop.sim.optim import AdamW
from isoflop.sim.train.program import Program

PLATFORMS = ("cuda", "rocm", "tpu")
BATCH, LENGTH = 2, 24  # a length that no tile or chunk divides

# of these every layer, or a like one of the same kernel, is in some other family; `make test-slow`
# lowers them too
MIXED = {
    *("gpt2", "olmoe", "deltanet", "gated_deltanet_negative", "linear", "gla", "kda", "mingru"),
    *(name for name in zoo.FAMILIES if len(set(zoo.FAMILIES[name](32).blocks)) > 1),
} - {"griffin"}
every_family = pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f in MIXED)) for f in zoo.FAMILIES],
)


def program(family: str, **options) -> Program:
    """Of one layer of each kind that the family has."""
    model = zoo.FAMILIES[family](32)
    blocks = tuple(dict.fromkeys(model.blocks))
    return Program(model.model_copy(update={"blocks": blocks}), AdamW(lr=1e-3), **options)


def lowered(function, *shapes) -> jax.export.Exported:
    """One program for all platforms, in which nothing calls a library of one of them and every
    product asks for all of its operands' digits.
    """
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    program = exported.mlir_module()
    assert "custom_call" not in program
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    return exported


@every_family
def test_a_training_step_lowers_to_every_accelerator(family):
    step = program(family, batched=True)
    lowered(step.advance, *step.shapes(BATCH, LENGTH, seeds=2))


@every_family
def test_a_decoding_step_lowers_to_every_accelerator(family):
    graph, params = program(family).abstract

    def start(params):
        return nnx.merge(graph, params).init_state(BATCH, LENGTH)

    def step(params, state, tokens):
        return nnx.merge(graph, params).step(state, tokens)

    tokens = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    lowered(step, params, jax.eval_shape(start, params), tokens)


def test_seeds_are_batched_where_a_program_says_so_and_not_where_it_is_lowered():
    """The machine that lowers is no clue: with seeds in turn there is one more loop."""
    together, apart = (program("dense", batched=batched) for batched in (True, False))
    loops = [
        lowered(p.advance, *p.shapes(BATCH, LENGTH, seeds=2)).mlir_module().count("stablehlo.while")
        for p in (together, apart)
    ]
    assert loops[0] < loops[1]
