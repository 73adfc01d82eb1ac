"""Weights against masks from one random network, at equal steps (the paper's question whether masks are enough).

    python -m experiments.validation --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.validation --data-dir FOLDER     # CIFAR-10 at 16 x 16 pixels, 20 agents, 300 rounds

Agents learn alone, and among neighbours. Some train the weights from which all start, the others keep these and learn
which of them to use. The paper says that both end alike: see experiments/RESULTS.md.
"""

import dataclasses
from functools import partial
from typing import Literal

from dslth_jax.study.commands import Arms, Panel, Proxy, compare, leave, ways


@dataclasses.dataclass(frozen=True)
class Validation(Proxy):
    """Compare the training of weights with that of masks over the same random weights."""

    weights: Literal["uniform-by-fan-in", "signed-constant", "uniform"] | None = "signed-constant"
    """Draw of the random weights, one for all arms. Signed constants suit both, at steps of their own; masks scale them
    by 1/√retention."""
    biases: Literal["random", "zero"] | None = "zero"
    """Biases of linear layers at the start, one draw for all arms."""
    panels = (Panel("round", "accuracy"), Panel("round", "loss"))

    def arms(self) -> Arms:
        """Weights and masks, alone and among neighbours, to whom the last layer is not told."""
        known = ways(self.model, 1)
        return {
            "weights: alone": known["weights, alone"],
            "masks: alone": known["alone"],
            "weights: among neighbours": known["weights, personal head"],
            "masks: among neighbours": known["mce-pl, every round"],
        }


main = partial(compare, "experiments.validation", Validation)

if __name__ == "__main__":
    leave(main)
