"""Rivals as plain numpy loops over agents, written from their formulas: oracles of the compiled rounds.

They know no packing, no vmap, no driver and no optax. Parameters and masks are dicts of arrays, one a layer.
`gradient_fn(parameters, batch, smoothing) -> (gradients, loss)` is the derivative of a minibatch's mean cross-entropy
to smoothed labels; of mask methods by v = w * m. `own[i]` and `links[i][j]` are the weights of agent i itself and of
what it hears of j.
"""

import math

import numpy as np
from reference import proximal_step, pull, threshold


def mix(links, uniform):
    """The weight of oneself beside those of the links: as any other's, or what they leave of 1."""
    return [1.0 if uniform else 1 - sum(row) for row in links]


def mean(values, agent, own, links):
    """The weighted mean of everybody's values of a layer."""
    total, weight = own[agent] * values[agent], own[agent]
    for j, link in enumerate(links[agent]):
        total = total + link * values[j]
        weight += link
    return total / weight


def descend(x, gradients, lr, weight_decay):
    return {layer: x[layer] - lr * (gradients[layer] + weight_decay * x[layer]) for layer in x}


def column(trees, layer):
    return [tree[layer] for tree in trees]


def is_of(leaf, layers):
    """Whether a leaf such as "params/first/kernel" is of one of the layers."""
    return leaf.split("/")[1] in layers


def trains(leaf, head, step, steps):
    """Whether a local step trains a leaf: with a head, the first half of the steps trains it and nothing else."""
    return not head or is_of(leaf, head) == (step < math.ceil(steps / 2))


def local_training(x, settings, batches, gradient_fn, head=()):
    losses = []
    for step, batch in enumerate(batches[:-1]):
        gradients, loss = gradient_fn(x, batch, settings["label_smoothing"])
        moved = descend(x, gradients, settings["lr"], settings["weight_decay"])
        x = {leaf: moved[leaf] if trains(leaf, head, step, len(batches) - 1) else own for leaf, own in x.items()}
        losses.append(loss)
    return x, np.mean(losses)


def dsgd_round(xs, settings, batches, own, links, gradient_fn, personal=(), head=()):
    """Everybody's weights after a round, and the losses."""
    averaged = [
        {leaf: w if is_of(leaf, personal) else mean(column(xs, leaf), i, own, links) for leaf, w in x.items()}
        for i, x in enumerate(xs)
    ]
    trained = [
        local_training(x, *rest, gradient_fn, head) for x, *rest in zip(averaged, settings, batches, strict=True)
    ]
    return [x for x, _ in trained], [loss for _, loss in trained]


def density_by_layer(shapes, density):
    """ERK: proportional to the sum of a shape over its product, layers beyond 1 being full, one by one."""
    full = []
    while True:
        rest = [layer for layer in shapes if layer not in full]
        budget = density * sum(math.prod(shapes[layer]) for layer in rest)
        budget -= (1 - density) * sum(math.prod(shapes[layer]) for layer in full)
        scale = budget / sum(sum(shapes[layer]) for layer in rest)
        largest = max(rest, key=lambda layer: sum(shapes[layer]) / math.prod(shapes[layer]))
        if scale * sum(shapes[largest]) / math.prod(shapes[largest]) <= 1:
            densities = {layer: scale * sum(shapes[layer]) / math.prod(shapes[layer]) for layer in rest}
            return densities | dict.fromkeys(full, 1.0)
        full.append(largest)
        if len(full) == len(shapes):
            return dict.fromkeys(full, 1.0)


def prune_and_regrow(w, mask, share, growth):
    """Drop the smallest weights of a layer's mask, then grow as many where `growth` is largest of what is left."""
    dropped = math.ceil(share * mask.sum())
    flat, kept = np.abs(w).reshape(-1), [i for i, m in enumerate(mask.reshape(-1)) if m]
    # Of equals the first stay.
    kept = sorted(kept, key=lambda i: (-flat[i], i))[: len(kept) - dropped]
    free = sorted(set(range(flat.size)) - set(kept), key=lambda i: (-growth.reshape(-1)[i], i))
    new = np.zeros(flat.size)
    new[kept + free[:dropped]] = 1
    return new.reshape(mask.shape)


def clipped(gradients, norm):
    size = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    return {layer: g * min(1, norm / size) for layer, g in gradients.items()}


def dis_pfl_round(ws, masks, settings, batches, own, links, gradient_fn, round, rounds, growth_fn, clip, personal=()):
    """Everybody's weights and masks after a round, and losses; `growth_fn(agent, weights, batch)` orders entries.
    Personal layers are trained first."""
    new_ws, new_masks, losses = [], [], []
    for i, (w, s) in enumerate(zip(ws, settings, strict=True)):
        share = 0 if round == 0 else s["prune_rate"] / 2 * (1 + math.cos(math.pi * (round - 1) / rounds))
        growth = growth_fn(i, w, batches[i][-1])
        mask = {layer: prune_and_regrow(w[layer], masks[i][layer], share, growth[layer]) for layer in w}
        averaged = {}
        for layer in w:
            total, have = own[i] * w[layer], own[i] * masks[i][layer]
            for j, link in enumerate([] if is_of(layer, personal) else links[i]):
                total = total + link * ws[j][layer]
                have = have + link * masks[j][layer]
            averaged[layer] = mask[layer] * np.divide(total, have, out=np.zeros_like(total), where=have > 0)
        of_steps = []
        for step, batch in enumerate(batches[i][:-1]):
            gradients, loss = gradient_fn(averaged, batch, s["label_smoothing"])
            trained = [layer for layer in w if trains(layer, personal, step, len(batches[i]) - 1)]
            gradients = clipped({layer: gradients[layer] for layer in trained}, clip)
            moved = descend({layer: averaged[layer] for layer in trained}, gradients, s["lr"], s["weight_decay"])
            averaged = averaged | {layer: moved[layer] * mask[layer] for layer in trained}
            of_steps.append(loss)
        new_ws.append(averaged)
        new_masks.append(mask)
        losses.append(np.mean(of_steps))
    return new_ws, new_masks, losses


def independent_round(weights, zs, settings, batches, gradient_fn, ternary=False):
    """Everybody's scores after a round without neighbours, and the losses."""
    new_zs, losses = [], []
    for z, s, own_batches in zip(zs, settings, batches, strict=True):
        of_steps = []
        for batch in own_batches[:-1]:
            sign = np.ones_like if ternary else np.sign  # by which a step in a score moves what is kept
            kept = {layer: threshold(z[layer], s["counts"][layer]) for layer in weights}
            signed = {layer: mask * np.sign(z[layer]) if ternary else mask for layer, mask in kept.items()}
            dv, loss = gradient_fn(
                {layer: w * signed[layer] for layer, w in weights.items()}, batch, s["label_smoothing"]
            )
            step = {layer: sign(own) * weights[layer] * dv[layer] for layer, own in z.items()}
            z = descend(z, step, s["lr"], s["weight_decay"])
            of_steps.append(loss)
        new_zs.append({layer: proximal_step(own, s["lr"] * s["group_lasso"]) for layer, own in z.items()})
        losses.append(np.mean(of_steps))
    return new_zs, losses


def gossip_start(z, ternary=False):
    """What an agent knows before the first round: its scores, what all know of it, and of its neighbours on average."""
    start = {layer: own if ternary else np.abs(own) for layer, own in z.items()}
    return {"z": z, "public": start, "neighbours": dict(start), "stepped": 0.0}


def gossip_round(weights, agents, settings, batches, links, gradient_fn, adaptive, speaks, arrived=None, ternary=False):
    """Everybody after a round, the signs and steps that were sent, and the losses.

    With `arrived`, the links over which something came, agents hold every ẑ_j, and hear those that they have reached.
    """
    zs, losses = independent_round(weights, [own["z"] for own in agents], settings, batches, gradient_fn, ternary)
    sent, after = [], []
    for z, own, s, own_batches in zip(zs, agents, settings, batches, strict=True):
        own = own | {"z": z, "stepped": own["stepped"] + s["lr"] * (len(own_batches) - 1)}
        after.append(own)
        error = {layer: (value if ternary else np.abs(value)) - own["public"][layer] for layer, value in z.items()}
        step = {layer: np.abs(e).mean() if adaptive else own["stepped"] for layer, e in error.items()}
        sent.append(
            {layer: (np.where(e >= 0, 1.0, -1.0), float(np.float32(step[layer]))) for layer, e in error.items()}
        )
    if not speaks:
        return after, sent, losses
    publics = [
        {layer: known + told[layer][1] * told[layer][0] for layer, known in own["public"].items()}
        for own, told in zip(after, sent, strict=True)
    ]
    moved = []
    for i, own in enumerate(after):
        weights_of = links[i] if arrived is None else arrived[i]
        total, new = sum(weights_of), {"stepped": 0.0, "z": {}, "public": publics[i], "neighbours": {}}
        for layer, z in own["z"].items():
            if arrived is None:
                told = sum((link * sent[j][layer][1] * sent[j][layer][0] for j, link in enumerate(links[i])), 0 * z)
                new["neighbours"][layer] = own["neighbours"][layer] + (told / total if total else 0)
            else:
                held = sum((link * publics[j][layer] for j, link in enumerate(weights_of)), 0 * z)
                new["neighbours"][layer] = held / total if total else own["neighbours"][layer]
            gap = new["neighbours"][layer] - new["public"][layer]
            movement = new["neighbours"][layer] - own["neighbours"][layer]
            by = settings[i]["mixing_step"] * gap + settings[i]["follow"] * movement
            new["z"][layer] = pull(z, by, ternary) if total else z
        moved.append(new)
    return moved, sent, losses


def mrn_start(x):
    """What an agent knows at first: its weights, what all know of them, and of its neighbours' on average."""
    return {"x": x, "public": x, "neighbours": x}


def mrn_round(agents, settings, batches, own, links, gradient_fn, signs, uniforms, speaks):
    """Everybody after a round and the losses; `signs` are of the noise, `uniforms[i]` draw the mask of agent i."""
    trained = [local_training(a["x"], *rest, gradient_fn) for a, *rest in zip(agents, settings, batches, strict=True)]
    agents = [a | {"x": x} for a, (x, _) in zip(agents, trained, strict=True)]
    sent = []
    for a, s, u in zip(agents, settings, uniforms, strict=True):
        told = {}
        for leaf, x in a["x"].items():
            error = x - a["public"][leaf]
            noise = signs[leaf] * float(np.float32(s["noise"] * np.abs(error).mean()))
            chance = np.clip((1 + error / noise) / 2, 0, 1)
            told[leaf] = noise * np.where(u[leaf] < chance, 1, -1)
        sent.append(told)
    losses = [loss for _, loss in trained]
    if not speaks:
        return agents, losses
    moved = []
    for i, a in enumerate(agents):
        total, new = sum(links[i]), {"x": {}, "public": {}, "neighbours": {}}
        for leaf, x in a["x"].items():
            public = a["public"][leaf] + sent[i][leaf]
            heard = sum((link * sent[j][leaf] for j, link in enumerate(links[i])), 0 * x)
            neighbours = a["neighbours"][leaf] + (heard / total if total else 0)
            average = (own[i] * public + total * neighbours) / (own[i] + total)
            x = x + settings[i]["mixing_step"] * (average - public)
            new["x"][leaf], new["public"][leaf], new["neighbours"][leaf] = x, public, neighbours
        moved.append(new)
    return moved, losses


def heard_votes(sent, agent, links, layer):
    votes = np.zeros_like(sent[agent][layer])
    for j, link in enumerate(links[agent]):
        votes = votes + link * sent[j][layer]
    return votes, sum(links[agent])


def majority(z, sent, agent, settings, own, links):
    """Where at least half of an agent's own mask and those heard last keep an entry."""
    masks = {}
    for layer, scores in z.items():
        votes, weight = heard_votes(sent, agent, links, layer)
        share = (own[agent] * threshold(scores, settings["counts"][layer]) + votes) / (own[agent] + weight)
        masks[layer] = (share >= 0.5).astype(float)
    return masks


def mask_mean_round(weights, zs, sent, settings, batches, own, links, gradient_fn, send_majority):
    """Everybody's scores and masks sent after a round, and the losses; `sent` are those of the round before."""
    new_zs, new_sent, losses = [], [], []
    for i, (z, s) in enumerate(zip(zs, settings, strict=True)):
        of_steps = []
        for batch in batches[i][:-1]:
            in_use = majority(z, sent, i, s, own, links)
            dv, loss = gradient_fn(
                {layer: w * in_use[layer] for layer, w in weights.items()}, batch, s["label_smoothing"]
            )
            step = {layer: np.sign(own) * weights[layer] * dv[layer] for layer, own in z.items()}
            z = descend(z, step, s["lr"], s["weight_decay"])
            of_steps.append(loss)
        new_zs.append(z)
        own_mask = {layer: threshold(scores, s["counts"][layer]) for layer, scores in z.items()}
        new_sent.append(majority(z, sent, i, s, own, links) if send_majority else own_mask)
        losses.append(np.mean(of_steps))
    return new_zs, new_sent, losses


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def fedpm_local(weights, s, settings, batches, uniforms, adam, gradient_fn):
    """An agent's scores after its local steps, the mask it sends and the mean loss. Masks are drawn by `uniforms`."""
    losses = []
    for batch, u in zip(batches[:-1], uniforms[:-1], strict=True):
        theta = {layer: sigmoid(own) for layer, own in s.items()}
        mask = {layer: (u[layer] < theta[layer]).astype(float) for layer in s}
        in_use = {layer: w * mask[layer] for layer, w in weights.items()}
        dv, loss = gradient_fn(in_use, batch, settings["label_smoothing"])
        step = adam.direction({layer: weights[layer] * dv[layer] * p * (1 - p) for layer, p in theta.items()})
        s = descend(s, step, settings["lr"], 0.0)
        losses.append(loss)
    return s, {layer: (uniforms[-1][layer] < sigmoid(own)).astype(float) for layer, own in s.items()}, np.mean(losses)


def fedpm_average(ss, sent, settings, own, links):
    """Everybody's scores after hearing: the logit of the clamped mean mask, or as they were where nobody is heard."""
    new = []
    for i, s in enumerate(ss):
        if not any(links[i]):
            new.append(s)
            continue
        low = settings[i]["clamp"]
        share = {layer: np.clip(mean(column(sent, layer), i, own, links), low, 1 - low) for layer in s}
        new.append({layer: np.log(p / (1 - p)) for layer, p in share.items()})
    return new
