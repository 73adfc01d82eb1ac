"""What one run is: a frozen dataclass whose fields are the flags of the command, and the checks that need no data."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from dslth_jax.data import TFDS_HOSTS


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a population of agents by personal binary masks over one shared random network."""

    dataset: Literal["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn_cropped", "digits"] = "cifar10"
    """Data set by name, so far cifar10 (through tensorflow-datasets) and digits (embedded in scikit-learn)."""
    data_file: Path | None = None
    """An .npz of one's own instead: train_images, train_labels, test_images, test_labels."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets (its own default where left out)."""
    data_fraction: float = 1.0
    """Share of each agent's training samples that is used, in (0, 1]."""
    classes_per_agent: int = 4
    """How many classes each agent has, drawn at random."""
    class_file: Path | None = None
    """Text file of one line of classes an agent, instead of drawn ones."""
    dirichlet_alpha: float | None = None
    """Concentration of Dirichlet label shares, instead of classes per agent (not built yet)."""

    agents: int = 64
    """Number of agents."""
    topology: str = "erdos-renyi:0.5"
    """Graph: erdos-renyi:PROBABILITY, ring, complete, or an adjacency text file."""
    retention: float | str = 0.3
    """Share of a convolution's weights that masks keep, in (0, 1]: a number, one an agent (0.1,0.3,...) or low:high."""
    linear_retention: float | None = 0.9
    """One number for all agents' linear layers; None takes each agent's retention."""

    algorithm: Literal["mce-pl", "independent", "mask-mean", "dsgd", "dis-pfl", "fedpm", "local"] = "mce-pl"
    """What the agents run, so far mce-pl."""
    preset: Literal["code", "paper", "tuned"] = "code"
    """Bundle of the method's switches, so far code: what the authors' program does."""
    model: Literal["alexnet", "small"] | None = None
    """Network; None takes alexnet for images of 21 pixels a side or more, small below."""
    elu_on_logits: bool = True
    """Put an ELU on the logits, as the authors' code does."""
    lr: float = 10.0
    """Step size of the local step."""
    fine_tune_lr: float = 10.0
    """Step size of fine-tuning."""
    weight_decay: float = 5e-4
    """Decay of the scores in the local step."""
    amplitude: float = 1.0
    """Factor on the adaptive amplitude with which neighbours' masks enter the aggregation tensor."""
    group_lasso: float = 0.0
    """Weight of the group lasso over output filters and rows; a proximal round takes lr times it off their norms."""
    group_lasso_form: Literal["proximal", "penalty"] = "proximal"
    """Group lasso as a proximal step after the local step, or as a term of the loss."""
    penalty_on: Literal["fused", "scores"] = "fused"
    """What a penalty is taken of: the aggregation tensor or the scores."""
    batch_size: int = 128
    """Samples a minibatch; an agent with fewer uses all of its own."""
    local_steps: int = 1
    """Local steps a round, each on a minibatch of its own."""
    exchange_every: int = 1
    """Rounds from one exchange to the next (so far 1)."""

    rounds: int = 400
    """Number of rounds."""
    seed: int = 0
    """Seed of weights, scores, classes, shares, graph and minibatches."""
    eval_every: int = 25
    """Rounds from one evaluation to the next; there is one before training and one at the end too."""
    test_samples: int | None = None
    """Test samples of a class that count; None is the first 200 while running and all at the end."""
    agent_chunk: int | None = None
    """Agents computed at once; None is one on a CPU, all elsewhere."""
    devices: int = 1
    """Number of devices (so far 1)."""
    out: Path | None = None
    """Run folder, new or empty; None is a fresh dated one under runs/."""
    checkpoint_every: int | None = None
    """Rounds from one checkpoint to the next (not built yet)."""
    resume: bool = False
    """Go on from the run folder's last checkpoint (not built yet)."""

    def __post_init__(self) -> None:
        """Take paths as strings too."""
        for name in ("data_file", "data_dir", "class_file", "out"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))


# What later versions build, with the only value there is today.
NOT_BUILT_YET: dict[str, Any] = {
    "dirichlet_alpha": None,
    "algorithm": "mce-pl",
    "preset": "code",
    "exchange_every": 1,
    "devices": 1,
    "checkpoint_every": None,
    "resume": False,
}
DATASETS = ("digits", *TFDS_HOSTS)
LARGEST_WHOLE, LARGEST_REAL = 2**31 - 1, float(np.finfo(np.float32).max)


def check(settings: Settings) -> None:
    """Raise a ValueError that says what was expected, what came and what to do, if `settings` make no sense."""
    for name, hint in get_type_hints(Settings).items():
        choices = [
            choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)
        ]
        if choices:
            expect(settings, name, f"one of {', '.join(choices)}", lambda value, among=choices: value in (None, *among))
    for name, only in NOT_BUILT_YET.items():
        value = getattr(settings, name)
        if value != only:
            raise ValueError(f"{flag(name)} {value} is not built yet: leave it out")
    if settings.dataset not in DATASETS and settings.data_file is None:
        raise ValueError(f"--dataset {settings.dataset} is not built yet: take one of {', '.join(DATASETS)}")
    for name in ("agents", "classes_per_agent", "batch_size", "local_steps", "rounds", "eval_every"):
        expect(settings, name, f"in 1..{LARGEST_WHOLE}", lambda value: 1 <= value <= LARGEST_WHOLE)
    for name in ("test_samples", "agent_chunk"):
        expect(settings, name, f"in 1..{LARGEST_WHOLE}", lambda value: value is None or 1 <= value <= LARGEST_WHOLE)
    for name in ("data_fraction", "linear_retention"):
        expect(settings, name, "in (0, 1]", lambda value: value is None or 0 < value <= 1)
    for name in ("lr", "fine_tune_lr", "weight_decay", "amplitude", "group_lasso"):
        expect(settings, name, f"in 0..{LARGEST_REAL:.3g}", lambda value: 0 <= value <= LARGEST_REAL)
    expect(settings, "seed", "in 0..4294967295", lambda value: 0 <= value < 2**32)
    retentions(settings)
    if settings.out is not None and settings.out.exists():
        if not settings.out.is_dir():
            raise ValueError(f"--out {settings.out} must be a new or empty folder, and it is a file: name another")
        if any(settings.out.iterdir()):
            raise ValueError(
                f"--out {settings.out} must be a new or empty folder, and it holds something: name another"
            )


def retentions(settings: Settings) -> list[float]:
    """Every agent's retention, from a number, a comma list or `low:high`."""
    text = str(settings.retention)
    try:
        if ":" in text:
            low, high = map(float, text.split(":"))
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


def expect(settings: Settings, name: str, wanted: str, holds: Any) -> None:
    """Raise a ValueError unless the field's value is as wanted."""
    value = getattr(settings, name)
    if not holds(value):
        raise ValueError(f"{flag(name)} must be {wanted}, got {value}")


def flag(name: str) -> str:
    """How the command spells a field."""
    return "--" + name.replace("_", "-")
