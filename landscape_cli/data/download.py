"""`landscape data fetch`: files of the known image sets, from where torchvision takes them, with its checksums."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from landscape_cli.registry.errors import Fault

NAMES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn")
PIECE = 2**18  # bytes
Source = tuple[str, list[str], str]  # file under the root, addresses to try in turn, md5
Watch = Callable[[str, int, int], None]  # file, bytes there, bytes in all (0: unknown)


def sources(name: str) -> list[Source]:
    """The files of an image set.

    Raises: Fault for a name that is none.
    """
    if name not in NAMES:
        raise Fault(f"data fetch: {name!r}: nothing to download: there are {', '.join(NAMES)}")
    from torchvision import datasets as shelf

    if name in ("cifar10", "cifar100"):
        one = {"cifar10": shelf.CIFAR10, "cifar100": shelf.CIFAR100}[name]
        return [(one.filename, [one.url], one.tgz_md5)]
    if name == "svhn":
        return [(file, [url], md5) for url, file, md5 in (shelf.SVHN.split_list[part] for part in ("train", "test"))]
    few = {"mnist": shelf.MNIST, "fashion_mnist": shelf.FashionMNIST, "kmnist": shelf.KMNIST}[name]
    return [
        (f"{few.__name__}/raw/{file}", [f"{mirror.rstrip('/')}/{file}" for mirror in few.mirrors], md5)
        for file, md5 in few.resources
    ]


def fetch(files: list[Source], root: Path, watch: Watch = lambda file, there, total: None) -> list[Path]:
    """Download what is missing; a file that broke off goes on where it ended, and none is in place unchecked.

    Args:
        files: from `sources`.
        root: where they go; made if need be.
        watch: told about progress.
    Returns: all files, in place.
    Raises: Fault, exit code 5 if none of the addresses answers or what comes is not what is due.
    """
    placed = []
    for name, addresses, md5 in files:
        path = root / name
        placed.append(path)
        if path.is_file() and _md5(path) == md5:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part, wrong = path.with_name(f"{path.name}.part"), ""
        for address in addresses:
            try:
                _download(address, part, lambda there, total, name=name: watch(name, there, total))  # type: ignore[misc]
            except (urllib.error.URLError, OSError, ValueError) as error:
                wrong = f"{address}: {error}"
                continue
            if _md5(part) == md5:
                break
            part.unlink()
            wrong = f"{address}: the file that came is another one than is due (its md5 is not {md5})"
        else:
            raise Fault(f"data fetch: {wrong}: what came is kept, the same command goes on", code=5)
        os.replace(part, path)
    return placed


def _download(address: str, part: Path, watch: Callable[[int, int], None]) -> None:
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send
            return
        raise
    with answer, part.open("ab" if there and answer.status == 206 else "wb") as file:
        there = file.tell()
        total = there + int(answer.headers.get("Content-Length") or 0)
        while piece := answer.read(PIECE):
            file.write(piece)
            there += len(piece)
            watch(there, total)
        file.flush()
        os.fsync(file.fileno())
    if there < total:
        raise OSError(f"broke off after {there:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            total.update(piece)
    return total.hexdigest()
