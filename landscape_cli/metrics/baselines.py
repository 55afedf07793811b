"""Trivial baselines: what is known of a minimum before anything is measured at it (METRICS section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from landscape_cli.metrics.point import Estimate, Point, exact, nothing
from landscape_cli.registry import NonNegative, metric

Fact = Callable[[dict[str, Any]], float | None]
UNKNOWN = "the checkpoint does not say how it was trained"


def _told(at: Point, fact: Fact, why: str = UNKNOWN) -> Estimate:
    """A fact of each minimum's training; undefined where it is missing."""
    if at.training is None:
        return nothing(at, UNKNOWN)
    found = [fact(own) for own in at.training]
    value = torch.tensor([torch.nan if v is None else float(v) for v in found], dtype=torch.float64)
    return exact(value.to(at.theta.device)).undefined(~value.isfinite(), why)


@metric(
    invariant="permutation,global,smooth",
    source="Jiang et al. 2020, appendix C",
    direction="none",
    cost="nothing, a fact of the training",
)
def steps(at: Point) -> Estimate:
    """Optimizer steps until training stopped.

    Args:
        at: K minima.
    Returns: (K,), in units of steps; exact; undefined where the training is not known.
    """
    return _told(at, lambda own: own.get("steps"))


@metric(
    invariant="permutation,global,smooth",
    source="definition",
    direction="none",
    cost="nothing, a fact of the training",
)
def epochs(at: Point) -> Estimate:
    """Passes over the training set until training stopped.

    Args:
        at: K minima.
    Returns: (K,), in units of epochs; exact; undefined where the training is not known.
    """
    return _told(at, lambda own: own.get("epochs"))


@metric(
    invariant="permutation,global,smooth",
    source="Jastrzebski et al. 2018, eq. 6",
    direction="none",
    cost="nothing, a fact of the training",
)
def lr_over_batch(at: Point) -> Estimate:
    """Learning rate over batch size, to which the noise of SGD is proportional.

    Args:
        at: K minima.
    Returns: (K,), in units of the learning rate per sample; exact; undefined where the training is not known.
    """

    def ratio(own: dict[str, Any]) -> float | None:
        lr, size = own.get("lr"), own.get("batch_size")
        return lr / size if lr is not None and size else None

    return _told(at, ratio)


@metric(
    invariant="permutation,global,smooth",
    source="ours: early stopping's own criterion, read early",
    direction="none",
    cost="nothing, a fact of the training",
)
def early_validation_loss(at: Point, *, epoch: NonNegative = 1.0) -> Estimate:
    """Test loss early in training, at the last epoch noted that is not after `epoch`.

    Args:
        at: K minima.
        epoch: how early; training notes its losses at some epochs only, the message says which one it is.
    Returns: (K,), in nats a sample; exact for this test set; undefined where none was noted.
    """

    def noted(own: dict[str, Any]) -> tuple[float, float] | None:
        history = own.get("history") or {}
        when, losses = (history.get(key) or [] for key in ("epoch", "test_loss"))
        if len(when) != len(losses):  # which loss belongs to which epoch is not known
            return None
        early = [
            (float(e), float(loss)) for e, loss in zip(when, losses, strict=True) if loss is not None and e <= epoch
        ]
        return early[-1] if early else None

    why = f"no test loss was noted up to epoch {epoch:g}"
    estimate = _told(at, lambda own: (noted(own) or (0, None))[1], why)
    for k, pair in enumerate(map(noted, at.training or [])):
        if pair and estimate.status[k] == "ok":
            estimate.message[k] = f"noted at epoch {pair[0]:g}"
    return estimate
