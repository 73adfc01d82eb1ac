"""Small target networks in one random network: the largest error over real patches. Rows of measurements."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dslth_jax import tickets
from dslth_jax.study.data.form import Dataset
from dslth_jax.tickets import Form

SIDE = 8  # of patches
PATCHES = 100
CHANNELS = 4  # of small targets
AGENTS = 32
AGENTS_COUNTED = (1, 2, 4, 8, 16, 32)
LEVELS = (0.1, 0.03, 0.01, 0.003)  # ε
Shapes = Sequence[tuple[int, int, int]]  # (side, inputs, outputs), layer by layer

LEFT_OUT: Mapping[str, Form] = {
    "the theorem": Form(),
    "stride 2": Form(stride=2),
    "max pooling": Form(pool=2),
    "zero padding": Form(padding=True),
    "residual sum": Form(padding=True, residual=True),
    "biases": Form(constant=True),
    "inputs in [-1, 1], kept as before": Form(),
    "inputs in [-1, 1], either sign": Form(channels="both"),
    "ELU, kept as before": Form(activation="elu"),
    "ELU, lifted": Form(activation="elu", constant=True, channels="lifted"),
}


class Measured(NamedTuple):
    """Of one random network."""

    errors: np.ndarray  # (agents,): the largest over patches and outputs
    size: float  # the largest answer of any target
    odd_density: float  # of masks
    even_density: float


def patches(rng: np.random.Generator, dataset: Dataset) -> np.ndarray:
    """Square patches of test images, in [0, 1]; images that are no larger are patches themselves."""
    images = dataset.test_images[rng.choice(len(dataset.test_images), PATCHES)]
    rows, columns = (rng.integers(0, max(1, side - SIDE + 1), PATCHES) for side in images.shape[1:3])
    cut = [
        one[row : row + SIDE, column : column + SIDE] for one, row, column in zip(images, rows, columns, strict=True)
    ]
    return np.stack(cut) / 255.0


def small(inputs: int, layers: int = 2, side: int = 3, channels: int = CHANNELS) -> Shapes:
    """The shapes of a small target's layers."""
    return [(side, inputs if layer == 0 else channels, channels) for layer in range(layers)]


def draw_targets(rng: np.random.Generator, shapes: Shapes, agents: int) -> list[np.ndarray]:
    """Kernels of uniform entries, of which each filter's magnitudes add up to 1: more than the theorem asks for, in
    which those of a whole kernel add up to at most 1."""
    kernels = [rng.uniform(-1, 1, (agents, side, side, inputs, outputs)) for side, inputs, outputs in shapes]
    return [kernel / np.abs(kernel).sum(axis=(1, 2, 3), keepdims=True) for kernel in kernels]


def measure(
    rng: np.random.Generator, images: np.ndarray, shapes: Shapes, width: int, agents: int, form: Form | None = None
) -> Measured:
    """All agents' targets in one random network of that width, all drawn."""
    kernels = draw_targets(rng, shapes, agents)
    biased = form is not None and form.constant and form.channels == "positive"
    biases = [rng.uniform(-0.5, 0.5, (agents, outputs)) for _, _, outputs in shapes] if biased else None
    network = tickets.random_network(rng, shapes, width, form)
    masks = tickets.masks_for(network, kernels, biases, form)
    errors, size = [], 0.0
    for agent in range(agents):
        own = None if biases is None else [bias[agent] for bias in biases]
        wanted = tickets.answers([kernel[agent] for kernel in kernels], images, own, form)
        errors.append(np.abs(tickets.masked_answers(network, masks, agent, images, form) - wanted).max())
        size = max(size, float(np.abs(wanted).max()))
    odd = np.concatenate([own.odd.ravel() for own in masks])
    even = np.concatenate([own.even.ravel() for own in masks])
    return Measured(np.array(errors), size, float(odd.mean()), float(even.mean()))


def by_agents(rng: np.random.Generator, images: np.ndarray, draws: int, widths: Sequence[int]) -> pd.DataFrame:
    """The error of the worst of the first so many agents: median over random networks, and nine tenths."""
    rows = []
    for width in widths:
        found = [measure(rng, images, small(images.shape[-1]), width, AGENTS) for _ in range(draws)]
        worst = np.maximum.accumulate([own.errors for own in found], axis=1)
        for agents in AGENTS_COUNTED:
            column = worst[:, agents - 1]
            numbers = {"median": np.median(column), "most": np.quantile(column, 0.9)}
            rows.append(
                {"n": width, "agents": agents, **numbers, "size": np.median([own.size for own in found])}
                | {"odd": found[0].odd_density, "even": found[0].even_density}
            )
    return pd.DataFrame(rows)


def by_form(rng: np.random.Generator, images: np.ndarray, draws: int, widths: Sequence[int]) -> pd.DataFrame:
    """The error of two agents' targets with something that the theorem leaves out: quartiles over random networks."""
    rows = []
    for name, form in LEFT_OUT.items():
        shown = 2 * images - 1 if name.startswith("inputs") else images
        for width in widths:
            found = [measure(rng, shown, small(images.shape[-1]), width, 2, form) for _ in range(draws)]
            low, middle, high = np.quantile([own.errors.max() for own in found], (0.25, 0.5, 0.75))
            numbers = {"low": low, "median": middle, "high": high, "size": np.median([own.size for own in found])}
            rows.append({"form": name, "n": width, **numbers})
    return pd.DataFrame(rows)


def errors_by_size(
    rng: np.random.Generator, images: np.ndarray, draws: int, widths: Sequence[int]
) -> dict[str, tuple[int, np.ndarray]]:
    """For targets of several sizes, the number of their entries, and (widths, draws) errors of two agents' targets:
    the worst of them, as a share of the largest answer."""
    inputs, found = images.shape[-1], {}
    for name, shapes in {
        "1 layer, 3 x 3, 2 channels": small(inputs, 1, channels=2),
        "2 layers, 1 x 1, 4 channels": small(inputs, side=1),
        "2 layers, 3 x 3, 4 channels": small(inputs),
        "3 layers, 3 x 3, 4 channels": small(inputs, 3),
        "2 layers, 3 x 3, 8 channels": small(inputs, channels=8),
    }.items():
        measured = [[measure(rng, images, shapes, width, 2) for _ in range(draws)] for width in widths]
        errors = np.array([[own.errors.max() / own.size for own in row] for row in measured])
        found[name] = sum(side**2 * fan_in * fan_out for side, fan_in, fan_out in shapes), errors
    return found


def needed(name: str, entries: int, widths: Sequence[int], errors: np.ndarray, deltas: Sequence[float]) -> pd.DataFrame:
    """The n at which a share 1 - δ of (widths, draws) errors is at most ε; between widths by a line through logarithms.
    NaN where no width reaches that, or the first does."""
    rows = []
    for delta in deltas:
        reached = np.log(np.quantile(errors, 1 - delta, axis=1))
        for level in LEVELS:
            number = crossing(np.array(widths, float), reached, np.log(level))
            rows.append({"target": name, "entries": entries, "ε": level, "δ": delta, "n": number})
    return pd.DataFrame(rows).astype({"n": float})


def crossing(across: np.ndarray, falling: np.ndarray, level: float) -> float | None:
    """Where a falling line through points first comes down to a level; None if it is below from the start, or never.

    >>> crossing(np.array([4.0, 8.0, 12.0]), np.array([0.0, -1.0, -3.0]), -2.0)
    10.0
    """
    below = np.flatnonzero(falling <= level)
    if len(below) == 0 or below[0] == 0:
        return None
    end = below[0]
    share = (falling[end - 1] - level) / (falling[end - 1] - falling[end])
    return float(across[end - 1] + share * (across[end] - across[end - 1]))


def fit(rows: pd.DataFrame) -> dict[str, float]:
    """n = C·log(N / min(ε, δ)) + c: C and c by least squares, the largest distance of a row from that line, and the
    smallest C that suffices for every row without a c."""
    rows = rows.dropna()
    logarithms = np.log(rows["entries"] / rows[["ε", "δ"]].min(axis=1)).to_numpy(float)
    numbers = rows["n"].to_numpy(float)
    constant, rest = np.polyfit(logarithms, numbers, 1)
    off = float(np.abs(numbers - constant * logarithms - rest).max())
    return {"C": float(constant), "c": float(rest), "off": off, "sufficient": float((numbers / logarithms).max())}
