"""Checks and numbers of the settings of simulated time."""

import contextlib

import numpy as np
from jaxtyping import Float

from dslth_jax.study.config.algorithms import ALGORITHMS
from dslth_jax.study.config.mortality import dies_for_good, shrinks
from dslth_jax.study.config.numbers import numbers_in
from dslth_jax.study.config.setting import described, flag, within
from dslth_jax.study.config.settings import Budget, Settings

GO_BY_DEADLINE = ("deadline", "period", "depth")  # controllers
NOT_OF_RETENTIONS = (None, "period", "depth")
OF_CONTROLLERS = ("controller_gain", "retention_bounds", "retention_jump")


def check_budget(settings: Settings, redrawn: bool) -> None:
    """Raise a ValueError if the flags of simulated time, as they are given, make no sense together, or with a graph
    that is `redrawn` from round to round."""
    given, controller = [name for name in described(Budget) if name in settings.given], settings.controller
    if settings.bandwidth is None:
        for name in given:
            raise ValueError(f"{flag(name)} needs --bandwidth, such as constant:10: say it, or leave {flag(name)} out")
        return
    row = ALGORITHMS[settings.algorithm]
    retains = controller not in NOT_OF_RETENTIONS
    for name in (name for name in OF_CONTROLLERS if name in given and not retains):
        raise ValueError(
            f"{flag(name)} needs a --controller that sets retentions, got {controller}: say one, such as deadline, or "
            f"leave {flag(name)} out"
        )
    if retains and not row.by_scores:
        having = ", ".join(name for name, one in ALGORITHMS.items() if one.by_scores)
        raise ValueError(
            f"--controller {controller} sets retentions of masks of scores, with --algorithm {having}, got "
            f"{settings.algorithm}: leave it out"
        )
    if controller == "depth" and "depth" not in row.further:
        having = ", ".join(name for name, one in ALGORITHMS.items() if "depth" in one.further and one.bits != "changes")
        raise ValueError(f"--controller depth needs --algorithm {having}, got {settings.algorithm}: take another")
    if controller == "prunefl" and not row.tells_squares:
        having = " or ".join(name for name, one in ALGORITHMS.items() if one.tells_squares)
        raise ValueError(f"--controller prunefl needs --algorithm {having}, got {settings.algorithm}: take another")
    if controller == "prunefl" and settings.retention_policy == "global":
        raise ValueError(
            "--controller prunefl shares out entries among layers, and with --retention-policy global one threshold "
            "does that: leave one of them out"
        )
    if controller == "prunefl":
        for name in (name for name in ("retention", "linear_retention") if "@" in str(getattr(settings, name))):
            raise ValueError(
                f"--controller prunefl says itself how much layers keep, and follows no schedule of {flag(name)}, got "
                f"{getattr(settings, name)}: leave out what stands behind the @"
            )
    by_deadline = controller in GO_BY_DEADLINE or settings.deadline is not None
    what = f"--controller {controller}" if controller in GO_BY_DEADLINE else "--deadline"
    if by_deadline and row.bits.startswith("changes"):
        raise ValueError(
            f"{what} lets messages come late, and --algorithm {settings.algorithm} adds up all that a neighbour has "
            f"ever sent, at once: leave it out"
        )
    unsteady = {
        f"--link-drop {settings.link_drop:g}": settings.link_drop > 0,
        f"--hear {settings.hear}": settings.hear is not None,
        f"--topology {settings.topology}": redrawn,
    }
    for links in (said for said, there in unsteady.items() if there and by_deadline):
        raise ValueError(
            f"{what} lets neighbours hear again what they were sent before, and with {links} they may never have had "
            f"it: leave one of the two out"
        )
    if controller == "period" and row.sends == "nothing":
        raise ValueError(f"--controller period needs messages, and --algorithm {settings.algorithm} sends none")
    if controller == "period" and settings.code_every not in (None, 1):
        raise ValueError(
            f"--controller period has every message encoded, since the length of one cannot be told from rounds in "
            f"which its sender is silent, got --code-every {settings.code_every}: leave it out"
        )
    bounds_of(settings)
    speeds_of(settings)


def check_counts(resolved: Settings) -> None:
    """Raise a ValueError if time is to be of kept entries where retentions do not say how many each layer keeps."""
    if not resolved.device_sparse:
        return
    dying = "--group-lasso-strength relative" if dies_for_good(resolved) else ""
    if elsewhere := "--retention-policy global" if resolved.retention_policy == "global" else dying:
        raise ValueError(
            f"--device-sparse counts what retentions say that a layer keeps, and with {elsewhere} masks alone say it: "
            f"leave one of them out"
        )


def check_absent(resolved: Settings) -> None:
    """Raise a ValueError if blocks are to come back to agents, and what they lack dies meanwhile."""
    if resolved.controller != "depth" or not shrinks(resolved):
        return
    aims = resolved.target_channels is not None
    what = "--target-channels" if aims else f"--group-lasso {resolved.group_lasso}"
    instead = "leave one of them out" if aims else "take --group-lasso 0, or leave the controller out"
    raise ValueError(
        f"--controller depth gives agents blocks back, and {what} shrinks meanwhile what they lack, down to scores of "
        f"0, which are dead: {instead}"
    )


def bounds_of(settings: Settings) -> tuple[float, float]:
    """Between which a controller keeps retentions; a ValueError where that makes no sense."""
    with contextlib.suppress(ValueError):
        low, high = map(float, settings.retention_bounds.split(":"))
        if 0 < low <= high <= 1:
            return low, high
    raise ValueError(
        f"--retention-bounds must be LOW:HIGH in (0, 1], such as 0.05:0.9, got {settings.retention_bounds}"
    )


def speeds_of(settings: Settings) -> Float[np.ndarray, "agents"]:
    """Multiply-adds a second of each agent's device; a ValueError where one leaves its bounds."""
    speeds = numbers_in("device_speed", str(settings.device_speed), settings.agents, settings.seed)
    bounds = described(Budget)["device_speed"].bounds
    if not (inside := within(speeds, bounds)).all():
        agent = int(np.argmin(inside))
        raise ValueError(f"--device-speed must be in {bounds}, got {speeds[agent]:g} for agent {agent}")
    return speeds
