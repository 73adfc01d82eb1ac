"""Where words go. A stream that is closed, full or gone ends no run."""

import io
import os
import sys
from collections.abc import Iterable
from typing import Any, cast

from rich.console import Console

from dslth_jax.study.system.stopping import Stop


class Stream:
    """A text stream over another one, or over None: it drops what cannot be written, and raises nothing.

    A character that the other's encoding lacks becomes a question mark. If the reader of the other is gone (a broken
    pipe), `stop` is asked to end the run.
    """

    def __init__(self, over: Any, stop: Stop | None = None) -> None:
        self.over, self.stop = over or io.TextIOBase(), stop

    def write(self, text: str) -> int:
        """Write what can be written."""
        encoding = getattr(self.over, "encoding", None) or "utf-8"
        self.attempt("write", text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write what can be written of each line."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush what can be flushed."""
        self.attempt("flush")

    def attempt(self, action: str, *arguments: str) -> None:
        """Let the other stream do something, as far as it can; take a broken pipe for a wish to stop."""
        try:
            getattr(self.over, action)(*arguments)
        except BrokenPipeError:
            self.over = io.TextIOBase()
            if self.stop:
                self.stop.wish()
        except (OSError, ValueError):  # a full disk, a terminal that hung up, a closed file, None
            pass

    def __getattr__(self, name: str) -> Any:
        """All else, such as whether it is a terminal, is as the other stream has it."""
        return getattr(self.over, name)


def console(stop: Stop | None = None, *, quiet: bool = False) -> Console:
    """The console on which a command, or a function called from Python, says how it goes."""
    # A notebook gets the lines of a log: it shows no line that renews itself, or only by another package.
    quietly: dict[str, Any] = {"force_jupyter": False, "force_terminal": False} if Console().is_jupyter else {}
    return Console(file=cast(Any, Stream(sys.stdout, stop)), quiet=quiet, **quietly)


def warn(sentence: str) -> None:
    """Say one line that asks for attention and ends nothing."""
    print(f"warning: {sentence}", file=Stream(sys.stderr))


def notice(sentence: str) -> None:
    """Say one line of what is going on before a run begins."""
    print(sentence, file=Stream(sys.stderr))


def guard(stop: Stop) -> None:
    """Guard both streams, so that no output of this process, of libraries or of --help can end it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Take the descriptor's number: the next file to be opened would get it, and with it all output.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = Stream(sys.stdout, stop), Stream(sys.stderr)


# Values in words -----------------------------------------------------------------------------------------------------


def shown(value: Any) -> Any:
    """A value of a file as a reader likes it; text, and what is markup already, stays as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(shown(part)) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    return "\u2013" if value in (None, "") else value


def written(value: Any, form: str, unit: str = "") -> str:
    """A number as its column writes it."""
    if value is None or form == "shown":
        return str(shown(value))
    if form == "percent":
        return f"{100 * value:.1f}{unit}"
    amount = value / 8e6 if form == "megabytes" else value
    return f"{amount:,.0f}{unit}" if abs(amount) >= 100 else f"{amount:.3g}{unit}"


def counted(number: int, what: str) -> str:
    """So many of something whose plural ends in s."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def sent(bits: int | None) -> str:
    """Bits as megabytes."""
    return written(bits, "megabytes", " MB")
