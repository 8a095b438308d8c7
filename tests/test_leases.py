"""One process has a lease at a time; a live one keeps it, and any other way of ending frees it."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from isoflop.models.errors import UserError
from isoflop.sim import durable
from isoflop.sim.grid import leases
from isoflop.sim.grid.leases import Watch, acquire, hold, read, release, renew


@pytest.fixture
def path(tmp_path):
    return tmp_path / "leases" / "trunk"


@pytest.fixture(params=["a folder", "an object store"])
def place(request, tmp_path):
    """Where a lease can be."""
    if request.param == "a folder":
        return tmp_path / "leases" / "trunk"
    pytest.importorskip("upath")
    return durable.place(f"memory://{tmp_path.name}/leases/trunk")


def there(place):
    return [path.name for path in place.parent.iterdir()]


@pytest.fixture
def clock(monkeypatch):
    """The watcher's clock, turned by hand."""
    now = [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    return now


def test_only_the_owner_renews_and_releases(place):
    assert acquire(place, "mine") is None
    assert acquire(place, "mine") is None, "a parent acts for its worker"
    assert acquire(place, "yours").token == "mine"
    before = read(place)
    assert not renew(place, "yours")
    assert read(place) == before
    time.sleep(0.01)
    assert renew(place, "mine")
    assert read(place) != before
    assert read(place).token == "mine"
    release(place, "yours")
    assert read(place).token == "mine"
    release(place, "mine")
    assert there(place) == []


@pytest.mark.parametrize("look", [read, Watch().expired, lambda path: acquire(path, "mine")])
def test_a_folder_in_a_leases_place_is_refused_in_one_line(path, look):
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"trunk must be a file, and is a folder; remove it"):
        look(path)


def test_of_many_that_ask_at_once_one_has_it(place, monkeypatch):
    if durable.remote(place):  # fsspec's own is no server: it looks and then writes
        lock, fs = threading.Lock(), type(place.fs)
        whole = fs.pipe_file

        def conditional(self, *args, **kwargs):
            with lock:
                return whole(self, *args, **kwargs)

        monkeypatch.setattr(fs, "pipe_file", conditional)

    def ask(i):
        with hold(place, str(i)) as lease:
            if lease.other is None:
                inside.append(i)
                assert len(inside) == 1
                time.sleep(0.001)
                inside.remove(i)
                return True
        return False

    inside = []
    with ThreadPoolExecutor(16) as pool:
        assert any(pool.map(ask, range(400)))
    assert there(place) == []


CONTENTS = {
    "ours": b"token\nprocess 1 on here\n",
    "empty": b"",
    "a claim of an earlier version": b"host 4194305 1",
    "bytes": bytes(range(256)) * 64,
    "a terminal's commands": b"token\n\x1b[2J\n",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_whatever_is_not_renewed_expires_and_what_is_renewed_does_not(path, clock, content):
    path.parent.mkdir()
    path.write_bytes(content)
    watch = Watch()
    assert acquire(path, "mine").owner.isprintable()
    for turn in range(100):
        os.utime(path, ns=(turn, turn))  # a clock that is wrong by decades, but goes on
        assert not watch.expired(path)
        clock[0] += leases.EXPIRY_SECONDS - 1
        assert not watch.expired(path)
    clock[0] += 1
    assert watch.expired(path)
    assert acquire(path, "mine") is None
    assert [p.name for p in path.parent.iterdir()] == ["trunk"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_that_jump_neither_expire_a_live_lease_nor_keep_a_dead_one(
    place, clock, monkeypatch, hours
):
    """The owner's wall clock, or that of its file server; the watcher's is not asked."""
    acquire(place, "theirs")
    watch = Watch()
    now = time.time_ns()

    def renewed_at(ns):
        monkeypatch.setattr(leases.time, "time_ns", lambda: ns)
        assert renew(place, "theirs")
        if not durable.remote(place):
            os.utime(place, ns=(ns, ns))

    for turn in range(6):
        jump = hours * 3600 * 10**9 if turn >= 3 else 0
        renewed_at(now + jump + turn * 10**9)
        assert not watch.expired(place)
        clock[0] += leases.EXPIRY_SECONDS - 1
    assert not watch.expired(place)
    clock[0] += 1
    assert watch.expired(place)
    assert acquire(place, "mine") is None


def test_a_watch_begins_anew_with_every_owner(place, clock):
    watch = Watch()
    for owner in "abc":
        acquire(place, owner)
        assert not watch.expired(place)
        clock[0] += leases.EXPIRY_SECONDS - 1
        assert not watch.expired(place)
        release(place, owner)
    assert watch.expired(place)


def test_a_lease_renewed_in_the_instant_of_its_removal_is_put_back(path, clock, monkeypatch):
    acquire(path, "theirs")
    watch = Watch()
    watch.expired(path)
    clock[0] += leases.EXPIRY_SECONDS
    rename = os.replace

    def late(source, target):
        renew(source, "theirs")
        rename(source, target)

    monkeypatch.setattr(leases.os, "replace", late)
    os.utime(path, ns=(1, 1))
    watch.seen[path] = read(path), 0.0
    watch.expired(path)
    assert read(path).token == "theirs"
    assert [p.name for p in path.parent.iterdir()] == ["trunk"]


def test_a_holder_is_told_that_its_lease_was_taken_over(place, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    with hold(place, "mine") as lease:
        assert not lease.lost.wait(0.1)
        durable.write(place, b"yours\n")
        assert lease.lost.wait(60)
    assert read(place).token == "yours"


def test_a_file_system_without_links_has_leases_too(path, monkeypatch):
    def refused(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(durable.os, "link", refused)
    assert acquire(path, "mine") is None
    assert acquire(path, "yours").token == "mine"
    assert [p.name for p in path.parent.iterdir()] == ["trunk"]


LOOP = """
import itertools, sys
from pathlib import Path
from isoflop.sim.grid.leases import acquire, release
print(flush=True)
for i in itertools.count():
    acquire(Path(sys.argv[1]), "x" * 3000)
    release(Path(sys.argv[1]), "x" * 3000)
"""


def test_a_lease_is_whole_or_absent_whenever_its_owner_is_killed(path):
    whole = 0
    for i in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, path], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(0.002 * i)
            process.send_signal(signal.SIGKILL)
        found = read(path)
        assert found is None or found.token == "x" * 3000
        whole += found is not None
        path.unlink(missing_ok=True)


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "runs"
    folder.mkdir()
    for name in ("result.json", "result.json.tmp", ".result.json.tmp"):
        (folder / name).symlink_to(victim)
    durable.write(folder / "result.json", b"new")
    assert victim.read_text() == "precious"
    assert (folder / "result.json").read_text() == "new"
    assert not (folder / "result.json").is_symlink()
