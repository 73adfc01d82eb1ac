"""A search by Optuna: a batch of points is asked, run as one program, and told; several machines may share a study."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from dslth_jax.study.config.hints import parts
from dslth_jax.study.config.settings import HINTS
from dslth_jax.study.config.stopping import Stop
from dslth_jax.study.results import folders
from dslth_jax.study.results.points import DONE
from dslth_jax.study.sweeping.grid import axis_of, base_of, members_of, value_of
from dslth_jax.study.sweeping.study import Outcome, Ready, Sweep, stop_if_asked, summary_of, train_members, write_config

if TYPE_CHECKING:
    import optuna

FORM = "NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,... such as lr=1:100:log"
OF_A_SEARCH = ("trials", "ask", "study", "storage")
MARK = "sweep"  # the attribute of a trial that says whose it is: the id in config.json, which a folder that moves keeps


def check_search(settings: Sweep) -> None:
    """Raise a ValueError if a search is asked for in a way that makes no sense, or only some of its flags are there."""
    if not settings.search:
        for field in dataclasses.fields(settings):
            if field.name in OF_A_SEARCH and getattr(settings, field.name) != field.default:
                raise ValueError(f"--{field.name} needs --search: say it, or leave --{field.name} out")
        return
    if settings.grid:
        raise ValueError("--grid and --search contradict each other: leave one of them out")
    if settings.coordinator:
        raise ValueError("--search takes no --coordinator: give each machine a command of its own, with one --storage")
    for name in ("trials", "ask"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(settings, name)}")
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("--search needs Optuna: pip install optuna") from None


def spaces_of(settings: Sweep) -> dict[str, "optuna.distributions.BaseDistribution"]:
    """What each searched field is drawn from; a ValueError where one means nothing."""
    spaces: dict[str, optuna.distributions.BaseDistribution] = {}
    for spelled in settings.search:
        name, values = axis_of("--search", spelled, FORM, spaces, settings)
        spaces[name] = space_of(name, values)
    return spaces


def space_of(name: str, values: str) -> "optuna.distributions.BaseDistribution":
    """A range of numbers, or choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    words = [word.strip() for word in values.split(",")]
    ends = values.split(":")
    if len(words) > 1 or not {int, float} & set(parts(HINTS[name])) or len(ends) == 1:
        return CategoricalDistribution([value_of(name, word) for word in words])
    kind: type = float if float in parts(HINTS[name]) else int
    try:
        low, high = map(kind, ends[:2])
        if not low < high or ends[2:] not in ([], ["log"]) or (ends[2:] and low <= 0):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--search {name} must be LOW:HIGH with LOW below HIGH, or LOW:HIGH:log with LOW above 0, got {values!r}"
        ) from None
    distribution = FloatDistribution if kind is float else IntDistribution
    return distribution(low, high, log=bool(ends[2:]))


def corners_of(settings: Sweep) -> list[dict[str, Any]]:
    """The extreme points of a search: where they make sense, all between them do."""
    spaces = spaces_of(settings)
    ends = [vars(space).get("choices") or (vars(space)["low"], vars(space)["high"]) for space in spaces.values()]
    return [dict(zip(spaces, point, strict=True)) for point in itertools.product(*ends)]


def search(begun: Ready, outcomes: dict[int, Outcome], console: Console, stop: Stop) -> None:
    """Ask, run and tell until this command has tried its trials; those that an interruption cut off come first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = study_of(begun)
    add_members(begun, points_so_far(begun))
    write_config(begun, outcomes)  # which holds the mark before any trial bears it
    mark = folders.read_config(begun.path)["id"]  # type: ignore[index]
    check_study(begun, study, mark)
    while True:
        # A point that was asked must be in config.json before a signal is heard.
        stop.later = True
        own = ask(begun, study, mark)
        add_members(begun, [point_of(begun, trial) for trial in own])
        write_config(begun, outcomes)
        stop_if_asked(stop)
        open_ones = [trial for trial in own if not trial.state.is_finished()]
        if not open_ones and len(outcomes) == len(begun.members):
            return
        train_members(begun, range(len(begun.members)), outcomes, console, stop)
        for trial in open_ones:
            tell(study, trial.number, of_point(begun, point_of(begun, trial), outcomes))


def ask(begun: Ready, study: "optuna.Study", mark: str) -> list["optuna.trial.FrozenTrial"]:
    """Ask for points until a batch of them is open, or there are all trials; returns all of this search's own."""
    settings, spaces = begun.settings, spaces_of(begun.settings)
    own = own_trials(begun, study, mark)
    while sum(not trial.state.is_finished() for trial in own) < settings.ask and len(own) < settings.trials:
        study.sampler = sampler_of(settings, len(own))
        asked = study.ask()
        # Marked before it has its point, so that one which a kill cuts off here is found again.
        asked.set_user_attr(MARK, mark)
        for name, space in spaces.items():
            draw(asked, name, space)
        own = own_trials(begun, study, mark)
    return own


def draw(trial: "optuna.Trial", name: str, space: "optuna.distributions.BaseDistribution") -> None:
    """Let a trial have a value of one field."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(space, FloatDistribution):
        trial.suggest_float(name, space.low, space.high, log=space.log)
    elif isinstance(space, IntDistribution):
        trial.suggest_int(name, space.low, space.high, log=space.log)
    else:
        trial.suggest_categorical(name, vars(space)["choices"])


def sampler_of(settings: Sweep, asked: int) -> "optuna.samplers.BaseSampler":
    """What draws the next point of a search that has asked for so many."""
    import optuna

    # Machines that share a study must not ask for the same points: only one that is alone draws by the run's seed, and
    # anew for each point, so that a search that was interrupted asks for what it would have asked for.
    seed = int(np.random.SeedSequence([settings.seed, asked]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed if settings.storage is None else None)


# What a search has done so far --------------------------------------------------------------------------------------


def marked(begun: Ready, study: "optuna.Study", mark: str) -> list["optuna.trial.FrozenTrial"]:
    """The trials of this search; in a study of its own also one that was cut off before it was marked."""
    unmarked = mark if begun.settings.storage is None else None
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(MARK, unmarked) == mark]


def own_trials(begun: Ready, study: "optuna.Study", mark: str) -> list["optuna.trial.FrozenTrial"]:
    """Those of them that have a whole point."""
    return [trial for trial in marked(begun, study, mark) if trial.params.keys() == begun.axes.keys()]


def point_of(begun: Ready, trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """A trial's point, in the order of the axes."""
    return {axis: trial.params[axis] for axis in begun.axes}


def points_so_far(begun: Ready) -> list[dict[str, Any]]:
    """The points that an earlier command has written down, in its order, which the numbers of members follow."""
    members = (folders.read_config(begun.path) or {}).get("members", [])
    return [{axis: member[axis] for axis in begun.axes} for member in members]


def add_members(begun: Ready, points: Sequence[Mapping[str, Any]]) -> None:
    """Add a member for each seed of the points that are new: what is drawn twice is trained once."""
    known = [member.point for member in begun.members]
    new = [point for place, point in enumerate(points) if point not in known and point not in points[:place]]
    begun.members.extend(members_of(base_of(begun.settings), new, begun.settings.seeds))


def check_study(begun: Ready, study: "optuna.Study", mark: str) -> None:
    """Tell that trials which a kill cut off in the asking failed; a ValueError unless the others are the members'."""
    import optuna

    own, known = own_trials(begun, study, mark), [member.point for member in begun.members]
    had = [trial.params for trial in own]
    lost = [point for point in known if point not in had]
    if strange := lost or [trial.params for trial in own if trial.state.is_finished() and trial.params not in known]:
        where = ", ".join(f"{name}={value}" for name, value in strange[0].items())
        raise ValueError(
            f"the study {study.study_name} must have the trials of the search in {begun.path}, and only one of them "
            f"knows {where}: give it the storage it began with, or start anew in another --out"
        )
    for trial in marked(begun, study, mark):
        if not trial.state.is_finished() and trial.params.keys() != begun.axes.keys():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def of_point(begun: Ready, point: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    """What a point came to over its seeds."""
    return summary_of([outcomes[number] for number, member in enumerate(begun.members) if member.point == point])


def tell(study: "optuna.Study", number: int, came: Mapping[str, Any]) -> None:
    """Tell a trial's accuracy, or that it failed."""
    import optuna

    if came["status"] == DONE:
        study.tell(number, came["accuracy_mean"])
    else:
        study.tell(number, state=optuna.trial.TrialState.FAIL)


def study_of(begun: Ready) -> "optuna.Study":
    """The study in its storage, made where there is none; a ValueError where the storage is none."""
    import optuna

    settings = begun.settings
    alone = settings.storage is None
    storage = f"sqlite:///{(begun.path / 'study.db').resolve()}" if alone else settings.storage
    try:
        return optuna.create_study(
            storage=storage, study_name=settings.study, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        raise ValueError(f"--storage {storage} cannot be used: {str(error).splitlines()[0]}") from None
