"""The settings by which channels die: what follows from them, and what does not go with them."""

from collections.abc import Mapping
from typing import Any

from dslth_jax.channels import Channels, channels_of
from dslth_jax.networks.network import Network
from dslth_jax.study.config.algorithms import foreign_to
from dslth_jax.study.config.numbers import targets_of
from dslth_jax.study.config.setting import flag, spelled
from dslth_jax.study.config.settings import Settings
from dslth_jax.target_channels import left_of

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
    return resolved.filter_rule is not None or shrinks(resolved)


def shrinks(resolved: Settings) -> bool:
    """Whether a group lasso makes scores smaller."""
    lasso = 0 if "group_lasso" in foreign_to(resolved.algorithm) else resolved.group_lasso or 0
    return spelled(lasso).partition("@")[0] != "0"


def channels_that_die(settings: Settings, network: Network) -> dict[str, Any]:
    """What a factory of an algorithm takes for it; a ValueError if the network's channels cannot die, or too many are
    spared."""
    try:
        mortal = channels_of(network)
    except ValueError as error:
        raise ValueError(
            f"--group-lasso-strength relative does not go with --model {settings.model}: {error}"
        ) from None
    expect_some_die(settings, mortal)
    return {"mortal": mortal, "smallest_channels": settings.smallest_channels}


def expect_some_die(settings: Settings, mortal: tuple[Channels, ...]) -> None:
    """Raise a ValueError if so many channels are spared that none can die, or no layer comes to the lowest target."""
    targets, spared = targets_of(settings), settings.smallest_channels
    most = max(own.size for own in mortal)
    if targets is None and spared >= most:
        raise ValueError(
            f"--smallest-channels must be below {most}, the channels of the largest layer of --model {settings.model}, "
            f"got {spared}: none could die"
        )
    if targets is not None and spared > (left := int(left_of(float(targets.min()), most))):
        raise ValueError(
            f"--smallest-channels must be at most {left}, which --target-channels {settings.target_channels} leaves of "
            f"the {most} of the largest layer of --model {settings.model}, got {spared}: no layer could come to it"
        )
