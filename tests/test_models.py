"""Registered models: sizes, inputs that they do not take, and that each can be trained in a stack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import some_data

from landscape_cli import network
from landscape_cli.errors import Fault
from landscape_cli.models import build_module
from landscape_cli.network import Pass
from landscape_cli.registry import REGISTRY

SHAPES = {"linear": (1, 8, 8), "mlp": (1, 8, 8), "cnn": (1, 8, 8), "lenet": (1, 8, 8), "cnn1d": (1, 40)}


def test_every_model_is_tried_here() -> None:
    assert {n for n, e in REGISTRY["model"].items() if e.function.__module__.startswith("landscape_cli.")} == {*SHAPES}


@pytest.mark.parametrize(
    ("spec", "shape", "due"),
    [
        ({"name": "mlp"}, (1, 8, 8), 17_610),
        ({"name": "cnn1d"}, (1, 40), 5_210),
        ({"name": "cnn1d"}, (40,), 5_210),
        ({"name": "linear"}, (1, 8, 8), 650),
        ({"name": "linear", "bias": False}, (1, 8, 8), 640),
        ({"name": "mlp", "hidden": [4], "bias": False}, (5,), 5 * 4 + 4 * 10),
        ({"name": "mlp", "hidden": [4], "batchnorm": True}, (5,), 5 * 4 + 4 + 2 * 4 + 4 * 10 + 10),
        ({"name": "lenet"}, (1, 32, 32), 61_706),  # LeNet-5 with full connections, as is often printed
        ({"name": "cnn", "channels": [3]}, (2, 8, 8), 3 * 2 * 9 + 3 + 3 * 16 * 10 + 10),
    ],
)
def test_parameter_counts(spec: dict[str, Any], shape: tuple[int, ...], due: int) -> None:
    module = build_module(spec, shape, 10, 0)
    assert sum(p.numel() for p in module.parameters()) == due


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batchnorm", [False, True])
def test_each_runs_stacked_as_alone(name: str, batchnorm: bool) -> None:
    """Logits of three together equal those of each module by itself, in evaluation and with batch statistics."""
    takes = REGISTRY["model"][name].settings.model_fields
    spec = {"name": name} | ({"batchnorm": True} if batchnorm and "batchnorm" in takes else {})
    shape = SHAPES[name]
    modules = [build_module(spec, shape, 10, seed).double() for seed in range(3)]
    net = network.build(modules[0], shape, torch.float64)
    assert net.kind == "stacked"
    x = some_data(7, shape).x_train
    params, buffers = network.stack(modules)
    for mode in ("fixed", "batch"):
        logits = net(params, buffers, x, Pass(batchnorm="fixed" if mode == "fixed" else "batch"))
        for k, module in enumerate(modules):
            due = module.train(mode == "batch")(x).detach()
            torch.testing.assert_close(logits[k], due, rtol=1e-10, atol=1e-10)


def test_initialization_is_pytorchs_own_and_leaves_its_generator_alone() -> None:
    torch.manual_seed(3)
    due = torch.nn.Linear(4, 5)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    module = build_module({"name": "mlp", "hidden": [5]}, (4,), 3, 3)
    assert torch.equal(module.get_parameter("1.weight"), due.weight)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(
        build_module({"name": "mlp", "hidden": [5]}, (4,), 3, 4).get_parameter("1.weight"), due.weight
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("cnn", shape) for shape in ((64,), (1, 40), (1, 2, 2), (1, 8, 1))),
        *(("lenet", shape) for shape in ((8,), (1, 2, 2))),
        *(("cnn1d", shape) for shape in ((1, 8, 8), (1, 1))),
    ],
)
def test_inputs_that_a_model_does_not_take(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(Fault) as caught:
        build_module({"name": name}, shape, 10, 0)
    said = str(caught.value)
    assert said.startswith(f"model.name: {name!r} does not take inputs of shape {shape} (")
    assert "\n" not in said and caught.value.code == 2


def test_a_plugins_model_with_wrong_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape_cli.registry import Entry

    def narrow(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        return torch.nn.Linear(input_shape[0], num_classes - 1)

    monkeypatch.setitem(REGISTRY["model"], "narrow", Entry("narrow", "model", narrow))
    with pytest.raises(Fault) as caught:
        build_module({"name": "narrow"}, (4,), 3, 0)
    assert str(caught.value) == "model.name: 'narrow' gives (2,) values a sample, 3 are due"
