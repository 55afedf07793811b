"""Metrics: one file a family, one function a metric; importing this package registers them in table order."""

from landscape_cli.metrics import (  # noqa: I001  # table order
    prediction,
    gradients,
    kl,
    regret,
    contrast,
    scatter,
    ewc,
    curvature,
    sharpness,
    norms,
)
from landscape_cli.point import Estimate, Point, exact, over_draws

__all__ = [
    "Estimate",
    "Point",
    "contrast",
    "curvature",
    "ewc",
    "exact",
    "gradients",
    "kl",
    "norms",
    "over_draws",
    "prediction",
    "regret",
    "scatter",
    "sharpness",
]
