"""Every annotation of shapes and types in the package is executed while the tests run."""

import os

import jax
import jaxtyping
import pytest
import quick
import typecheck

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.FLAGS}"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # in processes that tests start
jax.config.update("jax_numpy_rank_promotion", "raise")

jaxtyping.jaxtyped = typecheck.jaxtyped
jaxtyping.install_import_hook(["isoflop"], "typecheck.checked")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """A module's cache of data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A test's own cache of data, empty."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def prose(tmp_path_factory, shared_cache):
    """The path of 150 kB of English."""
    from isoflop.sim.data import Corpus

    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_bytes(Corpus(name="kjv").open().train.array[:150_000].tobytes())
    return str(path)
