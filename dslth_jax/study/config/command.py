"""What the commands share: flags as a dataclass, one sentence for what is wrong with them, and how a command ends."""

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import keyword
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

from dslth_jax.naming import nearest
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS, owners_of, with_own_settings
from dslth_jax.study.config.given import CONFIG, DOES, HELP, with_config
from dslth_jax.study.config.resolve import NAMES, check_each
from dslth_jax.study.config.setting import Setting, choices, described, flag, kinds, parts, read
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.system.console import Stream, guard
from dslth_jax.study.system.stopping import NotFiniteError, Stop, StoppedError

BAD_INPUT, NOT_FINITE = 2, 3
LONGEST_LINE = 1000  # characters of a sentence that are shown: whoever gave a whole file as a value wants its two ends
OUT_OF_MEMORY = "there is not enough memory: take fewer --agents, a smaller --agent-chunk, --batch-size or --model"
FLAG = re.compile(r"--\Z|(?!-(inf|infinity|nan)(=|\Z))-+[^\W\d_]", re.IGNORECASE)  # how a word starts that is no value
Kind = TypeVar("Kind")
# What other tools call it, and what it is here.
ELSEWHERE = {
    "--lr": ("learning_rate", "step_size", "eta"),
    "--rounds": ("epochs", "num_rounds", "steps", "iterations", "global_epochs"),
    "--agents": ("clients", "num_clients", "workers", "nodes", "num_agents", "users"),
    "--devices": ("gpus", "num_gpus", "num_devices"),
    "--local-steps": ("local_epochs", "local_iterations", "local_rounds"),
    "--batch-size": ("batch", "bs", "local_bs", "minibatch"),
    "--out": ("output", "output_dir", "save_dir", "logdir", "run_dir"),
    "--retention": ("sparsity", "density", "keep_ratio", "prune"),
    "--dirichlet-alpha": ("alpha", "dirichlet"),
    "--topology": ("graph", "network"),
    "--algorithm": ("method", "strategy", "algo"),
    "--resume": ("restore", "load_checkpoint"),
    "JAX_PLATFORMS=cuda, tpu or cpu in the environment": (
        "gpu",
        "device",
        "cuda",
        "no_cuda",
        "tpu",
        "cpu",
        "accelerator",
    ),
}


def conduct(
    program: str, begin: Callable[[], Any], finish: Callable[[Any, Stop], object], stop: Stop | None = None
) -> int:
    """Begin and finish the work of a command; returns its exit code, and says in one line what is wrong.

    `begin` reads the flags, checks everything that can be checked, then opens the folder. What it returns has `path`,
    the folder from which --resume goes on, or None; and `finished`, what to say if nothing is left to do, else empty.
    `finish` does the work: it gets what `begin` returned, and `stop`, at which it looks between rounds.
    """
    stop, path, kept = stop or Stop(), None, "; what was had is kept in {path}"
    try:
        begun = begin()
        if begun.finished:
            print(begun.finished, file=Stream(sys.stdout))
            return 0
        path = begun.path
        finish(begun, stop)
        return 0
    except StoppedError as stopped:
        said, code = f"stopped by {stopped.name}{'' if path else ' before anything was kept'}", stopped.code
        kept += "; --resume --out {path} goes on"
    except NotFiniteError as error:
        said, code = str(error), NOT_FINITE
    except (OSError, ValueError) as error:
        torn = f"the run folder {path} cannot be written to any more: " if path and isinstance(error, OSError) else ""
        said, code, kept = f"{torn}{error}", BAD_INPUT, ""
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):  # of this process, or a device
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        said, code = f"{OUT_OF_MEMORY} ({reason[:200]})", BAD_INPUT
    said += kept.format(path=path) if path else ""
    line = f"{program}: {' '.join(said.split())}"
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(line, file=Stream(sys.stderr))
    return code


def act(
    kind: type[Kind],
    do: Callable[[Kind], str],
    program: str,
    arguments: Sequence[str] | None = None,
    stop: Stop | None = None,
) -> int:
    """Run a command that trains nothing: `do` takes its flags, and returns what is said at its end."""

    def begin() -> SimpleNamespace:
        settings = parse(arguments, kind, program)
        check_each(settings)
        return SimpleNamespace(settings=settings, finished="", path=None)

    return conduct(
        program,
        begin,
        lambda begun, stop: print(do(begun.settings), file=Stream(sys.stdout, stop)),
        stop,
    )


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


def parse(arguments: Sequence[str] | None, kind: type[Kind], program: str) -> Kind:
    """The flags as settings of a kind, without `arguments` those of the process; a ValueError of one line where they
    are wrong: what was expected, what came, and what to do. --help shows all of them and ends the command.

    What has no default must be said; where several such values can be, they stand without a flag.
    """
    kind = with_own_settings(kind) if issubclass(kind, Settings) else kind
    known, words = described(kind), list(sys.argv[1:] if arguments is None else arguments)
    of_file, words, file = with_config(words, known) if issubclass(kind, Settings) else ([], words, "")
    needed = [name for name, own in known.items() if own.default is dataclasses.MISSING]
    positional = next(filter(stands_alone(kind), known), None)
    try:
        values = values_of(of_file, kind, program, positional)
    except ValueError as error:
        raise ValueError(f"{CONFIG} {file}: {error}") from None
    values |= values_of(words, kind, program, positional)
    if missing := [name for name in needed if name not in values]:
        wanted = kinds(known[missing[0]].hint)
        if missing[0] == positional:
            raise ValueError(f"{wanted} was expected behind the command, got none: name one; --help says more")
        raise ValueError(f"{flag(missing[0])} must be said, {wanted}; --help says more")
    return kind(**values)


def stands_alone(kind: type) -> Callable[[str], bool]:
    """Of a kind, whether a field is of several values that must be said, which stand without a flag."""
    known = described(kind)
    return lambda name: known[name].several and known[name].default is dataclasses.MISSING


def values_of(words: Sequence[str], kind: type, program: str, positional: str | None) -> dict[str, Any]:
    """The values that words say of the fields of a kind, of which `positional` needs no flag; see `parse`."""
    known, words, values = described(kind), [*words], dict[str, Any]()
    switches = [name for name, own in known.items() if bool in parts(own.hint)]
    while words:
        word = words.pop(0)
        if word in HELP:
            print((short_help_of if word == "-h" else help_of)(kind, program))
            raise SystemExit(0)
        if positional and not word.startswith("-"):
            word = f"{flag(positional)}={word}"
        if not word.startswith("--") or word == "--":
            instead = (nearest(word, map(flag, known)) if word.strip("-") else "") or "; --help lists all"
            raise ValueError(f"a flag was expected, got {word!r}: every value stands behind its flag{instead}")
        spelled, equals, value = word.partition("=")
        if spelled in HELP:
            raise ValueError(f"{spelled} takes no value, got {value!r}: say {spelled} alone")
        said = spelled[2:].replace("-", "_") + "_" * keyword.iskeyword(spelled[2:])
        name = said if said in known else said.removeprefix("no_")
        if said not in known and name not in switches:
            instead = here(said) or nearest(spelled, map(flag, known)) or "; --help lists all"
            raise ValueError(f"there is no flag {spelled}{instead}")
        if not equals and words and not FLAG.match(words[0]):
            equals, value = "=", words.pop(0)
        # What a preset sets where it is left out may be said as a value too.
        is_open = name == said and type(None) in parts(known[name].hint) and value in ("True", "False", "None")
        if name in switches and not equals:
            values[name] = name == said
        elif name in switches and not is_open:
            raise ValueError(f"{flag(name)} takes no value, got {value!r}: say {flag(name)} or {flag(f'no_{name}')}")
        elif not equals:
            instead = f", got the flag {words[0]}" if words else ""
            raise ValueError(f"{flag(name)} needs a value behind it: {kinds(known[name].hint)}{instead}")
        else:
            one = read(name, value, known[name].hint)
            values[name] = (*values.get(name, ()), one) if known[name].several else one
    return values


def here(name: str) -> str:
    """What a flag of other tools is called here, as the end of a sentence; empty if it is none that is known.

    >>> here("learning_rate"), here("agnets")
    ('; here it is --lr', '')
    """
    return next((f"; here it is {ours}" for ours, theirs in ELSEWHERE.items() if name in theirs), "")


def short_help_of(kind: type, program: str) -> str:
    """What -h says: every flag with its default, a paragraph a group."""
    groups: dict[str, list[str]] = {}
    alone = stands_alone(kind)
    for name, known in described(kind).items():
        said = isinstance(known.default, str | int | float | Path) and not isinstance(known.default, bool)
        default = f" {known.default}" if said else ""
        needed = f" {metavar_of(known)}" if known.default is dataclasses.MISSING else ""
        word = f"{metavar_of(known)} ..." if alone(name) else f"{flag(name)}{default or needed}"
        groups.setdefault(known.group, []).append(word.replace(" ", "\0"))
    if issubclass(kind, Settings):
        next(iter(groups.values())).append(f"{CONFIG}\0PATH")
    wrap = functools.partial(textwrap.fill, width=80, initial_indent="  ", subsequent_indent="  ")
    shown = [f"{group}\n{wrap(', '.join(flags), break_on_hyphens=False)}" for group, flags in groups.items()]
    first = textwrap.fill((inspect.getdoc(kind) or "").partition("\n\n")[0], width=80)
    behind = f"{program if ' ' in program else f'python -m {program}'} --help says what each does."
    return "\n\n".join([first, *shown, behind]).replace("\0", " ")


def help_of(kind: type, program: str) -> str:
    """What --help says: every flag in its group, with default, unit and bounds, and whose it is."""
    alone = stands_alone(kind)
    first = [f"{metavar_of(known)} ... " for name, known in described(kind).items() if alone(name)]
    parser = argparse.ArgumentParser(
        program if " " in program else f"python -m {program}",
        f"%(prog)s {''.join(first)}[--FLAG VALUE ...]",
        inspect.getdoc(kind),
        add_help=False,
    )
    if issubclass(kind, Settings):
        parser.add_argument(CONFIG, metavar="PATH", help=DOES)
    documents, group_of = documents_of(kind), functools.cache(parser.add_argument_group)
    for name, known in described(kind).items():
        text = f"{documents.get(name, '')} {said_of(known)}".replace("%", "%%")
        more: dict[str, Any] = {"action": "store_true"} if bool in parts(known.hint) else {"metavar": metavar_of(known)}
        group_of(known.group).add_argument(name if alone(name) else flag(name), help=text, **more)
    return parser.format_help()


def metavar_of(known: Setting) -> str:
    """What stands for the value of a flag."""
    among = choices(known.hint) or list(NAMES.get(known.name, ()))
    return "{" + ",".join(among) + "}" if among else (known.unit or kinds(known.hint).split()[-1]).upper()


def said_of(known: Setting) -> str:
    """The rest of a flag's help: bounds, default, what presets and algorithms make of it, and whose it is."""
    said = [f"In {known.bounds}."] if known.bounds.startswith(("[", "(")) else []
    said.append("(must be said)" if known.default is dataclasses.MISSING else f"(default: {known.default})")
    rows = {name: row.defaults for name, row in ALGORITHMS.items()}
    for whose, defaults in (("preset", PRESETS), ("algorithm", rows)):
        if own := [f"{name} {values[known.name]}" for name, values in defaults.items() if known.name in values]:
            said.append(f"By {whose}: {', '.join(own)}.")
    if known.name == "algorithm":
        said.append("; ".join(f"{name}: {row.does}, sends {row.sends}" for name, row in ALGORITHMS.items()) + ".")
    # What must be said is no setting of a run, though one may be called so, such as --images.
    owners = [] if known.default is dataclasses.MISSING else owners_of(known.name)
    said += [f"For {', '.join(owners)}."] if 0 < len(owners) < len(ALGORITHMS) else []
    return " ".join(said)


def documents_of(kind: type) -> dict[str, str]:
    """The docstring below each field of a class and of its bases."""
    found: dict[str, str] = {}
    for one in (
        one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one) and inspect.get_annotations(one)
    ):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
