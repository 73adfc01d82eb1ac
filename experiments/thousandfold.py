"""Hundreds of times fewer bits than whole weights take, at their accuracy or better: how near to a thousand?

    python -m experiments.thousandfold --data-dir FOLDER --topology ADJACENCY --class-file CLASSES   # 400 rounds

All take the same steps, on the same graph, split and seeds; every message of masks is really encoded, the first as a
key frame and the others as what has flipped since. The flips between two messages grow far slower than the number of
rounds between them; therefore some arms send every few rounds. Beside them stand agents that learn alone, over whom
the table says what others gain. See experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Experiment, compare, leave, listed, ways


@dataclasses.dataclass(frozen=True)
class Thousandfold(Experiment):
    """Compare the bits of coded masks with those of weights at equal steps, by default as many as the authors take."""

    agents: int = 20
    data_fraction: float = 0.2
    rounds: int = 400
    model: str | None = "alexnet"
    """Network, of those that --model of experiments.cifar names."""
    mask_intervals: str = "1,5"
    """Rounds from one exchange of masks to the next, separated by commas: an arm of the consensus force for each."""
    weight_intervals: str = "1,5"
    """The same of whole weights: an arm of decentralized SGD for each."""

    def arms(self) -> Arms:
        """Alone, and both methods, each at its intervals."""
        arms = ways(self.model, 1, "alone")
        for way, field in (("force", "mask_intervals"), ("weights", "weight_intervals")):
            for rounds in listed(field, getattr(self, field), int):
                arms[f"{way}, every {rounds}"] = ways(self.model, rounds, way)[way] | {"exchange_every": rounds}
        return arms


main = partial(compare, "experiments.thousandfold", Thousandfold)

if __name__ == "__main__":
    leave(main)
