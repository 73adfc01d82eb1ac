"""Score gossip: neighbours learn each other's scores from one bit an entry. One agent's world. Ours.

Agents mix the magnitudes of their scores, not their masks. Nobody sends a score: of every agent i there is a public
estimate ẑ_i, which starts at the common |z₀| and moves by one step up or down for each bit that i sends (delta
modulation; with an adaptive step it is sign compression with memory, as in CHOCO-SGD: Koloskova et al., ICML 2019). S_i
is the weighted mean of the neighbours' estimates, which i keeps from their bits alone. One round, with the symbols of
`mce_pl`, the steps δ, the strength γ of the mixing and the share ν of its neighbours' movement that an agent makes too:

    local step    z ← z − η (g + wd · z), prox of η λ R                  }
    signs         b = [ |z| ≥ ẑ ],  δ by layer                           } send b and δ
    exchange      σ ← weighted mean of the neighbours' δ_j (2 b_j − 1)
    estimates     ẑ ← ẑ + δ (2b − 1),  S ← S + σ                         }
    mixing        z ← s · max(|z| + γ (S − ẑ) + ν σ, 1e-9)               } receive

with s = −1 for z < 0 and else 1. Where masks are ternary all of this is of z in the place of |z|, and mixing leaves
signs free: z ← z + γ (S − ẑ) + ν σ. The step δ is η, summed since the last exchange, or adaptive: the mean of | |z| − ẑ
| over the layer. In a silent round nothing but z moves. Who follows goes where neighbours go, and these in turn follow:
what all have in common then moves up to 1 / (1 − ν) times as far for each step, as by a momentum of their mean, while
what sets an agent apart does not.

Where channels die, an agent that has lost an entry (z = 0) has nothing of its own to tell of it, and tells what it
hears: S in the place of |z|. So its estimate follows those of its neighbours, and draws none of them to 0: which
channels an agent loses is its own affair, also where its target is higher than theirs.

S is a sum of what all neighbours have ever sent: their number never changes, and a link may be late but must lose
nothing. Behind a link that holds what each has told (`added_up`), S is anew the mean of |z₀| and of these sums, of
those who were reached in this round, and σ is what S has changed by since somebody was: where others are reached than
before, also what sets them apart.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, by_name, own_signs, sum_of_signs, with_names
from dslth_jax.algorithms import mce_pl
from dslth_jax.algorithms.consensus import Scores, pull, told
from dslth_jax.algorithms.masked import AS_IN_CODE, MaskRule, scores_at_start
from dslth_jax.channels import Channels, held_dead
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries to keep, one number a layer: see `retention.kept_by_layer`
    lr: float | Float[Array, ""] = 5e-4  # η
    weight_decay: float | Float[Array, ""] = 0.0  # wd
    group_lasso: float | Float[Array, ""] = 0.0  # λ
    mixing_step: float | Float[Array, ""] = 0.5  # γ
    follow: float | Float[Array, ""] = 0.0  # ν
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


MOVED = ("scores", "optimizer", "stepped")  # what the local step moves


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    scores: Scores
    optimizer: optax.OptState
    stepped: Float[Array, ""]  # the sum of the steps since the last exchange
    public: Scores  # ẑ
    neighbours: Scores  # S
    weight: Mapping[str, Float[Array, ""]]  # of all neighbours, by layer


def score_gossip(
    network: Network,
    *,
    modulation: Literal["step", "adaptive"] = "step",
    group_lasso_form: Literal["proximal", "penalty"] = "proximal",
    mask_rule: MaskRule = AS_IN_CODE,
    optimizer: optax.GradientTransformation | None = None,
    mortal: tuple[Channels, ...] | None = None,
    smallest_channels: int = 1,
) -> Algorithm:
    """Score gossip on `network`. All agents start with common scores, or ẑ would have to be sent first.

    Args:
        network: whose masked weights get scores.
        modulation: what a bit is worth: the steps taken since the last exchange, or the layer's mean error.
        group_lasso_form: see `mce_pl.mce_pl`, as for `mask_rule`, `optimizer`, `mortal` and `smallest_channels`. A dead
            channel stays dead whatever neighbours tell, and kills none of theirs.
    """
    expect_choice("modulation", modulation, ("step", "adaptive"))
    ternary = mask_rule.ternary
    local = mce_pl.mce_pl(
        network,
        fusion="force",
        group_lasso_form=group_lasso_form,
        mask_rule=mask_rule,
        optimizer=optimizer,
        mortal=mortal,
        smallest_channels=smallest_channels,
    )

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        started, _ = local.init(key, world, learning(hyper))
        start = told(started.scores, ternary)
        nobody = {name: jnp.zeros((), z.dtype) for name, z in by_name(start).items()}
        agent = Agent(started.scores, started.optimizer, jnp.asarray(started.stepped), start, start, nobody)
        return agent, signs(start, start, jax.tree.map(jnp.ones_like, nobody))

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Message, Message, dict[str, Array]]:
        moved, _, _, info = local.send(key, world, learning(hyper), mce_pl.Agent(*agent[:3]), heard, batches)
        # Start messages pass through no link: what was heard before the first round is of all neighbours.
        of_all = {name: jnp.where(world.round == 0, now, agent.weight[name]) for name, now in heard.weight.items()}
        weight = {name: of_all.get(name, own).astype(own.dtype) for name, own in agent.weight.items()}
        agent = agent._replace(**{name: getattr(moved, name) for name in MOVED}, weight=weight)
        message = signs(opinion(agent, ternary, mortal), agent.public, by_name(steps(agent)))
        return agent, message, message, info

    def steps(agent: Agent) -> PyTree[Float[Array, ""]]:
        """δ of every layer."""
        if modulation == "step":
            sizes = jax.tree.map(lambda z: agent.stepped.astype(z.dtype), agent.scores)
        else:
            own = opinion(agent, ternary, mortal)
            sizes = jax.tree.map(lambda x, known: jnp.mean(jnp.abs(x - known)), own, agent.public)
        return jax.tree.map(lambda size: size.astype(jnp.float32).astype(size.dtype), sizes)  # as they are sent

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: Message, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, batches
        start = told(scores_at_start(world.key, world, "shared"), ternary)

        def after(name: str, known: Array) -> Array:
            return jnp.where(heard.spoke, known + own_signs(carry, name, known.shape), known)

        def weight_of(name: str) -> Array:
            return (heard.weight if name in heard.values else agent.weight)[name]

        def after_all(name: str, known: Array, at_start: Array) -> Array:
            if name in heard.masks:
                return known + sum_of_signs(heard, name) / divisor(weight_of(name))
            if name not in heard.values:
                return known
            weight = weight_of(name).astype(known.dtype)
            sums = heard.values[name][: known.size].reshape(known.shape)  # without what fills up the last packed byte
            return jnp.where(heard.spoke & (weight > 0), at_start + sums / divisor(weight), known)

        def mixing(name: str, public: Array, before: Array, now: Array) -> Array:
            if name not in heard.masks and name not in heard.values:
                return jnp.zeros_like(public)
            toward = hyper.mixing_step * (now - public) + hyper.follow * (now - before)
            return jnp.where(heard.spoke & (weight_of(name) > 0), toward, 0)

        public, neighbours = with_names(after, agent.public), with_names(after_all, agent.neighbours, start)
        scores = pull(agent.scores, with_names(mixing, public, agent.neighbours, neighbours), ternary)
        scores = scores if mortal is None else held_dead(scores, agent.scores)
        stepped = jnp.where(heard.spoke, 0, agent.stepped)
        agent = agent._replace(scores=scores, stepped=stepped, public=public, neighbours=neighbours)
        return agent, mce_pl.health(scores, mortal)

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        return local.model(world, learning(hyper), mce_pl.Agent(*agent[:3]), heard)

    return local._replace(init=init, send=send, receive=receive, model=model, start_known=False, adds_up=True)


def opinion(agent: Agent, ternary: bool = False, mortal: tuple[Channels, ...] | None = None) -> Scores:
    """What an agent tells: |z|, or z where masks are ternary; and where channels die, S of what it has lost."""
    own = told(agent.scores, ternary)
    if mortal is None:
        return own
    return jax.tree.map(lambda z, x, heard: jnp.where(z != 0, x, heard), agent.scores, own, agent.neighbours)


def signs(own: Scores, public: Scores, steps: Mapping[str, Float[Array, ""]]) -> Message:
    """b of every layer, each with its step δ."""
    above = jax.tree.map(lambda x, known: masks.pack(x >= known), own, public)
    return Message(by_name(above), scales=steps)


def divisor(weight: Float[Array, ""]) -> Float[Array, ""]:
    """A weight to divide by: 1 where it is nobody's, for then 0 is divided."""
    return jnp.where(weight > 0, weight, 1)


def learning(hyper: Hyper) -> mce_pl.Hyper:
    """The settings of the local step; there is no force."""
    own = {name: value for name, value in hyper._asdict().items() if name not in ("mixing_step", "follow")}
    return mce_pl.Hyper(**own, fine_tune_lr=0.0, amplitude=0.0, force=0.0)
