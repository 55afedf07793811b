"""Datasets: sizes, determinism, the known Bayes error, the common options, and every kind of unusable file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from landscape_cli import config
from landscape_cli.data import datasets
from landscape_cli.data.builtin import bayes_error, gaussian_means
from landscape_cli.data.datasets import Data, load
from landscape_cli.registry.errors import Fault

Arrays = dict[str, np.ndarray[Any, Any]]


def get(name: str, **own: Any) -> Data:
    return load(config.section("dataset", name=name, **own))


def same(a: Data, b: Data) -> bool:
    return a.digest() == b.digest()


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data, bunch = get("digits"), load_digits()
    assert data.x_train.shape == (1000, 1, 8, 8) and data.x_test.shape == (797, 1, 8, 8)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert (data.num_classes, data.input_shape) == (10, (1, 8, 8))
    assert same(data, get("digits")) and not same(data, get("digits", seed=1))
    both = torch.cat([data.x_train, data.x_test]).flatten(1)
    rows = sorted((*x, y) for x, y in zip(both.tolist(), [*data.y_train.tolist(), *data.y_test.tolist()], strict=True))
    due = sorted((*(x / 16).tolist(), int(y)) for x, y in zip(bunch.data, bunch.target, strict=True))
    assert rows == due  # every image once, with its own label


def test_train_size_keeps_a_subset_and_the_test_set() -> None:
    whole, some, less = get("digits"), get("digits", train_size=60), get("digits", train_size=30)
    assert len(some.y_train) == 60 and torch.equal(some.x_test, whole.x_test)
    assert torch.equal(less.x_train, some.x_train[:30])  # nested, so that curves over the size are comparable
    known = {tuple(x.flatten().tolist()): int(y) for x, y in zip(whole.x_train, whole.y_train, strict=True)}
    assert all(known[tuple(x.flatten().tolist())] == y for x, y in zip(some.x_train, some.y_train, strict=True))
    assert same(get("digits", train_size=1000), whole)
    with pytest.raises(Fault) as caught:
        get("digits", train_size=1001)
    assert str(caught.value) == "dataset.train_size: 1001 is more than the 1000 training samples of 'digits'"


def test_what_is_held_out_is_no_part_of_the_training_set() -> None:
    options: dict[str, Any] = {"train_size": 100, "label_noise": 0.3}
    whole, part, other = (
        get("digits", **options),
        get("digits", **options, validation=0.2),
        get("digits", validation=0.2),
    )
    assert part.x_valid is not None and part.y_valid is not None and whole.x_valid is None
    assert (len(part.x_train), len(part.x_valid), len(other.x_train)) == (80, 20, 800)
    assert torch.equal(part.x_test, whole.x_test)
    both = [torch.cat(pair) for pair in ((part.x_train, part.x_valid), (part.y_train, part.y_valid))]
    rows = sorted((*x.flatten().tolist(), int(y)) for x, y in zip(*both, strict=True))
    assert rows == sorted((*x.flatten().tolist(), int(y)) for x, y in zip(whole.x_train, whole.y_train, strict=True))
    assert same(part, get("digits", **options, validation=0.2))
    moved = part.to("cpu", torch.float64)
    assert moved.x_valid is not None and moved.x_valid.dtype == torch.float64 and moved.num_classes == 10
    assert part.digest() != whole.digest()


@pytest.mark.parametrize(("share", "count"), [(0.001, 0), (0.999, 60)])
def test_some_are_held_out_and_some_are_not(share: float, count: int) -> None:
    with pytest.raises(Fault) as caught:
        get("digits", train_size=60, validation=share)
    assert str(caught.value) == f"dataset.validation: {share} of 60 training samples is {count}: take another share"


@pytest.mark.parametrize("share", [0.1, 0.333, 1.0])
def test_label_noise_is_exact_and_uniform_over_the_others(share: float) -> None:
    plain = get("gaussian", classes=3, train_samples=6000, test_samples=10)
    noisy = get("gaussian", classes=3, train_samples=6000, test_samples=10, label_noise=share)
    changed = noisy.y_train != plain.y_train
    assert int(changed.sum()) == round(share * 6000)  # each chosen label differs from the true one
    assert torch.equal(noisy.x_train, plain.x_train) and torch.equal(noisy.y_test, plain.y_test)
    shift = (noisy.y_train - plain.y_train)[changed] % 3
    n = int(changed.sum())
    assert abs(int((shift == 1).sum()) - n / 2) < 4 * (n / 4) ** 0.5
    assert same(noisy, get("gaussian", classes=3, train_samples=6000, test_samples=10, label_noise=share))


@pytest.mark.parametrize(("name", "own"), [("digits", {}), ("gaussian", {"test_samples": 50}), ("rgb", {})])
def test_standardize(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    """Mean 0, variance 1 of the training set, per channel for images; the test set by the training set's numbers."""
    if name == "rgb":
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 3, 4, 4)) * [[[[1]], [[5]], [[0]]]] + [[[[0]], [[9]], [[2]]]]
        write(tmp_path / "a.npz", x_train=x, x_test=x[:20] + 1, y_train=np.arange(40) % 2, y_test=np.arange(20) % 2)
        name, own = "npz", {"path": str(tmp_path / "a.npz")}
    plain, scaled = get(name, **own), get(name, **own, standardize=True)
    x = scaled.x_train.double()
    channels = x.movedim(1, 0).flatten(1) if x.dim() > 2 else x.flatten()[None]
    assert channels.mean(1).abs().max() < 1e-5
    spread = channels.std(1, unbiased=False)
    assert (((spread - 1).abs() < 1e-4) | (spread == 0)).all()  # a constant channel stays finite
    rows = plain.x_train.double().movedim(1, 0).flatten(1) if x.dim() > 2 else plain.x_train.double().flatten()[None]
    shape = (1, -1, *[1] * (x.dim() - 2)) if x.dim() > 2 else (1, 1)
    mean, std = rows.mean(1).view(shape), rows.std(1, unbiased=False).clamp_min(1e-12).view(shape)
    due = torch.where(std > 1e-6, (plain.x_test.double() - mean) / std, plain.x_test.double() - mean)
    torch.testing.assert_close(scaled.x_test.double(), due, rtol=1e-4, atol=1e-4)


def test_mnist1d_and_the_processs_generators() -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    before, torch_before = np.random.get_state(), torch.random.get_rng_state()
    data = get("mnist1d", train_samples=405, test_samples=100)
    after = np.random.get_state()
    assert np.array_equal(np.asarray(before[1]), np.asarray(after[1])) and before[2:] == after[2:]
    assert torch.equal(torch_before, torch.random.get_rng_state())
    assert data.x_train.shape == (405, 1, 40) and data.x_test.shape == (100, 1, 40)
    counts = torch.bincount(torch.cat([data.y_train, data.y_test]), minlength=10)
    assert counts.sum() == 505 and counts.min() >= 41 and counts.max() <= 51  # of 510 made, 51 a class
    assert torch.bincount(data.y_train, minlength=10).min() > 20  # shuffled
    assert same(data, get("mnist1d", train_samples=405, test_samples=100))
    assert not same(data, get("mnist1d", train_samples=405, test_samples=100, seed=1))


@pytest.mark.parametrize("separation", [0.0, 1.0, 3.0])
def test_bayes_error_of_two_classes(separation: float) -> None:
    """Phi(-|mu_1 - mu_2| / 2), and no classifier of the dataset's own samples does better."""
    means = gaussian_means(5, 2, separation, 3)
    assert np.linalg.norm(means, axis=1) == pytest.approx([separation] * 2)
    due = norm.cdf(-np.linalg.norm(means[0] - means[1]) / 2)
    assert bayes_error(5, 2, separation, 3, 200_000) == pytest.approx(due, abs=4 * 0.5 / 200_000**0.5)
    data = get("gaussian", dimension=5, classes=2, separation=separation, seed=3, test_samples=40_000)
    x, y = data.x_test.double().numpy(), data.y_test.numpy()
    side = (x - means.mean(0)) @ (means[1] - means[0]) > 0
    if separation:
        assert (side != y).mean() == pytest.approx(due, abs=4 * 0.5 / 200)
    assert abs(y.mean() - 0.5) < 0.01
    within = x - means[y]
    assert abs(within.mean()) < 0.02 and within.std() == pytest.approx(1, abs=0.02)


def write(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def good() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.standard_normal((12, 3)),
        "y_train": np.arange(12) % 3,
        "x_test": rng.standard_normal((6, 3)),
        "y_test": np.arange(6) % 3,
    }


def test_npz(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", **good())
    data = get("npz", path=str(tmp_path / "a.npz"))
    assert (data.num_classes, data.input_shape, len(data.y_test)) == (3, (3,), 6)
    np.testing.assert_array_equal(data.x_train.numpy(), good()["x_train"].astype(np.float32))


def npz_fault(path: Path) -> tuple[str, int]:
    with pytest.raises(Fault) as caught:
        get("npz", path=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.code


X, Y = good()["x_train"], good()["y_train"]
NAN = X.copy()
NAN[2, 1] = np.nan
SPOILED: dict[str, tuple[Arrays, str]] = {
    "length": ({"y_train": Y[:-1]}, "y_train has shape (11,), x_train (12, 3): one label a sample is due"),
    "one-hot": ({"y_train": np.eye(12)}, "y_train has shape (12, 12), x_train (12, 3): one label a sample is due"),
    "scalar": ({"y_train": np.array(3)}, "y_train has shape (), x_train (12, 3): one label a sample is due"),
    "scalar x": ({"x_train": np.array(3.0)}, "x_train is empty"),
    "empty": ({"x_test": X[:0], "y_test": Y[:0]}, "x_test is empty"),
    "nan": (
        {"x_train": NAN},
        "x_train must hold finite real numbers, it is float64 with NaN, Inf or numbers beyond float32",
    ),
    "text": ({"x_train": X.astype("U8")}, "x_train must hold finite real numbers, it is <U8"),
    "complex": ({"x_train": X + 1j}, "x_train must hold finite real numbers, it is complex128"),
    "too large": (
        {"x_test": X[:6] * 1e300},
        "x_test must hold finite real numbers, it is float64 with NaN, Inf or numbers beyond float32",
    ),
    "negative": ({"y_test": np.arange(6) - 1}, "y_test must hold class numbers 0, 1, ..., it holds int64 from -1"),
    "float": ({"y_test": np.arange(6) * 1.0}, "y_test must hold class numbers 0, 1, ..., it holds float64 from 0.0"),
    "shape": ({"x_test": X[:6, :2]}, "samples of x_train (3,) and x_test (2,) differ"),
    "one class": ({"y_train": Y * 0}, "the training labels hold one class only; there is nothing to learn"),
    "label range": (
        {"y_train": Y + 10**9},
        "y_train holds class 1000000002, there are 12 training samples: number the classes 0, 1, ...",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_unusable_arrays(how: str, tmp_path: Path) -> None:
    changes, wrong = SPOILED[how]
    write(tmp_path / "a.npz", **(good() | changes))
    assert npz_fault(tmp_path / "a.npz") == (f"dataset 'npz': {wrong}", 2)


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    missing = "no such file; np.savez it with x_train, y_train, x_test, y_test"
    assert npz_fault(path) == (f"dataset.path: {path}: {missing}", 5)
    write(path, x_train=X, other=Y)
    text = f"dataset.path: {path}: lacks y_train, x_test, y_test; it holds x_train, other"
    assert npz_fault(path) == (text, 2)
    write(path, **good())
    whole = path.read_bytes()
    for data in (b"", b"garbled", whole[: len(whole) // 2], whole[:200] + bytes(20) + whole[220:], b"PK\x03\x04" * 9):
        path.write_bytes(data)
        said, code = npz_fault(path)
        assert code == 2 and said.startswith(f"dataset.path: {path}: not a readable .npz file of plain arrays (")
    np.save(tmp_path / "b.npy", X)
    (tmp_path / "b.npy").rename(path)
    said, code = npz_fault(path)
    assert code == 2 and said.startswith(f"dataset.path: {path}: not a readable .npz file of plain arrays (")


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def test_pickled_arrays_are_never_executed(tmp_path: Path) -> None:
    path, canary = tmp_path / "a.npz", tmp_path / "canary"
    write(path, **(good() | {"y_test": np.array([Bomb(canary)], dtype=object)}))
    said, code = npz_fault(path)
    assert code == 2 and said.startswith(
        f"dataset.path: {path}: not a readable .npz file of plain arrays (Object arrays"
    )
    path.write_bytes(pickle.dumps(Bomb(canary)))
    said, code = npz_fault(path)
    assert code == 2 and said.startswith(f"dataset.path: {path}: not a readable .npz file of plain arrays (")
    assert not canary.exists()


def test_digest_sees_every_value_and_type() -> None:
    data = get("digits", train_size=60)
    assert same(data, data.to("cpu", torch.float32)) and not same(data, data.to("cpu", torch.float64))
    changed = data.y_test.clone()
    changed[-1] = (changed[-1] + 1) % 10
    assert not same(data, datasets.Data(data.x_train, data.y_train, data.x_test, changed, 10))
