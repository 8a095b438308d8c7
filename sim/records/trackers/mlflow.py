"""MLflow, in a SQLite file beside the runs unless MLFLOW_TRACKING_URI names a server."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from isoflop.models.errors import need
from isoflop.sim.records.trackers.base import PROJECT, Shown

BATCH = 100  # metrics and parameters of one call: what MLflow takes


@dataclass(frozen=True)
class Mirror:
    """A run of the experiment isoflop for each record, with the tag `isoflop.key`."""

    folder: Path

    def __post_init__(self) -> None:
        need("mlflow", "mlflow")

    def log(self, shown: Shown) -> None:
        """The training loss by step, the results at the last step, the options as parameters."""
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.folder.mkdir(parents=True, exist_ok=True)
        where = (
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder.absolute()}/mlflow.db"
        )
        client = MlflowClient(tracking_uri=where)
        found = client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(PROJECT)
        run = client.create_run(experiment, run_name=shown.name, tags={"isoflop.key": shown.key})
        now = int(time.time() * 1000)
        values = [("train/loss", loss, step) for step, loss in shown.curve]
        values += [(f"result/{name}", value, shown.steps) for name, value in shown.results.items()]
        metrics = [Metric(name, value, now, step) for name, value, step in values]
        options = [Param(name, str(value)) for name, value in shown.options.items() if value != ""]
        for first in range(0, max(len(metrics), len(options)), BATCH):
            client.log_batch(
                run.info.run_id, metrics[first : first + BATCH], options[first : first + BATCH]
            )
        status = "FINISHED" if shown.status == "ok" else "FAILED"
        client.set_terminated(run.info.run_id, status)
