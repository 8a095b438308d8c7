"""The files of a checkpoint's folder: JSON, and tensors by name whatever shard they are in.

Nothing is unpickled; a shard's header is read when one of its tensors is asked for.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from isoflop.models.checkpoints.fields import escaped
from isoflop.models.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")  # whatever becomes fp32 without another meaning


class Tensors:
    """The tensors of a checkpoint's folder by name; each is read when asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Any] = {}

    @cached_property
    def files(self) -> dict[str, str]:
        """Name of each tensor → name of its file. Raises UserError without safetensors there."""
        if (self.folder / INDEX).exists():
            return self._placed()
        if (self.folder / WEIGHTS).exists():
            return dict.fromkeys(self._file(WEIGHTS).keys(), WEIGHTS)
        pickled = sorted(
            p.name for p in self.folder.glob("*") if p.suffix in {".bin", ".pth", ".pt"}
        )
        if pickled:
            raise UserError(
                f"{self.folder} has its weights only as a pickle ({pickled[0]}), which could run "
                "any code and is never read; save it as safetensors first"
            )
        raise UserError(f"{self.folder} has no {WEIGHTS} and no {INDEX}; choose another folder")

    def _placed(self) -> dict[str, str]:
        places = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise UserError(
                f"{self.folder / INDEX} must have a weight_map from names of tensors to names of "
                "files; copy that file again"
            )
        return {name: Path(file).name for name, file in places.items()}

    @property
    def elements(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(self.shape(name)) for name in self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """By the header of its file."""
        return tuple(self._slice(name).get_shape())

    def check_dtype(self, name: str) -> None:
        """Raise UserError for integers, and for quantised numbers, whose scales are elsewhere."""
        if (dtype := self._slice(name).get_dtype()) not in DTYPES:
            raise UserError(
                f"{self.folder}: {escaped(name)} is stored as {dtype}, and weights must be one of "
                f"{', '.join(DTYPES)}; save the model unquantised"
            )

    def read(self, name: str) -> np.ndarray:
        """The tensor as fp32. Raises UserError where a number is not finite."""
        with np.errstate(over="ignore"):  # told below
            array = self._slice(name)[...].astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f"{self.folder}: {escaped(name)} has numbers that are NaN or infinite in fp32; use "
                "a checkpoint from before its training broke down"
            )
        return array

    def _slice(self, name: str) -> Any:
        file = self._file(self.files[name])
        try:
            return file.get_slice(name)
        except safetensors.SafetensorError:
            raise UserError(
                f"{self.folder / self.files[name]} lacks {escaped(name)}, which {INDEX} places "
                "there; copy that file again"
            ) from None

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safetensors.safe_open(path, framework="numpy").__enter__()
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"cannot read {escaped(str(path))}: {escaped(str(error))}; copy that file again"
                ) from None
        return self._open[name]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it is missing or holds anything else."""
    try:
        found = json.loads(path.read_bytes(), object_hook=_float)
    except OSError:
        raise UserError(f"there is no {path}; choose the folder of a checkpoint") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; copy that file again") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({escaped(str(error))}); copy that file again"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; copy that file again")
    return found


def _float(value: dict[str, Any]) -> Any:
    """The float that transformers writes as an object, since JSON has no infinity."""
    if set(value) != {"__float__"}:
        return value
    if value["__float__"] not in ("Infinity", "-Infinity", "NaN"):
        raise ValueError(f"__float__ is {value['__float__']!r}")
    return float(value["__float__"])
