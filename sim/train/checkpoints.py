"""Where a job's training stands, saved about every CHECKPOINT_SECONDS and taken up after a kill.

A checkpoint is one safetensors file that appears whole, with a digest of its arrays inside and the
name of what was being trained in its own name, so that no other training takes it up. The newest
KEPT of every stage (the trunk, each branch) stay, for the case that the last one is damaged.
Saving is a service to the run: where the disk is full, the run goes on without.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from isoflop.sim.durable import why, write

CHECKPOINT_SECONDS = 60.0  # between saved states; shorter jobs save none
KEPT = 2  # of each stage
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    step: int
    seconds: float  # of training until then
    arrays: Arrays


@dataclass
class Checkpoints:
    """The checkpoints of the training called `name` in `folder`; none are kept without a folder.

    `note` is told, in words, what could not be saved or taken up.
    """

    folder: Path | None
    name: str
    note: Callable[[str], None]
    last: float = field(default_factory=time.monotonic)
    refused: bool = False

    @property
    def due(self) -> bool:
        return self.folder is not None and time.monotonic() - self.last > CHECKPOINT_SECONDS

    def save(self, stage: str, checkpoint: Checkpoint) -> None:
        """Write it, and remove those of this stage that are no longer needed."""
        assert self.folder is not None
        facts = {"step": checkpoint.step, "seconds": checkpoint.seconds}
        metadata = {"checkpoint": json.dumps(facts | {"digest": _digest(checkpoint)})}
        content = safetensors.numpy.save(dict(checkpoint.arrays), metadata)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self._path(stage, checkpoint.step), content)
            for step in sorted(self._steps(stage))[:-KEPT]:
                self._path(stage, step).unlink(missing_ok=True)
        except OSError as error:
            if not self.refused:
                self.note(f"cannot save a checkpoint, and goes on without: {why(error)}")
            self.refused = True
        self.last = time.monotonic()

    def newest(self, stage: str, latest: int) -> Checkpoint | None:
        """The newest whole checkpoint of a stage that is not beyond step `latest`."""
        for step in sorted(self._steps(stage), reverse=True):
            if step <= latest:
                path = self._path(stage, step)
                try:
                    return _read(path)
                except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                    reason = str(error).split("\n")[0]
                    self.note(
                        f"the checkpoint {path} is damaged ({reason}); "
                        "goes on from the one before it, or from the start"
                    )
        return None

    def drop(self, stage: str) -> None:
        """Remove what a finished stage no longer needs."""
        for step in self._steps(stage):
            try:
                self._path(stage, step).unlink(missing_ok=True)
            except OSError:  # it goes with its folder when the job is done
                return

    def _path(self, stage: str, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.name}.{stage}.{step}.safetensors"

    def _steps(self, stage: str) -> Iterator[int]:
        if self.folder is None:
            return
        for path in list(self.folder.glob(f"{self.name}.{stage}.*.safetensors")):
            step = path.name.split(".")[-2]
            if step.isdecimal() and path.is_file():
                yield int(step)


def _read(path: Path) -> Checkpoint:
    with safetensors.safe_open(path, framework="np") as file:
        facts = json.loads((file.metadata() or {})["checkpoint"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = Checkpoint(facts["step"], facts["seconds"], arrays)
    if _digest(found) != facts["digest"]:
        raise ValueError("its digest is another")
    return found


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(f"{checkpoint.step} {checkpoint.seconds!r}".encode())
    for name, array in sorted(checkpoint.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
