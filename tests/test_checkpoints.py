"""A checkpoint comes back whole or not at all, and the one before it is there."""

import shutil

import jax
import numpy as np
import pytest

from isoflop.sim.train.checkpoints import KEPT, WHOLE, Checkpoint, Checkpoints

STATE = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "moments": [np.ones(4, np.int32)]}


def checkpoint(step):
    state = jax.tree.map(lambda x: jax.numpy.asarray(x + step), STATE)
    return Checkpoint(step, step / 3, state, np.full((step, 2), step, np.float32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three of them, saved one after another."""
    folder = tmp_path_factory.mktemp("saved")
    of = Checkpoints(folder, "job", pytest.fail)
    for step in (8, 16, 24):
        of.save("trunk", checkpoint(step))
    return folder


def newest(folder, latest=100):
    notes = []
    return Checkpoints(folder, "job", notes.append).newest("trunk", latest, STATE_LIKE), notes


STATE_LIKE = jax.tree.map(jax.numpy.asarray, STATE)


def is_that_of(found, step):
    expected = checkpoint(step)
    return (found.step, found.seconds) == (step, step / 3) and all(
        type(a) is type(b) and a.dtype == b.dtype and (a == b).all()
        for a, b in zip(
            jax.tree.leaves((found.state, found.losses)),
            jax.tree.leaves((expected.state, expected.losses)),
            strict=True,
        )
    )


def test_the_newest_comes_back_in_all_its_bits_and_so_many_are_kept(saved):
    found, notes = newest(saved)
    assert is_that_of(found, 24)
    assert notes == []
    assert sorted(path.name for path in saved.iterdir()) == ["job.trunk.16", "job.trunk.24"]
    assert KEPT == 2


def test_one_beyond_the_step_that_is_asked_for_is_not_taken(saved):
    assert is_that_of(newest(saved, latest=23)[0], 16)
    assert newest(saved, latest=15) == (None, [])


def damaged(folder, name, change):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != WHOLE]
    largest = max(files, key=lambda path: path.stat().st_size)
    path = largest if name == "arrays" else folder / WHOLE
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:middle], "empty": b"", "flipped": flipped}[change])


@pytest.mark.parametrize("name", ["arrays", "facts"])
@pytest.mark.parametrize("change", ["cut", "empty", "flipped"])
def test_a_damaged_one_is_said_and_the_one_before_it_used(saved, tmp_path, name, change):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    damaged(folder / "job.trunk.24", name, change)
    found, notes = newest(folder)
    assert is_that_of(found, 16)
    (note,) = notes
    assert "job.trunk.24 is damaged (" in note
    assert note.isprintable()


def test_one_that_a_kill_cut_short_does_not_count(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    damaged(folder / "job.trunk.24", "facts", "gone")
    shutil.copytree(saved / "job.trunk.24", folder / "job.trunk.32.orbax-checkpoint-tmp")
    found, notes = newest(folder)
    assert is_that_of(found, 16)
    assert notes == []


def test_nothing_in_a_checkpoint_is_a_pickle(saved):
    """No file begins as one does, and what cannot be data is refused in saving."""
    for path in saved.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith(b"\x80")
    notes = []
    Checkpoints(saved, "other", notes.append).save(
        "trunk", Checkpoint(1, 0.0, {"w": object()}, np.zeros((1, 1), np.float32))
    )
    assert len(notes) == 1
    assert not list(saved.glob("other.*"))
