"""What a setting is: its type, bounds and unit, whether it is traced or the machine's own; how words of it are read."""

import contextlib
import dataclasses
import functools
import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from dslth_jax.naming import nearest


class Setting(NamedTuple):
    """What is known of a field of settings."""

    bounds: str = ""  # low..high, or as an interval such as (0, 1]
    unit: str = ""  # of which it is a number
    traced: bool = False  # runs of a sweep that differ in it share one program
    scheduled: bool = False  # may be spelled VALUE@SCHEDULE too, and is traced
    machine: bool = False  # may differ between processes, and after --resume: no number depends on it
    against: tuple[str, ...] = ()  # flags that mean something else: only one of them can be said
    needs: tuple[str, str] | None = None  # another flag, and the value of it beside which this one means something
    name: str = ""
    hint: Any = None  # the type of its value; of a flag that may be said several times, of one
    several: bool = False
    default: Any = None
    group: str = ""


def setting(default: Any, **known: Any) -> Any:
    """A field of a dataclass of settings, with what is known of it: fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"traced": known.get("scheduled", False), **known})


def describe(kind: type) -> dict[str, Setting]:
    """What is known of each field of a class; one that a class overrides keeps its group, and what is known of it."""
    hints, bases, found = get_type_hints(kind), list[Any](reversed(kind.__mro__)), {}
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        owners = [one for one in bases if name in getattr(one, "__dataclass_fields__", ())]
        known = {key: value for one in owners for key, value in one.__dataclass_fields__[name].metadata.items()}
        several = get_origin(hint) is tuple
        found[name] = Setting(
            **known,
            name=name,
            hint=get_args(hint)[0] if several else hint,
            several=several,
            default=field.default,
            group=owners[0].__name__.lower(),
        )
    return found


described: Callable[[type], dict[str, Setting]] = functools.cache(describe)


def flag(name: str) -> str:
    """How the command spells a field. One that Python keeps for itself has an underline behind it.

    >>> flag("batch_size"), flag("as_")
    ('--batch-size', '--as')
    """
    return "--" + name.removesuffix("_").replace("_", "-")


def parts(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """The words that a hint allows."""
    return [choice for part in parts(hint) if get_origin(part) is Literal for choice in get_args(part)]


def kinds(hint: Any) -> str:
    """What a field of a type takes, in words."""
    words = {int: "a whole number", float: "a number", str: "a word", Path: "a path", bool: "True or False"}
    taken, among = parts(hint), choices(hint)
    # What takes numbers and words takes spellings that hold a number.
    said = [words[part] for part in taken if part in words and not (part is str and float in taken)]
    return " or ".join(said + ([f"one of {', '.join(among)}"] if among else []))


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of one of the types, or one of the words, that a hint allows."""
    taken = tuple(part for part in parts(hint) if isinstance(part, type))
    taken += (int,) if float in taken else ()
    if isinstance(value, bool):
        return bool in taken
    return isinstance(value, taken) or (isinstance(value, str) and value in choices(hint))


def read(name: str, word: str, hint: Any) -> Any:
    """The value that a word spells; a ValueError where it is none that the hint allows."""
    taken, constants = parts(hint), {"None": None, "True": True, "False": False}
    if word in constants and type(constants[word]) in taken:
        return constants[word]
    for kind in (kind for kind in (int, float, Path, str) if kind in taken and (word or kind is not Path)):
        with contextlib.suppress(ValueError):
            return kind(word)
    if word in choices(hint):
        return word
    raise ValueError(refusal(name, kinds(hint), word, choices(hint)))


def within(value: Any, bounds: str) -> Any:
    """Whether a number, or each of an array, lies in bounds such as 1..10 or (0, 1].

    >>> [within(number, "(0, 1]") for number in (0, 0.5, 1, float("nan"))]
    [False, True, True, False]
    """
    low, high = map(float, re.split(r"\.\.|, ", bounds.strip("[]()")))
    above = value > low if bounds.startswith("(") else value >= low
    below = value < high if bounds.endswith(")") else value <= high
    return above & below


def refusal(name: str, wanted: str, value: Any, known: Iterable[str] = ()) -> str:
    """The sentence for a value that is not as wanted; it suggests the nearest of the `known` names."""
    try:
        given = str(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        given = "a number of thousands of digits"
    quoted = repr(given) if isinstance(value, str) else given
    return f"{flag(name)} must be {wanted}, got {quoted}{nearest(given, known)}"


def spelled(value: Any) -> str:
    """One spelling of a value, whether it comes from JSON or from a table: 10, 10.0 and "1e1" are the same."""
    try:
        return f"{float(value):.12g}" if not isinstance(value, bool) else str(value)
    except (TypeError, ValueError, OverflowError):
        return "" if value is None else str(value)
