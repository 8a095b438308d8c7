"""`isoflop compile`: a TPU's compiler says what a training step needs, without a TPU."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from isoflop.experiments.cli.main import main
from isoflop.sim.train import ahead
from isoflop.sim.train.ahead import Compiled, beyond, largest

ROOT = Path(ahead.__file__).resolve().parents[2]
CAPACITY = 1000
needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="needs isoflop[tpu-aot]")


def chip(fixed: int, each: int):
    """A compiler for a chip of CAPACITY bytes, and the batches that it was asked for."""
    asked = []

    def attempt(batch: int) -> Compiled:
        asked.append(batch)
        total = fixed + each * batch
        return Compiled(batch, total, max(0, total - CAPACITY))

    return attempt, asked


@pytest.mark.parametrize("first", [4, 64, 512])
@pytest.mark.parametrize(("fixed", "each", "step"), [(100, 7, 4), (0, 1, 4), (900, 30, 1)])
def test_the_largest_batch_fits_and_one_a_sixteenth_larger_does_not(fixed, each, step, first):
    attempt, asked = chip(fixed, each)
    found = largest(attempt, step, attempt(first))
    assert found is not None
    assert found.batch % step == 0
    more = found.batch + max(step, found.batch // 16)
    assert fixed + each * found.batch <= CAPACITY < fixed + each * more
    assert len(asked) <= 9


def test_no_batch_fits_where_the_weights_do_not():
    attempt, _ = chip(fixed=1001, each=1)
    assert largest(attempt, 8, attempt(64)) is None


def test_a_refusal_says_by_how_much():
    used = "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded hbm capacity"
    assert beyond(used) == (20.5 * 2**30, 4.75 * 2**30)
    total = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (131.62G) exceeds available HBM (15.75G)."
    )
    assert beyond(total)[1] == pytest.approx((131.62 - 15.75) * 2**30)
    with pytest.raises(RuntimeError, match="a bug"):
        beyond("INTERNAL: a bug of the compiler")


@pytest.fixture
def isoflop(capsys, monkeypatch):
    """The command with a compiler that knows every topology and what 4 sequences take."""
    monkeypatch.setattr(ahead, "topology", lambda name: [name] * 16)

    def compiled(model, seq_len, batch, layout, devices):
        return Compiled(batch, 300 * batch, max(0, 300 * batch - CAPACITY), 1, 2, 3)

    monkeypatch.setattr(ahead, "compiled", compiled)
    return lambda *args: (main(["compile", *args]), *capsys.readouterr())


def test_a_row_tells_memory_flops_and_the_largest_batch(isoflop):
    args = ("dense", "--width", "96", "--depth", "1", "--batch", "2", "--largest", "--json")
    code, out, _ = isoflop(*args)
    (row,) = json.loads(out)
    assert code == 0
    assert (row["arguments"], row["temporaries"], row["code"], row["excess"]) == (1, 2, 3, 0)
    assert (row["largest"], row["batch"], row["total"]) == (3, 2, 600)
    assert row["flops"] > 6 * row["params"]


def test_what_does_not_fit_says_by_how_much_and_what_to_do(isoflop):
    code, out, _ = isoflop("dense", "--width", "96", "--depth", "1", "--batch", "4")
    assert code == 0
    assert out.splitlines()[-1] == (
        "dense does not fit: 200B too many on a chip; lower --batch, or split it with --layout"
    )


def test_an_experiment_gives_its_shapes_once_each_under_its_own_flags(isoflop):
    args = ("quickstart", "--families", "dense", "--json")
    rows = json.loads(isoflop(*args)[1])
    assert len(rows) == len({(row["params"], row["batch"]) for row in rows}) > 1


MISTAKES = {
    "name an experiment or a family first": [],
    "no experiment or family dnse; perhaps you meant dense": ["dnse"],
    "no option of isoflop compile dense called --widht; perhaps": ["dense", "--widht", "8"],
    "no axis of a layout called fsd; perhaps you meant fsdp": ["dense", "--layout", "fsd=2"],
    "tensor=7 must divide": ["dense", "--width", "96", "--layout", "tensor=7"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(isoflop, words):
    code, _, err = isoflop(*MISTAKES[words])
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_the_compiler_one_line_says_how_to_get_it(capsys):
    assert main(["compile", "dense", "--width", "96", "--depth", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: compiling for a TPU needs its compiler; pip install 'isoflop[tpu-aot]'\n"
    )


@needs_libtpu
@pytest.mark.slow
def test_a_tpu_program_is_weighed_without_a_tpu():
    shape = "--width 96 --depth 1 --vocab-size 256 --seq-len 64 --layout fsdp=4 --json"
    command = [sys.executable, "-m", "isoflop.experiments", "compile", "mingru", *shape.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    (row,) = json.loads(done.stdout)
    assert row["excess"] == 0
    assert row["total"] > row["arguments"] > 3 * 4 * row["params"] / 4


@needs_libtpu
def test_an_unknown_topology_is_one_line(capsys):
    assert main(["compile", "dense", "--topology", "v99:1x1"]) == 2
    assert "there is no topology v99:1x1" in capsys.readouterr().err
