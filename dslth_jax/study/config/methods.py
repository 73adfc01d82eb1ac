"""The algorithms by name: which flags are whose, and what each takes where they are left out."""

from typing import Any

# What each preset says where a flag is left out.
PRESETS: dict[str, dict[str, Any]] = {
    "code": {
        "order": "code",
        "fine_tune_gradient": "reused",
        "group_lasso": 0.0,
        "elu_on_logits": True,
        "weights": "uniform-by-fan-in",
        "biases": "random",
        "linear_retention": 0.9,
        "optimizer": "sgd",
        "lr": 10.0,
        "weight_decay": 5e-4,
        "fine_tune_lr": 10.0,
    },
}
PRESETS["paper"] = PRESETS["code"] | {
    "order": "paper",
    "fine_tune_gradient": "recomputed",
    "group_lasso": 1e-4,
    "elu_on_logits": False,
    "linear_retention": "same",
}
PRESETS["tuned"] = PRESETS["code"] | {
    "elu_on_logits": False,
    "weights": "signed-constant",
    "biases": "zero",
    "optimizer": "adam",
    "lr": "0.0005@cosine",
    "weight_decay": 0.0,
    "fine_tune_lr": "same",
}

# What rivals take in the place of a preset's values: where theirs is no step for masks, and whatever the preset the
# random network of `tuned`. The searches of both stand in experiments/README.md.
_network = {name: PRESETS["tuned"][name] for name in ("weights", "biases")}
_trained_weights = _network | {"optimizer": "sgd", "weight_decay": 5e-4}
RIVALS: dict[str, dict[str, Any]] = {
    "dsgd": _trained_weights | {"lr": 0.0125},
    "local": _trained_weights | {"lr": "0.0125@cosine"},
    "dis-pfl": _trained_weights | {"lr": "0.4@cosine"},
    "fedpm": _network | {"optimizer": "adam", "lr": "0.1@cosine"},
}

# The flags that not every algorithm has, and whose each is.
_steps = {"optimizer", "momentum", "second_momentum", "lr"}
_scores = {"retention", "linear_retention", "weight_decay", "start_scores"}
_own_masks = {"group_lasso", "group_lasso_form", "filter_rule", "revive"}
_coded = {"key_every", "code_every"}
_fusion = {"order", "fine_tune_gradient", "fine_tune_weight", "fine_tune_lr", "amplitude", "penalty_on"}
FLAGS: dict[str, set[str]] = {
    "mce-pl": _steps | _scores | _own_masks | _fusion | _coded,
    "independent": _steps | _scores | _own_masks,
    "mask-mean": _steps | _scores | _coded | {"mask_sent"},
    "dsgd": _steps | {"weight_decay"},
    "dis-pfl": _steps | {"weight_decay", "retention", "prune_rate", "regrow"},
    "fedpm": _steps | {"clamp"} | _coded,
    "local": _steps | {"weight_decay"},
}
OF_SOME = set().union(*FLAGS.values())  # all others, such as those of data, graph and network, are everybody's


def defaults_of(algorithm: str, preset: str) -> dict[str, Any]:
    """What an algorithm takes where a flag is left out; of flags that are not its own, nothing."""
    chosen = PRESETS[preset] | RIVALS.get(algorithm, {})
    return {name: value for name, value in chosen.items() if name not in foreign_to(algorithm)}


def foreign_to(algorithm: str) -> set[str]:
    """The flags that mean nothing to an algorithm."""
    return OF_SOME - FLAGS[algorithm]


def owners_of(name: str) -> list[str]:
    """The algorithms that have a flag."""
    return [algorithm for algorithm, flags in FLAGS.items() if name in flags]
