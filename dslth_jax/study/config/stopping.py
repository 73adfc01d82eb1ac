"""Signals: the first asks a run to save and end, the second ends the process at once."""

import os
import signal
from types import FrameType

NOTICE = b"stopping when this round is saved; a second signal stops at once\n"


class StoppedError(BaseException):
    """SIGINT or SIGTERM came; like KeyboardInterrupt, no handler of ordinary errors may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name, self.code = signal.Signals(number).name, 128 + number


class Stop:
    """A handler of signals, and the wish that a run looks at between rounds."""

    def __init__(self) -> None:
        self.asked: int | None = None  # which signal came
        self.later = False  # whether there is something to save first

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal: an exception at once where nothing is to be saved."""
        del frame
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number
        if not self.later:
            raise StoppedError(number)
        # Write past Python's own buffers: the signal may have come in the middle of a line.
        os.write(1, NOTICE)

    def listen(self) -> None:
        """Take the signals of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)
