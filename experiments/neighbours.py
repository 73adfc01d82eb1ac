"""What neighbours are worth: agents that hear nobody, and the rules by which others join what they hear.

    python -m experiments.neighbours --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.neighbours --data-dir FOLDER --topology ADJACENCY --class-file CLASSES   # CIFAR-10

By default in the proxy setting: images of 16 pixels a side, not augmented, a small network, batches of 64. "alone"
trains on its own images; "pooled" on all agents' images of its own classes, a yardstick and no method. Masks heard
every 20 rounds cost a thousandth of weights sent in each. A member takes 1.2 minutes of a fast core, 4 of a slow one.
See experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Proxy, compare, leave, listed, ways


@dataclasses.dataclass(frozen=True)
class Neighbours(Proxy):
    """Compare rules by which agents learn from neighbours with learning alone, at equal steps."""

    every: str = "10,20"
    """Rounds from one exchange of masks to the next, separated by commas: an arm of the force for each, and the paper's
    fusion at the first."""

    def arms(self) -> Arms:
        """Alone and pooled; the force; gossip, and gossip that follows; the paper's fusion; weights, with a personal
        head or without."""
        first, *others = dict.fromkeys(listed("every", self.every, int))
        known = ways(self.model, first)
        return {
            "alone": known["alone"],
            "pooled": {**known["alone"], "images": "pooled"},
            **{f"force, every {rounds}": ways(self.model, rounds)["force"] for rounds in (first, *others)},
            "gossip, every round": known["gossip"],
            "gossip, following": known["gossip, following"],
            f"aggregation tensor, every {first}": known["aggregation tensor"],
            **ways(self.model, first, "weights", "weights, personal head"),
        }


main = partial(compare, "experiments.neighbours", Neighbours)

if __name__ == "__main__":
    leave(main)
