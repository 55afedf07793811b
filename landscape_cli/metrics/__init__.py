"""Measures of a minimum: one file a family, one function a metric; this file registers them in the order of the tables.

A metric gets a `Point` and returns an `Estimate`, both in point.py. Imports `curvature`, `network`, `loss`, `registry`.
"""

from landscape_cli.metrics import (  # noqa: I001  # table order
    prediction,
    gradients,
    kl,
    regret,
    contrast,
    scatter,
    ewc,
    hessian,
    spectrum,
    relative,
    sharpness,
    adaptive,
    volume,
    learning,
    norms,
    margins,
    baselines,
)
from landscape_cli.metrics.point import Estimate, Point, exact, over_draws

__all__ = [
    "Estimate",
    "Point",
    "adaptive",
    "baselines",
    "contrast",
    "ewc",
    "exact",
    "gradients",
    "hessian",
    "kl",
    "learning",
    "margins",
    "norms",
    "over_draws",
    "prediction",
    "regret",
    "relative",
    "scatter",
    "sharpness",
    "spectrum",
    "volume",
]
