"""A search by Optuna: a batch of points is asked, run as one program, and told; several machines may share a study."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.grid import axis_of, base_of, members_of, value_of
from experiments.settings import HINTS, parts
from experiments.stopping import Stop
from experiments.study import Outcome, Ready, Sweep, summary, train_members, write_config

if TYPE_CHECKING:
    import optuna

FORM = "NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,... such as lr=1:100:log"
FOLDER = "folder"  # the attribute of a trial that says whose it is


def check_search(settings: Sweep) -> None:
    """Raise a ValueError if a search is asked for in a way that makes no sense."""
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

    settings = begun.settings
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, whose = study_of(begun), str(begun.path.resolve())
    while True:
        own = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(FOLDER) == whose]
        open_ones = [trial.number for trial in own if not trial.state.is_finished()]
        while len(open_ones) < settings.ask and len(own) < settings.trials:
            asked = study.ask(spaces_of(settings))
            asked.set_user_attr(FOLDER, whose)
            own.append(study.get_trials(deepcopy=False)[asked.number])
            open_ones.append(asked.number)
        # Members are numbered as trials were asked, so that a search that goes on finds its own again.
        new = [dict(trial.params) for trial in own[len(begun.members) // settings.seeds :]]
        begun.members.extend(members_of(base_of(settings), new, settings.seeds))
        if not open_ones:
            return
        write_config(begun, outcomes)
        train_members(begun, range(len(begun.members)), outcomes, console, stop)
        for position, trial in enumerate(own):
            if trial.number in open_ones:
                tell(study, trial.number, of_trial(position, settings.seeds, outcomes))


def of_trial(position: int, seeds: int, outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    """What the trial at a position came to over its seeds."""
    return summary([outcomes[number] for number in range(position * seeds, (position + 1) * seeds)])


def tell(study: "optuna.Study", number: int, came: Mapping[str, Any]) -> None:
    """Tell a trial's accuracy, or that it failed."""
    import optuna

    if came["status"] == "done":
        study.tell(number, came["accuracy_mean"])
    else:
        study.tell(number, state=optuna.trial.TrialState.FAIL)


def study_of(begun: Ready) -> "optuna.Study":
    """The study in its storage, made where there is none; a ValueError where the storage is none."""
    import optuna

    settings = begun.settings
    alone = settings.storage is None
    # Machines that share a study must not ask for the same points: only one that is alone draws by the run's seed.
    sampler = optuna.samplers.TPESampler(seed=settings.seed if alone else None)
    storage = f"sqlite:///{(begun.path / 'study.db').resolve()}" if alone else settings.storage
    try:
        return optuna.create_study(
            storage=storage, sampler=sampler, study_name=settings.study, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        raise ValueError(f"--storage {storage} cannot be used: {str(error).splitlines()[0]}") from None
