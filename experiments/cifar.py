"""Train many personalized agents by MCE-PL: the main job.

    python -m experiments.cifar --agents 64 --rounds 20

Expect about 32 % mean accuracy (4 of 10 classes an agent; 31.7 % by version 0.0.1) in 11 minutes on two cores: 20 s a
round, 17 s of compilation, 4 minutes of evaluation. CIFAR-10 by default; `--dataset digits` needs no download. From
Python:

    from experiments.cifar import Settings, run
    result = run(Settings(dataset="digits", agents=16, rounds=50))
"""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dslth_jax.naming import nearest
from experiments.run import NotFiniteError, ready, run, train
from experiments.settings import HINTS, Settings, choices, flag, kinds, parts, refusal

__all__ = ["Settings", "main", "run"]

BAD_INPUT, NOT_FINITE = 2, 3
LONGEST_LINE = 1000  # characters of a sentence that are shown: whoever gave a whole file as a value wants its two ends
HELP, SWITCHED, NEGATIVE = ("-h", "--help"), ("True", "False", "None"), ("-inf", "-infinity", "-nan")


class StoppedError(BaseException):
    """SIGINT or SIGTERM came; like KeyboardInterrupt, no handler of ordinary errors may swallow it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        prepared, folder = ready(settings)
    except (ValueError, OSError) as error:
        return complain(error, BAD_INPUT)
    except StoppedError as stop:
        return complain(f"stopped by {signal.Signals(stop.args[0]).name} before the first round", 128 + stop.args[0])
    try:
        train(prepared, folder)
    except NotFiniteError as error:
        return complain(f"{error}; what was had is kept in {folder}" if folder else error, NOT_FINITE)
    except OSError as error:
        return complain(f"the run folder {folder} cannot be written to any more: {error}", BAD_INPUT)
    except StoppedError as stop:
        name = signal.Signals(stop.args[0]).name
        return complain(f"stopped by {name}; what was had is kept in {folder}", 128 + stop.args[0])
    return 0


def complain(sentence: object, code: int) -> int:
    """Say one line on the error stream; returns the exit code."""
    line = f"experiments.cifar: {' '.join(str(sentence).split())}"
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(line, file=sys.stderr)
    return code


def stop(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception."""
    del frame
    raise StoppedError(number)


def parse(arguments: Sequence[str]) -> Settings:
    """The flags as settings; a ValueError of one line where they are wrong."""
    import tyro

    if wrong := explain(arguments):
        raise ValueError(wrong)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Settings, args=spell_out(arguments), prog="python -m experiments.cifar")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(condense(said.getvalue())) from None


def spell_out(arguments: Sequence[str]) -> list[str]:
    """The same arguments, where switches that a preset may set say their value: --no-x as --x False."""
    words = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name = word.removeprefix("--").replace("-", "_")
        switch = name.removeprefix("no_")
        if word.startswith("--") and is_open(switch) and not (switch == name and following in SWITCHED):
            words += [flag(switch), str(switch == name)]
        else:
            words.append(word)
    return words


def explain(arguments: Sequence[str]) -> str | None:
    """One sentence for the first flag that is wrong: what was expected, what came, what to do."""
    words = list(arguments)
    known = [flag(field) for field in HINTS]
    while words:
        word = words.pop(0)
        if word in HELP:
            return None
        if not word.startswith("--") or word == "--":
            meant = nearest(word, known) if word.strip("-") else ""
            return (
                f"a flag was expected, got {word!r}: every value stands behind its flag{meant or '; --help lists all'}"
            )
        spelled, equals, value = word.partition("=")
        name = spelled[2:].replace("-", "_")
        switch = name.removeprefix("no_") if name not in HINTS else name
        if spelled in HELP:
            return f"{spelled} takes no value, got {value!r}: say {spelled} alone"
        if switch not in HINTS or (switch != name and bool not in parts(HINTS[switch])):
            return f"there is no flag {spelled}{nearest(spelled, known) or '; --help lists all'}"
        if not equals and words and not is_like_flag(words[0]):
            equals, value = "=", words.pop(0)
        if bool in parts(HINTS[switch]):
            if equals and not (switch == name and is_open(switch) and value in SWITCHED):
                opposite = flag(f"no_{switch}")
                return f"{flag(switch)} takes no value, got {value!r}: say {flag(switch)} or {opposite}"
        elif not equals:
            instead = f", got the flag {words[0]}" if words else ""
            return f"{flag(name)} needs a value behind it: {kinds(name)}{instead}"
        elif not is_spelled(value, HINTS[name]):
            return refusal(name, kinds(name), value)
    return None


def is_like_flag(word: str) -> bool:
    """Whether a word is read as a flag where a value is expected, as the parser does: what starts with dashes and a
    letter, but for -inf and -nan."""
    start = word.partition("=")[0]
    return word == "--" or (start.lstrip("-")[:1].isalpha() and start[:1] == "-" and start.lower() not in NEGATIVE)


def is_open(switch: str) -> bool:
    """Whether a field is a switch that a preset sets where it is left out."""
    return parts(HINTS.get(switch)) == (bool, type(None))


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


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Leave without the interpreter's own shutdown, which crashes where a compilation still runs in another thread.
    os._exit(code)
