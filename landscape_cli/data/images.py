"""Image sets on disk, in the files that torchvision downloads; `landscape data fetch NAME` puts them there.

Nothing in a file is executed: CIFAR's pickles are read by an unpickler that knows NumPy arrays and nothing else.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from landscape_cli.registry import Count, dataset
from landscape_cli.registry.errors import Fault

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, Array, Array, Array]
BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, pickle.UnpicklingError, tarfile.TarError)
NUMPY = {  # what a pickled array of any version of NumPy is made by
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no image set needs: it was not loaded")


def unpickled(data: bytes) -> dict[str, Any]:
    """A pickled dictionary of plain values and NumPy arrays, its keys as text.

    Raises: pickle.UnpicklingError if it asks for anything else.
    """
    found = _Arrays(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"holds a {type(found).__name__}, a dictionary is due")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


def idx(data: bytes) -> Array:
    """An array in the format of MNIST's files: two zero bytes, the type (8: bytes), dimensions, sizes, values."""
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of bytes")
    dims = data[3]
    shape = tuple(np.frombuffer(data, ">u4", dims, 4).tolist())
    if len(data) != 4 + 4 * dims + int(np.prod(shape)):
        raise ValueError(f"{len(data)} bytes do not hold the {shape} values that its head tells")
    return np.frombuffer(data, np.uint8, -1, 4 + 4 * dims).reshape(shape)


def _missing(name: str, path: Path) -> Fault:
    remedy = f"run `landscape data fetch {name}`, or set dataset.root"
    return Fault(f"dataset {name!r}: {path}: no such file: {remedy}", code=5)


def _read(name: str, path: Path, reader: Callable[[bytes], Any]) -> Any:
    """What a file holds, also one that is there under its name with .gz."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        if path.is_file():
            return reader(path.read_bytes())
        if packed.is_file():
            return reader(gzip.decompress(packed.read_bytes()))
    except (*BROKEN, zlib.error) as error:
        raise Fault(f"dataset {name!r}: {path}: not readable ({error}): fetch it again") from error
    raise _missing(name, packed)


def _cifar(name: str, root: str, folder: str, files: dict[str, list[str]], label: str) -> Arrays:
    place, archive = Path(root) / folder, Path(root) / f"{folder.replace('batches-py', 'python')}.tar.gz"
    found: dict[str, Any] = {}
    wanted = [file for part in files.values() for file in part]
    if place.is_dir():
        found = {file: _read(name, place / file, unpickled) for file in wanted}
    elif archive.is_file():
        try:
            with tarfile.open(archive) as tar:
                for file in wanted:
                    member = tar.extractfile(f"{folder}/{file}")
                    assert member is not None
                    found[file] = unpickled(member.read())
        except (*BROKEN, AssertionError, zlib.error) as error:
            raise Fault(f"dataset {name!r}: {archive}: not readable ({error}): fetch it again") from error
    else:
        raise _missing(name, archive)
    sides: list[Array] = []
    for part in files.values():
        try:
            x = np.concatenate([np.asarray(found[f]["data"], np.uint8).reshape(-1, 3, 32, 32) for f in part])
            y = np.concatenate([np.asarray(found[f][label], np.int64) for f in part])
        except BROKEN as error:
            raise Fault(f"dataset {name!r}: {place}: holds other arrays than are due ({error})") from error
        sides += [x.astype(np.float32) / 255, y]
    return sides[0], sides[1], sides[2], sides[3]


@dataset
def cifar10(*, root: str = "data") -> Arrays:
    """CIFAR-10: 50,000 and 10,000 colour images of 32 x 32 pixels in [0, 1], 10 classes; see `landscape data fetch`.

    Args:
        root: folder with cifar-10-batches-py or cifar-10-python.tar.gz.
    Source: Krizhevsky 2009.
    """
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar("cifar10", root, "cifar-10-batches-py", files, "labels")


@dataset
def cifar100(*, root: str = "data") -> Arrays:
    """CIFAR-100: as CIFAR-10, in 100 classes; see `landscape data fetch`.

    Args:
        root: folder with cifar-100-python or cifar-100-python.tar.gz.
    Source: Krizhevsky 2009.
    """
    return _cifar("cifar100", root, "cifar-100-python", {"train": ["train"], "test": ["test"]}, "fine_labels")


def _mnist(name: str, root: str, folder: str) -> Arrays:
    place, sides = Path(root) / folder / "raw", []
    for part in ("train", "t10k"):
        x = _read(name, place / f"{part}-images-idx3-ubyte", idx)
        y = _read(name, place / f"{part}-labels-idx1-ubyte", idx)
        if x.ndim != 3 or y.ndim != 1:
            raise Fault(f"dataset {name!r}: {place}: {part} holds arrays of shape {x.shape} and {y.shape}")
        sides += [x[:, None].astype(np.float32) / 255, y.astype(np.int64)]
    return sides[0], sides[1], sides[2], sides[3]


@dataset
def mnist(*, root: str = "data") -> Arrays:
    """MNIST: 60,000 and 10,000 handwritten digits of 28 x 28 pixels in [0, 1]; see `landscape data fetch`.

    Args:
        root: folder with MNIST/raw/train-images-idx3-ubyte and the like, packed (.gz) or not.
    Source: LeCun et al. 1998.
    """
    return _mnist("mnist", root, "MNIST")


@dataset
def fashion_mnist(*, root: str = "data") -> Arrays:
    """Fashion-MNIST: clothes in the form of MNIST; see `landscape data fetch`.

    Args:
        root: folder with FashionMNIST/raw.
    Source: Xiao et al. 2017.
    """
    return _mnist("fashion_mnist", root, "FashionMNIST")


@dataset
def kmnist(*, root: str = "data") -> Arrays:
    """Kuzushiji-MNIST: old Japanese characters in the form of MNIST; see `landscape data fetch`.

    Args:
        root: folder with KMNIST/raw.
    Source: Clanuwat et al. 2018.
    """
    return _mnist("kmnist", root, "KMNIST")


@dataset
def svhn(*, root: str = "data") -> Arrays:
    """SVHN: 73,257 and 26,032 house numbers of 32 x 32 pixels in colour, [0, 1]; see `landscape data fetch`.

    Args:
        root: folder with train_32x32.mat and test_32x32.mat.
    Source: Netzer et al. 2011.
    """
    from scipy.io import loadmat

    sides: list[Array] = []
    for part in ("train", "test"):
        path = Path(root) / f"{part}_32x32.mat"
        if not path.is_file():
            raise _missing("svhn", path)
        try:
            held = loadmat(path)
            x, y = np.asarray(held["X"], np.uint8), np.asarray(held["y"], np.int64).ravel()
            x = np.moveaxis(x, (3, 2), (0, 1))  # (height, width, channels, n)
        except Exception as error:  # the reader raises what it likes on a damaged file
            raise Fault(f"dataset 'svhn': {path}: not readable ({error}): fetch it again") from error
        sides += [np.ascontiguousarray(x, dtype=np.float32) / 255, y % 10]  # the digit 0 is labelled 10
    return sides[0], sides[1], sides[2], sides[3]


@dataset
def image_folder(*, path: str, size: Count = 32) -> Arrays:
    """Your own images: folders train and test, in each a folder a class, in each its images.

    Args:
        path: with train and test in it.
        size: images are scaled so that their shorter side has so many pixels, and cut to the middle square.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    root, sides = Path(path), []
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        raise Fault(f"dataset.path: {path}: lacks the folders train and test", code=5)
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    for part in ("train", "test"):
        x, y = [], []
        if strange := sorted({p.name for p in (root / part).iterdir() if p.is_dir()} - {*classes}):
            raise Fault(f"dataset.path: {root / part}: {', '.join(strange[:3])}: classes that train has not")
        for i, name in enumerate(classes):
            folder = root / part / name
            for file in sorted(folder.iterdir()) if folder.is_dir() else []:
                if not file.name.startswith("."):
                    try:
                        with Image.open(file) as image:
                            x.append(np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)), np.float32) / 255)
                    except (UnidentifiedImageError, OSError) as error:
                        raise Fault(f"dataset.path: {file}: not a readable image") from error
                    y.append(i)
        sides += [np.stack(x).transpose(0, 3, 1, 2) if x else np.zeros((0, 3, size, size)), np.asarray(y, np.int64)]
    return sides[0], sides[1], sides[2], sides[3]
