"""Flags as they were said: kept in config.json, and read from there or from a file of one's own by --config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from dslth_jax.study.config.setting import Setting, flag, parts
from dslth_jax.study.system.machine import expect_file

CONFIG, HELP = "--config", {"-h", "--help"}
DOES = "Take the flags of a run's config.json as they were said, or of a YAML file; those of the command win."
OF_ONE_COMMAND = ("out", "resume", "coordinator", "processes", "process")  # they mean nothing to another command


class Words(yaml.SafeLoader):
    """YAML whose numbers stay as they are spelled: for YAML itself 3:8 is 188, and 012 is 10."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def with_config(words: list[str], known: Mapping[str, Setting]) -> tuple[list[str], list[str], str]:
    """The flags that a file behind --config says, without those that the command says too; the other words of the
    command; and the file's name, empty if there is none. A ValueError if the file cannot be read."""
    places = [place for place, word in enumerate(words) if word.partition("=")[0] == CONFIG]
    if not places:
        return [], words, ""
    if asked := HELP & {*words}:  # whatever the file says
        return [], [*asked], ""
    if len(places) > 1:
        raise ValueError(f"{CONFIG} must be said once, got {len(places)} of them")
    _, equals, path = words[places[0]].partition("=")
    behind = words[places[0] + 1 : places[0] + 2]
    path = path if equals else "".join(behind)
    if not path or (not equals and path.startswith("--")):
        raise ValueError(f"{CONFIG} needs a value behind it: a path")
    rest = words[: places[0]] + words[places[0] + (1 if equals else 2) :]
    said = {named(word, known) for word in rest if word.startswith("--")}
    # A flag of the command takes the place of others of the file that mean the same otherwise.
    said |= {other for name in said & known.keys() for other in known[name].against}
    said |= {name for name, own in known.items() if said & {*own.against}}
    found = read_flags(Path(path))
    own = [word for name, value in found.items() if name not in said for word in spelled(name, value, known)]
    return own, rest, path


def named(word: str, known: Mapping[str, Setting]) -> str:
    """The setting that a word such as --lr=3 or --no-revive names."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return name if name in known else name.removeprefix("no_")


def read_flags(path: Path) -> dict[str, Any]:
    """The names and values of a file; a ValueError if it is none of those that --config takes."""
    wanted = f"{CONFIG} {path} must be the config.json of a run, or a YAML file of flags and their values"
    try:
        expect_file(path)
        text = path.read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"{wanted}, and cannot be read ({reason})") from None
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, Words)
    except Exception as error:  # of both readers' own kinds
        raise ValueError(f"{wanted}, and cannot be read ({' '.join(str(error).split())[:200]})") from None
    if isinstance(found, dict) and isinstance(found.get("settings"), dict):
        found = found.get("given")
        if found is None:
            raise ValueError(f"{path} was written by a version before 0.5, which kept no flags as they were said")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{wanted}, and is not")
    return {name.removeprefix("--").replace("-", "_"): value for name, value in found.items()}


def spelled(name: str, value: Any, known: Mapping[str, Setting]) -> list[str]:
    """The words that a command would have for a value."""
    if isinstance(value, bool) and (name not in known or bool in parts(known[name].hint)):
        return [flag(name if value else f"no_{name}")]
    several = isinstance(value, list) and name in known and known[name].several
    values = value if several else [",".join(map(str, value)) if isinstance(value, list) else value]
    return [f"{flag(name)}={one}" for one in values]
