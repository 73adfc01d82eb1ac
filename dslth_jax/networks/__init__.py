"""The networks, as pure functions of one agent's world.

`network_by_name` makes one of the zoo (a module of your own joins it by `MODULES["mine"] = Mine`), `network_of` makes
one of any flax module whose `Conv` and `Linear` are these.
"""

from dslth_jax.networks.network import Conv, Linear, Network, network_of
from dslth_jax.networks.zoo import MODULES, largest_fitting, network_by_name

__all__ = ["MODULES", "Conv", "Linear", "Network", "largest_fitting", "network_by_name", "network_of"]
