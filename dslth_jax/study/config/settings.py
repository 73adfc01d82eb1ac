"""What one run is: every setting once. The fields of `Settings` are the flags of the commands; their classes are the
groups of --help.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dslth_jax.retention import Policy
from dslth_jax.study.config.given import OF_ONE_COMMAND
from dslth_jax.study.config.setting import Setting, described, parts, setting

COUNT, FROM_ZERO, REAL = "1..2147483647", "0..2147483647", "0..3.4e+38"


@dataclasses.dataclass(frozen=True)
class Data:
    """What there is to learn from, and who holds it."""

    dataset: str = "cifar10"
    """Data set by name: downloaded where it is not there, but for digits, which is embedded in scikit-learn."""
    data_file: Path | None = setting(None, against=("dataset", "data_dir"))
    """An .npz of one's own instead: train_images, train_labels, test_images, test_labels; perhaps owner, which says
    whose each training sample is, and test_owner."""
    data_dir: Path | None = setting(None, machine=True)
    """Folder that has the data set, or gets it: as tensorflow-datasets prepares it, as its makers give it away, or as
    torchvision keeps it. None is the usual folder of tensorflow-datasets, and the cache folder for downloads."""
    resize: int | None = setting(None, bounds=COUNT, unit="pixels")
    """Side that images get: each pixel is the mean of a square block, so it must divide theirs; None leaves them."""
    data_fraction: float = setting(1.0, bounds="(0, 1]", traced=True)
    """Share of each agent's training samples that is used."""
    validation: float = setting(0.0, bounds="[0, 1)", traced=True)
    """Share of each agent's training samples that nobody trains on: accuracies on them are reported as validation, and
    sweeps and searches rank by these."""
    partition: str | None = setting(None, traced=True, against=("dirichlet_alpha", "classes_per_agent"))
    """Who holds what: classes:NUMBER, overlapping:OVERLAP[:NUMBER] (of so many classes, shared with the next agent),
    dirichlet:ALPHA (labels skewed), quantity:ALPHA (sizes skewed), iid, or owner (as the data says); None is owner
    where the data has some, else classes:CLASSES_PER_AGENT."""
    classes_per_agent: int | None = setting(None, bounds=COUNT, unit="classes", traced=True)
    """How many classes each agent has, drawn at random; None is 4."""
    class_file: Path | None = setting(None, traced=True, against=("partition", "dirichlet_alpha", "classes_per_agent"))
    """Text file of one line of classes an agent, instead of drawn ones."""
    owner_file: Path | None = setting(
        None, traced=True, against=("partition", "dirichlet_alpha", "classes_per_agent", "class_file")
    )
    """Whose each training sample is: a .npy of owners, or a CSV of them, or of samples and their owners."""
    dirichlet_alpha: float | None = setting(None, traced=True, against=("classes_per_agent",))
    """Concentration of Dirichlet label shares, the same as --partition dirichlet:ALPHA."""
    class_overlap: float | None = setting(
        None, bounds="[0, 1]", traced=True, against=("partition", "dirichlet_alpha", "class_file", "owner_file")
    )
    """Share of its classes that an agent has in common with the next one on a ring, the same as --partition
    overlapping:OVERLAP:CLASSES_PER_AGENT. Whatever it is, agents have as many samples."""
    feature_skew: str = setting("none", traced=True)
    """How agents see all images: none, rotation:DEGREES (agent i turned by i times that), or noise:LEVELS (of 255)."""
    augment: str | None = None
    """What agents make of the images of each minibatch: none, crop (moved by up to an eighth of the side, filled by
    reflection), or flip-crop (every second one flipped left to right by chance, then the same). None is the preset's:
    by-data is flip-crop for cifar10 and cifar100, crop for svhn_cropped, none for all other data."""
    images: Literal["own", "pooled"] = "own"
    """Whose images a minibatch is of: an agent's own; or those of all agents, of classes drawn as often as the agent
    holds them (pooled), a yardstick that is no method and no bound."""


@dataclasses.dataclass(frozen=True)
class Population:
    """Who there is, and who hears whom."""

    agents: int = setting(64, bounds="1..1000000", unit="agents")
    """Number of agents."""
    topology: str = setting("erdos-renyi:0.5", traced=True)
    """Graph: ring, torus[:ROWS], star, complete, regular:DEGREE, small-world:DEGREE:PROBABILITY,
    erdos-renyi:PROBABILITY, changing-regular:DEGREE (at most) and changing-erdos-renyi:PROBABILITY (both anew in every
    round), or a file: a matrix (row i: whom agent i hears; text, CSV or .npy), edges, GML or GraphML."""
    directed: bool = setting(False, traced=True)
    """Whether an agent may hear another that does not hear it."""
    hear: int | None = setting(None, bounds=COUNT, unit="neighbours")
    """How many of its neighbours an agent hears at most in an exchange, drawn anew each time; None hears all."""
    mixing: Literal["uniform", "metropolis", "similarity", "overlap"] = setting("uniform", traced=True)
    """Weights of neighbours in a mean: alike, Metropolis weights, how much their masks agree with one's own in each
    round (similarity), or how much of the two agents' label shares is common, which no agent could know (overlap)."""
    link_drop: float = setting(0.0, bounds="[0, 1]", traced=True)
    """Probability that a message is lost: each directed link fails on its own in each round, and the receiver knows."""
    keep_neighbours: bool = False
    """Hold what every other agent has told so far, in place of its mean: then messages that add up go with any loss and
    with graphs that change, as what an agent lacks of another is sent when they meet again."""
    retention: float | str = setting(0.3, bounds="(0, 1]", scheduled=True)
    """Share of a convolution's weights that masks keep (dis-pfl: of all parameters), in (0, 1]: a number, one an agent
    (0.1,0.3,... or 0.1*5,0.3*15), low:high, or dealt:0.1,0.3,... by the seed, each to about as many agents. Depthwise
    kernels are kept whole."""
    linear_retention: float | str | None = setting(
        None, bounds="(0, 1]", scheduled=True, needs=("retention_policy", "fixed-linear")
    )
    """Retention of linear layers, attention's too: one number for all agents, or same (as --retention)."""
    retention_policy: Policy = "fixed-linear"
    """How a retention becomes shares of layers: linear ones have their own (fixed-linear), all the same (uniform),
    small layers more (erk), or one threshold for all scores times the root of the fan-in (global)."""
    depth: int | str | None = setting(None, bounds=COUNT, unit="blocks", traced=True)
    """How many of the network's residual blocks an agent has: a number, or one an agent as for --retention (3,3,8,
    3:8, dealt:3,8). It has the first of every stage, and of further ones first the second of each; None is all."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What the agents do."""

    algorithm: str = "mce-pl"
    """What the agents run. A flag that means nothing to it is refused."""
    preset: str = setting("code", traced=True)
    """Default settings: of the authors' program (code), of the paper, or those that learned best (tuned)."""
    fusion: Literal["tensor", "force"] | None = None
    """How neighbours' masks enter: the paper's aggregation tensor, which leaves scores as they are, or a consensus
    force, which moves them; with a force there is no amplitude and no fine-tuning."""
    force: float | str = setting(1.0, bounds=REAL, scheduled=True, needs=("fusion", "force"))
    """Strength of the consensus force, in steps since the last exchange."""
    force_momentum: float = setting(0.0, bounds="[0, 1)", needs=("fusion", "force"))
    """How much of the consensus force outlasts an exchange: what flips to and fro cancels, for one more copy of the
    scores in memory."""
    mask_sent: Literal["own", "fused", "majority"] | None = None
    """What neighbours get: the mask of an agent's own scores, or the one that it uses, of its fused scores (mce-pl) or
    the majority (mask-mean)."""
    mixing_step: float | str = setting(0.5, bounds="[0, 1]", scheduled=True)
    """How far scores' magnitudes (score-gossip), or weights (fedmrn), go toward the neighbours' mean."""
    follow: float | str = setting(0.0, bounds="[0, 1)", scheduled=True)
    """How far score-gossip follows its neighbours: the share of their scores' movement that agents make too. What all
    have in common then moves up to 1 / (1 - follow) times as far."""
    noise: float = setting(0.8, bounds="0..100", traced=True)
    """Size of fedmrn's noise, in means of what is to be told: of the distances of a layer's entries from their public
    copies. Copies run away where it is much larger than 1."""
    modulation: Literal["step", "adaptive"] = "adaptive"
    """What a sign of score-gossip stands for: the steps since the last exchange, or the layer's mean error."""
    personal_layers: str | None = None
    """Layers that agents keep to themselves: last (those that make the logits), none, or names such as
    conv1,linear2."""
    head_order: Literal["together", "head-first"] = "together"
    """Train personal layers together with all others (FedPer), or alone in the first half of a round's local steps
    (FedRep), of which an odd one more is theirs."""
    order: Literal["code", "paper"] | None = setting(None, needs=("fusion", "tensor"))
    """Send the mask before fine-tuning (code) or after it (paper)."""
    fine_tune_gradient: Literal["reused", "recomputed"] | None = setting(None, needs=("fusion", "tensor"))
    """Gradient of fine-tuning: the local step's (reused), or that of another minibatch (recomputed)."""
    fine_tune_weight: Literal["mean", "touched"] = setting("mean", needs=("fusion", "tensor"))
    """Fine-tune by the mean of the neighbours' masks, or fully where any of them keeps an entry."""
    optimizer: Literal["sgd", "momentum", "adam"] | None = None
    """What makes gradients into steps."""
    momentum: float = setting(0.9, bounds="[0, 1)")
    """Decay of the mean gradient of momentum and adam."""
    second_momentum: float = setting(0.99, bounds="[0, 1)")
    """Decay of adam's mean square of gradients."""
    lr: float | str | None = setting(None, bounds=REAL, scheduled=True)
    """Step size of the local step."""
    fine_tune_lr: float | str | None = setting(None, bounds=REAL, scheduled=True, needs=("fusion", "tensor"))
    """Step size of fine-tuning, or same (as the local step's)."""
    weight_decay: float | str | None = setting(None, bounds=REAL, scheduled=True)
    """Decay in the local step, of weights or of scores."""
    amplitude: float | str = setting(1.0, bounds=REAL, scheduled=True, needs=("fusion", "tensor"))
    """Factor on the adaptive amplitude with which neighbours' masks enter the aggregation tensor."""
    label_smoothing: float | str = setting(0.0, bounds="[0, 1)", scheduled=True)
    """Share of every label that goes to all classes alike in training; reported losses are to such labels, too."""
    group_lasso: float | str | None = setting(None, bounds=REAL, scheduled=True)
    """Weight of the group lasso over output filters and rows; a proximal step shrinks their norms by lr times it (or,
    where it is relative, see there)."""
    group_lasso_strength: Literal["absolute", "relative"] | None = None
    """What a proximal step shrinks norms by: lr times the weight (absolute), or the weight times lr's schedule times
    the mean norm of a layer's living channels (relative). In the latter filters, and what reads them, die as one, for
    good, and masks keep their share of what lives. None is relative with --target-channels, and where --preset tuned
    has a group lasso."""
    target_channels: float | str | None = setting(
        None, bounds="(0, 1]", traced=True, needs=("group_lasso_strength", "relative")
    )
    """Share of a network's channels (filters, rows of linear layers, heads of attention; no classes) that are to be
    left: a number, or one an agent as for --retention. The weight of the group lasso then finds itself, round by
    round."""
    smallest_channels: int = setting(1, bounds=COUNT, unit="channels", needs=("group_lasso_strength", "relative"))
    """How many channels of each layer, those of largest norm, never die."""
    group_lasso_form: Literal["proximal", "penalty"] = "proximal"
    """Group lasso as a proximal step after the local step, or as a term of the loss."""
    penalty_on: Literal["fused", "scores"] = setting("fused", needs=("group_lasso_form", "penalty"))
    """What the penalty is computed from: the aggregation tensor (fused) or the scores."""
    filter_rule: int | None = setting(None, bounds=FROM_ZERO, unit="entries")
    """Drop a convolution's filters that keep at most so many entries, if its filters keep more on average."""
    mask: Literal["binary", "ternary"] = "binary"
    """What a mask does to a weight: it keeps it or not (binary), or it may also turn its sign (ternary), so that signs
    are learned, too; a message then has two bits an entry."""
    revive: bool = setting(False, needs=("mask", "binary"))
    """Let scores of exactly zero take part in fusion and gradients again (a force, gossip, a reused gradient and what
    an optimizer remembers move them anyway)."""
    prune_rate: float = setting(0.5, bounds="[0, 1]", traced=True)
    """Share of its entries that a dis-pfl agent drops and grows anew after the first round, falling to 0."""
    regrow: Literal["random", "gradient"] = "random"
    """Which entries dis-pfl grows: drawn at random, or those of the largest gradient on one minibatch."""
    clamp: float = setting(0.01, bounds="[1e-06, 0.5)", traced=True)
    """How close to 0 and 1 fedpm's mean masks may be."""
    model: str | None = None
    """Network: alexnet, small, conv3, plain2, plain4 to plain8 (conv3 of so many convolutions), conv4, conv6, vgg11,
    mlp, resnet18, resnet20, mobilenetv2 or vit-tiny; None is alexnet for images of 21 pixels a side or more, else
    small."""
    width: float = setting(1.0, bounds="(0, 16]")
    """Factor on the channels of all layers but the last, and on the features of linear ones."""
    exits: Literal["last", "each-stage", "distilled"] = "last"
    """Heads of a network with stages: the last alone, one behind every stage, whose mean distribution predicts
    (each-stage), or such ones that also learn from each other (distilled)."""
    weights: Literal["uniform-by-fan-in", "signed-constant", "self-scaled", "uniform"] | None = None
    """Draw of the shared weights: U(±1/√fan_in), ±√(2/(fan_in·retention)), the same by the share that the mask in use
    keeps (self-scaled), or U[-1, 1]; methods without a retention take ±√(2/fan_in)."""
    biases: Literal["random", "zero"] | None = None
    """Biases of linear layers, frozen where masks are learned."""
    start_scores: Literal["shared", "personal"] = "shared"
    """Whether agents start with common scores or each with its own."""
    elu_on_logits: bool | None = None
    """Put an ELU on the logits (or --no-elu-on-logits)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Floats of the network's arithmetic; scores, thresholds and masks are float32 and exact either way."""
    batch_size: int = setting(128, bounds=COUNT, unit="samples", traced=True)
    """Samples a minibatch; an agent with fewer uses all of its own."""
    local_steps: int = setting(1, bounds=COUNT, unit="steps")
    """Local steps a round, each on a minibatch of its own."""
    exchange_every: int = setting(1, bounds=COUNT, unit="rounds")
    """Rounds from one exchange to the next."""
    exchange_from: int = setting(1, bounds=COUNT, unit="rounds")
    """First round that may exchange: before it masks change much, and are dear to send."""
    key_every: int = setting(0, bounds=FROM_ZERO, unit="exchanges")
    """Exchanges from one key frame to the next where coded messages are counted; 0 is a single one at the start."""
    code_every: int | None = setting(None, bounds=COUNT, unit="exchanges")
    """Encode the messages of every so many exchanges, beside key frames and the four after them, the 8th, 16th... and
    the last before each evaluation; lengths of others are interpolated. With --controller period all are encoded."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What devices and links can do, in simulated time, and what sets budgets by it."""

    bandwidth: str | None = setting(None, traced=True)
    """Simulate time over links of so many Mbit/s: constant:M, lognormal:MEDIAN:SPREAD (another each second),
    markov:GOOD:BAD:LEAVE:BACK (chances a second), collapse:M:SECONDS:THEN, a file of seconds and Mbit/s, or a folder of
    such files, dealt in turn. None simulates no time."""
    device_speed: float | str = setting(1e10, bounds="[1, 1e+18]", traced=True)
    """Multiply-adds a second of agents' devices: a number, one an agent as for --retention, low:high or dealt:LIST. A
    training step counts as three forward passes."""
    device_sparse: bool = False
    """Count multiply-adds of kept entries only, as on a device that skips all others; else those of the dense
    network."""
    deadline: float | None = setting(None, bounds="(0, 1e+09]", unit="seconds", traced=True)
    """Seconds for which a round waits for messages, longer where somebody is still computing: who is still sending then
    is heard a round late. None waits for all, or where the controller goes by a deadline, takes 0.8 times the median
    time of the first exchange."""
    controller: str | None = None
    """What sets budgets after each exchange: deadline (retention by time over deadline), balance (equal times at
    the same mean retention), bandit (the best of eight intervals), prunefl (layers by squared gradient a second),
    period (slow agents send less often) or depth (residual blocks by time over deadline, --depth of them at least);
    None is nothing."""
    controller_gain: float = setting(0.5, bounds="(0, 1]", traced=True)
    """Exponent with which deadline and balance correct retentions."""
    retention_bounds: str = setting("0.05:0.9", traced=True)
    """Between which a controller keeps retentions, low:high."""
    retention_jump: float = setting(0.05, bounds="(0, 1]", traced=True)
    """Most that a controller changes a retention in a round."""


@dataclasses.dataclass(frozen=True)
class Run:
    """How long, on what, and what is left behind."""

    rounds: int = setting(400, bounds=COUNT, unit="rounds")
    """Number of rounds."""
    seed: int = setting(0, bounds="0..4294967295", traced=True)
    """Seed of weights, scores, classes, shares, graph and minibatches."""
    eval_every: int = setting(25, bounds=COUNT, unit="rounds")
    """Rounds from one evaluation to the next; there is one before training and one at the end too."""
    test_samples: int | None = setting(None, bounds=COUNT, unit="samples")
    """Test samples used of each class; None uses the first 200 during the run and all at the end."""
    agent_chunk: int | None = setting(None, bounds=COUNT, unit="agents", machine=True)
    """Agents computed at once on each device; None is one on a CPU, elsewhere as many as fit its memory."""
    devices: int | None = setting(None, bounds=COUNT, unit="devices", machine=True)
    """Number of devices that agents are spread over; None takes as many as divide the agents evenly."""
    coordinator: str | None = setting(None, machine=True)
    """ADDRESS:PORT of process 0, the same in all processes; or auto, where a cluster's environment says everything."""
    processes: int | None = setting(None, bounds=COUNT, unit="processes", machine=True)
    """How many processes the run has (with --coordinator ADDRESS:PORT)."""
    process: int | None = setting(None, bounds=FROM_ZERO, machine=True)
    """Number of this process, from 0; process 0 writes the run folder."""
    compilation_cache: bool = setting(True, machine=True)
    """Keep compiled programs in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR."""
    out: Path | None = setting(None, machine=True)
    """Run folder, new or empty; None is a fresh dated one under runs/."""
    checkpoint_every: int | None = setting(None, bounds=COUNT, unit="rounds", machine=True)
    """Rounds from one checkpoint to the next; None saves only where a signal stops the run."""
    resume: bool = setting(False, machine=True)
    """Go on from the last checkpoint in the run folder --out; a new folder, or one without any, starts at round 0."""
    track: str | None = setting(None, machine=True)
    """Tell a tracker of every row too, live: wandb, mlflow, trackio or tensorboard."""


@dataclasses.dataclass(frozen=True)
class Settings(Run, Budget, Method, Population, Data):
    """Train a population of agents by personal binary masks over one shared random network, or by a rival method.

    A number of the method can follow a schedule over the rounds: VALUE@cosine[:END], VALUE@step:EVERY[:FACTOR],
    VALUE@warm-up:ROUNDS, or several (10@warm-up:20@cosine). None takes the preset's value.
    """

    def __post_init__(self) -> None:
        """Take paths as strings too, and numbers as numpy has them."""
        for name, known in self.known.items():
            value = getattr(self, name)
            if name == "retention" and isinstance(value, list | tuple) and len(value) > 1:
                value = ",".join(map(str, value))
            elif isinstance(value, np.generic):
                value = value.item()
            elif isinstance(value, str) and known.several:
                value = (value,)
            elif isinstance(value, str) and Path in parts(known.hint):
                value = Path(value)
            object.__setattr__(self, name, value)

    @property
    def known(self) -> dict[str, Setting]:
        """What is known of each field."""
        return described(type(self))

    @property
    def given(self) -> list[str]:
        """The names of the fields that are not at their default."""
        return [name for name, known in self.known.items() if getattr(self, name) != known.default]

    def as_given(self) -> dict[str, Any]:
        """The fields that are not at their default, as --config takes them in any folder; without those of one command
        alone."""
        every, known = self.as_json(), self.known
        said = {name: every[name] for name in self.given if name not in OF_ONE_COMMAND}
        paths = [name for name in said if Path in parts(known[name].hint)]
        for name, is_there in (("topology", Path.is_file), ("bandwidth", Path.exists)):
            with contextlib.suppress(OSError):  # a name too long for a file
                paths += [name] if name in said and is_there(Path(said[name])) else []
        return said | {name: str(Path.cwd() / said[name]) for name in paths if said[name] is not None}

    def as_json(self) -> dict[str, Any]:
        """The fields as config.json has them."""
        said = dataclasses.asdict(self) | {"data_file": self.data_file and self.data_file.resolve()}
        return json.loads(json.dumps(said, default=str))


SETTINGS = described(Settings)
