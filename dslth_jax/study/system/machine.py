"""Faults of the machine and of files that show before anything is computed; and what numbers depend on."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import jax

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # that numbers depend on


def check_machine() -> None:
    """Raise a ValueError where JAX finds no device, or may compile nothing."""
    if cache_folder(make=False) is None and "MPLCONFIGDIR" not in os.environ:
        # Matplotlib would take a folder of no user for one in the current folder.
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib_")
    if jax.config.values["jax_disable_jit"]:
        raise ValueError("JAX_DISABLE_JIT must be unset, because every round is a compiled program")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # without a plugin for what is asked for JAX merely asserts
        asked = os.environ.get("JAX_PLATFORMS", "")
        wish = f" as JAX_PLATFORMS={asked} asks for" if asked else ""
        reason = f" ({str(error).strip().splitlines()[0]})" if str(error).strip() else ""
        raise ValueError(f"JAX finds no device{wish}{reason}: say JAX_PLATFORMS=cpu, or mend it") from None


def numerics() -> dict[str, str]:
    """What the user has chosen for JAX's numbers, by the names of its variables."""
    return {name: str(getattr(jax.config, name.lower())) for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")}


def cache_folder(*, make: bool = True) -> Path | None:
    """Where this user's programs keep what can be made again; None where there can be no such folder."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dslth_jax"
        if not folder.is_absolute():  # it would be part of the current folder
            return None
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) or not make else None
    except (OSError, RuntimeError, ValueError):  # a full or foreign disk, no home, a null character
        return None


def lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a folder, or a file, against other processes until what is returned is closed, or this process ends.

    Another process that holds it is waited for, or is a BlockingIOError. None where the file system has no locks.
    """
    if fcntl is None:
        return None
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(opened)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return opened


def expect_place(path: Path, endings: tuple[str, ...] = ()) -> None:
    """Raise a ValueError where no file, of one of these endings if there are any, can be written by --out."""
    wrong_kind = endings and path.suffix.lower() not in endings
    if wrong_kind or not path.name or not path.parent.is_dir() or path.is_dir():
        kind = f"a file *{endings[0]}" if endings else "a file"
        raise ValueError(f"--out must be {kind} in a folder that exists, got {path}: name another")


def expect_file(path: Path) -> None:
    """Raise an OSError unless `path` can be read to its end: pipes may keep a reader waiting, devices never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # whoever opens a folder is told
        raise OSError(errno.EINVAL, "it is no ordinary file")
