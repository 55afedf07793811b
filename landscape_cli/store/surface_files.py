"""Directions on disk: one safetensors file beside each surface, so that anyone can check its values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape_cli.registry.errors import Fault

Params = dict[str, Tensor]  # name as in state_dict -> (K, *shape)


def names(draws: list[dict[str, Params]]) -> dict[str, Tensor]:
    """x0.<parameter>, y0.<parameter>, x1... of each draw's directions, name -> (1, *shape)."""
    return {
        f"{axis}{i}.{n}": t[0].cpu().contiguous()
        for i, draw in enumerate(draws)
        for axis, direction in draw.items()
        for n, t in direction.items()
    }


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of names and values."""
    total = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        total.update(name.encode() + t.numpy().tobytes())
    return total.hexdigest()


def to_bytes(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """A safetensors file of float64 tensors, and what is to be known of them in its metadata."""
    from safetensors.torch import save

    return save(tensors, {"landscape": json.dumps(facts, sort_keys=True)})


def facts(path: Path) -> dict[str, Any]:
    """What the metadata of such a file say; empty if there is none, or it is none of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("landscape", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def read(path: Path, shapes: dict[str, tuple[int, ...]], axes: int) -> list[dict[str, Params]]:
    """Directions of an earlier surface of the same network, as they are.

    Args:
        path: of the file.
        shapes: parameter -> its shape.
        axes: 1 or 2.
    Raises: Fault if it is not readable, or holds other directions.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Fault(f"--directions: {path}: not a readable safetensors file ({error})") from error
    found: list[dict[str, Params]] = []
    while any(name.startswith(f"x{len(found)}.") for name in tensors):
        draw: dict[str, Params] = {}
        for axis in "xy"[:axes]:
            draw[axis] = {}
            for name, shape in shapes.items():
                t = tensors.get(f"{axis}{len(found)}.{name}")
                if t is None or tuple(t.shape) != shape:
                    seen = "lacks it" if t is None else f"has {tuple(t.shape)}"
                    raise Fault(f"--directions: {path}: {axis}{len(found)}.{name} of shape {shape} is due, it {seen}")
                if not t.isfinite().all():
                    raise Fault(f"--directions: {path}: {axis}{len(found)}.{name} holds NaN or Inf")
                draw[axis][name] = t.double()[None]
        found.append(draw)
    if not found:
        raise Fault(f"--directions: {path}: holds no tensors x0.<parameter>")
    return found
