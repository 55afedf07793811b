"""Which measurable property of a minimum predicts how well it generalizes?

Plugins write `from landscape_cli import dataset, metric, model` and decorate their functions.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape_cli.registry import dataset, metric, model

__all__ = ["dataset", "metric", "model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The decorators, imported when first asked for, so that the command line minds signals from its first line on."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from landscape_cli import registry

    return getattr(registry, name)
