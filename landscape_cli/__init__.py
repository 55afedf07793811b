"""Which measurable property of a minimum predicts how well it generalizes?

Plugins write `from landscape_cli import dataset, metric, model` and decorate their functions.
"""

from landscape_cli.registry import dataset, metric, model

__all__ = ["dataset", "metric", "model"]
__version__ = "0.1.0"
