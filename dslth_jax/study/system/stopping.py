"""How a run is stopped: the first signal asks it to save and end, a second one ends the process at once."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

NOTICE = b"stopping when this round is saved; a second signal stops at once\n"
HEARD = ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1")  # a terminal that closes, Ctrl-C, an end that a scheduler announces
INSISTING = (signal.SIGINT, signal.SIGTERM)  # others come twice of themselves: of the terminal and of its shell


class StoppedError(BaseException):
    """A signal came; like KeyboardInterrupt, no handler of ordinary errors may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name, self.code = signal.Signals(number).name, 128 + number


class NotFiniteError(RuntimeError):
    """The loss or the scores have become nan or infinite."""


class Stop:
    """A handler of signals. A run looks between rounds whether a stop was asked for."""

    def __init__(self) -> None:
        self.asked: int | None = None  # which signal came
        self.later = False  # whether there is something to save first

    def __call__(self, number: int, _: object = None) -> None:
        """Take a signal: an exception at once where nothing is to be saved."""
        if self.asked is not None:
            if number in INSISTING:
                os._exit(128 + number)
            return
        self.asked = number
        if not self.later:
            raise StoppedError(number)
        # Write past Python's own buffers: the signal may have come in the middle of a line.
        if sys.__stdout__ is not None:
            with contextlib.suppress(OSError):
                os.write(1, NOTICE)

    def wish(self) -> None:
        """Ask the run to end after this round, because nobody reads its output any more."""
        self.asked = self.asked or signal.SIGPIPE

    def obey(self, anywhere: Callable[[bool], bool]) -> None:
        """After all is saved, raise a StoppedError if a signal came here or, as `anywhere` tells, in any process."""
        self.later = False
        if anywhere(self.asked is not None):
            raise StoppedError(self.asked or signal.SIGTERM)

    def listen(self) -> None:
        """Handle the signals of this process, but leave a SIGHUP ignored if it was (under nohup)."""
        for name in HEARD:
            number = getattr(signal, name, None)  # Windows has two of them
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, self)
