"""Weights against masks, network by network: does the hypothesis hold outside of the theorem's restrictions?

    python -m experiments.architectures --dataset digits --networks small,mlp --width 1 --agents 4 --rounds 60
    python -m experiments.architectures --data-dir FOLDER      # CIFAR-10; narrow networks, 8 agents, 200 rounds

The theorem is of convolutions without strides, pooling, biases and shortcuts. Of each network the table has weights
that are trained, masks that are learned, both alone and at equal steps, and masks that neighbours hear, whose bits
stand beside. Search steps with `experiments.sweep` first: `--steps` takes them by network and algorithm. See
experiments/RESULTS.md.
"""

import dataclasses
from functools import partial
from typing import Any

from dslth_jax.study.commands import Arms, Experiment, compare, leave, steps_of


@dataclasses.dataclass(frozen=True)
class Architectures(Experiment):
    """Compare trained weights with learned masks in networks of many kinds."""

    networks: str = "alexnet,conv6,vgg11,resnet18,mobilenetv2,vit-tiny"
    """Networks, separated by commas."""
    width: float = 0.25
    rounds: int = 200
    data_fraction: float = 0.2
    batch_size: int = 64
    every: int = 10
    """Rounds from one exchange of masks to the next."""
    steps: str | None = None
    """Step sizes by network and algorithm, resnet18/local=0.05@cosine,vit-tiny/mce-pl=0.001@cosine for example; of
    those left out the algorithm's default."""

    def arms(self) -> Arms:
        """Of every network: weights that are trained alone, masks learned alone, masks heard every so many rounds."""
        heard = {"algorithm": "mce-pl", "fusion": "force", "mask_sent": "own", "exchange_every": self.every}
        kinds: dict[str, Any] = {"weights": {"algorithm": "local"}, "alone": {"algorithm": "independent"}}
        kinds |= {f"force, every {self.every}": heard}
        if self.lr and self.steps:
            raise ValueError("--steps says more than --lr: leave one of the two out")
        networks = self.networks.split(",")
        each = [(network, kind) for network in networks for kind in kinds]
        names = {f"{network}/{kinds[kind]['algorithm']}": (network, kind) for network, kind in each}
        steps = steps_of(self.steps, {*names}, "steps", "network/algorithm")
        return {
            f"{network}: {kind}": {"model": network, **kinds[kind]} | ({"lr": steps[name]} if name in steps else {})
            for name, (network, kind) in names.items()
        }


main = partial(compare, "experiments.architectures", Architectures)

if __name__ == "__main__":
    leave(main)
