"""Lines and planes through minima: directions, values against a plain loop, folding, and what survives a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import some_data
from safetensors.torch import load_file
from test_cli import Call, call
from torch import nn

from landscape_cli import network, pictures, store, surfacing
from landscape_cli.config import Surface
from landscape_cli.models import build_module
from landscape_cli.objective import Objective, flatten
from landscape_cli.population import collect_statistics
from landscape_cli.surfaces import Place, direction, grid, random_directions
from landscape_cli.training import stream

__all__ = ["call"]  # a fixture
NETS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "mlp", "hidden": [7]}, (6,)),
    ({"name": "mlp", "hidden": [7], "batchnorm": True}, (6,)),
    ({"name": "cnn", "channels": [4], "batchnorm": True}, (1, 8, 8)),
    ({"name": "resnet", "width": 2}, (1, 8, 8)),
    ({"name": "wide_resnet", "depth": 10, "widen": 1}, (1, 8, 8)),
    ({"name": "resnet", "width": 2, "norm": "group"}, (1, 8, 8)),
]


def place(
    spec: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **more: Any
) -> tuple[Place, nn.Module]:
    module = build_module(spec, shape, 3, 0).double()
    rng = torch.Generator().manual_seed(1)
    for name, b in module.named_buffers():
        if name.endswith("var"):
            b.copy_(0.5 + torch.rand(b.shape, generator=rng))
        elif name.endswith("mean"):
            b.copy_(torch.randn(b.shape, generator=rng))
    module.to(dtype)
    data = some_data(30, shape)
    net = network.build(module, shape, dtype)
    params, buffers = network.stack([module])
    sides = {
        "train": Objective(net, params, buffers, data.x_train.to(dtype), data.y_train),
        "test": Objective(net, params, buffers, data.x_test.to(dtype), data.y_test),
    }
    X, Y = (flatten(d)[0] for d in random_directions(params, "filter", "biasbn", 0, 0, 2))
    return Place(sides, flatten(params).double(), X, Y, **more), module.eval()


def plain(module: nn.Module, theta: torch.Tensor, at: Objective) -> tuple[float, float]:
    state = {n: t[0] for n, t in at.unflatten(theta).items()}
    module.load_state_dict(state, strict=False)
    with torch.no_grad():
        z = module(at.x)
    return float(F.cross_entropy(z, at.y)), float((z.argmax(1) == at.y).double().mean())


@pytest.mark.parametrize(("spec", "shape"), NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_those_of_a_plain_loop(spec: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    at, module = place(spec, shape, dtype)
    xy = torch.rand(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    assert at.Y is not None
    got = at.scores(xy)
    for point, values in zip(xy, got, strict=True):
        theta = (at.theta + point[0] * at.X + point[1] * at.Y).to(dtype)
        for side, (loss, accuracy) in zip(at.sides.values(), values.tolist(), strict=True):
            due, right = plain(module, theta, side)
            assert loss == pytest.approx(due, rel=1e-6 if dtype == torch.float64 else 1e-4)
            assert accuracy == pytest.approx(right, abs=1e-12 if dtype == torch.float64 else 0.04)


@pytest.mark.parametrize(("spec", "shape"), NETS)
def test_each_filter_of_a_direction_is_as_long_as_the_minimums(spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    params, _ = network.stack([build_module(spec, shape, 3, 0)])
    d = direction(params, "filter", "biasbn", stream(0, "surface x", 0))
    for name, t in params.items():
        theta, own = t[0].double(), d[name][0]
        if theta.dim() == 1:
            assert not own.any()
            continue
        for i in range(len(theta)):
            assert float(own[i].norm()) == pytest.approx(float(theta[i].norm()), rel=1e-12)
    whole = direction(params, "filter", "none", stream(0, "surface x", 0))
    for name, t in params.items():
        if t.dim() == 2:
            assert torch.allclose(whole[name].abs(), t.double().abs(), rtol=1e-12)
    layer = direction(params, "layer", "biasbn", stream(0, "surface x", 0))
    none = direction(params, "none", "biasbn", stream(0, "surface x", 0))
    weight = direction(params, "weight", "biasbn", stream(0, "surface x", 0))
    for name, t in params.items():
        if t.dim() > 2:
            assert float(layer[name].norm()) == pytest.approx(float(t.double().norm()), rel=1e-12)
            assert torch.allclose(weight[name], none[name] * t.double())


def test_a_filter_of_zeros_stays_where_it_is() -> None:
    params = {"a.weight": torch.randn(1, 3, 4)}
    params["a.weight"][0, 1] = 0
    d = direction(params, "filter", "biasbn", stream(0, "surface x", 0))["a.weight"][0]
    assert not d[1].any() and d[0].any() and d.isfinite().all()


@pytest.mark.parametrize("rule", ["recompute", "interpolate", "fixed"])
def test_batchnorm_off_the_minimum(rule: Any) -> None:
    at, module = place({"name": "resnet", "width": 2}, (1, 8, 8))
    other = {n: b + 1 if b.is_floating_point() else b for n, b in at.sides["train"].buffers.items()}
    at = Place(at.sides, at.theta, at.X, None, rule, other)
    x = 0.3
    (values,) = at.scores(torch.tensor([[x, 0.0]], dtype=torch.float64))
    theta = at.theta + x * at.X
    train = at.sides["train"]
    if rule == "recompute":
        own = collect_statistics(train.network, train.unflatten(theta), train.buffers, train.x)
    else:
        share = x if rule == "interpolate" else 0.0
        own = {n: (1 - share) * b + share * other[n] if b.is_floating_point() else b for n, b in train.buffers.items()}
    module.load_state_dict({n: b[0] for n, b in own.items()}, strict=False)
    for side, (loss, _) in zip(at.sides.values(), values.tolist(), strict=True):
        assert loss == pytest.approx(plain(module, theta, side)[0], rel=1e-9)


def test_grid() -> None:
    line = grid([(-1.0, 1.0)], 51)
    assert line.shape == (51, 2) and line[25].tolist() == [0.0, 0.0] and line[0, 0] == -1 and line[-1, 0] == 1
    assert torch.equal(line[:, 0], -line.flip(0)[:, 0])
    plane = grid([(-1.0, 1.0), (-2.0, 2.0)], 3)
    assert plane.tolist() == [[x, y] for y in (-2, 0, 2) for x in (-1, 0, 1)]


def test_an_interrupted_surface_goes_on_to_the_same_bits(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Surface(kind="plane", points=13)
    keep, made, asks = Place.scores, list[Any](), list[None]()

    def counted(self: Place, xy: torch.Tensor) -> torch.Tensor:
        asks.append(None)
        if len(asks) in (2, 4):
            raise KeyboardInterrupt
        made.append((float(self.theta.sum()), *map(tuple, xy.tolist())))
        return keep(self, xy)

    monkeypatch.setattr(surfacing.experiment, "draw", lambda *a: None)
    surfacing.run(tiny({"name": "whole"}), asked)
    monkeypatch.setattr(Place, "scores", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            surfacing.run(tiny(), asked)
    session = tiny()
    found = surfacing.run(session, asked)
    assert len(set(made)) == len(made) == len(found) * -(-169 // 64)  # no finished point is computed twice
    for run_id, table in found.items():
        path: Path = session.folder / "surfaces" / f"{run_id}-plane.csv"
        due = path.parents[2] / "whole" / "surfaces" / path.name
        assert path.read_bytes() == due.read_bytes()
        assert path.with_suffix(".safetensors").read_bytes() == due.with_suffix(".safetensors").read_bytes()
        assert set(load_file(path.with_suffix(".safetensors"))) >= {"x0.1.weight", "y0.3.bias"}
        assert list(table.columns) == list(surfacing.COLUMNS) and len(table) == 2 * 169
        assert store.read_table(path).equals(table)
    before = len(made)
    surfacing.run(tiny(), asked)
    assert len(made) == before


def test_a_point_without_a_value_is_empty_with_its_status(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfacing.experiment, "draw", lambda *a: None)
    session = tiny()
    tables = surfacing.run(session, Surface(points=3, range=1e30, normalization="none", draws=1))
    for table in tables.values():
        lost = table[table["x"].abs() > 0]
        assert set(lost["status"]) == {"undefined"} and lost["loss"].isna().all() and lost["accuracy"].isna().all()
        assert set(table[table["x"] == 0]["status"]) == {"ok"}


def test_a_table_of_other_settings_is_not_taken_for_this_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its two files: the directions are new, the table is old."""
    monkeypatch.setattr(surfacing.experiment, "draw", lambda *a: None)
    session, few, more = tiny(), Surface(points=3), Surface(points=5)
    assert {len(t) for t in surfacing.run(session, few).values()} == {3 * 3 * 2}
    keep = store.write

    def stops(path: Path, data: bytes) -> bool:
        if path.suffix in (".csv", ".safetensors") and path.parent.name == "surfaces" and stopped:
            raise KeyboardInterrupt
        if path.parent.name == "surfaces":
            stopped.append(path)
        return keep(path, data)

    stopped: list[Path] = []
    monkeypatch.setattr(store, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        surfacing.run(session, more)
    monkeypatch.setattr(store, "write", keep)
    assert {len(t) for t in surfacing.run(session, more).values()} == {3 * 5 * 2}


def test_a_checkpoint(call: Call, tmp_path: Path) -> None:
    assert call("train", "tiny.yaml", "--quiet")[0] == 0
    path = next(tmp_path.glob("results/*/minima/*.safetensors"))
    words = ("surface", str(path), "--config", "tiny.yaml", "--points", "3", "--quiet")
    code, out, err = call(*words)
    (table,) = tmp_path.glob("results/tiny-checkpoints/surfaces/*-line.csv")
    assert code == 0 and str(table.relative_to(tmp_path)) in out, err
    assert call(*words, "--runs", "a")[0] == 2
    assert call(*words, "--kind", "path")[0] == 2


def test_the_command(call: Call, tmp_path: Path) -> None:
    code, out, err = call("surface", "tiny.yaml", "--points", "5", "--quiet", "--json")
    told = json.loads(out)["surfaces"]
    assert code == 0, err
    assert len(told) == 2 and all(len(rows) == 3 * 5 * 2 for rows in told.values())
    code, out, _ = call("surface", "tiny.yaml", "--kind", "path", "--points", "5", "--quiet")
    (path,) = tmp_path.glob("results/*/surfaces/*-path.csv")
    table = store.read_table(path)
    assert code == 0 and str(path.relative_to(tmp_path)) in out and sorted(set(table["x"])) == [-0.5, 0, 0.5, 1, 1.5]
    runs = store.read_table(path.parents[1] / "runs.csv").set_index("run_id")
    a, b = runs.index[:2]
    ends = table[table["split"] == "test"].set_index("x")["loss"]
    assert path.name == f"{a}-path.csv"
    assert ends[0.0] == pytest.approx(runs["test_loss"][a], rel=1e-5)
    assert ends[1.0] == pytest.approx(runs["test_loss"][b], rel=1e-5)
    lines = next(tmp_path.glob("results/*/surfaces/*-line.safetensors"))
    code, out, _ = call("surface", "tiny.yaml", "--directions", str(lines), "--points", "3", "--runs", a, "--quiet")
    again = store.read_table(lines.with_suffix(".csv"))
    assert code == 0 and set(again["draw"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--kind", "path", "--runs", "a,b"), 2, "--runs: a, b: no run of tiny"),
        (("--batchnorm", "interpolate"), 2, "--batchnorm interpolate: needs two minima: --kind path"),
        (("--directions", "no.safetensors"), 5, "--directions: no.safetensors: no such file"),
        (("--normalization", "filters"), 2, "surface.normalization"),
        (("--kind", "path", "--directions", "x"), 2, "--directions: --kind path has directions of its own"),
        (("--draws", "2", "--directions", "x"), 2, "--draws: --directions tells how many there are"),
        (("--points", "1"), 2, "surface.points"),
        (("--runs", ","), 2, "--runs: ',' names nothing"),
    ],
)
def test_bad_input(call: Call, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    got, out, err = call("surface", "tiny.yaml", *words, "--quiet")
    assert (got, out) == (code, "") and said in err
    assert not (tmp_path / "results").exists()


def test_figures(tmp_path: Path) -> None:
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "plots").mkdir()
    xy = grid([(-1.0, 1.0)] * 2, 5).tolist()
    for run_id, lift in (("a", 0.1), ("b", 0.2)):
        kinds = {"plane": xy, "line": xy[:5], "path": xy[:5], "eigen": xy, "trajectory": xy}
        for kind, points in kinds.items():
            rows = [(0, x, y, s, lift + x * x + y * y, 0.5, "ok") for x, y in points for s in ("train", "test")]
            columns = dict(zip(surfacing.COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
            columns["loss"][0] = None
            table = store.lines_table(columns)
            store.write(tmp_path / "surfaces" / f"{run_id}-{kind}.csv", store.table_bytes(table))
        bends = [(0, x, y, 2.0, -x, "ok", "") for x, y in xy]
        way = [(e, 1 - e / 3, 0.1, 0.2, s, 1.0, 0.5, 1.1, 0.5, "ok") for e in range(4) for s in ("train", "test")]
        for name, columns_, rows in (
            ("plane-curvature", surfacing.CURVATURE, bends),
            ("trajectory-snapshots", surfacing.SNAPSHOTS, way),
        ):
            table = store.lines_table(dict(zip(columns_, map(list, zip(*rows, strict=True)), strict=True)))
            store.write(tmp_path / "surfaces" / f"{run_id}-{name}.csv", store.table_bytes(table))
    runs = store.lines_table({"run_id": ["a", "b"], "group": ["small", "large"]})
    drawn = pictures.surfaces(tmp_path, runs, ["small", "large"])
    assert {p.name for p in drawn if p.suffix == ".png"} == {
        f"surface_{name}.png" for name in ("line", "path", "plane", "relief", "trajectory", "eigen", "curvature")
    }
    page = (tmp_path / "plots" / "surface_relief.html").read_text()
    assert "Plotly.newPlot" in page and "small" in page and "large" in page and 'src="http' not in page
    assert pictures._axes({"explained_variance": [0.9, 0.05]}) == (
        "1st component (90.0% of the variance)",
        "2nd component (5.0%)",
    )
    assert pictures._axes({"eigenvalues": [2.0, 1.25]}) == ("1st eigenvector (eigenvalue 2)", "2nd eigenvector (1.25)")
    ratio = pictures._ratio(store.read_table(tmp_path / "surfaces" / "a-plane-curvature.csv"))
    assert sorted(set(ratio)) == [0.0, 0.25, 0.5]
    assert pictures.surfaces(tmp_path / "plots", runs, ["small"]) == []
    group_of = {"a": "small", "b": "large", "c": "small"}
    assert pictures._from_to({"a": "b"}, group_of) == "x, 0: small, 1: large"
    assert pictures._from_to({"a": "c"}, group_of) == "x, 0: a, 1: c"
