"""Ray in earnest, two raylets as two nodes: `make test-ray`."""

import os
import sys

import fakes
import numpy as np
import pytest
import real
import together

from isoflop.models.errors import UserError
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.executors.ray import Ray
from isoflop.sim.grid.grid import Recorded, Retried, Started, execute
from isoflop.sim.records.store import Store
from isoflop.sim.train import loop

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and two nodes of one core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of the nodes
        patch.setenv("RAY_health_check_period_ms", "500")  # a node that is lost is soon missed
        made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        yield made, nodes
        import ray

        ray.shutdown()
        made.shutdown()


def bits(root, cells):
    """Everything of a run's result that its training makes."""
    found = [Store(root).load(cell.run.key) for cell in cells]
    assert all(found)
    weights = [Store(root).weights(record.key) for record in found]
    parts = [{name: array.tobytes() for name, array in one.items()} for one in weights]
    return [
        (r.key, r.status, r.metrics, r.curve, part) for r, part in zip(found, parts, strict=True)
    ]


def test_ray_has_room_for_the_jobs_its_cluster_has_cores_for(cluster):
    made, _ = cluster
    assert Ray(ray_address=made.address).workers == 2


def test_what_a_job_raises_ends_the_grid_and_a_worker_that_dies_only_its_job(cluster, tmp_path):
    made, _ = cluster
    grid = fakes.cells(width=(8, 16, 24))
    executor = Ray(ray_address=made.address, retries=0)
    outcome = execute(grid[:4], tmp_path / "dies", fakes.dies_after_one, executor=executor)
    assert outcome.count("ok") + outcome.count("failed") == 4
    assert any("Ray task was lost" in r.reason for r in outcome.trained if r.status == "failed")

    def stop(message):
        if isinstance(message, Recorded):
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        execute(grid, tmp_path / "stops", fakes.slowly, executor=executor, on_event=stop)
    assert not list((tmp_path / "stops").glob("leases/*"))


def test_a_run_on_two_nodes_has_the_losses_of_one_and_goes_on_when_one_of_its_processes_dies(
    cluster, tmp_path
):
    made, _ = cluster
    grid, heard = together.cells("dense"), []
    execute(grid, tmp_path / "one", loop.train)
    executor = Ray(ray_address=made.address, nodes=2)
    outcome = execute(
        grid, tmp_path / "two", together.second_dies_once, executor=executor, on_event=heard.append
    )
    assert list(tmp_path.glob("two/jobs/*/died"))
    assert [message.trunk for message in heard if isinstance(message, Retried)] == [
        grid[0].run.trunk
    ]
    assert not [record.reason for record in outcome.trained if record.status != "ok"]
    assert outcome.count("ok") == len(grid) == 4
    for cell in grid:
        one, two = (Store(tmp_path / where).load(cell.run.key) for where in ("one", "two"))
        assert two.layout == {"fsdp": 2}
        np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
        np.testing.assert_allclose(two.curve, one.curve, rtol=1e-5)


def test_a_grid_that_loses_a_node_half_way_has_the_bits_of_a_local_one(cluster, tmp_path):
    """Each node trains a job when one of them is killed; its job goes on, on the other."""
    made, nodes = cluster
    grid, heard = real.cells(), []
    execute(grid, tmp_path / "local", real.often, executor=Local(workers=2))

    def started():
        return [message.trunk for message in heard if isinstance(message, Started)]

    def on_event(message):
        heard.append(message)
        if len(nodes) == 2 and len(started()) == 2 and getattr(message, "step", 0) >= 8:
            made.remove_node(nodes.pop(), allow_graceful=False)

    executor = Ray(ray_address=made.address)
    outcome = execute(grid, tmp_path / "ray", real.together, executor=executor, on_event=on_event)
    assert (len(started()), len({*started()})) == (3, 2), "no job was begun again"
    assert not [record.reason for record in outcome.trained if record.status != "ok"]
    assert outcome.count("ok") == len(grid)
    assert bits(tmp_path / "ray", grid) == bits(tmp_path / "local", grid)
