"""Accuracy against megabytes, of all methods, at several retentions.

    python -m experiments.communication --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.communication --data-dir FOLDER  # CIFAR-10 at 16 x 16 pixels, 20 agents, 300 rounds

Megabytes are what a method sends over all links: masks as real, entropy-coded messages, weights as float32, sparse
weights with the bitmap of their mask. Where an arm names a retention, masks keep that share of every layer, and Dis-PFL
that share of all parameters. Masks are exchanged every ten rounds; FedPM, for one, learns nothing where it exchanges
after every step. See experiments/RESULTS.md.
"""

import dataclasses
from functools import partial

from dslth_jax.study.commands import Arms, Proxy, compare, interval, leave, listed, ways

# Ways that are compared once, and ways that are compared at each retention.
OF_WEIGHTS = ("weights, alone", "weights", "weights, personal head")
ONCE = ("gossip, following", *OF_WEIGHTS, "fedpm, personal head", "fedmrn, personal head")
SPARSE = ("alone", "force", "aggregation tensor", "dis-pfl")


@dataclasses.dataclass(frozen=True)
class Communication(Proxy):
    """Compare what methods learn with what they send."""

    retentions: str = "0.1,0.3,0.5"
    """Retentions of the methods that have one, separated by commas."""
    every: int = 10
    """Rounds from one exchange of masks to the next; weights, and their signs, are exchanged in every round."""

    def arms(self) -> Arms:
        """Every method, those with a retention at each."""
        known = ways(self.model, interval(self))
        arms = {name: known[name] for name in ONCE}
        for retention in listed("retentions", self.retentions, float):
            for name in SPARSE:
                everywhere = {} if name == "dis-pfl" else {"linear_retention": "same"}
                arms[f"retention {retention:g}: {name}"] = known[name] | {"retention": retention} | everywhere
        return arms


main = partial(compare, "experiments.communication", Communication)

if __name__ == "__main__":
    leave(main)
