"""Algorithms in the common form, one module each, with a factory of its own name and the `Hyper` that it takes.

mce_pl          the paper's method: masks, fused with the neighbours' mean
mask_mean       masks by scores, averaged by majority
score_gossip    scores, told to neighbours by one bit an entry, and mixed
independent     masks by scores, nobody heard
dsgd            decentralized SGD: weights, averaged
dis_pfl         sparse personal weights whose masks move
fedmrn          weights, told to neighbours by masks of random noise, and mixed
fedpm           probabilistic masks, averaged
local           weights, nobody heard
descent         what several of them share: one local step of an optimizer
masked          what those share that learn masks by scores: from scores to masks to kept weights
consensus       what two of them share: how neighbours pull at scores
"""

from dslth_jax.algorithms import (
    consensus,
    descent,
    dis_pfl,
    dsgd,
    fedmrn,
    fedpm,
    independent,
    local,
    mask_mean,
    mce_pl,
    score_gossip,
)

__all__ = ["consensus", "descent", "dis_pfl", "dsgd", "fedpm", "independent", "local", "mask_mean", "mce_pl"]
__all__ += ["fedmrn", "score_gossip"]
