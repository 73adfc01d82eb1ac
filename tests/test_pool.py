"""Batches from all agents' images, the yardstick: what a pool holds, how it is drawn from, and runs that do so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from test_augment import seen_in
from test_population import AGENTS, BATCH, SIZES, setting
from tiny import use_tiny_network

from dslth_jax.label_shares import class_counts
from dslth_jax.pool import Pool, draw_pooled, pool_of
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training import memory
from dslth_jax.study.training.plan import fingerprints, plan
from dslth_jax.study.training.prepare import members_of, prepare
from dslth_jax.study.training.programs import compile_programs

CLASSES = 4


def pooled(shares):
    """The same shares, and a pool of what their agents hold."""
    own = [np.asarray(row[:size]) for row, size in zip(shares.indices, SIZES, strict=True)]
    return shares._replace(pool=pool_of(np.asarray(shares.labels), own, CLASSES))


def members(pool):
    """The samples of each class."""
    return [row[:size].tolist() for row, size in zip(np.asarray(pool.indices), np.asarray(pool.sizes), strict=True)]


def test_a_pool_holds_every_sample_that_anybody_holds_once():
    """By class, even those that nobody holds; agents of this population share samples."""
    shares = pooled(setting().shares)
    labels = np.asarray(shares.labels)
    held = np.concatenate([row[:size] for row, size in zip(np.asarray(shares.indices), SIZES, strict=True)])
    assert len(held) > len(set(held.tolist())) > len(labels) // 3
    for number, own in enumerate(members(shares.pool)):
        assert own == sorted({int(one) for one in held if labels[one] == number})
    empty = pool_of(labels, [np.array([], np.int32), np.flatnonzero(labels == 1).astype(np.int32)], 6)
    assert empty.sizes.tolist() == [0, np.sum(labels == 1), 0, 0, 0, 0]


def test_classes_are_drawn_as_often_as_an_agent_holds_them_and_their_samples_evenly():
    rng, number = np.random.default_rng(0), 40_000
    labels = np.repeat(np.arange(4), [20, 5, 9, 3]).astype(np.int32)
    own = rng.permutation([*rng.choice(np.flatnonzero(labels == 0), 3), *rng.choice(np.flatnonzero(labels == 1), 5)])
    pool = pool_of(labels, [np.flatnonzero(labels != 2).astype(np.int32), own.astype(np.int32)])
    # Behind its own is padding, of a class that it does not hold.
    indices = jnp.asarray(np.pad(own, (0, 4), constant_values=labels.size - 1), jnp.int32)
    drawn, present = draw_pooled(jax.random.key(1), labels, indices, jnp.int32(len(own)), pool, number)
    assert present.all()
    counts = np.bincount(drawn, minlength=len(labels))
    expected = np.zeros(len(labels))
    expected[labels == 0], expected[labels == 1] = number * 3 / 8 / 20, number * 5 / 8 / 5
    assert counts[expected == 0].sum() == 0
    held = expected > 0
    # Pearson's statistic, against what it passes once in a hundred thousand keys. This key is fixed.
    statistic = (np.square(counts - expected)[held] / expected[held]).sum()
    assert statistic < scipy.stats.chi2.isf(1e-5, held.sum() - 1)
    # Places are drawn on their own: two in a row are of one class as often as chance has it.
    of_first = labels[np.asarray(drawn)] == 0
    alike = (of_first[1:] == of_first[:-1]).mean()
    assert abs(alike - ((3 / 8) ** 2 + (5 / 8) ** 2)) < 0.02


def test_the_driver_draws_from_the_pool_whatever_the_chunk():
    """Both phases alike, anew in every round; a full minibatch even of agents that hold few images."""
    shares = pooled(setting().shares)
    sent, received = seen_in(shares)
    jax.tree.map(np.testing.assert_array_equal, sent, received)
    jax.tree.map(np.testing.assert_array_equal, sent, seen_in(shares, chunk=AGENTS)[0])
    assert (seen_in(shares, round=1)[0].steps.images != sent.steps.images).any(axis=(1, 2, 3, 4, 5)).all()
    assert sent.steps.present.all()
    assert sent.extra.present.all()
    known = {image.tobytes(): number for number, image in enumerate(np.asarray(shares.images))}
    of_class, foreign = members(shares.pool), 0
    for agent, size in enumerate(SIZES):
        own = np.asarray(shares.indices[agent, :size]).tolist()
        images, labels = sent.steps.images[agent], sent.steps.labels[agent]
        for image, label in zip(images.reshape(-1, 8, 8, 1), labels.ravel().tolist(), strict=True):
            assert known[image.tobytes()] in of_class[label]
            assert label in np.asarray(shares.labels)[own]
            foreign += known[image.tobytes()] not in own
    assert foreign > AGENTS * BATCH // 2


OWN = {"dataset": "digits", "model": "tiny", "algorithm": "independent", "agents": 3, "partition": "dirichlet:0.5"}
OWN |= {"data_fraction": 0.5, "rounds": 2, "batch_size": 16, "topology": "ring", "images": "pooled"}


@pytest.fixture
def two(monkeypatch):
    """Members of two seeds, whose pools hold unequally many samples of each class."""
    use_tiny_network(monkeypatch)
    both = members_of(Settings(**OWN), [{}], seeds=2)
    assert len({one.train.pool.sizes.tobytes() for one in both}) == 2
    assert len({one.train.pool.indices.shape for one in both}) == 2
    return both


def losses(members):
    """Of two rounds, (members, agents) each; of what pads members to the devices nothing."""
    programs = compile_programs(plan(members))
    state, found = programs.start(), []
    for _ in range(2):
        state, info = programs.step(state)
        found.append(info["loss"][: len(members)])
    return np.stack(found, axis=1)


@pytest.mark.slow
def test_seeds_of_a_sweep_are_the_single_runs(two):
    """Even the one whose pool is padded to the width of the other."""
    narrow = int(np.argmin([one.train.pool.indices.shape[1] for one in two]))
    together = losses(two)
    np.testing.assert_array_equal(together[narrow], losses([two[narrow]])[0])
    assert (together[0] != together[1]).all()


def test_a_pool_counts_among_what_a_run_learns_from_and_holds(two):
    own, pool = prepare(Settings(**OWN | {"images": "own"})), two[0].train.pool
    counts = class_counts(own.train.labels, own.train.indices, own.train.sizes, 10).sum(axis=0)
    np.testing.assert_array_equal(pool.sizes, counts)
    assert own.train.pool is None
    assert two[0].tests.pool is None
    changed = [name for name, digest in fingerprints([own])[0].items() if fingerprints([two[0]])[0][name] != digest]
    assert changed == ["the training samples"]
    for devices in (1, 3):
        more = memory.bytes_of_samples(two[0].train, devices) - memory.bytes_of_samples(own.train, devices)
        assert more == memory.bytes_of(pool) == pool.indices.nbytes + pool.sizes.nbytes


@pytest.mark.parametrize("algorithm", ["mce-pl", "mask-mean", "dsgd", "dis-pfl", "fedpm"])
def test_whoever_hears_others_has_no_pool(algorithm):
    settings = Settings(dataset="digits", agents=3, algorithm=algorithm, images="pooled")
    with pytest.raises(ValueError, match=f"^--images means nothing to --algorithm {algorithm}, only to independent, "):
        prepare(settings)


def test_local_training_takes_a_pool():
    prepared = prepare(Settings(dataset="digits", agents=3, algorithm="local", images="pooled", topology="ring"))
    assert isinstance(prepared.train.pool, Pool)
