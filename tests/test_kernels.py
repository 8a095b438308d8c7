"""The choice of a backend: whole models on the reference, and that no program is mistaken."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isoflop.models import kernels
from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.kernels import attention, experts, platforms
from isoflop.sim.data import Corpus
from isoflop.sim.data.source import Batch
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.grid import Store, execute
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train import loop
from isoflop.sim.train.program import Program

BATCH, LENGTH = 2, 40  # a length that no tile or chunk divides


def forms(program) -> set[str]:
    """Names in a jaxpr that a plain program has none of."""
    return {name for name in ("custom_vjp_call", "platform_index") if name in str(program)}


def fewest_layers(family: str) -> Program:
    """One layer of each kind that the family has."""
    model = zoo.FAMILIES[family](32)
    blocks = tuple(dict.fromkeys(model.blocks))
    return Program(model.model_copy(update={"blocks": blocks}), AdamW(lr=1e-3))


# what is of no mixer's kernel, whose rows test_mixers.py has; `make test-slow` takes all
FAST = {"dense", "moe"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f not in FAST)) for f in zoo.FAMILIES],
)
def test_a_whole_model_on_the_reference_has_the_same_loss_and_gradient(family):
    program = fewest_layers(family)
    params = jax.tree.map(lambda x: x[0], program.init([0])[0])
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, program.model.vocab_size, (BATCH, LENGTH + 1))
    batch = Batch(tokens.astype(np.int32))
    step = jax.jit(program.gradient)
    gradient, loss = step(params, batch)
    with kernels.use("reference"):
        assert not forms(jax.make_jaxpr(program.loss)(params, batch))
        want, reference = step(params, batch)
    assert abs(float(loss - reference)) < 1e-5 * float(reference)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    for got, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(want), strict=True):
        scale = max(float(jnp.abs(leaf).max()), 1e-3 * largest)  # of sums that cancel
        assert float(jnp.abs(got - leaf).max()) < 1e-5 * scale


def test_a_compiled_function_is_used_again_by_the_same_choice_alone():
    found = []  # each time it was traced

    def body(x, _):
        found.append(kernels.backend())
        return 2 * x, None

    function = jax.jit(lambda x: jax.lax.scan(body, x, None, length=2)[0])
    one = jnp.ones(())
    for _ in range(2):
        function(one)
        with kernels.use("reference"):
            function(one)
            with kernels.use("cpu"):
                function(one)
                with kernels.use(None):
                    function(one)
            function(one)
    assert found == [None, "reference", "cpu"]


def test_a_block_ends_with_its_exception():
    with pytest.raises(KeyError), kernels.use("reference"):
        raise KeyError
    assert kernels.backend() is None


def test_what_is_chosen_is_what_a_layer_has():
    q = jnp.ones((1, 2, 40, 8))

    def program():
        return jax.make_jaxpr(lambda q: attention.attend(q, q, q, None, 16, None))(q)

    with kernels.use("reference"):
        assert not forms(program())
        with kernels.use("accelerator"):  # of which a TPU has its own
            assert forms(program()) == {"custom_vjp_call", "platform_index"}
        with kernels.use("cpu"):
            assert forms(program()) == {"custom_vjp_call"}


def test_an_accelerators_form_is_a_tpus_own_where_it_is_lowered_for_one():
    form = platforms.by_platform(lambda x: x + 1, lambda x: x + 2, tpu=lambda x: x + 3)

    def lowered(name, platform):
        with kernels.use(name):
            exported = jax.export.export(jax.jit(form), platforms=[platform])
            return exported(jax.ShapeDtypeStruct((), jnp.float32)).mlir_module()

    def added(text):
        return [n for n in (1, 2, 3) if f"dense<{n}.0" in text]

    assert [added(lowered("accelerator", p)) for p in ("cpu", "cuda", "tpu")] == [[2], [2], [3]]
    assert [added(lowered("cpu", p)) for p in ("cpu", "cuda", "tpu")] == [[1]] * 3
    assert [added(lowered(None, p)) for p in ("cpu", "cuda", "tpu")] == [[1], [2], [3]]


@pytest.mark.parametrize("name", ["gpu", "", "Reference", "a\nb"])
def test_an_unknown_backend_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match="choose reference, cpu, accelerator") as error:
        kernels.use(name)
    assert "\n" not in str(error.value)


def small(seed: int = 0) -> Run:
    return Run(
        model=zoo.FAMILIES["dense"](16, 1, 256),
        data=Corpus(name="kjv"),
        optim={"lr": 0.01, "warmup_steps": 1},
        budget=Budget(steps=3, batch=2, seq_len=32, eval_tokens=256),
        seed=seed,
    )


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_grid_trains_on_the_backend_of_its_block_and_its_records_say_so(tmp_path, workers):
    cells = [Cell(labels={}, run=small(seed)) for seed in (0, 1)]
    losses = {}
    for name in (None, "reference"):
        with kernels.use(name):
            execute(cells, tmp_path / str(name), loop.train, executor=Local(workers=workers))
        records = [Store(tmp_path / str(name)).load(cell.run.key) for cell in cells]
        assert [record.backend for record in records] == [name or ""] * 2
        losses[name] = [record.loss for record in records]
    np.testing.assert_allclose(losses["reference"], losses[None], rtol=1e-5)
    assert losses["reference"] != losses[None]  # to the last bit: another program


@pytest.mark.usefixtures("own_cache")
def test_a_checkpoint_of_one_backend_is_not_gone_on_with_by_another():
    with kernels.use("reference"):
        reference = loop.Job([small()]).digest
    assert reference != loop.Job([small()]).digest


PROCESS = """
import json, jax
from isoflop.models import kernels
from isoflop.models.kernels import attention
q = jax.numpy.ones((1, 2, 40, 8))
attend = lambda q: attention.attend(q, q, q, None, 16, None)
program = lambda: "custom_vjp" in str(jax.make_jaxpr(attend)(q))
found = [kernels.backend(), program()]
with kernels.use("cpu"):
    found += [kernels.backend(), program()]
    with kernels.use(None):
        found += [kernels.backend(), program()]
print(json.dumps(found))
"""


def test_the_environment_chooses_for_a_process_and_a_block_for_itself():
    environment = os.environ | {"ISOFLOP_BACKEND": "reference"}
    out = subprocess.run(
        [sys.executable, "-c", PROCESS], env=environment, capture_output=True, check=True
    ).stdout
    reference, cpu = ["reference", False], ["cpu", True]
    assert json.loads(out) == [*reference, *cpu, *reference]


def test_the_command_refuses_an_unknown_backend_in_one_line_before_it_trains(tmp_path):
    command = ["run", "quickstart", "--runs", "runs", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "isoflop.experiments", *command],
        env=os.environ | {"ISOFLOP_BACKEND": "gpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: ISOFLOP_BACKEND='gpu' is no backend; choose reference, cpu, accelerator, or none "
        "for that of the platform"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dropped", [False, True])
def test_experts_by_token_equal_the_sum_over_all_experts(dropped):
    """Two choices of three experts in blocks of 4 rows; one choice has no room."""
    rng = np.random.default_rng(0)
    x, *weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((6, 5), (3, 5, 7), (3, 5, 7), (3, 7, 5))
    )
    gates = jnp.asarray(rng.uniform(size=(6, 2)), jnp.float32)
    chosen = jnp.asarray([[0, 1], [0, 2], [1, 0], [2, 1], [2, 0], [1, 2]], jnp.int32)
    row = jnp.asarray([0, 4, 1, 8, 5, 2, 9, 6, 10, 3, 7, 11], jnp.int32)
    kept = jnp.arange(12) != 4 if dropped else jnp.ones(12, bool)
    row = jnp.where(kept, row, 12)

    def value(x, weights, gates):
        y = experts.by_token(x, tuple(weights), gates, chosen, row, kept, jnp.arange(3), 4)
        return jnp.sum(y**2), y

    found = {}
    for name in (None, "reference"):
        with kernels.use(name):
            step = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
            found[name] = step(x, weights, gates)
    for got, want in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
