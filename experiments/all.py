"""Every claim in one command: a reduced version of each experiment, as many as a budget of time holds, and one page.

    python -m experiments.all --dataset digits --budget 20m --out runs/claims
    python -m experiments.all --data-dir FOLDER --topology ADJACENCY --class-file CLASSES --budget 2h --out runs/claims

Each experiment is a process of its own command, in its own folder; `claims.md` has a row for each: the accuracy of its
arms, the differences that the claim is about, what the reduction leaves out, and the command of the whole. The budget
is spent in the order of the table in `dslth_jax.study.claims.table`, by estimates for one core; at its end what runs is
saved and stopped. `--resume --out` goes on. What the whole experiments came to stands in experiments/RESULTS.md.
"""

from functools import partial

from dslth_jax.study.claims.regenerate import All
from dslth_jax.study.claims.regenerate import main as regenerate
from dslth_jax.study.config.command import leave

__all__ = ["All", "main"]
main = partial(regenerate, "experiments.all")

if __name__ == "__main__":
    leave(main)
