"""Random flips and shifts of images on the device: one draw a sample and epoch, whatever the batch size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def windows(generators: list[torch.Generator], n: int, flip: bool, crop: int) -> Tensor:
    """What happens to each sample of the training set in one epoch: (A, n, 3) whole numbers.

    Args:
        generators: one a run, of (seed, epoch); what a sample gets does not depend on the order of the others.
        n: samples.
        flip: whether half of them are mirrored; the last number is then 1.
        crop: pixels of padding; the first two numbers are the corner of the window in the padded image, 0 to 2 crop.
    """
    ends = torch.tensor([2 * crop + 1, 2 * crop + 1, 2 if flip else 1])
    draws = torch.stack([torch.rand(n, 3, generator=g, dtype=torch.float64) for g in generators])
    return (draws * ends).long()


def augmented(X: Tensor, window: Tensor, crop: int) -> Tensor:
    """Images cut out of their padded copies, zeros around, and mirrored left to right.

    Args:
        X: (A, S, channels, height, width).
        window: of each (A, S, 3), from `windows`.
        crop: pixels of padding.
    """
    images, (top, left, mirrored) = X.flatten(0, 1), window.flatten(0, 1).T
    height, width = images.shape[2:]
    rows = top[:, None] + torch.arange(height, device=X.device)
    columns = torch.arange(width, device=X.device).expand(len(images), -1)
    columns = left[:, None] + torch.where(mirrored[:, None] > 0, width - 1 - columns, columns)
    number = torch.arange(len(images), device=X.device)[:, None, None]
    padded = F.pad(images, (crop, crop, crop, crop)).movedim(1, -1)  # channels last: they are read together
    cut: Tensor = padded[number, rows[:, :, None], columns[:, None, :]]
    back: Tensor = cut.movedim(-1, 1).unflatten(0, X.shape[:2])
    return back
