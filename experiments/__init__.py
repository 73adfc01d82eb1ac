"""Commands: each module's first lines say what it runs. The main job is `python -m experiments.cifar`."""

from importlib.util import find_spec

_NEEDED = ("constriction", "jinja2", "matplotlib", "networkx", "psutil", "rich", "sklearn")
if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ImportError(f"the experiments need {', '.join(_missing)}: pip install -e '.[experiments]'")
