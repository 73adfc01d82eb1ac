"""How much larger a random network must be for its masks to reach trained weights: widths and depths.

    python -m experiments.width --dataset digits --resize 8 --agents 4 --rounds 60 --widths 0.25,1 --depths 2,4
    python -m experiments.width --data-dir FOLDER --topology ADJACENCY --class-file CLASSES    # CIFAR-10

The proxy's network at several widths, and networks like it of several depths. Agents learn alone: masks over random
weights, beside weights trained from them, at the same steps. The table says what each gains over trained weights of
width 1, so that one reads off the smallest width whose masks reach them; and how large a model is: a bit an entry of a
mask and 32 an entry of weights, and multiply-adds of a sample, of kept entries alone where masks are learned. A member
of width 1 takes about a minute of a fast core, one of width 2 about three times as long.
"""

import dataclasses
from functools import partial
from typing import Any

from dslth_jax.study.commands import Arms, Panel, Proxy, compare, leave, listed, ways

NETWORKS = {2: "plain2", 3: "conv3", **{depth: f"plain{depth}" for depth in range(4, 9)}}  # by convolutions


@dataclasses.dataclass(frozen=True)
class Width(Proxy):
    """Compare masks with trained weights, alone, at several widths and depths of one network."""

    model: str | None = None
    widths: str | None = "0.25,0.5,1,2"
    """Factors on all channels of the network of three convolutions, separated by commas; 1 is always among them. None
    leaves out all others."""
    depths: str | None = "2,3,4,5,6,7,8"
    """Numbers of convolutions, 2 to 8, separated by commas, at width 1; None leaves them out."""

    panels = (
        Panel("width", "accuracy"),
        Panel("depth", "accuracy"),
        Panel("model_bits", "accuracy", logarithmic=True),
        Panel("multiply_adds", "accuracy", logarithmic=True),
    )
    baseline = "width 1: weights"

    def arms(self) -> Arms:
        """Weights and masks at every width, then at every depth."""
        widths = {1.0, *(listed("widths", self.widths, float) if self.widths else ())}
        depths = listed("depths", self.depths, int) if self.depths else []
        if wrong := [depth for depth in depths if depth not in NETWORKS]:
            raise ValueError(f"--depths must be among {', '.join(map(str, NETWORKS))}, got {wrong[0]}")
        sizes: dict[str, dict[str, Any]] = {f"width {x:g}": {"model": NETWORKS[3], "width": x} for x in sorted(widths)}
        sizes |= {f"depth {depth}": {"model": NETWORKS[depth], "width": 1.0} for depth in depths}
        known = ways(self.model, 1)
        kinds = {"weights": known["weights, alone"], "masks": known["alone"]}
        return {f"{size}: {kind}": {**kinds[kind], **own} for size, own in sizes.items() for kind in kinds}


main = partial(compare, "experiments.width", Width)

if __name__ == "__main__":
    leave(main)
