"""Train many personalized agents by MCE-PL: the main job.

    python -m experiments.cifar --agents 64 --rounds 20

Expect about 32 % mean accuracy (4 of 10 classes an agent; 31.7 % by version 0.0.1) in 11 minutes on two cores: 20 s a
round, 17 s of compilation, 4 minutes of evaluation. CIFAR-10 by default; `--dataset digits` needs no download. From
Python:

    from experiments.cifar import Settings, run
    result = run(Settings(dataset="digits", agents=16, rounds=50))
"""

import sys
from collections.abc import Sequence

from dslth_jax.study.config import command
from dslth_jax.study.config.command import BAD_INPUT, NOT_FINITE
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.stopping import NotFiniteError, Stop, StoppedError
from dslth_jax.study.training.loop import ready, run, train

__all__ = ["Settings", "main", "run"]
PROGRAM = "experiments.cifar"


def main(arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    folder = None
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        begun = ready(settings)
        folder = begun.checkpoints.parent
    except (ValueError, OSError) as error:
        return complain(error, BAD_INPUT)
    except StoppedError as stopped:
        return complain(f"stopped by {stopped.name} before the first round", stopped.code)
    if begun.finished:
        print(begun.finished)
        return 0
    try:
        train(begun, stop)
    except NotFiniteError as error:
        return complain(f"{error}; what was had is kept in {folder}", NOT_FINITE)
    except OSError as error:
        return complain(f"the run folder {folder} cannot be written to any more: {error}", BAD_INPUT)
    except ValueError as error:
        return complain(error, BAD_INPUT)
    except StoppedError as stopped:
        again = f"; --resume --out {folder} goes on" if stop and stop.later else ""
        return complain(f"stopped by {stopped.name}; what was had is kept in {folder}{again}", stopped.code)
    return 0


def parse(arguments: Sequence[str]) -> Settings:
    """The flags as settings; a ValueError of one line where they are wrong."""
    return command.parse(arguments, Settings, PROGRAM)


def complain(sentence: object, code: int) -> int:
    """Say one line on the error stream; returns the exit code."""
    return command.complain(PROGRAM, sentence, code)


if __name__ == "__main__":
    command.leave(main)
