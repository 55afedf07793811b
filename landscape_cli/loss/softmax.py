"""Softmax cross-entropy of C logits and a class, without cancellation: exact to rounding however small the loss is.

S = diag(p) - p p^T has rank C - 1. With a reference class r and s = sqrt(p_r) / (1 + sqrt(p_r)), the C - 1 rows
    w_c = sqrt(p_c) (e_c - s e_r - (1 - s) p),   c != r,
satisfy S = sum_c w_c w_c^T: they are R = diag(sqrt p)(I - 1 p^T) seen in an orthonormal basis of the complement of
sqrt(p) (a Householder reflection), so that R has no null rows and no number in it is a difference of two near ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 30.0  # change of a logit, relative to the largest one's, above which a divergence is formed from probabilities


def values(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample.

    l = softplus(t), t = log sum_{c != y} exp(z_c - z_y): neither l nor its gradient is a difference of two numbers
    near 1, so that samples with p_y = 1 - 1e-12 keep their digits.

    Args:
        logits: z, (..., C).
        y: class numbers (...).
    Returns: (...), in nats.
    """
    t, _ = log_odds(logits, y)
    return F.softplus(t, threshold=50)


def values_and_hits(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`values`, and whether argmax gives the true class, which is slow where classes do not lie side by side.

    Args:
        logits: (..., C).
        y: class numbers (...).
    Returns: (...) in nats; (...) true or false.
    """
    t, others = log_odds(logits, y)
    best, own = others.amax(-1), logits.gather(-1, y[..., None])[..., 0]
    right, equal = best < own, best == own
    right[equal] = logits[equal].argmax(-1) == y[equal]  # which takes the first of equal ones
    return F.softplus(t, threshold=50), right


def smoothed(logits: Tensor, y: Tensor, smoothing: float, reduction: Literal["none", "sum"]) -> Tensor:
    """Cross-entropy as torch has it, which training takes: one operation, of labels (1 - e) onehot(y) + e / C.

    Args:
        logits: (K, B, C).
        y: class numbers (K, B).
        smoothing: e.
        reduction: none, or the sum over all.
    Returns: (K, B), or their sum.
    """
    # classes before samples: over a last axis of ten classes a log-softmax takes ten times as long
    return F.cross_entropy(logits.mT, y, reduction=reduction, label_smoothing=smoothing)


def residuals(logits: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's loss in its logits, p - onehot(y).

    Args:
        logits: (..., C).
        y: class numbers (...).
    Returns: (..., C).
    """
    t, others = log_odds(logits, y)
    wrong = torch.sigmoid(t)[..., None]  # 1 - p_y
    r = torch.softmax(others, -1) * wrong
    return r.scatter(-1, y[..., None], -wrong)


def log_odds(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds against the true class (...), and the logits with that class at -inf (..., C)."""
    index = y[..., None]
    others = logits.scatter(-1, index, float("-inf"))
    return torch.logsumexp(others, -1) - logits.gather(-1, index)[..., 0], others


def odds(logits: Tensor, y: Tensor) -> Tensor:
    """(1 - p_y) / p_y = exp(l) - 1 of each sample (...), which is r^T S^+ r of its residual r."""
    return log_odds(logits, y)[0].exp()


def root_rows(logits: Tensor, y: Tensor | None = None) -> Iterator[Tensor]:
    """The rows w_c of each sample's root of S, (..., C) for each c != r in rising order.

    Args:
        logits: (..., C).
        y: reference classes r (...); the most probable one by default, and where it is -1.
    """
    p = torch.softmax(logits, -1)
    r = p.argmax(-1) if y is None else torch.where(y < 0, p.argmax(-1), y)
    root = p.gather(-1, r[..., None]).sqrt()
    s = root / (1 + root)
    base = -(1 - s) * p
    base = base.scatter_add(-1, r[..., None], -s)
    for j in range(p.shape[-1] - 1):
        c = (j + (j >= r).long())[..., None]  # the j-th class that is not r
        weight = p.gather(-1, c).sqrt()
        yield weight * base.scatter_add(-1, c, torch.ones_like(weight))


def coordinates(logits: Tensor, y: Tensor, weight: float) -> Tensor:
    """Of sqrt(weight) r in the rows w_c with reference y: sqrt(weight p_c / p_y), all of one sign, (..., C - 1)."""
    t, others = log_odds(logits, y)
    shares = torch.softmax(others, -1) * t.exp()[..., None]  # p_c / p_y
    keep = torch.ones_like(shares, dtype=torch.bool).scatter(-1, y[..., None], False)
    return (weight * shares[keep].view(*y.shape, -1)).sqrt()


def product(logits: Tensor, a: Tensor) -> Tensor:
    """S a = p * (b - sum_c p_c b_c), b = a - a_r with r the largest logit: what is near 1 is not subtracted.

    Args:
        logits: (..., C).
        a: (..., C).
    Returns: (..., C).
    """
    p, b = _centred(logits, a)
    return p * (b - (p * b).sum(-1, keepdim=True))


def square(logits: Tensor, a: Tensor) -> Tensor:
    """a^T S a = sum_c p_c (b_c - mean b)^2 (...), the variance of a over the model's classes, b as in `product`."""
    p, b = _centred(logits, a)
    return (p * (b - (p * b).sum(-1, keepdim=True)).square()).sum(-1)


def divergence(logits: Tensor, d: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) between the predictions q at logits and p at logits + d.

    With e = d - d_r, r the largest logit, and w = log p - log q = e - log1p(sum q expm1(e)) it is sum q w expm1(w), of
    which no term is negative. Beyond e = FAR, where expm1 may overflow, (p - q)(log p - log q) loses nothing.

    Args:
        logits: (..., C).
        d: (..., C), to be had as precisely as the result.
    Returns: (...), in nats.
    """
    q, e = _centred(logits, d)
    far = e.detach().abs().amax(-1) > FAR
    near = e.where(~far[..., None], 0)
    w = near - torch.log1p((q * torch.expm1(near)).sum(-1, keepdim=True))
    there, here = torch.log_softmax(logits, -1), torch.log_softmax(logits + d, -1)
    apart = ((here.exp() - q) * (here - there)).sum(-1)
    return torch.where(far, apart, (q * w * torch.expm1(w)).sum(-1))


def largest(logits: Tensor) -> Tensor:
    """The class that is predicted, the first of equal ones."""
    return logits.argmax(-1)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{c != y} z_c of each sample (...)."""
    index = y[..., None]
    others = logits.scatter(-1, index, -torch.inf).amax(-1)
    return logits.gather(-1, index)[..., 0] - others


def _centred(logits: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and a less its entry at the largest logit."""
    r = logits.argmax(-1, keepdim=True)
    return torch.softmax(logits, -1), a - a.gather(-1, r)
