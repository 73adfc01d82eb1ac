"""Train many personalized agents by MCE-PL: the main job.

    python -m experiments.cifar --agents 64 --rounds 20

On CIFAR-10 by default; `--dataset digits` needs no download. From Python:

    from experiments.cifar import Settings, run
    result = run(Settings(dataset="digits", agents=16, rounds=50))
"""

import contextlib
import io
import re
import signal
import sys
from collections.abc import Sequence

from experiments.record import create_folder
from experiments.run import NotFiniteError, prepare, run, train
from experiments.settings import Settings

__all__ = ["Settings", "main", "run"]

BAD_INPUT, NOT_FINITE, INTERRUPTED, TERMINATED = 2, 3, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        prepared = prepare(settings)
        folder = create_folder(settings)
    except (ValueError, OSError) as error:
        return complain(" ".join(str(error).split()), BAD_INPUT)
    except KeyboardInterrupt:
        return complain("stopped before the first round", INTERRUPTED)
    try:
        train(prepared, folder)
    except NotFiniteError as error:
        return complain(str(error), NOT_FINITE)
    except KeyboardInterrupt:
        return complain("stopped; the rows that were evaluated are kept in the run folder", INTERRUPTED)
    return 0


def complain(sentence: str, code: int) -> int:
    """Say one line on the error stream; returns the exit code."""
    print(f"experiments.cifar: {sentence}", file=sys.stderr)
    return code


def parse(arguments: Sequence[str]) -> Settings:
    """The flags as settings; a ValueError of one line where they are wrong."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Settings, args=arguments, prog="python -m experiments.cifar")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(condense(said.getvalue())) from None


def condense(boxed: str) -> str:
    """One line from the parser's boxed message, which says what was wrong, what is expected, and where help is."""
    lines = (re.sub(r"[╭╮╰╯│─]", " ", line).strip() for line in boxed.splitlines()[1:])
    return " ".join(line for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
