"""A command as a process of its own, which is watched, and stopped at a signal or at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dslth_jax.study.system.stopping import Stop

GRACE = 300.0  # seconds for a round to end and be saved
BY_A_SIGNAL, OUT_OF_TIME = "by a signal", "at the budget's end"  # why a process is asked to stop
PAUSE = 0.1  # seconds between two looks
# A program that asks for a signal and then becomes the command: a fork of this process must run no code of ours, since
# JAX has threads. The 1 is PR_SET_PDEATHSIG of <linux/prctl.h>.
TYING = (sys.executable, "-ISc", """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
""")  # fmt: skip


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # its exit code, minus a signal's number where it was killed
    seconds: float
    stopped: str  # why it was asked to stop before it had come to its end; empty where it was not


def run(words: Sequence[str], log: Path, until: float, stop: Stop, say: Callable[[str], None]) -> Ended:
    """Run a command to its end, with both of its streams in a file, and tell `say` what is new there.

    At a signal, as `stop` has it, or at the time `until` of the monotonic clock, the process is asked once to save and
    end (SIGTERM), and is killed if it does not within some minutes. It is in a session of its own, so that a Ctrl-C
    reaches it by this process alone: a second signal would end it at once. Where this process is killed itself, Linux
    asks the other one to save and end. A command that cannot be started ends with code 1 on Linux, and raises an
    OSError elsewhere.
    """
    began, asked, why = time.monotonic(), None, ""
    heard_at_once = {**os.environ, "PYTHONUNBUFFERED": "1"}
    log.write_bytes(b"")
    # Each appends: one from before that is still about to end must not leave holes.
    with log.open("ab") as written, log.open("rb") as read:
        child = subprocess.Popen(
            tied(words),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=heard_at_once,
            start_new_session=True,
        )
        try:
            while True:
                code = child.poll()
                say(read.read().decode(errors="replace"))
                if code is not None:
                    return Ended(code, time.monotonic() - began, why if code else "")
                now = time.monotonic()
                if asked is None and (stop.asked is not None or now >= until):
                    asked, why = now, OUT_OF_TIME if stop.asked is None else BY_A_SIGNAL
                    child.send_signal(signal.SIGTERM)
                elif asked is not None and now > asked + GRACE:
                    child.kill()
                time.sleep(PAUSE)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def tied(words: Sequence[str]) -> list[str]:
    """A command by way of another that asks Linux to send it SIGTERM when this process is gone; elsewhere as it is."""
    return [*TYING, str(os.getpid()), *words] if sys.platform == "linux" else [*words]


def last_line(log: Path) -> str:
    """The last line that is not empty, of what a process wrote; in words where there is none."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
