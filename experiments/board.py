"""The metrics of run folders as event files, which TensorBoard shows.

    python -m experiments.board runs/ONE runs/OTHER --log-dir logs && tensorboard --logdir logs

Needs `pip install 'dslth-jax[tensorboard]'`. Every metric is a scalar by round, bits in megabytes; settings are
hparams.
"""

from functools import partial

from dslth_jax.study.config import command
from dslth_jax.study.results.board import main as write

main = partial(write, "experiments.board")

if __name__ == "__main__":
    command.leave(main)
