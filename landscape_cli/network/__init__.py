"""How K networks are run at once: stacked layers, vmap or one by one; BatchNorm, channels; `models/` builds them.

Imports `loss` and `registry` only. Begin with forward.py, which decides how a network is run, then layers.py;
memory.py says how much is taken at once.
"""

from landscape_cli.network.forward import (
    Chart,
    Network,
    Params,
    Pass,
    Tap,
    build,
    moving,
    norm_layers,
    off_graph,
    piecewise_linear,
    set_modes,
    stack,
    unstack,
)

__all__ = [
    "Chart",
    "Network",
    "Params",
    "Pass",
    "Tap",
    "build",
    "moving",
    "norm_layers",
    "off_graph",
    "piecewise_linear",
    "set_modes",
    "stack",
    "unstack",
]
