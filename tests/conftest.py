"""Every annotation of shapes and types in the package is executed while the tests run."""

import os

import jax
import pytest
from jaxtyping import install_import_hook

# most of the suite's time is compiling; the flag is read when JAX starts its backend
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # in processes that tests start
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook(["models", "sim", "figures", "experiments"], "typecheck.checked")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share compiled functions or fixtures stay in one process: those of a file, or in
    it of a mixer or a case.
    """
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        shared = getattr(params.get("config"), "kind", params.get("case", ""))
        item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__}-{shared}"))
