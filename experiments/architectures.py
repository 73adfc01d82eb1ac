"""Weights against masks, network by network: does the hypothesis hold outside of the theorem's restrictions?

    python -m experiments.architectures --dataset digits --networks small,mlp --width 1 --agents 4 --rounds 60
    python -m experiments.architectures --data-dir FOLDER      # CIFAR-10; narrow networks, 8 agents, 200 rounds

The theorem is of convolutions without strides, pooling, biases and shortcuts. Of each network the table has weights
that are trained, masks that are learned, both alone and at equal steps, masks that neighbours hear, and masks whose
scores they gossip, with the bits that are sent. Neighbours are heard weakly, as so few rounds ask for: a force of a
tenth, and a mixing that falls. Search the steps of a network first, with `experiments.sweep`, and say them by network
and algorithm (`--steps`). See experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Experiment, Panel, at_step, compare, leave, steps_of, ways

KINDS = {"weights": "weights, alone", "alone": "alone", "force": "force", "gossip": "gossip"}  # arms: `ways`


@dataclasses.dataclass(frozen=True)
class Architectures(Experiment):
    """Compare trained weights with learned masks in networks of many kinds."""

    networks: str = "alexnet,conv6,vgg11,resnet18,mobilenetv2,vit-tiny"
    """Networks, separated by commas."""
    width: float = 0.25
    rounds: int = 200
    data_fraction: float = 0.2
    batch_size: int = 64
    every: int = 1
    """Rounds from one exchange of masks to the next; score gossip exchanges in every round."""
    force: float | str = 0.1
    mixing_step: float | str = "0.5@cosine"
    steps: str | None = None
    """Step sizes by network and algorithm, resnet18/local=0.05@cosine,vit-tiny/mce-pl=0.001@cosine for example, each of
    the algorithm's own optimizer or the one that it names; those left out are as in all comparisons."""

    panels = (Panel("model_bits", "accuracy", logarithmic=True), Panel("multiply_adds", "accuracy", logarithmic=True))

    def arms(self) -> Arms:
        """Of every network: weights that are trained alone; masks learned alone, by the force, and by gossip."""
        if self.lr and self.steps:
            raise ValueError("--steps says more than --lr: leave one of the two out")
        arms = {
            f"{network}: {kind}": {"model": network, **own}
            for network in self.networks.split(",")
            for kind, own in zip(KINDS, ways(network, self.every, *KINDS.values()).values(), strict=True)
        }
        names = {name: f"{own['model']}/{own['algorithm']}" for name, own in arms.items()}
        steps = steps_of(self.steps, {*names.values()}, "steps", "network/algorithm")
        return {name: at_step(own, steps.get(names[name])) for name, own in arms.items()}


main = partial(compare, "experiments.architectures", Architectures)

if __name__ == "__main__":
    leave(main)
