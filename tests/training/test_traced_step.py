"""A played trace gives the bits of the function itself, at every layout, and is not used where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import begin, settings_of, some_data
from torch import Tensor

from landscape_cli import training
from landscape_cli.training import loop, traced_step

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [7]},
    "gelu": {"name": "mlp", "hidden": [7], "activation": "gelu"},
    "wide": {"name": "mlp", "hidden": [64, 64]},
    "batch norm": {"name": "mlp", "hidden": [7], "batchnorm": True},
    "cnn1d": {"name": "cnn1d", "channels": 3},
    "cnn": {"name": "cnn", "channels": [3], "batchnorm": True},
    "resnet": {"name": "resnet", "width": 2},
}
SHAPES = {"cnn1d": (1, 12), "cnn": (2, 6, 6), "resnet": (3, 8, 8)}
RECIPES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam", "label_smoothing": 0.1},
    "sam": {"optimizer": "sam"},
}


def trained(
    model: str, own: dict[str, Any], after: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], int, int]:
    """Parameters after three epochs of 4 steps, the last of 4 samples, of three runs; how many traces, and plays."""
    traced, plays, trace = 0, 0, traced_step._trace

    def counted(f: traced_step.Function, tensors: tuple[Tensor, ...]) -> traced_step.Function:
        nonlocal traced
        traced += 1
        played = trace(f, tensors)

        def play(*some: Tensor) -> list[Tensor]:
            nonlocal plays
            plays += 1
            return played(*some)

        return play

    monkeypatch.setattr(traced_step, "_trace", counted)
    monkeypatch.setattr(loop, "replayed", lambda f: traced_step.replayed(f, after))
    data, settings = some_data(25, SHAPES.get(model, (6,))), [settings_of(**own, batch_size=7)] * 3
    net, state, buffers = begin(MODELS[model], data, settings, [0, 1, 2])
    assert net.kind == "stacked"
    outcomes = list(training.train(net, data, settings, [0, 1, 2], state, buffers))
    monkeypatch.undo()
    return [p for o in outcomes for p in o.params.values()], traced, plays


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_played_steps_give_the_same_bits(model: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, none, idle = trained(model, RECIPES[recipe], 10**9, monkeypatch)
    played, some, plays = trained(model, RECIPES[recipe], 2, monkeypatch)
    assert (none, idle, some) == (0, 0, 2)  # the whole batches, and the last
    assert plays == (22 if recipe == "sam" else 10)  # all calls but the first two of each layout, and the two looks
    assert all(map(torch.equal, plain, played))


def test_a_function_is_played_from_the_call_that_was_asked_for() -> None:
    calls = 0

    def f(x: Tensor) -> list[Tensor]:
        nonlocal calls
        calls += 1
        return [torch.autograd.grad((w := x.detach().requires_grad_()).sin().sum(), w)[0]]

    g, x = traced_step.replayed(f, 3), torch.arange(6.0).view(2, 3)
    results = [g(x + k)[0] for k in range(6)]
    assert calls == 4  # thrice as it is, and once traced
    assert all(torch.equal(r, (x + k).cos()) for k, r in enumerate(results))
    assert torch.equal(g(x.mT)[0], x.mT.cos()) and calls == 5  # another layout is not played
    assert not g(x)[0].requires_grad


def test_a_trace_that_gives_other_values_is_not_used() -> None:
    """Such as that of a function with a memory of its own."""
    count = 0.0

    def f(x: Tensor) -> list[Tensor]:
        nonlocal count
        count += 1
        return [x * count]

    g, x = traced_step.replayed(f, 2), torch.ones(3)
    assert [float(g(x)[0][0]) for _ in range(5)] == [1, 2, 4, 5, 6]  # one count was the trace's


def test_what_cannot_be_traced_goes_on_plainly() -> None:
    def branching(x: Tensor) -> list[Tensor]:
        return [x + 1 if float(x.sum()) > 0 else x - 1]

    f = traced_step.replayed(branching, after=2)
    for sign in (1.0, 1.0, 1.0, -1.0):
        x = torch.full((3,), sign)
        assert torch.equal(f(x)[0], x + sign)
