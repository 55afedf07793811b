"""What several test files need: the shelves, small data, complete settings, and a tiny experiment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from landscape_cli import config, network, registry, training
from landscape_cli.__main__ import main
from landscape_cli.config import Training
from landscape_cli.data.datasets import Data
from landscape_cli.experiment import draw_report, session
from landscape_cli.network import Network, models


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "figures: draws figures")


hypothesis.settings.register_profile("same", derandomize=True)  # the same examples in every run
hypothesis.settings.load_profile("same")
registry.load_plugins([])
torch.set_num_threads(1)  # equal bits everywhere, and the tests share two cores

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"name": "digits", "train_size": 60},
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 30}},
    "grid": {"training.batch_size": [10, 60]},
    "seeds": 2,
    "metrics": ["weight_norm", {"hessian_top": {"k": 1}}, "train_loss"],
    "compare": {"by": "training.batch_size", "labels": {10: "small", 60: "large"}},
}


def yaml_of(tree: dict[str, Any]) -> str:
    """A config as YAML; JSON is one, but its keys are strings, so labels are written by hand."""
    tree = dict(tree)
    compare = tree.pop("compare", None)
    lines = [f"{key}: {json.dumps(value)}" for key, value in tree.items()]
    if compare:
        labels = ", ".join(f"{k}: {v}" for k, v in compare["labels"].items())
        lines.append(f"compare: {{by: {compare['by']}, labels: {{{labels}}}}}")
    return "\n".join(lines) + "\n"


def settings_of(**changes: Any) -> Training:
    """A `training` section."""
    return config.section("training", **{"lr": 0.05, "batch_size": 10, "stop": {"max_epochs": 3}} | changes)


def build_module(spec: dict[str, Any], input_shape: tuple[int, ...], num_classes: int, seed: int) -> torch.nn.Module:
    """The module of a model that is written as in a config."""
    return models.build_module(config.section("model", **spec), input_shape, num_classes, seed)


def some_data(n: int = 40, shape: tuple[int, ...] = (6,), classes: int = 3, seed: int = 0) -> Data:
    """Random inputs in float64, with labels that can be learned in part."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=rng, dtype=torch.float64)
    y = (x.flatten(1)[:, :classes] + torch.randn(n, classes, generator=rng, dtype=torch.float64)).argmax(1)
    return Data(x, y, x[:10], y[:10], classes)


def begin(
    model: dict[str, Any], data: Data, settings: list[Training], seeds: list[int]
) -> tuple[Network, training.State, network.Params]:
    """A network with the state and buffers before the first step of its runs, in float64."""
    modules = [build_module(model, data.input_shape, data.num_classes, seed).double() for seed in seeds]
    params, buffers = network.stack(modules)
    net = network.build(modules[0], data.input_shape, torch.float64)
    return net, training.begin(params, settings[0]), buffers


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., session.Session]:
    """Opens the tiny experiment, with changes, under tmp_path/results."""

    def open_tiny(changes: dict[str, Any] | None = None, **options: Any) -> session.Session:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml_of(TINY | (changes or {})))
        experiment = session.resolve(config.read(str(path)), **options)
        return session.open_session(experiment, tmp_path / "results", "cpu")

    return open_tiny


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`landscape WORDS` in this process, in a folder with tiny.yaml; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draw_report, "draw", lambda *args: [])
    (tmp_path / "tiny.yaml").write_text(yaml_of(TINY | {"seeds": 1, "metrics": ["weight_norm"]}))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["landscape", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(left.value.code or 0), out, err

    return run
