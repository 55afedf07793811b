"""What every metric on the shelf promises, whoever wrote it."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, get_args

import pytest
import torch
from annotated_types import Gt, Le
from helpers import objective
from pydantic import Field
from torch.testing import assert_close

import landscape_cli.metrics
from landscape_cli.cli import print_tables
from landscape_cli.curvature.objective import Objective
from landscape_cli.loss import SOFTMAX, Loss, Outputs
from landscape_cli.metrics.evaluate import evaluate
from landscape_cli.metrics.point import STATUS, Estimate, Point
from landscape_cli.registry import (
    DIRECTIONS,
    NEEDS,
    REGISTRY,
    Direction,
    Invariance,
    claims,
    describe,
    load_plugins,
    needs,
    type_of,
)
from landscape_cli.registry.entries import needs_by_setting
from landscape_cli.registry.errors import Fault

load_plugins([])
METRICS = {n: e for n, e in REGISTRY["metric"].items() if e.function.__module__.startswith("landscape_cli.metrics")}
f64 = torch.float64
COUNT, SAMPLES = 4, 40
CHEAP = {"partitions": 6, "minibatches": 8, "probes": 8, "draws": 8, "samples": 30}
CHEAP |= {"directions": 8, "chains": 3, "burn_in": 8}
SLOW = {"regret_exact", "regret_kl_exact"}  # where only a solution that did not converge is cheap


@cache
def trained(net: str) -> tuple[torch.Tensor, Objective, Objective]:
    """Four minima after some steps of gradient descent, on labels that can be learned."""
    start, theta = objective(net, COUNT, SAMPLES)
    shift = start.x.flatten(1)
    y = (shift[:, :3] + 0.3 * torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(2), dtype=f64)).argmax(1)
    train = replace(start, y=y)
    for _ in range(300):
        theta = theta - 0.3 * train.loss_and_gradient(theta)[1]
    test = replace(train, x=train.x + 0.2 * torch.sin(7 * train.x))
    return theta, train, test


def point(net: str, k: int | None = None) -> Point:
    theta, train, test = trained(net)
    if k is None:
        return Point(theta, train, test, theta * 0.9)
    row = theta[k : k + 1]
    return Point(row, train.alone(k), test.alone(k), row * 0.9)


def settings_of(name: str, **changes: Any) -> list[dict[str, Any]]:
    """Defaults made cheap, one dict for each value of a grid."""
    own = {k: CHEAP.get(k, v) for k, v in METRICS[name].defaults.items()} | changes
    own |= {"max_steps": 20} if name in SLOW else {}
    grids = METRICS[name].facts["grids"]
    combinations: list[dict[str, Any]] = [{}]
    for key, value in own.items():
        values = value if key in grids and isinstance(value, list) else [value]
        combinations = [c | {key: v} for c in combinations for v in values]
    return combinations


def run(name: str, at: Point, settings: dict[str, Any]) -> list[Estimate]:
    found = METRICS[name].function(at, **settings)
    return list(found.values()) if isinstance(found, dict) else [found]


def test_the_shelf_holds_the_metrics_of_the_plan() -> None:
    assert len(METRICS) >= 18
    for name in ("regret", "gradient_norm", "gradient_cosine", "fisher_trace", "jensen_gap", "hessian_top"):
        assert METRICS[name].facts["default"]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("net", ["relu", "layernorm"])
def test_shapes_types_and_states(name: str, net: str) -> None:
    at = point(net)
    for settings in settings_of(name):
        for found in run(name, at, settings):
            assert found.value.shape == found.standard_error.shape == (COUNT,)
            assert found.value.dtype == found.standard_error.dtype == f64
            assert not found.value.requires_grad
            assert not found.standard_error.requires_grad
            assert len(found.status) == len(found.message) == COUNT
            assert set(found.status) <= set(STATUS)
            for k in range(COUNT):
                if found.status[k] == "undefined":
                    assert found.value[k].isnan()
                    assert found.message[k]
                else:
                    assert found.value[k].isfinite()
                    assert found.standard_error[k] >= 0
                if found.status[k] != "ok":
                    assert found.message[k]
                assert "\n" not in found.message[k]
            assert found.residual is None or found.residual.shape == (COUNT,)
            assert found.samples is None or found.samples > 0
            assert found.iterations is None or found.iterations > 0


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("net", ["relu", "layernorm"])
def test_a_minimum_alone_has_the_value_that_it_has_in_a_stack(name: str, net: str) -> None:
    own = METRICS[name].defaults.keys() if name not in SLOW else {}
    tight = {k: v for k, v in {"tolerance": 1e-6, "max_steps": 500}.items() if "tolerance" in own and k in own}
    for settings in settings_of(name, **tight):
        together = run(name, point(net), settings)
        for k in (0, COUNT - 1):
            for stack, alone in zip(together, run(name, point(net, k), settings), strict=True):
                assert_close(alone.value[0], stack.value[k], rtol=1e-6, atol=1e-9, equal_nan=True)
                assert_close(alone.standard_error[0], stack.standard_error[k], rtol=1e-5, atol=1e-9, equal_nan=True)
                if not tight:
                    assert alone.status[0] == stack.status[k]


@pytest.mark.parametrize("name", METRICS)
def test_the_same_seed_gives_the_same_bits_and_leaves_the_process_generator_alone(name: str) -> None:
    settings = settings_of(name)[-1]
    point("layernorm")  # the nets are made once, from the process' generator
    before = torch.random.get_rng_state()
    once, again = (run(name, point("layernorm"), settings) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a.value.nan_to_num(-1), b.value.nan_to_num(-1))
    if "seed" in settings and float(once[0].standard_error.nan_to_num(0).max()) > 0:
        other = run(name, point("layernorm"), settings | {"seed": 12345})
        assert not torch.equal(once[0].value, other[0].value)


@pytest.mark.parametrize("name", METRICS)
def test_minima_and_their_data_are_left_as_they_were(name: str) -> None:
    at = point("relu")
    before = [t.clone() for t in (at.theta, *at.train.like.values(), at.train.x, at.test.x)]
    for settings in settings_of(name):
        run(name, at, settings)
    after = [at.theta, *at.train.like.values(), at.train.x, at.test.x]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def stripped(loss: Loss, parts: set[str]) -> Loss:
    """The loss with no more than these parts."""
    own = {part: getattr(loss, part) if part in parts else None for part in ("residuals", "root")}
    outputs = Outputs(**{part: getattr(loss.outputs, part) for part in ("classes", "margins") if part in parts})
    return replace(loss, outputs=outputs, smoothed=None, scored=None, **own)


def under(at: Point, loss: Loss) -> Point:
    """The same minima with another loss."""
    train, test = (replace(of, network=replace(of.network, loss=loss)) for of in (at.train, at.test))
    return Point(at.theta, train, test, at.initial)


def variants(name: str) -> list[dict[str, Any]]:
    """Cheap settings, and those by which needs differ."""
    keys = [key.split("=", 1) for key in needs_by_setting(METRICS[name].facts["needs"]) if key]
    changes = [{key: value} for key, value in keys if key not in METRICS[name].facts["grids"]]
    return [own for change in [{}, *changes] for own in settings_of(name, **change)]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("net", ["relu", "layernorm"])
def test_a_metric_takes_no_more_of_the_loss_than_it_says(name: str, net: str) -> None:
    for settings in variants(name) if name not in SLOW else []:
        parts = set(needs(METRICS[name], settings))
        for found in run(name, under(point(net), stripped(SOFTMAX, parts)), settings):
            assert all(v.isfinite() or s == "undefined" for v, s in zip(found.value, found.status, strict=True))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_no_more_than_it_takes_of_the_loss_and_is_undefined_without(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanting = [own for own in variants(name) if needs(METRICS[name], own)]
    for part in {one for own in wanting for one in needs(METRICS[name], own)}:
        loss, why = stripped(SOFTMAX, {*NEEDS} - {part}), f"the loss 'softmax' has no {part}"
        these = [own for own in wanting if part in needs(METRICS[name], own)]
        for settings in these:
            (found,) = evaluate(under(point("relu"), loss), name, settings).values()
            assert found.status == ["undefined"] * COUNT and found.message == [why] * COUNT
        if not any(misses(name, loss, why, net, own) for own in these for net in ("relu", "layernorm")):
            for module in vars(landscape_cli.metrics).values():  # as for a net too large for a dense Hessian
                if hasattr(module, "DENSE"):
                    monkeypatch.setattr(module, "DENSE", 0)
            assert any(misses(name, loss, why, "layernorm", own) for own in these), part


def misses(name: str, loss: Loss, why: str, net: str, settings: dict[str, Any]) -> bool:
    """Whether the metric itself finds out that the loss lacks something."""
    try:
        return any(bool(own.value.isnan().all()) for own in run(name, under(point(net), loss), settings))
    except Fault as fault:
        return str(fault) == why


@pytest.mark.parametrize("name", METRICS)
def test_docstring_and_facts(name: str) -> None:
    entry = METRICS[name]
    doc = inspect.getdoc(entry.function) or ""
    assert re.fullmatch(r"\S.{10,118}\.", entry.summary), entry.summary
    assert doc.split("\n")[1:2] in ([], [""])  # one line, then a blank
    described = re.findall(r"^    (\w+): \S", doc, re.MULTILINE)
    assert described == ["at", *entry.settings.model_fields]
    for option in describe(entry)["options"]:
        assert len(option["meaning"]) > 4 and option["meaning"].endswith(".")
        assert re.sub(r"\s+", " ", doc).count(f"{option['name']}: {option['meaning']}") == 1
        assert re.fullmatch(r"(list of )?(int|float) (>=?|<=?) \d.*|true \| false|text|\w+( \| \w+)+.*", option["type"])
    returns = re.search(r"^Returns: \(K,\),(?P<what>.*)", doc, re.MULTILINE | re.DOTALL)
    assert returns
    assert re.search(r"nats|between|per cent|units", returns["what"]), returns["what"]
    assert entry.facts["source"]
    for stated in claims(entry).values():
        assert set(stated) <= set(get_args(Invariance))
        assert len(stated) == len(set(stated))
    assert isinstance(entry.facts["version"], int)
    assert entry.function.__annotations__["return"] in (
        "Estimate",
        "dict[str, Estimate]",
        "Estimate | dict[str, Estimate]",
    )


@pytest.mark.parametrize("name", METRICS)
def test_direction_and_cost_are_stated(name: str) -> None:
    about = describe(METRICS[name])
    assert about["direction"] in get_args(Direction) == tuple(DIRECTIONS)
    assert re.fullmatch(r"\S.{4,110}[^.\s]", about["cost"]), about["cost"]


def test_the_verbose_list_says_all_of_a_metric(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    every = [describe(entry) for entry in METRICS.values()]
    for about in every:
        print_tables.shelf([about], verbose=True)
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == about["name"] and max(map(len, lines)) <= 100
        rows = {line.split()[0]: line for line in lines[2:] if line.strip()}
        if about["direction"]:
            assert rows["direction"].endswith(DIRECTIONS[about["direction"]])
        assert rows.keys() >= {"source", "invariant", "default", "value"}
        said = "".join("".join(lines).split())
        for text in (about["text"], about["cost"], about["source"], about["value"]):
            assert "".join(text.split()) in said
        words = " ".join(lines).split()
        for option in about["options"]:
            assert option["name"] in rows
            assert set(f"{option['type']} {option['meaning']}".split()) <= set(words)


def test_types_of_settings_in_words() -> None:
    assert type_of(list[Annotated[float, Gt(0), Le(1)]]) == "list of float > 0 and <= 1"
    assert type_of(Annotated[int, Field(ge=3)] | None) == "int >= 3 | null"
    assert type_of(Literal["a", "b"]) == "a | b"
    assert (type_of(bool), type_of(str), type_of(float)) == ("true | false", "text", "float")


@pytest.mark.parametrize("name", METRICS)
def test_every_setting_has_a_type_a_default_and_bounds_that_hold(name: str) -> None:
    entry = METRICS[name]
    for p in list(inspect.signature(entry.function).parameters.values())[1:]:
        assert p.kind is p.KEYWORD_ONLY
        assert p.annotation is not p.empty
        assert p.default is not p.empty
    model = entry.settings()
    for key, values in entry.facts["grids"].items():
        assert key in entry.settings.model_fields
        for value in values:
            entry.settings(**{key: value})
    for key, value in model.model_dump().items():
        if isinstance(value, int | float) and key not in ("seed",):
            with pytest.raises(ValueError, match=key):
                entry.settings(**{key: -1})
    with pytest.raises(ValueError, match="no_such"):
        entry.settings(no_such=1)


@pytest.mark.parametrize("name", METRICS)
def test_zero_weights_give_no_crash_and_no_infinity(name: str) -> None:
    """A dead net: equal logits, gradients of the last bias only, no curvature elsewhere."""
    theta, train, test = trained("relu")
    at = Point(torch.zeros_like(theta), train, test, torch.zeros_like(theta))
    for settings in settings_of(name):
        for found in run(name, at, settings):
            assert not found.value.isinf().any()
            assert all(v.isfinite() or s == "undefined" for v, s in zip(found.value, found.status, strict=True))
