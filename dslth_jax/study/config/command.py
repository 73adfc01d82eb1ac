"""What the commands share: flags as a dataclass, one sentence for what is wrong with them, and how a command ends."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

from dslth_jax.naming import nearest
from dslth_jax.study.config.console import Stream, guard
from dslth_jax.study.config.hints import choices, flag, kinds, parts, refusal
from dslth_jax.study.config.machine import is_out_of_memory
from dslth_jax.study.config.stopping import NotFiniteError, Stop, StoppedError

BAD_INPUT, NOT_FINITE = 2, 3
LONGEST_LINE = 1000  # characters of a sentence that are shown: whoever gave a whole file as a value wants its two ends
OUT_OF_MEMORY = "there is not enough memory: take fewer --agents, a smaller --agent-chunk, --batch-size or --model"
HELP, SWITCHED, NEGATIVE = ("-h", "--help"), ("True", "False", "None"), ("-inf", "-infinity", "-nan")
Kind = TypeVar("Kind")


def complain(program: str, sentence: object, code: int) -> int:
    """Say one line on the error stream; returns the exit code."""
    line = f"{program}: {' '.join(str(sentence).split())}"
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(line, file=Stream(sys.stderr))
    return code


class Begun(Protocol):
    """What a command has checked and opened, and goes on with."""

    @property
    def finished(self) -> str:
        """What to say if nothing is left to do, else empty."""

    @property
    def path(self) -> Path | None:
        """The folder in which the work is kept and goes on with --resume; None where there is none such."""


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


def hints_of(kind: type) -> dict[str, Any]:
    """The type of each flag's value; of a flag that may be said several times, that of one."""
    hints = get_type_hints(kind)
    return {name: get_args(hint)[0] if get_origin(hint) is tuple else hint for name, hint in hints.items()}


def parse(arguments: Sequence[str], kind: type[Kind], program: str) -> Kind:
    """The flags as settings of a kind; a ValueError of one line where they are wrong."""
    import tyro

    hints = hints_of(kind)
    if wrong := explain(arguments, hints, bool(positional_of(kind))):
        raise ValueError(wrong)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=spell_out(arguments, hints), prog=f"python -m {program}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(condense(said.getvalue())) from None


def spell_out(arguments: Sequence[str], hints: dict[str, Any]) -> list[str]:
    """The same arguments, where switches that a preset may set say their value: --no-x as --x False."""
    words = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name = word.removeprefix("--").replace("-", "_")
        switch = name.removeprefix("no_")
        if word.startswith("--") and is_open(hints.get(switch)) and not (switch == name and following in SWITCHED):
            words += [flag(switch), str(switch == name)]
        else:
            words.append(word)
    return words


def positional_of(kind: type) -> list[str]:
    """The fields whose values stand without a flag."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if get_origin(hint) is Annotated]


def explain(arguments: Sequence[str], hints: dict[str, Any], positional: bool = False) -> str | None:
    """One sentence for the first flag that is wrong: what was expected, what came, what to do; where `positional`,
    values may stand without a flag."""
    words = list(arguments)
    known = [flag(field) for field in hints]
    while words:
        word = words.pop(0)
        if word in HELP:
            return None
        if positional and not word.startswith("-"):
            continue
        if not word.startswith("--") or word == "--":
            meant = nearest(word, known) if word.strip("-") else ""
            return (
                f"a flag was expected, got {word!r}: every value stands behind its flag{meant or '; --help lists all'}"
            )
        spelled, equals, value = word.partition("=")
        name = spelled[2:].replace("-", "_")
        switch = name.removeprefix("no_") if name not in hints else name
        if spelled in HELP:
            return f"{spelled} takes no value, got {value!r}: say {spelled} alone"
        if switch not in hints or (switch != name and bool not in parts(hints[switch])):
            return f"there is no flag {spelled}{nearest(spelled, known) or '; --help lists all'}"
        if not equals and words and not is_like_flag(words[0]):
            equals, value = "=", words.pop(0)
        if bool in parts(hints[switch]):
            if equals and not (switch == name and is_open(hints[switch]) and value in SWITCHED):
                opposite = flag(f"no_{switch}")
                return f"{flag(switch)} takes no value, got {value!r}: say {flag(switch)} or {opposite}"
        elif not equals:
            instead = f", got the flag {words[0]}" if words else ""
            return f"{flag(name)} needs a value behind it: {kinds(hints[name])}{instead}"
        elif not is_spelled(value, hints[name]):
            return refusal(name, kinds(hints[name]), value, choices(hints[name]))
    return None


def is_like_flag(word: str) -> bool:
    """Whether a word is read as a flag where a value is expected, as the parser does: what starts with dashes and a
    letter, but for -inf and -nan."""
    start = word.partition("=")[0]
    return word == "--" or (start.lstrip("-")[:1].isalpha() and start[:1] == "-" and start.lower() not in NEGATIVE)


def is_open(hint: Any) -> bool:
    """Whether a field is a switch that a preset sets where it is left out."""
    return parts(hint) == (bool, type(None))


def is_spelled(text: str, hint: Any) -> bool:
    """Whether `text` spells a value of one of the types that a hint allows."""
    if text in choices(hint) or str in parts(hint) or Path in parts(hint):
        return True
    if text == "None":
        return type(None) in parts(hint)
    for number in (int, float):
        if number in parts(hint):
            with contextlib.suppress(ValueError):
                number(text)
                return True
    return False


def condense(boxed: str) -> str:
    """One line from the parser's boxed message, which says what was wrong, what is expected, and where help is."""
    lines = (re.sub(r"[╭╮╰╯│─]", " ", line).strip() for line in boxed.splitlines()[1:])
    return " ".join(line for line in lines if line)
