"""Budgets that follow devices and links: controllers against the best retention that stays, at equal simulated time.

    python -m experiments.budgets --dataset digits --model small --resize 8 --agents 4 --rounds 60
    python -m experiments.budgets --data-dir FOLDER --topology ADJACENCY --class-file CLASSES --scenario one-slow

The consensus force in the proxy setting at a constant step: the table's last columns say where arms stand when the
first that hears anybody is done, and what each has won by then over the best retention that stays, chosen by
validation. Devices that multiply only what they keep, a billion entries a second, compute about as long as they send.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

from dslth_jax.study.commands import Arms, Panel, Proxy, compare, leave, listed


@dataclasses.dataclass(frozen=True)
class Budgets(Proxy):
    """Compare controllers of retention with retentions that stay, in simulated time."""

    scenario: Literal["steady", "one-slow", "collapse", "traces"] = "steady"
    """What devices and links do: the same for all at all times (steady), the first agent's device ten times slower
    (one-slow), a fifth of the bandwidth after --half seconds (collapse), or bandwidths as recorded (traces)."""
    traces: str | None = None
    """Recorded bandwidths, a file or a folder, for that scenario."""
    megabits: float = 2.0
    """Bandwidth in Mbit/s, for the others."""
    half: float = 40.0
    """Simulated seconds until the collapse."""
    every: int = 5
    """Rounds from one exchange to the next."""
    compute: Literal["sparse", "dense"] = "sparse"
    """Whether devices multiply entries that are kept alone, or all."""
    validation: float = 0.2
    retentions: str = "0.1,0.2,0.3,0.5,0.7"
    """Retentions that stay, separated by commas."""

    panels = (Panel("simulated", "accuracy"), Panel("round", "accuracy"))

    def arms(self) -> Arms:
        """Retentions that stay, linear layers scaled as controllers scale them; these, from 0.3 on; alone at 0.3."""
        if (self.scenario == "traces") != (self.traces is not None):
            raise ValueError(f"--traces and --scenario traces go together, got {self.traces} and {self.scenario}")
        unused = {"half": self.scenario != "collapse", "megabits": self.scenario == "traces"}
        for name in (name for name in self.given if unused.get(name)):
            raise ValueError(f"--{name} means nothing to --scenario {self.scenario}: leave it out")
        fall = f"collapse:{self.megabits}:{self.half}:{self.megabits / 5}"
        bandwidth = {"collapse": fall, "traces": self.traces}.get(self.scenario, f"constant:{self.megabits}")
        speed = f"1e8,1e9*{self.agents - 1}" if self.scenario == "one-slow" else 1e9
        devices = {"bandwidth": bandwidth, "device_speed": speed, "device_sparse": self.compute == "sparse"}
        heard = {"algorithm": "mce-pl", "fusion": "force", "mask_sent": "own", "exchange_every": self.every}
        stay = listed("retentions", self.retentions, float)
        own: dict[str, dict[str, Any]] = {f"{r:g}": {"retention": r, "linear_retention": min(1.0, 3 * r)} for r in stay}
        own |= {name: {"controller": name} for name in ("deadline", "balance", "bandit", "prunefl", "period")}
        arms = {name: heard | arm for name, arm in own.items()} | {"alone": {"algorithm": "independent"}}
        return {name: {"lr": 0.001} | devices | arm for name, arm in arms.items()}


main = partial(compare, "experiments.budgets", Budgets)

if __name__ == "__main__":
    leave(main)
