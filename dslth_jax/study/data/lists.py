"""Text files of words: the classes of each agent, the owner of each sample."""

import csv
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dslth_jax.partition import Owners
from dslth_jax.study.data.form import checked_labels
from dslth_jax.study.system.machine import expect_file


def words_by_line(path: Path, file: str, lines: str, split: Callable[[str], list[str]]) -> dict[int, list[str]]:
    """The words of each line that has any, as `split` makes them of it, by its number counted from 1.

    Raises a ValueError where the file is none, or no text, or where `split` raises one.
    """
    try:
        expect_file(path)
        text = path.read_text("utf-8-sig")
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except UnicodeDecodeError:
        reason = "it is no text"
    except ValueError:  # a null character
        reason = "no file can have this name"
    else:
        found = dict[int, list[str]]()
        for number, line in enumerate(text.splitlines(), 1):
            try:
                found[number] = split(line)
            except ValueError as error:
                raise ValueError(f"{file} cannot be read in line {number}: {str(error).lower()}") from None
        return {number: words for number, words in found.items() if words}
    raise ValueError(f"{file} must hold {lines}, and cannot be read: {reason}")


def quoted_words(line: str) -> list[str]:
    """The words of a line: blanks or commas between them, quotes around one that has such in it, # before a comment."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.whitespace, lexer.escape = True, " \t,", ""
    return list(lexer)


def cells_of(line: str) -> list[str]:
    """The cells of a line of comma-separated values, where # behind a blank begins a comment; without a comma, its
    words."""
    line = re.split(r"(?:^|\s)#", line)[0]
    if "," not in line:
        return quoted_words(line)
    cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
    return cells if any(cells) else []


def read_classes(path: Path, agents: int, classes: int, own_labels: Sequence[int | str] = ()) -> list[list[int]]:
    """A text file of one line an agent, its classes: their `own_labels`, or numbers from 0 where there are none."""
    file, wanted = f"the class file {path}", "one line of classes an agent"
    numbers = {str(label): number for number, label in enumerate(own_labels or range(classes))}
    known = f"0..{classes - 1}" if not own_labels else ", ".join(map(str, own_labels[:10]))
    known += f" and {classes - 10} more" if own_labels[10:] else ""
    lines, classes_of = words_by_line(path, file, wanted, quoted_words), []
    for number, words in lines.items():
        row = [class_of(word, numbers) for word in words]
        if None in row:
            word = words[row.index(None)]
            between = "separated by blanks" + ", in quotes where they hold some" * bool(own_labels)
            raise ValueError(f"{file} must hold classes in {known}, {between}, got {word!r} in line {number}")
        if len({*row}) != len(row):
            raise ValueError(f"{file} must name a class once a line, got {words} in line {number}")
        classes_of.append([one for one in row if one is not None])
    if not lines:
        raise ValueError(f"{file} must hold {wanted}, and it is empty")
    if len(lines) != agents:
        instead = f"mend it, or say --agents {len(lines)}"
        raise ValueError(f"{file} must have one line for each of {agents} agents, got {len(lines)}: {instead}")
    return classes_of


def class_of(word: str, numbers: Mapping[str, int]) -> int | None:
    """The number of the class that a word names, with zeros before it or not; None where it names none."""
    ordinal = as_ordinal(word)
    return numbers.get(word, None if ordinal is None else numbers.get(str(ordinal)))


def as_ordinal(word: str) -> int | None:
    """The whole number from 0 that a word spells; None where it spells none."""
    return int(word) if word.isascii() and word.isdigit() and len(word) < 10 else None


def read_owners(path: Path, samples: int) -> Owners:
    """Whose each of so many training samples is: a .npy of one owner a sample, or a text file of a line for each.

    A line holds the owner, or the sample's number, from 0, and its owner; samples without a line are nobody's. A first
    line may name the columns.
    """
    file = f"the owner file {path}"
    if path.suffix == ".npy":
        try:
            expect_file(path)
            return checked_labels(np.load(path, allow_pickle=False), samples, file)
        except Exception as error:  # torn files raise many kinds
            raise ValueError(f"{file} must be a .npy of one owner a sample, and is not ({error})") from None
    lines = words_by_line(path, file, "one owner for each training sample", cells_of)
    rows = [*lines.values()]
    rows = rows[1:] if rows and rows[0][-1].lower() == "owner" else rows
    widths = {*map(len, rows)}
    if widths == {1} and len(rows) == samples:
        return as_numbers([owner for (owner,) in rows])
    if widths != {2}:
        wanted = f"one owner for each of {samples} training samples, or lines of a sample and its owner"
        raise ValueError(f"{file} must hold {wanted}, got {len(rows)} lines of {sorted(widths)} words")
    owners = [""] * samples
    for sample, owner in rows:
        number = as_ordinal(sample)
        if number is None or number >= samples:
            raise ValueError(f"{file} must number samples in 0..{samples - 1}, got {sample!r}")
        if owners[number]:
            raise ValueError(f"{file} must name an owner of each sample once, got two of sample {number}")
        owners[number] = owner
    return as_numbers(owners)


def as_numbers(owners: Sequence[str]) -> Owners:
    """Owners as whole numbers, where all are such, with -1 for nobody; as words otherwise, with "" for nobody."""
    if all(re.fullmatch(r"(0|-?[1-9]\d{0,17})?", owner, re.ASCII) for owner in owners):
        return np.array([int(owner or -1) for owner in owners])
    return np.array(owners)
