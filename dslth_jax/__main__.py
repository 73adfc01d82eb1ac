"""The engine's commands by name, for `python -m dslth_jax`: see `study.dslth`."""

import sys

from dslth_jax.study.dslth import main

if __name__ == "__main__":
    sys.exit(main())
