"""Arrays of a pytree in a folder and back, bit for bit, by orbax: the only file that imports it, where it is used."""

import contextlib
import functools
import gc
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their key paths. Parts without any (None, some of optax's) need no saving.

    >>> named({"scores": [1, None, 2]})
    {"['scores'][0]": 1, "['scores'][2]": 2}
    """
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def as_arrays(leaves: dict[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    """Leaves as orbax takes them: JAX's arrays as they are, else numpy's, numbers in the type that JAX gives them."""
    typed = {name: leaf if hasattr(leaf, "dtype") else np.asarray(jnp.asarray(leaf)) for name, leaf in leaves.items()}
    return {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in typed.items()}


def described(leaves: dict[str, Any]) -> dict[str, str]:
    """Types and shapes in words, which are equal if they are.

    >>> described({"scores": np.zeros((2, 3))})
    {'scores': 'float64 of (2, 3)'}
    """
    return {name: f"{leaf.dtype} of {tuple(leaf.shape)}" for name, leaf in leaves.items()}


def write(folder: Path, leaves: dict[str, jax.Array | np.ndarray]) -> None:
    """Write named arrays into an empty folder; every process writes what it holds, and then the first must `finish`.
    An OSError where the system refuses, and whatever orbax raises."""
    with _orbax(folder) as (orbax, handler, path):
        full = {name: leaf for name, leaf in leaves.items() if leaf.size}  # orbax refuses those without entries
        handler.save(path, args=orbax.args.PyTreeSave(full))


def finish(folder: Path) -> None:
    """Join what all processes have written."""
    with _orbax(folder) as (_, handler, path):
        handler.finalize(path)


def read(folder: Path, like: dict[str, Any]) -> dict[str, jax.Array]:
    """The named arrays of a folder where the shardings of `like` say, which may be others than when they were written;
    on this process's first device where it has none."""
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = {name: getattr(leaf, "sharding", None) or alone for name, leaf in like.items()}
    full = {name: leaf for name, leaf in like.items() if leaf.size}
    with _orbax(folder) as (orbax, handler, path):
        kind = functools.partial(orbax.ArrayRestoreArgs, jax.Array)
        how = {name: kind(leaf.dtype, sharding=places[name], global_shape=leaf.shape) for name, leaf in full.items()}
        found = handler.restore(path, args=orbax.args.PyTreeRestore(full, restore_args=how))
    rest = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in like.items() if not leaf.size}
    return found | {name: jax.device_put(leaf, places[name]) for name, leaf in rest.items()}


@contextlib.contextmanager
def _orbax(folder: Path) -> Iterator[tuple[Any, Any, Any]]:
    """orbax, its handler of pytrees and its kind of path. An error is an exception and nothing else: orbax alone would
    also log it, and leave threads and writes under way that cannot report to anybody."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda said: None if "loop is closed" in str(said.exc_value) else hook(said)
    try:
        import orbax.checkpoint
        from etils import epath

        # Scores are random floats: to compress them takes three times as long and saves a seventh.
        with contextlib.closing(orbax.checkpoint.PyTreeCheckpointHandler(use_compression=False)) as handler:
            yield orbax.checkpoint, handler, epath.Path(folder.absolute())
    except Exception as error:
        # Let other writes end, and forget what waits for them, before orbax is used again.
        time.sleep(0.5)
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    finally:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                thread.join()
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
