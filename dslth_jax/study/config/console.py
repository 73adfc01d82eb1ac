"""Where words go. A stream that is closed, full or gone ends no run."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from dslth_jax.study.config.stopping import Stop


class Stream(io.TextIOBase):
    """A text stream over another one, or over None: it drops what cannot be written, and raises nothing.

    A character that the other's encoding lacks becomes a question mark. If the reader of the other is gone (a broken
    pipe), `stop` is asked to end the run.
    """

    def __init__(self, over: Any, stop: "Stop | None" = None) -> None:
        self.over, self.stop = over, stop

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the other stream."""
        return getattr(self.over, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self.over is not None:
            with self.forgiving():
                self.over.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        if self.over is not None:
            with self.forgiving():
                self.over.flush()

    @contextlib.contextmanager
    def forgiving(self) -> Any:
        """Drop what cannot be written; take a broken pipe for a wish to stop."""
        try:
            yield
        except BrokenPipeError:
            self.over = None
            if self.stop:
                self.stop.wish()
        except (OSError, ValueError):  # a full disk, a terminal that hung up, a closed file
            pass

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self.over is not None and self.over.isatty()

    def fileno(self) -> int:
        """The descriptor of the other stream; an OSError where there is none."""
        return super().fileno() if self.over is None else self.over.fileno()

    def writable(self) -> bool:
        """Always."""
        return True


def console(stop: "Stop | None" = None, *, quiet: bool = False) -> Console:
    """The console on which a command, or a function called from Python, says how it goes."""
    file: Any = Stream(sys.stdout, stop)
    return Console(file=file, quiet=quiet)


def warn(sentence: str) -> None:
    """Say one line that asks for attention and ends nothing."""
    print(f"warning: {sentence}", file=Stream(sys.stderr))


def guard(stop: "Stop") -> None:
    """Guard both streams, so that no output of this process, of libraries or of --help can end it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Take the descriptor's number: the next file to be opened would get it, and with it all output.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = Stream(sys.stdout, stop), Stream(sys.stderr)
