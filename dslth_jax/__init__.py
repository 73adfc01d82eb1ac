"""Decentralized, personalized learning by binary masks, in JAX.

A map of the modules, in the order in which data flows. Imports run downward only.

    naming          what is said of names that do not exist
    keys            random keys and draws that the environment does not change
    masks           fuse, threshold (straight-through), density, pack and unpack
    group_lasso     group norms, penalty, proximal step (also as an optax transformation)
    subset_sums     which of n numbers add up nearest to a target, exactly: what strong lottery tickets stand on
    tickets         a target network as a masked random one of twice the depth, by the theorem's construction
    schedules       factors on traced settings as functions of the traced round
    class_lists     which classes each agent holds
    tested_on       which samples each agent is tested on, and holds back to be validated on
    owners          whose each sample is, as the data says
    partition       labels -> which samples each agent holds
    label_shares    what came of it: counts of classes, overlap of two agents, how unlike agents are
    skew            how each agent sees images: turned, noisy
    augment         how images vary from minibatch to minibatch: moved, flipped
    pool            a yardstick: batches drawn from all agents' samples
    mixing          who hears whom: a sparse mixing matrix by its edges, of a matrix or a graph of one's own
    graphs          generators of such; graphs that change from round to round
    graph_report    what such a graph is like: degrees, connectedness, spectral gap
    networks/       Network(init, apply): the zoo, its fast operations, its cost, its wiring
    algorithm       the form of an algorithm: Algorithm, World, Batches, Message, Heard
    retention       how many entries of each layer masks keep, by policy
    depth           which residual blocks an agent lacks, and what it then does not send
    channels        channels that die as the wiring says, and what is kept of those that live
    algorithms/     the paper's method and its rivals in that form, one file each; local descent
    links           what happens to messages on their way
    control         what sets the settings of each round
    target_channels a controller that finds the strength at which so many channels are left
    bandwidth       how fast links are over simulated time
    clock           how long a round takes each agent, and who is late
    over_agents     the one crossing from one agent's world into the population's
    message_sizes   what is in everybody's messages, counted
    codec/          masks <-> messages that a link carries, exactly
    exchange        sparse mixing matrix times stacked messages -> heard
    population      the driver: one round of everyone
    budgets         controllers that set retentions by simulated time
    depth_budgets   one that sets how many residual blocks agents have
    evaluation      per-agent accuracy on its own test samples
    compaction      a mask -> a smaller network with the same answers
    sharding        agents over devices
    export/         what an agent has come to, as files that run elsewhere
    study/          the engine: from settings to run folders; the core imports nothing of it
    __main__        the engine's commands by name, `study.dslth`

Here are the functions and types that other code reuses most; all else is reached through the namespaces, such as
`dslth_jax.graphs.regular` or `dslth_jax.algorithms.dsgd`. `load` (the agents of a run) and `load_data` alone are of the
engine, which is imported when it is first asked for.

Two worlds: a function is written for one agent and knows no agents axis, or for the population, where every per-agent
leaf has a leading agents axis. Only `over_agents.over_agents`, and `update_agents` where agents carry something,
lead from the first into the second.
"""

from typing import Any

from dslth_jax import algorithms, codec, control, graphs, links, networks, partition, population
from dslth_jax.algorithm import Heard, Message, World, mean_with_own, neighbour_mean
from dslth_jax.evaluation import evaluate
from dslth_jax.masks import fuse, kept_entries, pack, threshold, unpack
from dslth_jax.mixing import Graph
from dslth_jax.networks import Network

__version__ = "0.21.0"

__all__ = [
    "Graph", "Heard", "Message", "Network", "World", "algorithms", "codec", "control", "evaluate", "fuse", "graphs",
    "kept_entries", "links", "load", "load_data", "mean_with_own", "neighbour_mean", "networks", "pack", "partition",
    "population", "threshold", "unpack",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "load":
        from dslth_jax.study.results.models import load

        return load
    if name == "load_data":
        from dslth_jax.study.data.datasets import load as load_data

        return load_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
