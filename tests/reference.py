"""The round as plain numpy loops over agents, written from the formulas: the oracle of the compiled population round.

It knows no packing, no vmap and no driver. `gradient_fn(v, batch) -> (dv, loss)` is the derivative of a minibatch's
mean cross-entropy with respect to v = w * m, layer by layer; everything else is here. Layers are dicts of arrays.
"""

import math

import numpy as np


def kept_entries(retention, size):
    return size - int((1 - retention) * size)


def fuse(z, neighbour_mean, amplitude=1.0):
    a = amplitude * np.mean(np.abs(z))
    return z + a * np.sign(z) * neighbour_mean


def threshold(y, count):
    """Keep the `count` largest magnitudes, the lowest flat index first among equals, never a zero."""
    magnitudes = np.abs(y).reshape(-1)
    order = sorted(range(magnitudes.size), key=lambda index: (-magnitudes[index], index))
    mask = np.zeros(magnitudes.size)
    for index in order[:count]:
        if magnitudes[index] > 0:
            mask[index] = 1.0
    return mask.reshape(y.shape)


def groups(z):
    """Each output's group of entries, as a view of columns."""
    return z.reshape(-1, z.shape[-1])


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


class Population:
    """Everything of an agent is one entry of a list; its settings are a dict of lr, fine_tune_lr, weight_decay,
    group_lasso, amplitude, form ("proximal" or "penalty") and on ("fused" or "scores")."""

    def __init__(self, weights, scores, start_masks, adjacency, counts, settings, gradient_fn):
        self.weights, self.adjacency, self.counts = weights, adjacency, counts
        self.settings, self.gradient_fn = settings, gradient_fn
        self.scores = [{layer: z.copy() for layer, z in own.items()} for own in scores]
        self.sent = start_masks
        self.heard = [self.listen(agent) for agent in range(len(scores))]

    def listen(self, agent):
        """The neighbours' mean mask; zeros where there are none."""
        neighbours = [j for j in range(len(self.adjacency)) if self.adjacency[agent][j]]
        mean = {}
        for layer, w in self.weights.items():
            total = np.zeros_like(w)
            for j in neighbours:
                total += self.sent[j][layer]
            mean[layer] = total / len(neighbours) if neighbours else total
        return mean

    def masks(self, agent):
        masks = {}
        for layer, z in self.scores[agent].items():
            y = fuse(z, self.heard[agent][layer], self.settings[agent]["amplitude"])
            masks[layer] = threshold(y, self.counts[agent][layer])
        return masks

    def local_step(self, agent, batch):
        """Returns the gradient that fine-tuning reuses and the loss before the step."""
        s = self.settings[agent]
        masks = self.masks(agent)
        dv, loss = self.gradient_fn({layer: w * masks[layer] for layer, w in self.weights.items()}, batch)
        gradient = {}
        for layer, z in self.scores[agent].items():
            g = np.sign(z) * self.weights[layer] * dv[layer]
            if s["form"] == "penalty":
                y = z if s["on"] == "scores" else fuse(z, self.heard[agent][layer], s["amplitude"])
                g = g + s["group_lasso"] * penalty_gradient(y)
            gradient[layer] = g
            self.scores[agent][layer] = z - s["lr"] * (g + s["weight_decay"] * z)
        return gradient, loss

    def round(self, batches):
        """One round of everyone; `batches[agent]` lists its local minibatches. Returns each agent's mean loss."""
        gradients, losses, messages = [], [], []
        for agent, s in enumerate(self.settings):
            steps = [self.local_step(agent, batch) for batch in batches[agent]]
            gradients.append(steps[-1][0])
            losses.append(np.mean([loss for _, loss in steps]))
            if s["form"] == "proximal":
                for layer, z in self.scores[agent].items():
                    self.scores[agent][layer] = proximal_step(z, s["lr"] * s["group_lasso"])
            messages.append(self.masks(agent))
        self.sent = messages
        self.heard = [self.listen(agent) for agent in range(len(self.scores))]
        for agent, gradient in enumerate(gradients):
            step = self.settings[agent]["fine_tune_lr"]
            for layer, z in self.scores[agent].items():
                self.scores[agent][layer] = z - step * gradient[layer] * self.heard[agent][layer]
        return losses
