"""One run over many hosts: processes that compute it together, each with devices of its own.

`join` makes one machine of them (jax.distributed), before anything touches a device. From then on
`jax.devices()` are all processes' devices, a layout (sim/train/sharding.py) spans them, each
process feeds the rows of its own devices, and all run the same program in step. The first process
alone decides what to train, leases jobs and writes records; `decided` tells the others.

    env     ISOFLOP_COORDINATOR=host:port of the first, ISOFLOP_PROCESSES how many, ISOFLOP_PROCESS
            which: for Kubernetes' indexed jobs, terminals
    slurm   what srun tells each of its tasks
    ray     the tasks that sim/grid/executors/ray.py starts for a job, which it tells the variables
            of env: with this way no process but those joins

Where one process dies, the others end too, and go on from the last checkpoint when all are started
again. Nothing here needs JAX while there is one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from isoflop.models.errors import UserError, listed
from isoflop.sim.durable import Place, place
from isoflop.sim.spec import Run, canonical
from isoflop.sim.train import preemption

Trainer = Callable[..., Any]  # of sim/grid/grid.py
WAYS = ("env", "slurm", "ray")
VARIABLES = ("ISOFLOP_COORDINATOR", "ISOFLOP_PROCESSES", "ISOFLOP_PROCESS")
TIMEOUT_SECONDS = 300  # until all processes have come
_joined = [0, 1]  # this process, and how many there are


def first() -> bool:
    """Whether this process is the one that decides and writes."""
    return _joined[0] == 0


def several() -> bool:
    return _joined[1] > 1


def join(way: str) -> None:
    """Wait for the other processes that `way` tells of. UserError if it tells of none, or if they
    do not come.
    """
    if way not in WAYS:
        raise UserError(f"--hosts {way} must be one of {', '.join(WAYS)}; none is one host")
    options = _slurm() if way == "slurm" else _explicit()
    import jax

    try:
        jax.distributed.initialize(initialization_timeout=TIMEOUT_SECONDS, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other ({str(error).splitlines()[0]}); "
            "start all of them within five minutes, with a coordinator that all can reach"
        ) from None
    _joined[:] = jax.process_index(), jax.process_count()


def part() -> None:
    """Leave the others, which wait for one another to: none misses one that has ended."""
    import jax

    jax.distributed.shutdown()
    _joined[:] = 0, 1


def _explicit() -> dict[str, Any]:
    address, many, which = given = [os.environ.get(name, "") for name in VARIABLES]
    host, _, port = address.rpartition(":")
    numbers = port.isdigit() and many.isdigit() and which.isdigit()
    if not host or not numbers or int(which) >= int(many):
        raise UserError(
            "--hosts env needs ISOFLOP_COORDINATOR=host:port, ISOFLOP_PROCESSES and "
            f"ISOFLOP_PROCESS, counted from 0, and they are {listed(given)}; set them for each "
            "process"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(many),
        "process_id": int(which),
        "cluster_detection_method": "deactivate",
    }


def _slurm() -> dict[str, Any]:
    if not os.environ.get("SLURM_NTASKS", os.environ.get("SLURM_NPROCS")):
        raise UserError("--hosts slurm is for the tasks of srun, and SLURM_NTASKS is not set; srun")
    return {"cluster_detection_method": "slurm"}


def decided(decide: Callable[[], Any]) -> Any:
    """What the first process decides, a value of JSON, in all of them."""
    if not several():
        return decide()
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(decide()).encode() if first() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = text if first() else np.zeros(length, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    return json.loads(told.tobytes())


def leading(trainer: Trainer) -> Trainer:
    """The trainer, which the processes that `follow` run in step with this one, the first."""

    def train(runs: Sequence[Run], work: Place, emit: Callable, wanted: Collection[str]) -> Any:
        texts = ",".join(canonical(run) for run in runs)
        order = {"runs": f"[{texts}]", "work": str(work), "wanted": sorted(wanted)}
        decided(lambda: order)

        def told(event: Any) -> None:
            try:
                emit(event)
            except Exception as error:  # which the others cannot know of: they are in its step
                raise Apart(error) from error

        try:
            yield from trainer(runs, work, told, wanted)
        except preemption.Preempted:
            raise
        except Exception as error:  # of all of them, or since one is gone
            try:
                decided(lambda: {"runs": ""})
            except Exception:
                raise Apart(error) from error
            raise

    return train


class Apart(BaseException):
    """The first process ends by itself, and with it the others."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around all that the first process leads: then those who follow are told that there is no
    more. Where it ends by itself they wait for it in a step that does not come, so it ends at once,
    in one line, and they when they miss it; otherwise each would wait for the other.
    """
    try:
        yield
    except preemption.Preempted:  # all of them have it
        raise
    except BaseException as error:
        if not several():
            raise
        cause = error.__cause__ if isinstance(error, Apart) and error.__cause__ else error
        said = " ".join(f"{type(cause).__name__}: {cause}".split())
        print(
            f"error: the first of {_joined[1]} processes ended, and the others with it ({said}); "
            "start all of them again: they go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130 if isinstance(cause, KeyboardInterrupt) else 1)
    if several():
        decided(lambda: {})


def follow(trainer: Trainer) -> None:
    """Train what the first process trains until it has no more; what comes of it is the first's to
    write. Raises Preempted as the first does.
    """
    while order := decided(lambda: {}):
        if not order["runs"]:  # the first only asks who is there
            continue
        runs = TypeAdapter(tuple[Run, ...]).validate_json(order["runs"])
        try:
            with preemption.watched():
                for _ in trainer(
                    runs, place(order["work"]), lambda event: None, {*order["wanted"]}
                ):
                    pass
        except preemption.Preempted:
            raise
        except Exception:  # the first has it too, and says so in its record
            continue


def anywhere(*facts: bool) -> list[bool]:
    """Of each fact, whether it is so in any process."""
    if not several():
        return list(facts)
    from jax.experimental import multihost_utils

    told = np.asarray(multihost_utils.process_allgather(np.array(facts)))
    return [bool(column.any()) for column in told.T]
