"""What only the teacher knows: the target and the students' tokens, in a file of the teacher's own.

It lies in the user's configuration folder (or in $ISOFLOP_CONFIG), not in the class's, and only its
owner may read it. Whoever loses it can neither announce the target nor look up a token again.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from pydantic import Field, ValidationError

from isoflop.models.base import Config
from isoflop.models.errors import UserError
from isoflop.sim.classroom.rules import Rules, Target
from isoflop.sim.durable import replacing, unwritable
from isoflop.sim.records.store import brief


class Secret(Config):
    target: Target
    tokens: dict[str, str] = Field(default_factory=dict)  # of students by name


def path_of(rules: Rules) -> Path:
    folder = os.environ.get("ISOFLOP_CONFIG") or platformdirs.user_config_dir("isoflop")
    return Path(folder) / "classes" / f"{rules.commitment[:16]}.json"


def read(rules: Rules) -> Secret:
    """UserError for everybody but the teacher."""
    path = path_of(rules)
    try:
        return Secret.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"only the teacher of this class can do that, with the file {path} of the machine and "
            "the account that made the class; copy it here, or go there"
        ) from None
    except ValidationError as error:
        raise UserError(f"{path} cannot be read ({brief(error)}); restore it") from None


def keep(rules: Rules, secret: Secret) -> Path:
    """Write the file, readable by its owner alone; returns its path."""
    path = path_of(rules)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as file:
            os.chmod(file.fileno() if os.chmod in os.supports_fd else file.name, 0o600)
            file.write(secret.model_dump_json(indent=1).encode())
    except OSError as error:
        raise unwritable(path, error) from error
    return path
