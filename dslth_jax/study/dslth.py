"""The commands by name: `dslth run --agents 64`, or `python -m dslth_jax run --agents 64`."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from dslth_jax import __version__
from dslth_jax.naming import nearest

# What each does; the module and the function that do it.
COMMANDS = {
    "run": ("train many personalized agents: a single run", "dslth_jax.study.commands", "single"),
    "sweep": ("train many settings at once, or search for good ones", "dslth_jax.study.commands", "sweeping"),
    "report": ("one page of HTML for run folders, or for that of a sweep", "dslth_jax.study.results.report", "main"),
    "predict": ("the labels that an agent of a run gives to images", "dslth_jax.study.results.predict", "main"),
    "export": ("agents of a run as files that run elsewhere", "dslth_jax.study.results.export", "main"),
    "board": ("the metrics of run folders as event files", "dslth_jax.study.results.board", "main"),
}
# Packages of the extra `experiments`, by the names under which they are imported.
NEEDED = ["constriction", "jinja2", "matplotlib", "networkx", "orbax", "pandas", "PIL", "pooch", "psutil", "rich"]
NEEDED += ["safetensors", "sklearn", "tensorflow_datasets", "yaml"]
EXTRA = "pip install 'dslth-jax[experiments]'"
HELP = ("-h", "--help", "help")


def missing() -> list[str]:
    """The packages that the commands need and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def overview() -> str:
    """What --help says."""
    names = "\n".join(f"    {name:<8}{does}" for name, (does, *_) in COMMANDS.items())
    return f"dslth COMMAND [--FLAG VALUE ...]\n\n{names}\n\ndslth COMMAND --help shows a command's flags."


def refusal(name: str) -> str:
    """Why a command cannot be run, in one line; empty if it can."""
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or f": one of {', '.join(COMMANDS)}"
        return f"dslth: there is no command {name!r}{hint}"
    if absent := missing():
        return f"dslth {name}: {', '.join(absent)} must be installed first: {EXTRA}"
    return ""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that the words name (those of the process where they are left out).

    Returns the exit code of --version, --help and of what is refused; a command ends the process with its own.
    """
    name, *flags = (sys.argv[1:] if words is None else words) or ["help"]
    if name in HELP or name == "--version":
        print(__version__ if name == "--version" else overview())
        return 0
    if refused := refusal(name):
        print(refused, file=sys.stderr)
        return 2
    _, module, function = COMMANDS[name]
    leave = import_module("dslth_jax.study.config.command").leave
    return leave(partial(getattr(import_module(module), function), f"dslth {name}", flags))
