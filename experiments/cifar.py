"""Train many personalized agents by MCE-PL: the main job.

    python -m experiments.cifar --agents 64 --rounds 20

Expect about 32 % mean accuracy (4 of 10 classes an agent) in 11 minutes on two cores, 4 of them of evaluation. CIFAR-10
by default; `--dataset digits` needs no download. From Python:

    from experiments.cifar import Settings, run
    result = run(Settings(dataset="digits", agents=16, rounds=50))
"""

from functools import partial

from dslth_jax.study.commands import Settings, leave, run, single

__all__ = ["Settings", "main", "run"]
main = partial(single, "experiments.cifar")

if __name__ == "__main__":
    leave(main)
