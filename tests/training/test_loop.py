"""SGD on a stack against PyTorch's own optimizers, against itself run by run, and its ways to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import begin, build_module, settings_of, some_data
from torch import Tensor, nn

from landscape_cli import registry, training
from landscape_cli.config import Training
from landscape_cli.curvature.objective import Objective, flatten
from landscape_cli.data.datasets import Data
from landscape_cli.training import Outcome, State, stopping
from landscape_cli.training.state import Stack

MLP = {"name": "mlp", "hidden": [7]}
NORMED = {"name": "mlp", "hidden": [7], "batchnorm": True}
CNN = {"name": "cnn", "channels": [4], "batchnorm": True}
Settings = dict[str, Any]


def run(
    model: Settings, data: Data, settings: list[Training], seeds: list[int], state: State | None = None, **options: Any
) -> dict[int, Outcome]:
    net, fresh, buffers = begin(model, data, settings, seeds)
    out = training.train(net, data, settings, seeds, state or fresh, buffers, **options)
    return {outcome.row: outcome for outcome in out if outcome.epoch is None}


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params.values()])


def distance(a: Outcome, b: Outcome) -> float:
    return float((flat(a.params) - flat(b.params)).abs().max())


RECIPES: dict[str, tuple[Settings, Settings]] = {
    "sgd": (MLP, {}),
    "partial last batch": (MLP, {"batch_size": 7}),
    "full": (MLP, {"batch_size": "full", "lr": 0.5}),
    "momentum": (MLP, {"momentum": 0.9}),
    "nesterov, decay": (MLP, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam, decay": (MLP, {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01}),
    "adam, own betas": (MLP, {"optimizer": "adam", "lr": 0.01, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-4}),
    "smoothing": (MLP, {"label_smoothing": 0.2}),
    "smoothing, full": (MLP, {"label_smoothing": 0.2, "batch_size": "full"}),
    "batch norm": (NORMED, {}),
    "batch norm, full": (NORMED, {"batch_size": "full"}),
    "cnn": (CNN, {"momentum": 0.5}),
}


def data_for(model: Settings, n: int = 40) -> Data:
    return some_data(n, (2, 6, 6) if model["name"] == "cnn" else (6,))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stack_equals_its_runs_alone(recipe: str) -> None:
    """A run's trajectory depends on its own settings and seed alone: 8 together against each alone, 200 steps."""
    model, own = RECIPES[recipe]
    data, seeds = data_for(model), list(range(8))
    settings = [settings_of(**own, stop={"max_epochs": 10_000, "max_steps": 200})] * 8
    together = run(model, data, settings, seeds)
    for row in (0, 3, 7):
        (alone,) = run(model, data, settings[:1], [seeds[row]]).values()
        assert together[row].steps == alone.steps == 200
        assert distance(together[row], alone) < 1e-9
        for name, buffer in alone.buffers.items():
            torch.testing.assert_close(together[row].buffers[name], buffer, rtol=0, atol=1e-9)
    assert distance(together[0], together[3]) > 1e-3  # teeth: runs do differ


def optimizer_of(s: Training, params: Any) -> torch.optim.Optimizer:
    if s.optimizer == "adam":
        betas = s.beta1, s.beta2
        return torch.optim.Adam(params, s.lr, betas, s.epsilon, weight_decay=s.weight_decay)
    rest = {k: getattr(s, k) for k in ("momentum", "nesterov", "weight_decay")}
    return torch.optim.SGD(params, s.lr, **rest)


def by_hand(model: Settings, data: Data, s: Training, seed: int, epochs: int, lr: Callable[[float, int], float]) -> Any:
    """The usual loop: torch.optim on one module in training mode; lr(epoch as a fraction, step)."""
    module = build_module(model, data.input_shape, data.num_classes, seed).double().train()
    optimizer, step, n = optimizer_of(s, module.parameters()), 0, len(data.y_train)
    batch = n if s.batch_size == "full" else s.batch_size
    for epoch in range(epochs):
        order = torch.randperm(n, generator=training.stream(seed, "shuffle", epoch))
        for start in range(0, n, batch):
            index = order[start : start + batch]
            optimizer.param_groups[0]["lr"] = lr(step / -(-n // batch), step)
            optimizer.zero_grad()
            logits = module(data.x_train[index])
            F.cross_entropy(logits, data.y_train[index], label_smoothing=s.label_smoothing).backward()
            optimizer.step()
            step += 1
    return module


@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_are_those_of_torch_optim(recipe: str) -> None:
    model, own = RECIPES[recipe]
    data, s = data_for(model, 37), settings_of(**own, stop={"max_epochs": 4})
    module = by_hand(model, data, s, 5, 4, lambda epoch, step: s.lr)
    (outcome,) = run(model, data, [s], [5]).values()
    assert (flat(outcome.params) - flat(dict(module.named_parameters()))).abs().max() < 1e-10


def loss_of(module: Any, data: Data) -> float:
    return float(F.cross_entropy(module(data.x_train), data.y_train).detach())


def cosine(epoch: float) -> float:
    return (1 + math.cos(math.pi * epoch / 6)) / 2


SCHEDULES: dict[str, tuple[Settings, Callable[[float, int], float]]] = {
    "linear": ({"lr_scaling": "linear", "lr_base_batch": 4}, lambda e, t: 10 / 4),
    "sqrt": ({"lr_scaling": "sqrt", "lr_base_batch": 4}, lambda e, t: math.sqrt(10 / 4)),
    "cosine": ({"schedule": "cosine"}, lambda e, t: cosine(e)),
    "step": ({"schedule": "step", "milestones": [2, 5], "decay": 0.2}, lambda e, t: 0.2 ** ((e >= 2) + (e >= 5))),
    "warm-up": ({"warmup_epochs": 1.5}, lambda e, t: (t + 1) / 6 if t < 6 else 1.0),
    "warm-up, cosine": (
        {"warmup_epochs": 1.0, "schedule": "cosine"},
        lambda e, t: (t + 1) / 4 if t < 4 else cosine(e),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    own, factor = SCHEDULES[name]
    data, s = some_data(40), settings_of(**own, stop={"max_epochs": 6})
    module = by_hand(MLP, data, s, 1, 6, lambda e, t: s.lr * factor(e, t))
    plain = by_hand(MLP, data, s, 1, 6, lambda e, t: s.lr)
    (outcome,) = run(MLP, data, [s], [1]).values()
    assert (flat(outcome.params) - flat(dict(module.named_parameters()))).abs().max() < 1e-10
    assert (flat(outcome.params) - flat(dict(plain.named_parameters()))).abs().max() > 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_settings_may_differ_inside_a_stack(optimizer: str) -> None:
    shared = {"optimizer": optimizer} | ({} if optimizer == "adam" else {"nesterov": True})
    own: list[Settings] = [{"lr": 0.01}, {"lr": 0.05, "weight_decay": 0.02}, {"lr": 0.002, "momentum": 0.9}]
    if optimizer == "adam":
        own = [{k: v for k, v in o.items() if k != "momentum"} for o in own]
    else:
        own = [{"momentum": 0.3} | o for o in own]
    settings, data = [settings_of(**shared, **o, stop={"max_epochs": 20}) for o in own], some_data(40)
    together = run(MLP, data, settings, [4, 4, 4])
    for row, s in enumerate(settings):
        (alone,) = run(MLP, data, [s], [4]).values()
        assert distance(together[row], alone) < 1e-10
    assert distance(together[0], together[1]) > 1e-3


def test_full_batch_with_its_free_loss_check_is_the_plain_way() -> None:
    """The loss that a full-batch step computes on its way stops runs at the epoch at which a second pass would."""
    data, goal = some_data(40), {"train_loss": 0.8, "max_epochs": 500}
    whole = settings_of(batch_size="full", lr=0.5, stop=goal)
    named = run(MLP, data, [settings_of(batch_size=40, lr=0.5, stop=goal)] * 3, [0, 1, 2])
    free = run(MLP, data, [whole] * 3, [0, 1, 2])
    assert len({o.epochs for o in free.values()}) > 1  # they do not all leave together
    for row in range(3):
        assert distance(free[row], named[row]) == 0
        module = by_hand(MLP, data, whole, row, free[row].epochs, lambda e, t: 0.5)
        before = by_hand(MLP, data, whole, row, free[row].epochs - 1, lambda e, t: 0.5)
        after, one_less = (loss_of(m, data) for m in (module, before))
        assert after <= 0.8 < one_less
        assert (flat(free[row].params) - flat(dict(module.named_parameters()))).abs().max() < 1e-10


@pytest.mark.parametrize("batch_size", [10, "full"])
def test_goal_reached(batch_size: Any) -> None:
    data = some_data(40)
    s = settings_of(batch_size=batch_size, lr=0.3, stop={"train_loss": 0.9, "max_epochs": 900, "check_every": 7})
    for outcome in run(MLP, data, [s] * 4, [0, 1, 2, 3]).values():
        assert (outcome.status, outcome.message) == ("ok", "")
        assert outcome.epochs % 7 == 0 and outcome.steps == outcome.epochs * (4 if batch_size == 10 else 1)


@pytest.mark.parametrize("batch_size", [10, "full"])
def test_limits_hold_whatever_check_every_says(batch_size: Any) -> None:
    data = some_data(40)
    stop = {"train_loss": 1e-9, "max_epochs": 5, "check_every": 3}
    (outcome,) = run(MLP, data, [settings_of(batch_size=batch_size, stop=stop)], [0]).values()
    assert outcome.epochs == 5
    assert outcome.status == "not_converged"
    assert outcome.message.endswith(" is above stop.train_loss=1e-09 at max_epochs=5: raise it")


def test_step_limit_in_the_middle_of_an_epoch() -> None:
    data = some_data(40)
    stop = {"train_loss": 1e-9, "max_epochs": 50, "max_steps": 6}
    (outcome,) = run(MLP, data, [settings_of(stop=stop)], [3]).values()
    assert (outcome.steps, outcome.epochs, outcome.status) == (6, 1, "not_converged")
    assert outcome.message.endswith(" is above stop.train_loss=1e-09 at max_steps=6: raise it")
    (free,) = run(MLP, data, [settings_of(stop={"max_epochs": 50, "max_steps": 6})], [3]).values()
    assert free.status == "ok" and distance(outcome, free) == 0


@pytest.mark.parametrize("stop", [{"max_epochs": 40}, {"max_epochs": 40, "max_steps": 2}, {"train_loss": 0.01}])
@pytest.mark.parametrize("batch_size", [10, "full"])
def test_divergence_is_noticed_and_touches_nobody_else(batch_size: Any, stop: Settings) -> None:
    """A run whose loss is no number leaves with finite parameters and a reason; the others go on to the same bits."""
    data, stop = some_data(40), {"max_epochs": 60} | stop
    calm = settings_of(batch_size=batch_size, lr=0.05, stop=stop)
    wild = settings_of(batch_size=batch_size, lr=1e300, stop=stop)
    mixed = run(MLP, data, [calm, wild, calm], [0, 1, 2])
    assert mixed[1].status == "diverged"
    assert mixed[1].message == "training loss nan: lower training.lr"
    assert torch.isfinite(flat(mixed[1].params)).all()
    start = flat(dict(build_module(MLP, data.input_shape, 3, 1).double().named_parameters()))
    assert (flat(mixed[1].params) - start).abs().max() < 1e-12  # the loss was finite at the start only
    for row in (0, 2):
        (alone,) = run(MLP, data, [calm], [row]).values()
        assert mixed[row].status == alone.status != "diverged"
        assert distance(mixed[row], alone) < 1e-10


def test_snapshots() -> None:
    data, s = some_data(40), settings_of(snapshots=[0, 2], stop={"max_epochs": 4})
    net, state, buffers = begin(MLP, data, [s] * 2, [0, 1])
    kept = [o for o in training.train(net, data, [s] * 2, [0, 1], state, buffers) if o.epoch is not None]
    assert [(o.row, o.epoch, o.epochs) for o in kept] == [(0, 0, 0), (1, 0, 0), (0, 2, 2), (1, 2, 2)]
    for outcome in kept:
        module = by_hand(MLP, data, s, outcome.row, outcome.epochs, lambda e, t: s.lr)
        assert (flat(outcome.params) - flat(dict(module.named_parameters()))).abs().max() < 1e-10


def test_history_and_time() -> None:
    data, s = some_data(40), settings_of(stop={"max_epochs": 12})
    net, state, buffers = begin(MLP, data, [s] * 2, [0, 1])
    (_, outcome) = training.train(net, data, [s] * 2, [0, 1], state, buffers)
    history = state.history[1]
    assert history["epoch"][:11] == list(range(11)) and history["epoch"][-1] == 12
    assert history["step"] == [4 * e for e in history["epoch"]]
    module = by_hand(MLP, data, s, 1, 12, lambda e, t: s.lr)
    assert history["train_loss"][-1] == pytest.approx(loss_of(module, data), abs=1e-10)
    test = Data(data.x_test, data.y_test, data.x_test, data.y_test, 3)
    assert history["test_loss"][-1] == pytest.approx(loss_of(module, test), abs=1e-10)
    assert len(history["test_loss"]) == len(history["epoch"])
    assert outcome.row == 1 and all(0 < t < 60 for t in state.seconds)


@pytest.mark.parametrize("model", [MLP, NORMED])
@pytest.mark.parametrize("batch_size", [10, "full"])
def test_the_last_losses_of_the_history_are_those_of_the_minimum(model: Settings, batch_size: Any) -> None:
    """In evaluation mode, each run at its own end, by a large test set's evenly spaced samples."""
    few, many = some_data(40), some_data(90, seed=1)
    data = Data(few.x_train, few.y_train, many.x_train, many.y_train, 3)
    s = settings_of(batch_size=batch_size, lr=0.1, stop={"train_loss": 0.8, "max_epochs": 2000})
    net, state, buffers = begin(model, data, [s] * 3, [0, 1, 2])
    outcomes = list(training.train(net, data, [s] * 3, [0, 1, 2], state, buffers))
    assert len(outcomes) == 3 and len({o.steps for o in outcomes}) > 1
    for o in outcomes:
        theta, history = flatten(o.params), state.history[o.row]
        for key, x, y in (
            ("train_loss", data.x_train, data.y_train),
            ("test_loss", data.x_test[::3], data.y_test[::3]),  # 30: at most the 40 that it trains on
        ):
            due = float(Objective(net, o.params, o.buffers, x, y).loss(theta))
            assert history[key][-1] == pytest.approx(due, abs=1e-10)
        assert history["step"][-1] == o.steps


def test_test_losses_are_asked_for_at_noted_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, evaluate = [], stopping.evaluate

    def counted(stack: Stack, state: State, split: str = "train") -> Tensor:
        asked.extend([state.step] if split == "test" else [])
        return evaluate(stack, state, split)

    monkeypatch.setattr(stopping, "evaluate", counted)
    data, s = some_data(40), settings_of(batch_size="full", stop={"max_epochs": 400})
    net, state, buffers = begin(MLP, data, [s] * 2, [0, 1])
    list(training.train(net, data, [s] * 2, [0, 1], state, buffers))
    assert asked == state.history[0]["step"] and len(asked) < 100


def test_a_state_of_an_older_version_goes_on_without_test_losses() -> None:
    data, s = some_data(40), settings_of(stop={"max_epochs": 5})
    net, state, buffers = begin(MLP, data, [s], [0])
    state.history = [{"epoch": [], "step": [], "train_loss": []}]
    (outcome,) = training.train(net, data, [s], [0], state, buffers)
    assert state.history[0]["epoch"] == [0, 1, 2, 3, 4, 5] and "test_loss" not in state.history[0]
    assert distance(outcome, run(MLP, data, [s], [0])[0]) == 0


def test_dropout_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes))

    entry = registry.Entry("dropping", "model", dropping)
    monkeypatch.setitem(registry.REGISTRY["model"], "dropping", entry)
    data, s = some_data(40), settings_of(stop={"max_epochs": 5})
    together = run({"name": "dropping"}, data, [s] * 4, [0, 1, 2, 3])
    (alone,) = run({"name": "dropping"}, data, [s], [2]).values()
    assert distance(together[2], alone) < 1e-10
    full = settings_of(batch_size="full", stop={"max_epochs": 5})
    whole = run({"name": "dropping"}, data, [full] * 2, [2, 2])
    assert distance(whole[0], whole[1]) == 0


@pytest.mark.parametrize(
    ("parameters", "batch", "positions", "size"),
    [(17_610, 10, 0, 32), (17_610, 1000, 0, 15), (270_000, 32, 64, 3), (270_000, 32, 1024, 1), (1, 1, 0, 32)],
)
def test_stack_size(parameters: int, batch: int, positions: int, size: int) -> None:
    assert training.stack_size(training.work_of(parameters, batch, positions)) == size


@pytest.mark.parametrize(
    ("parameters", "batch", "positions", "K", "threads"),
    [(64_870, 100, 0, 1, 1), (105_610, 100, 0, 1, None), (559, 100, 0, 2, None), (270_000, 32, 1024, 1, None)],
)
def test_threads(parameters: int, batch: int, positions: int, K: int, threads: int | None) -> None:
    assert training.threads(training.work_of(parameters, batch, positions), K) == threads


def test_a_last_batch_of_one_sample_is_normalized_to_its_shift() -> None:
    """31 samples in batches of 10: the last has no spread, which PyTorch's own layer refuses in training mode."""
    data, s = some_data(31), settings_of(batch_size=10, stop={"max_epochs": 1})
    model = {"name": "mlp", "hidden": [5], "batchnorm": True}
    (outcome,) = run(model, data, [s], [3]).values()
    module = build_module(model, data.input_shape, data.num_classes, 3).double()
    W, b, gamma, beta, V, c = module.parameters()
    order = torch.randperm(31, generator=training.stream(3, "shuffle", 0))
    for index in order.split(10):
        h = data.x_train[index] @ W.T + b
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * gamma + beta
        loss = F.cross_entropy(h.relu() @ V.T + c, data.y_train[index])
        for p, g in zip(module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True):
            p.data -= s.lr * g
    for name, p in module.named_parameters():
        torch.testing.assert_close(outcome.params[name][0], p.detach(), rtol=1e-9, atol=1e-12)
