"""What a forward pass costs: the multiply-adds of a network's masked layers, seen by abstract evaluation. Host side.

A network is traced, and nothing is computed. Each kernel is followed through what only moves, scales or copies its
entries to the products with what comes from the images: matrix products, convolutions, and products entry by entry
(the form of some depthwise convolutions). Products of data with data, as in attention, are of no layer, and biases,
norms and activations do not count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Int

from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network

PARTS = ("slice", "dynamic_slice", "gather", "split")  # what takes some of an array's entries
MOVES = ("transpose", "reshape", "squeeze", "expand_dims", "rev", "pad", "concatenate")


class Held(NamedTuple):
    """What an array holds of a kernel."""

    layer: str
    entries: int  # how many of its entries
    copies: int = 1  # of each


class Products(NamedTuple):
    """What was found in a program, layer by layer."""

    number: Counter[str]
    entries: Counter[str]  # that were seen in a product


def positions_of(network: Network, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """How often a sample multiplies by each entry of a masked layer, by the layer's name: the positions of its output.

    Raises a ValueError that names a layer of which this cannot be seen, such as one whose kernel passes through a
    Fourier transform, or is multiplied by another kernel.

    >>> from dslth_jax.networks.zoo import network_by_name
    >>> positions_of(network_by_name("small", (8, 8, 1), 10), (8, 8, 1))
    {'conv1/kernel': 64, 'conv2/kernel': 16, 'linear1/kernel': 1, 'linear2/kernel': 1}
    """
    masked, frozen = jax.eval_shape(network.init, key_of(0))
    variables, sizes = {"params": masked, "frozen": frozen}, sizes_of(masked)

    def found(batch: int) -> Products:
        images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
        program: Any = jax.make_jaxpr(network.apply)(variables, images).jaxpr
        names = {f"params/{name}": name for name in sizes}
        layers = [names.get(name) for name in sizes_of(variables)]  # in the order of the program's arguments
        held = [None if name is None else Held(name, sizes[name]) for name in layers]
        return products(program, [*held, None])[0]

    # What does not grow with the batch is no work of a sample.
    fewer, more = found(2), found(3)
    positions = {}
    for name, size in sizes.items():
        number = more.number[name] - fewer.number[name]
        if not number or number % size or more.entries[name] % size:
            raise ValueError(
                f"the multiply-adds of {name} cannot be seen: its kernel is not simply multiplied by what comes from "
                f"the images"
            )
        positions[name] = number // size
    return positions


def sizes_of(masked: Any) -> dict[str, int]:
    """How many entries each leaf has, by its name: the key path, as `Network.roles` has it."""
    leaves = jax.tree_util.tree_leaves_with_path(masked)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size for path, leaf in leaves}


def multiply_adds(positions: Mapping[str, int], kept: Mapping[str, Any]) -> Int[np.ndarray | np.generic, "*agents"]:
    """The multiply-adds of a sample by the entries that are kept, of which there are so many a layer: numbers, or an
    array of them with an agents axis. With the sizes of all layers those of the dense network.

    >>> multiply_adds({"conv": 64, "head": 1}, {"conv": 100, "head": 30}).item()
    6430
    """
    return np.sum([number * np.asarray(kept[name], np.int64) for name, number in positions.items()], axis=0)


def products(program: Jaxpr, arguments: Sequence[Held | None]) -> tuple[Products, list[Held | None]]:
    """The products by kernels in a program whose arguments hold such entries, and what its results hold."""
    found, held = Products(Counter(), Counter()), dict[Any, Held | None](zip(program.invars, arguments, strict=True))

    def of(atom: Any) -> Held | None:
        return None if hasattr(atom, "val") else held.get(atom)  # literals hold nothing

    for step in program.eqns:
        operands = [of(atom) for atom in step.invars]
        if not any(operands):
            continue
        inner, results = inside(step, operands)
        if inner is None:
            inner, results = own_products(step, operands), kept_by(step, operands)
        found.number.update(inner.number)
        found.entries.update(inner.entries)
        held |= dict(zip(step.outvars, results, strict=True))
    return found, [of(atom) for atom in program.outvars]


def inside(step: Any, operands: list[Held | None]) -> tuple[Products | None, list[Held | None]]:
    """The products of a step that has programs of its own; None where it has none."""
    nothing: list[Held | None] = [None] * len(step.outvars)
    name, programs = step.primitive.name, programs_in(step)
    if not programs:
        return None, nothing
    if name == "while":  # nobody knows how often
        return Products(Counter(), Counter()), nothing
    if name == "cond":  # of branches the one with the most
        each = [products(own, operands[1:]) for own in programs]
        most = Products(*(Counter() for _ in Products._fields))
        for branch, _ in each:
            for total, own in zip(most, branch, strict=True):
                total |= own
        alike = all(results == each[0][1] for _, results in each)
        return most, each[0][1] if alike else nothing
    if name == "scan":
        times, first = step.params["length"], step.params["num_consts"] + step.params["num_carry"]
        slices = [own and own._replace(entries=own.entries // times) for own in operands[first:]]
        of_each, _ = products(programs[0], [*operands[:first], *slices])
        return Products(*(Counter({layer: times * n for layer, n in own.items()}) for own in of_each)), nothing
    if len(programs) > 1 or len(programs[0].invars) != len(operands):
        return Products(Counter(), Counter()), nothing
    return products(programs[0], operands)


def programs_in(step: Any) -> list[Any]:
    """The programs that a step of a program has of its own."""
    parameters = jax.tree.leaves(step.params, is_leaf=is_program)
    return [getattr(own, "jaxpr", own) for own in parameters if is_program(own)]


def is_program(parameter: Any) -> bool:
    """Whether a parameter of a step is a program."""
    return isinstance(parameter, Jaxpr | ClosedJaxpr)


def own_products(step: Any, operands: list[Held | None]) -> Products:
    """The products of a kernel's entries with anything else, in one step."""
    none = Products(Counter(), Counter())
    name, kernels = step.primitive.name, [place for place, own in enumerate(operands) if own]
    if len(kernels) != 1:
        return none
    own: Any = operands[kernels[0]]
    size, output = step.invars[kernels[0]].aval.size, step.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = step.params["dimension_numbers"]
        number = output.size * int(np.prod([step.invars[0].aval.shape[axis] for axis in contracted]))
    elif name == "conv_general_dilated":
        if kernels != [1] or step.params["batch_group_count"] > 1:
            return none
        number = output.size * size // output.shape[step.params["dimension_numbers"].out_spec[1]]
    elif name == "mul" and (own.copies > 1 or output.size > size):
        number = output.size
    else:
        return none
    number = number * own.entries * own.copies // size  # without what fills a kernel up
    return Products(Counter({own.layer: number}), Counter({own.layer: own.entries}))


def kept_by(step: Any, operands: list[Held | None]) -> list[Held | None]:
    """What the results of one step hold of a kernel: nothing after a product, a comparison or a sum."""
    name, kernels = step.primitive.name, [place for place, own in enumerate(operands) if own]
    outputs: list[Any] = [variable.aval for variable in step.outvars]
    nothing: list[Held | None] = [None] * len(outputs)
    own: Any = operands[kernels[0]]
    before: Any = step.invars[kernels[0]].aval
    if {operands[place] for place in kernels} != {own} or name in ("dot_general", "conv_general_dilated"):
        return nothing
    if name == "broadcast_in_dim":
        return [own._replace(copies=own.copies * outputs[0].size // before.size)]
    if name in PARTS:
        whole = own.copies == 1 and own.entries == before.size and kernels == [0]
        return [own._replace(entries=output.size) for output in outputs] if whole else nothing
    if name in MOVES:
        return [own] if len(kernels) == 1 else nothing
    alike = own.copies == 1 and len(outputs) == 1 and outputs[0].shape == before.shape
    return [own] if alike and jnp.issubdtype(outputs[0].dtype, jnp.floating) else nothing
