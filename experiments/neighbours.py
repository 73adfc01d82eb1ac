"""What neighbours are worth: agents that hear nobody, and the rules by which others join what they hear.

    python -m experiments.neighbours --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.neighbours --data-dir FOLDER --topology ADJACENCY --class-file CLASSES   # CIFAR-10

By default in the proxy setting: images of 16 pixels a side, a small network, batches of 64.
"alone" trains on its own images; "pooled" on all agents' images of its own classes, a yardstick and no method. Masks
heard every ten rounds cost hundreds of times less than weights sent in each. See experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Proxy, compare, leave


@dataclasses.dataclass(frozen=True)
class Neighbours(Proxy):
    """Compare rules by which agents learn from neighbours with learning alone, at equal steps."""

    lr: float | str | None = "mce-pl=0.002@cosine,score-gossip=0.002@cosine,independent=0.002@cosine"
    """Step sizes by algorithm, dsgd=0.0125,mce-pl=0.002@cosine for example; of those left out their default."""
    every: int = 10
    """Rounds from one exchange to the next, of masks with a force and of the paper's fusion."""

    def arms(self) -> Arms:
        """Alone and pooled; the force and the gossip; the paper's fusion; weights, and weights with a personal head."""
        masks, head = {"algorithm": "mce-pl", "exchange_every": self.every}, {"personal_layers": "last"}
        return {
            "alone": {"algorithm": "independent"},
            "pooled": {"algorithm": "independent", "images": "pooled"},
            f"force, every {self.every}": {**masks, **head, "fusion": "force", "mask_sent": "own"},
            "gossip, every round": {"algorithm": "score-gossip", **head},
            f"aggregation tensor, every {self.every}": {
                **masks, "fusion": "tensor", "mask_sent": "fused", "personal_layers": "none",
            },
            "weights": {"algorithm": "dsgd"},
            "weights, personal head": {"algorithm": "dsgd", **head},
        }  # fmt: skip


main = partial(compare, "experiments.neighbours", Neighbours)

if __name__ == "__main__":
    leave(main)
