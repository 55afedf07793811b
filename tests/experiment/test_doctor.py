"""The doctor says what is wrong and how to mend it, and how a config's models are run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from landscape_cli import config, registry, store
from landscape_cli.experiment import doctor, session


def test_a_held_lock_is_found_and_a_free_one_is_not(tmp_path: Path) -> None:
    folder = store.open_folder(tmp_path, "mine")
    with store.lock(folder):
        held = [f for f in doctor.examine(tmp_path) if not f["ok"]]
    assert [f["check"] for f in held] == ["lock"]
    assert str(folder) in held[0]["found"]
    assert held[0]["remedy"] == "wait for that process, or stop it"
    assert all(f["ok"] for f in doctor.examine(tmp_path))


def test_little_disk_is_a_finding_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE", 2**80)
    found = {f["check"]: f for f in doctor.examine(tmp_path / "not" / "yet")}
    assert found["disk"]["remedy"] == "free some, or choose another folder with --results"
    assert found["torch"]["found"] == torch.__version__


@pytest.mark.parametrize(("layer", "kind", "ok"), [(nn.ReLU, "stacked", True), (nn.PReLU, "vmap", False)])
def test_it_names_the_layer_that_is_not_stacked(
    layer: type[nn.Module], kind: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.load_plugins([])

    def odd(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), layer(), nn.Linear(4, num_classes))

    monkeypatch.setitem(registry.REGISTRY["model"], "odd", registry.Entry("odd", "model", odd))
    path = tmp_path / "c.yaml"
    path.write_text("name: c\ndataset: {name: digits}\nmodel: {name: odd}\ntraining: {lr: 0.1, batch_size: 10}\n")
    opened = session.open_session(config.resolve(config.read(str(path))), tmp_path)
    found = doctor.examine(tmp_path, opened)[-1]
    assert (found["check"], found["found"], found["ok"]) == ("model odd", kind, ok)
    assert ok or "2 (PReLU) has no stacked form" in found["remedy"]
