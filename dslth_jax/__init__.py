"""Decentralized, personalized learning by binary masks, in JAX.

A map of the modules, in the order in which data flows. Imports run downward only.

    naming          what is said of names that do not exist
    files           files that a user names: read whole, or why not
    data            name or file -> Dataset of uint8 images and labels
    partition       labels -> which samples each agent holds
    skew            how each agent sees images: turned, noisy
    topology        graphs -> sparse mixing matrix by its edges; graphs that change from round to round
    convolution     a convolution and a max pooling that stay fast under vmap over kernels
    models          Network(init, apply): the zoo; the only file that imports flax
    masks           fuse, threshold (straight-through), density, pack and unpack
    group_lasso     group norms, penalty, proximal step (also as an optax transformation)
    schedules       factors on traced settings as functions of the traced round
    algorithm       the form of an algorithm: Algorithm, World, Batches, Message, Heard
    exchange        sparse mixing matrix times stacked masks, and floats -> heard
    entropy         layers of packed bits <-> the fewest bytes; the only file that imports constriction
    codec           masks <-> messages that a link carries, exactly; what both ends of a link remember
    descent         the loss of a minibatch, and local steps by any optimizer
    mcepl           MCE-PL: Hyper, its switches; local step, fine-tuning; init, send, receive, model
    baselines       rivals in the common form, one file each: local, dsgd, dispfl, independent, mask_mean, fedpm
    population      the driver: one round of everyone
    evaluation      per-agent accuracy on its own test samples
    memory          what a run holds in memory, by a formula, and what there is
    placement       agents over devices and hosts
    arrays          arrays of a pytree in a folder and back; the only file that imports orbax
    manifest        folders that say what they hold, and are seen to be whole
    checkpoint      save and restore a state between rounds, whole or not at all

Two worlds: a function is written for one agent and knows no agents axis (skew, convolution, models, masks,
group_lasso, schedules, entropy, codec, descent, mcepl, baselines), or for the population, where every per-agent leaf
has a leading agents axis (partition, topology, population, evaluation, memory, placement, checkpoint). Only
`population.over_agents`, and `update_agents` where agents carry something, lead from the first into the second.
"""

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, mean_with_own, neighbour_mean
from dslth_jax.codec import CodecError, MissingPastError, Receiver, Sender, SentMask, decode, encode
from dslth_jax.data import Dataset
from dslth_jax.evaluation import Evaluation, evaluate
from dslth_jax.exchange import hear
from dslth_jax.group_lasso import group_norms, penalty, proximal_group_lasso, proximal_step
from dslth_jax.masks import density, drop_filters, fuse, kept_entries, pack, revive, threshold, unpack
from dslth_jax.mcepl import Hyper, MaskRule, fine_tune, kept_by_layer, mce_pl
from dslth_jax.memory import footprint
from dslth_jax.models import Network, network_by_name, network_of
from dslth_jax.partition import Partition, partition_by_name
from dslth_jax.placement import agents_mesh, over_devices
from dslth_jax.population import Shares, State, draw_weights, graph_in, over_agents, update_agents, world_of
from dslth_jax.schedules import at_round, schedule_by_name
from dslth_jax.skew import Skew, skew_by_name
from dslth_jax.topology import Graph, Topology, graph_of, metropolis, topology_by_name

__version__ = "0.3.1"

__all__ = [
    "Algorithm", "Batches", "CodecError", "Dataset", "Evaluation", "Graph", "Heard", "Hyper", "MaskRule", "Message",
    "MissingPastError", "Network", "Partition", "Receiver", "Sender", "SentMask", "Shares", "Skew", "State", "Topology",
    "World",
    "agents_mesh", "at_round", "decode", "density", "draw_weights", "drop_filters", "encode", "evaluate", "fine_tune",
    "footprint", "fuse", "graph_in", "graph_of", "group_norms", "hear", "kept_by_layer", "kept_entries", "mce_pl",
    "mean_with_own",
    "metropolis", "neighbour_mean", "network_by_name", "network_of", "over_agents", "over_devices", "pack",
    "partition_by_name", "penalty", "proximal_group_lasso", "proximal_step", "revive", "schedule_by_name",
    "skew_by_name", "threshold", "topology_by_name", "unpack", "update_agents", "world_of",
]  # fmt: skip
