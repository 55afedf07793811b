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
    spectrum,
    relative,
    sharpness,
    norms,
    margins,
    baselines,
)
from landscape_cli.point import Estimate, Point, exact, over_draws

__all__ = [
    "Estimate",
    "Point",
    "baselines",
    "contrast",
    "curvature",
    "ewc",
    "exact",
    "gradients",
    "kl",
    "margins",
    "norms",
    "over_draws",
    "prediction",
    "regret",
    "relative",
    "scatter",
    "sharpness",
    "spectrum",
]
