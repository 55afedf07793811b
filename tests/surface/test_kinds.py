"""Every kind of surface: its values are those of a plain loop, and it is drawn, captioned, listed and documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from landscape_cli import config, registry, store
from landscape_cli.cli import surface as command
from landscape_cli.config import Surface
from landscape_cli.experiment import draw_report, surface
from landscape_cli.registry.entries import GIVEN, OPTIONS
from landscape_cli.registry.errors import Fault
from landscape_cli.report.figures import figures
from landscape_cli.report.inputs import Inputs
from landscape_cli.surface.kinds import KINDS, is_random
from landscape_cli.surface.span import Span

DOCS = Path(__file__).parents[2] / "docs"
SNAPSHOTS = {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 5}, "snapshots": [0, 1, 2, 4]}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_drawn_captioned_listed_and_documented(tiny: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    session = tiny(SNAPSHOTS | {"seeds": 1})
    surface.run(session, Surface(kind=kind, points=3, curvature=True))
    inputs, rows = Inputs(session.folder, list(session.finished().values()), session.groups), figures()
    bends = f"surface_{kind}_curvature" if KINDS[kind].facts["axes"] == 1 else "surface_curvature"
    for name in (f"surface_{kind}", bends):
        assert all(map(inputs.present, rows[name].sources)), name
        files = rows[name].draw(inputs, session.folder / "plots" / name)
        assert {path.suffix for path in files} == {".png", ".svg"} and all(path.is_file() for path in files)
        assert rows[name].title and rows[name].caption.endswith(".")
    assert kind in str(command.__doc__) + "|".join(KINDS) and KINDS[kind].summary
    (_, option) = get_args(command.Kind)
    assert kind in option.metavar.split("|") and KINDS[kind].summary in option.help
    assert kind in config.json_schema()["$defs"]["Surface"]["properties"]["kind"]["enum"]
    assert registry.describe(KINDS[kind])["summary"] == KINDS[kind].summary
    assert re.search(rf"^\| `{kind}` \|.*{re.escape(KINDS[kind].summary)}", (DOCS / "surfaces.md").read_text(), re.M)


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_those_of_the_section(kind: str) -> None:
    """What a kind takes is a field of `surface`; a default of its own stands only where the section has none."""
    assert set(OPTIONS) <= set(Surface.model_fields)
    for key, default in KINDS[kind].facts["options"].items():
        section = Surface.model_fields[key].default
        assert section is None or section == default, key


def test_what_cannot_be_a_kind_is_refused() -> None:
    def ring(at: Any, neighbour: Any, *, radius: float = 1.0) -> Span:
        return Span([], [])

    with pytest.raises(Fault, match="@surface: ring: takes at, neighbour, radius; due is def ring"):
        registry.surface(title="A ring", caption="A ring.")(ring)
    assert "ring" not in KINDS and {need for kind in KINDS.values() for need in kind.facts["needs"]} == set(GIVEN)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"a kind of surface .line, path, plane, trajectory, eigen"):
        Surface(kind="hessian")


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_can_be_had_again_from_the_files(tiny: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """By a plain module at minimum + x X + y Y of its own draw; BatchNorm as the kind has it."""
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    model = {"name": "mlp", "hidden": [8], "batchnorm": True}
    session = tiny(SNAPSHOTS | {"seeds": 1, "precision": "float64", "model": model})
    facts = KINDS[kind].facts
    tables = surface.run(session, Surface(kind=kind, points=3, draws=2 if is_random(KINDS[kind]) else None))
    runs = store.read_table(session.folder / "runs.csv").set_index("run_id")
    data = session.data(session.runs[0].settings)
    assert tables
    for run_id, table in tables.items():
        assert len(table) == 2 * 3 ** facts["axes"] * (2 if is_random(KINDS[kind]) else 1)
        module = session.module(session.runs[0].settings).eval()
        own = _state(session, run_id)
        axes = load_file(session.folder / "surfaces" / f"{run_id}-{kind}.safetensors")
        for draw, x, y, split, loss, accuracy, _ in table.itertuples(index=False):
            state = {n: t.clone() for n, t in own.items()}
            for name in dict(module.named_parameters()):
                d = axes[f"x{draw}.{name}"] * x
                state[name] += d + axes[f"y{draw}.{name}"] * y if facts["axes"] == 2 else d
            module.load_state_dict(state)
            if facts["batchnorm"] == "recompute":
                _recompute(module, data.x_train)
            z = module(getattr(data, f"x_{split}")).detach()
            labels = getattr(data, f"y_{split}")
            assert loss == pytest.approx(float(F.cross_entropy(z, labels)), rel=1e-9)
            assert accuracy == pytest.approx(float((z.argmax(1) == labels).double().mean()), abs=1e-12)
    if kind == "path":
        a, b = runs.index[:2]
        assert torch.equal(axes["x0.1.weight"], _state(session, b)["1.weight"] - _state(session, a)["1.weight"])
        for rule in ("recompute", "interpolate"):
            table = surface.run(session, Surface(kind="path", points=5, batchnorm=rule))[a]
            test = table[table["split"] == "test"].set_index("x")["loss"]
            assert [test[0.0], test[1.0]] == pytest.approx([runs["test_loss"][a], runs["test_loss"][b]], rel=1e-9)


def _state(session: Any, run_id: str) -> dict[str, torch.Tensor]:
    found = load_file(session.folder / "minima" / f"{run_id}.safetensors")
    return {n: t for n, t in found.items() if not n.startswith("initial/")}


def _recompute(module: nn.Module, x: torch.Tensor) -> None:
    """Mean and biased variance of what comes into each BatchNorm, one after the other."""
    for layer in module:  # type: ignore[union-attr]
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean, layer.running_var = x.mean(0).detach(), x.var(0, unbiased=False).detach()
        x = layer(x)
