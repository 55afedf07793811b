"""Metrics: one file a family, one function a metric; importing this package registers them in table order."""

from landscape_cli.metrics import prediction, gradients, curvature, sharpness, norms  # noqa: I001  # table order
from landscape_cli.point import Estimate, Point, exact, over_draws

__all__ = ["Estimate", "Point", "curvature", "exact", "gradients", "norms", "over_draws", "prediction", "sharpness"]
