"""What can be registered, by decorator, with its settings: models, datasets, optimizers, metrics, kinds of
surface; and the error that users see.

The ground floor: imports no other package of ours, neither torch nor pydantic, so that `landscape --help` is instant.
Begin with entries.py.
"""

from landscape_cli.registry.descriptions import SHELVES, describe, needed, parts_of, type_of
from landscape_cli.registry.entries import (
    DIRECTIONS,
    FEW,
    NEEDS,
    RANDOM,
    REGISTRY,
    Count,
    Direction,
    Entry,
    InAudit,
    Invariance,
    Kind,
    Named,
    Natural,
    NonNegative,
    PerRun,
    Positive,
    Share,
    Tolerance,
    claims,
    dataset,
    metric,
    model,
    needs,
    optimizer,
    same_as,
    surface,
)
from landscape_cli.registry.errors import Fault
from landscape_cli.registry.plugins import load_plugins

__all__ = [
    "DIRECTIONS",
    "FEW",
    "NEEDS",
    "RANDOM",
    "REGISTRY",
    "SHELVES",
    "Count",
    "Direction",
    "Entry",
    "Fault",
    "InAudit",
    "Invariance",
    "Kind",
    "Named",
    "Natural",
    "NonNegative",
    "PerRun",
    "Positive",
    "Share",
    "Tolerance",
    "claims",
    "dataset",
    "describe",
    "load_plugins",
    "metric",
    "model",
    "needed",
    "needs",
    "optimizer",
    "parts_of",
    "same_as",
    "surface",
    "type_of",
]
