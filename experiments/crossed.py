"""The authors' comparison crossed: every method, with 4 and 5 classes an agent, on their graph and on a ring.

    python -m experiments.crossed --dataset digits --model small --resize 8 --agents 5 --rounds 60
    python -m experiments.crossed --data-dir FOLDER --topology ADJACENCY --class-files CLASSES_4,CLASSES_5   # CIFAR-10
    python -m experiments.crossed ... --model alexnet --resize None --augment flip-crop --rounds 400    # the authors'

MCE-PL as in the paper (the aggregation tensor), the consensus force, the gossip of scores, decentralized SGD with and
without a personal head, Dis-PFL, FedPM with one, and alone. The table says what each gains over alone, with the same
classes, paired by seed. 96 runs; a member takes 1.2 minutes of a fast core, 4 of a slow one.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from dslth_jax.study.commands import Arms, Proxy, compare, interval, leave, listed, ways

MASKS = ("alone", "force", "aggregation tensor", "gossip")
METHODS = (*MASKS, "weights", "weights, personal head", "dis-pfl", "fedpm, personal head")


@dataclasses.dataclass(frozen=True)
class Crossed(Proxy):
    """Compare methods by how many classes an agent has, and by graph."""

    classes: str = "4,5"
    """Classes an agent, drawn at random, separated by commas."""
    class_files: str | None = None
    """Files of a line of classes an agent, separated by commas, in the place of drawn classes."""
    every: int = 10
    """Rounds from one exchange of masks to the next; gossip and weights are exchanged in every round."""

    reads = ("topology",)

    def arms(self) -> Arms:
        """All methods in every combination; the graphs are that of --topology and a ring."""
        if self.class_files and "classes" in self.given:
            raise ValueError("--classes and --class-files contradict each other: leave one of them out")
        drawn = listed("classes", self.classes, int)
        splits: dict[str, dict[str, Any]] = {f"{number} classes": {"classes_per_agent": number} for number in drawn}
        if self.class_files:
            files = list(dict.fromkeys(self.class_files.split(",")))
            splits = {Path(file).stem: {"class_file": file} for file in files}
            if len(splits) < len(files):
                raise ValueError(f"--class-files must be of different names, got {self.class_files}: rename some")
        graphs = {Path(graph).name.replace(":", " "): {"topology": graph} for graph in (self.topology, "ring")}
        return {
            f"{split}, {graph}: {way}": {**own, **held, **heard}
            for split, held in splits.items()
            for graph, heard in graphs.items()
            for way, own in ways(self.model, interval(self), *METHODS).items()
        }


main = partial(compare, "experiments.crossed", Crossed)

if __name__ == "__main__":
    leave(main)
