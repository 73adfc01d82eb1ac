"""The traced numbers of an algorithm, one for every agent, from how settings spell them; counts of retentions."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dslth_jax.depth import absent, kept_without
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network, map_layers, of_role
from dslth_jax.retention import Policy, erk_kept, kept_by_policy
from dslth_jax.schedules import Schedule, constant, product
from dslth_jax.study.config import spellings
from dslth_jax.study.config.algorithms import ALGORITHMS
from dslth_jax.study.config.setting import flag, within
from dslth_jax.study.config.settings import Settings


class Number(NamedTuple):
    """A setting with a value for every agent, and the schedule that the values follow."""

    values: np.ndarray  # (agents,) of float64
    schedule: Schedule


def numbers_of(settings: Settings) -> dict[str, Number]:
    """The traced numbers of the algorithm, and its retentions, by name; of settings that are resolved.

    Raises a ValueError if one is no number, or leaves its bounds.
    """
    row, known = ALGORITHMS[settings.algorithm], settings.known
    own = [name for name in known if name in row.flags and (known[name].scheduled or name in row.hyper._fields)]
    dropped = {"linear_retention"} if settings.retention_policy != "fixed-linear" else set()
    return {name: number_of(settings, name) for name in own if name not in dropped}


def number_of(settings: Settings, name: str) -> Number:
    """The values of a setting that is spelled VALUE or VALUE@SCHEDULE, of a retention also otherwise, see
    `numbers_in`."""
    given, bounds = vars(settings), settings.known[name].bounds
    text, at, spelling = str(given[name]).partition("@")
    # Linear layers may have a retention for each agent, as all layers may.
    several = name.endswith("retention") and given[name] == settings.retention
    values = numbers_in(name, text, settings.agents, settings.seed if several else None)
    if bounds and not (inside := within(values, bounds)).all():
        agent = int(np.argmin(inside))
        whose = f" for agent {agent}" if several else ""
        raise ValueError(f"{flag(name)} must be in {bounds}, got {values[agent]:g}{whose}")
    if at and not spelling:
        raise ValueError(f"{flag(name)} must have a schedule behind its @, such as 10@cosine, got none: say one")
    try:
        schedule = spellings.schedule_of(spelling, settings.rounds)
    except ValueError as error:
        raise ValueError(f"{flag(name)}: {error}") from None
    if bounds.endswith(("1]", "1)")) and schedule is not constant:
        # A schedule may raise it: look at a thousand rounds.
        rounds = jnp.asarray(np.linspace(0, settings.rounds - 1, 1000).astype(np.int32))
        peak = values.max() * float(jnp.max(jax.vmap(schedule)(rounds)))
        if peak > 1 + 1e-6 or (peak >= 1 and bounds.endswith(")")):
            raise ValueError(f"{flag(name)} must stay in {bounds}, and its schedule raises it to {peak:.3g}")
    return Number(values, schedule)


DEALT = "dealt:"


def numbers_in(name: str, text: str, agents: int, seed: int | None) -> np.ndarray:
    """One number an agent, from a number or, where a `seed` says that each may have its own, also from

    - a list, 0.1,0.3,0.5 or 0.1*5,0.3*15, of one number for each agent in turn;
    - a range, LOW:HIGH;
    - what is dealt by the seed, dealt:LIST: a list of as many numbers as there are agents in another order, or of fewer
      numbers, each of which as many agents have as each other's, as nearly as that goes.
    """
    several = seed is not None
    wanted = "a number, a comma list such as 0.1,0.3 or 0.1*5,0.3*15, low:high or dealt:LIST"
    wanted = wanted if several else "a number, or one with a schedule such as 10@cosine"
    is_dealt = several and text.startswith(DEALT)
    try:
        if several and ":" in text and not is_dealt:
            low, high = map(float, text.split(":"))
            # The range is checked later; until then infinities are no cause for warnings.
            with np.errstate(all="ignore"):
                return np.linspace(low, high, agents)
        groups = [group_of(word) for word in (text.removeprefix(DEALT) if is_dealt else text).split(",")]
        if not several and (len(groups) > 1 or "*" in text):
            raise ValueError
    except ValueError:
        raise ValueError(f"{flag(name)} must be {wanted}, got {text!r}") from None
    total, may_spread = sum(many for _, many in groups), is_dealt and "*" not in text
    if total != agents and not (may_spread and total < agents) and (is_dealt or total != 1):
        most = "at most " if may_spread else ""
        raise ValueError(f"{flag(name)} must give {most}one number for each of {agents} agents, got {total}")
    values = np.repeat([value for value, _ in groups], [many for _, many in groups])
    return dealt(values, agents, int(seed or 0)) if is_dealt else np.full(agents, values)


def group_of(word: str) -> tuple[float, int]:
    """The number that a word of a list spells, and how many agents have it: 0.1 or 0.1*5."""
    value, times, many = word.partition("*")
    number = int(many) if times else 1
    if number < 1:
        raise ValueError
    return float(value), number


def dealt(values: np.ndarray, agents: int, seed: int) -> np.ndarray:
    """The values, dealt to agents at random by a run's seed: each goes to as many agents as any other, or to one more.

    >>> dealt(np.array([0.1, 0.5]), 4, seed=0).tolist()
    [0.1, 0.5, 0.5, 0.1]
    """
    own = np.random.default_rng([seed, 3])  # its own, so that nothing else is drawn otherwise
    every = values if len(values) == agents else np.resize(own.permutation(values), agents)
    return own.permutation(every)


def population_hyper(settings: Settings, network: Network) -> tuple[Any, Any]:
    """The traced settings, one value an agent, and the schedule of each; of settings that are resolved."""
    numbers, kind = numbers_of(settings), ALGORITHMS[settings.algorithm].hyper
    values: dict[str, Any] = {name: np.array(number.values, np.float32) for name, number in numbers.items()}
    schedules: dict[str, Any] = {name: number.schedule for name, number in numbers.items()}
    if "kept" in kind._fields:
        by_scores = ALGORITHMS[settings.algorithm].by_scores
        policy = settings.retention_policy if by_scores else None
        blocks = lacking(settings, network)
        if settings.controller == "depth":  # which begins with all of them
            blocks = [()] * settings.agents
        values["kept"], schedules["kept"] = population_kept(numbers, network, policy, blocks)
    if settings.group_lasso_strength == "relative" and "group_lasso" in schedules:
        schedules["group_lasso"] = product(schedules["group_lasso"], schedules["lr"])
    return kind(*(values[name] for name in kind._fields)), kind(*(schedules[name] for name in kind._fields))


def targets_of(settings: Settings) -> np.ndarray | None:
    """The share of its channels that each agent is to be left with, (agents,); None where nobody aims at one. A
    ValueError if one is no share."""
    if settings.target_channels is None:
        return None
    name = "target_channels"
    targets = numbers_in(name, str(settings.target_channels), settings.agents, settings.seed)
    bounds = settings.known[name].bounds
    if not (inside := within(targets, bounds)).all():
        agent = int(np.argmin(inside))
        raise ValueError(f"{flag(name)} must be in {bounds}, got {targets[agent]:g} for agent {agent}")
    return targets.astype(np.float32)


def depths_of(settings: Settings) -> list[int] | None:
    """How many residual blocks each agent has; None where all have all."""
    if settings.depth is None:
        return None
    depths = numbers_in("depth", str(settings.depth), settings.agents, settings.seed)
    if ":" in str(settings.depth) and DEALT not in str(settings.depth):
        depths = np.rint(depths)  # between the ends of a range
    if not (whole := np.isfinite(depths) & (depths == np.rint(depths))).all():
        raise ValueError(f"--depth must be whole numbers of residual blocks, got {depths[np.argmin(whole)]:g}")
    if not (inside := within(depths, bounds := settings.known["depth"].bounds)).all():
        raise ValueError(f"--depth must be in {bounds}, got {depths[np.argmin(inside)]:g}")
    return depths.astype(int).tolist()


def may_lack_layers(settings: Settings) -> bool:
    """Whether agents may lack residual blocks, at the start or later."""
    return settings.depth is not None or settings.controller == "depth"


def lacking(settings: Settings, network: Network) -> list[tuple[str, ...]]:
    """The residual blocks that each agent lacks; a ValueError if the network has none, or not so many."""
    try:
        depths = depths_of(settings) or []
        return [absent(network.stages, depth) for depth in depths] or [()] * settings.agents
    except ValueError as error:
        raise ValueError(f"--model {settings.model}: {error}") from None


def population_kept(
    numbers: Mapping[str, Number], network: Network, policy: Policy | None, lacking: Sequence[Collection[str]]
) -> tuple[Any, Any]:
    """How many entries of each layer every agent keeps, by a policy (None: of every variable, biases too, by ERK), and
    the schedules of these numbers: factors on what a policy makes of the retention that they begin with. Of layers that
    an agent is `lacking` it keeps nothing."""
    weights, frozen = jax.eval_shape(network.init, key_of(0))
    retention = numbers["retention"]
    if policy is None:
        variables = {"params": weights, "frozen": frozen}
        of_share: dict[Any, Any] = {share: erk_kept(variables, share) for share in {*retention.values.tolist()}}
        kept = [of_share[share] for share in retention.values.tolist()]
        schedules = jax.tree.map(lambda _: retention.schedule, variables)
    else:
        linear = numbers.get("linear_retention", retention)
        each = [*zip(retention.values.tolist(), linear.values.tolist(), strict=True)]
        of_share = {own: kept_by_policy(weights, network.roles, policy, *own) for own in {*each}}
        kept = [kept_without(of_share[own], blocks) for own, blocks in zip(each, lacking, strict=True)]
        follows = partial(of_role, convolution=retention.schedule, linear=linear.schedule, whole=constant)
        schedules = map_layers(lambda role, _: follows(role), network.roles, weights)
    return jax.tree.map(lambda *counts: np.array(counts, np.int32), *kept), schedules
