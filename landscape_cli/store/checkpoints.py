"""Minima on disk: one safetensors file each, under PyTorch's own names; and a user's own checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape_cli.registry.errors import Fault

Params = dict[str, Tensor]  # name as in state_dict -> (K, *shape)
FORMAT = 1
INITIAL = "initial/"  # prefix of the parameters before training
DAMAGED = "damaged, its hash is not the one that was recorded: delete it and train again"
NESTED = ("state_dict", "model_state_dict", "model")
WRAPPED = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before a name


@dataclass(frozen=True)
class Minimum:
    """One trained network: state dict entries, the initial parameters if known, and how it came about."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    initial: dict[str, Tensor] | None
    metadata: dict[str, Any]


def to_bytes(minimum: Minimum) -> bytes:
    """A safetensors file whose parameters and buffers `load_state_dict` takes as they are."""
    from safetensors.torch import save

    tensors = minimum.params | minimum.buffers
    tensors |= {INITIAL + n: t for n, t in (minimum.initial or {}).items()}
    about = json.dumps({"format": FORMAT, **minimum.metadata}, sort_keys=True)
    text = {
        "landscape": about
    }  # one entry: safetensors writes several in random order, and equal minima are equal files
    return save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, text)


def read(path: Path, module: nn.Module) -> Minimum:
    """A checkpoint of this module: ours, any .safetensors of its state dict, or a .pt / .pth of plain tensors.

    Raises: Fault if it is missing, unreadable, would have to execute code, or belongs to another network.
    """
    if not os.path.isfile(path):  # false, too, of a name that is too long
        raise Fault(f"{path}: no such checkpoint", code=5)
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    initial = {n.removeprefix(INITIAL): t for n, t in state.items() if n.startswith(INITIAL)}
    state = {n: t for n, t in state.items() if not n.startswith(INITIAL)}
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    _check(path, state, params | buffers)
    return Minimum(
        {n: state[n].to(p.dtype) for n, p in params.items()},
        {n: state[n].to(b.dtype) for n, b in buffers.items()},
        {n: initial[n].to(p.dtype) for n, p in params.items()} if initial.keys() == params.keys() else None,
        metadata,
    )


def layout(path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the parameters in our own file, sorted; nothing else of it is read.

    Where the initial ones are unknown, buffers cannot be told apart and count too. Of a file that is not readable it
    is empty: the fault is for whoever needs its values.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError):
        return ()
    initial = {name.removeprefix(INITIAL): shape for name, shape in shapes.items() if name.startswith(INITIAL)}
    return tuple(sorted((initial or shapes).items()))


def parameters(path: Path, sha256: str, names: Sequence[str]) -> Tensor:
    """Parameters of our own file, one below the other (p,), in the order of `names`; the file is read once.

    Raises: Fault if it is not readable or not the one that was recorded.
    """
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Fault(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Fault(f"{path}: {DAMAGED}")
    tensors = load(data)
    return torch.cat([tensors[name].flatten() for name in names])


def metadata(path: Path) -> dict[str, Any]:
    """What our own file says of itself; empty for any other."""
    return _read_safetensors(path)[1] if path.suffix == ".safetensors" and os.path.isfile(path) else {}


def stack(
    minima: list[Minimum], device: torch.device | str, dtype: torch.dtype
) -> tuple[Params, Params, Params | None]:
    """Parameters, buffers and initial parameters, each name -> (K, *shape), on a device."""

    def join(rows: list[dict[str, Tensor]]) -> Params:
        joined = {n: torch.stack([row[n] for row in rows]).to(device) for n in rows[0]}
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in joined.items()}

    initial = [m.initial for m in minima if m.initial is not None]
    return (
        join([m.params for m in minima]),
        join([m.buffers for m in minima]),
        join(initial) if len(initial) == len(minima) else None,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        found = json.loads(about.get("landscape", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise Fault(f"{path}: not a readable safetensors file ({error})") from error
    found = found if isinstance(found, dict) else {}
    if found and found.pop("format", None) != FORMAT:
        raise Fault(f"{path}: written by another version; this one reads format {FORMAT}")
    return state, found


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A state dict from torch.save; weights_only, so that nothing in the file is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch says of old pickles is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = "it holds more than plain tensors, and loading it would execute code: save model.state_dict() instead"
        raise Fault(f"{path}: not loaded, {why}") from error
    except Exception as error:
        said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise Fault(f"{path}: not a readable checkpoint ({said})") from error
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()) or not state:
        raise Fault(f"{path}: holds no state dict: save model.state_dict(), alone or under one of {', '.join(NESTED)}")
    while prefix := next((p for p in WRAPPED if all(str(n).startswith(p) for n in state)), ""):
        state = {n.removeprefix(prefix): t for n, t in state.items()}
    return state


def _check(path: Path, state: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    missing, extra = sorted(due.keys() - state.keys()), sorted(state.keys() - due.keys())
    if missing or extra:
        said = [f"lacks {', '.join(missing[:3])}"] if missing else []
        said += [f"has {', '.join(extra[:3])} too many"] if extra else []
        raise Fault(f"{path}: a checkpoint of another model: it {' and '.join(said)}; see the config's model section")
    for name, tensor in due.items():
        if state[name].shape != tensor.shape:
            have, want = tuple(state[name].shape), tuple(tensor.shape)
            raise Fault(f"{path}: {name} has shape {have}, the config's model has {want}")
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise Fault(f"{path}: {name} holds NaN or Inf")


def snapshot_file(run_id: str, epoch: int) -> str:
    """Where the parameters on the way, after some epochs, are kept."""
    return f"minima/{run_id}-epoch{epoch}.safetensors"
