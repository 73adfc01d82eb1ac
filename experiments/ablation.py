"""What neighbours' masks are worth, and how they must be joined: the aggregation tensor, a majority, or nobody's.

    python -m experiments.ablation --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.ablation --data-dir FOLDER       # CIFAR-10 at 16 x 16 pixels, 20 agents, 300 rounds

The paper says of majorities that they make masks ever sparser and training unstable, and that the aggregation tensor
keeps the density that was asked for: see experiments/RESULTS.md. Where neighbours are few there are ties; a tie keeps
the entry, and density then grows instead.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Panel, Proxy, compare, leave, ways


@dataclasses.dataclass(frozen=True)
class Ablation(Proxy):
    """Compare ways to join neighbours' masks: density, loss and accuracy over rounds."""

    linear_retention: float | str | None = "same"
    """One number for all agents' linear layers, or same (each agent's own): below a half everywhere, a majority of
    unlike masks keeps less than any of them."""
    panels = (Panel("round", "density"), Panel("round", "loss"), Panel("round", "accuracy"))

    def arms(self) -> Arms:
        """The aggregation tensor, a majority as either of two readings has it, and alone.

        Majorities that are sent on start from unlike masks, because from like ones nothing would ever change. All share
        all layers, as the paper does.
        """
        known = ways(self.model, 1)
        return {
            "aggregation tensor": known["aggregation tensor, every round"],
            "majority of own masks": known["majority"],
            "majority, sent on": {**known["majority"], "mask_sent": "majority", "start_scores": "personal"},
            "alone": known["alone"],
        }


main = partial(compare, "experiments.ablation", Ablation)

if __name__ == "__main__":
    leave(main)
