"""The algorithms by name, one row each: what makes it, what it sends, which settings are its own, and their defaults.

Another algorithm is one more row, which a script can add too: `ALGORITHMS["name"] = Row(...)`. Settings that no row has
yet come with it, as a dataclass beside the algorithm: see `Row.own`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from dslth_jax.algorithm import Algorithm
from dslth_jax.algorithms import dis_pfl, dsgd, fedmrn, fedpm, independent, local, mask_mean, mce_pl, score_gossip
from dslth_jax.retention import POLICIES

# What the presets code, paper and tuned say where a flag is left out.
_SAID = {
    "fusion": ("tensor", "tensor", "force"),
    "mask_sent": ("fused", "fused", "own"),
    "personal_layers": ("none", "none", "last"),
    "order": ("code", "paper", "code"),
    "fine_tune_gradient": ("reused", "recomputed", "reused"),
    "group_lasso": (0.0, 1e-4, 0.0),
    "elu_on_logits": (True, False, False),
    "weights": ("uniform-by-fan-in", "uniform-by-fan-in", "signed-constant"),
    "biases": ("random", "random", "zero"),
    "linear_retention": (0.9, "same", 0.9),
    "optimizer": ("sgd", "sgd", "adam"),
    "lr": (10.0, 10.0, "0.0005@cosine"),
    "weight_decay": (5e-4, 5e-4, 0.0),
    "fine_tune_lr": (10.0, 10.0, "same"),
    "augment": ("none", "none", "by-data"),
}
PRESETS: dict[str, dict[str, Any]] = {
    preset: {name: values[place] for name, values in _SAID.items()}
    for place, preset in enumerate(("code", "paper", "tuned"))
}
# What the augmentation by-data stands for, as what is moved or flipped is still of its class; none for other data.
BY_DATA = {"cifar10": "flip-crop", "cifar100": "flip-crop", "svhn_cropped": "crop"}

# What rivals take instead of a preset's values: with every preset the random network of `tuned`, and steps of their
# own, because those of presets are for scores. Their published forms share all layers. experiments/results/ holds
# the searches of both.
_network = {name: PRESETS["tuned"][name] for name in ("weights", "biases")} | {"personal_layers": "none"}
_trained_weights = _network | {"optimizer": "sgd", "weight_decay": 5e-4}
_steps = ("optimizer", "momentum", "second_momentum")
_mortal = ("group_lasso_strength", "target_channels", "smallest_channels")  # of those with a group lasso
_of_masks, _coded = ("filter_rule", "revive", "mask", "depth"), ("key_every", "code_every")
_alone = ("images",)  # of those who hear nobody: what others would gain is what they are compared with


class Row(NamedTuple):
    """An algorithm as the settings know it."""

    factory: Callable[..., Algorithm]  # of a network, an optimizer and switches
    hyper: Any  # the class of its traced settings: `kept` comes from the retentions, others from the settings so named
    does: str  # what agents do, in a few words
    sends: str  # what crosses a link in an exchange
    switches: tuple[str, ...] = ()  # settings that the factory takes by their names
    further: tuple[str, ...] = ()  # its other settings, beside switches and those of `hyper`
    # What the bits in its messages are: masks; changes, which add up; or changes of a round, which must not be late.
    bits: Literal["", "masks", "changes", "changes of a round"] = ""
    by_scores: bool = False  # whether masks keep the largest scores: it then takes a mask rule and a retention policy
    policies: tuple[str, ...] = POLICIES  # of retention, which it can follow then
    tells_squares: bool = False  # whether its factory takes the switch `tells_squares`
    defaults: Mapping[str, Any] = {}  # in the place of the preset's
    by_rounds: bool = False  # whether what it does in a round depends on how many there are to be
    own: type | None = None  # a frozen dataclass of settings that it brings, a group of --help by the class's name

    @property
    def flags(self) -> set[str]:
        """The settings that mean something to it and not to every algorithm."""
        kept = {"retention"} if "kept" in self.hyper._fields else set()
        kept |= {"linear_retention", "retention_policy"} if self.by_scores else set()
        shared = () if self.sends == "nothing" else ("personal_layers",)
        return {*_steps, *self.hyper._fields, *kept, *shared, *self.switches, *self.further} - {"kept"}


ALGORITHMS: dict[str, Row] = {
    "mce-pl": Row(
        mce_pl.mce_pl, mce_pl.Hyper, does="the paper's method", sends="a mask", bits="masks",
        by_scores=True, tells_squares=True,
        switches=(
            "fusion", "force_momentum", "mask_sent", "order", "fine_tune_gradient", "fine_tune_weight",
            "group_lasso_form", "penalty_on", "start_scores",
        ),
        further=(*_of_masks, *_coded, *_mortal),
    ),
    "score-gossip": Row(
        score_gossip.score_gossip, score_gossip.Hyper, does="scores mixed with neighbours', told by signs",
        sends="a sign an entry", bits="changes", by_scores=True, switches=("modulation", "group_lasso_form"),
        further=(*_of_masks, *_coded, *_mortal, "keep_neighbours"),
    ),
    "independent": Row(
        independent.independent, independent.Hyper, does="its local step alone", sends="nothing", by_scores=True,
        tells_squares=True, switches=("group_lasso_form", "start_scores"), further=(*_of_masks, *_mortal, *_alone),
    ),
    "mask-mean": Row(
        mask_mean.mask_mean, mask_mean.Hyper, does="the ablation: the majority of the masks seen is used",
        sends="a mask", bits="masks", by_scores=True, switches=("mask_sent", "start_scores"), further=_coded,
        defaults={"mask_sent": "own"},
        # A majority keeps another number of entries than those of whom it is, layer by layer.
        policies=tuple(policy for policy in POLICIES if policy != "global"),
    ),
    "dsgd": Row(
        dsgd.dsgd, dsgd.Hyper,
        does="decentralized SGD (Lian et al. 2017): weights averaged with neighbours', then trained",
        sends="32 bits a weight", further=("head_order",), defaults=_trained_weights | {"lr": 0.0125},
    ),
    "dis-pfl": Row(
        dis_pfl.dis_pfl, dis_pfl.Hyper,
        does="Dis-PFL (Dai et al. 2022): sparse personal weights, averaged where neighbours have them",
        sends="32 bits a kept weight, and a bitmap", bits="masks", switches=("regrow",),
        further=("head_order",), defaults=_trained_weights | {"lr": "0.4@cosine"}, by_rounds=True,
    ),
    "fedpm": Row(
        fedpm.fedpm, fedpm.Hyper,
        does="FedPM (Isik et al. 2023), masks drawn from learned probabilities; without a server is our adaptation",
        sends="a mask", bits="masks", further=_coded, defaults=_network | {"optimizer": "adam", "lr": "0.1@cosine"},
    ),
    "fedmrn": Row(
        fedmrn.fedmrn, fedmrn.Hyper,
        does="FedMRN (Li et al. 2024), weights told by masks of random noise; without a server is our adaptation",
        sends="a bit a weight", bits="changes of a round", further=_coded,
        defaults=_trained_weights | {"lr": 0.0125},
    ),
    "local": Row(
        local.local, local.Hyper, does="weight training alone", sends="nothing", further=_alone,
        defaults=_trained_weights | {"lr": "0.0125@cosine"},
    ),
}  # fmt: skip


Kind = TypeVar("Kind")


def with_own_settings(kind: type[Kind]) -> type[Kind]:
    """A class of settings, with those that rows bring."""
    own = tuple(row.own for row in ALGORITHMS.values() if row.own is not None and not issubclass(kind, row.own))
    return dataclasses.make_dataclass(kind.__name__, (), bases=(*own, kind), frozen=True) if own else kind


def of_some() -> set[str]:
    """The settings that some algorithms lack. All others, such as those of data and graph, every algorithm has."""
    return set().union(*(row.flags for row in ALGORITHMS.values()))


def foreign_to(algorithm: str) -> set[str]:
    """The settings that mean nothing to an algorithm."""
    return of_some() - ALGORITHMS[algorithm].flags


def owners_of(name: str) -> list[str]:
    """The algorithms that have a setting."""
    return [algorithm for algorithm, row in ALGORITHMS.items() if name in row.flags]


def defaults_of(algorithm: str, preset: str, dataset: str | None = None) -> dict[str, Any]:
    """The values that an algorithm takes for settings that are left out, on a data set by name (None is one's own
    file); it has none for settings of others."""
    chosen = {**PRESETS[preset], **ALGORITHMS[algorithm].defaults}
    if chosen["augment"] == "by-data":
        chosen["augment"] = BY_DATA.get(str(dataset), "none")
    return {name: value for name, value in chosen.items() if name not in foreign_to(algorithm)}


def table() -> list[str]:
    """The table of algorithms in Markdown."""
    head = "| `--algorithm` | what it is | what it sends a link | flags of its own | defaults of its own |"
    rows = [head, "|---" * 5 + "|"]
    for name, row in ALGORITHMS.items():
        own = sorted(one for one in row.flags if len(owners_of(one)) <= len(ALGORITHMS) // 2)
        flags = ", ".join(f"`--{one.replace('_', '-')}`" for one in own)
        says = " ".join(f"--{one.replace('_', '-')} {value}" for one, value in row.defaults.items())
        rows.append(f"| `{name}` | {row.does} | {row.sends} | {flags} | {f'`{says}`' if says else ''} |")
    return rows


if __name__ == "__main__":
    print(*table(), sep="\n")
