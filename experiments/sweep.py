"""Train many settings at once, as one more axis of the same compiled program.

    python -m experiments.sweep --dataset digits --agents 8 --rounds 40 --grid lr=10,20,30 --grid retention=0.3,0.5 \
        --seeds 3

Leaves a folder with `results.csv` (one row a point of the grid, best first, with the spread over seeds), curves, heat
maps and more (see experiments/README.md). From Python:

    from experiments.sweep import Sweep, sweep
    results = sweep(Sweep(dataset="digits", agents=8, rounds=40, grid=("lr=10,20", "retention=0.3,0.5"), seeds=2))
"""

from functools import partial

from dslth_jax.study.commands import Sweep, leave, sweep, sweeping

__all__ = ["Sweep", "main", "sweep"]
main = partial(sweeping, "experiments.sweep")

if __name__ == "__main__":
    leave(main)
