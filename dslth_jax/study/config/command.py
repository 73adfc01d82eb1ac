"""What the commands share: flags as a dataclass, one sentence for what is wrong with them, and how a command ends."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from dslth_jax.naming import nearest
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS, owners_of
from dslth_jax.study.config.console import Stream, console, guard
from dslth_jax.study.config.machine import is_out_of_memory
from dslth_jax.study.config.resolve import NAMES
from dslth_jax.study.config.settings import Setting, choices, described, flag, kinds, parts, read
from dslth_jax.study.config.stopping import NotFiniteError, Stop, StoppedError

BAD_INPUT, NOT_FINITE = 2, 3
LONGEST_LINE = 1000  # characters of a sentence that are shown: whoever gave a whole file as a value wants its two ends
OUT_OF_MEMORY = "there is not enough memory: take fewer --agents, a smaller --agent-chunk, --batch-size or --model"
HELP, NEGATIVE = ("-h", "--help"), ("-inf", "-infinity", "-nan")
Kind = TypeVar("Kind")


def complain(program: str, sentence: object, code: int) -> int:
    """Say one line on the error stream; returns the exit code."""
    line = f"{program}: {' '.join(str(sentence).split())}"
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(line, file=Stream(sys.stderr))
    return code


class Begun(Protocol):
    """The work of a command, checked and with its folder open."""

    @property
    def finished(self) -> str:
        """What to say if nothing is left to do, else empty."""

    @property
    def path(self) -> Path | None:
        """The folder that holds the work, from which --resume goes on; None where there is none."""


Work = TypeVar("Work", bound=Begun)


def conduct(
    program: str, begin: Callable[[], Work], finish: Callable[[Work, Stop], object], stop: Stop | None = None
) -> int:
    """Begin and finish the work of a command; returns its exit code, and says what is wrong in one line.

    Args:
        program: the name in front of that line, such as "experiments.cifar".
        begin: reads the flags, checks everything that can be checked, then opens the folder.
        finish: does the work; it gets what `begin` returned, and `stop`, at which it looks between rounds.
        stop: the wish to stop of this process; a new one where left out.
    """
    stop, path = stop or Stop(), None

    def complained(error: object, code: int, kept: str = "; what was had is kept in {path}") -> int:
        return complain(program, str(error) + (kept.format(path=path) if path else ""), code)

    try:
        begun = begin()
        if begun.finished:
            print(begun.finished, file=Stream(sys.stdout))
            return 0
        path = begun.path
        finish(begun, stop)
    except StoppedError as stopped:
        when = "" if path else " before anything was kept"
        kept = "; what was had is kept in {path}; --resume --out {path} goes on"
        return complained(f"stopped by {stopped.name}{when}", stopped.code, kept)
    except NotFiniteError as error:
        return complained(error, NOT_FINITE)
    except OSError as error:
        start = f"the run folder {path} cannot be written to any more: " if path else ""
        return complained(f"{start}{error}", BAD_INPUT, kept="")
    except ValueError as error:
        return complained(error, BAD_INPUT, kept="")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return complained(f"{OUT_OF_MEMORY} ({reason[:200]})", BAD_INPUT)
    return 0


class Asked(NamedTuple):
    """What a command that trains nothing begins with."""

    settings: Any
    finished: str = ""
    path: None = None  # nothing is kept that could go on


def act(
    program: str,
    kind: type[Kind],
    do: Callable[[Kind], str],
    arguments: Sequence[str] | None = None,
    stop: Stop | None = None,
) -> int:
    """Run a command that trains nothing: `do` takes its flags, and returns what is said at its end."""
    words = sys.argv[1:] if arguments is None else arguments

    def finish(asked: Asked, stop: Stop) -> None:
        console(stop).print(do(asked.settings), highlight=False, markup=False, soft_wrap=True)

    return conduct(program, lambda: Asked(parse(words, kind, program)), finish, stop)


def leave(main: Callable[..., int]) -> NoReturn:
    """Run a command's `main`, with signals listened to, and end the process with its exit code."""
    stop = Stop()
    guard(stop)
    stop.listen()
    try:
        code = main(stop=stop)
    except SystemExit as end:  # of --help
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    # Leave without the interpreter's own shutdown, which crashes where a compilation still runs in another thread.
    os._exit(code)


# Flags ---------------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str], kind: type[Kind], program: str) -> Kind:
    """The flags as settings of a kind; a ValueError of one line where they are wrong: what was expected, what came, and
    what to do. --help shows all of them and ends the command.

    What has no default must be said; where several such values can be, they stand without a flag.
    """
    known, words = described(kind), list(arguments)
    needed = [name for name, own in known.items() if own.default is dataclasses.MISSING]
    positional = next((name for name in needed if known[name].several), None)
    flags, values = [flag(name) for name in known], dict[str, Any]()
    while words:
        word = words.pop(0)
        if word in HELP:
            print(help_of(kind, program))
            raise SystemExit(0)
        if positional and not word.startswith("-"):
            values[positional] = (*values.get(positional, ()), read(positional, word, known[positional].hint))
            continue
        if not word.startswith("--") or word == "--":
            meant = nearest(word, flags) if word.strip("-") else ""
            instead = meant or "; --help lists all"
            raise ValueError(f"a flag was expected, got {word!r}: every value stands behind its flag{instead}")
        spelled, equals, value = word.partition("=")
        name = spelled[2:].replace("-", "_")
        said, name = name, name.removeprefix("no_") if name not in known else name
        if spelled in HELP:
            raise ValueError(f"{spelled} takes no value, got {value!r}: say {spelled} alone")
        if name not in known or (name != said and bool not in parts(known[name].hint)):
            raise ValueError(f"there is no flag {spelled}{nearest(spelled, flags) or '; --help lists all'}")
        hint = known[name].hint
        if not equals and words and not is_like_flag(words[0]):
            equals, value = "=", words.pop(0)
        if bool in parts(hint):
            # What a preset sets where it is left out may be said as a value too.
            is_open = type(None) in parts(hint) and name == said and value in ("True", "False", "None")
            if equals and not is_open:
                opposite = flag(f"no_{name}")
                raise ValueError(f"{flag(name)} takes no value, got {value!r}: say {flag(name)} or {opposite}")
            values[name] = read(name, value, hint) if equals else name == said
        elif not equals:
            instead = f", got the flag {words[0]}" if words else ""
            raise ValueError(f"{flag(name)} needs a value behind it: {kinds(hint)}{instead}")
        else:
            one = read(name, value, hint)
            values[name] = (*values.get(name, ()), one) if known[name].several else one
    if missing := [name for name in needed if name not in values]:
        said = missing[0] if missing[0] == positional else flag(missing[0])
        raise ValueError(f"{said} must be said, {kinds(known[missing[0]].hint)}; --help says more")
    return kind(**values)


def is_like_flag(word: str) -> bool:
    """Whether a word is a flag and no value: it starts with a dash and a letter, and is not -inf or -nan."""
    start = word.partition("=")[0]
    return word == "--" or (start.lstrip("-")[:1].isalpha() and start[:1] == "-" and start.lower() not in NEGATIVE)


def help_of(kind: type, program: str) -> str:
    """What --help says: every flag in its group, with default, unit and bounds, and whose it is."""
    parser = argparse.ArgumentParser(
        f"python -m {program}", "%(prog)s [--FLAG VALUE ...]", inspect.getdoc(kind), add_help=False
    )
    described_in, groups = documents_of(kind), dict[str, Any]()
    for name, known in described(kind).items():
        group = groups.setdefault(known.group, None) or parser.add_argument_group(known.group)
        groups[known.group] = group
        among = choices(known.hint) or list(NAMES.get(name, ()))
        value = "{" + ",".join(among) + "}" if among else (known.unit or kinds(known.hint).split()[-1]).upper()
        text = f"{described_in.get(name, '')} {said_of(known)}".replace("%", "%%")
        more: dict[str, Any] = {"action": "store_true"} if bool in parts(known.hint) else {"metavar": value}
        alone = known.several and known.default is dataclasses.MISSING  # values that stand without a flag
        group.add_argument(name if alone else flag(name), help=text, **more)
    return parser.format_help()


def said_of(known: Setting) -> str:
    """The rest of a flag's help: bounds, default, what presets and algorithms make of it, and which algorithms have
    it."""
    said = ["(must be said)" if known.default is dataclasses.MISSING else f"(default: {known.default})"]
    if known.bounds and known.bounds[0] in "[(":
        said.insert(0, f"In {known.bounds}.")
    if known.name in PRESETS["code"]:
        said.append(f"By preset: {', '.join(f'{name} {own[known.name]}' for name, own in PRESETS.items())}.")
        own = {name: row.defaults[known.name] for name, row in ALGORITHMS.items() if known.name in row.defaults}
        said += [f"By algorithm: {', '.join(f'{name} {value}' for name, value in own.items())}."] if own else []
    if known.name == "algorithm":
        said.append("; ".join(f"{name}: {row.does}, sends {row.sends}" for name, row in ALGORITHMS.items()) + ".")
    owners = owners_of(known.name)
    said += [f"For {', '.join(owners)}."] if 0 < len(owners) < len(ALGORITHMS) else []
    return " ".join(said)


def documents_of(kind: type) -> dict[str, str]:
    """The docstring below each field of a class and of its bases."""
    found: dict[str, str] = {}
    for one in (one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
