"""Imports flow models ← sim ← figures ← experiments, and help needs no JAX."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "sim": {"models", "sim"},
    "figures": {"models", "sim", "figures"},
    "experiments": {"models", "sim", "figures", "experiments"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages of ours that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & ALLOWED.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_flow_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) <= ALLOWED[package], path


@pytest.mark.parametrize("module", ["experiments.cli", "sim.laws", "sim.compare"])
def test_help_and_fits_start_without_jax(module):
    code = f"import {module}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_extra_is_one_that_something_asks_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asking = [ROOT / "README.md", ROOT / "Makefile"]
    asking += [path for package in ALLOWED for path in (ROOT / package).rglob("*.py")]
    said = "".join(path.read_text() for path in asking)
    assert [
        name for name in extras if f"[{name}]" not in said and f"--extra {name}" not in said
    ] == []
