"""What one run is: a frozen dataclass whose fields are the flags of the command, and the checks that need no data."""

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from dslth_jax.networks.zoo import MODULES
from dslth_jax.schedules import Schedule, constant
from dslth_jax.study.config import spellings
from dslth_jax.study.config.hints import choices, flag, is_of, kinds, parts, refusal
from dslth_jax.study.config.methods import FLAGS, defaults_of, foreign_to, owners_of


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a population of agents by personal binary masks over one shared random network, or by a rival method.

    A number of the method can follow a schedule over the rounds: VALUE@cosine[:END], VALUE@step:EVERY[:FACTOR],
    VALUE@warm-up:ROUNDS, or several (10@warm-up:20@cosine). None takes the preset's value.
    """

    dataset: Literal["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn_cropped", "digits"] = "cifar10"
    """Data set by name: through tensorflow-datasets, but for digits, which is embedded in scikit-learn."""
    data_file: Path | None = None
    """An .npz of one's own instead: train_images, train_labels, test_images, test_labels."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets (its own default where left out)."""
    data_fraction: float = 1.0
    """Share of each agent's training samples that is used, in (0, 1]."""
    partition: str | None = None
    """Who holds what: classes:NUMBER, dirichlet:ALPHA (labels skewed), quantity:ALPHA (sizes skewed) or iid; None is
    classes:CLASSES_PER_AGENT."""
    classes_per_agent: int = 4
    """How many classes each agent has, drawn at random."""
    class_file: Path | None = None
    """Text file of one line of classes an agent, instead of drawn ones."""
    dirichlet_alpha: float | None = None
    """Concentration of Dirichlet label shares, the same as --partition dirichlet:ALPHA."""
    feature_skew: str = "none"
    """How agents see training and test images: none, rotation:DEGREES (agent i turned by i times that), or
    noise:LEVELS (of 255)."""

    agents: int = 64
    """Number of agents."""
    topology: str = "erdos-renyi:0.5"
    """Graph: ring, torus[:ROWS], star, complete, regular:DEGREE, small-world:DEGREE:PROBABILITY,
    erdos-renyi:PROBABILITY, changing-regular:DEGREE (at most) and changing-erdos-renyi:PROBABILITY (both anew in every
    round), or an adjacency text file (row i of 0 and 1: whom agent i hears)."""
    directed: bool = False
    """Whether an agent may hear another that does not hear it."""
    mixing: Literal["uniform", "metropolis"] = "uniform"
    """Weights of neighbours in the mean of their masks."""
    retention: float | str = 0.3
    """Share of a convolution's weights that masks keep (dis-pfl: of all parameters), in (0, 1]: a number, one an agent
    (0.1,0.3,...) or low:high."""
    linear_retention: float | str | None = None
    """One number for all agents' linear layers, or same (each agent's own); by preset 0.9, same, 0.9."""

    algorithm: Literal["mce-pl", "independent", "mask-mean", "dsgd", "dis-pfl", "fedpm", "local"] = "mce-pl"
    """What the agents run: the paper's method; its local step alone; masks averaged by majority; decentralized SGD;
    sparse personal weights; probabilistic masks; weight training alone. A flag that means nothing to it is refused."""
    preset: Literal["code", "paper", "tuned"] = "code"
    """Bundle of switches: what the authors' program does, what the paper says, what learned best."""
    order: Literal["code", "paper"] | None = None
    """Send the mask before fine-tuning (code) or after it (paper); by preset code, paper, code."""
    fine_tune_gradient: Literal["reused", "recomputed"] | None = None
    """Gradient of fine-tuning: the local step's, or anew on another minibatch; by preset reused, recomputed, reused."""
    fine_tune_weight: Literal["mean", "touched"] = "mean"
    """Fine-tune by the mean of the neighbours' masks, or fully where any of them keeps an entry."""
    optimizer: Literal["sgd", "momentum", "adam"] | None = None
    """What makes gradients into steps, for weights sgd, for fedpm adam; of scores by preset sgd, sgd, adam."""
    momentum: float = 0.9
    """Decay of the mean gradient of momentum and adam, in [0, 1)."""
    second_momentum: float = 0.99
    """Decay of adam's mean square of gradients, in [0, 1)."""
    lr: float | str | None = None
    """Step size of the local step, for dsgd 0.0125, local 0.0125@cosine, dis-pfl 0.4@cosine, fedpm 0.1@cosine; of
    scores by preset 10, 10, 0.0005@cosine."""
    fine_tune_lr: float | str | None = None
    """Step size of fine-tuning, or same (as the local step's); by preset 10, 10, same."""
    weight_decay: float | str | None = None
    """Decay in the local step, of weights 5e-4; of scores by preset 5e-4, 5e-4, 0."""
    amplitude: float | str = 1.0
    """Factor on the adaptive amplitude with which neighbours' masks enter the aggregation tensor."""
    group_lasso: float | str | None = None
    """Weight of the group lasso over output filters and rows; a proximal round takes lr times it off their norms;
    by preset 0, 1e-4, 0."""
    group_lasso_form: Literal["proximal", "penalty"] = "proximal"
    """Group lasso as a proximal step after the local step, or as a term of the loss."""
    penalty_on: Literal["fused", "scores"] = "fused"
    """What a penalty is taken of: the aggregation tensor or the scores."""
    filter_rule: int | None = None
    """Drop convolutions' filters of at most so many kept entries, where a layer's filters keep more on average."""
    revive: bool = False
    """Let scores of exactly zero take part in fusion and gradients again."""
    mask_sent: Literal["own", "majority"] = "own"
    """What mask-mean sends: an agent's own mask, or the majority that it uses."""
    prune_rate: float = 0.5
    """Share of its entries that a dis-pfl agent drops and grows anew after the first round, falling to 0, in [0, 1]."""
    regrow: Literal["random", "gradient"] = "random"
    """Which entries dis-pfl grows: drawn at random, or those of the largest gradient on one minibatch."""
    clamp: float = 0.01
    """How close to 0 and 1 fedpm's mean masks may be, in (0, 0.5)."""
    model: str | None = None
    """Network: alexnet, small, conv4 or mlp; None is alexnet for images of 21 pixels a side or more, small below."""
    weights: Literal["uniform-by-fan-in", "signed-constant", "uniform"] | None = None
    """Draw of the shared weights: U(±1/√fan_in), ±√(2/(fan_in·retention)), or U[-1, 1]; the second for dsgd, local,
    dis-pfl and fedpm, without a retention, else by preset uniform-by-fan-in, uniform-by-fan-in, signed-constant."""
    biases: Literal["random", "zero"] | None = None
    """Biases of linear layers, frozen where masks are learned; zero for dsgd, local, dis-pfl and fedpm, else by preset
    random, random, zero."""
    start_scores: Literal["shared", "personal"] = "shared"
    """Whether agents start with common scores or each with its own."""
    elu_on_logits: bool | None = None
    """Put an ELU on the logits (or --no-elu-on-logits); by preset True, False, False."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; scores, thresholds and masks are float32 and exact either way."""
    batch_size: int = 128
    """Samples a minibatch; an agent with fewer uses all of its own."""
    local_steps: int = 1
    """Local steps a round, each on a minibatch of its own."""
    exchange_every: int = 1
    """Rounds from one exchange to the next."""
    key_every: int = 0
    """Exchanges from one key frame to the next, in what coded messages are counted at; 0 is one at the start alone."""
    code_every: int | None = None
    """Exchanges from one whose messages are really encoded to the next; None encodes before evaluations alone."""

    rounds: int = 400
    """Number of rounds."""
    seed: int = 0
    """Seed of weights, scores, classes, shares, graph and minibatches."""
    eval_every: int = 25
    """Rounds from one evaluation to the next; there is one before training and one at the end too."""
    test_samples: int | None = None
    """Test samples of a class that count; None is the first 200 while running and all at the end."""
    agent_chunk: int | None = None
    """Agents computed at once on each device; None is one on a CPU, elsewhere as many as fit its memory."""
    devices: int | None = None
    """Number of devices that agents are spread over; None takes as many as divide the agents evenly."""
    coordinator: str | None = None
    """ADDRESS:PORT of process 0, in a run of several processes or hosts, the same for all; or auto, where a cluster's
    environment says everything."""
    processes: int | None = None
    """How many processes the run has (with --coordinator ADDRESS:PORT)."""
    process: int | None = None
    """Which of them this one is, from 0; process 0 writes the run folder."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR."""
    out: Path | None = None
    """Run folder, new or empty; None is a fresh dated one under runs/."""
    checkpoint_every: int | None = None
    """Rounds from one checkpoint to the next; None saves only where a signal stops the run."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder --out; a new folder, or one without any, starts at round 0."""

    def __post_init__(self) -> None:
        """Take paths as strings too, and numbers as numpy has them."""
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if name == "retention" and isinstance(value, list | tuple) and len(value) > 1:
                object.__setattr__(self, name, ",".join(map(str, value)))
            elif isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
            elif name in ("data_file", "data_dir", "class_file", "out") and isinstance(value, str):
                object.__setattr__(self, name, Path(value))


# What may differ between processes of a run, and from a run to the one that goes on with it: no number depends on it.
OF_THE_MACHINE = (
    "data_dir", "agent_chunk", "devices", "coordinator", "processes", "process", "compilation_cache", "out",
    "checkpoint_every", "resume",
)  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # that numbers depend on
LARGEST_WHOLE, LARGEST_REAL = 2**31 - 1, float(np.finfo(np.float32).max)
MOST_AGENTS = 1_000_000  # each needs a sample; what is there once an agent must not fill the memory before that is seen
LONGEST_NAME = 255  # bytes that one name may have, in every file system in use
HINTS = get_type_hints(Settings)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}

# Two flags of which one would be ignored.
CONTRADICTIONS = [
    ("data_file", "dataset"),
    ("data_file", "data_dir"),
    ("class_file", "partition"),
    ("class_file", "dirichlet_alpha"),
    ("class_file", "classes_per_agent"),
    ("dirichlet_alpha", "classes_per_agent"),
]


def resolve(settings: Settings) -> Settings:
    """The settings with every value that the preset or another flag stands for.

    Raises a ValueError that says what was expected, what came and what to do, if they make no sense.
    """
    check_each(settings)
    check_together(settings)
    chosen = defaults_of(settings.algorithm, settings.preset)
    filled = {name: value for name, value in chosen.items() if getattr(settings, name) is None}
    resolved = dataclasses.replace(settings, **filled)
    same = {
        name: getattr(resolved, other)
        for name, other in (("fine_tune_lr", "lr"), ("linear_retention", "retention"))
        if getattr(resolved, name) == "same"
    }
    if settings.class_file is None:
        same["partition"] = partition_of(settings)
    resolved = dataclasses.replace(resolved, **same)
    check_optimizer(settings, resolved)
    if resolved.exchange_every > resolved.rounds:
        raise ValueError(
            f"--exchange-every must be at most --rounds, got {resolved.exchange_every} and {resolved.rounds}: "
            f"nothing would ever be sent"
        )
    check_numbers(resolved)
    return resolved


def partition_of(settings: Settings) -> str:
    """The spelling of the partition that the flags ask for, where it is not a file."""
    if settings.dirichlet_alpha is not None:
        return f"dirichlet:{settings.dirichlet_alpha}"
    return settings.partition or f"classes:{settings.classes_per_agent}"


def check_each(settings: Settings) -> None:
    """Raise a ValueError if a field is of another type than it says, or beyond what it can be."""
    for name in HINTS:
        expect(settings, name, kinds(HINTS[name]), lambda value, name=name: is_of(value, HINTS[name]))
    for name in (name for name in HINTS if float in parts(HINTS[name])):
        # Python makes no float of a longer whole number.
        expect(settings, name, "below 1e+300", lambda value: not isinstance(value, int) or abs(value) < 10**300)
    expect(settings, "agents", f"in 1..{MOST_AGENTS}", lambda value: 1 <= value <= MOST_AGENTS)
    for name in (
        "classes_per_agent",
        "batch_size",
        "local_steps",
        "exchange_every",
        "rounds",
        "eval_every",
        "test_samples",
        "agent_chunk",
        "devices",
        "processes",
        "checkpoint_every",
        "code_every",
    ):
        expect(settings, name, f"in 1..{LARGEST_WHOLE}", lambda value: value is None or 1 <= value <= LARGEST_WHOLE)
    expect(settings, "process", f"in 0..{LARGEST_WHOLE}", lambda x: x is None or 0 <= x <= LARGEST_WHOLE)
    expect(settings, "key_every", f"in 0..{LARGEST_WHOLE}", lambda value: 0 <= value <= LARGEST_WHOLE)
    expect(settings, "filter_rule", f"in 0..{LARGEST_WHOLE}", lambda x: x is None or 0 <= x <= LARGEST_WHOLE)
    expect(settings, "data_fraction", "in (0, 1]", lambda value: 0 < value <= 1)
    for name in ("momentum", "second_momentum"):
        expect(settings, name, "in [0, 1)", lambda value: 0 <= value < 1)
    expect(settings, "prune_rate", "in [0, 1]", lambda value: 0 <= value <= 1)
    expect(settings, "clamp", "in [1e-06, 0.5)", lambda value: 1e-6 <= value < 0.5)
    expect(settings, "seed", "in 0..4294967295", lambda value: 0 <= value < 2**32)
    if settings.model is not None:
        expect(settings, "model", f"one of {', '.join(MODULES)}", lambda value: value in MODULES, MODULES)
    if settings.out is not None and (obstacle := obstacle_to_folder(settings.out, settings.resume)):
        raise ValueError(f"--out {settings.out} must be a new or empty folder, and {obstacle}: name another")


def obstacle_to_folder(path: Path, resume: bool = False) -> str | None:
    """Why there can be no run folder of this name, so far as that shows without making one."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return "it is a file"
        return "it holds something" if any(path.iterdir()) and not (resume and is_run(path)) else None
    except FileNotFoundError:
        # Making it would show this too, but leave the folders above it behind.
        too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
        return "its name is too long" if too_long else None
    except OSError as error:
        return f"it cannot be one ({error.strerror})"
    except ValueError:  # a null character
        return "no folder can have this name"


def is_run(path: Path) -> bool:
    """Whether a folder is one that a run has left."""
    return any((path / name).exists() for name in ("config.json", "metrics.jsonl"))


def check_together(settings: Settings) -> None:
    """Raise a ValueError if flags contradict each other. One at its default counts as not given."""
    given = {name for name, default in DEFAULTS.items() if getattr(settings, name) != default}
    for one, other in CONTRADICTIONS:
        if {one, other} <= given:
            raise ValueError(f"{flag(one)} and {flag(other)} contradict each other: leave one of them out")
    for name in HINTS:
        if name in given & foreign_to(settings.algorithm):
            raise ValueError(
                f"{flag(name)} means nothing to --algorithm {settings.algorithm}, only to "
                f"{', '.join(owners_of(name))}: leave it out"
            )
    # A partition may be spelled twice, as long as both mean the same.
    for name, prefix in (("dirichlet_alpha", "dirichlet"), ("classes_per_agent", "classes")):
        spelled = f"{prefix}:{getattr(settings, name)}"
        if {"partition", name} <= given and settings.partition != spelled:
            raise ValueError(f"--partition and {flag(name)} contradict each other: leave one of them out")
    if settings.dataset == "digits" and "data_dir" in given:
        raise ValueError("--data-dir is for data sets of tensorflow-datasets, digits needs none: leave it out")
    check_processes(settings)
    check_resume(settings)
    if "penalty_on" in given and settings.group_lasso_form != "penalty":
        raise ValueError("--penalty-on needs --group-lasso-form penalty: say it, or leave --penalty-on out")


def check_resume(settings: Settings) -> None:
    """Raise a ValueError if it is not said what is to be resumed."""
    if settings.resume and settings.out is None:
        raise ValueError("--resume needs --out, the run folder to go on in: say it, or leave --resume out")


def check_processes(settings: Settings) -> None:
    """Raise a ValueError unless the flags of a run of several processes are there together and make sense."""
    coordinator, numbers = settings.coordinator, (settings.processes, settings.process)
    if coordinator in (None, "auto"):
        if numbers != (None, None):
            raise ValueError("--processes and --process need --coordinator ADDRESS:PORT: say it, or leave them out")
        return
    _, colon, port = str(coordinator).rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16):
        raise ValueError(f"--coordinator must be ADDRESS:PORT of process 0, or auto, got {coordinator!r}")
    if None in numbers:
        raise ValueError("--coordinator ADDRESS:PORT needs --processes and --process: say both, or --coordinator auto")
    if int(settings.process or 0) >= int(settings.processes or 0):
        raise ValueError(f"--process must be below --processes, got {settings.process} of {settings.processes}")


def check_optimizer(settings: Settings, resolved: Settings) -> None:
    """Raise a ValueError if a flag, or a step size of the preset, is of another optimizer than the chosen one."""
    usual = defaults_of(settings.algorithm, settings.preset)["optimizer"]
    steps = [name for name in ("lr", "fine_tune_lr") if name in FLAGS[settings.algorithm]]
    left_out = [name for name in steps if getattr(settings, name) is None]
    if left_out and resolved.optimizer != usual:
        kept = " and ".join(f"{flag(name)} {getattr(resolved, name)}" for name in left_out)
        whose = f"--preset {settings.preset}" if len(steps) > 1 else f"--algorithm {settings.algorithm}"
        also = " and --fine-tune-lr (or same)" if len(steps) > 1 else ""
        raise ValueError(
            f"--optimizer {resolved.optimizer} needs step sizes of its own, and {whose} leaves it "
            f"{kept}, meant for {usual}: say --lr (adam learns at 0.0005@cosine){also}"
        )
    for name, users in (("momentum", ("momentum", "adam")), ("second_momentum", ("adam",))):
        if getattr(settings, name) != DEFAULTS[name] and resolved.optimizer not in users:
            raise ValueError(
                f"{flag(name)} needs --optimizer {' or '.join(users)}, got {resolved.optimizer}: "
                f"say it, or leave {flag(name)} out"
            )


def check_numbers(settings: Settings) -> None:
    """Raise a ValueError if a number that may follow a schedule is none, or leaves its range."""
    foreign = foreign_to(settings.algorithm)
    for name in (x for x in ("lr", "fine_tune_lr", "weight_decay", "amplitude", "group_lasso") if x not in foreign):
        value, _ = number_and_schedule(settings, name)
        if not 0 <= value <= LARGEST_REAL:
            raise ValueError(f"{flag(name)} must be in 0..{LARGEST_REAL:.3g}, got {value}")
        schedule_of(settings, name)
    for name, largest in (("retention", max(retentions(settings))), ("linear_retention", linear_retention(settings))):
        # A schedule may raise a retention: look at a thousand rounds of it.
        factor = schedule_of(settings, name)
        rounds = jnp.asarray(np.linspace(0, settings.rounds - 1, 1000).astype(np.int32))
        peak = 1.0 if factor is constant else float(jnp.max(jax.vmap(factor)(rounds)))
        if largest is not None and largest * peak > 1 + 1e-6:
            raise ValueError(f"{flag(name)} must stay in (0, 1], and its schedule raises it to {largest * peak:.3g}")


def retentions(settings: Settings) -> list[float]:
    """Every agent's retention, from a number, a comma list or `low:high`."""
    text = str(settings.retention).partition("@")[0]
    try:
        if ":" in text:
            low, high = map(float, text.split(":"))
            # The range is checked below; until then infinities are no cause for warnings.
            with np.errstate(all="ignore"):
                values = np.linspace(low, high, settings.agents).tolist()
        elif "," in text:
            values = [float(word) for word in text.split(",")]
        else:
            values = [float(text)] * settings.agents
    except ValueError:
        raise ValueError(f"--retention must be a number, a comma list or low:high, got {text!r}") from None
    if len(values) != settings.agents:
        raise ValueError(f"--retention must give one number for each of {settings.agents} agents, got {len(values)}")
    for agent, value in enumerate(values):
        if not 0 < value <= 1:
            raise ValueError(f"--retention must lie in (0, 1], got {value:g} for agent {agent}")
    return values


def linear_retention(settings: Settings) -> float | None:
    """The retention of all agents' linear layers; None where it is each agent's own, or nothing to the algorithm."""
    if settings.linear_retention in (None, settings.retention):
        return None
    value, _ = number_and_schedule(settings, "linear_retention")
    if not 0 < value <= 1:
        raise ValueError(f"--linear-retention must be in (0, 1], got {value}")
    return value


def number_and_schedule(settings: Settings, name: str) -> tuple[float, str]:
    """The value of a field that is spelled VALUE or VALUE@SCHEDULE, and the schedule's spelling."""
    text, _, schedule = str(getattr(settings, name)).partition("@")
    try:
        return float(text), schedule
    except ValueError:
        raise ValueError(
            f"{flag(name)} must be a number, or one with a schedule such as 10@cosine, got {text!r}"
        ) from None


def schedule_of(settings: Settings, name: str) -> Schedule:
    """The schedule of a field."""
    _, at, spelling = str(getattr(settings, name)).partition("@")
    if at and not spelling:
        raise ValueError(f"{flag(name)} must have a schedule behind its @, such as 10@cosine, got none: say one")
    try:
        return spellings.schedule_of(spelling, settings.rounds)
    except ValueError as error:
        raise ValueError(f"{flag(name)}: {error}") from None


def expect(settings: Settings, name: str, wanted: str, holds: Any, known: Any = None) -> None:
    """Raise a ValueError unless the field's value is as wanted; of `known` names the nearest is suggested."""
    value = getattr(settings, name)
    if not holds(value):
        raise ValueError(refusal(name, wanted, value, known or choices(HINTS[name])))
