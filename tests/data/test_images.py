"""Image sets, from small files of the real formats that the tests write."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from landscape_cli import config
from landscape_cli.data import images
from landscape_cli.data.datasets import load
from landscape_cli.registry.errors import Fault

rng = np.random.Generator(np.random.PCG64(0))


def loaded(name: str, **own: Any) -> Any:
    return load(config.section("dataset", name=name, **own))


def refusal(name: str, **own: Any) -> tuple[str, int]:
    with pytest.raises(Fault) as caught:
        loaded(name, **own)
    return str(caught.value), caught.value.code


def cifar(files: dict[str, int], label: str, protocol: int, keys: Any = str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Pickled batches, and what they hold."""
    held = {f: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 3, n).tolist()) for f, n in files.items()}
    packed = {f: pickle.dumps({keys("data"): x, keys(label): y}, protocol) for f, (x, y) in held.items()}
    return packed, held


BATCHES = {**{f"data_batch_{i}": 4 for i in range(1, 6)}, "test_batch": 3}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_cifar10(tmp_path: Path, protocol: int, packed: bool, keys: Any) -> None:
    files, held = cifar(BATCHES, "labels", protocol, keys)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        (tmp_path / "cifar-10-batches-py").mkdir()
        for name, data in files.items():
            (tmp_path / "cifar-10-batches-py" / name).write_bytes(data)
    data = loaded("cifar10", root=str(tmp_path))
    assert data.x_train.shape == (20, 3, 32, 32) and data.x_test.shape == (3, 3, 32, 32)
    x, y = held["data_batch_2"]
    assert data.y_train[4:8].tolist() == y
    assert data.x_train[4, 1, 2, 3].item() == np.float32(x[0, 1024 + 2 * 32 + 3]) / np.float32(255)
    assert data.y_test.tolist() == held["test_batch"][1]


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    files, held = cifar({"train": 6, "test": 4}, "fine_labels", 2)
    (tmp_path / "cifar-100-python").mkdir()
    for name, data in files.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(data)
    assert loaded("cifar100", root=str(tmp_path)).y_train.tolist() == held["train"][1]


class Evil:
    """Runs a command when it is unpickled by anyone who lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test"):
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps({"data": Evil()}))
    said, code = refusal("cifar100", root=str(tmp_path))
    assert code == 2 and "system, which no image set needs: it was not loaded" in said
    assert not (tmp_path / "owned").exists()


def mnist(root: Path, folder: str, packed: bool) -> dict[str, Any]:
    held = {}
    (root / folder / "raw").mkdir(parents=True)
    for part, n in (("train", 5), ("t10k", 4)):
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 3
        held[part] = (x, y)
        for kind, a in (("images-idx3", x), ("labels-idx1", y)):
            data = struct.pack(f">HBB{a.ndim}I", 0, 8, a.ndim, *a.shape) + a.tobytes()
            path = root / folder / "raw" / f"{part}-{kind}-ubyte"
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data)) if packed else path.write_bytes(data)
    return held


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_and_its_kin(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    held = mnist(tmp_path, folder, packed)
    data = loaded(name, root=str(tmp_path))
    assert np.array_equal(data.x_train[:, 0].numpy(), held["train"][0].astype(np.float32) / np.float32(255))
    assert data.y_test.tolist() == held["t10k"][1].tolist()


@pytest.mark.parametrize("data", [b"", b"\0\0\x0d\1" + b"\0" * 8, b"\0\0\x08\1\0\0\0\5" + b"\0" * 4, b"\0\0\x08\3\0"])
def test_damaged_idx(tmp_path: Path, data: bytes) -> None:
    mnist(tmp_path, "MNIST", False)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(data)
    said, code = refusal("mnist", root=str(tmp_path))
    assert code == 2 and "train-images-idx3-ubyte: not readable" in said and "\n" not in said


def test_svhn(tmp_path: Path) -> None:
    held = {}
    for part, n in (("train", 12), ("test", 4)):
        x, y = rng.integers(0, 256, (32, 32, 3, n), np.uint8), np.arange(1, n + 1)[:, None] % 10 + 1
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y})
        held[part] = (x, y.ravel() % 10)
    data = loaded("svhn", root=str(tmp_path))
    x, y = held["train"]
    assert data.y_train.tolist() == y.tolist()
    assert data.x_train[3, 1, 20, 7].item() == np.float32(x[20, 7, 1, 3]) / np.float32(255)


def test_image_folder(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                Image.new("L" if k else "RGB", (12, 20), 100 * i if k else (100 * i, 7, 7)).save(
                    tmp_path / part / name / f"{k}.png"
                )
    data = loaded("image_folder", path=str(tmp_path), size=8)
    assert data.x_train.shape == (6, 3, 8, 8) and data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.x_train[4].unique().tolist() == [np.float32(100) / np.float32(255)]
    (tmp_path / "test" / "cow").mkdir()
    assert refusal("image_folder", path=str(tmp_path)) == (
        f"dataset.path: {tmp_path / 'test'}: cow: classes that train has not",
        2,
    )
    (tmp_path / "test" / "cow").rmdir()
    (tmp_path / "train" / "cat" / "x.png").write_bytes(b"no image")
    said, code = refusal("image_folder", path=str(tmp_path))
    assert (said, code) == (f"dataset.path: {tmp_path / 'train' / 'cat' / 'x.png'}: not a readable image", 2)
    assert refusal("image_folder", path=str(tmp_path / "no"))[1] == 5


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn"])
def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path, name: str) -> None:
    said, code = refusal(name, root=str(tmp_path))
    assert code == 5 and said.endswith(f"no such file: run `landscape data fetch {name}`, or set dataset.root")


def test_pickles_of_other_things_are_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="holds a list, a dictionary is due"):
        images.unpickled(pickle.dumps([1]))
