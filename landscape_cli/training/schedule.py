"""The learning rate on the way: scaled by the batch size, warmed up, and lowered over the epochs."""

from __future__ import annotations

import math

from landscape_cli.config import Training


def batch_of(training: Training, n: int) -> int:
    """Samples in a step; `full` is all of them."""
    return n if training.batch_size == "full" else training.batch_size


def scaling(training: Training, batch: int) -> float:
    """Factor on the learning rate of a step with so many samples."""
    ratio = batch / training.lr_base_batch
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[training.lr_scaling]


def factor(training: Training, step: int, per_epoch: int, batch: int) -> float:
    """Factor on the learning rate at a step: scaling by batch size, warm-up, and the schedule over epochs."""
    scale, epoch, warmup = scaling(training, batch), step / per_epoch, training.warmup_epochs
    if epoch < warmup:
        return scale * (step + 1) / math.ceil(warmup * per_epoch)
    if training.schedule == "cosine":
        return scale * (1 + math.cos(math.pi * min(1.0, epoch / training.stop.max_epochs))) / 2
    if training.schedule == "step":
        return scale * training.decay ** sum(epoch >= m for m in training.milestones)
    return scale


def constant_rate(training: Training) -> float | None:
    """The learning rate, if it is the same at every step and whatever the batch size; else None."""
    steady = training.schedule == "constant" and training.lr_scaling == "none" and training.warmup_epochs == 0
    return training.lr if steady else None
