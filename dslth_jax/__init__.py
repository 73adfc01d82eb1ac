"""Decentralized, personalized learning by binary masks, in JAX.

A map of the modules, in the order in which data flows. Imports run downward only.

    data            name or file -> Dataset of uint8 images and labels
    partition       labels -> which samples each agent holds
    topology        graphs -> sparse mixing matrix by its edges
    convolution     a convolution and a max pooling that stay fast under vmap over kernels
    models          Network(init, apply): the zoo; the only file that imports flax
    masks           fuse, threshold (straight-through), density, pack and unpack
    group_lasso     group norms, penalty, proximal step (also as an optax transformation)
    algorithm       the form of an algorithm: Algorithm, World, Batches, Heard
    exchange        sparse mixing matrix times stacked masks -> heard
    mcepl           MCE-PL: Hyper; local step, fine-tuning; init, send, receive, model
    population      the driver: one round of everyone
    evaluation      per-agent accuracy on its own test samples

Two worlds: a function is written for one agent and knows no agents axis (masks, group_lasso, convolution, models,
mcepl), or for the population, where every per-agent leaf has a leading agents axis (population, evaluation). Only
`population.over_agents` leads from the first into the second.
"""

from dslth_jax.algorithm import Algorithm, Batches, Heard, World, neighbour_mean
from dslth_jax.evaluation import evaluate
from dslth_jax.exchange import hear
from dslth_jax.group_lasso import group_norms, proximal_group_lasso, proximal_step
from dslth_jax.masks import density, fuse, kept_entries, pack, threshold, unpack
from dslth_jax.mcepl import Hyper, kept_by_layer, mce_pl
from dslth_jax.models import Network, network_by_name, network_of
from dslth_jax.population import Shares, State, over_agents, world_of
from dslth_jax.topology import Graph, graph_of

__version__ = "0.0.1"

__all__ = [
    "Algorithm", "Batches", "Graph", "Heard", "Hyper", "Network", "Shares", "State", "World",
    "density", "evaluate", "fuse", "graph_of", "group_norms", "hear", "kept_by_layer", "kept_entries", "mce_pl",
    "neighbour_mean", "network_by_name", "network_of", "over_agents", "pack", "proximal_group_lasso",
    "proximal_step", "threshold", "unpack", "world_of",
]  # fmt: skip
