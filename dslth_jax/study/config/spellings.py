"""What the command spells and the library takes as arguments: "regular:8", "dirichlet:0.3", "rotation:90", "cosine".

A table leads from a name to the function of the library that makes it. The numbers behind colons are this function's
arguments, in its own order, but for those that every function of the table gets by name. So a new kind is one function
and one line here, or in a script: `GRAPHS["mine"] = my_generator`.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from dslth_jax import graphs, partition, schedules, skew
from dslth_jax.graphs import Topology, graph_of, metropolis
from dslth_jax.naming import nearest
from dslth_jax.partition import Partition
from dslth_jax.schedules import Schedule
from dslth_jax.skew import Skew
from dslth_jax.study.config.files import read_adjacency

GRAPHS: dict[str, Callable[..., Topology]] = {
    "erdos-renyi": graphs.erdos_renyi,
    "ring": graphs.ring,
    "torus": graphs.torus,
    "star": graphs.star,
    "complete": graphs.complete,
    "regular": graphs.regular,
    "small-world": graphs.small_world,
    "changing-erdos-renyi": graphs.changing_erdos_renyi,
    "changing-regular": graphs.changing_regular,
}
PARTITIONS: dict[str, Callable[..., Partition]] = {
    "classes": partition.classes,
    "dirichlet": partition.dirichlet,
    "quantity": partition.quantity,
    "iid": partition.iid,
}
SKEWS: dict[str, Callable[..., Skew]] = {"none": lambda: Skew(), "rotation": skew.rotation, "noise": skew.noise}
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": lambda: schedules.constant,
    "cosine": schedules.cosine,
    "step": schedules.step,
    "warm-up": schedules.warm_up,
}


def topology_of(spelling: str, agents: int, seed: int, *, directed: bool = False, mixing: str = "uniform") -> Topology:
    """The graph of a spelling such as "ring", "regular:8", "changing-regular:4", or of an adjacency text file.

    Args:
        spelling: a key of `GRAPHS` with its numbers behind colons, or a path.
        agents: how many.
        seed: of what is drawn once; graphs that change draw from the keys they are given.
        directed: whether an agent may hear another that does not hear it.
        mixing: "uniform" counts every neighbour alike, "metropolis" gives links the weights of `metropolis`.

    Raises:
        ValueError: a spelling that means nothing, or a graph that cannot be.

    >>> topology_of("star", 3, seed=0).graph.receivers.tolist()
    [0, 0, 1, 2]
    """
    if mixing == "metropolis" and directed:
        raise ValueError("metropolis weights need an undirected graph: take uniform ones, or leave --directed out")
    name, given = spelling.partition(":")[0], {"agents": agents, "seed": seed, "directed": directed}
    if name in GRAPHS:
        takes = inspect.signature(GRAPHS[name]).parameters
        if directed and "directed" not in takes:
            raise ValueError(f"{name} has no directed form: leave --directed out")
        # A small population takes a smaller degree than the default.
        if spelling == name and "degree" in takes:
            spelling = f"{name}:{min(takes['degree'].default, agents - 1)}"
        topology = made("--topology", spelling, GRAPHS, **given)
    elif is_file(spelling):
        topology = Topology(graph_of(read_adjacency(Path(spelling), agents, directed)))
    else:
        raise unknown("--topology", spelling, GRAPHS, given, " or an adjacency file that exists")
    return metropolis(topology) if mixing == "metropolis" else topology


def partition_of(spelling: str, **given: Any) -> Partition:
    """The partition of a spelling such as "classes:4", "dirichlet:0.3", "quantity:0.5" or "iid".

    Args:
        spelling: a key of `PARTITIONS` with its number behind a colon.
        given: labels, agents, seed, test_labels, fraction and among, as the functions of `dslth_jax.partition` take
            them.

    Raises:
        ValueError: a spelling that means nothing, or a request that cannot be met.

    >>> import numpy as np
    >>> [len(own) for own in partition_of("iid", labels=np.array([0, 0, 1, 1, 2, 2]), agents=2, seed=0).train]
    [3, 3]
    """
    return made("--partition", spelling, PARTITIONS, **given)


def skew_of(spelling: str, agents: int) -> Skew:
    """The population's skew of a spelling such as "none", "rotation:90" or "noise:40".

    >>> skew_of("rotation:90", 5).degrees.tolist()
    [0.0, 90.0, 180.0, 270.0, 0.0]
    """
    return made("--feature-skew", spelling, SKEWS, agents=agents)


def schedule_of(spelling: str, rounds: int) -> Schedule:
    """The schedule of a spelling, for a run of `rounds` rounds; "@" joins factors, and "" is constant.

    >>> float(schedule_of("warm-up:4@step:10:0.5", rounds=100)(1))
    0.5
    """
    return schedules.product(
        *(made("schedule", part, SCHEDULES, rounds=rounds) for part in spelling.split("@") if part)
    )


def made(what: str, spelling: str, known: Mapping[str, Callable[..., Any]], **given: Any) -> Any:
    """Call the function that `spelling` names in `known`, with those `given` arguments that it takes and with its
    numbers."""
    name, *words = spelling.split(":")
    if name not in known:
        raise unknown(what, spelling, known, given)
    makes, own = known[name], numbers_of(known[name], given)
    if not sum(one.default is one.empty for one in own) <= len(words) <= len(own):
        wanted = f"is spelled {form(name, makes, given)}" if own else "takes no number"
        raise ValueError(f"{what} {name} {wanted}, got {spelling}")
    numbers = {one.name: number_of(f"{what} {name}", one, word) for one, word in zip(own, words, strict=False)}
    takes = inspect.signature(makes).parameters
    try:
        return makes(**{key: value for key, value in given.items() if key in takes}, **numbers)
    except ValueError as error:
        raise ValueError(f"{what} {spelling}: {error}") from None


def numbers_of(makes: Callable[..., Any], given: Collection[str]) -> list[inspect.Parameter]:
    """The arguments that are spelled: those that may be given by place and are not in `given`."""
    parameters = inspect.signature(makes).parameters.values()
    return [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in given]


def number_of(whose: str, parameter: inspect.Parameter, word: str) -> float:
    """The number that a word spells, whole where the argument's type is."""
    whole = parameter.annotation is int or int in get_args(parameter.annotation)
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if math.isnan(number) or (whole and not number.is_integer()):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{whose} takes {kind} for {parameter.name.upper()}, got {word!r}")
    return int(number) if whole else number


def form(name: str, makes: Callable[..., Any], given: Collection[str]) -> str:
    """How a spelling of this name looks, with optional parts in brackets: "step:EVERY[:FACTOR]"."""
    own = numbers_of(makes, given)
    left_out = sum(one.default is not one.empty for one in own)
    parts = [f":{one.name.upper()}" if one.default is one.empty else f"[:{one.name.upper()}" for one in own]
    return name + "".join(parts) + "]" * left_out


def unknown(
    what: str, spelling: str, known: Mapping[str, Callable[..., Any]], given: Collection[str], also: str = ""
) -> ValueError:
    """The error for a name that is not known."""
    forms = ", ".join(form(name, makes, given) for name, makes in known.items())
    suggested = nearest(spelling.partition(":")[0], known)
    return ValueError(f"{what} must be one of {forms}{also}, got {spelling!r}{suggested}")


def is_file(spelling: str) -> bool:
    """Whether a path leads to a file. One that is too long, or has characters that no name has, does not."""
    with contextlib.suppress(OSError, ValueError):
        return Path(spelling).is_file()
    return False
