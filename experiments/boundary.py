"""Where neighbours begin to harm: gains over learning alone as agents become less alike.

    python -m experiments.boundary --dataset digits --model small --resize 8 --agents 10 --rounds 60 --alphas 0.1,10
    python -m experiments.boundary --data-dir FOLDER    # CIFAR-10: 144 runs of 20 agents on a ring
    python -m experiments.boundary --data-dir FOLDER --overlaps None --alphas 0.1,10 --topology ADJACENCY

Two ways to be unlike: agents on a ring share none to all of their classes with the next one, and have as many samples
whatever they share (of CIFAR-10 half of what 20 agents can have: 500); or label shares are drawn by a Dirichlet law,
sizes differing with them (1,250 on average; with `--data-fraction 0.2` again 500). The table says what each rule gains
over alone, paired by seed, with a 95 % interval, and which rules lose where; the figure draws the gains. By
`--alphas None` and `--overlaps None`, two commands side by side, it takes 1.8 hours of two busy cores. Intervals of
three seeds are wide: say more `--seeds`.
"""

import dataclasses
from functools import partial
from typing import Any

from dslth_jax.study.commands import Arms, Panel, Proxy, compare, interval, leave, listed, ways

RULES = ("alone", "force", "aggregation tensor", "gossip", "weights, alone", "weights", "weights, personal head")


@dataclasses.dataclass(frozen=True)
class Boundary(Proxy):
    """Compare what rules gain over learning alone, the less alike neighbours are the further."""

    topology: str = "ring"
    data_fraction: float = 0.5
    rounds: int = 200
    overlaps: str | None = "0,0.5,1"
    """Shares of an agent's classes that the next agent on a ring holds too, separated by commas; None leaves them
    out."""
    alphas: str | None = "0.03,1,100"
    """Concentrations of Dirichlet label shares, separated by commas; None leaves them out."""
    every: int = 10
    """Rounds from one exchange of masks to the next; gossip and weights are exchanged in every round."""

    panels = (Panel("overlap", "gain"), Panel("alpha", "gain", logarithmic=True))

    def arms(self) -> Arms:
        """At every point: alone, by the force, the paper's fusion, gossip, weights trained alone, weights, weights with
        a personal head, and by the force among neighbours whose masks are alike."""
        if self.overlaps and self.topology != "ring":
            raise ValueError("--overlaps are of neighbours on a ring: say --overlaps None, or leave out --topology")
        rules = ways(self.model, interval(self), *RULES)
        rules["force by similarity"] = {**rules["force"], "mixing": "similarity"}
        points: dict[str, dict[str, Any]] = {}
        for axis, field, name in (("overlap", "overlaps", "class_overlap"), ("alpha", "alphas", "dirichlet_alpha")):
            values = getattr(self, field)
            points |= {f"{axis} {x:g}": {name: x} for x in (listed(field, values, float) if values else ())}
        if not points:
            raise ValueError("--overlaps and --alphas leave no point to compare at: say one of them")
        return {f"{point}: {rule}": {**own, **where} for point, where in points.items() for rule, own in rules.items()}


main = partial(compare, "experiments.boundary", Boundary)

if __name__ == "__main__":
    leave(main)
