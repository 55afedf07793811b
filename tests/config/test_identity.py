"""Run ids: those of the first version for ever, whatever settings came since; and what makes a run another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from pydantic import create_model

from landscape_cli import config
from landscape_cli.config import Settings, identity, schema
from landscape_cli.experiment import cell_records, stacks
from landscape_cli.registry import REGISTRY, Entry

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "run_ids.json").read_text())
MLP = {"name": "mlp", "hidden": [9]}


def ids(name: str, *sets: str) -> list[str]:
    experiment = config.resolve(config.read(name, ["seeds=2", *sets]))
    return [run.run_id for run in config.expand(experiment)]


@pytest.mark.parametrize("name", config.shipped())
def test_runs_have_the_ids_that_the_first_version_gave_them(name: str) -> None:
    """The shipped configs, each with settings of every kind: SAM, patience, augmentation, schedules, precision."""
    cases = {case: due for case, due in GOLDEN.items() if case.split()[0] == name}
    assert cases
    for case, due in cases.items():
        assert ids(*case.split()) == due.split(), case


def settings(training: Any = None, **given: Any) -> Settings:
    training = training or config.section("training", lr=0.1, batch_size=10)
    dataset, model = config.section("dataset", name="digits"), config.section("model", **given.get("model", MLP))
    return Settings(dataset, model, training, "float32")


def keys(of: Settings) -> tuple[str, str, str]:
    """The run id, the key of a cell, and the key of the stacks that the run may be in."""
    run = config.Run("", "all", 0, {}, of)
    return identity.run_id_of({}, of, 0), cell_records.key_of(of, ("weight_norm", {})), stacks.shape_key(run)


def with_field(section: Any, **values: Any) -> Any:
    """The section, of a class that has one more setting, `later: int = 3`."""
    more = create_model(type(section).__name__, __base__=type(section), later=(int, 3))
    return more.model_validate(section.model_dump() | values)


def test_a_later_setting_with_a_default_renames_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of training, of stop, of all datasets, of a model: at its default no id or key changes, else they do."""
    plain = settings()
    train, stop = plain.training, plain.training.stop

    def stopped(**values: Any) -> Any:
        return train.model_copy(update={"stop": with_field(stop, **values)})

    changed: dict[str, Any] = {
        "training": lambda **v: replace(plain, training=with_field(train, **v)),
        "stop": lambda **v: replace(plain, training=stopped(**v)),
        "dataset": lambda **v: replace(plain, dataset=with_field(plain.dataset, **v)),
        "model": lambda **v: replace(plain, model=with_field(plain.model, **v)),
    }
    for where, other in changed.items():
        assert keys(other()) == keys(plain), where
        run, cell, stack = keys(other(later=4))
        assert run != keys(plain)[0] and stack != keys(plain)[2], where
        assert (cell != keys(plain)[1]) == (where in ("dataset", "model")), where


def test_a_setting_of_the_first_version_renames_runs_when_its_default_changes() -> None:
    """Runs that do not name it are then trained otherwise; the table, not the code's default, is what ids go by."""
    plain = settings().training
    fields = {"momentum": (type(plain).model_fields["momentum"].annotation, 0.9)}
    other = create_model("Training", __base__=type(plain), **fields)(lr=0.1, batch_size=10)
    assert keys(settings(other))[0] != keys(settings())[0]
    same = other.model_copy(update={"momentum": 0.0})
    assert keys(settings(same))[0] == keys(settings())[0]


def test_what_a_plugin_brings_is_hashed_with_all_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows its first version: a new default of its may be a new network."""

    def net(input_shape: Any, num_classes: int, *, width: Annotated[int, Ge(1)] = 3) -> None:
        """A net."""

    def wider(input_shape: Any, num_classes: int, *, width: Annotated[int, Ge(1)] = 4) -> None:
        """The same, its default raised."""

    found = []
    for function in (net, wider):
        monkeypatch.setitem(REGISTRY["model"], "net", Entry("net", "model", function))
        found.append(settings(model={"name": "net"}).hashed["model"])
    assert found == [{"name": "net", "width": 3}, {"name": "net", "width": 4}]


def test_an_optimizer_of_a_plugin_renames_no_run_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(settings())

    def mine(at: Any, *, boost: float = 2.0) -> None:
        """A rule."""

    monkeypatch.setitem(REGISTRY["optimizer"], "mine", Entry("mine", "optimizer", mine))
    assert "boost" in schema.training_model().model_fields
    assert keys(settings()) == before
    own = settings(config.section("training", lr=0.1, batch_size=10, optimizer="mine"))
    assert own.hashed["training"]["boost"] == 2.0


def test_both_ways_to_say_sharpness_aware_are_one_run() -> None:
    base = {"lr": 0.1, "batch_size": 10}
    old = config.section("training", optimizer="sam", rho=0.1, adaptive=True, **base)
    new = config.section("training", sharpness_aware={"rho": 0.1, "adaptive": True}, **base)
    assert (old.rule, old.ascent) == (new.rule, new.ascent) == ("sgd", config.SharpnessAware(rho=0.1, adaptive=True))
    assert keys(settings(old)) == keys(settings(new))
    around_adam = config.section("training", optimizer="adam", sharpness_aware={}, **base)
    plain_adam = config.section("training", optimizer="adam", **base)
    assert len({keys(settings(t))[0] for t in (old, around_adam, plain_adam, config.section("training", **base))}) == 4


@pytest.mark.parametrize("case", ["sgd-vs-sam", "hoffer", "batch-size-sweep training.optimizer=sam training.rho=0.1"])
def test_what_is_hashed_reads_back_as_the_same_run(case: str, tmp_path: Path) -> None:
    """It is what a minimum's file says of its settings."""
    name, *sets = case.split()
    for run in config.expand(config.resolve(config.read(name, ["seeds=1", *sets]))):
        path = tmp_path / "again.yaml"
        path.write_text(json.dumps({"name": run.run_id, **run.settings.hashed}))
        (again,) = config.expand(config.resolve(config.read(str(path))))
        assert again.run_id.rpartition("-")[2] == run.run_id.rpartition("-")[2]
        assert again.settings.hashed == run.settings.hashed


def test_what_may_differ_inside_a_stack_and_what_may_not() -> None:
    def stack(**training: Any) -> str:
        return keys(settings(config.section("training", **{"lr": 0.1, "batch_size": 10} | training)))[2]

    plain, sharp = stack(), stack(sharpness_aware={"rho": 0.1})
    assert plain == stack(lr=0.2) == stack(momentum=0.9) == stack(weight_decay=0.1) != stack(nesterov=True)
    assert sharp == stack(sharpness_aware={"rho": 0.2}) == stack(optimizer="sam") == stack(optimizer="sam", rho=0.3)
    assert len({plain, sharp, stack(sharpness_aware={"adaptive": True}), stack(batch_size=20)}) == 4
    adam = stack(optimizer="adam")
    assert adam == stack(optimizer="adam", weight_decay=0.1) == stack(optimizer="adam", momentum=0.9)  # idle
    assert len({plain, adam, stack(optimizer="adam", beta1=0.8), stack(optimizer="adamw")}) == 4
