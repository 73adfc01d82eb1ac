"""Augmentation: moved like numpy's padding with explicit offsets, drawn evenly, and what the driver makes of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from asked import draws
from test_population import AGENTS, BATCH, TURNED, WORLD, setting

from dslth_jax import augment, population
from dslth_jax.algorithm import Algorithm, Message
from dslth_jax.augment import Moves
from dslth_jax.graphs import graph_of
from dslth_jax.skew import Skew, see

KEY = jax.random.key(3)


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape), jnp.uint8)


def by_padding(images, down, right, flipped):
    """One image after another: flipped, padded by its reflection, cut out."""
    height, width = images.shape[1:3]
    made = []
    for image, below, beside, turned in zip(np.asarray(images), down, right, flipped, strict=True):
        image = image[:, ::-1] if turned else image
        far = max(abs(below), abs(beside))
        padded = np.pad(image, ((far, far), (far, far), (0, 0)), mode="reflect")
        made.append(padded[far + below : far + below + height, far + beside : far + beside + width])
    return np.stack(made)


@pytest.mark.parametrize("shape", [pytest.param((8, 8, 1), marks=pytest.mark.slow), (9, 6, 3), (2, 3, 2)])
def test_images_moved_by_given_offsets_are_those_that_numpy_pads(shape):
    """Every offset below the side, with and without a flip."""
    most = min(shape[:2]) - 1
    span = range(-most, most + 1)
    down, right, flipped = map(np.array, zip(*itertools.product(span, span, (False, True)), strict=True))
    images = images_of(len(down), *shape)
    moves = Moves(*(jnp.asarray(own, jnp.int32) for own in (down, right)), jnp.asarray(flipped))
    np.testing.assert_array_equal(augment.moved(images, moves), by_padding(images, down, right, flipped))
    unflipped = augment.moved(images, moves._replace(flipped=None))
    np.testing.assert_array_equal(unflipped, by_padding(images, down, right, np.zeros_like(flipped)))


def test_offsets_are_drawn_evenly_in_both_directions_and_flips_by_chance():
    number, deviations = 9_000, 5
    drawn = augment.offsets(KEY, jnp.zeros((number, 16, 32, 1), jnp.uint8))
    for own, reach in ((drawn.down, 2), (drawn.right, 4)):
        values, counts = np.unique(own, return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        share = 1 / (2 * reach + 1)
        assert (np.abs(counts - number * share) < deviations * np.sqrt(number * share * (1 - share))).all()
    assert abs(np.corrcoef(drawn.down, drawn.right)[0, 1]) < deviations / np.sqrt(number)
    # An image of its columns' numbers says whether it was flipped.
    columns = jnp.broadcast_to(jnp.arange(6, dtype=jnp.uint8)[:, None], (number, 6, 6, 1))
    np.testing.assert_array_equal(augment.crop(KEY, columns), columns)  # an eighth of 6 pixels is none
    flipped = np.asarray(augment.flip_crop(KEY, columns))[:, 0, 0, 0] == 5
    assert abs(flipped.mean() - 0.5) < deviations * 0.5 / np.sqrt(number)


@pytest.mark.parametrize("kind", [augment.crop, augment.flip_crop])
def test_each_image_is_one_that_a_draw_can_make_of_it(kind):
    images = images_of(200, 8, 8, 3)
    made, seen = np.asarray(kind(KEY, images)), set()
    flips = (False, True) if kind is augment.flip_crop else (False,)
    for image, own in zip(images, made, strict=True):
        ways = list(itertools.product((-1, 0, 1), (-1, 0, 1), flips))
        possible = by_padding(np.stack([image] * len(ways)), *zip(*ways, strict=True))
        (fitting,) = (possible == own).all(axis=(1, 2, 3)).nonzero()
        assert fitting.size == 1
        seen.add(int(fitting[0]))
    assert len(seen) == 9 * len(flips)
    assert (np.asarray(kind(jax.random.key(4), images)) != made).any()


def looking():
    """An algorithm that says which minibatches it gets in each phase, and does nothing else."""

    def send(key, world, hyper, agent, heard, batches):
        return agent, None, Message(), {"sent on": batches}

    def receive(key, world, hyper, agent, carry, heard, batches):
        return agent, {"received on": batches}

    return Algorithm(lambda *_: (None, Message()), send, receive, None)


@functools.cache
def telling(chunk, kind):
    """The compiled round of two local steps that does."""

    @jax.jit
    def step(shares, round):
        world, hyper = WORLD._replace(round=round), jnp.arange(AGENTS)
        graph = graph_of(np.zeros((AGENTS, AGENTS), bool))
        state = population.init(looking(), world, hyper, graph, agents=AGENTS, chunk=chunk)._replace(round=round)
        fixed = {"batch_size": BATCH, "local_steps": 2, "chunk": chunk, "augment": kind}
        return population.round(looking(), world, hyper, state, shares, graph, **fixed)[1]

    return step


def seen_in(shares, round=0, chunk=1, kind=None):
    """The minibatches of both phases of a round."""
    info = jax.device_get(telling(chunk, kind)(shares, jnp.int32(round)))
    return info["sent on"], info["received on"]


def moved_by_hand(kind, shares):
    """The images of each agent's two local steps, and of the minibatch behind them."""

    def of_agent(number, drawn, skew):
        keys = jax.random.split(population.agent_key(WORLD, number, population.DRAW), 3)
        own = jax.vmap(lambda key: jax.random.fold_in(key, population.AUGMENT))(keys)
        return jax.vmap(lambda key, drawn: kind(key, see(shares.images[drawn], drawn, skew)))(own, drawn)

    drawn, _ = draws(WORLD, shares, 2, BATCH)
    images = jax.jit(jax.vmap(of_agent))(jnp.arange(AGENTS), drawn, jax.tree.map(jnp.asarray, shares.skew))
    return images[:, :2], images[:, 2]


@pytest.mark.parametrize(
    ("kind", "skew"),
    [
        pytest.param(augment.crop, TURNED, id="crop", marks=pytest.mark.slow),
        pytest.param(augment.flip_crop, Skew(), id="flip"),
    ],
)
def test_the_driver_moves_what_agents_see_by_a_key_of_the_minibatch(kind, skew):
    """In both phases alike, whatever the chunk, anew in every round; which samples are drawn does not change."""
    shares = setting().shares._replace(skew=skew)
    plain, _ = seen_in(shares)
    sent, received = seen_in(shares, kind=kind)
    jax.tree.map(np.testing.assert_array_equal, sent, received)
    jax.tree.map(np.testing.assert_array_equal, sent, seen_in(shares, kind=kind, chunk=AGENTS)[0])
    for own, before in ((sent.steps, plain.steps), (sent.extra, plain.extra)):
        np.testing.assert_array_equal(own.labels, before.labels)
        np.testing.assert_array_equal(own.present, before.present)
    for agent, (steps, extra) in enumerate(zip(*moved_by_hand(kind, shares), strict=True)):
        np.testing.assert_array_equal(sent.steps.images[agent], steps)
        np.testing.assert_array_equal(sent.extra.images[agent], extra)
    later, _ = seen_in(shares, round=1, kind=kind)
    assert (later.steps.images != sent.steps.images).any(axis=(1, 2, 3, 4, 5)).all()


def test_without_augmentation_a_minibatch_is_of_the_samples_drawn():
    shares = setting().shares
    own, _ = seen_in(shares)
    drawn, _ = draws(WORLD, shares, 2, BATCH)
    np.testing.assert_array_equal(own.steps.images, shares.images[drawn[:, :2]])
    np.testing.assert_array_equal(own.extra.images, shares.images[drawn[:, 2]])
