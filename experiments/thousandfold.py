"""A thousandth of the bits that decentralized SGD sends, or less, at its accuracy or better.

    python -m experiments.thousandfold --data-dir FOLDER --topology ADJACENCY --class-file CLASSES   # 400 rounds

Both take the same steps, on the same graph, split and seeds; every message of masks is really encoded, the first as a
key frame and the others as what has flipped since. The flips between two messages grow far slower than the number of
rounds between them; therefore some arms send every few rounds. With the authors' graph and class lists, masks sent
every 5 rounds took 1/4829 of the bits of weights sent every round, at 68.2 % against 63.0 (one seed, 67 minutes on two
cores, with the flags `--fusion tensor --mask-sent fused --personal-layers none --augment none`): see
experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Experiment, compare, leave, listed


@dataclasses.dataclass(frozen=True)
class Thousandfold(Experiment):
    """Compare the bits of coded masks with those of weights at equal steps, by default as many as the authors take."""

    agents: int = 20
    data_fraction: float = 0.2
    rounds: int = 400
    mask_intervals: str = "1,5"
    """Rounds from one exchange of masks to the next, separated by commas: an arm of mce-pl for each."""
    weight_intervals: str = "1,5"
    """The same of weights: an arm of dsgd for each."""

    def arms(self) -> Arms:
        """Both methods, each at its intervals."""
        arms = {}
        for algorithm, field in (("dsgd", "weight_intervals"), ("mce-pl", "mask_intervals")):
            for rounds in listed(field, getattr(self, field), int):
                arms[f"{algorithm}, every {rounds}"] = {"algorithm": algorithm, "exchange_every": rounds}
        return arms


main = partial(compare, "experiments.thousandfold", Thousandfold)

if __name__ == "__main__":
    leave(main)
