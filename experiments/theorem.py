"""The theorem on strong lottery tickets, in numbers: subset sums, small targets in one random network, a trained one.

    python -m experiments.theorem --out runs/theorem                            # digits
    python -m experiments.theorem --dataset cifar10 --data-dir FOLDER --out runs/theorem

How near do subsets of n random numbers come to a target, and how near with a retention? Which width does a random
network of twice the depth need, for one agent's target and for those of 32? What of stride, pooling, biases, ELU and
residual sums, which the theorem leaves out? Does a trained target keep its accuracy? Nothing but the trained target is
trained; masks are found by exact subset sums (`dslth_jax.subset_sums`, `dslth_jax.tickets`).

On CIFAR-10, 6.5 minutes of one core: the median error of networks is 4.8e-06 at n = 24, and n = 1.5·log(N / min(ε, δ))
+ 3.6 fits. See experiments/RESULTS.md.
"""

from functools import partial

from dslth_jax.study.config.command import leave
from dslth_jax.study.theorem import page

Theorem = page.Theorem
main = partial(page.main, "experiments.theorem")

if __name__ == "__main__":
    leave(main)
