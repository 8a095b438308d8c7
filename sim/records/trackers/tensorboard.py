"""TensorBoard's event files: a folder for each run, hyper-parameters among them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from isoflop.models.errors import need
from isoflop.sim.records.trackers.base import Shown


@dataclass(frozen=True)
class Mirror:
    """`tensorboard --logdir runs/trackers/tensorboard` shows it."""

    folder: Path

    def __post_init__(self) -> None:
        need("tensorboard", "tensorboard")

    def log(self, shown: Shown) -> None:
        """The training loss by step, the results at the last step, the options as hparams."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        place = self.folder / shown.key
        shutil.rmtree(place, ignore_errors=True)  # of an earlier training
        writer = EventFileWriter(str(place))
        values = [(step, "train/loss", loss) for step, loss in shown.curve]
        values += [(shown.steps, f"result/{name}", value) for name, value in shown.results.items()]
        # as its own function for this does, which asks for TensorFlow
        session = plugin_data_pb2.SessionStartInfo(group_name=shown.key)
        for name, value in shown.options.items():
            kind = "string_value" if isinstance(value, str) else "number_value"
            setattr(session.hparams[name], kind, value)
        plugin = plugin_data_pb2.HParamsPluginData(session_start_info=session)
        options = Summary.Value(
            tag=metadata.SESSION_START_INFO_TAG,
            metadata=metadata.create_summary_metadata(plugin),
            tensor=metadata.NULL_TENSOR,
        )
        try:
            writer.add_event(Event(summary=Summary(value=[options])))
            for step, tag, value in values:
                one = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(step=step, summary=one))
        finally:
            writer.close()
