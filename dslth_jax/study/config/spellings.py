"""What the command spells or names a file of, and the library takes as arguments: "regular:8", "rotation:90", "cosine".

A table leads from a name to the function of the library that makes it, most often of the same name. The numbers behind
colons are this function's arguments, in its own order, but for those that every function of the table gets by name. So
a new kind is one function and one word here, or a line in a script: `GRAPHS["mine"] = my_generator`.
"""

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from dslth_jax import augment, bandwidth, budgets, depth_budgets, graphs, partition, schedules, skew
from dslth_jax.algorithm import belongs_to
from dslth_jax.augment import Augment
from dslth_jax.bandwidth import Trace
from dslth_jax.control import Controller
from dslth_jax.mixing import Topology, metropolis
from dslth_jax.naming import nearest
from dslth_jax.networks.network import Network
from dslth_jax.partition import Partition
from dslth_jax.schedules import Schedule
from dslth_jax.skew import Skew
from dslth_jax.study.data.bandwidth_files import read_bandwidths
from dslth_jax.study.data.graph_files import read_graph


def by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions by the spelling of their names."""
    return {function.__name__.replace("_", "-"): function for function in functions}


GRAPHS = by_name(
    graphs.erdos_renyi, graphs.ring, graphs.torus, graphs.star, graphs.complete, graphs.regular, graphs.small_world,
    graphs.changing_erdos_renyi, graphs.changing_regular,
)  # fmt: skip
PARTITIONS = by_name(partition.classes, partition.overlapping, partition.dirichlet, partition.quantity, partition.iid)
PARTITIONS["owner"] = partition.owned
SKEWS = {"none": lambda: Skew()} | by_name(skew.rotation, skew.noise)
AUGMENTATIONS: dict[str, Augment | None] = {"none": None} | by_name(augment.crop, augment.flip_crop)
SCHEDULES = {"constant": lambda: schedules.constant} | by_name(schedules.cosine, schedules.step, schedules.warm_up)

BANDWIDTHS = by_name(bandwidth.constant, bandwidth.lognormal, bandwidth.markov, bandwidth.collapse)
CONTROLLERS: dict[str, Callable[..., Controller]] = by_name(
    budgets.deadline, budgets.balance, budgets.bandit, budgets.prunefl, budgets.period, depth_budgets.depth
)


def topology_of(spelling: str, agents: int, seed: int, *, directed: bool = False, mixing: str = "uniform") -> Topology:
    """The graph of a spelling such as "ring", "regular:8", "changing-regular:4", or of a file, see `read_graph`.

    `seed` is of what is drawn once; graphs that change draw from the keys they are given. If `directed`, an agent may
    hear another that does not hear it. `mixing` "metropolis" weighs neighbours so, any other counts them alike. A
    ValueError where the spelling means nothing, or the graph cannot be.

    >>> topology_of("star", 3, seed=0).graph.receivers.tolist()
    [0, 0, 1, 2]
    """
    if mixing == "metropolis" and directed:
        raise ValueError("metropolis weights need an undirected graph: take uniform ones, or leave --directed out")
    name = spelling.partition(":")[0]
    if name in GRAPHS:
        takes = inspect.signature(GRAPHS[name]).parameters
        if directed and "directed" not in takes:
            raise ValueError(f"{name} has no directed form: leave --directed out")
        # A small population takes a smaller degree than the default.
        if spelling == name and "degree" in takes:
            spelling = f"{name}:{min(takes['degree'].default, agents - 1)}"
    if name not in GRAPHS and os.path.isfile(spelling):  # noqa: PTH113, which takes names that no file can have
        topology = read_graph(Path(spelling), agents, directed)
    else:
        given = {"agents": agents, "seed": seed, "directed": directed}
        topology = made("--topology", spelling, GRAPHS, " or a graph's file that exists", **given)
    if mixing != "uniform" and np.asarray(topology.graph.weights).dtype.kind == "f":
        raise ValueError(f"--mixing {mixing} weighs neighbours itself, and {spelling} has weights: leave --mixing out")
    return metropolis(topology) if mixing == "metropolis" else topology


def partition_of(spelling: str, **given: Any) -> Partition:
    """The partition of a spelling such as "classes:4", "dirichlet:0.3", "quantity:0.5" or "iid".

    `given` are labels, agents, seed and so on, as the functions of `PARTITIONS` take them. A ValueError where the
    spelling means nothing, or cannot be met.

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


def bandwidth_of(spelling: str, agents: int, seed: int) -> Trace:
    """The population's bandwidths of a spelling such as "constant:10" or "lognormal:10:0.5", or of a file or a folder.

    >>> bandwidth_of("constant:10", 2, seed=0).rates.tolist()
    [[10.0], [10.0]]
    """
    if spelling.partition(":")[0] not in BANDWIDTHS and os.path.exists(spelling):  # noqa: PTH110, which takes any name
        return bandwidth.recorded(agents, read_bandwidths(Path(spelling)))
    also = ", or a file or folder of bandwidths that exists"
    return made("--bandwidth", spelling, BANDWIDTHS, also, agents=agents, seed=seed)


def schedule_of(spelling: str, rounds: int) -> Schedule:
    """The schedule of a spelling, for a run of `rounds` rounds; "@" joins factors, and "" is constant.

    >>> float(schedule_of("warm-up:4@step:10:0.5", rounds=100)(1))
    0.5
    """
    factors = [made("schedule", part, SCHEDULES, rounds=rounds) for part in spelling.split("@") if part]
    return schedules.product(*factors)


def asks_for_rounds(spelling: str) -> bool:
    """Whether a value follows a schedule that asks how many rounds there are to be."""
    names = [part.partition(":")[0] for part in spelling.split("@")[1:]]
    known = (SCHEDULES[name] for name in names if name in SCHEDULES)
    return any("rounds" in inspect.signature(schedule).parameters for schedule in known)


def layers_of(spelling: str, network: Network) -> tuple[str, ...]:
    """Layers of a network: "none", "last" for its heads, or names with commas between them, such as "conv1,linear2".

    A ValueError where it has no such layer.
    """
    if spelling in ("none", "last"):
        return network.heads if spelling == "last" else ()
    names = tuple(word.strip() for word in spelling.split(","))
    known = list(dict.fromkeys(name.rpartition("/")[0] for name in network.roles))
    for name in names:
        if not any(belongs_to(leaf, name) for leaf in network.roles):
            instead = nearest(name, known)
            raise ValueError(f"--personal-layers must be none, last or among {', '.join(known)}, got {name!r}{instead}")
    if all(any(belongs_to(leaf, name) for name in names) for leaf in network.roles):
        raise ValueError(f"--personal-layers {spelling} leaves nothing to send: take --algorithm independent or local")
    return names


def made(what: str, spelling: str, known: Mapping[str, Callable[..., Any]], also: str = "", /, **given: Any) -> Any:
    """Call the function that `spelling` names in `known`, with its numbers and with those `given` arguments that it
    takes; a ValueError, which begins with `what`, where there is none (`also` is what else could be) or it raises one.
    """
    name, *words = spelling.split(":")
    if name not in known:
        forms = ", ".join(form(one, spelled(known[one], given)) for one in known)
        raise ValueError(f"{what} must be one of {forms}{also}, got {spelling!r}{nearest(name, known)}")
    takes, own = inspect.signature(known[name]).parameters, spelled(known[name], given)
    if not sum(one.default is one.empty for one in own) <= len(words) <= len(own):
        wanted = f"is spelled {form(name, own)}" if own else "takes no number"
        raise ValueError(f"{what} {name} {wanted}, got {spelling}")
    numbers = {one.name: number_of(f"{what} {name}", one, word) for one, word in zip(own, words, strict=False)}
    try:
        return known[name](**{key: value for key, value in given.items() if key in takes}, **numbers)
    except ValueError as error:
        raise ValueError(f"{what} {spelling}: {error}") from None


def spelled(makes: Callable[..., Any], given: Collection[str]) -> list[inspect.Parameter]:
    """The arguments that a spelling holds: those that may be given by place and are not in `given`."""
    parameters = inspect.signature(makes).parameters.values()
    return [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in given]


def number_of(whose: str, parameter: inspect.Parameter, word: str) -> float:
    """The number that a word spells, whole where the argument's type is."""
    whole = int in (parameter.annotation, *get_args(parameter.annotation))
    with contextlib.suppress(ValueError):
        number = float(word)
        if number.is_integer() or not (whole or math.isnan(number)):
            return int(number) if whole else number
    raise ValueError(f"{whose} takes a {'whole ' * whole}number for {parameter.name.upper()}, got {word!r}")


def form(name: str, own: Sequence[inspect.Parameter]) -> str:
    """How a spelling of this name looks, with optional parts in brackets: "step:EVERY[:FACTOR]"."""
    optional = [one.default is not one.empty for one in own]
    parts = [f"{'[' * may}:{one.name.upper()}" for may, one in zip(optional, own, strict=True)]
    return "".join([name, *parts, "]" * sum(optional)])
