"""What can be registered: models, datasets and metrics by decorator, with their settings; and the error users see.

The ground floor: imports no other package of ours, neither torch nor pydantic, so that `landscape --help` is instant.
Begin with entries.py.
"""

from landscape_cli.registry.descriptions import SHELVES, describe, parts_of, type_of
from landscape_cli.registry.entries import (
    DIRECTIONS,
    FEW,
    REGISTRY,
    Count,
    Direction,
    Entry,
    InAudit,
    Invariance,
    Kind,
    Natural,
    NonNegative,
    Positive,
    Share,
    Tolerance,
    claims,
    dataset,
    metric,
    model,
    same_as,
)
from landscape_cli.registry.errors import Fault
from landscape_cli.registry.plugins import load_plugins

__all__ = [
    "DIRECTIONS",
    "FEW",
    "REGISTRY",
    "SHELVES",
    "Count",
    "Direction",
    "Entry",
    "Fault",
    "InAudit",
    "Invariance",
    "Kind",
    "Natural",
    "NonNegative",
    "Positive",
    "Share",
    "Tolerance",
    "claims",
    "dataset",
    "describe",
    "load_plugins",
    "metric",
    "model",
    "parts_of",
    "same_as",
    "type_of",
]
