"""Datasets: each one function that returns arrays; `load` makes them tensors and applies the common options."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape_cli.config import Dataset
from landscape_cli.registry import REGISTRY
from landscape_cli.registry.errors import Fault

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Data:
    """A dataset as tensors on one device: inputs (n, *shape), labels (n,) from 0 to num_classes - 1.

    The validation samples, if any, are no part of the training set.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    x_valid: Tensor | None = None
    y_valid: Tensor | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    def splits(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, inputs and labels of each part that there is: train, test, valid."""
        parts = [("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)]
        return (
            parts if self.x_valid is None or self.y_valid is None else [*parts, ("valid", self.x_valid, self.y_valid)]
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Data:
        """The same data elsewhere, inputs in another floating-point type."""
        moved: dict[str, Any] = {}
        for split, x, y in self.splits():
            moved |= {f"x_{split}": x.to(device, dtype), f"y_{split}": y.to(device)}
        return replace(self, **moved)

    def digest(self) -> str:
        """sha256 over all values, to tell two data files of one name apart."""
        total = hashlib.sha256()
        for t in (t for _, *pair in self.splits() for t in pair):
            total.update(str((tuple(t.shape), t.dtype)).encode() + t.cpu().numpy().tobytes())
        return total.hexdigest()


def load(spec: Dataset) -> Data:
    """The dataset that a config names, with its options applied.

    Args:
        spec: the section; train_size keeps the first samples of a shuffle by `seed`; label_noise is
            the share of training labels that are drawn anew, uniformly over the other classes; standardize
            shifts and scales inputs to mean 0 and variance 1 per channel (per set for flat inputs); validation is
            the share of the training samples, wrong labels among them, that is held out.
    Raises: Fault, exit code 5 if a file is missing, 2 if the data are unusable.
    """
    name, entry = spec.name, REGISTRY["dataset"][spec.name]
    x_train, y_train, x_test, y_test = (np.asarray(a) for a in entry.function(**entry.given(spec)))
    _check(name, x_train, y_train, x_test, y_test)
    rng = np.random.Generator(np.random.PCG64([spec.seed, 1]))
    size = spec.train_size or len(x_train)
    if size > len(x_train):
        raise Fault(f"dataset.train_size: {size} is more than the {len(x_train)} training samples of {name!r}")
    if size < len(x_train):
        keep = rng.permutation(len(x_train))[:size]
        x_train, y_train = x_train[keep], y_train[keep]
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    if num_classes < 2 or len(np.unique(y_train)) < 2:
        raise Fault(f"dataset {name!r}: the training labels hold one class only; there is nothing to learn")
    if spec.label_noise > 0:
        y_train = _relabel(y_train, spec.label_noise, num_classes, rng)
    x_train, x_test = x_train.astype(np.float32), x_test.astype(np.float32)
    if spec.standardize:
        x_train, x_test = _standardize(x_train, x_test)
    arrays = (x_train, y_train, x_test, y_test)
    x, y, x_, y_ = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    data = Data(x, y.long(), x_, y_.long(), num_classes)
    return _hold_out(data, spec.validation, spec.seed) if spec.validation else data


def _hold_out(data: Data, share: float, seed: int) -> Data:
    n = len(data.y_train)
    count = round(share * n)
    if not 0 < count < n:
        raise Fault(f"dataset.validation: {share:g} of {n} training samples is {count}: take another share")
    order = np.random.Generator(np.random.PCG64([seed, 5])).permutation(n)
    held, rest = (torch.from_numpy(np.sort(part)) for part in (order[:count], order[count:]))
    x, y = data.x_train, data.y_train
    return replace(data, x_train=x[rest], y_train=y[rest], x_valid=x[held], y_valid=y[held])


def _check(name: str, *arrays: np.ndarray[Any, Any]) -> None:
    x_train, y_train, x_test, y_test = arrays
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim == 0 or len(x) == 0:
            raise Fault(f"dataset {name!r}: x_{split} is empty")
        if y.ndim != 1 or len(x) != len(y):
            raise Fault(
                f"dataset {name!r}: y_{split} has shape {y.shape}, x_{split} {x.shape}: one label a sample is due"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise Fault(
                f"dataset {name!r}: y_{split} must hold class numbers 0, 1, ..., it holds {y.dtype} from {y.min()}"
            )
        if y.max() >= len(x_train):
            raise Fault(
                f"dataset {name!r}: y_{split} holds class {y.max()}, there are {len(x_train)} training samples: "
                "number the classes 0, 1, ..."
            )
        if x.dtype.kind not in "fiub" or not (np.abs(x) <= np.finfo(np.float32).max).all():  # also NaN
            raise Fault(
                f"dataset {name!r}: x_{split} must hold finite real numbers, it is {x.dtype}"
                + (" with NaN, Inf or numbers beyond float32" if x.dtype.kind == "f" else "")
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise Fault(f"dataset {name!r}: samples of x_train {x_train.shape[1:]} and x_test {x_test.shape[1:]} differ")


def _relabel(y: np.ndarray[Any, Any], share: float, classes: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    chosen = rng.permutation(len(y))[: round(share * len(y))]
    y = y.copy()
    y[chosen] = (y[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return y


def _standardize(x_train: np.ndarray[Any, Any], x_test: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    over = tuple(a for a in range(x_train.ndim) if a != 1 or x_train.ndim < 3)
    mean, std = x_train.mean(over, keepdims=True), x_train.std(over, keepdims=True)
    scale = np.where(std > 0, std, 1)
    return (x_train - mean) / scale, (x_test - mean) / scale
