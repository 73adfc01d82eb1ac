"""Flags as they were said: kept in config.json, and read from there or from a file of one's own by --config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslth_jax.study.config.machine import expect_file
from dslth_jax.study.config.setting import Setting, flag, parts

CONFIG = "--config"
DOES = "Take the flags of a run's config.json as they were said, or of a YAML file of names and values; flags win."
OF_ONE_COMMAND = ("out", "resume", "coordinator", "processes", "process")  # they mean nothing to another command


def with_config(words: list[str], known: Mapping[str, Setting]) -> list[str]:
    """The words of a command, with the flags that a file behind --config says in front of them; where both say the
    same flag, that of the file is left out. A ValueError if the file cannot be read."""
    places = [place for place, word in enumerate(words) if word.partition("=")[0] == CONFIG]
    if not places:
        return words
    if len(places) > 1:
        raise ValueError(f"{CONFIG} must be said once, got {len(places)} of them")
    _, equals, path = words[places[0]].partition("=")
    behind = words[places[0] + 1 : places[0] + 2]
    if not equals and (not behind or behind[0].startswith("--")):
        raise ValueError(f"{CONFIG} needs a value behind it: a path")
    rest = words[: places[0]] + words[places[0] + (1 if equals else 2) :]
    said = {word.partition("=")[0].removeprefix("--no-").removeprefix("--").replace("-", "_") for word in rest}
    found = read_flags(Path(path if equals else behind[0]))
    return [word for name, value in found.items() if name not in said for word in spelled(name, value, known)] + rest


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
        if path.suffix == ".json":
            found = json.loads(text)
        else:
            import yaml

            found = yaml.safe_load(text)
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
    return [f"{flag(name)}={one}" for one in (value if isinstance(value, list) else [value])]
