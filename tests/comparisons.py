"""The experiments that compare: every script of `experiments` that has settings of its own for one."""

import importlib
from pathlib import Path

from dslth_jax.study.commands import Experiment


def kinds_of(name: str) -> list[type[Experiment]]:
    """The comparisons that a script defines: one, or none."""
    script = importlib.import_module(f"experiments.{name}")
    own = [found for found in vars(script).values() if isinstance(found, type) and issubclass(found, Experiment)]
    return [found for found in own if found.__module__ == script.__name__]


SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "experiments").glob("[a-z]*.py"))
COMPARISONS = {name: kind for name in SCRIPTS for kind in kinds_of(name)}  # the settings of each, by its script's name
