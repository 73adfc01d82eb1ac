"""Strictness for every test: shapes and types are checked, ranks never promote silently, warnings are errors."""

import os
from pathlib import Path

# No test may pass or fail by what an earlier run has compiled; before JAX reads its environment, for subprocesses too.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import pytest
from jaxtyping import install_import_hook

# Check the annotations of every function of the library while tests run. Must come before its first import.
install_import_hook("dslth_jax", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 throughout one test, for comparisons with an oracle."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of reference data; tests that need it skip where the machine has none."""
    folder = os.environ.get("DSLTH_SHARED")
    if folder is None or not Path(folder).is_dir():
        pytest.skip("reference data is missing: set DSLTH_SHARED to its folder")
    return Path(folder)
