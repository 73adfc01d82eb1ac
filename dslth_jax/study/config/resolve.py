"""From the settings as given to resolved ones: checked, with defaults, and as an algorithm with its numbers."""

import dataclasses
import inspect
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

from dslth_jax.algorithm import Algorithm, with_personal_layers
from dslth_jax.algorithms.masked import MaskRule
from dslth_jax.depth import with_layers_had
from dslth_jax.networks.network import Network
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.study.config import spellings
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS, defaults_of, foreign_to, owners_of
from dslth_jax.study.config.budget import check_absent, check_budget, check_counts
from dslth_jax.study.config.mortality import channels_that_die, check_channels, dies_for_good, strength_of
from dslth_jax.study.config.numbers import depths_of, may_lack_layers, numbers_of
from dslth_jax.study.config.setting import Setting, choices, described, flag, is_of, kinds, parts, refusal, within
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.data.datasets import READERS

# Names that stand in tables, which a script may add to.
NAMES: dict[str, Mapping[str, Any]] = {
    "dataset": READERS,
    "algorithm": ALGORITHMS,
    "preset": PRESETS,
    "model": MODULES,
    "augment": spellings.AUGMENTATIONS,
    "controller": spellings.CONTROLLERS,
}


# Of --weights: what is drawn, where that is no key of `networks.network.WEIGHTS`. None leaves it to the module.
DRAWN = {"uniform-by-fan-in": None, "self-scaled": "signed-constant"}


def resolve(settings: Settings) -> Settings:
    """The settings with every value that the preset or another flag stands for.

    Raises a ValueError that says what was expected, what came and what to do, if they make no sense.
    """
    check(settings)
    return filled_in(settings)


def filled_in(settings: Settings) -> Settings:
    """The same of settings that are checked as they are given; a ValueError if they make no sense with what is filled
    in."""
    dataset = None if settings.data_file else settings.dataset
    chosen = defaults_of(settings.algorithm, settings.preset, dataset)
    given = vars(settings)
    filled = {name: value for name, value in chosen.items() if given[name] is None}
    filled |= strength_of(settings, given | filled)
    with_preset = given | filled
    for name, own in settings.known.items():
        if own.needs and name not in foreign_to(settings.algorithm) and with_preset[own.needs[0]] != own.needs[1]:
            filled[name] = idle(own, given[name])
    same = (("fine_tune_lr", "lr"), ("linear_retention", "retention"))
    filled |= {name: with_preset[other] for name, other in same if (given | filled)[name] == "same"}
    if settings.controller == "period" and "code_every" not in foreign_to(settings.algorithm):
        filled["code_every"] = 1
    filled["partition"] = settings.partition or partition_meant(settings)
    resolved = dataclasses.replace(settings, **filled)
    check_switches(resolved)
    check_optimizer(settings, resolved)
    check_head(resolved)
    check_scale(resolved)
    check_channels(resolved)
    check_counts(resolved)
    check_absent(resolved)
    numbers_of(resolved)
    depths_of(resolved)
    return resolved


def partition_meant(settings: Settings) -> str | None:
    """The spelling of the partition that other flags mean; None where they are a file's."""
    per_agent = settings.classes_per_agent or 4
    if settings.dirichlet_alpha is not None:
        return f"dirichlet:{settings.dirichlet_alpha}"
    if settings.class_overlap is not None:
        return f"overlapping:{settings.class_overlap}:{per_agent}"
    if settings.owner_file is not None:
        return "owner"
    return f"classes:{per_agent}" if settings.class_file is None else None


def idle(known: Setting, given: Any) -> Any:
    """The value of a setting that means nothing beside another's value: a number that may be 0 is 0, all else is as it
    is left out. A ValueError if it is given, unless as such a 0."""
    name, (other, value) = known.name, known.needs or ("", "")
    may_be_zero = not known.bounds or within(0, known.bounds)
    if given not in ((known.default, 0) if may_be_zero else (known.default,)):
        raise ValueError(f"{flag(name)} needs {flag(other)} {value}: say it, or leave {flag(name)} out")
    return (0.0 if may_be_zero else None) if known.scheduled else given


def check(settings: Settings) -> None:
    """Raise a ValueError if settings as they are given make no sense."""
    for check_some in (check_each, check_folder, check_together):
        check_some(settings)
    check_graph(settings, redrawn=settings.topology.startswith("changing-"))  # so the library's own are called
    check_processes(settings)


def check_graph(settings: Settings, redrawn: bool) -> None:
    """Raise a ValueError if settings as they are given do not go with a graph that is `redrawn` from round to round,
    or stays."""
    check_links(settings, redrawn)
    check_budget(settings, redrawn)


def check_each(settings: Any) -> None:
    """Raise a ValueError if a field of a command's settings is of another type than it says, or beyond what it can
    be."""
    values = vars(settings)
    for name, known in described(type(settings)).items():
        value = values[name]
        for one in value if known.several and isinstance(value, tuple) else (value,):
            if not is_of(one, known.hint):
                raise ValueError(refusal(name, kinds(known.hint), one, choices(known.hint)))
            if isinstance(one, int) and float in parts(known.hint) and abs(one) >= 10**300:  # no float is as long
                raise ValueError(refusal(name, "below 1e+300", one))
            is_number = isinstance(one, int | float) and not isinstance(one, bool)
            if is_number and known.bounds and not known.scheduled and not within(one, known.bounds):
                raise ValueError(refusal(name, f"in {known.bounds}", one))
            if one is not None and one not in NAMES.get(name, (one,)):
                raise ValueError(refusal(name, f"one of {', '.join(NAMES[name])}", one, NAMES[name]))


def check_folder(settings: Settings) -> None:
    """Raise a ValueError if --out can be no run folder, or is missing."""
    if settings.out is not None and (obstacle := obstacle_to_folder(settings.out, settings.resume)):
        goes_on = not settings.resume and obstacle_to_folder(settings.out, resume=True) is None
        again = "say --resume to go on with that run, or " if goes_on else ""
        raise ValueError(f"--out {settings.out} must be a new or empty folder, and {obstacle}: {again}name another")
    if settings.resume and settings.out is None:
        raise ValueError("--resume needs --out, the run folder to go on in: say it, or leave --resume out")


def obstacle_to_folder(path: Path, resume: bool) -> str | None:
    """Why no run folder can have this name, as far as that shows without making it; None if nothing is wrong."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return "it is a file"
        is_run = any((path / name).exists() for name in ("config.json", "metrics.jsonl"))
        return "it holds something" if any(path.iterdir()) and not (resume and is_run) else None
    except FileNotFoundError:
        # Making it would show this too, but leave the folders above it behind.
        too_long = any(len(os.fsencode(part)) > 255 for part in path.parts)  # in every file system in use
        return "its name is too long" if too_long else None
    except OSError as error:
        return f"it cannot be one ({error.strerror})"
    except ValueError:  # a null character
        return "no folder can have this name"


def check_together(settings: Settings) -> None:
    """Raise a ValueError if flags contradict each other. A flag at its default counts as not given."""
    known, given = settings.known, settings.given
    for one, other in [(name, other) for name in given for other in known[name].against if other in given]:
        # A partition may be spelled twice, as long as both mean the same, such as classes:3 and --classes-per-agent 3.
        if "partition" not in (one, other) or settings.partition != partition_meant(settings):
            raise ValueError(f"{flag(one)} and {flag(other)} contradict each other: leave one of them out")
    for name in [name for name in given if name in foreign_to(settings.algorithm)]:
        only = f"only to {', '.join(owners_of(name))}"
        raise ValueError(f"{flag(name)} means nothing to --algorithm {settings.algorithm}, {only}: leave it out")
    if settings.dataset == "digits" and "data_dir" in given:
        raise ValueError("--data-dir is for data sets that are downloaded, digits needs none: leave it out")
    for name in ("exchange_every", "exchange_from"):
        if vars(settings)[name] > settings.rounds:
            got = f"got {vars(settings)[name]} and {settings.rounds}"
            raise ValueError(f"{flag(name)} must be at most --rounds, {got}: nothing would ever be sent")
    if -(-settings.exchange_from // settings.exchange_every) * settings.exchange_every > settings.rounds:
        raise ValueError(
            f"--exchange-every {settings.exchange_every} leaves no round to exchange from --exchange-from "
            f"{settings.exchange_from} to --rounds {settings.rounds}: exchange more often, or earlier"
        )


def check_links(settings: Settings, redrawn: bool) -> None:
    """Raise a ValueError if what happens on links, of a graph that may be `redrawn` from round to round, does not go
    with what the algorithm sends over them."""
    row = ALGORITHMS[settings.algorithm]
    adds = f"--algorithm {settings.algorithm} adds up all that a neighbour has ever sent"
    if row.bits.startswith("changes") and (redrawn or settings.hear is not None) and not settings.keep_neighbours:
        changes = f"--topology {settings.topology} changes neighbours: name a graph that stays"
        others = f"--hear {settings.hear} hears others each time: leave it out"
        also = ", or say --keep-neighbours" if "keep_neighbours" in row.flags else ""
        raise ValueError(f"{adds}, and {changes if redrawn else others}{also}")
    if row.bits == "changes of a round" and settings.link_drop:
        raise ValueError(f"{adds}, at once, and --link-drop {settings.link_drop:g} loses some of it: leave it out")
    if settings.mixing == "overlap" and redrawn:
        raise ValueError(f"--mixing overlap needs a graph that stays, got --topology {settings.topology}: name another")
    if settings.mixing == "similarity" and row.bits != "masks":
        got = f"and --algorithm {settings.algorithm} sends {row.sends}"
        raise ValueError(f"--mixing similarity compares masks, {got}: leave it out")


def check_processes(settings: Settings) -> None:
    """Raise a ValueError unless the flags of a run of several processes are there together and make sense."""
    coordinator, numbers = settings.coordinator, (settings.processes, settings.process)
    _, colon, port = str(coordinator).rpartition(":")
    if coordinator in (None, "auto"):
        if numbers != (None, None):
            raise ValueError("--processes and --process need --coordinator ADDRESS:PORT: say it, or leave them out")
    elif not (colon and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16):
        raise ValueError(f"--coordinator must be ADDRESS:PORT of process 0, or auto, got {coordinator!r}")
    elif None in numbers:
        raise ValueError("--coordinator ADDRESS:PORT needs --processes and --process: say both, or --coordinator auto")
    elif int(settings.process or 0) >= int(settings.processes or 0):
        raise ValueError(f"--process must be below --processes, got {settings.process} of {settings.processes}")


def check_switches(resolved: Settings) -> None:
    """Raise a ValueError if a switch has a value of another algorithm's, by the types of the factory's arguments."""
    row = ALGORITHMS[resolved.algorithm]
    takes = inspect.signature(row.factory).parameters
    for name in row.switches:
        given, taken = getattr(resolved, name), choices(takes[name].annotation) if name in takes else []
        if taken and given is not None and given not in taken:
            wanted = f"one of {', '.join(taken)} with --algorithm {resolved.algorithm}"
            raise ValueError(refusal(name, wanted, given))
    if row.by_scores and resolved.retention_policy not in row.policies:
        wanted = f"one of {', '.join(row.policies)} with --algorithm {resolved.algorithm}"
        raise ValueError(refusal("retention_policy", wanted, resolved.retention_policy))


def check_optimizer(settings: Settings, resolved: Settings) -> None:
    """Raise a ValueError if a flag, or a step size of the preset, is of another optimizer than the chosen one."""
    usual = defaults_of(settings.algorithm, settings.preset)["optimizer"]
    fine_tunes = resolved.fusion == "tensor" and "fine_tune_lr" not in foreign_to(settings.algorithm)
    steps = ["lr", "fine_tune_lr"] if fine_tunes else ["lr"]
    left_out = [f"{flag(name)} {getattr(resolved, name)}" for name in steps if vars(settings)[name] is None]
    if left_out and resolved.optimizer != usual:
        whose = f"--preset {settings.preset}" if len(steps) > 1 else f"--algorithm {settings.algorithm}"
        also = " and --fine-tune-lr (or same)" if len(steps) > 1 else ""
        raise ValueError(
            f"--optimizer {resolved.optimizer} needs step sizes of its own, and {whose} leaves it "
            f"{' and '.join(left_out)}, meant for {usual}: say --lr (adam learns at 0.0005@cosine){also}"
        )
    for name, users in (("momentum", ("momentum", "adam")), ("second_momentum", ("adam",))):
        if vars(settings)[name] != SETTINGS[name].default and resolved.optimizer not in users:
            needs = f"needs --optimizer {' or '.join(users)}, got {resolved.optimizer}"
            raise ValueError(f"{flag(name)} {needs}: say it, or leave {flag(name)} out")


def check_head(resolved: Settings) -> None:
    """Raise a ValueError if the head is to be trained first, and there is none, or no time for both parts."""
    if resolved.head_order == "head-first" and (resolved.personal_layers == "none" or resolved.local_steps < 2):
        got = f"got {resolved.personal_layers} and {resolved.local_steps}"
        raise ValueError(
            f"--head-order head-first needs --personal-layers (such as last) and --local-steps of 2 or more, {got}: "
            f"say both, or leave --head-order out"
        )


def check_scale(resolved: Settings) -> None:
    """Raise a ValueError if weights are to be scaled by masks of scores, and there are none."""
    if resolved.weights == "self-scaled" and not ALGORITHMS[resolved.algorithm].by_scores:
        having = ", ".join(name for name, row in ALGORITHMS.items() if row.by_scores)
        raise ValueError(
            f"--weights self-scaled is for masks of scores, with --algorithm {having}, got {resolved.algorithm}: take "
            f"signed-constant"
        )


def network_of(settings: Settings, image_shape: tuple[int, int, int], classes: int) -> Network:
    """The network of resolved settings."""
    return network_by_name(
        str(settings.model),
        image_shape,
        classes,
        width=settings.width,
        exits=settings.exits != "last",
        distils=settings.exits == "distilled",
        weights=DRAWN.get(str(settings.weights), settings.weights),
        zero_biases=settings.biases == "zero",
        elu_on_logits=bool(settings.elu_on_logits),
        precision=None if settings.precision == "float32" else settings.precision,
    )


def algorithm_of(settings: Settings, network: Network) -> Algorithm:
    """The algorithm of resolved settings, with their switches."""
    row, given = ALGORITHMS[settings.algorithm], vars(settings)
    optimizers = {
        "sgd": optax.identity(),
        "momentum": optax.trace(settings.momentum),
        "adam": optax.scale_by_adam(settings.momentum, settings.second_momentum),
    }
    switches = {name: given[name] for name in row.switches if given[name] is not None}
    if row.by_scores:
        switches["mask_rule"] = MaskRule(
            smallest_filter=settings.filter_rule,
            revive=settings.revive,
            scale_by_retention=settings.weights == "signed-constant",
            ternary=settings.mask == "ternary",
            across_layers=settings.retention_policy == "global",
            scale_by_mask=settings.weights == "self-scaled",
            among_living=dies_for_good(settings),
        )
    if settings.controller == "prunefl":
        switches["tells_squares"] = True
    if dies_for_good(settings):
        switches |= channels_that_die(settings, network)
    personal = spellings.layers_of(settings.personal_layers or "none", network)
    if settings.head_order == "head-first":
        switches["head_first"] = personal
    algorithm = row.factory(network, **switches, optimizer=optimizers[str(settings.optimizer)])
    if may_lack_layers(settings) and row.sends != "nothing":
        algorithm = with_layers_had(algorithm)
    return with_personal_layers(algorithm, personal)
