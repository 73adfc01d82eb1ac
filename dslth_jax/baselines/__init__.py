"""Rivals of MCE-PL in the common form of an algorithm, one file each, to compare with.

    local           weight training alone: nothing is sent
    dsgd            decentralized SGD: weights averaged over neighbours, then trained
    dispfl          Dis-PFL: sparse personal weights, averaged where neighbours have them; pruned and regrown
    independent     MCE-PL's local step alone: personal masks, and nothing is sent
    mask_mean       masks averaged directly, by majority: the ablation of the aggregation tensor
    fedpm           FedPM's probabilistic masks, made decentralized (that is ours)

A comparison is fair only at the same number of gradient steps, graph, split, seeds and evaluation.
"""
