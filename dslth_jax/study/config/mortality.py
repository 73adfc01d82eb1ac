"""The settings by which channels die: what follows from them, and what does not go with them."""

from collections.abc import Mapping
from typing import Any

from dslth_jax.channels import channels_of
from dslth_jax.networks.network import Network
from dslth_jax.study.config.algorithms import foreign_to
from dslth_jax.study.config.numbers import targets_of
from dslth_jax.study.config.setting import flag, spelled
from dslth_jax.study.config.settings import Settings

# The weight of a relative group lasso with which a controller starts that finds it itself.
FIRST_STRENGTH = 0.05


def strength_of(settings: Settings, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What the group lasso's strength is relative to, where that is left out, and the weight that a target starts
    with. `chosen` are the settings with the preset's values."""
    if "group_lasso_strength" in foreign_to(settings.algorithm):
        return {}
    aims, filled = settings.target_channels is not None, dict[str, Any]()
    if aims and settings.group_lasso is None:
        filled["group_lasso"] = FIRST_STRENGTH
    if settings.group_lasso_strength is None:
        some = spelled(filled.get("group_lasso", chosen["group_lasso"])).partition("@")[0] != "0"
        relative = aims or (settings.preset == "tuned" and some)
        filled["group_lasso_strength"] = "relative" if relative else "absolute"
    return filled


def check_channels(resolved: Settings) -> None:
    """Raise a ValueError if channels are to die where scores of 0 do not mean that, or nothing makes them die."""
    if not dies_for_good(resolved):
        return
    for name, idle_value in (("mask", "binary"), ("revive", False)):
        if getattr(resolved, name) != idle_value:
            said = flag(name) + ("" if name == "revive" else f" {getattr(resolved, name)}")
            raise ValueError(
                f"{said} gives scores of 0 a meaning, and with --group-lasso-strength relative these are "
                f"dead: leave one of them out"
            )
    if resolved.target_channels is None:
        return
    if spelled(resolved.group_lasso).partition("@")[0] == "0":
        raise ValueError(
            f"--target-channels needs a --group-lasso above 0 to start with, got {resolved.group_lasso}: "
            f"leave it out, and it is {FIRST_STRENGTH}"
        )
    if resolved.group_lasso_form == "penalty":
        raise ValueError(
            "--target-channels needs --group-lasso-form proximal, got penalty, which makes no norm 0: leave it out"
        )
    targets_of(resolved)


def dies_for_good(resolved: Settings) -> bool:
    """Whether channels die as one, and stay dead."""
    return resolved.group_lasso_strength == "relative"


def may_die(resolved: Settings) -> bool:
    """Whether a rule can leave channels without any kept entry."""
    lasso = 0 if "group_lasso" in foreign_to(resolved.algorithm) else resolved.group_lasso or 0
    return resolved.filter_rule is not None or spelled(lasso).partition("@")[0] != "0"


def channels_that_die(settings: Settings, network: Network) -> dict[str, Any]:
    """What a factory of an algorithm takes for it; a ValueError if the network's channels cannot die."""
    try:
        return {"mortal": channels_of(network), "smallest_channels": settings.smallest_channels}
    except ValueError as error:
        raise ValueError(
            f"--group-lasso-strength relative does not go with --model {settings.model}: {error}"
        ) from None
