"""Of which random keys a network's layers may have been drawn. One agent's world."""

from collections.abc import Iterator

import jax
from flax.core.scope import LazyRng
from jaxtyping import Array, Key

from dslth_jax.keys import reproducible

FIRST_OF_MODULE = 4  # parameters of a module whose keys are made


@reproducible
def layer_keys(key: Key[Array, ""], name: str, place: int, layers: int) -> Iterator[Key[Array, ""]]:
    """The keys that a masked layer may have, where the network's `init` had `key`; see `network_of`.

    One of as many as there are `layers`, at its `place` among them, as `draw_weights` draws by a name of `WEIGHTS`. Or
    what flax makes for one of the first parameters of the layer's module, where that draws its own.
    """
    made = [jax.random.split(key, layers)[place]]
    made += [LazyRng.create(key, *name.split("/")[:-1], count).as_jax_rng() for count in range(FIRST_OF_MODULE)]
    return iter(made)
