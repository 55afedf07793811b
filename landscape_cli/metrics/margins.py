"""Margins: how far the true class lies ahead of the others, alone and against the norm of the network (METRICS 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_cli.metrics.norms import Conv, spectral_norm_product
from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.registry import metric

QUANTILE = 0.1  # robust where single samples are wrong or noisy


def _margin(at: Point) -> Tensor:
    """The 10th percentile over training samples (K,), between neighbours by linear interpolation."""
    logits, loss = at.logits("train"), at.train.network.loss
    loss.need("margins")
    assert loss.outputs.margins is not None
    margins = loss.outputs.margins(logits, at.train.y.expand(logits.shape[:2]))
    return torch.stack([own.quantile(QUANTILE) for own in margins])  # row by row: its size has a limit


@metric(
    invariant="permutation,output",
    source="Bartlett et al. 2017; Jiang et al. 2020, appendix C",
    needs="margins",
    direction="none",
    cost="one forward pass",
)
def margin(at: Point) -> Estimate:
    """Tenth percentile over training samples of the margin f_y - max_{c != y} f_c, f the logits.

    Args:
        at: K minima.
    Returns: (K,), in units of logits, negative where more than a tenth are misclassified; exact.
    """
    return exact(_margin(at), at.train.n)


@metric(
    invariant="permutation,scale",
    source="Bartlett et al. 2017, theorem 1.1; Jiang et al. 2020, appendix C",
    needs="margins",
    direction="none",
    cost="one forward pass, and spectral_norm_product",
)
def spectral_margin(at: Point, *, conv: Conv = "matrix") -> Estimate:
    """Product of spectral norms over the margin, prod_k |W_k|_2 / margin, BatchNorm folded.

    Args:
        at: K minima.
        conv: what a convolution's norm is, as in spectral_norm_product: `matrix` or `fft`.
    Returns: (K,), in units of one over input; exact; undefined where the margin is not positive.
    """
    product, gap = spectral_norm_product(at, conv=conv), _margin(at)
    product.value, product.samples = product.value / gap.where(gap > 0, 1), at.train.n
    return product.undefined((gap <= 0) & product.value.isfinite(), "the margin is not positive")
