"""SAM on a stack against the published algorithm written out for one module, and against itself run by run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import begin, build_module, settings_of, some_data
from torch import Tensor, nn

from landscape_cli import registry, store, training
from landscape_cli.config import Run, Training
from landscape_cli.data.datasets import Data
from landscape_cli.experiment import stacks
from landscape_cli.network import memory
from landscape_cli.training import Outcome, State
from landscape_cli.training.sharpness_aware import ascended

Settings = dict[str, Any]
MLP = {"name": "mlp", "hidden": [7]}
NORMED = {"name": "mlp", "hidden": [7], "batchnorm": True}
DROPPING = {"name": "dropping"}
RECIPES: dict[str, tuple[Settings, Settings]] = {
    "plain": (MLP, {}),
    "partial last batch": (MLP, {"batch_size": 7}),
    "momentum, decay": (MLP, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov, decay": (MLP, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "rho": 0.3}),
    "full": (MLP, {"batch_size": "full", "momentum": 0.9, "weight_decay": 0.01}),
    "smoothing, full": (MLP, {"batch_size": "full", "label_smoothing": 0.2}),
    "batch norm": (NORMED, {"momentum": 0.9}),
    "batch norm, full": (NORMED, {"batch_size": "full"}),
    "cnn": ({"name": "cnn", "channels": [4], "batchnorm": True}, {"momentum": 0.5}),
    "dropout": (DROPPING, {"momentum": 0.5}),
}


class Mask(nn.Module):
    """Dropout whose mask is drawn before a step, from the generator of that run and step."""

    def forward(self, x: Tensor) -> Tensor:
        rng = training.stream(*self.key)  # the same for both passes of a step
        return x * (torch.rand(x.shape, generator=rng, dtype=x.dtype) >= 0.5) / 0.5


@pytest.fixture(autouse=True)
def dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))

    monkeypatch.setitem(registry.REGISTRY["model"], "dropping", registry.Entry("dropping", "model", net))


def data_for(model: Settings, n: int = 37) -> Data:
    return some_data(n, (2, 6, 6) if model["name"] == "cnn" else (6,))


def by_hand(model: Settings, data: Data, s: Training, seed: int, epochs: int) -> nn.Module:
    """Foret et al. 2021, algorithm 1 (Kwon et al. 2021, algorithm 1 with eta = 0 if adaptive), around torch's SGD."""
    module = build_module(model, data.input_shape, data.num_classes, seed).double().train()
    masks = [i for i, layer in enumerate(module.children()) if isinstance(layer, nn.Dropout)]
    for i in masks:
        module[i] = Mask()
    params, n, step = list(module.parameters()), len(data.y_train), 0
    rest = {k: getattr(s, k) for k in ("momentum", "nesterov", "weight_decay")}
    optimizer, batch = torch.optim.SGD(params, s.lr, **rest), n if s.batch_size == "full" else s.batch_size
    for epoch in range(epochs):
        order = torch.randperm(n, generator=training.stream(seed, "shuffle", epoch))
        for index in order.split(batch):
            for i in masks:
                module[i].key = (seed, "dropout", step)

            def backward(index: Tensor = index) -> None:
                optimizer.zero_grad()
                logits = module(data.x_train[index])
                F.cross_entropy(logits, data.y_train[index], label_smoothing=s.label_smoothing).backward()

            backward()
            before = [p.detach().clone() for p in params]
            with torch.no_grad():
                scale = [p.abs() if s.adaptive else torch.ones_like(p) for p in params]
                norm = sum(((t * p.grad) ** 2).sum() for t, p in zip(scale, params, strict=True)) ** 0.5
                for t, p in zip(scale, params, strict=True):
                    p += s.rho * t**2 * p.grad / norm
            backward()
            with torch.no_grad():
                for p, old in zip(params, before, strict=True):
                    p.copy_(old)
            optimizer.step()
            step += 1
    return module


def flat(params: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params.values()])


def weights(module: nn.Module) -> Tensor:
    return flat(dict(module.named_parameters()))


def run(model: Settings, data: Data, settings: list[Training], seeds: list[int]) -> dict[int, Outcome]:
    net, state, buffers = begin(model, data, settings, seeds)
    return {o.row: o for o in training.train(net, data, settings, seeds, state, buffers)}


def sam(adaptive: bool, **changes: Any) -> Settings:
    return settings_of(optimizer="sam", adaptive=adaptive, **{"rho": 0.5 if adaptive else 0.1} | changes)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_are_those_of_the_published_algorithm(recipe: str, adaptive: bool) -> None:
    model, own = RECIPES[recipe]
    data, s = data_for(model), sam(adaptive, **own, stop={"max_epochs": 4})
    together = run(model, data, [s] * 2, [5, 8])
    for row, seed in enumerate([5, 8]):
        there = weights(by_hand(model, data, s, seed, 4))
        assert (flat(together[row].params) - there).abs().max() < 1e-10
    sgd = settings_of(**{k: v for k, v in own.items() if k != "rho"}, stop={"max_epochs": 4})
    (plain,) = run(model, data, [sgd], [8]).values()
    assert (flat(plain.params) - there).abs().max() > 1e-4  # teeth: the step up matters


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("batch_size", [10, "full"])
def test_rho_may_differ_inside_a_stack(batch_size: Any, adaptive: bool) -> None:
    data, rhos = some_data(40), [0.05, 0.5, 0.2]
    settings = [sam(adaptive, batch_size=batch_size, rho=r, stop={"max_epochs": 20}) for r in rhos]
    together = run(MLP, data, settings, [4, 4, 4])
    for row, s in enumerate(settings):
        (alone,) = run(MLP, data, [s], [4]).values()
        assert (flat(together[row].params) - flat(alone.params)).abs().max() < 1e-10
    assert (flat(together[0].params) - flat(together[1].params)).abs().max() > 1e-3


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_step_up_has_length_rho_in_its_own_norm(adaptive: bool) -> None:
    """|d| = rho, or |T^-1 d| = rho with T = |w|; a run without a gradient, and a weight at 0, stay where they are."""
    rng = torch.Generator().manual_seed(0)
    w = {n: torch.randn(3, *s, generator=rng, dtype=torch.float64) for n, s in {"a": (4, 5), "b": (6,)}.items()}
    g = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in w.values()]
    w["b"][0, 2], g[0][1], g[1][1] = 0, 0, 0
    settings = [sam(adaptive, rho=r) for r in (0.1, 0.2, 0.3)]
    above = ascended(training.begin(w, settings[0]), [s.ascent for s in settings], g)
    d = torch.cat([(above[n] - w[n]).flatten(1) for n in w], 1)
    scale = torch.cat([p.flatten(1).abs() for p in w.values()], 1) if adaptive else torch.ones_like(d)
    assert torch.equal(d[1], torch.zeros_like(d[1]))
    if adaptive:
        assert above["b"][0, 2] == 0
    length = torch.where(scale > 0, d / scale, 0).norm(dim=1)
    torch.testing.assert_close(length[[0, 2]], torch.tensor([0.1, 0.3], dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_free_loss_of_a_full_batch_is_that_before_the_step_up() -> None:
    data = some_data(40)
    s = sam(False, batch_size="full", lr=0.5, stop={"train_loss": 0.8, "max_epochs": 500})
    outcomes = run(MLP, data, [s] * 3, [0, 1, 2])
    assert len({o.epochs for o in outcomes.values()}) > 1  # they do not all leave together
    for seed, outcome in outcomes.items():
        module, before = (by_hand(MLP, data, s, seed, outcome.epochs - back) for back in (0, 1))
        after, one_less = (float(F.cross_entropy(m(data.x_train), data.y_train).detach()) for m in (module, before))
        assert after <= 0.8 < one_less
        assert (flat(outcome.params) - weights(module)).abs().max() < 1e-10


@pytest.mark.parametrize("batch_size", [10, "full"])
def test_snapshots(batch_size: Any) -> None:
    data, s = some_data(40), sam(True, batch_size=batch_size, snapshots=[0, 2], stop={"max_epochs": 4})
    net, state, buffers = begin(MLP, data, [s] * 2, [0, 1])
    kept = [o for o in training.train(net, data, [s] * 2, [0, 1], state, buffers) if o.epoch is not None]
    assert [(o.row, o.epoch) for o in kept] == [(0, 0), (1, 0), (0, 2), (1, 2)]
    for outcome in kept:
        module = by_hand(MLP, data, s, outcome.row, outcome.epochs)
        assert (flat(outcome.params) - weights(module)).abs().max() < 1e-10


def test_divergence_touches_nobody_else() -> None:
    data = some_data(40)
    calm, wild = (sam(False, lr=lr, stop={"max_epochs": 60}) for lr in (0.05, 1e300))
    mixed = run(MLP, data, [calm, wild, calm], [0, 1, 2])
    assert [mixed[row].status for row in range(3)] == ["ok", "diverged", "ok"]
    (alone,) = run(MLP, data, [calm], [2]).values()
    assert (flat(mixed[2].params) - flat(alone.params)).abs().max() < 1e-10


class Stop(Exception):
    pass


@pytest.mark.parametrize("case", ["minibatches", "full", "dropout", "batch norm"])
def test_going_on_gives_the_same_bits(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within an epoch, and going on from the file: parameters, and the history with its test losses."""
    model = {"dropout": DROPPING, "batch norm": NORMED}.get(case, MLP)
    data, seeds, folder = some_data(40), [0, 1, 2], store.open_folder(tmp_path, "exp")
    monkeypatch.setattr(memory, "BLOCK", 3 * 10 * 6 * 8)  # one step a block: a tick between any two steps
    own = {"batch_size": "full", "lr": 0.5} if case == "full" else {}
    settings = [sam(False, momentum=0.5, **own, rho=r, stop={"max_epochs": 12}) for r in (0.05, 0.1, 0.2)]
    stack = [Run(f"s{k}", "all", k, {}, s) for k, s in enumerate(settings)]  # their names are all that is asked for

    def go(state: State | None, at: int) -> tuple[State, dict[int, Outcome]]:
        net, fresh, buffers = begin(model, data, settings, seeds)
        state, ticks = state or fresh, 0

        def tick(state: State) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == at:
                stacks.save(folder, stack, state)
                raise Stop

        return state, {o.row: o for o in training.train(net, data, settings, seeds, state, buffers, tick)}

    whole, expected = go(None, 0)
    with pytest.raises(Stop):
        go(None, 6)
    saved = stacks.load(folder, stack, list(whole.params), torch.device("cpu"), [])
    assert saved is not None and saved.step == 6
    resumed, found = go(saved, 0)
    for row, outcome in expected.items():
        assert all(torch.equal(p, found[row].params[n]) for n, p in outcome.params.items())
    assert resumed.history == whole.history and len(whole.history[0]["test_loss"]) == 13  # epochs 0 to 12
