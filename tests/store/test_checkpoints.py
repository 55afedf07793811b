"""Checkpoints: round trips to the bit, a user's own files, and every kind of wrong file with its whole error line."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_module
from torch import Tensor, nn

from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints
from landscape_cli.store.checkpoints import Minimum

MLP = {"name": "mlp", "hidden": [5], "batchnorm": True}


def module_of(spec: dict[str, Any] = MLP, seed: int = 0) -> nn.Module:
    return build_module(spec, (4,), 3, seed)


def minimum_of(module: nn.Module, initial: bool = True, **about: Any) -> Minimum:
    params = {n: p.detach() for n, p in module.named_parameters()}
    first = {n: p + 1 for n, p in params.items()} if initial else None
    return Minimum(params, dict(module.named_buffers()), first, about)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in b)


def fault(path: Path, module: nn.Module) -> tuple[str, int]:
    with pytest.raises(Fault) as caught:
        checkpoints.read(path, module)
    return str(caught.value), caught.value.code


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("initial", [True, False])
def test_round_trip_to_the_bit(tmp_path: Path, dtype: torch.dtype, initial: bool) -> None:
    module = module_of().to(dtype)
    due = minimum_of(module, initial, run_id="s0", settings={"lr": 0.1 + 0.2})
    path = tmp_path / "a.safetensors"
    path.write_bytes(checkpoints.to_bytes(due))
    back = checkpoints.read(path, module_of(seed=1).to(dtype))
    assert equal(back.params, due.params) and equal(back.buffers, due.buffers)
    assert back.initial is None if due.initial is None else equal(back.initial or {}, due.initial)
    assert back.metadata == checkpoints.metadata(path) == due.metadata
    assert checkpoints.to_bytes(back) == path.read_bytes()


def test_pytorch_loads_our_file_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path, module = tmp_path / "a.safetensors", module_of(seed=2)
    path.write_bytes(checkpoints.to_bytes(minimum_of(module, initial=False)))
    fresh = module_of(seed=3)
    fresh.load_state_dict(load_file(path))
    assert equal(dict(fresh.state_dict()), dict(module.state_dict()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict", "model"])
def test_a_users_state_dict(tmp_path: Path, nested: str | None, prefix: str) -> None:
    module = module_of(seed=4)
    state: Any = OrderedDict((prefix + n, t) for n, t in module.state_dict().items())
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, nested: state} if nested else state, path)
    back = checkpoints.read(path, module_of(seed=5))
    assert equal(back.params | back.buffers, dict(module.named_parameters()) | dict(module.named_buffers()))
    assert back.initial is None and back.metadata == {} == checkpoints.metadata(path)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_is_never_executed(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path, canary = tmp_path / f"bomb{suffix}", tmp_path / "canary"
    if zipped:
        torch.save({"weight": Bomb(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb(canary)}))
    said, code = fault(path, module_of())
    assert not canary.exists() and code == 2
    if suffix != ".safetensors":
        why = "it holds more than plain tensors, and loading it would execute code: save model.state_dict() instead"
        assert said == f"{path}: not loaded, {why}"
    else:
        assert said.startswith(f"{path}: not a readable safetensors file (") and "\n" not in said
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()  # teeth: the bomb works


WIDE = {"name": "mlp", "hidden": [6], "batchnorm": True}
DEEP = {"name": "mlp", "hidden": [5, 5], "batchnorm": True}
PLAIN = {"name": "mlp", "hidden": [5]}
OTHER = "a checkpoint of another model: it"


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (WIDE, "1.weight has shape (6, 4), the config's model has (5, 4)"),
        (
            PLAIN,
            f"{OTHER} lacks 2.bias, 2.num_batches_tracked, 2.running_mean and has 3.bias, 3.weight too many",
        ),
        (DEEP, f"{OTHER} has 5.bias, 5.num_batches_tracked, 5.running_mean too many"),
    ],
)
def test_another_models_checkpoint(tmp_path: Path, spec: dict[str, Any], wrong: str) -> None:
    due = wrong + ("; see the config's model section" if OTHER in wrong else "")
    pt, ours = tmp_path / "other.pt", tmp_path / "other.safetensors"
    torch.save(module_of(spec).state_dict(), pt)
    ours.write_bytes(checkpoints.to_bytes(minimum_of(module_of(spec))))
    for path in (pt, ours):
        assert fault(path, module_of()) == (f"{path}: {due}", 2)


def test_whole_error_lines(tmp_path: Path) -> None:
    module, path = module_of(PLAIN), tmp_path / "x.pt"
    assert fault(path, module) == (f"{path}: no such checkpoint", 5)
    torch.save(module_of({"name": "linear"}).state_dict(), path)
    text = "a checkpoint of another model: it lacks 3.bias, 3.weight; see the config's model section"
    assert fault(path, module) == (f"{path}: {text}", 2)
    torch.save({"a": 1, "b": [2]}, path)
    text = "holds no state dict: save model.state_dict(), alone or under one of state_dict, model_state_dict, model"
    for nothing in ({"a": 1}, {}, [1, 2], torch.ones(3)):
        torch.save(nothing, path)
        assert fault(path, module) == (f"{path}: {text}", 2)
    for value in (float("nan"), float("inf")):
        broken = module_of(PLAIN)
        with torch.no_grad():
            broken.get_parameter("3.weight")[1, 2] = value
        torch.save(broken.state_dict(), path)
        assert fault(path, module) == (f"{path}: 3.weight holds NaN or Inf", 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, garbled, empty, with a header of 2^63 bytes: one line, nothing else raised."""
    path, module = tmp_path / f"x{suffix}", module_of()
    torch.save(module.state_dict(), path)
    whole = path.read_bytes() if suffix == ".pt" else checkpoints.to_bytes(minimum_of(module))
    cuts = [whole[: len(whole) * i // 7] for i in range(7)]
    for data in [*cuts, b"\xff" * 100, b"\x00" * 100, b"{}", b"\xff" * 7 + b"\x7f{}", os.urandom(64)]:
        path.write_bytes(data)
        said, code = fault(path, module)
        assert code == 2 and said.startswith(f"{path}: not ") and "\n" not in said


def test_another_format_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save

    path, module = tmp_path / "x.safetensors", module_of(PLAIN)
    state = {n: t.detach() for n, t in module.state_dict().items()}
    path.write_bytes(save(state, {"landscape": '{"format": 2, "seed": 1}'}))
    assert fault(path, module) == (f"{path}: written by another version; this one reads format 1", 2)
    path.write_bytes(save(state, {"format": "pt"}))
    assert equal(checkpoints.read(path, module).params, state)  # anybody's file


def test_a_stack_of_minima() -> None:
    rows = [minimum_of(module_of(seed=s)) for s in range(3)]
    params, buffers, initial = checkpoints.stack(rows, "cpu", torch.float64)
    assert initial is not None and torch.equal(params["1.weight"][2], rows[2].params["1.weight"].double())
    torch.testing.assert_close(initial["1.weight"], params["1.weight"] + 1, rtol=0, atol=1e-6)
    assert buffers["2.num_batches_tracked"].dtype == torch.int64
    rows[1] = minimum_of(module_of(), initial=False)
    assert checkpoints.stack(rows, "cpu", torch.float64)[2] is None
