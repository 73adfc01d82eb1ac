"""One page of HTML for a run folder, several, or the folder of a sweep: everything in one file, no network needed.

python -m experiments.report runs/ONE runs/OTHER --out report.html
"""

from functools import partial

from dslth_jax.study.config import command
from dslth_jax.study.results.report import main as write

main = partial(write, "experiments.report")

if __name__ == "__main__":
    command.leave(main)
