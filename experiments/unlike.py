"""Devices of unlike budgets: agents that keep a tenth to seven tenths of their weights, beside agents that are alike.

    python -m experiments.unlike --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.unlike --data-dir FOLDER --topology ADJACENCY --class-file CLASSES --run-folders  # CIFAR-10
    python -m experiments.unlike ... --model alexnet --resize None --augment flip-crop --rounds 400    # the authors'

The paper's heterogeneous nodes: retentions are dealt by the seed, each to equally many agents, and linear layers keep
as much as convolutions. Beside them all keep 0.4, their mean, or 0.3. The paper's fusion, the consensus force, score
gossip, and alone. `--run-folders` leaves `agents.csv` of each run, with every agent's retention and accuracy. See
experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Proxy, compare, leave, ways


@dataclasses.dataclass(frozen=True)
class Unlike(Proxy):
    """Compare agents of unlike retentions with agents of the same, by every way to hear neighbours, and alone."""

    seeds: int = 2
    dealt: str = "0.1,0.3,0.5,0.7"
    """Retentions that the seed deals, each to equally many agents."""
    every: int = 10
    """Rounds from one exchange of masks to the next; score gossip exchanges in every round."""

    def arms(self) -> Arms:
        """Unlike agents, all at 0.4, and all at 0.3: alone, by the paper's fusion, the force and gossip."""
        rules = ways(self.model, self.every, "alone", "aggregation tensor", "force", "gossip")
        del rules["force"]["force_momentum"]  # left to the flag
        kept = {"unlike": f"dealt:{self.dealt}", "all 0.4": 0.4, "all 0.3": 0.3}
        return {
            f"{agents}: {way}": {**own, "retention": retention, "linear_retention": "same"}
            for agents, retention in kept.items()
            for way, own in rules.items()
        }


main = partial(compare, "experiments.unlike", Unlike)

if __name__ == "__main__":
    leave(main)
