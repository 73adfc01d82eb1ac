"""How neighbours pull at scores: what moves, what stays, and where two agents without gradients come to rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import heard_of

from dslth_jax import links, masks
from dslth_jax.algorithm import LEVELS, Message, belongs_to, least_of_levels, neighbour_mean, sum_of_signs
from dslth_jax.algorithms import consensus
from dslth_jax.algorithms.masked import MaskRule, personal_masks
from dslth_jax.algorithms.mce_pl import Agent, Hyper, mce_pl, pulled
from dslth_jax.exchange import hear, present_first
from dslth_jax.graphs import Graph, graph_of
from dslth_jax.keys import key_of
from dslth_jax.message_sizes import kept_of_layers
from dslth_jax.networks.zoo import network_by_name

SIZE = 400


def scores_of(seed, size=SIZE):
    return {"layer": jnp.asarray(np.random.default_rng(seed).normal(size=size))}


def mask_of(scores, count):
    return {"layer": masks.threshold(scores["layer"], count)}


def heard_from(mask, weight=1.0):
    """What an agent hears of one neighbour, or of several that keep the same."""

    def level_of(leaf):
        kept, level = jnp.sum(leaf), (jnp.mean(leaf) * LEVELS).astype(int)
        beyond = kept - jnp.asarray(least_of_levels(leaf.size))[level]
        return jnp.zeros((2, LEVELS)).at[:, level].set(weight * jnp.stack([jnp.ones_like(kept), beyond]))

    heard = heard_of(weight, jax.tree.map(lambda leaf: weight * leaf, mask))
    return heard._replace(levels={name: level_of(leaf) for name, leaf in mask.items()})


def moved_by(scores, heard, strength=1.0, spoke=True):
    """Scores after the force, and the steps that are left to count."""
    agent = Agent(scores, None, jnp.asarray(0.5))
    after = jax.jit(pulled)(Hyper({}, force=strength), agent, None, heard._replace(spoke=jnp.array(spoke)))
    return after.scores["layer"], float(after.stepped)


def test_sums_beyond_int32_are_sums():
    """Of 60,000 neighbours who keep all of a layer of which the agent keeps nothing: nothing is preferred."""
    counts = {"layer": jnp.full((1024, 64), 60_000, jnp.uint16)}
    heard = heard_of(jnp.int32(60_000), counts)
    assert not np.asarray(consensus.force({"layer": jnp.zeros((1024, 64))}, heard)["layer"]).any()


def test_a_force_moves_magnitudes_by_what_neighbours_keep_more_than_the_agent(x64):
    """By hand, from the formula; the sign of a score stays, and the steps that were used are not counted again."""
    z = scores_of(0)
    own, theirs = mask_of(z, 100), mask_of(scores_of(1), 100)
    after, left = moved_by(z, heard_from(theirs, 3.0), strength=2.0)
    f = np.asarray(theirs["layer"] - own["layer"])  # both keep as many, so that nothing is left to centre
    by_hand = np.sign(z["layer"]) * np.maximum(np.abs(z["layer"]) + 2.0 * 0.5 * f, 1e-9)
    np.testing.assert_allclose(after, np.where(f != 0, by_hand, z["layer"]), rtol=1e-14)
    assert left == 0.0


def test_agents_that_rank_alike_leave_each_other_in_peace_behind_the_filter_rule(x64):
    """Both drop the same filter, the weakest, which neither is to learn from the other, nor what fills its place."""
    z = np.random.default_rng(0).normal(size=(3, 3, 2, 8))
    z[..., 0] /= 4
    scores, rule = {"conv/kernel": jnp.asarray(z)}, MaskRule(smallest_filter=4)
    mask = personal_masks(scores, {"conv/kernel": jnp.int32(60)}, {"conv/kernel": "convolution"}, rule)
    assert 0 < np.sum(mask["conv/kernel"]) < 60
    sent = {"conv/kernel": masks.pack(mask["conv/kernel"])}
    agent = Agent(scores, None, jnp.asarray(0.5))
    after = jax.jit(pulled, static_argnums=(4, 5))(Hyper({}), agent, sent, heard_from(mask), 0.0, rule)
    np.testing.assert_array_equal(after.scores["conv/kernel"], z)
    algorithm = mce_pl(network_by_name("small", (8, 8, 1), 10), fusion="force", mask_sent="own", mask_rule=rule)
    assert not algorithm.hears_levels


@pytest.mark.parametrize("case", ["silent round", "nobody heard", "layer that nobody sends", "no strength"])
def test_where_nothing_is_heard_nothing_moves(case, x64):
    """Not a bit, even of scores that are smaller than the floor."""
    z = {"layer": scores_of(0)["layer"].at[:5].set(1e-12).at[5].set(0.0)}
    theirs = mask_of(scores_of(1), 100)
    heard = heard_from(theirs, 0.0 if case == "nobody heard" else 1.0)
    if case == "layer that nobody sends":
        heard = heard_of(1.0)
    strength = 0.0 if case == "no strength" else 2.0
    after, left = moved_by(z, heard, strength, spoke=case != "silent round")
    np.testing.assert_array_equal(after, z["layer"])
    assert left == (0.5 if case == "silent round" else 0.0)


def settled(counts, steps, *, centred=True, beside=consensus.own_beside):
    """The scores of two agents that hear each other for so many rounds, with a force of these steps and no gradient."""

    def of_one(z, own, theirs):
        heard = heard_from(theirs)
        return consensus.force(beside(z, heard), heard) if centred else jax.tree.map(jnp.subtract, theirs, own)

    def step(zs, size):
        own = [mask_of(z, count) for z, count in zip(zs, counts, strict=True)]
        forces = [of_one(zs[i], own[i], own[1 - i]) for i in (0, 1)]
        return [consensus.pull(z, jax.tree.map(lambda f: size * f, f)) for z, f in zip(zs, forces, strict=True)], None

    return jax.jit(lambda zs: jax.lax.scan(step, zs, steps)[0])([scores_of(0), scores_of(1)])


def test_agents_of_unlike_retention_leave_each_other_on_the_scale(x64):
    """Of retention 0.1 and 0.7. Uncentred, half of the scores of the denser one end on the floor."""
    counts, steps = (SIZE // 10, 7 * SIZE // 10), jnp.full(200, 0.01)
    on_the_floor = [np.mean(np.abs(settled(counts, steps, centred=way)[1]["layer"]) <= 1e-9) for way in (False, True)]
    assert on_the_floor[0] > 0.4
    assert on_the_floor[1] < 0.05


def test_agents_that_rank_alike_leave_each_other_in_peace_whatever_they_keep(x64):
    """Of retention 0.1 and 0.7 with the same scores: the force is 0, bit for bit, where the centred difference of the
    masks themselves is not."""
    z, counts = scores_of(0), (SIZE // 10, 7 * SIZE // 10)
    for own, theirs in (counts, counts[::-1]):
        heard = heard_from(mask_of(z, theirs), 3.0)
        np.testing.assert_array_equal(consensus.force(consensus.own_beside(z, heard), heard)["layer"], 0)
        by_masks = consensus.force(consensus.weighted(mask_of(z, own), heard), heard)
        assert np.abs(by_masks["layer"]).max() > 0.3


@pytest.mark.parametrize(("counts", "at"), [([200, 360, 40], [200, 360, 40]), ([25, 26, 40], [26, 26, 40])])
def test_neighbours_of_several_retentions_are_each_compared_at_their_own(x64, counts, at):
    """Against numpy: own masks at three retentions, weighted, from messages over a graph. Where retentions are nearly
    the same, at their mean, a half rounded up wherever the interval of both begins."""
    z, counts = scores_of(0), [40, *counts]
    sent = jnp.stack([masks.pack(masks.threshold(scores_of(1 + i)["layer"], k)) for i, k in enumerate(counts)])
    graph = graph_of(np.array([[0, 1, 1, 1], *[[0] * 4] * 3], bool))
    message, like = Message({"layer": sent}), Message({"layer": jnp.zeros(SIZE)})
    heard = hear(message, graph, jnp.int32(0), like, kept=kept_of_layers(message))
    wanted = sum(np.asarray(masks.threshold(z["layer"], k)) for k in at)
    np.testing.assert_array_equal(consensus.own_beside(z, heard)["layer"], wanted)


def test_two_agents_without_gradients_come_to_keep_the_same(x64):
    """The fixed point of the force: where masks are equal it is 0. Steps that fall let masks settle."""
    zs = settled((100, 100), 0.05 * 0.98 ** jnp.arange(600))
    first, second = (np.asarray(mask_of(z, 100)["layer"]) for z in zs)
    assert np.sum(first != second) <= 0.02 * SIZE


def test_links_weigh_as_much_as_masks_agree():
    """The correlation of bits, over all layers by their size, against numpy; who disagrees is not heard."""
    rng = np.random.default_rng(0)
    kept = {"a": rng.random((4, 64)) < 0.3, "b": rng.random((4, 200)) < 0.8}
    kept["a"][1] = kept["a"][0]
    kept["b"][1] = kept["b"][0]
    kept["a"][2], kept["b"][2] = ~kept["a"][0], ~kept["b"][0]
    packed = {name: jnp.stack([masks.pack(jnp.asarray(row)) for row in own]) for name, own in kept.items()}
    graph = graph_of(~np.eye(4, dtype=bool))
    _, weighed, _, sent = links.by_similarity().transmit(key_of(0), None, graph, Message(packed))
    for sender, receiver, weight in zip(graph.senders, graph.receivers, np.asarray(weighed.weights), strict=True):
        each = [(np.corrcoef(own[sender], own[receiver])[0, 1], own.shape[1]) for own in kept.values()]
        wanted = sum(value * size for value, size in each) / sum(size for _, size in each)
        np.testing.assert_allclose(weight, max(wanted, 0), atol=1e-5)
    assert sent.tolist() == [3] * 4
    nobody = graph_of(np.zeros((4, 4), bool))
    assert links.by_similarity().transmit(key_of(0), None, nobody, Message(packed))[3].tolist() == [0] * 4


def test_what_links_lose_is_sent_again_until_it_arrives(x64):
    """Sums of all that was ever heard are, a few exchanges later, those of links that lose nothing; each message that a
    link loses is counted again. Edges that are absent, as where graphs are padded, change nothing."""
    agents, exchanges, layer = 4, 40, (24,)
    graph = graph_of(~np.eye(agents, dtype=bool))
    padding = Graph(np.zeros(3, np.int32), np.full(3, agents - 1, np.int32), np.zeros(3, np.uint8), graph.own)
    padded = jax.tree.map(lambda *parts: np.concatenate(parts), graph, padding)._replace(own=graph.own)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (exchanges, agents, 3)).astype(np.uint8)
    bits[-16:] = 0  # and of no size: what is late arrives, and adds nothing of its own
    scales = rng.random((exchanges, agents)) * (np.arange(exchanges) < exchanges - 16)[:, None]
    messages = Message({"layer": jnp.asarray(bits)}, scales={"layer": jnp.asarray(scales)})
    lost = links.resent(0.4)

    def total(link, graph):
        start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), messages)
        like = Message({"layer": jnp.zeros(layer)}, scales={"layer": jnp.zeros(())})

        def exchange(carry, now):
            memory, sums, sent = carry
            number, message = now
            key = jax.random.fold_in(key_of(0), number)
            memory, behind, arriving, listened = link.transmit(key, memory, graph, message)
            behind = present_first(behind, agents)
            heard = jax.vmap(lambda receiver: hear(arriving, behind, receiver, like))(jnp.arange(agents))
            return (memory, sums + jax.vmap(sum_of_signs, (0, None))(heard, "layer"), sent + listened), heard.weight

        begin = (link.init(start), jnp.zeros((agents, *layer)), jnp.zeros(agents, jnp.int32))
        (memory, sums, sent), weight = jax.lax.scan(exchange, begin, (jnp.arange(exchanges), messages))
        return memory, sums, sent, weight["layer"]

    _, wanted, each, _ = total(links.perfect(), graph)
    memory, sums, sent, weight = total(lost, padded)
    np.testing.assert_allclose(sums, wanted, rtol=1e-12)
    assert each.tolist() == [exchanges * (agents - 1)] * agents
    # Of three links that lose two messages of five, each takes 5/3 of what it would take.
    assert 1.4 < sent.sum() / each.sum() < 1.9
    assert int(weight.sum()) == int(each.sum()) - int(memory.owed.sum())  # all that is not owed has arrived once


def test_a_link_that_is_away_for_a_while_goes_on_owing():
    """Each message that a link carried is heard once, also where the link is absent in between; the others never."""
    agents, exchanges, link = 3, 60, links.resent(0.5, keep=40)
    graph = graph_of(~np.eye(agents, dtype=bool))
    start = Message({"layer": jnp.zeros((agents, 1), jnp.uint8)})
    there = np.random.default_rng(0).random((exchanges, graph.senders.size)) < 0.7
    there[-12:] = True  # whatever is still owed arrives

    def exchange(memory, now):
        number, present = now
        own = jnp.full((agents, 1), number, jnp.uint8)
        key = jax.random.fold_in(key_of(0), number)
        memory, again, kept, _ = link.transmit(key, memory, graph._replace(weights=present), Message({"layer": own}))
        return memory, jnp.where(again.weights != 0, kept.masks["layer"][again.senders, 0], 255)

    steps = jnp.arange(exchanges), jnp.asarray(there, jnp.uint8)
    _, heard = jax.jit(lambda: jax.lax.scan(exchange, link.init(start), steps))()
    by_edge = np.asarray(heard).reshape(exchanges, graph.senders.size, -1)
    for edge, carried in enumerate(there.T):
        arrived = sorted(by_edge[:, edge][by_edge[:, edge] != 255].tolist())
        wanted = np.flatnonzero(carried).tolist()
        last = exchanges - 12
        assert [number for number in arrived if number < last] == [number for number in wanted if number < last]


def test_who_holds_every_neighbour_catches_up_on_graphs_that_change(x64):
    """By a loop: each asks for what it lacks of those it hears, at most for their sum in floats, and gets the sums."""
    agents, exchanges, rate = 4, 60, 0.4
    rng, link, key_of_round = (
        np.random.default_rng(1),
        links.added_up(rate),
        functools.partial(jax.random.fold_in, key_of(0)),
    )
    bits = rng.integers(0, 256, (exchanges, agents, 3)).astype(np.uint8)
    scales = rng.random((exchanges, agents))
    memory = link.init(Message({"layer": jnp.asarray(bits[0])}, scales={"layer": jnp.asarray(scales[0])}))
    told, lacks, most = np.zeros((agents, 24)), np.zeros((agents, agents), int), 0
    transmit = jax.jit(link.transmit)
    for number in range(exchanges):
        present = rng.random((agents, agents)) < 0.1
        graph = graph_of(np.ones((agents, agents), bool) & ~np.eye(agents, dtype=bool))
        graph = graph._replace(weights=present[graph.receivers, graph.senders].astype(np.uint8))
        message = Message({"layer": jnp.asarray(bits[number])}, scales={"layer": jnp.asarray(scales[number])})
        came = np.asarray(links.arrivals(key_of_round(number), graph, rate))
        memory, behind, arriving, sent = transmit(key_of_round(number), memory, graph, message)
        up = np.stack([np.asarray(masks.unpack(jnp.asarray(own), (24,))) for own in bits[number]])
        told += (2.0 * up - 1) * scales[number][:, None]
        lacks += 1
        asked = np.zeros(agents, int)
        for sender, receiver, arrives in zip(graph.senders, graph.receivers, came, strict=True):
            if present[receiver, sender]:
                asked[sender] += min(lacks[receiver, sender], 32)
                most = max(most, lacks[receiver, sender])
                lacks[receiver, sender] *= not arrives
        np.testing.assert_allclose(arriving.values["layer"], told, rtol=1e-12)
        assert sent.tolist() == asked.tolist()
        assert np.array_equal(behind.weights, graph.weights * came)
    assert most > 32


def test_what_is_lost_too_often_is_said_before_a_run():
    graph = graph_of(~np.eye(3, dtype=bool))
    keys = jax.vmap(lambda number: jax.random.fold_in(key_of(0), number))(jnp.arange(60))
    assert not links.loses_for_good(links.resent(0.3), graph, keys)
    assert links.loses_for_good(links.resent(0.9), graph, keys)
    assert links.loses_for_good(links.resent(0.5, keep=2), graph, keys)


def test_layers_go_by_their_module():
    assert belongs_to("params/linear2/kernel", "linear2")
    assert belongs_to("frozen/linear2/bias", "linear2")
    assert belongs_to("linear2/kernel", "linear2/kernel")
    assert not belongs_to("linear20/kernel", "linear2")
    assert not belongs_to("block/linear2/kernel", "linear2")
    silent = neighbour_mean(heard_of(1.0), {"head": jnp.ones(3)})
    assert not silent["head"].any()
