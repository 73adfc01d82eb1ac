"""Agents of unlike depths: some hold few residual blocks, some all, beside all shallow, all deep, and alone.

    python -m experiments.depths --dataset digits --resize 8 --agents 4 --rounds 60
    python -m experiments.depths --data-dir FOLDER --topology ADJACENCY --class-file CLASSES    # CIFAR-10, 16 x 16

"all deep" is an upper bound: its shallow devices would have to compute what they cannot. "mixed" deals both depths by
the seed to equally many agents, and `agents.csv` says how each did (`--run-folders`); "mixed: alone" is what these
learn by themselves. Neighbours are heard weakly, as networks as deep as these ask for: by a consensus force of a tenth,
and by gossip whose mixing falls. See experiments/results/networks.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Proxy, compare, leave, ways


@dataclasses.dataclass(frozen=True)
class Depths(Proxy):
    """Compare populations whose agents hold unlike numbers of residual blocks, at equal steps."""

    model: str | None = "resnet20"
    """Network with residual blocks: resnet18, resnet20, mobilenetv2 or vit-tiny."""
    width: float = 0.5
    shallow: int = 3
    """Residual blocks of shallow agents."""
    deep: int = 9
    """Residual blocks of deep ones."""
    every: int = 1
    """Rounds from one exchange of masks to the next; score gossip exchanges in every round."""
    force: float | str = 0.1
    mixing_step: float | str = "0.5@cosine"

    def arms(self) -> Arms:
        """All shallow, mixed, all deep: alone, by the consensus force, and by gossip."""
        depths = {"all shallow": self.shallow, "mixed": f"dealt:{self.shallow},{self.deep}", "all deep": self.deep}
        return {
            f"{agents}: {name}": {**way, "depth": depth}
            for agents, depth in depths.items()
            for name, way in ways(self.model, self.every, "alone", "force", "gossip").items()
        }


main = partial(compare, "experiments.depths", Depths)

if __name__ == "__main__":
    leave(main)
