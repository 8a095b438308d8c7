"""Where a job's training stands, saved about every CHECKPOINT_SECONDS and taken up after a kill.

A checkpoint is a directory that Orbax writes: weights and moments by name, each device its own
shards, restored onto whatever devices there are then. Its name says what was being trained, so that
no other training takes it up. It counts once `checkpoint.json` is in it, which has the step, the
place in the data, and the digest of every other file; so one that was cut short or damaged is told
from a whole one, and the one before it is used. The newest KEPT of every stage (the trunk, each
branch) stay for that. Saving is a service to the run: where the disk is full, it goes on without.

Of several processes (sim/train/hosts.py) each saves and restores its own shards, in a directory
that all of them see; the first decides, and writes checkpoint.json.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from isoflop.models.errors import printable, shortened
from isoflop.sim.durable import Place, remote, remove_folder, why, write
from isoflop.sim.train import hosts

if TYPE_CHECKING:
    from orbax.checkpoint import Checkpointer

CHECKPOINT_SECONDS = 60.0  # between saved states; shorter jobs save none
KEPT = 2  # of each stage
WHOLE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Batches are functions of the step and the seed, so the step is the place in the data."""

    step: int
    seconds: float  # of training until then
    state: Any  # weights and moments: a tree of arrays
    losses: Float[np.ndarray, "steps seeds"]


@dataclass
class Checkpoints:
    """The checkpoints of the training called `name` in `folder`; none are kept without a folder.

    `note` is told, in words, what could not be saved or taken up.
    """

    folder: Place | None
    name: str
    note: Callable[[str], None]
    last: float = field(default_factory=time.monotonic)
    refused: bool = False

    @property
    def due(self) -> bool:
        return self.folder is not None and time.monotonic() - self.last > CHECKPOINT_SECONDS

    def save(self, stage: str, checkpoint: Checkpoint) -> None:
        """Write it, and remove those of this stage that are no longer needed. None is written
        without a folder.
        """
        if self.folder is None:
            return
        path = self._path(stage, checkpoint.step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _orbax().save(_place(path), args=_saved(checkpoint), force=True)
            if hosts.first():
                facts = {"step": checkpoint.step, "seconds": checkpoint.seconds}
                write(path / WHOLE, _sealed(facts | {"files": _digests(path)}))
                kept = sorted(self._steps(stage), reverse=True)[:KEPT]
                self._remove(stage, {self._path(stage, step) for step in kept})
        except Exception as error:  # tensorstore's are of many classes
            if not self.refused:
                self.note(f"cannot save a checkpoint, and goes on without: {_brief(error)}")
            self.refused = True
            if hosts.first():
                self._remove(stage, {self._path(stage, step) for step in self._steps(stage)})
        self.last = time.monotonic()

    def newest(self, stage: str, latest: int, like: Any) -> Checkpoint | None:
        """The newest whole checkpoint of a stage that is not beyond step `latest`, its state on the
        devices of `like`'s.
        """
        steps = (step for step in self._steps(stage) if step <= latest)
        for step in hosts.decided(lambda: sorted(steps, reverse=True)):
            path = self._path(stage, step)
            facts = hosts.decided(functools.partial(self._verified, path))
            if facts is not None:
                try:
                    return _restored(path, facts, like)
                except Exception as error:
                    self._damaged(path, error)
        return None

    def _verified(self, path: Place) -> dict[str, Any] | None:
        """What checkpoint.json says, if it is true of the files beside it."""
        try:
            return _facts(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._damaged(path, error)
        return None

    def _damaged(self, path: Place, error: Exception) -> None:
        self.note(
            f"the checkpoint {path} is damaged ({_brief(error)}); "
            "goes on from the one before it, or from the start"
        )

    def drop(self, stage: str) -> None:
        """Remove what a finished stage no longer needs."""
        if self.folder is not None and hosts.first():
            self._remove(stage, set())

    def _remove(self, stage: str, kept: Collection[Place]) -> None:
        """The others of a stage, and what kills left of some. First what makes one count, so that
        nothing that is half removed looks whole.
        """
        assert self.folder is not None
        for path in set(self.folder.glob(f"{self.name}.{stage}.*")) - set(kept):
            with contextlib.suppress(OSError):  # it goes with its folder when the job is done
                (path / WHOLE).unlink(missing_ok=True)
                remove_folder(path)

    def _path(self, stage: str, step: int) -> Place:
        assert self.folder is not None
        return self.folder / f"{self.name}.{stage}.{step}"

    def _steps(self, stage: str) -> Iterator[int]:
        if self.folder is not None:
            for path in list(self.folder.glob(f"{self.name}.{stage}.*/{WHOLE}")):
                step = path.parent.name.rpartition(".")[2]
                if step.isdecimal():
                    yield int(step)


def _saved(checkpoint: Checkpoint) -> Any:
    """Names as in `0.blocks.1.mixer.q.kernel.value`: 0 are the weights, 1 the moments."""
    import orbax.checkpoint as ocp

    return ocp.args.PyTreeSave({"state": _named(checkpoint.state), "losses": checkpoint.losses})


def _restored(path: Place, facts: Mapping[str, Any], like: Any) -> Checkpoint:
    import orbax.checkpoint as ocp

    state = _named(like)
    places = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
        for name, leaf in state.items()
    }
    args = {"state": places, "losses": ocp.RestoreArgs(restore_type=np.ndarray)}
    restore = ocp.args.PyTreeRestore({"state": state, "losses": 0}, restore_args=args)
    found = _orbax().restore(_place(path), args=restore)
    leaves = [found["state"][name] for name in state]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Checkpoint(facts["step"], facts["seconds"], state, found["losses"])


def _named(state: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _place(path: Place) -> Place:
    """As Orbax takes it. Raises ValueError for an object store that it does not know."""
    if not remote(path):
        return path.absolute()
    from etils import epath

    if path.protocol not in ("gs", "gcs", "s3"):  # type: ignore[attr-defined]
        raise ValueError(f"Orbax keeps none on {path.protocol}://")  # type: ignore[attr-defined]
    return epath.Path(str(path))


@functools.cache
def _orbax() -> Checkpointer:
    import orbax.checkpoint as ocp  # half a second, which a job that saves nothing does without

    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _sealed(facts: dict[str, Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True)
    return json.dumps(facts | {"digest": hashlib.sha256(text.encode()).hexdigest()}).encode()


def _facts(path: Place) -> dict[str, Any]:
    """Raises ValueError where they are not those that were sealed, or a file's bytes are not."""
    facts = json.loads((path / WHOLE).read_bytes())
    if _sealed({k: v for k, v in facts.items() if k != "digest"}) != json.dumps(facts).encode():
        raise ValueError(f"{WHOLE} is not as it was written")
    now = _digests(path)
    for name, digest in facts["files"].items():
        if now.get(name) != digest:
            raise ValueError(f"{name} is {'another' if name in now else 'missing'}")
    return facts


def _digests(path: Place) -> dict[str, str]:
    """Of every file of Orbax's below a checkpoint."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != WHOLE:
            with file.open("rb") as content:
                found[str(file.relative_to(path))] = hashlib.file_digest(
                    content, "sha256"
                ).hexdigest()
    return found


def _brief(error: Exception) -> str:
    if isinstance(error, OSError):
        return why(error)
    return shortened(printable(str(error).split("\n")[0]), 200)
