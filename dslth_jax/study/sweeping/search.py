"""A search by Optuna: a batch of points is asked, run as one program, and told; several machines may share a study."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dslth_jax.study.config.setting import parts
from dslth_jax.study.results import folders
from dslth_jax.study.results.points import ranked_by
from dslth_jax.study.sweeping.grid import Points, Sweep, points_of, spelled_axes, values_of
from dslth_jax.study.system.console import warn
from dslth_jax.study.system.stopping import Stop
from dslth_jax.study.training.history import Outcome
from dslth_jax.study.training.prepare import members_of
from dslth_jax.study.training.processes import anywhere

if TYPE_CHECKING:
    import optuna

FORM = "NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,... such as lr=1:100:log"
MOST_CORNERS = 64  # points that are prepared before a search begins
PATIENCE = 60.0  # seconds that a machine waits for another one's lock on a file of SQLite
MARK = "sweep"  # the attribute of a trial that says whose it is: the id in config.json, which a folder that moves keeps


def check_search(settings: Sweep) -> None:
    """Raise a ValueError if a search is asked for in a way that makes no sense, or only some of its flags are there."""
    if not settings.search:
        for name in [name for name in settings.given if name in ("trials", "ask", "study", "storage")]:
            raise ValueError(f"--{name} needs --search: say it, or leave --{name} out")
        return
    if settings.grid:
        raise ValueError("--grid and --search contradict each other: leave one of them out")
    if settings.coordinator:
        raise ValueError("--search takes no --coordinator: give each machine a command of its own, with one --storage")
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError("--search needs Optuna: pip install optuna") from None


def check_storage(settings: Sweep) -> None:
    """Raise a ValueError if a search is to be in a storage that cannot be used. One in the sweep's own folder is made
    with it."""
    if settings.storage is None:
        return
    place = Path(settings.storage.removeprefix("journal:").removeprefix("sqlite:///")).resolve()
    if settings.out is None or settings.out.resolve() not in place.parents:
        study_of(settings.storage, settings.study)


def spaces_of(settings: Sweep) -> dict[str, dict[str, Any]]:
    """What Optuna draws each searched field from, as its arguments; a ValueError where one means nothing."""
    spaces: dict[str, dict[str, Any]] = {}
    known = settings.known
    for name, values in spelled_axes("--search", settings.search, FORM, settings):
        if name == "validation":
            raise ValueError("--search takes no validation, which ranks the points: say --validation SHARE beside it")
        ends, kinds = values.split(":"), parts(known[name].hint)
        if {",", ";"} & {*values} or len(ends) == 1 or not {int, float} & {*kinds}:
            spaces[name] = {"choices": values_of("--search", known[name], values)}
            continue
        try:
            low, high = map(float if float in kinds else int, ends[:2])
            if not low < high or ends[2:] not in ([], ["log"]) or (ends[2:] and low <= 0):
                raise ValueError
        except ValueError:
            form = "LOW:HIGH with LOW below HIGH, or LOW:HIGH:log with LOW above 0"
            raise ValueError(f"--search {name} must be {form}, got {values!r}") from None
        spaces[name] = {"low": low, "high": high, "log": bool(ends[2:])}
    return spaces


def ends_of(spaces: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The extreme values of each searched field."""
    return {name: own.get("choices") or [own["low"], own["high"]] for name, own in spaces.items()}


def corners_of(ends: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The points that are prepared before a search begins, so that flags that make no sense end it before anything is
    trained: all of extreme values. Where these are more than `MOST_CORNERS`: the first values, the last ones, and each
    other value beside the first ones; pairs that do not fit are then found, and left out, when they are asked for.

    >>> corners_of({"lr": [1, 2], "order": ["code", "paper"]})[1:]
    [{'lr': 1, 'order': 'paper'}, {'lr': 2, 'order': 'code'}, {'lr': 2, 'order': 'paper'}]
    >>> len(corners_of({f"field_{number}": [1, 2, 3] for number in range(6)}))
    14
    """
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        return points_of(ends)
    first, last = ({name: values[place] for name, values in ends.items()} for place in (0, -1))
    return [first, last, *({**first, name: value} for name, values in ends.items() for value in values[1:])]


def search(
    points: Points, path: Path, outcomes: Mapping[int, Outcome], write: Callable[[], None], stop: Stop
) -> Iterator[None]:
    """Add members for the points that Optuna asks for, first for those that an interruption cut off, batch after batch
    until this command has tried its trials. A point that makes no sense is told as failed. `path` is the sweep's
    folder; `write` writes its config.json."""
    add_members(points, (folders.read_config(path) or {}).get("members", []))  # in the order of their numbers
    write()  # which has the mark in it before any trial bears it
    trials = Trials(points, path, folders.read_config(path)["id"])  # type: ignore[index]
    trials.check()
    while True:
        # Write a point that was asked for into config.json before a signal can stop the search.
        stop.later = True
        open_ones = [trial for trial in trials.ask() if not trial.state.is_finished()]
        refused = [trial for trial in open_ones if not take_up(points, trial.params)]
        for trial in refused:
            trials.study.tell(trial.number, state=type(trial.state).FAIL)
        write()
        stop.obey(anywhere)
        if refused:
            continue
        if not open_ones and len(outcomes) == len(points.members):
            return
        yield
        for trial in open_ones:
            came = [outcomes[number] for number, one in enumerate(points.members) if one.point == trial.params]
            failed = any(outcome.failure for outcome in came)
            key = ranked_by(own.rows[-1] for own in came)
            accuracy = None if failed else statistics.fmean(own.rows[-1][key] for own in came)
            trials.study.tell(trial.number, accuracy, type(trial.state).FAIL if failed else None)


def take_up(points: Points, point: Mapping[str, Any]) -> bool:
    """Add the members of a point that was asked for, and return True; warn, and return False, where it makes no
    sense."""
    try:
        add_members(points, [point])
    except ValueError as error:
        warn(f"the search leaves a point out: {error}")
        return False
    return True


def add_members(points: Points, more: Sequence[Mapping[str, Any]]) -> None:
    """Add a member for each seed of the points that are new. A point that is drawn twice is trained once."""
    known = [member.point for member in points.members]
    more = [{axis: own[axis] for axis in points.axes} for own in more]
    new = [point for place, point in enumerate(more) if point not in known and point not in more[:place]]
    points.members.extend(members_of(points.settings, new, points.settings.seeds))


class Trials:
    """The trials of one search, each with its mark, in a study of Optuna's that several machines may share."""

    def __init__(self, points: Points, path: Path, mark: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.points, self.path, self.mark, self.settings = points, path, mark, points.settings
        self.spaces, self.alone = points.spaces, self.settings.storage is None
        file = f"sqlite:///{(path / 'study.db').resolve()}"
        self.study = study_of(self.settings.storage or file, self.settings.study)

    def ask(self) -> list["optuna.trial.FrozenTrial"]:
        """Ask for points until a batch of them is open, or there are all trials; returns all of this search's own."""
        import optuna

        own = self.whole()
        while sum(not one.state.is_finished() for one in own) < self.settings.ask and len(own) < self.settings.trials:
            # Machines that share a study must not ask for the same points: only one that is alone draws by the run's
            # seed, and anew for each point, so that an interrupted search asks for what it would have asked for.
            seed = int(np.random.SeedSequence([self.settings.seed, len(own)]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=seed if self.alone else None)
            asked = self.study.ask()
            # Marked before it has its point, so that one which a kill cuts off here is found again.
            asked.set_user_attr(MARK, self.mark)
            for name, space in self.spaces.items():
                kind = "categorical" if "choices" in space else type(space["low"]).__name__
                getattr(asked, f"suggest_{kind}")(name, **space)
            own = self.whole()
        return own

    def marked(self) -> list["optuna.trial.FrozenTrial"]:
        """The trials of this search; in a study of its own also one that was cut off before it was marked."""
        unmarked = self.mark if self.alone else None
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.user_attrs.get(MARK, unmarked) == self.mark]

    def whole(self) -> list["optuna.trial.FrozenTrial"]:
        """Those of them that have a whole point."""
        return [trial for trial in self.marked() if trial.params.keys() == self.points.axes.keys()]

    def check(self) -> None:
        """Mark trials that a kill left without a point as failed; a ValueError if others and members differ."""
        own, known = self.whole(), [member.point for member in self.points.members]
        had = [trial.params for trial in own]
        lost = [point for point in known if point not in had]
        complete = [one.params for one in own if one.state.name == "COMPLETE"]
        if strange := lost or [point for point in complete if point not in known]:
            where = ", ".join(f"{name}={value}" for name, value in strange[0].items())
            what = f"the trials of the search in {self.path}, but only one of the two has {where}"
            remedy = "give it the storage it began with, or start anew in another --out"
            raise ValueError(f"the study {self.study.study_name} must have {what}: {remedy}")
        for trial in self.marked():
            if not trial.state.is_finished() and trial not in own:
                self.study.tell(trial.number, state=type(trial.state).FAIL)


def study_of(storage: str, name: str, waits: Sequence[float] = (0.1, 0.3, 1.0)) -> "optuna.Study":
    """The study in its storage, made where there is none; a ValueError where the storage is none."""
    import optuna

    try:
        return optuna.create_study(
            storage=storage_of(storage), study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        # If two commands make the tables of one storage at the same moment, one of them finds these half made.
        half_made = any(words in str(error) for words in ("already exists", "UNIQUE", "locked", "no such table"))
        if not waits or not half_made:
            raise ValueError(f"--storage {storage} cannot be used: {str(error).splitlines()[0]}") from None
    time.sleep(waits[0])
    return study_of(storage, name, waits[1:])


def storage_of(spelled: str) -> Any:
    """What Optuna takes for a storage: `journal:FILE` is one that a network file system can hold, all else is a URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    kind, _, place = spelled.partition(":")
    if kind == "journal":
        return JournalStorage(JournalFileBackend(place))
    if kind == "sqlite":
        return RDBStorage(spelled, engine_kwargs={"connect_args": {"timeout": PATIENCE}})
    return spelled
