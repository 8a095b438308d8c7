"""Jobs as tasks of a Ray cluster, one that is there or one that is started here.

All of them are submitted at once, so that a cluster that grows by demand sees the whole queue. Ray
begins a task again on another node when its node or its process is lost. With several `nodes`, a
job is a task on each of them, which find each other by jax.distributed (sim/train/hosts.py): where
one is lost all are, and the grid begins the job again. This package travels with the jobs; what it
depends on, and a file system with the runs directory, the nodes must have. Nothing of Ray is
hidden: `ray status`, `ray list tasks`, its dashboard and its logs are as ever.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError, need
from isoflop.sim.grid.executors.base import OnEvent, Queued, Work, WorkerDied
from isoflop.sim.train import hosts
from isoflop.sim.train.preemption import Preempted

CONNECT_SECONDS = 10.0
CARRIED = ("ISOFLOP_", "JAX_", "XLA_")  # environment variables that change what a worker does
LEFT_HERE = ["**/__pycache__/**", "**/figures/out/**"]  # of the package


@dataclass(frozen=True)
class Ray:
    """As many jobs at once as the cluster has room for, each with its own resources."""

    ray_address: str = ""
    """The cluster: auto for the one of this machine, HOST:PORT, or ray://HOST:PORT of Ray's client;
    without it, Ray is started here, on this machine's cores."""
    cpus: int = 1
    """Cores of each job."""
    gpus: float = 0.0
    """GPUs of each job; a fraction shares one, as does 0.25 with three others."""
    memory: float = 0.0
    """GiB that the scheduler sets aside for each job; 0 leaves that to Ray."""
    retries: int = 3
    """How often a job is begun again whose node or process was lost."""
    nodes: int = 1
    """Nodes that train each job together, each with these resources; several need --hosts ray."""

    def __post_init__(self) -> None:
        if min(self.cpus, self.nodes) < 1 or min(self.gpus, self.memory, self.retries) < 0:
            raise UserError(
                f"cpus={self.cpus} and nodes={self.nodes} must be at least 1, and "
                f"gpus={self.gpus:g}, memory={self.memory:g} and retries={self.retries} at least 0"
            )
        if self.nodes > 1 and not self.ray_address:
            raise UserError(
                f"nodes={self.nodes} are of a cluster that is there, and Ray is started on this "
                "machine alone; name the cluster with --ray-address"
            )

    @property
    def workers(self) -> int:
        """Jobs that the cluster as it is now has room for."""
        if not self.ray_address:
            return max(1, (os.cpu_count() or 1) // self.cpus // self.nodes)
        have = self._connected().cluster_resources()
        room = [have.get(name, 0.0) // part for name, part in self._resources().items()]
        return max(1, int(min(room)) // self.nodes)

    def _resources(self) -> dict[str, float]:
        """What one job takes, by Ray's names."""
        asked = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": self.memory * 2**30}
        return {name: amount for name, amount in asked.items() if amount}

    def run(self, jobs: Sequence[Any], work: Work, on_event: OnEvent) -> None:
        """As the contract says."""
        ray = self._connected()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
        running: dict[Any, _Tasks] = {}
        for job in jobs:
            tasks = self._submit(ray, work, job, mailbox)
            running |= dict.fromkeys(tasks.refs, tasks)
        post = mailbox.take.remote()
        try:
            for tasks in dict.fromkeys(running.values()):
                on_event(Queued(tasks.job, f"Ray task {tasks.refs[0].task_id().hex()}"))
            while running:
                ready, _ = ray.wait([post, *running])
                for message in ray.get(post) if post in ready else ():
                    on_event(message)
                post = mailbox.take.remote() if post in ready else post
                ended = [ref for ref in ready if ref in running]
                for message in ray.get(mailbox.rest.remote()) if ended else ():
                    on_event(message)
                for ref in ended:
                    if ref not in running:  # it went with another of its job
                        continue
                    tasks = running.pop(ref)
                    died = _end(ray, ref, tasks.job)
                    rest = [other for other in tasks.refs if other in running]
                    if died is not None:
                        _cancel(ray, rest)
                        running = {ref: one for ref, one in running.items() if one is not tasks}
                        on_event(died)
                    if died is not None or not rest:
                        tasks.free()
        finally:
            _cancel(ray, list(running))
            for tasks in {*running.values()}:
                tasks.free()
            ray.kill(mailbox)

    def _submit(self, ray: Any, work: Work, job: Any, mailbox: Any) -> _Tasks:
        """A task; of several nodes, one on each, for which room is made all at once."""
        asked: dict[str, Any] = {
            "name": f"isoflop {job}",
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "memory": int(self.memory * 2**30) or None,
        }
        if self.nodes == 1:
            task = ray.remote(_serve).options(**asked, max_retries=self.retries)
            return _Tasks(job, [task.remote(work, job, mailbox)])
        group = ray.util.placement_group([self._resources()] * self.nodes, "STRICT_SPREAD")
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        # a process can join once: it ends with its task
        task = ray.remote(max_calls=1)(_serve_together)
        refs = [
            task.options(**asked, max_retries=0, scheduling_strategy=strategy(group, i)).remote(
                work, job, mailbox, i, self.nodes
            )
            for i in range(self.nodes)
        ]
        return _Tasks(job, refs, lambda: ray.util.remove_placement_group(group))

    def _connected(self) -> Any:
        """Ray itself, once this process is one of a cluster's. UserError if it cannot be."""
        need("ray", "ray")
        import ray
        import ray.util.scheduling_strategies

        if ray.is_initialized():
            return ray
        _reach(self.ray_address)
        try:
            ray.init(
                address=self.ray_address or "local",
                log_to_driver=False,
                configure_logging=False,
                runtime_env={
                    "py_modules": _package(),
                    "excludes": LEFT_HERE,
                    "env_vars": self._environment(),
                },
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise _unreachable(self.ray_address or "a cluster here", error) from None
        have = ray.cluster_resources()
        asked = self._resources()
        if not self.ray_address and any(have.get(name, 0.0) < asked[name] for name in asked):
            there = ", ".join(f"{have.get(name, 0.0):g} {name}" for name in asked)
            each = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
            raise UserError(
                f"a job asks for {each}, and this machine has {there}; ask for less, or name a "
                "cluster with --ray-address"
            )
        return ray

    def _environment(self) -> dict[str, str]:
        """Of a job's process: a pool of as many threads as it has cores, for losses to the bit."""
        carried = {key: text for key, text in os.environ.items() if key.startswith(CARRIED)}
        carried["PJRT_NPROC"] = str(self.cpus)
        if 0 < self.gpus < 1:  # JAX takes .75 of a GPU's memory by default
            carried["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 * self.gpus:.3f}"
        return carried


@dataclass(eq=False)
class _Tasks:
    """Of a job: one, or one on each of its nodes."""

    job: Any
    refs: list[Any]
    free: Callable[[], None] = field(default=lambda: None)  # the room that they had


class _Mailbox:
    """An actor that hands on what jobs emit: every message once, in order."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.there = asyncio.Event()
        self.addresses: dict[str, asyncio.Future] = {}

    async def meet(self, job: str, address: str) -> str:
        """Where the first of a job's tasks can be reached, once that has said so."""
        found = self.addresses.setdefault(job, asyncio.get_running_loop().create_future())
        if address:
            found.set_result(address)
        return await found

    async def put(self, message: Any) -> None:
        self.messages.append(message)
        self.there.set()

    async def take(self) -> list[Any]:
        """The messages since the last call, once there are any."""
        await self.there.wait()
        return await self.rest()

    async def rest(self) -> list[Any]:
        messages, self.messages = self.messages, []
        self.there.clear()
        return messages


def _serve(work: Work, job: Any, mailbox: Any) -> None:
    """A task: what the job emits has arrived before it goes on. One whose node is taken away has
    saved where it stands, and is lost.
    """
    import ray

    try:
        work(job, lambda message: ray.get(mailbox.put.remote(message)))
    except Preempted as error:
        os._exit(128 + error.signal)


def _serve_together(work: Work, job: Any, mailbox: Any, which: int, nodes: int) -> None:
    """One of a job's tasks, each on a node of its own: the first does as `_serve`, the others its
    steps. Where one is lost the others are, too.
    """
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        own = f"{host}:{free.getsockname()[1]}" if which == 0 else ""
    address = ray.get(mailbox.meet.remote(str(job), own))
    os.environ.update(zip(hosts.VARIABLES, (address, str(nodes), str(which)), strict=True))
    hosts.join("ray")
    if hosts.first():
        with hosts.together():
            _serve(work, job, mailbox)
    else:
        try:
            _serve(work, job, mailbox)
        except Exception:
            os._exit(1)  # what it could not do is for the first to say
    hosts.part()


def _cancel(ray: Any, refs: list[Any]) -> None:
    for ref in refs:
        ray.cancel(ref, force=True)
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=CONNECT_SECONDS)


def _end(ray: Any, ref: Any, job: Any) -> WorkerDied | None:
    """What became of a task; None if it ended well. Raises what its job raised."""
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        cause.add_note(str(error))
        raise cause from None
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise UserError(
            f"a node cannot set up a job's environment ({_line(error)}); give every node what "
            "isoflop depends on, in the versions of this one"
        ) from None
    except ray.exceptions.RayError as error:
        return WorkerDied(job, f"its Ray task was lost ({_line(error)})")
    return None


def _package() -> list[str]:
    """What a node imports: this package, and its metadata, since a record has its version."""
    told = importlib.metadata.distribution("isoflop")
    info = Path(str(told.locate_file(f"isoflop-{told.version}.dist-info")))
    return [*sys.modules["isoflop"].__path__, *([str(info)] if info.is_dir() else [])]


def _reach(address: str) -> None:
    """UserError unless something answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # started here, or what Ray knows by another name
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> UserError:
    return UserError(
        f"Ray cannot be reached at {address} ({_line(error)}); check --ray-address with `ray "
        "status`, or leave it out to start Ray here"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
