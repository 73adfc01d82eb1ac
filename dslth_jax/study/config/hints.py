"""What the type of a flag says, in words: what it takes, and the sentence for a value that is not that."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from dslth_jax.naming import nearest


def refusal(name: str, wanted: str, value: Any, known: Any = None) -> str:
    """The sentence for a value that is not as wanted."""
    given = shown(value)
    quoted = repr(given) if isinstance(value, str) else given
    return f"{flag(name)} must be {wanted}, got {quoted}{nearest(given, known or [])}"


def shown(value: Any) -> str:
    """A value in a sentence."""
    try:
        return str(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        return "a number of thousands of digits"


def parts(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """The words that a hint allows."""
    return [choice for part in parts(hint) if get_origin(part) is Literal for choice in get_args(part)]


def kinds(hint: Any) -> str:
    """What a field of a type takes, in words."""
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a path", bool: "True or False"}
    # What takes numbers and words takes spellings that hold a number.
    spelled = float in parts(hint)
    taken = [words[part] for part in parts(hint) if part in words and not (part is str and spelled)]
    if among := choices(hint):
        taken.append(f"one of {', '.join(among)}")
    return " or ".join(taken)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of one of the types, or one of the words, that a hint allows."""
    taken = parts(hint)
    if isinstance(value, str) and value in choices(hint):
        return True
    if isinstance(value, bool):
        return bool in taken
    if isinstance(value, (int, np.integer)):
        return int in taken or float in taken
    if isinstance(value, (float, np.floating)):
        return float in taken
    return any(isinstance(part, type) and isinstance(value, part) for part in taken)


def flag(name: str) -> str:
    """How the command spells a field."""
    return "--" + name.replace("_", "-")
