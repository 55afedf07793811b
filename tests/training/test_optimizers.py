"""Every registered optimizer against torch.optim, or an oracle of its own, step by step; SAM around each of them.

A new optimizer is demanded here: it needs an oracle in ORACLES and settings in TRIED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import settings_of
from torch import Tensor

from landscape_cli import training
from landscape_cli.config import Training
from landscape_cli.registry import REGISTRY, Entry, Fault
from landscape_cli.training import optimizers
from landscape_cli.training.sharpness_aware import ascended

Params = dict[str, Tensor]
SHAPES = {"a": (4, 5), "b": (6,), "c": ()}
K, STEPS = 3, 12
Oracle = Callable[[list[Tensor], Training], Callable[[list[Tensor]], None]]  # parameters -> a step, given gradients


def torchs(name: str, *same: str, **renamed: str) -> Oracle:
    """The step of one of torch.optim's; settings under their own names, or as `renamed` says."""

    def of(params: list[Tensor], s: Training) -> Callable[[list[Tensor]], None]:
        given = {there: getattr(s, here) for here, there in ({k: k for k in same} | renamed).items()}
        if hasattr(s, "beta1") and name.startswith("Adam"):
            given["betas"] = (s.beta1, s.beta2)
        optimizer = getattr(torch.optim, name)(params, s.lr, **given)

        def step(gradients: list[Tensor]) -> None:
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            optimizer.step()

        return step

    return of


ORACLES: dict[str, Oracle] = {  # of each optimizer; one without a peer brings a step written out
    "sgd": torchs("SGD", "momentum", "nesterov", "weight_decay"),
    "adam": torchs("Adam", "weight_decay", epsilon="eps"),
    "adamw": torchs("AdamW", "weight_decay", epsilon="eps"),
    "rmsprop": torchs("RMSprop", "alpha", "centered", "momentum", "weight_decay", epsilon="eps"),
}
TRIED: dict[str, list[dict[str, Any]]] = {  # each with settings that are used by it all, one by one and together
    "sgd": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "adam": [{}, {"weight_decay": 0.1}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-2}],
    "adamw": [{}, {"weight_decay": 0.1}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-2, "weight_decay": 0.5}],
    "rmsprop": [{}, {"centered": True}, {"alpha": 0.5, "epsilon": 1e-2, "momentum": 0.9, "weight_decay": 0.1}],
}
CASES = [(name, own) for name, all_own in TRIED.items() for own in all_own]


def test_every_optimizer_is_tried_with_all_its_settings() -> None:
    entries = {n: e for n, e in REGISTRY["optimizer"].items() if e.built_in}
    assert ORACLES.keys() == TRIED.keys() == entries.keys(), "a new optimizer needs an oracle and settings here"
    for name, entry in entries.items():
        assert {key for own in TRIED[name] for key in own} == {*entry.settings.model_fields}, name


def start(seed: int = 0) -> Params:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(K, *shape, generator=rng, dtype=torch.float64) for n, shape in SHAPES.items()}


def gradient_at(params: Params) -> list[Tensor]:
    """That of a loss that is not quadratic, sum of sin(3 w) + w^2, each entry for itself."""
    return [3 * torch.cos(3 * w) + 2 * w for w in params.values()]


def trained(settings: list[Training], steps: int = STEPS) -> Params:
    state = training.begin(start(), settings[0])
    ascents = [s.ascent for s in settings]
    for _ in range(steps):
        gradient = gradient_at(state.params)
        if ascents[0]:
            gradient = gradient_at(ascended(state, ascents, gradient))
        optimizers.update(state, settings, gradient, 1.0)
        state.step += 1
    return state.params


def by_hand(row: int, s: Training, steps: int = STEPS) -> list[Tensor]:
    """One run, by its oracle; sharpness-aware by Foret et al. 2021, algorithm 1, and Kwon et al. 2021 with eta = 0."""
    params = [w[row].clone() for w in start().values()]
    step = ORACLES[s.rule](params, s)
    for _ in range(steps):
        at = params
        if s.ascent:
            g = gradient_at(dict(enumerate(params)))
            scale = [w.abs() if s.ascent.adaptive else torch.ones_like(w) for w in params]
            norm = sum(((t * a) ** 2).sum() for t, a in zip(scale, g, strict=True)) ** 0.5
            at = [w + s.ascent.rho * t**2 * a / norm for w, t, a in zip(params, scale, g, strict=True)]
        step(gradient_at(dict(enumerate(at))))
    return params


def assert_alike(found: Params, settings: list[Training]) -> None:
    for row, s in enumerate(settings):
        for w, due in zip(found.values(), by_hand(row, s), strict=True):
            torch.testing.assert_close(w[row], due, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "own"), CASES)
def test_steps_are_those_of_the_oracle(name: str, own: dict[str, Any]) -> None:
    assert_alike(
        trained([settings_of(optimizer=name, lr=0.02, **own)] * K), [settings_of(optimizer=name, lr=0.02, **own)] * K
    )


@pytest.mark.parametrize(("name", "own"), CASES)
def test_each_setting_changes_the_steps(name: str, own: dict[str, Any]) -> None:
    """Teeth: an oracle and an optimizer that both forgot one would agree."""
    found = trained([settings_of(optimizer=name, lr=0.02, **own)] * K)
    for key in own:
        less = trained([settings_of(optimizer=name, lr=0.02, **{k: v for k, v in own.items() if k != key})] * K)
        assert (found["a"] - less["a"]).abs().max() > 1e-4, key


@pytest.mark.parametrize("name", ORACLES)
def test_runs_with_settings_of_their_own(name: str) -> None:
    """What is `PerRun`, and lr, may differ inside a stack: each run is then what it is by itself."""
    values: dict[str, list[float]] = {"momentum": [0.0, 0.9, 0.3], "weight_decay": [0.1, 0.0, 0.4]}
    free = REGISTRY["optimizer"][name].per_run
    assert set(free) <= values.keys(), "give values for the new setting"
    shared = TRIED[name][-1]
    settings = [
        settings_of(optimizer=name, lr=lr, **shared | {key: values[key][row] for key in free})
        for row, lr in enumerate((0.01, 0.02, 0.05))
    ]
    if shared.get("nesterov"):
        settings = [s.model_copy(update={"nesterov": False}) for s in settings]  # torch takes none without momentum
    assert_alike(trained(settings), settings)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_sharpness_aware_goes_around_each(name: str, adaptive: bool) -> None:
    """Each run with its own rho, against the published algorithm around the oracle."""
    settings = [
        settings_of(optimizer=name, lr=0.02, sharpness_aware={"rho": rho, "adaptive": adaptive}, **TRIED[name][-1])
        for rho in (0.05, 0.1, 0.5)
    ]
    found = trained(settings)
    assert_alike(found, settings)
    plain = trained([settings_of(optimizer=name, lr=0.02, **TRIED[name][-1])] * K)
    assert (found["a"] - plain["a"]).abs().flatten(1).max(1).values.min() > 1e-4  # teeth: the step up matters


@pytest.mark.parametrize("name", ORACLES)
def test_a_run_goes_on_when_others_leave(name: str) -> None:
    settings = [settings_of(optimizer=name, lr=lr, **TRIED[name][-1]) for lr in (0.01, 0.02, 0.05)]
    state = training.begin(start(), settings[0])
    for t in range(STEPS):
        if t == 5:
            state.keep([0, 2])
        optimizers.update(state, settings, gradient_at(state.params), 1.0)
        state.step += 1
    whole = trained(settings)
    for n, w in state.params.items():
        assert torch.equal(w, whole[n][[0, 2]])


def test_two_optimizers_say_the_same_of_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the YAML means one thing: another default, or a name that training has for itself, is refused."""

    def other(at: Any, *, epsilon: float = 1e-3) -> None:
        """Another default."""

    def taken(at: Any, *, decay: float = 0.5) -> None:
        """The schedule's word."""

    def bare(at: Any, *, boost: float) -> None:
        """No default."""

    for function, key in ((other, "epsilon"), (taken, "decay"), (bare, "boost")):
        name = function.__name__
        with monkeypatch.context() as patch:
            patch.setitem(REGISTRY["optimizer"], name, Entry(name, "optimizer", function))
            due = f"optimizer {name}: setting {key}: needs a default, and a name of its own or the type and default of"
            with pytest.raises(Fault, match=due):
                settings_of()
