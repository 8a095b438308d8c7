"""A run's key: what names it, and what must not rename it."""

from __future__ import annotations

import subprocess
import sys

import fakes
import pytest

from isoflop.models.lm import Block
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Run, canonical, digest

RUN = fakes.run(seed=1)


def changed(**fields) -> Run:
    return RUN.model_copy(update=fields)


@pytest.mark.parametrize(
    "other",
    [
        changed(seed=5),
        changed(version=2),
        changed(optim=RUN.optim.model_copy(update={"lr": 0.5})),
        changed(budget=RUN.budget.model_copy(update={"batch": 3})),
        changed(model=RUN.model.model_copy(update={"tie_embeddings": True})),
        changed(model=RUN.model.model_copy(update={"blocks": RUN.model.blocks * 2})),
    ],
    ids=["seed", "version", "rate", "batch", "tied", "blocks"],
)
def test_every_choice_is_in_the_key(other):
    assert other.key != RUN.key


def test_a_run_read_back_from_json_has_the_same_key():
    assert Run.model_validate_json(canonical(RUN)).key == RUN.key


def test_an_option_added_later_renames_no_run():
    class Later(AdamW):
        momentum: float = 0.0

    now = AdamW(lr=0.01, warmup_steps=3)
    later = Later(**now.model_dump())
    assert digest(later) == digest(now)
    assert digest(later.model_copy(update={"momentum": 0.1})) != digest(now)


def test_the_kind_of_a_mixer_is_in_the_key_though_it_is_a_default():
    attention = Block(mixer=Attention(n_heads=2))
    assert digest(attention) != digest(Block(channel=SwiGLU(d_ff=2)))
    assert '"kind":"attention"' in canonical(attention)


def test_a_cell_is_all_seeds_and_a_trunk_all_seeds_and_lengths():
    longer = changed(seed=3, budget=RUN.budget.model_copy(update={"steps": 400}))
    assert changed(seed=3).cell == RUN.cell != longer.cell
    assert longer.trunk == RUN.trunk != changed(version=2).trunk


def test_a_subclass_that_names_no_kind_of_its_own_takes_nobodys_place():
    class Quiet(AdamW):
        pass

    assert type(Run.model_validate_json(canonical(RUN)).optim) is AdamW is not Quiet


FOUND = """
import sys
from isoflop.models.base import _import_all, resolve
from isoflop.sim import data, optim
from isoflop.sim.data import tasks
for package, base, top, fields in (
    (optim, "adamw.AdamW", optim.Optim, {"lr": 0.1}),
    (data, "corpora.Corpus", data.DataConfig, {"name": "kjv"}),
    (tasks, "copying.StringCopying", data.DataConfig, {}),
):
    file, _, name = base.partition(".")
    kind = f"{name} of mine"
    with open(f"{sys.argv[1]}/mine_{file}.py", "w") as module:
        module.write(
            f"from typing import Literal\\nfrom {package.__name__}.{file} import {name}\\n"
            f"class Mine({name}):\\n    kind: Literal[{kind!r}] = {kind!r}\\n"
        )
    package.__path__.append(sys.argv[1])
    _import_all.cache_clear()
    print(resolve(top, {"kind": kind, **fields}).kind)
    package.__path__.pop()
"""


def test_an_optimiser_a_source_and_a_task_are_found_by_their_kind_as_files_beside_others(tmp_path):
    """Which nothing imports."""
    command = [sys.executable, "-c", FOUND, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        *("AdamW of mine", "Corpus of mine", "StringCopying of mine"),
    ], done.stderr
