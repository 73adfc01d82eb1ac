"""The claims, one row each: which experiment answers, with which flags, for how long, and what is left out of it."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dslth_jax.naming import expect_choice
from dslth_jax.study.config.setting import flag

WHOLE_DATA = ("dataset", "data_dir", "topology", "class_file")  # flags of data that a population takes
IMAGES = ("dataset", "data_dir")
DATASETS = ("cifar10", "cifar100", "svhn_cropped", "digits")  # of 32 x 32 pixels, and of 8 x 8
NO_DATA = ()

OF_THE_PROXY = "62 minutes for 8 arms of 300 rounds with three seeds in experiments/results"
A_MEMBER = 62 / (8 * 3 * 300)  # minutes a round of one arm in the proxy setting, by that
ON_DIGITS = "--model small --resize 8 --agents 4 --batch-size 32"


class Claim(NamedTuple):
    """A row: what is claimed, and a command that answers in less time than the whole experiment.

    An estimate is of one idle core, with one seed. Where there are rounds, a part of it is for compiling, and the rest
    is proportional to rounds and seeds.
    """

    says: str  # the claim
    module: str
    leaves_out: str  # what the reduced version lacks
    minutes: float  # as estimated, on photographs
    on_digits: float  # and on digits, with SMALL_ROUNDS rounds
    by: str  # where the minutes come from
    rounds: int | None = None  # of the reduced version on photographs; None: it trains no population
    flags: str = ""  # of the reduced version on any data, its rounds aside
    sizes: str = ""  # further ones on photographs
    small: str = ON_DIGITS  # in their place on digits
    whole: str = ""  # the flags of the whole
    differences: Sequence[tuple[str, str]] = ()  # pairs of arms: the first one's accuracy less the second's
    takes: Sequence[str] = WHOLE_DATA
    resumes: bool = True  # whether it saves on the way, and takes --resume
    shows_density: bool = False


SMALL_ROUNDS = 60
ONE_SEED = "two of three seeds, and half of the rounds"
ALEXNET = "--agents 20 --data-fraction 0.2 --batch-size 64 --preset tuned --grid algorithm=score-gossip,independent"
CHANNELS = "--preset tuned --algorithm independent --lr 0.002@cosine --grid target_channels=1.0,0.55"
PROXY = "--resize 16 --augment none --model conv3 --agents 20 --data-fraction 0.2 --batch-size 64"

# In the order in which a budget is spent.
CLAIMS: dict[str, Claim] = {
    "theorem": Claim(
        says="masks of one random network come near every agent's target, with a width that grows by a logarithm",
        module="experiments.theorem",
        leaves_out="three of four random networks for each number",
        minutes=6.5 / 4,
        on_digits=6.5 / 4,
        by="6.5 minutes with 24 networks a number in experiments/results",
        flags="--draws 6",
        small="",
        takes=IMAGES,
        resumes=False,
    ),
    "validation": Claim(
        says="choosing among random weights ends where training them does",
        module="experiments.validation",
        leaves_out=ONE_SEED,
        minutes=4 * 150 * A_MEMBER,
        on_digits=1.0,
        by=OF_THE_PROXY,
        rounds=150,
        differences=[("masks: alone", "weights: alone")],
    ),
    "neighbours": Claim(
        says="masks take 32 times fewer bits than weights, at no less accuracy",
        module="experiments.neighbours",
        leaves_out=f"{ONE_SEED}; masks every 20 rounds",
        minutes=8 * 150 * A_MEMBER,
        on_digits=1.5,
        by=OF_THE_PROXY,
        rounds=150,
        flags="--every 10",
        differences=[(arm, "weights, personal head") for arm in ("aggregation tensor, every 10", "gossip, following")],
    ),
    "width": Claim(
        says="masks need a larger random network than trained weights do",
        module="experiments.width",
        leaves_out="two of three seeds, two of three rounds, the narrowest network, and depths",
        minutes=9 * 100 * A_MEMBER,
        on_digits=1.5,
        by=f"{OF_THE_PROXY}, three times as long at width 2",
        rounds=100,
        flags="--widths 0.5,1,2 --depths None",
        small="--resize 8 --agents 4 --batch-size 32",
        differences=[("width 2: masks", "width 1: weights")],
    ),
    "boundary": Claim(
        says="neighbours harm where data are too unlike",
        module="experiments.boundary",
        leaves_out="two of three seeds, five of eight rounds (so early the force is behind), one of three overlaps, "
        "and Dirichlet shares",
        minutes=16 * 75 * A_MEMBER,
        on_digits=3.0,
        by=OF_THE_PROXY,
        rounds=75,
        flags="--overlaps 0,1 --alphas None",
        small="--model small --resize 8 --agents 10 --batch-size 32",
        differences=[(f"overlap 0: {arm}", "overlap 0: alone") for arm in ("aggregation tensor", "force")],
        takes=IMAGES,
    ),
    "crossed": Claim(
        says="MCE-PL is above other methods, whatever the classes and the graph",
        module="experiments.crossed",
        leaves_out="two of three seeds, three of four rounds, five classes an agent, and the authors' class lists",
        minutes=16 * 75 * A_MEMBER,
        on_digits=3.0,
        by=OF_THE_PROXY,
        rounds=75,
        flags="--classes 4",
        differences=[
            ("4 classes, ring: aggregation tensor", "4 classes, ring: alone"),
            ("4 classes, ring: gossip", "4 classes, ring: weights, personal head"),
        ],
        takes=("dataset", "data_dir", "topology"),
    ),
    "accuracy": Claim(
        says="up to 75.03 % on CIFAR-10",
        module="experiments.sweep",
        leaves_out="380 of 400 rounds, a round's second step, two of three seeds, most test images: a start alone",
        minutes=2 * 20 * 0.25,
        on_digits=0.5,
        by="99 minutes for 400 rounds of gossip in experiments/results",
        rounds=20,
        sizes=f"{ALEXNET} --test-samples 200",
        small=f"{ON_DIGITS} --preset tuned --grid algorithm=score-gossip,independent",
        whole=f"{ALEXNET} --rounds 400 --local-steps 2 --seeds 3 --lr 0.0005@cosine",
        differences=[("score-gossip", "independent")],
    ),
    "compaction": Claim(
        says="masks of whole channels make a network smaller and faster",
        module="benchmarks.compaction",
        leaves_out="four of five passes, and batches of 128; masks are random ones",
        minutes=1.0,
        on_digits=0.5,
        by="",
        flags="--repeats 16",
        sizes="--batch 1 16",
        small="--batch 1 16 --model small",
        takes=NO_DATA,
        resumes=False,
    ),
    "channels": Claim(
        says="a group lasso takes whole channels out at little loss",
        module="experiments.sweep",
        leaves_out="two of three seeds, and half of the rounds; agents learn alone in both",
        minutes=2 * 150 * A_MEMBER,
        on_digits=0.5,
        by=OF_THE_PROXY,
        rounds=150,
        flags=CHANNELS,
        sizes=PROXY,
        whole=f"{PROXY} {CHANNELS} --rounds 300 --seeds 3",
        differences=[("0.55", "1")],
    ),
    "architectures": Claim(
        says="open question 1: masks in networks beyond the theorem's",
        module="experiments.architectures",
        leaves_out="two of three seeds, most rounds, networks and test images, half of the width and of the pixels",
        minutes=10.0,
        on_digits=1.0,
        by="a guess from the first rounds of a few of its twelve programs, 20 to 50 s of a core each",
        rounds=60,
        sizes="--networks conv6,resnet20,vit-tiny --width 0.125 --resize 16 --test-samples 100",
        small="--networks small,mlp --width 1 --resize 8 --agents 4 --batch-size 32",
        takes=IMAGES,
    ),
    "depths": Claim(
        says="open question 2: agents of unlike depths learn from each other",
        module="experiments.depths",
        leaves_out="two of three rounds, three of five agents, most test images, and flips and shifts",
        minutes=8 * (9 * 100) / (6 * 300) + 2,
        on_digits=3.0,
        by="8 minutes for six arms of 300 rounds in experiments/results, and two more to compile",
        rounds=100,
        sizes="--agents 8 --test-samples 100",
        small="--resize 8 --agents 4 --batch-size 32 --width 0.25",
        takes=IMAGES,
        whole="--rounds 300 --seeds 1 --augment flip-crop",
        differences=[("mixed: force", "mixed: alone")],
    ),
    "budgets": Claim(
        says="open question 3: retentions that follow devices and links pay",
        module="experiments.budgets",
        leaves_out="two of three seeds, three of four rounds, two retentions, and other scenarios",
        minutes=10 * (9 * 75) / (3 * 11 * 100) + 2,
        on_digits=2.0,
        by="10 minutes for eleven arms of 100 rounds with three seeds in experiments/results, and two more to compile",
        rounds=75,
        flags="--scenario one-slow --retentions 0.1,0.3,0.7",
        whole="--scenario one-slow",
        differences=[("balance", "0.1")],
    ),
    "unlike": Claim(
        says="agents of unlike retentions learn from each other",
        module="experiments.unlike",
        leaves_out="one of two seeds, and three of four rounds: so early the force is behind",
        minutes=12 * 75 * A_MEMBER,
        on_digits=2.0,
        by=OF_THE_PROXY,
        rounds=75,
        differences=[(f"unlike: {arm}", "unlike: alone") for arm in ("aggregation tensor", "gossip")],
    ),
    "ablation": Claim(
        says="a majority of masks makes them ever sparser, the aggregation tensor keeps the density",
        module="experiments.ablation",
        leaves_out=ONE_SEED,
        minutes=4 * 150 * A_MEMBER,
        on_digits=1.0,
        by=OF_THE_PROXY,
        rounds=150,
        differences=[("aggregation tensor", "majority of own masks")],
        shows_density=True,
    ),
    "communication": Claim(
        says="MCE-PL is above DSGD and Dis-PFL",
        module="experiments.communication",
        leaves_out="two of three seeds, two of three rounds, other retentions",
        minutes=10 * 100 * A_MEMBER,
        on_digits=2.0,
        by=OF_THE_PROXY,
        rounds=100,
        flags="--retentions 0.3",
        differences=[
            (f"retention 0.3: {arm}", rival)
            for rival in ("retention 0.3: dis-pfl", "weights, personal head")
            for arm in ("aggregation tensor", "force")
        ],
    ),
    "thousandfold": Claim(
        says="masks take hundreds of times fewer bits than whole weights, at no less accuracy (ours)",
        module="experiments.thousandfold",
        leaves_out="AlexNet on whole images, flipped and shifted, two of three seeds, 250 of 400 rounds, two intervals",
        minutes=3 * 150 * A_MEMBER,
        on_digits=0.5,
        by=OF_THE_PROXY,
        rounds=150,
        flags="--mask-intervals 5 --weight-intervals 1",
        sizes="--resize 16 --augment none --model conv3 --batch-size 64",
        differences=[("force, every 5", "weights, every 1")],
    ),
}


COMPILING = 1 / 3  # of a row's minutes, whatever its rounds and seeds: a guess


# Budgets -------------------------------------------------------------------------------------------------------------

UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(budget: str) -> float:
    """The seconds of a time such as 2h, 30m or 90s; a ValueError where it is none, or none above 0.

    >>> [seconds_of(word) for word in ("2h", "1.5m", "90s")]
    [7200.0, 90.0, 90.0]
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([hms])", budget)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not seconds > 0:
        raise ValueError(f"--budget must be a time above 0 such as 2h, 30m or 90s, got {budget!r}")
    return seconds


def named(only: str | None) -> list[str]:
    """The names of claims between commas, in the order of the table; None is all. A ValueError where one is none."""
    words = [*CLAIMS] if only is None else only.split(",")
    for word in words:
        expect_choice("--only", word, [*CLAIMS])
    return [name for name in CLAIMS if name in words]


def minutes_of(claim: Claim, on_digits: bool, rounds: int | None = None, seeds: int = 1) -> float:
    """How long a row is estimated to take one core, with other rounds and seeds than its own where they are given."""
    minutes, own = (claim.on_digits, SMALL_ROUNDS) if on_digits else (claim.minutes, claim.rounds)
    if claim.rounds is None or own is None:
        return minutes
    return minutes * (COMPILING + (1 - COMPILING) * seeds * (rounds or own) / own)


def chosen(minutes: Mapping[str, float], budget: float) -> list[str]:
    """The names whose minutes fit into a budget: each in turn, if it fits into what those before it have left.

    >>> chosen({"long": 5, "longer": 7, "short": 3}, 9)
    ['long', 'short']
    """
    taken: dict[str, float] = {}
    for name, own in minutes.items():
        if math.fsum([*taken.values(), own]) <= budget:
            taken[name] = own
    return [*taken]


def flags_of(claim: Claim, data: Mapping[str, object], rounds: int | None = None, seeds: int | None = None) -> str:
    """The flags of a row's reduced version, on these data: the value of each flag of data that was said."""
    digits = data["dataset"] == "digits"
    sizes = claim.small if digits else claim.sizes
    of_length = "" if claim.rounds is None else lengths(rounds or (SMALL_ROUNDS if digits else claim.rounds), seeds)
    return " ".join(filter(None, (said(claim, data), claim.flags, sizes, of_length)))


def whole_of(claim: Claim, data: Mapping[str, object]) -> str:
    """The flags of the whole, on these data; where these are digits, on CIFAR-10."""
    photographs = {**dict.fromkeys(data), "dataset": "cifar10"} if data["dataset"] == "digits" else data
    return " ".join(filter(None, (said(claim, photographs), claim.whole)))


def said(claim: Claim, data: Mapping[str, object]) -> str:
    """The flags of data that a row takes and that were said."""
    own = ((flag(name), str(data[name])) for name in claim.takes if data[name] is not None)
    return shlex.join(word for pair in own for word in pair)


def lengths(rounds: int, seeds: int | None) -> str:
    """The flags of how long a population is trained; it is saved on the way."""
    return f"--rounds {rounds} --seeds {seeds or 1} --eval-every {min(rounds, 25)} --checkpoint-every 25"
