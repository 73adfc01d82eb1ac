"""Commands: each module's first lines say what it runs. The main job is `python -m experiments.cifar`."""
