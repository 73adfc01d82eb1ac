"""The round as plain numpy loops over agents, written from the formulas: the oracle of the compiled population round.

It knows no packing, no vmap, no driver and no optax. `gradient_fn(v, batch, smoothing) -> (dv, loss)` is the derivative
of a minibatch's mean cross-entropy to smoothed labels with respect to v = w * m, layer by layer; everything else is
here. Layers are dicts of arrays.
"""

import dataclasses
import math

import numpy as np


def kept_entries(retention, size):
    return size - int((1 - retention) * size)


def fuse(z, neighbour_mean, amplitude=1.0, ternary=False):
    a = amplitude * np.mean(np.abs(z))
    return z + a * neighbour_mean if ternary else z + a * np.sign(z) * neighbour_mean


def threshold(y, count):
    """Keep the `count` largest magnitudes, the lowest flat index first among equals, never a zero."""
    magnitudes = np.abs(y).reshape(-1)
    order = sorted(range(magnitudes.size), key=lambda index: (-magnitudes[index], index))
    mask = np.zeros(magnitudes.size)
    for index in order[:count]:
        if magnitudes[index] > 0:
            mask[index] = 1.0
    return mask.reshape(y.shape)


def kept_by_policy(shapes, roles, policy, retention, linear_retention=None):
    """Entries to keep of every layer, by name; depthwise ones are kept whole."""
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    if policy == "erk":
        # All layers keep the same multiple of the sum of their shape, or all of their entries.
        others = [layer for layer in shapes if roles[layer] != "depthwise"]
        wanted, low, high = retention * sum(sizes[layer] for layer in others), 0.0, float(max(sizes.values()))
        for _ in range(200):
            middle = (low + high) / 2
            kept = sum(min(sizes[layer], middle * sum(shapes[layer])) for layer in others)
            low, high = (middle, high) if kept < wanted else (low, middle)
        return {
            layer: min(sizes[layer], low * sum(shapes[layer])) if layer in others else sizes[layer] for layer in shapes
        }
    counts = {}
    for layer, size in sizes.items():
        share = linear_retention if policy == "fixed-linear" and roles[layer] == "linear" else retention
        counts[layer] = size if roles[layer] == "depthwise" else kept_entries(share, size)
    return counts


def shared_out(ys, counts, depthwise=()):
    """One threshold for the layers of `ys`: each has its largest entry, and then those of the largest |y| sqrt(fan_in)
    of all are kept, as many as `counts` says of all together. A layer whose count is 0 has none."""
    kept = {layer: counts[layer] if layer in depthwise else 0 for layer in ys}
    entries = []
    for place, (layer, y) in enumerate(ys.items()):
        if counts[layer] and layer not in depthwise:
            with np.errstate(over="ignore"):
                scaled = np.minimum(np.abs(y).reshape(-1) * math.sqrt(math.prod(y.shape[:-1])), np.finfo(y.dtype).max)
            ranked = sorted((-value, place, index, layer) for index, value in enumerate(scaled) if value > 0)
            entries += [(index > 0, *entry) for index, entry in enumerate(ranked)]
    total = sum(count for layer, count in counts.items() if layer not in depthwise)
    for *_, layer in sorted(entries)[:total]:
        kept[layer] += 1
    return kept


def pull(z, by, ternary=False):
    """Move magnitudes, keep signs (0 counts as positive), and leave entries that nothing pulls at; of ternary masks
    scores move, signs and all."""
    if ternary:
        return z + by
    moved = np.where(z < 0, -1.0, 1.0) * np.maximum(np.abs(z) + by, 1e-9)
    return np.where(by != 0, moved, z)


def groups(z):
    """Each output's group of entries, as a view of columns."""
    return z.reshape(-1, z.shape[-1])


def drop_filters(mask, smallest):
    """Without filters of few entries, unless the layer's filters keep as few on average."""
    left = groups(mask.copy())
    kept = [int(np.count_nonzero(left[:, output])) for output in range(left.shape[1])]
    if np.mean(kept) > smallest:
        for output, count in enumerate(kept):
            if count <= smallest:
                left[:, output] = 0
    return left.reshape(mask.shape)


def proximal_step(z, strength):
    shrunk = groups(z.copy())
    for output in range(shrunk.shape[1]):
        norm = math.sqrt(np.sum(shrunk[:, output] ** 2))
        shrunk[:, output] = 0 if norm <= strength else shrunk[:, output] * (1 - strength / norm)
    return shrunk.reshape(z.shape) if strength > 0 else z


def penalty_gradient(z):
    """The gradient of the sum of the group norms, 0 at a group of zeros."""
    gradient = np.zeros_like(groups(z))
    for output in range(gradient.shape[1]):
        norm = math.sqrt(np.sum(groups(z)[:, output] ** 2))
        if norm > 0:
            gradient[:, output] = groups(z)[:, output] / norm
    return gradient.reshape(z.shape)


def metropolis(adjacency):
    """The Metropolis weight of every link of an undirected graph."""
    degree = adjacency.sum(axis=1)
    weights = np.zeros(adjacency.shape)
    for i, j in np.argwhere(adjacency):
        weights[i, j] = 1 / (1 + max(degree[i], degree[j]))
    return weights


@dataclasses.dataclass(frozen=True)
class Switches:
    """The method's variants."""

    order: str = "code"
    fine_tune_gradient: str = "reused"
    fine_tune_weight: str = "mean"
    group_lasso_form: str = "proximal"
    penalty_on: str = "fused"
    smallest_filter: int | None = None
    revive: bool = False
    scale_by_retention: bool = False
    ternary: bool = False
    across_layers: bool = False
    scale_by_mask: bool = False
    among_living: bool = False  # channels die for good: those of the layers in `readers`
    readers: tuple = (("conv", ("linear",)),)
    smallest_channels: int = 1
    optimizer: str = "sgd"
    momentum: float = 0.9
    second_momentum: float = 0.99
    exchange_every: int = 1
    exchange_from: int = 1
    fusion: str = "tensor"
    force_momentum: float = 0.0
    mask_sent: str = "fused"
    personal: tuple = ()  # layers that nobody sends
    lacking: tuple = ()  # pairs of an agent and a layer that it lacks: it keeps nothing of it, and does not send it


class Optimizer:
    """Plain descent, heavy-ball momentum or Adam (Kingma and Ba 2015) of one agent, layer by layer."""

    def __init__(self, switches):
        self.switches, self.steps, self.first, self.second = switches, 0, {}, {}

    def direction(self, gradients):
        s, self.steps = self.switches, self.steps + 1
        out = {}
        for layer, g in gradients.items():
            if s.optimizer == "sgd":
                out[layer] = g
            elif s.optimizer == "momentum":
                out[layer] = self.first[layer] = g + s.momentum * self.first.get(layer, 0)
            else:
                self.first[layer] = s.momentum * self.first.get(layer, 0) + (1 - s.momentum) * g
                self.second[layer] = s.second_momentum * self.second.get(layer, 0) + (1 - s.second_momentum) * g**2
                mean = self.first[layer] / (1 - s.momentum**self.steps)
                square = self.second[layer] / (1 - s.second_momentum**self.steps)
                out[layer] = mean / (np.sqrt(square) + 1e-8)
        return out


class Population:
    """Everything of an agent is one entry of a list. `mixing[i][j]` is the weight with which i hears j.

    An agent's settings of a round are a dict of lr, fine_tune_lr, weight_decay, group_lasso, amplitude,
    label_smoothing and, layer by layer, counts.
    """

    def __init__(self, weights, scores, start_masks, mixing, gradient_fn, switches):
        self.weights, self.gradient_fn, self.switches = weights, gradient_fn, switches
        self.scores = [{layer: z.copy() for layer, z in own.items()} for own in scores]
        self.optimizers = [Optimizer(switches) for _ in scores]
        self.sent, self.rounds = start_masks, 0
        self.stepped = [0.0 for _ in scores]
        self.lasting = [{layer: 0 * z for layer, z in own.items()} for own in scores]
        self.hear(mixing)

    def hear(self, mixing):
        self.heard = [self.listen(agent, mixing) for agent in range(len(self.scores))]
        self.kept = [self.listen(agent, mixing, np.abs) for agent in range(len(self.scores))]

    def listen(self, agent, mixing, of=lambda mask: mask):
        """The neighbours' mean mask, or of their masks without signs; zeros where there are none."""
        mean = {}
        for layer, w in self.weights.items():
            total, weight = np.zeros_like(w), 0
            for j, link in enumerate(mixing[agent]):
                if link and layer not in self.switches.personal and (j, layer) not in self.switches.lacking:
                    total += link * of(self.sent[j][layer])
                    weight += link
            mean[layer] = total / weight if weight else total
        return mean

    def alive(self, z):
        return np.where(z == 0, math.sqrt(np.finfo(z.dtype).tiny), z) if self.switches.revive else z

    def amplitude(self, settings, z):
        """The factor on the mean magnitude; what lives has more than a layer's mean where some of it is dead."""
        return settings["amplitude"] * (z.size / living(z) if self.switches.among_living else 1)

    def masks(self, agent, settings, heard, own=False):
        masks, ys = {}, {}
        for layer, z in self.scores[agent].items():
            ys[layer] = self.alive(z)
            if self.switches.fusion == "tensor" and not own:
                ys[layer] = fuse(ys[layer], heard[layer], self.amplitude(settings, z), self.switches.ternary)
        counts = settings["counts"]
        if self.switches.among_living:
            counts = {layer: kept_of_living(count, ys[layer]) for layer, count in counts.items()}
        counts = shared_out(ys, counts) if self.switches.across_layers else counts
        for layer, z in self.scores[agent].items():
            y = ys[layer]
            masks[layer] = threshold(y, counts[layer]) * (np.sign(y) if self.switches.ternary else 1)
            if self.switches.smallest_filter is not None and z.ndim == 4:
                masks[layer] = drop_filters(masks[layer], self.switches.smallest_filter)
        return masks

    def kept_weights(self, settings, masks):
        """w, scaled where the switch says so: by what is to be kept, or by what these masks keep."""
        s, counts = self.switches, settings["counts"]
        if not s.scale_by_retention and not s.scale_by_mask:
            return self.weights
        sizes = {layer: w.size for layer, w in self.weights.items()}
        if s.scale_by_mask or s.across_layers:
            counts = {layer: np.count_nonzero(mask) for layer, mask in masks.items()}
        if s.among_living:
            # As many kept ones of a living output's inputs, if all inputs lived.
            for layer, mask in masks.items():
                used, n = (mask.reshape(-1, *mask.shape[-2:]) != 0).any(axis=0), sizes[layer]
                by_mask = n / used.shape[1] * used.any(axis=0).sum()
                scaled = s.scale_by_mask or s.across_layers
                sizes[layer] = by_mask if scaled else n * (used.shape[0] / max(used.any(axis=1).sum(), 1))
        return {layer: w / math.sqrt(max(counts[layer], 1) / sizes[layer]) for layer, w in self.weights.items()}

    def direction(self, agent, settings, heard, batch):
        """What the optimizer makes of the gradient on a batch, and the loss."""
        masks = self.masks(agent, settings, heard)
        weights = self.kept_weights(settings, masks)
        dv, loss = self.gradient_fn(
            {layer: w * masks[layer] for layer, w in weights.items()}, batch, settings["label_smoothing"]
        )
        gradient = {}
        for layer, z in self.scores[agent].items():
            alive = self.alive(z)
            g = (1 if self.switches.ternary else np.sign(alive)) * weights[layer] * dv[layer]
            if self.switches.group_lasso_form == "penalty":
                fuses = self.switches.penalty_on == "fused" and self.switches.fusion == "tensor"
                y = fuse(alive, heard[layer], self.amplitude(settings, z), self.switches.ternary) if fuses else z
                if not self.switches.among_living:
                    g = g + settings["group_lasso"] * penalty_gradient(y)
                elif layer in dict(self.switches.readers):
                    norms = np.linalg.norm(groups(y), axis=0)
                    g = g + settings["group_lasso"] * np.mean(norms[norms > 0]) * penalty_gradient(y)
            gradient[layer] = g
        return self.of_the_living(agent, self.optimizers[agent].direction(gradient)), loss

    def of_the_living(self, agent, layers):
        """What moves scores, but for those that are dead."""
        dead = {layer: self.switches.among_living & (z == 0) for layer, z in self.scores[agent].items()}
        return {layer: np.where(dead[layer], 0, own) for layer, own in layers.items()}

    def local_steps(self, agent, settings, batches):
        losses = []
        for batch in batches:
            step, loss = self.direction(agent, settings, self.heard[agent], batch)
            losses.append(loss)
            for layer, z in self.scores[agent].items():
                self.scores[agent][layer] = z - settings["lr"] * (step[layer] + settings["weight_decay"] * z)
        if self.switches.among_living and self.switches.group_lasso_form == "proximal":
            strength = settings["group_lasso"], dict(self.switches.readers), self.switches.smallest_channels
            self.scores[agent] = relative_step(self.scores[agent], *strength)
        elif self.switches.group_lasso_form == "proximal":
            for layer, z in self.scores[agent].items():
                self.scores[agent][layer] = proximal_step(z, settings["lr"] * settings["group_lasso"])
        return step, np.mean(losses)

    def fine_tune(self, agent, settings, step, heard, batch):
        """Entries move by how many neighbours keep them, with whatever sign."""
        kept = self.kept[agent]
        if not any(mean.any() for mean in kept.values()):
            return
        if self.switches.fine_tune_gradient == "recomputed":
            step, _ = self.direction(agent, settings, heard, batch)
        step = self.of_the_living(agent, step)  # without what has died since it was found
        for layer, z in self.scores[agent].items():
            weight = kept[layer] > 0 if self.switches.fine_tune_weight == "touched" else kept[layer]
            self.scores[agent][layer] = z - settings["fine_tune_lr"] * step[layer] * weight

    def force(self, agent, settings, own):
        """Pull magnitudes toward what neighbours keep more than the layer's mean, and away from what they keep less."""
        for layer, z in self.scores[agent].items():
            owners = [j for j in self.hears[agent] if (j, layer) not in self.switches.lacking]
            if layer in self.switches.personal or not owners:
                continue
            f, weights = self.heard[agent][layer] - own[layer], self.mixing[agent]
            lives = z != 0 if self.switches.among_living else np.full(z.shape, True)
            if not self.switches.ternary:  # beside one's own masks at the retentions of those whom one hears
                levels, apart = {}, sum(weights[j] * self.sent[j][layer] for j in owners)
                for j in owners:  # those that keep nearly as many count as one, with the mean of their numbers
                    count = self.sent[j][layer].sum()
                    levels.setdefault(min(int(count * 32 / z.size), 31), []).append((weights[j], count))
                for level in levels.values():
                    weight = sum(w for w, _ in level)
                    count = int(np.floor(sum(w * k for w, k in level) / weight + 0.5))
                    apart = apart - weight * threshold(self.alive(z), count)
                f = (apart - apart[lives].mean()) / sum(weights[j] for j in owners)
            momentum = self.switches.force_momentum
            f = self.lasting[agent][layer] = momentum * self.lasting[agent][layer] + (1 - momentum) * f
            by = settings["force"] * self.stepped[agent] * f * lives
            self.scores[agent][layer] = pull(z, by, self.switches.ternary)

    def round(self, batches, settings, mixing):
        """One round of everyone; `batches[agent]` lists its local minibatches and one more. Returns the losses."""
        steps, losses, messages, every = [], [], [], self.switches.exchange_every
        first = -(-self.switches.exchange_from // every) * every  # round of exchange
        begun = self.rounds + 1 > first - every
        paper_order = self.switches.order == "paper"
        for agent, s in enumerate(settings):
            step, loss = self.local_steps(agent, s, batches[agent][:-1])
            if paper_order:
                self.fine_tune(agent, s, step, self.heard[agent], batches[agent][-1])
            steps.append(step)
            losses.append(loss)
            self.stepped[agent] += begun * s["lr"] * len(batches[agent][:-1])
            messages.append(self.masks(agent, s, self.heard[agent], own=self.switches.mask_sent == "own"))
        self.rounds += 1
        if self.rounds >= first and self.rounds % every == 0:
            self.sent = messages
            self.hear(mixing)
            self.hears, self.mixing = [np.flatnonzero(row) for row in mixing], mixing
            if self.switches.fusion == "force":
                for agent, s in enumerate(settings):
                    self.force(agent, s, messages[agent])
                    self.stepped[agent] = 0.0
            elif not paper_order:
                for agent, s in enumerate(settings):
                    self.fine_tune(agent, s, steps[agent], self.heard[agent], batches[agent][-1])
        return losses


def relative_step(z, strength, readers, smallest=1):
    """The proximal step of each layer in `readers` by `strength` times the mean norm of its living groups; the largest
    are spared, and what reads a dead one is 0. Layers that read one say its outputs over and over."""
    z = {layer: leaf.copy() for layer, leaf in z.items()}
    dead = {}
    for layer in readers:
        left = groups(z[layer])
        norms = [math.sqrt(np.sum(left[:, output] ** 2)) for output in range(left.shape[1])]
        living = [norm for norm in norms if norm > 0]
        cut = strength * sum(norms) / len(living)
        spared = sorted(norms)[-min(smallest, len(norms))]
        for output, norm in enumerate(norms):
            if norm < spared:
                left[:, output] *= 1 - cut / norm if norm > cut else 0
        dead[layer] = [not left[:, output].any() for output in range(left.shape[1])]
    for layer, others in readers.items():
        for other in others:
            for place in range(z[other].shape[-2]):
                if dead[layer][place % len(dead[layer])]:
                    z[other][..., place, :] = 0
    return z


def living(z):
    """How many entries lie between living inputs and living outputs."""
    used = np.any(z.reshape(-1, *z.shape[-2:]) != 0, axis=0)
    return int(used.any(axis=1).sum() * used.any(axis=0).sum()) * (z.size // used.size)


def kept_of_living(count, z):
    return count if living(z) == z.size or not count else max(1, round(count * (living(z) / z.size)))
