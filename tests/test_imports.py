"""Imports flow models ← sim ← figures ← experiments and downward inside sim; help needs no JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "sim", "figures", "experiments")
SIM = (  # each may import those before it
    *("durable", "jsonlines", "userfile", "optim", "data", "spec", "records", "cost", "train"),
    *("evaluate", "treatments", "grid", "laws", "compare", "classroom"),
)
MODELS = (
    "errors",
    "packing",
    "base",
    "kernels",
    "layers",
    "rotary",
    "generation",
    "lm",
    "mixers",
    "families",
)


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of ours that a file imports, anywhere in it, as parts after `isoflop`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "isoflop"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_one_way(package):
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for path in (ROOT / package).rglob("*.py"):
        assert {name[0] for name in imported(path)} <= set(allowed), path


@pytest.mark.parametrize(("package", "rooms"), [("sim", SIM), ("models", MODELS)])
def test_rooms_import_downward_only(package, rooms):
    """Those that are not named here, as checkpoints, may import any and are imported by none."""
    for path in (ROOT / package).rglob("*.py"):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        lower = rooms[: rooms.index(room) + 1] if room in rooms else (*rooms, room)
        used = {name[1] for name in imported(path) if name[0] == package and len(name) > 1}
        known = {name for name in used if name in rooms or (ROOT / package / name).is_dir()}
        assert known <= set(lower), path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_holds_more_than_one_file(package):
    for folder in (p for p in (ROOT / package).rglob("*") if (p / "__init__.py").exists()):
        assert len([f for f in folder.iterdir() if f.suffix == ".py"]) > 2, folder


CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_is_read_is_run(package):
    """Checkpoints, records and specs are data: no pickle is read, none written, nothing evaluated.
    The executors' processes talk in pickles of their own making, as multiprocessing does.
    """
    for path in (ROOT / package).rglob("*.py"):
        if path.parent.name == "executors":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & CODE, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


MODULES = ("isoflop.experiments.cli.main", "isoflop.sim.laws.forms", "isoflop.sim.compare.gains")


@pytest.mark.parametrize("module", MODULES)
def test_help_and_fits_start_without_jax(module):
    code = f"import {module}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
