"""Save and restore a population's state between rounds, whole or not at all. The population's world.

A run may be killed at any moment. What is not finished lies under another name, and one rename makes it visible.

    folder/round_00000050/manifest.json     the round, the caller's notes, what the leaves are; the seal: length and
                                            SHA-256 of every other file, and a hash of all that
    folder/round_00000050/state/            the leaves by their key paths, as orbax writes a pytree
    folder/round_00000075.part/             not finished yet, or never

All processes of a run call these functions, on a file system that they share. Shared random weights are drawn anew
from their seed and are no part of a state. orbax's own CheckpointManager (0.12) cannot take the place of this file: it
passes over no damaged checkpoint, refuses to save at its step again, and leaves files that no hash covers.
"""

import hashlib
import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dslth_jax.study.training import arrays
from dslth_jax.study.training.processes import as_first_says, is_first, together

FORMAT = 9  # 1 was that of version 0.3.1, 2 of 0.4, 3 of 0.5, 4 of 0.6, 5 of 0.7, 6 up to 0.10, 7 up to 0.13, 8 of 0.14
MANIFEST, STATE, PART = "manifest.json", "state", ".part"
NAME = re.compile(r"round_(\d{8,})(?:-(\d+))?")  # the round, and how often it was saved before, if it was


class Found(NamedTuple):
    """A checkpoint that is whole."""

    path: Path
    round: int
    notes: dict[str, Any]
    damaged: tuple[str, ...]  # newer ones that are not, each with the reason


class OldFormatError(ValueError):
    """A checkpoint was written by another version of the library, whose states were other ones."""


def save(folder: Path, round: int, state: Any, notes: dict[str, Any], *, keep: int = 2) -> None:
    """Write the checkpoint of `round`. Once it is safely there, remove all but the `keep` newest up to it, and later
    ones too: this run did not go on from them, so they were damaged or are of another course.

    `state` is a pytree of arrays or numbers, wherever they lie, else a TypeError; `notes`, of the first process, are in
    JSON's types, else a ValueError. An OSError where nothing can be written; earlier checkpoints are untouched then.
    """
    if keep < 1 or round < 0:
        raise ValueError(f"keep must be at least 1 and round at least 0, got {keep} and {round}")
    together(lambda: json.dumps(notes), "notes must be in JSON's types", first_alone=True)
    leaves = arrays.as_arrays(arrays.named(state))
    part = folder / f"round_{round:08d}{PART}"

    def begin() -> None:
        shutil.rmtree(part, ignore_errors=True)
        (part / STATE).mkdir(parents=True)

    def write() -> None:
        if not (part / STATE).is_dir():
            raise OSError("not every process sees this folder, and all must share it")
        arrays.write(part / STATE, leaves)

    def commit() -> None:
        arrays.finish(part / STATE)
        seal(part, {"round": round, "notes": notes, "leaves": arrays.described(leaves)})
        again = [again for number, again, _ in _listed(folder) if number == round]
        newest = folder / (f"{part.stem}-{again[0] + 1}" if again else part.stem)
        part.rename(newest)
        sync(folder)
        older = (path for number, _, path in _listed(folder) if number < round)
        kept = {newest, *islice(filter(is_whole, older), keep - 1)}  # damaged ones do not count
        for path in {*(path for *_, path in _listed(folder)), *folder.glob(f"round_*{PART}")} - kept:
            shutil.rmtree(path, ignore_errors=True)  # what cannot go now may go after the next one

    sentence = f"the checkpoint of round {round} cannot be written into {folder}, where earlier ones are untouched"
    try:
        together(begin, sentence, OSError, first_alone=True)
        together(write, sentence, OSError)
        together(commit, sentence, OSError, first_alone=True)
    except OSError:
        if is_first():
            shutil.rmtree(part, ignore_errors=True)
        raise


def latest(folder: Path) -> Found | None:
    """The newest checkpoint in `folder` that is whole, each file as it was written; None where there is none at all. A
    ValueError where there are some and none is whole, or the newest is of another version of the library."""
    damaged: list[str] = []

    def look() -> list[Any] | str | None:
        for *_, path in _listed(folder):
            try:
                known = unseal(path)
                return [str(path), known["round"], known["notes"], damaged]
            except OldFormatError as error:
                return str(error)
            except ValueError as error:
                damaged.append(f"{path.name}: {error}")
        if damaged:
            raise ValueError("; ".join(damaged))
        return None

    sentence = f"no checkpoint in {folder} is whole, put back a copy of one or remove them all to start anew"
    found = as_first_says(together(look, sentence, first_alone=True))
    if isinstance(found, str):
        raise ValueError(found)
    return Found(Path(found[0]), found[1], found[2], tuple(found[3])) if found else None


def restore(found: Found, like: Any) -> Any:
    """The state of a checkpoint, bit for bit, as a pytree of `jax.ShapeDtypeStruct` says it: with shardings over these
    devices, however many there were before, else on one. A ValueError where it is of something else, or unreadable."""
    wanted = arrays.named(like)

    def read() -> dict[str, jax.Array]:
        saved, ours = unseal(found.path, thorough=False)["leaves"], arrays.described(wanted)
        for name in ours | saved:
            if saved.get(name) != ours.get(name):
                raise ValueError(f"{name} must be {ours.get(name, 'absent')}, and is {saved.get(name, 'absent')}")
        for name, leaf in wanted.items():
            if jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True) != leaf.dtype:
                raise ValueError(f"{name} is {leaf.dtype}, which JAX has only with JAX_ENABLE_X64=1")
        return arrays.read(found.path / STATE, wanted)

    restored = together(read, f"the checkpoint {found.path} cannot be restored")
    return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in wanted])


def _listed(folder: Path) -> list[tuple[int, int, Path]]:
    """All checkpoints, whole or not, the newest first: what their names say, and the path."""
    named = [(NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted(((int(said[1]), int(said[2] or 0), path) for said, path in named if said), reverse=True)


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of all that is in `folder`, with `content` of JSON's types, all of it on the disk for good."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _hash(path)]
        sync(path)
    sealed = {**content, "format": FORMAT, "files": files}
    (folder / MANIFEST).write_text(json.dumps({**sealed, "seal": _digest(sealed)}))
    sync(folder / MANIFEST)
    sync(folder)


def unseal(folder: Path, thorough: bool = True) -> dict[str, Any]:
    """The content of a folder's manifest, if every file it speaks of has its hash, or at least its length; a ValueError
    with the reason in a few words if not, an OldFormatError if it is of another version."""
    try:
        sealed = json.loads((folder / MANIFEST).read_bytes())
        digest, version = sealed.pop("seal"), sealed["format"]
    except FileNotFoundError:
        raise ValueError("it has no manifest") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("its manifest cannot be read") from None
    if digest != _digest(sealed):
        raise ValueError("its manifest is damaged")
    if version != FORMAT:
        raise OldFormatError(
            f"the checkpoint {folder} is of another version of dslth_jax (format {version}, this one reads {FORMAT}): "
            f"go on with that version, or start anew in another folder"
        )
    for name, (size, digest) in sealed["files"].items():
        path = folder / name
        try:
            if not path.is_file():
                raise ValueError(f"{name} is missing")
            if path.stat().st_size != size:
                raise ValueError(f"{name} has {path.stat().st_size} bytes of {size}")
            if thorough and _hash(path) != digest:
                raise ValueError(f"{name} is not as it was written")
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    return sealed


def is_whole(folder: Path) -> bool:
    """Whether a folder is sealed and every file has its length."""
    try:
        return bool(unseal(folder, thorough=False))
    except ValueError:
        return False


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
