"""Who is trained with whom, and going on from a saved state to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import begin, settings_of, some_data
from torch import nn

from landscape_cli import config, store, training
from landscape_cli.config import Run
from landscape_cli.data.datasets import Data
from landscape_cli.experiment import stacks
from landscape_cli.network import memory
from landscape_cli.training import Outcome, State

CPU = torch.device("cpu")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "momentum": ({"name": "mlp", "hidden": [7]}, {"momentum": 0.9, "nesterov": True, "lr": 0.01}),
    "adam": ({"name": "mlp", "hidden": [7]}, {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01}),
    "full": ({"name": "mlp", "hidden": [7]}, {"batch_size": "full", "lr": 0.5}),
    "batch norm": ({"name": "mlp", "hidden": [7], "batchnorm": True}, {"lr": 0.02}),
}


def runs(count: int, **training: Any) -> list[Run]:
    dataset, model = config.section("dataset", name="digits"), config.section("model", name="linear")
    settings = config.Settings(dataset, model, settings_of(**training), "float32")
    return [Run(f"s{k}", "all", k, {}, settings) for k in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store.open_folder(tmp_path / "results", "exp")


class Stop(Exception):
    pass


def go(case: str, data: Data, stop: dict[str, Any], folder: Path, state: State | None, at: int) -> Iterator[Outcome]:
    """Three runs from a state; the state is saved, and training stopped, at the `at`-th tick."""
    model, own = CASES[case]
    settings, stack = [settings_of(**own, stop=stop)] * 3, runs(3)
    net, fresh, buffers = begin(model, data, settings, [0, 1, 2])
    ticks = 0

    def tick(state: State) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == at:
            stacks.save(folder, stack, state)
            raise Stop

    yield from training.train(net, data, settings, [0, 1, 2], state or fresh, buffers, tick)


def names(case: str, data: Data) -> list[str]:
    model, own = CASES[case]
    return list(begin(model, data, [settings_of(**own)], [0])[1].params)


@pytest.mark.parametrize("case", CASES)
def test_going_on_gives_the_same_bits(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at several ticks, most within an epoch, some after a run has left, and going on from the file."""
    data = some_data(40)
    monkeypatch.setattr(memory, "BLOCK", 3 * 10 * 6 * 8)  # one step a block: a tick between any two steps
    stop = {"train_loss": 0.85, "max_epochs": 30}
    whole = {o.row: o for o in go(case, data, stop, folder, None, 0)}
    assert len({o.steps for o in whole.values()}) > 1  # one leaves before the others
    first_out = min(o.steps for o in whole.values())
    for at in (1, 2, 6, first_out + 1):
        found: dict[int, Outcome] = {}
        with pytest.raises(Stop):
            for outcome in go(case, data, stop, folder, None, at):
                found[outcome.row] = outcome
        state = stacks.load(folder, runs(3), names(case, data), CPU, [])
        assert state is not None and list(state.params) == names(case, data)
        assert state.step == at
        left = set(found)
        found |= {o.row: o for o in go(case, data, stop, folder, state, 0)}
        assert set(found) == {0, 1, 2} and (at <= first_out or left)
        for row, outcome in found.items():
            assert (outcome.steps, outcome.status) == (whole[row].steps, whole[row].status)
            for name, p in whole[row].params.items():
                assert torch.equal(p, outcome.params[name])
            for name, b in whole[row].buffers.items():
                assert torch.equal(b, outcome.buffers[name])
        stacks.finish(folder, runs(3))
        assert not list((folder / "stacks").iterdir())


def a_state(step: int) -> State:
    p = {"b": torch.full((2, 3), float(step)), "a": torch.ones(2, 1)}
    history = [{"epoch": [0.0], "step": [0.0], "train_loss": [1 / 3]}, {"epoch": [], "step": [], "train_loss": []}]
    return State(p, [0, 2], step, [{n: t + 1 for n, t in p.items()}], copy.deepcopy(p), history, [0.1, 0.2, 0.3])


def test_a_state_survives_the_file(folder: Path) -> None:
    stacks.save(folder, runs(3), a_state(5))
    back = stacks.load(folder, runs(3), ["b", "a"], CPU, [])
    assert back is not None
    due = a_state(5)
    for a, b in ((back.params, due.params), (back.finite, due.finite), (back.moments[0], due.moments[0])):
        assert list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in b)
    rest = ("active", "step", "history", "seconds")
    assert [getattr(back, k) for k in rest] == [getattr(due, k) for k in rest]


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(folder: Path, harm: str) -> None:
    stack = runs(3)
    for step in (5, 900, 10_000):
        stacks.save(folder, stack, a_state(step))
    kept = sorted((folder / "stacks").glob("*.safetensors"))
    assert len(kept) == 2  # the two newest
    data = bytearray(kept[1].read_bytes())
    data[-3] ^= 1
    kept[1].write_bytes({"flip": bytes(data), "truncate": bytes(data[: len(data) // 2]), "empty": b""}[harm])
    warnings: list[str] = []
    back = stacks.load(folder, stack, ["b", "a"], CPU, warnings)
    assert back is not None and back.step == 900
    assert warnings == [f"{kept[1]}: damaged (its hash differs); going on from the state before it"]
    kept[0].write_bytes(b"")
    assert stacks.load(folder, stack, ["b", "a"], CPU, []) is None


def plan(folder: Path, wanted: list[Run], done: list[str], company: list[str] | None = None) -> list[list[str]]:
    found = stacks.plan(
        folder, wanted, dict.fromkeys(done, company or done), lambda run: nn.Linear(2, 2), lambda run: (100, 2)
    )
    return [[run.run_id for run in stack] for stack in found]


def test_plan(folder: Path) -> None:
    wanted = runs(40)
    assert [len(s) for s in plan(folder, wanted, [])] == [32, 8]  # at most 32 together, in order
    assert plan(folder, wanted, [r.run_id for r in wanted]) == []
    stacks.start(folder, wanted[:4])
    together = ["s0", "s1", "s2", "s3"]
    assert plan(folder, wanted[:6], ["s0", "s1"], together) == [
        ["s0", "s1", "s2", "s3"],
        ["s4", "s5"],
    ]  # they meet again
    assert plan(folder, wanted[:6], together) == [["s4", "s5"]]
    assert plan(folder, wanted[:3], []) == [["s0", "s1", "s2"]]  # the config no longer holds s3
    for path in (folder / "stacks").glob("*.json"):
        path.write_text('{"runs": 3')
    assert plan(folder, wanted[:3], []) == [["s0", "s1", "s2"]]


def test_only_alike_runs_meet(folder: Path) -> None:
    """Learning rates may differ in a stack, batch sizes not."""
    a, b = runs(2), [Run(f"b{r.run_id}", "all", r.seed, {}, r.settings) for r in runs(2, lr=0.7)]
    c = [Run(f"c{r.run_id}", "all", r.seed, {}, r.settings) for r in runs(2, batch_size=20)]
    assert plan(folder, a + b + c, []) == [["s0", "s1", "bs0", "bs1"], ["cs0", "cs1"]]


def test_a_stack_begun_in_larger_company_leaves_finished_runs_alone(folder: Path) -> None:
    """--seeds 3 stopped, --seeds 2 finished, --seeds 3 again: the two that are done must keep their bits."""
    wanted = runs(3)
    stacks.start(folder, wanted)
    assert plan(folder, wanted, ["s0", "s1"]) == [["s2"]]
    assert plan(folder, wanted, ["s0", "s1"], ["s0", "s1", "s2"]) == [["s0", "s1", "s2"]]
