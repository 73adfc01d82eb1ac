"""Folders that say what they hold: sealed when they are done, and seen to be whole before anything in them is used.

The seal is one file of JSON: content of the caller's, length and SHA-256 of every other file, and a hash of all that.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1  # what is sealed in another way is not read
NAME = "manifest.json"


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of all that is in `folder`, with `content` of JSON's types, and have everything on the disk.

    Raises an OSError where that cannot be done.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _hash(path)]
        sync(path)
    sealed = {**content, "format": FORMAT, "files": files}
    (folder / NAME).write_text(json.dumps({**sealed, "seal": _digest(sealed)}))
    sync(folder / NAME)
    sync(folder)


def unseal(folder: Path, thorough: bool = True) -> dict[str, Any]:
    """The content of a folder's manifest, if all it speaks of is as it was; files that it does not know are let be.

    Args:
        folder: sealed, or not.
        thorough: hash every file; else their lengths are enough.

    Raises:
        ValueError: the folder is not whole, with the reason in a few words.
    """
    try:
        sealed = json.loads((folder / NAME).read_bytes())
        digest, version = sealed.pop("seal"), sealed["format"]
    except FileNotFoundError:
        raise ValueError("it has no manifest") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("its manifest cannot be read") from None
    if version != FORMAT:
        raise ValueError(f"its format is {version}, and {FORMAT} is read")
    if digest != _digest(sealed):
        raise ValueError("its manifest is damaged")
    for name, (size, digest) in sealed["files"].items():
        _expect(folder / name, name, size, digest if thorough else None)
    return sealed


def is_whole(folder: Path) -> bool:
    """Whether a folder is sealed and every file has its length."""
    try:
        return bool(unseal(folder, thorough=False))
    except ValueError:
        return False


def _expect(path: Path, name: str, size: int, digest: str | None) -> None:
    try:
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {size}")
        if digest and _hash(path) != digest:
            raise ValueError(f"{name} is not as it was written")
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def _hash(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
