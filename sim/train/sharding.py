"""How a job lies on a mesh of devices, and in time by micro-batches.

    batch      over data × fsdp × expert
    weights    axis d (width) over fsdp, i (inside a layer) and w (vocabulary) over tensor,
               e (experts) over expert; moments as their weights
    the rest   (ranks, norms, biases, taps) whole on every device

The letters are those that a weight's own `axes` declare beside the layer (models/base.py). XLA
partitions the one program (GSPMD: Xu et al. 2021, 2105.04663), so a loss is that of one device to
rounding, just as with another number of cores. Hence a layout is an argument of the execution and
stands in the record; it is no part of a run, whose key it would otherwise change. Not included:
pipelines, sequences split over devices. Experts' weights are gathered by the blocks
of a dropless layout: the expert axis saves memory, and its traffic was never measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from pydantic import PositiveInt

from isoflop.models.base import Config
from isoflop.models.errors import UserError, check_multiple
from isoflop.models.layers import BATCH
from isoflop.models.lm import ModelConfig
from isoflop.sim.train import hosts

RULES = {"d": "fsdp", "i": "tensor", "w": "tensor", "e": "expert"}


class Layout(Config):
    """Devices along each axis of the mesh; all 1 is one device.

    `micro_batches` are computed one after another and their gradients averaged, for less memory.
    """

    data: PositiveInt = 1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    expert: PositiveInt = 1
    micro_batches: PositiveInt = 1

    @property
    def sizes(self) -> dict[str, int]:
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "expert": self.expert}

    @property
    def devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def parts(self) -> int:
        """Of a batch, in space and time."""
        return math.prod(self.sizes[name] for name in BATCH) * self.micro_batches

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.split.items())

    @property
    def split(self) -> dict[str, int]:
        """What is more than 1: what a record says of a layout."""
        return {name: size for name, size in self.model_dump().items() if size > 1}

    def check(self, model: ModelConfig, batch: int) -> None:
        """Raise UserError if the batch or an axis of a weight is indivisible; makes no arrays."""
        check_multiple("batch", batch, " × ".join((*BATCH, "micro_batches")), self.parts)
        if self.micro_batches > 1 and not model.micro_batch_invariant:
            raise UserError(
                f"micro_batches={self.micro_batches} changes the loss of experts that are balanced "
                "or chosen over a whole batch; split it over devices, or balance with steered=True"
            )
        params = nnx.state(model.abstract())
        for path, variable in nnx.to_flat_state(params):
            partition(variable, self.sizes, ".".join(map(str, path)))

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Of the first of `devices`, or of this process' own. UserError if they are too few."""
        found = jax.devices() if devices is None else list(devices)
        if len(found) < self.devices:
            raise UserError(
                f"{self} needs {self.devices} devices and there are {len(found)}; make it smaller, "
                "or simulate them on a CPU: "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={self.devices}"
            )
        grid = np.array(found[: self.devices]).reshape(tuple(self.sizes.values()))
        return Mesh(grid, tuple(self.sizes), axis_types=(AxisType.Auto,) * grid.ndim)


ONE_DEVICE = Layout()


def partition(variable: nnx.Variable, sizes: Mapping[str, int], name: str = "") -> PartitionSpec:
    """The mesh axis along each axis of a weight; the seed batch before them stays together."""
    shape, axes = variable.get_value().shape, variable.get_metadata().get("axes", "")
    rules = [RULES.get(letter) for letter in axes]
    for letter, rule, size in zip(axes, rules, shape[len(shape) - len(axes) :], strict=True):
        if rule and size % sizes[rule]:
            raise UserError(
                f"{rule}={sizes[rule]} must divide axis {letter} of {name}, which is {size}; "
                "choose a divisor of it, or another size of the model"
            )
    return PartitionSpec(*[None] * (len(shape) - len(axes)), *rules)


def shardings(state: Any, mesh: Mesh | None) -> Any:
    """A sharding for every leaf of parameters and optimiser state; what is no weight is whole.

    Without a mesh None, JAX's word for wherever the computation is.
    """
    if mesh is None:
        return None

    def of(node: Any) -> Any:
        if not isinstance(node, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        if not jax.tree.leaves(node):  # a moment that the optimiser leaves out
            return node
        return node.replace(NamedSharding(mesh, partition(node, mesh.shape)))

    return jax.tree.map(of, state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def rows(ndim: int, mesh: Mesh | None) -> NamedSharding | None:
    """Of tokens whose last axes are batch and time."""
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 2), BATCH))


def put(tree: Any, places: Any) -> Any:
    """Arrays of the host on devices; where several processes hold these, each puts its own part."""
    if not hosts.several():
        return jax.device_put(tree, places)

    def part(x: Any, place: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda x: part(x, places), tree)
    return jax.tree.map(part, tree, places)


def whole(tree: Any) -> Any:
    """Arrays that are split over several processes, gathered; others as they are."""
    if not hosts.several():
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Whole on every device, so that every process can read it."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def within(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Where models find the mesh while they are traced (`sharding_constraint` of the layers)."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext()
