"""Decentralized, personalized learning by binary masks, in JAX.

A map of the modules, in the order in which data flows. Imports run downward only.

    naming          what is said of names that do not exist
    keys            random keys and draws that the environment does not change
    masks           fuse, threshold (straight-through), density, pack and unpack
    group_lasso     group norms, penalty, proximal step (also as an optax transformation)
    schedules       factors on traced settings as functions of the traced round
    partition       labels -> which samples each agent holds
    skew            how each agent sees images: turned, noisy
    graphs          who hears whom: a sparse mixing matrix by its edges; graphs that change from round to round
    networks/       Network(init, apply): the zoo, its fast convolution; the only folder that imports flax
    algorithm       the form of an algorithm: Algorithm, World, Batches, Message, Heard
    algorithms/     the paper's method and its rivals in that form, one file each; local descent
    exchange        sparse mixing matrix times stacked messages -> heard
    population      the driver: one round of everyone
    evaluation      per-agent accuracy on its own test samples
    sharding        agents over devices
    codec/          masks <-> messages that a link carries, exactly
    study/          the engine: from settings to run folders; the core imports nothing of it

Two worlds: a function is written for one agent and knows no agents axis, or for the population, where every per-agent
leaf has a leading agents axis. Only `population.over_agents`, and `update_agents` where agents carry something, lead
from the first into the second.
"""

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, mean_with_own, neighbour_mean
from dslth_jax.algorithms.mce_pl import Hyper, MaskRule, fine_tune, kept_by_layer, mce_pl
from dslth_jax.codec import CodecError, MissingPastError, Receiver, Sender, SentMask, decode, encode
from dslth_jax.evaluation import Evaluation, evaluate
from dslth_jax.exchange import hear
from dslth_jax.graphs import Graph, Topology, graph_of, metropolis, topology_by_name
from dslth_jax.group_lasso import group_norms, penalty, proximal_group_lasso, proximal_step
from dslth_jax.masks import density, drop_filters, fuse, kept_entries, pack, revive, threshold, unpack
from dslth_jax.networks.network import Network, network_of
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.partition import Partition, partition_by_name
from dslth_jax.population import Shares, State, draw_weights, graph_in, over_agents, update_agents, world_of
from dslth_jax.schedules import at_round, schedule_by_name
from dslth_jax.sharding import agents_mesh, over_devices
from dslth_jax.skew import Skew, skew_by_name

__version__ = "0.3.1"

__all__ = [
    "Algorithm", "Batches", "CodecError", "Evaluation", "Graph", "Heard", "Hyper", "MaskRule", "Message",
    "MissingPastError", "Network", "Partition", "Receiver", "Sender", "SentMask", "Shares", "Skew", "State", "Topology",
    "World",
    "agents_mesh", "at_round", "decode", "density", "draw_weights", "drop_filters", "encode", "evaluate", "fine_tune",
    "fuse", "graph_in", "graph_of", "group_norms", "hear", "kept_by_layer", "kept_entries", "mce_pl",
    "mean_with_own",
    "metropolis", "neighbour_mean", "network_by_name", "network_of", "over_agents", "over_devices", "pack",
    "partition_by_name", "penalty", "proximal_group_lasso", "proximal_step", "revive", "schedule_by_name",
    "skew_by_name", "threshold", "topology_by_name", "unpack", "update_agents", "world_of",
]  # fmt: skip
