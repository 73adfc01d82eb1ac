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
NO_DATA = ()

OF_THE_PROXY = "62 minutes for 8 arms of 300 rounds with three seeds in RESULTS.md"
A_MEMBER = 62 / (8 * 3 * 300)  # minutes a round of one arm in the proxy setting, by that
ON_DIGITS = "--model small --resize 8 --agents 4 --batch-size 32"


class Claim(NamedTuple):
    """A row: what is claimed, and a command that answers in less time than the whole experiment.

    A row's estimate is `minutes` of one core on CIFAR-10 with one seed and `rounds` rounds, and proportional to both.
    """

    says: str  # the claim
    module: str
    flags: str  # of the reduced version on any data, its rounds aside
    sizes: str  # further ones on photographs
    small: str  # in their place on digits, whose images have 8 x 8 pixels
    rounds: int | None  # of the reduced version on photographs; None: it trains no population
    minutes: float
    on_digits: float  # minutes there, with SMALL_ROUNDS rounds
    by: str  # where the minutes come from
    leaves_out: str  # what the reduced version lacks
    whole: str  # the flags of the whole
    difference: tuple[str, str] | None  # two arms whose accuracies are compared: the first less the second
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
        "masks of one random network come near every agent's target, with a width that grows by a logarithm",
        "experiments.theorem",
        "--draws 6",
        "",
        "",
        None,
        6.5 / 4,
        6.5 / 4,
        "6.5 minutes with 24 networks a number in RESULTS.md",
        "three of four random networks for each number",
        "",
        None,
        IMAGES,
        resumes=False,
    ),
    "validation": Claim(
        "choosing among random weights ends where training them does",
        "experiments.validation",
        "",
        "",
        ON_DIGITS,
        150,
        4 * 150 * A_MEMBER,
        1.0,
        OF_THE_PROXY,
        ONE_SEED,
        "",
        ("masks, alone", "weights, alone"),
    ),
    "neighbours": Claim(
        "masks take 32 times fewer bits than weights, at no less accuracy",
        "experiments.neighbours",
        "--every 10",
        "",
        ON_DIGITS,
        150,
        7 * 150 * A_MEMBER,
        1.5,
        OF_THE_PROXY,
        f"{ONE_SEED}; masks every 20 rounds",
        "",
        ("aggregation tensor, every 10", "weights"),
    ),
    "accuracy": Claim(
        "up to 75.03 % on CIFAR-10",
        "experiments.sweep",
        "",
        f"{ALEXNET} --test-samples 200",
        f"{ON_DIGITS} --preset tuned --grid algorithm=score-gossip,independent",
        30,
        2 * 30 * 0.25,
        0.5,
        "99 minutes for 400 rounds of gossip in RESULTS.md",
        "370 of 400 rounds, two of three seeds, most test images: only the difference says something",
        f"{ALEXNET} --rounds 400 --seeds 3 --lr 0.0005@cosine",
        ("score-gossip", "independent"),
    ),
    "compaction": Claim(
        "masks of whole channels make a network smaller and faster",
        "benchmarks.compaction",
        "--repeats 16",
        "--batch 1 16",
        "--batch 1 16 --model small",
        None,
        1.0,
        0.5,
        "",
        "four of five passes, and batches of 128; masks are random ones",
        "",
        None,
        NO_DATA,
        resumes=False,
    ),
    "channels": Claim(
        "a group lasso takes whole channels out at little loss",
        "experiments.sweep",
        CHANNELS,
        PROXY,
        ON_DIGITS,
        150,
        2 * 150 * A_MEMBER,
        0.5,
        OF_THE_PROXY,
        "half of the rounds; agents learn alone in both",
        f"{PROXY} {CHANNELS} --rounds 300 --seeds 3",
        ("0.55", "1.0"),
    ),
    "architectures": Claim(
        "open question 1: masks in networks beyond the theorem's",
        "experiments.architectures",
        "",
        "--networks conv6,resnet20,vit-tiny --width 0.125 --resize 16 --test-samples 100",
        "--networks small,mlp --width 1 --resize 8 --agents 4 --batch-size 32",
        60,
        8.0,
        1.0,
        "",
        "two of three seeds, 140 of 200 rounds, most networks, half of the width and of the pixels, most test images",
        "",
        None,
        IMAGES,
    ),
    "depths": Claim(
        "open question 2: agents of unlike depths learn from each other",
        "experiments.depths",
        "",
        "--test-samples 100",
        "--resize 8 --agents 4 --batch-size 32 --width 0.25",
        60,
        8.0,
        2.0,
        "",
        "two of three seeds, four of five rounds, most test images",
        "",
        ("mixed", "mixed, alone"),
    ),
    "budgets": Claim(
        "open question 3: retentions that follow devices and links pay",
        "experiments.budgets",
        "--scenario one-slow --retentions 0.1,0.3,0.7",
        "",
        ON_DIGITS,
        75,
        16 * (8 * 75) / (10 * 150),
        2.0,
        "16 minutes for ten arms of 150 rounds in RESULTS.md",
        "two of three seeds, three of four rounds, two retentions that stay, three of four scenarios; none is alone",
        "--scenario one-slow",
        ("period", "0.3"),
    ),
    "unlike": Claim(
        "agents of unlike retentions learn from each other",
        "experiments.unlike",
        "",
        "",
        ON_DIGITS,
        100,
        12 * 100 * A_MEMBER,
        2.0,
        OF_THE_PROXY,
        "one of two seeds, and two of three rounds",
        "",
        ("unlike: aggregation tensor", "unlike: alone"),
    ),
    "ablation": Claim(
        "a majority of masks makes them ever sparser, the aggregation tensor keeps the density",
        "experiments.ablation",
        "",
        "",
        ON_DIGITS,
        150,
        4 * 150 * A_MEMBER,
        1.0,
        OF_THE_PROXY,
        ONE_SEED,
        "",
        ("aggregation tensor", "majority of own masks"),
        shows_density=True,
    ),
    "communication": Claim(
        "MCE-PL is above DSGD and Dis-PFL",
        "experiments.communication",
        "--retentions 0.3",
        "",
        ON_DIGITS,
        150,
        7 * 150 * A_MEMBER,
        1.5,
        OF_THE_PROXY,
        f"{ONE_SEED}; other retentions",
        "",
        ("mce-pl, 0.3", "dis-pfl, 0.3"),
    ),
    "thousandfold": Claim(
        "masks take a thousandth of the bits of weights (ours)",
        "experiments.thousandfold",
        "--mask-intervals 5 --weight-intervals 1",
        "--resize 16 --augment none --model conv3 --batch-size 64",
        ON_DIGITS,
        150,
        2 * 150 * A_MEMBER,
        0.5,
        OF_THE_PROXY,
        "AlexNet on whole images, two of three seeds, 250 of 400 rounds; no agents alone",
        "",
        ("mce-pl, every 5", "dsgd, every 1"),
    ),
}


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
    """How long a row is estimated to take one core."""
    minutes, own = (claim.on_digits, SMALL_ROUNDS) if on_digits else (claim.minutes, claim.rounds)
    return minutes if claim.rounds is None or own is None else minutes * seeds * (rounds or own) / own


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
    """The flags of the whole, on these data."""
    return " ".join(filter(None, (said(claim, data), claim.whole)))


def said(claim: Claim, data: Mapping[str, object]) -> str:
    """The flags of data that a row takes and that were said."""
    own = ((flag(name), str(data[name])) for name in claim.takes if data[name] is not None)
    return shlex.join(word for pair in own for word in pair)


def lengths(rounds: int, seeds: int | None) -> str:
    """The flags of how long a population is trained; it is saved on the way."""
    return f"--rounds {rounds} --seeds {seeds or 1} --eval-every {min(rounds, 25)} --checkpoint-every 25"
