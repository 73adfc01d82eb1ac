"""Keys and draws: whatever the environment says of JAX's random numbers, they are the same."""

import contextlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dslth_jax
from dslth_jax import graphs, links, population
from dslth_jax.algorithm import Message
from dslth_jax.keys import key_of, reproducible
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.skew import Skew, see

NETWORK, GRAPH = network_by_name("mlp", (2, 2, 1), 3), graphs.ring(4).graph
SEEDS = (0, 7, 2**31, 2**32 - 1)


@contextlib.contextmanager
def told(**values):
    """JAX's configuration as if the environment had said so."""
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def otherwise():
    return told(jax_default_prng_impl="rbg", jax_threefry_partitionable=False, jax_random_seed_offset=7)


def data_of(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_key_of_a_seed_is_jaxs_own_whatever_the_environment_says(seed):
    expected = data_of(jax.random.key(seed))
    with otherwise():
        for key in (key_of(seed), key_of(np.uint32(seed)), jax.jit(key_of)(np.uint32(seed))):
            np.testing.assert_array_equal(data_of(key), expected)


def test_a_seed_that_no_32_bits_hold_is_refused():
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"a seed must lie in 0..4294967295, got {seed}$"):
            key_of(seed)


def test_what_draws_at_once_or_traced_draws_as_jax_does_as_it_comes():
    def draw(key):
        return jax.random.bits(jax.random.split(key)[1], (5,))

    expected = np.asarray(draw(key_of(3)))
    with otherwise():
        np.testing.assert_array_equal(reproducible(draw)(key_of(3)), expected)
        np.testing.assert_array_equal(jax.jit(reproducible(draw))(key_of(3)), expected)
        assert (np.asarray(draw(key_of(3))) != expected).any()


DRAWS = {
    "network": lambda: NETWORK.init(key_of(0)),
    "signed constants": lambda: network_by_name("mlp", (2, 2, 1), 3, weights="signed-constant").init(key_of(0)),
    "noise": lambda: see(jnp.zeros((2, 2, 2, 1), jnp.uint8), jnp.arange(2), Skew(noise=np.float32(9.0))),
    "links": lambda: links.dropped(0.5).transmit(key_of(0), None, GRAPH, Message({}, {})),
    "key of weights": lambda: population.weights_key(key_of(0)),
    "world": lambda: population.world_of(NETWORK, key_of(0), 0, 1),
    **{
        kind: lambda topology=topology: topology.redraw(key_of(0), topology.graph)
        for kind, topology in {
            "pairs": graphs.changing_regular(5, degree=2),
            "directed": graphs.changing_regular(5, degree=2, directed=True),
            "erdos-renyi": graphs.changing_erdos_renyi(5, probability=0.5),
        }.items()
    },
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_environment_changes_no_draw(name):
    """What is compiled, as text."""
    plain = jax.jit(DRAWS[name]).lower().as_text()
    with otherwise():
        assert jax.jit(DRAWS[name]).lower().as_text() == plain


def test_a_key_that_the_environment_has_made_another_is_refused():
    """Where agents are computed together, some kinds of keys draw alike for all of them."""
    with otherwise(), pytest.raises(ValueError, match=r"of threefry2x32, got key<rbg>: make it by .*key_of\(seed\)"):
        population.world_of(NETWORK, jax.random.key(0), 0, 1)


def test_keys_are_made_in_one_place():
    for path in Path(dslth_jax.__file__).parent.rglob("*.py"):
        made = re.findall(r"random\.(?:key|PRNGKey)\(", re.sub(r">>>.*|`.*?`", "", path.read_text()))
        assert not made, path
