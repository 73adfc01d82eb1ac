"""What agents of unlike retentions, or depths, came to, by class of device, and what their models cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dslth_jax.algorithm import by_masked_name, layer_of
from dslth_jax.networks.cost import multiply_adds
from dslth_jax.study.results.folders import Row
from dslth_jax.study.system.console import shown

CLASSES = 8  # of devices, each with a retention of its own; of more retentions there is a class a quartile
# Of a class: key, head, and how a value is written; what no class has is no column.
OF_DEVICES = [
    ("retention", "retention", "shown"),
    ("depth", "residual blocks", "number"),
    ("agents", "agents", "number"),
    ("accuracy_mean", "mean accuracy, %", "percent"),
    ("accuracy_worst", "worst agent, %", "percent"),
    ("density", "density", "number"),
    ("sent_bits", "sent by all of them, MB", "megabytes"),
    ("multiply_adds", "multiply-adds a sample, millions", "number"),
]


def multiply_adds_of_agents(positions: Mapping[str, int], masks: Any, sizes: Mapping[str, int]) -> np.ndarray:
    """The multiply-adds of a sample in every agent's model, by everybody's packed masks, leaves (agents, bytes); of a
    dense model where masks are None, and then one number. `positions` are those of the network's layers, `sizes` how
    many entries these have."""
    if masks is None:
        return np.asarray(multiply_adds(positions, sizes))
    kept: Counter[str] = Counter()
    for name, bits in by_masked_name(masks).items():  # of a ternary mask two planes
        kept[layer_of(name)] += np.bitwise_count(np.asarray(bits)).sum(axis=1, dtype=np.int64)
    return np.asarray(multiply_adds(positions, kept))


def by_device(agents: Sequence[Row]) -> list[Row]:
    """A row for each class of agents, by retention and depth, from the rows of agents.csv; none where all are of one
    class, or have no retention."""
    known = [row for row in agents if row["retention"] not in (None, "") and row["accuracy"] is not None]
    retentions = np.array([float(row["retention"]) for row in known])
    values = np.unique(retentions)
    ends = values if len(values) <= CLASSES else np.quantile(retentions, [0.25, 0.5, 0.75, 1.0])
    places = np.searchsorted(ends, retentions)  # up to the first end that is not below it
    classes: dict[tuple[int, float], list[Row]] = {}
    for place, row in zip(places.tolist(), known, strict=True):
        classes.setdefault((place, row.get("depth") or 0), []).append(row)
    return [of_class(classes[one]) for one in sorted(classes)] if len(classes) > 1 else []


def of_class(agents: Sequence[Row]) -> Row:
    """What the agents of a class came to; what they lack is None."""

    def of_all(key: str) -> np.ndarray | None:
        values = [row.get(key) for row in agents]
        return None if any(value in (None, "") for value in values) else np.array(values, np.float64)

    retentions, accuracies = (np.array([float(row[key]) for row in agents]) for key in ("retention", "accuracy"))
    low, high = float(retentions.min()), float(retentions.max())
    density, sent, work, depth = map(of_all, ("density", "sent_bits", "multiply_adds", "depth"))
    return {
        "retention": str(shown(low)) + (f" to {shown(high)}" if high > low else ""),
        "depth": None if depth is None else int(depth[0]),
        "agents": len(agents),
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_worst": float(accuracies.min()),
        "density": None if density is None else float(density.mean()),
        "sent_bits": None if sent is None else int(sent.sum()),
        "multiply_adds": None if work is None else float(work.mean()) / 1e6,
    }
