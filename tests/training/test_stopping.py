"""Early stopping against the loop that one writes by hand, run by run, across a stop, and in its messages."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import begin, build_module, settings_of, some_data

from landscape_cli import config, training
from landscape_cli.config import Run, Training
from landscape_cli.data.datasets import Data
from landscape_cli.experiment import session, stacks
from landscape_cli.registry.errors import Fault
from landscape_cli.training import Outcome, State

MLP: dict[str, Any] = {"name": "mlp", "hidden": [7]}
NORMED: dict[str, Any] = {**MLP, "batchnorm": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # model, training, stop
    "sgd": (MLP, {"momentum": 0.9}, {}),
    "adam, by accuracy": (MLP, {"optimizer": "adam", "lr": 0.02}, {"score": "accuracy", "patience": 20}),
    "full batch": (MLP, {"batch_size": "full", "lr": 1.0}, {}),
    "every third epoch": (MLP, {"momentum": 0.9}, {"check_every": 3, "patience": 2}),
    "batch norm": (NORMED, {"lr": 0.1}, {}),
}
SEEDS = [0, 1, 2, 3]


def held() -> Data:
    """Forty samples to train on and twenty, of the same kind, to stop by."""
    valid = some_data(20, seed=1)
    return replace(some_data(40), x_valid=valid.x_train, y_valid=valid.y_train)


def settings(case: str, **stop: Any) -> Training:
    _, own, ends = CASES[case]
    return settings_of(**own, stop={"patience": 5, "max_epochs": 400, **ends, **stop})


def go(case: str, seeds: list[int], state: State | None = None, **options: Any) -> dict[int, Outcome]:
    own, data = [settings(case, **options.pop("stop", {}))] * len(seeds), held()
    net, fresh, buffers = begin(CASES[case][0], data, own, seeds)
    return {o.row: o for o in training.train(net, data, own, seeds, state or fresh, buffers, **options)}


def by_hand(model: dict[str, Any], data: Data, s: Training, seed: int) -> tuple[Any, int, int]:
    """The best module, its epoch, and the epoch at which training ended."""
    assert data.x_valid is not None and data.y_valid is not None
    module, stop = build_module(model, data.input_shape, 3, seed).double(), s.stop
    if s.optimizer == "adam":
        optimizer: Any = torch.optim.Adam(module.parameters(), s.lr)
    else:
        optimizer = torch.optim.SGD(module.parameters(), s.lr, momentum=s.momentum)
    batch, least, waited = 40 if s.batch_size == "full" else s.batch_size, torch.inf, 0
    best, when = module, 0
    for epoch in range(stop.max_epochs + 1):
        if epoch % stop.check_every == 0:
            with torch.no_grad():
                logits = module(data.x_valid)
            wrong = (logits.argmax(1) != data.y_valid).double().mean()
            now = float(wrong if stop.score == "accuracy" else F.cross_entropy(logits, data.y_valid))
            if now < least:
                best, when, least, waited = copy.deepcopy(module), epoch, now, 0
            else:
                waited += 1
            if waited == stop.patience:
                return best, when, epoch
        order = torch.arange(40)
        if batch < 40:
            order = torch.randperm(40, generator=training.stream(seed, "shuffle", epoch))
        for index in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(module(data.x_train[index]), data.y_train[index]).backward()
            optimizer.step()
    raise AssertionError("the case is to end by patience")


@pytest.mark.parametrize("case", [c for c in CASES if c != "batch norm"])
def test_early_stopping_is_that_of_a_plain_loop(case: str) -> None:
    data, s = held(), settings(case)
    _, state, _ = begin(CASES[case][0], data, [s] * len(SEEDS), SEEDS)
    found, ends = go(case, SEEDS, state), set()
    per_epoch = 1 if s.batch_size == "full" else 4
    for row, seed in enumerate(SEEDS):
        module, epoch, end = by_hand(CASES[case][0], data, s, seed)
        outcome = found[row]
        assert (outcome.epochs, outcome.steps) == (epoch, per_epoch * epoch)
        assert (outcome.status, outcome.message) == ("ok", "")
        for name, p in module.named_parameters():
            torch.testing.assert_close(outcome.params[name][0], p.detach(), rtol=0, atol=1e-9)
        assert 0 < epoch < end == state.history[row]["epoch"][-1]  # it did not wait a look longer
        ends.add(end)
    assert len(ends) > 1  # they do not all leave together


@pytest.mark.parametrize("case", CASES)
def test_a_stack_stops_as_its_runs_alone(case: str) -> None:
    together = go(case, SEEDS)
    for row, seed in enumerate(SEEDS):
        (alone,) = go(case, [seed]).values()
        assert (together[row].epochs, together[row].steps) == (alone.epochs, alone.steps)
        for side in ("params", "buffers"):
            for name, t in getattr(alone, side).items():
                torch.testing.assert_close(getattr(together[row], side)[name], t, rtol=0, atol=1e-9)


class Stop(Exception):
    pass


@pytest.mark.parametrize("case", CASES)
def test_going_on_keeps_the_best_and_the_patience(case: str, tmp_path: Path) -> None:
    """Stopped at several epochs, before and after the best of a run and after one has left: the same bits."""
    whole, folder, tick = go(case, SEEDS), tmp_path, 0
    stack = [Run(f"s{k}", "all", k, {}, {}) for k in SEEDS]
    (folder / "stacks").mkdir()
    order = list(whole[0].params)

    def stop_at(at: int, state: State) -> None:
        nonlocal tick
        tick += 1
        if tick == at:
            stacks.save(folder, stack, state)
            raise Stop

    first = min(o.epochs for o in whole.values())
    last = max(o.epochs for o in whole.values())  # all are there for some epochs more
    for at in (1, first, first + 1, first + 4, last + 3):
        tick, found = 0, {}
        own, data = [settings(case)] * 4, held()
        net, fresh, buffers = begin(CASES[case][0], data, own, SEEDS)
        with pytest.raises(Stop):
            for o in training.train(net, data, own, SEEDS, fresh, buffers, lambda s, at=at: stop_at(at, s)):
                found[o.row] = o
        state = stacks.load(folder, stack, order, torch.device("cpu"), [])
        assert state is not None
        found |= go(case, SEEDS, state)
        for row, outcome in found.items():
            assert (outcome.epochs, outcome.status) == (whole[row].epochs, "ok")
            assert all(torch.equal(p, outcome.params[n]) for n, p in whole[row].params.items())


def test_a_limit_before_the_patience_ran_out_is_told() -> None:
    """The best so far is kept all the same, and is a run's only in name if nobody has waited."""
    data, s = held(), settings("sgd")
    whole = go("sgd", SEEDS)
    limit = whole[0].epochs + 2
    short = go("sgd", [0], stop={"max_epochs": limit})[0]
    assert short.status == "not_converged" and short.epochs == whole[0].epochs
    assert short.message == (
        f"the best validation loss was 2 looks ago, not yet stop.patience=5, at max_epochs={limit}: raise it"
    )
    assert all(torch.equal(p, short.params[n]) for n, p in go("sgd", [0])[0].params.items())
    steps = go("sgd", [0], stop={"max_steps": 4 * whole[0].epochs + 3})[0]  # in the middle of an epoch
    assert steps.message.endswith(f"at max_steps={4 * whole[0].epochs + 3}: raise it")
    assert s.stop.patience == 5 and data.x_valid is not None


def test_a_run_that_diverges_leaves_as_ever() -> None:
    data = held()
    own = [settings("sgd"), settings("sgd").model_copy(update={"lr": 1e300})]
    net, state, buffers = begin(MLP, data, own, [0, 1])
    found = {o.row: o for o in training.train(net, data, own, [0, 1], state, buffers)}
    assert found[1].status == "diverged" and torch.isfinite(found[1].params["1.weight"]).all()
    (alone,) = go("sgd", [0]).values()
    assert found[0].epochs == alone.epochs and found[0].status == "ok"


def test_snapshots_are_what_they_were_at_their_epoch() -> None:
    own, data = settings("sgd").model_copy(update={"snapshots": [2]}), held()
    plain = settings_of(momentum=0.9, stop={"max_epochs": 2})
    net, state, buffers = begin(MLP, data, [own], [0])
    kept = next(o for o in training.train(net, data, [own], [0], state, buffers) if o.epoch == 2)
    net, state, buffers = begin(MLP, data, [plain], [0])
    (due,) = training.train(net, data, [plain], [0], state, buffers)
    assert all(torch.equal(p, kept.params[n]) for n, p in due.params.items())


def test_patience_needs_samples_to_look_at() -> None:
    own, data = [settings("sgd")], some_data(40)
    net, state, buffers = begin(MLP, data, own, [0])
    with pytest.raises(Fault, match=r"^training\.stop\.patience: no samples are held out: set dataset\.validation$"):
        list(training.train(net, data, own, [0], state, buffers))


def test_defaults_leave_run_ids_as_they_were(tmp_path: Path) -> None:
    """Runs that hold nothing out know nothing of it; those that do are others."""
    text = "name: t\ndataset: {name: digits%s}\nmodel: {name: linear}\ntraining: {lr: 1, batch_size: 10, stop: {%s}}\n"

    def run(dataset: str, stop: str) -> Run:
        (tmp_path / "t.yaml").write_text(text % (dataset, stop))
        return config.expand(session.resolve(config.read(str(tmp_path / "t.yaml"))))[0]

    plain = run("", "max_epochs: 9")
    assert set(plain.settings.hashed["training"]["stop"]) == {"train_loss", "max_epochs", "max_steps", "check_every"}
    assert "validation" not in plain.settings.hashed["dataset"]
    same = run(", validation: 0.0", "max_epochs: 9, patience: null, score: loss")
    held_out, patient = (
        run(", validation: 0.1", "max_epochs: 9"),
        run(", validation: 0.1", "max_epochs: 9, patience: 5"),
    )
    assert plain.run_id == same.run_id
    assert len({plain.run_id, held_out.run_id, patient.run_id}) == 3
