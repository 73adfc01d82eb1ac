"""Commands: each module's first lines say what it runs. The main job is `python -m experiments.cifar`."""

from dslth_jax.study.dslth import EXTRA, missing

if _missing := missing():
    raise ImportError(f"the experiments need {', '.join(_missing)}: {EXTRA}")
