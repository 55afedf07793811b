"""What is to be predicted: losses, accuracies and their gaps (METRICS section 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_cli.metrics.point import Estimate, Point, Split, exact
from landscape_cli.registry import metric

SOURCE = "definition"
TRAIN, TEST, BOTH = (f"one forward pass of {which} set" for which in ("the training", "the test", "each"))


def _correct(at: Point, split: Split) -> Tensor:
    """Whether each sample is classified right (K, n), as 0 or 1."""
    of = at.train if split == "train" else at.test
    return of.network.loss.hits(at.logits(split), of.y)


def _sampled(values: Tensor) -> Estimate:
    """Mean over test samples, with the standard error of another test set of that size."""
    n = values.shape[1]
    return Estimate(values.mean(1), values.std(1) / n**0.5 if n > 1 else torch.full((len(values),), torch.nan), n)


def _gap(test: Estimate, train: Tensor, sign: int) -> Estimate:
    return Estimate(sign * (test.value - train), test.standard_error, test.samples)


@metric(invariant="output", source=SOURCE, default=True, direction="none", cost=TRAIN)
def train_loss(at: Point) -> Estimate:
    """Average cross-entropy on the training set, (1/n) sum_i l_i.

    Args:
        at: K minima.
    Returns: (K,), in nats a sample; exact.
    """
    return exact(at.losses("train").mean(1), at.losses("train").shape[1])


@metric(invariant="output", source=SOURCE, default=True, needs="classes", direction="none", cost=TRAIN)
def train_accuracy(at: Point) -> Estimate:
    """Share of training samples whose largest logit is the true class.

    Args:
        at: K minima.
    Returns: (K,), between 0 and 1; exact.
    """
    return exact(_correct(at, "train").mean(1), at.losses("train").shape[1])


@metric(invariant="output", source=SOURCE, default=True, direction="none", cost=TEST)
def test_loss(at: Point) -> Estimate:
    """Average cross-entropy on the test set.

    Args:
        at: K minima.
    Returns: (K,), in nats a sample; the standard error is that of the choice of test samples.
    """
    return _sampled(at.losses("test"))


@metric(invariant="output", source=SOURCE, default=True, needs="classes", direction="none", cost=TEST)
def test_accuracy(at: Point) -> Estimate:
    """Share of test samples whose largest logit is the true class.

    Args:
        at: K minima.
    Returns: (K,), between 0 and 1; the standard error is that of the choice of test samples.
    """
    return _sampled(_correct(at, "test"))


@metric(invariant="output", source=SOURCE, default=True, direction="none", cost=BOTH)
def loss_gap(at: Point) -> Estimate:
    """Generalization gap in loss: test loss - train loss.

    Args:
        at: K minima.
    Returns: (K,), in nats a sample; standard error of the test loss.
    """
    return _gap(_sampled(at.losses("test")), at.losses("train").mean(1), 1)


@metric(invariant="output", source=SOURCE, default=True, needs="classes", direction="none", cost=BOTH)
def accuracy_gap(at: Point) -> Estimate:
    """Generalization gap in error: train accuracy - test accuracy.

    Args:
        at: K minima.
    Returns: (K,), between -1 and 1; standard error of the test accuracy.
    """
    return _gap(_sampled(_correct(at, "test")), _correct(at, "train").mean(1), -1)
