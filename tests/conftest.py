"""Strictness for every test: shapes and types are checked, ranks never promote silently, warnings are errors."""

import ast
import atexit
import contextlib
import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Compile nothing twice, but let no test pass or fail by what an earlier session has compiled: keep programs in a folder
# of this process and those it starts. Before JAX reads its environment.
if os.environ.get("JAX_ENABLE_COMPILATION_CACHE") != "false":
    programs = tempfile.mkdtemp(prefix="dslth_jax_programs_")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"  # writing others takes as long
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Compile hastily: most tests wait for compilers, and not for what these make. See `as_users_compile`, and `hastily`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import jaxtyping
import pytest
from jax._src import compiler
from jaxtyping import _import_hook


def outermost(visit):
    """Check the annotations of no function within a function: each call of the outer one would prepare it again."""

    @functools.wraps(visit)
    def visit_function(self, node):
        return node if any(isinstance(parent, ast.FunctionDef) for parent in self._parents) else visit(self, node)

    return visit_function


# Check the annotations of every function of the core while tests run, but not again in processes that they start. Must
# come before its first import.
rooms = {path.stem for path in (Path(__file__).parents[1] / "dslth_jax").iterdir()} - {"study"}
if os.environ.get("DSLTH_ANNOTATIONS") != "unchecked":
    # No public setting says which. If a version of jaxtyping has it elsewhere, tests only take longer.
    if transformer := getattr(_import_hook, "JaxtypingTransformer", None):
        transformer.visit_FunctionDef = outermost(transformer.visit_FunctionDef)
    jaxtyping.install_import_hook([f"dslth_jax.{room}" for room in sorted(rooms)], "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


def hastily(options_of):
    """Let XLA compile each program in one piece, for each piece begins anew; and where most optimizations are disabled,
    let LLVM optimize no program at all, and let XLA write loops without its fusion emitters, where it still can:
    compiling takes half of the time again. No public setting reaches all programs.
    """
    whole = {"xla_cpu_parallel_codegen_split_count": 1}
    hasty = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):
        hasty["xla_cpu_use_fusion_emitters"] = False

    @functools.wraps(options_of)
    def options(*arguments, env_options_overrides=None, **settings):
        own = whole | (hasty if jax.config.values["jax_disable_most_optimizations"] else {})
        return options_of(*arguments, env_options_overrides=(env_options_overrides or {}) | own, **settings)

    return options


# If a version of JAX has it elsewhere, tests only take longer.
if hasattr(compiler, "get_compile_options"):
    compiler.get_compile_options = hastily(compiler.get_compile_options)


def pytest_collection_finish() -> None:
    """Tracing makes and drops many objects: look seldom for rings of them, and never among what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Compile as users do, for what must hold bit for bit in the code that they run, or takes long to run."""
    hasty = jax.config.values["jax_disable_most_optimizations"]
    # Forget what is compiled in the other way, or both would meet in one comparison.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", hasty)
        jax.clear_caches()


@pytest.fixture
def as_users_compile():
    with optimized():
        yield


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
