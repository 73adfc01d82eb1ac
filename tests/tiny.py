"""What keeps tests short: a network with little to compile, and cases that are slow; how run folders are compared."""

import json
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dslth_jax.algorithm import Heard, by_name
from dslth_jax.networks.convolution import max_pool
from dslth_jax.networks.network import Conv, Linear
from dslth_jax.networks.operations import elu
from dslth_jax.networks.transformer import ViTTiny
from dslth_jax.networks.wiring import chain
from dslth_jax.networks.zoo import MODULES


def slow_but(cases, *always):
    """The cases of a parametrized test, of which all but some are slow."""
    return [pytest.param(case, marks=[] if case in always else pytest.mark.slow) for case in cases]


class TinyNet(nn.Module):
    """A layer of either kind, so that a message is a pytree."""

    wiring = chain(("conv", "linear"), elu)

    classes: int

    @nn.compact
    def __call__(self, values):
        values = max_pool(elu(Conv(4, side=3, padding=1, name="conv")(values)))
        return Linear(self.classes, name="linear")(values.reshape(values.shape[0], -1))


class OneBlock(ViTTiny):
    """Attention and an MLP, once: three heads of four columns and 48 hidden neurons."""

    width: float = 1 / 16
    stages = (("block1",),)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same_numbers(one: Path, other: Path) -> None:
    """Two run folders hold the same numbers, bit for bit, but for times."""
    assert rows_of(one) == rows_of(other)
    assert (one / "agents.csv").read_bytes() == (other / "agents.csv").read_bytes()
    weights = [
        path.read_bytes() for path in (one / "weights.safetensors", other / "weights.safetensors") if path.exists()
    ]
    assert len(weights) != 1
    assert weights[:1] == weights[1:]
    assert (one / "masks.npz").is_file() == (other / "masks.npz").is_file()
    if (one / "masks.npz").is_file():
        with np.load(one / "masks.npz") as first, np.load(other / "masks.npz") as second:
            chex.assert_trees_all_equal(dict(first), dict(second))


def use_tiny_network(patch: pytest.MonkeyPatch) -> None:
    """Let it be `--model tiny`."""
    patch.setitem(MODULES, "tiny", TinyNet)


def heard_of(weight: Any, masks: Any = None, values: Any = None, own: float = 1.0) -> Heard:
    """What an agent has heard, as trees of counts and sums, of neighbours of so much weight together."""
    named = [{} if tree is None else by_name(tree) for tree in (masks, values)]
    total = dict.fromkeys({**named[0], **named[1]}, jnp.asarray(weight))
    return Heard(*named, total, jnp.asarray(own, jnp.result_type(float)), jnp.array(True))
