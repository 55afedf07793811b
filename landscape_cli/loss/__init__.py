"""Losses of one sample, l(z, y): values, slopes, the root of their curvature, and how predictions are read.

Imports `registry` only. Begin with loss_table.py: what a loss is, and the table of them; formulas are in softmax.py.
"""

from landscape_cli.loss.loss_table import LOSSES, SOFTMAX, Loss, Outputs, Root

__all__ = ["LOSSES", "SOFTMAX", "Loss", "Outputs", "Root"]
