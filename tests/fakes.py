"""Fakes of compiled programs: numbers of the right shapes in a moment, for tests of what is done with them.

An agent's scores walk at random, by its seed, its step size and the round alone; its masks keep the largest, and its
accuracy is how well they agree with a certain mask. So runs differ by settings and seed, a step that is too large ends
in numbers that are not finite, and a run that goes on from a checkpoint ends like one that was not stopped only if all
of its state was there.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax.algorithm import Message, by_name
from dslth_jax.evaluation import Evaluation
from dslth_jax.graphs import adjacency_of
from dslth_jax.study.results import pictures
from dslth_jax.study.system.stopping import Stop
from dslth_jax.study.training import loop
from dslth_jax.study.training.history import shapes_of
from dslth_jax.study.training.plan import Plan
from dslth_jax.study.training.programs import Programs, filled

Layers = dict[str, np.ndarray]  # by name; (members, agents, entries)


def use_fakes(patch: pytest.MonkeyPatch) -> None:
    """Train with fakes from here on, and draw nothing."""
    patch.setattr(loop, "compile_programs", FakePrograms.of)
    draw_nothing(patch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave empty files for pictures from here on."""
    patch.setattr(pictures, "save", lambda path, *_: path.write_bytes(b""))


class FakePrograms:
    """In the place of `compile_programs`. A state holds the scores of every member, and the round."""

    def __init__(self, plan: Plan) -> None:
        self.plan, first = plan, plan.members[0]
        self.settings, self.number = first.settings, len(plan.members)
        maskable, message = shapes_of(first)
        weights, _ = jax.eval_shape(first.network.init, jax.random.key(0))
        layers = maskable if maskable is not None else message.masks or weights
        self.sizes = {layer: leaf.size for layer, leaf in by_name(layers).items()}
        self.floats = sum(leaf.size for leaf in message.values.values())
        self.keeps_masks = self.settings.algorithm not in ("dsgd", "local")
        self.steps = self.of_each(lambda member: np.float32(member.hyper.lr))[..., None]
        graphs = self.of_each(lambda member: adjacency_of(member.topology.graph).sum(axis=0))
        self.listeners = graphs * (self.settings.algorithm not in ("local", "independent"))
        self.wanted = {layer: self.of_each(lambda one, layer=layer: self.kept(one, layer)) for layer in self.sizes}

    @classmethod
    def of(cls, plan: Plan) -> Programs:
        """The fakes of a plan's programs."""
        own, began = cls(plan), time.perf_counter()
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), own.start())
        validate = own.validate if plan.members[0].validation else None
        compiled = lambda: time.perf_counter() - began  # noqa: E731
        return Programs(own.start, own.evaluate, own.step, own.sent, compiled, state, validate)

    def of_each(self, look: Any) -> np.ndarray:
        """What `look` sees of each member, one number an agent: (members, agents)."""
        agents = self.settings.agents
        return np.stack([np.broadcast_to(np.asarray(look(member)), agents) for member in self.plan.members])

    def kept(self, member: Any, layer: str) -> Any:
        """How many entries of a layer a member's agents keep."""
        kept = by_name(getattr(member.hyper, "kept", {}))
        return np.minimum(kept.get(layer, self.sizes[layer] // 2), self.sizes[layer])

    def noise(self, round: int) -> Layers:
        """Of one round, from each member's seed."""
        shape = self.settings.agents, sum(self.sizes.values())
        seeds = [member.settings.seed for member in self.plan.members]
        drawn = np.stack([np.random.default_rng([seed, round]).normal(size=shape) for seed in seeds])
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        return dict(zip(self.sizes, np.split(drawn.astype(np.float32), ends, axis=-1), strict=True))

    def state(self, scores: Layers, round: int) -> dict[str, Any]:
        """On the device, with rows for what pads members to as many as the devices take."""
        rows = {layer: jnp.asarray(filled(own, self.plan)) for layer, own in scores.items()}
        return {"scores": rows, "round": jnp.full(len(rows[next(iter(rows))]), round, jnp.int32)}

    def scores(self, state: dict[str, Any]) -> Layers:
        """Those of the members."""
        return {layer: np.asarray(own)[: self.number] for layer, own in state["scores"].items()}

    def masks(self, scores: Layers) -> Layers:
        """The largest scores."""
        ranks = {layer: np.argsort(np.argsort(-own)) for layer, own in scores.items()}
        return {layer: own < self.wanted[layer][..., None] for layer, own in ranks.items()}

    def start(self) -> dict[str, Any]:
        return self.state(self.noise(0), 0)

    def step(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        before, round = self.scores(state), int(state["round"][0]) + 1
        noise = self.noise(round)
        with np.errstate(all="ignore"):
            scores = {layer: before[layer] + self.steps * (noise[layer] / np.float32(round)) for layer in before}
            loss = np.float32(sum(np.square(own).mean(axis=-1) for own in scores.values()))
        masks, earlier = self.masks(scores), self.masks(before)
        silent = round % self.settings.exchange_every != 0 or round < self.settings.exchange_from
        info = {
            "loss": loss,
            "kept": {layer: mask.sum(axis=-1) for layer, mask in masks.items()},
            "wanted": self.wanted,
            "flipped": sum((masks[layer] != earlier[layer]).sum(axis=-1) for layer in masks),
            "floats": np.full(loss.shape, self.floats) if self.floats else None,
            "has": None,
            "listeners": self.listeners * (not silent),
        }
        return self.state(scores, round), info if self.keeps_masks else {**info, "kept": {}, "flipped": None}

    def evaluate(self, state: dict[str, Any], sizes: np.ndarray) -> Evaluation:
        masks = self.masks(self.scores(state))
        right = [(mask == (np.arange(mask.shape[-1]) % 3 == 0)).mean(axis=-1) for mask in masks.values()]
        density = [mask.mean(axis=-1) for mask in masks.values()]
        accuracy, density = (np.float32(np.mean(own, axis=0)) for own in (right, density))
        tested = np.stack([member.held(member.tests) for member in self.plan.members])
        right = np.floor(accuracy[..., None] * tested).astype(np.int32)
        if self.keeps_masks and self.settings.algorithm != "fedmrn":  # whose bits are no masks in use
            return Evaluation(accuracy, density, self.sent(state)[0].masks, right=right)
        return Evaluation(accuracy, None, None, right=right)

    def validate(self, state: dict[str, Any]) -> np.ndarray:
        """The worse the test accuracy, the better: who chooses by one of the two does not choose by the other."""
        return 1 - self.evaluate(state, np.array([])).accuracy

    def sent(self, state: dict[str, Any]) -> tuple[Message, ...]:
        """What was sent last; fakes remember nothing from before it."""
        masks = self.masks(self.scores(state))
        return (Message({layer: np.packbits(mask, axis=-1) for layer, mask in masks.items()}),)


class StopAfter(Stop):
    """Asks to stop when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks, self.later, self.given = looks, False, None

    @property
    def asked(self):
        self.looks -= 1
        return 15 if self.looks < 0 else None

    @asked.setter
    def asked(self, given) -> None:
        self.given = given
