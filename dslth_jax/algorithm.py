"""The form of every algorithm: four pure functions of one agent's world, and what they exchange.

An algorithm is a factory that checks and closes over what is static and returns an `Algorithm`. Its functions see one
agent; `population.round` maps them over all. A layer goes by its name, which is its key path in the pytree that the
algorithm sends leaves of, such as "conv1/kernel".
"""

from collections.abc import Callable, Collection, Mapping
from functools import reduce
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt8

from dslth_jax.masks import PLANES, pack, planes, unpack

LEVELS = 32  # intervals of shares of entries that neighbours' masks keep


class World(NamedTuple):
    """What all agents know alike in one round."""

    weights: PyTree[Float[Array, "..."]]  # random, shared, never trained, never sent: known from the seed
    frozen: PyTree[Float[Array, "..."]]  # biases and the like, as fixed as the weights, but not masked
    key: Key[Array, ""]  # common to all agents
    round: Int[Array, ""]
    rounds: Int[Array, ""]  # how many the run is to have
    # Whether this round's steps count toward an exchange: those of all rounds do, but for a start without exchanges.
    exchanging: Bool[Array, ""] | bool = True


class Batch(NamedTuple):
    """A minibatch of one agent; several have leading axes."""

    images: UInt8[Array, "*axes batch height width channels"]
    labels: Int[Array, "*axes batch"]
    present: Bool[Array, "*axes batch"]  # False where an agent with fewer samples than the batch has none


class Batches(NamedTuple):
    """The minibatches of one agent in one round."""

    steps: Batch  # of the local steps, along a leading axis
    extra: Batch  # one more, for a gradient that is computed anew


class Message(NamedTuple):
    """What one agent sends, layer by layer. An agent that sends nothing has an empty message.

    Every agent's message has the same names, and no name for a layer that nobody ever sends. Bits need not be the mask
    in use. Where a name has bits and values, values are sent only where the bits are 1. Bits that have a scale are
    signs of numbers of this size, and no mask.
    """

    masks: Mapping[str, UInt8[Array, "..."]] = {}  # packed bits
    values: Mapping[str, Float[Array, "..."]] = {}
    has: Mapping[str, Bool[Array, ""]] | None = None  # whether this message holds the layer; None says all
    scales: Mapping[str, Float[Array, ""]] = {}  # one number a layer, of some of the layers that have bits


class Heard(NamedTuple):
    """What one agent heard of its neighbours, without itself: sums over those whose message of a layer arrived.

    Where links weigh 0 or 1 in uint8, masks are counted in whole numbers, which sum exactly in any order. Other weights
    are floats, and sums are of weighted masks; sums of values are always weighted, edge after edge. Bits that have a
    scale are summed in floats, each times its sender's scale.
    """

    masks: Mapping[str, Shaped[Array, "..."]]  # how many neighbours keep each entry, or their weight
    values: Mapping[str, Float[Array, "..."]]
    weight: Mapping[str, Shaped[Array, ""]]  # of all neighbours that were heard, layer by layer
    own: Float[Array, ""]  # the weight of one's own value in a mean
    spoke: Bool[Array, ""]  # whether this was a round of exchange; an agent may hear nobody in such a round too
    scales: Mapping[str, Float[Array, ""]] = {}  # of all neighbours that were heard, weighted, where layers have any
    # Where an algorithm asks for it, how much masks keep of each layer: the neighbours' weight by the share of entries
    # that they keep, in equal intervals, and this weight times how many they keep beyond the least of these.
    levels: Mapping[str, Float[Array, "2 levels"]] = {}


class Init(Protocol):
    """The start of one agent."""

    def __call__(self, key: Key[Array, ""], world: World, hyper: Any) -> tuple[Any, Message]:
        """What the agent carries, and its start message, which is known from the seed and costs nothing.

        Args:
            key: the agent's own.
            world: of the first round.
            hyper: the agent's traced settings of the first round.
        """
        ...


class Send(Protocol):
    """The work of one agent before the exchange."""

    def __call__(
        self, key: Key[Array, ""], world: World, hyper: Any, agent: Any, heard: Heard, batches: Batches
    ) -> tuple[Any, Any, Message, dict[str, Array]]:
        """The agent anew, what it carries over the exchange, its message, and diagnostics.

        Args:
            key: the agent's own, of this round and phase.
            world: of this round.
            hyper: the agent's traced settings of this round.
            agent: what it carries from round to round.
            heard: what it heard in the last round of exchange.
            batches: its minibatches of this round; `receive` gets the same ones.
        """
        ...


class Receive(Protocol):
    """The work of one agent after the exchange."""

    def __call__(
        self, key: Key[Array, ""], world: World, hyper: Any, agent: Any, carry: Any, heard: Heard, batches: Batches
    ) -> tuple[Any, dict[str, Array]]:
        """The agent anew, and diagnostics, which are never carried.

        Arguments as in `Send`, but for `carry`, which `send` returned, and `heard`, which is of this round: in a silent
        one all sums are zero and `heard.spoke` is False.
        """
        ...


class Model(Protocol):
    """What one agent predicts with."""

    def __call__(self, world: World, hyper: Any, agent: Any, heard: Heard) -> tuple[Any, Any]:
        """The variables for `Network.apply`, and the masks in use, of 0 and 1, or -1 too; None of weight methods.

        `heard` is what the agent heard in the last round of exchange.
        """
        ...


class Algorithm(NamedTuple):
    """Four functions of one agent's world."""

    init: Init
    send: Send
    receive: Receive
    model: Model
    start_known: bool = False  # whether the start message is worth something as the past of the first one that is sent
    # From what an agent carries to the scores whose magnitudes say what its masks keep; None where others do.
    ranked: Callable[[Any], PyTree[Float[Array, "..."]]] | None = None
    # (world, kept, masks) -> the variables of `model`, where its masks, and how many entries of each layer they were to
    # keep, say all of them; None where weights are trained.
    of_masks: Callable[[World, Any, Any], Any] | None = None
    hears_levels: bool = False  # whether it asks how much neighbours keep: `Heard.levels`
    ternary: bool = False  # whether masks hold -1 beside 0 and 1, so that a threshold sees scores with their signs
    adds_up: bool = False  # whether messages are added to what was heard before, so that each is to be heard once


def with_personal_layers(algorithm: Algorithm, layers: Collection[str]) -> Algorithm:
    """The same algorithm, whose agents keep these layers to themselves: they are in no message.

    Nobody hears anything of them, so that m̄ = 0 there and a mean is one's own value. A layer goes by its module, such
    as "linear2", which stands for its kernel and for its bias, or by the name of a leaf, such as "linear2/kernel".
    """
    if not layers:
        return algorithm

    def shared(message: Message) -> Message:
        def rest(of_layers: Mapping[str, Any]) -> dict[str, Any]:
            return {name: leaf for name, leaf in of_layers.items() if not any(belongs_to(name, one) for one in layers)}

        has = None if message.has is None else rest(message.has)
        return Message(rest(message.masks), rest(message.values), has, rest(message.scales))

    def init(key: Key[Array, ""], world: World, hyper: Any) -> tuple[Any, Message]:
        agent, message = algorithm.init(key, world, hyper)
        return agent, shared(message)

    def send(
        key: Key[Array, ""], world: World, hyper: Any, agent: Any, heard: Heard, batches: Batches
    ) -> tuple[Any, Any, Message, dict[str, Array]]:
        agent, carry, message, info = algorithm.send(key, world, hyper, agent, heard, batches)
        return agent, carry, shared(message), info

    return algorithm._replace(init=init, send=send)


def belongs_to(name: str, layer: str) -> bool:
    """Whether a leaf that is masked, trained or sent is of a layer.

    >>> belongs_to("params/linear2/kernel", "linear2"), belongs_to("linear20/kernel", "linear2")
    (True, False)
    """
    leaf = name.removeprefix("params/").removeprefix("frozen/")
    return f"{leaf}/".startswith(f"{layer}/")


def name_of(path: tuple[Any, ...]) -> str:
    """A layer's name from its key path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by their names.

    >>> by_name({"conv": {"kernel": 1}, "linear": {"kernel": 2}})
    {'conv/kernel': 1, 'linear/kernel': 2}
    """
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def by_masked_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree of masked parameters, or of all, by their names; a masked one has the same name in both.

    >>> by_masked_name({"params": {"conv": {"kernel": 1}}, "frozen": {"conv": {"bias": 2}}})
    {'frozen/conv/bias': 2, 'conv/kernel': 1}
    """
    return {name.removeprefix("params/"): leaf for name, leaf in by_name(tree).items()}


def with_names(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`function(name, leaf, ...)` of every leaf, as a pytree like `tree`."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def packed(masks_of_layers: PyTree[Array], ternary: bool = False) -> Message:
    """A message of masks: of one plane of bits a layer, called as the layer, or of a ternary mask's two, called
    "layer/positive" and "layer/negative"."""
    bits = jax.tree.map(planes, masks_of_layers) if ternary else masks_of_layers
    return Message(by_name(jax.tree.map(pack, bits)))


def layer_of(name: str) -> str:
    """The layer of which a message has bits of this name.

    >>> layer_of("conv1/kernel/negative"), layer_of("conv1/kernel")
    ('conv1/kernel', 'conv1/kernel')
    """
    layer, _, plane = name.rpartition("/")
    return layer if plane in PLANES else name


def mask_of(bits: Mapping[str, UInt8[Array, "..."]], name: str, like: Array) -> Float[Array, "..."]:
    """The mask of a layer, binary or ternary, of the shape and dtype of `like`, from one agent's message.

    >>> bits = {"w/positive": jnp.array([0b001], jnp.uint8), "w/negative": jnp.array([0b100], jnp.uint8)}
    >>> mask_of(bits, "w", jnp.zeros(3)).tolist()
    [1.0, 0.0, -1.0]
    """
    own = [unpack(bits[plane], like.shape).astype(like.dtype) for plane in planes_of(bits, name)]
    return own[0] - own[1] if len(own) == 2 else own[0]


def planes_of(bits: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The names under which messages have a layer's bits: one, two of ternary masks, or none."""
    signed = tuple(f"{name}/{plane}" for plane in PLANES)
    return (name,) if name in bits else signed if signed[0] in bits else ()


def weight_of(heard: Heard, name: str) -> Shaped[Array, ""] | None:
    """The weight of all neighbours that were heard of a layer's mask; None if nobody ever sends it."""
    found = planes_of(heard.masks, name)
    return heard.weight[found[0]] if found else None


def neighbour_mean(heard: Heard, like: PyTree[Array]) -> PyTree[Float[Array, "..."]]:
    """m̄, the mean of the neighbours' masks, from 0 to 1, of ternary ones from -1 to 1, as a pytree of the shapes and
    dtypes of `like`.

    0 where nobody was heard, and in layers that nobody sends.

    >>> heard = Heard({"w": jnp.array([0, 1, 2], jnp.uint8)}, {}, {"w": jnp.int32(2)}, jnp.ones(()), jnp.array(True))
    >>> neighbour_mean(heard, {"w": jnp.zeros(3), "head": jnp.zeros(1)})["w"].tolist()
    [0.0, 0.5, 1.0]
    """
    return mean_of_planes(heard, like, jnp.subtract)


def mean_kept(heard: Heard, like: PyTree[Array]) -> PyTree[Float[Array, "..."]]:
    """The share of the neighbours, by weight, that keep each entry: m̄, of ternary masks without their signs."""
    return mean_of_planes(heard, like, jnp.add)


def mean_of_planes(heard: Heard, like: PyTree[Array], join: Callable[..., Array]) -> PyTree[Float[Array, "..."]]:
    """The mean of the neighbours' masks, 0 where nobody was heard; `join` makes one of a ternary mask's two sums."""

    def one(name: str, leaf: Array) -> Array:
        weight = weight_of(heard, name)
        if weight is None:
            return jnp.zeros_like(leaf)
        sums = [heard.masks[plane].astype(leaf.dtype) for plane in planes_of(heard.masks, name)]
        return reduce(join, sums) / jnp.where(weight > 0, weight, 1).astype(leaf.dtype)

    return with_names(one, like)


def own_signs(message: Message, name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """s (2b - 1) of a layer: the numbers that the scaled bits b of one agent's own message stand for.

    >>> own_signs(Message({"w": jnp.array([0b01], jnp.uint8)}, scales={"w": jnp.array(3.0)}), "w", (2,)).tolist()
    [3.0, -3.0]
    """
    scale = message.scales[name]
    return jnp.where(unpack(message.masks[name], shape) != 0, scale, -scale)


def sum_of_signs(heard: Heard, name: str) -> Float[Array, "..."]:
    """Σ a s (2b - 1) of a layer: the numbers that the neighbours' scaled bits b stand for, with their links' weights a.

    >>> heard = Heard({"w": jnp.array([0.0, 3.0])}, {}, {"w": 1}, jnp.ones(()), jnp.array(True), {"w": jnp.array(3.0)})
    >>> sum_of_signs(heard, "w").tolist()
    [-3.0, 3.0]
    """
    return 2 * heard.masks[name] - heard.scales[name]


def mean_with_own(
    own: PyTree[Array], of_others: Mapping[str, Shaped[Array, "..."]], heard: Heard
) -> PyTree[Float[Array, "..."]]:
    """The mean over neighbours and oneself, of values (`of_others` is `heard.values`) or of masks (`heard.masks`).

    Where nobody weighs anything, and in layers that nobody sends, it is one's own value.

    >>> heard = Heard({}, {"w": jnp.array([8.0])}, {"w": jnp.int32(2)}, jnp.ones(()), jnp.array(True))
    >>> mean_with_own({"w": jnp.array([4.0])}, heard.values, heard)["w"].tolist()
    [4.0]
    """

    def one(name: str, value: Array) -> Array:
        if name not in of_others:
            return value
        weight = heard.own.astype(value.dtype)
        whole = weight + heard.weight[name].astype(value.dtype)
        mean = (weight * value + of_others[name].astype(value.dtype)) / jnp.where(whole > 0, whole, 1)
        return jnp.where(whole > 0, mean, value)

    return with_names(one, own)


def least_of_levels(size: int, levels: int = LEVELS) -> Int[np.ndarray, "levels"]:
    """How many of a layer's `size` entries a mask keeps at the least, interval by interval. Host side.

    >>> least_of_levels(100, 4).tolist()
    [0, 25, 50, 75]
    """
    return (np.arange(levels, dtype=np.int64) * size // levels).astype(np.int32)


def heard_anybody(heard: Heard) -> Bool[Array, ""]:
    """Whether any layer of any neighbour has arrived."""
    return reduce(jnp.logical_or, [weight > 0 for weight in heard.weight.values()], jnp.array(False))
