"""From settings to the algorithm they name, and to its traced settings of every agent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dslth_jax.algorithm import Algorithm
from dslth_jax.algorithms import dis_pfl, dsgd, fedpm, independent, local, mask_mean
from dslth_jax.algorithms import mce_pl as mcepl
from dslth_jax.algorithms.mce_pl import MaskRule, kept_by_layer, mce_pl
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network, map_layers
from dslth_jax.study.config.settings import Settings, linear_retention, number_and_schedule, retentions, schedule_of


class Method(NamedTuple):
    """An algorithm as the settings know it."""

    factory: Callable[..., Algorithm]  # of a network, an optimizer and switches
    hyper: Any  # the class of its traced settings; `kept` is from retentions, all others are settings of the same name
    switches: tuple[str, ...] = ()  # settings that the factory takes by their names
    masks_by_scores: bool = False  # whether it takes a rule of masks


METHODS = {
    "mce-pl": Method(
        # Looked up when it is called, as tests replace it.
        lambda network, **switches: mce_pl(network, **switches),
        mcepl.Hyper,
        ("order", "fine_tune_gradient", "fine_tune_weight", "group_lasso_form", "penalty_on", "start_scores"),
        masks_by_scores=True,
    ),
    "independent": Method(
        independent.independent, independent.Hyper, ("group_lasso_form", "start_scores"), masks_by_scores=True
    ),
    "mask-mean": Method(mask_mean.mask_mean, mask_mean.Hyper, ("mask_sent", "start_scores"), masks_by_scores=True),
    "dsgd": Method(dsgd.dsgd, dsgd.Hyper),
    "dis-pfl": Method(dis_pfl.dis_pfl, dis_pfl.Hyper, ("regrow",)),
    "fedpm": Method(fedpm.fedpm, fedpm.Hyper),
    "local": Method(local.local, local.Hyper),
}


def algorithm_of(settings: Settings, network: Network) -> Algorithm:
    """The algorithm of resolved settings, with their switches."""
    method = METHODS[settings.algorithm]
    optimizers = {
        "sgd": optax.identity(),
        "momentum": optax.trace(settings.momentum),
        "adam": optax.scale_by_adam(settings.momentum, settings.second_momentum),
    }
    switches = {name: getattr(settings, name) for name in method.switches}
    if method.masks_by_scores:
        rule = MaskRule(settings.filter_rule, settings.revive, settings.weights == "signed-constant")
        switches["mask_rule"] = rule
    return method.factory(network, **switches, optimizer=optimizers[str(settings.optimizer)])


def population_hyper(settings: Settings, network: Network) -> tuple[Any, Any]:
    """The traced settings, one value an agent, and the schedule of each; of settings that are resolved."""
    kind = METHODS[settings.algorithm].hyper
    names = [name for name in kind._fields if name != "kept"]
    values: dict[str, Any] = {
        name: np.full(settings.agents, number_and_schedule(settings, name)[0], np.float32) for name in names
    }
    schedules: dict[str, Any] = {name: schedule_of(settings, name) for name in names}
    if "kept" in kind._fields:
        kept, schedules["kept"] = population_kept(settings, network)
        values["kept"] = jax.tree.map(lambda *counts: np.array(counts, np.int32), *kept)
    return kind(**values), kind(**schedules)


def population_kept(settings: Settings, network: Network) -> tuple[list[Any], Any]:
    """How many entries of each layer every agent keeps, and the schedules of these numbers."""
    weights, frozen = jax.eval_shape(network.init, key_of(0))
    linear, others = schedule_of(settings, "linear_retention"), schedule_of(settings, "retention")
    if settings.algorithm == "dis-pfl":
        variables = {"params": weights, "frozen": frozen}
        kept = {share: dis_pfl.erk_kept(variables, share) for share in set(retentions(settings))}
        return [kept[share] for share in retentions(settings)], jax.tree.map(lambda _: others, variables)
    roles, of_linear = network.roles, linear_retention(settings)
    kept_by_agent = [kept_by_layer(weights, roles, share, of_linear) for share in retentions(settings)]
    return kept_by_agent, map_layers(lambda role, _: linear if role == "linear" else others, roles, weights)
