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

    lr: float | str | None = "mce-pl=0.002@cosine,score-gossip=0.002@cosine,independent=0.002@cosine,dsgd=0.05@cosine"
    """Step sizes by algorithm, dsgd=0.0125,mce-pl=0.002@cosine for example; of those left out their default."""
    every: str = "10,20"
    """Rounds from one exchange of masks to the next, separated by commas: an arm of the force for each, and the paper's
    fusion at the first."""

    def arms(self) -> Arms:
        """Alone and pooled; the force and the gossip; the paper's fusion; weights, and weights with a personal head."""
        first, *others = dict.fromkeys(listed("every", self.every, int))
        known = ways(first)
        return {
            "alone": known["alone"],
            "pooled": {**known["alone"], "images": "pooled"},
            **{f"force, every {rounds}": ways(rounds)["force"] for rounds in (first, *others)},
            "gossip, every round": known["gossip"],
            f"aggregation tensor, every {first}": known["aggregation tensor"],
            **{name: known[name] for name in ("weights", "weights, personal head")},
        }


main = partial(compare, "experiments.neighbours", Neighbours)

if __name__ == "__main__":
    leave(main)
