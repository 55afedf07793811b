"""Lines and planes through minima: directions, values against a plain loop, folding, and what survives a kill."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Call
from matplotlib.figure import Figure
from safetensors.torch import load_file
from surface_points import NETS, place, plain
from torch import nn

from landscape_cli import network, store
from landscape_cli.config import Surface
from landscape_cli.curvature.objective import flatten
from landscape_cli.experiment import drawing, surface, surface_tables, train
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.network.models import build_module
from landscape_cli.registry.errors import Fault
from landscape_cli.report import figures_surface
from landscape_cli.store import directions
from landscape_cli.surface.values import Place, direction, grid, random_directions
from landscape_cli.training import stream


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
    train, xs = at.sides["train"], [0.3, -0.4, 1.3]
    for x, values in zip(xs, at.scores(torch.tensor([[x, 0.0] for x in xs], dtype=torch.float64)), strict=True):
        theta = at.theta + x * at.X
        if rule == "recompute":
            own = collect_statistics(train.network, train.unflatten(theta), train.buffers, train.x)
        else:
            share = x if rule == "interpolate" else 0.0
            ends = {n: (b, other[n]) for n, b in train.buffers.items() if b.is_floating_point()}
            own = {n: (1 - share) * here + share * there for n, (here, there) in ends.items()}
        module.load_state_dict({n: b[0] for n, b in own.items()}, strict=False)
        for side, (loss, _) in zip(at.sides.values(), values.tolist(), strict=True):
            assert loss == pytest.approx(plain(module, theta, side)[0], rel=1e-9)


def test_draws_and_axes_differ_and_a_seed_repeats_them() -> None:
    params, _ = network.stack([build_module({"name": "mlp", "hidden": [50]}, (6,), 3, 0)])

    def drawn(seed: int) -> list[torch.Tensor]:
        rule = ("filter", "biasbn", seed)
        return [flatten(d)[0] for draw in range(2) for d in random_directions(params, *rule, draw, 2)]  # type: ignore[arg-type]

    some = drawn(0)
    for i, a in enumerate(some):
        for b in [*some[:i], *drawn(1)]:
            assert abs(float(F.cosine_similarity(a, b, 0))) < 0.3
    assert all(map(torch.equal, some, drawn(0)))
    (alone,) = random_directions(params, "filter", "biasbn", 0, 1, 1)
    assert torch.equal(flatten(alone)[0], some[2])  # a line's are a plane's first


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

    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    surface.run(tiny({"name": "whole"}), asked)
    monkeypatch.setattr(Place, "scores", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            surface.run(tiny(), asked)
    session = tiny()
    found = surface.run(session, asked)
    assert len(set(made)) == len(made) == len(found) * -(-169 // 64)  # no finished point is computed twice
    for run_id, table in found.items():
        path: Path = session.folder / "surfaces" / f"{run_id}-plane.csv"
        due = path.parents[2] / "whole" / "surfaces" / path.name
        assert path.read_bytes() == due.read_bytes()
        assert path.with_suffix(".safetensors").read_bytes() == due.with_suffix(".safetensors").read_bytes()
        assert set(load_file(path.with_suffix(".safetensors"))) >= {"x0.1.weight", "y0.3.bias"}
        assert list(table.columns) == list(surface_tables.COLUMNS) and len(table) == 2 * 169
        assert store.read_table(path).equals(table)
    assert not [*(session.folder / "surfaces").glob("*.parts")]
    before = len(made)
    surface.run(tiny(), asked)
    assert len(made) == before


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: re.sub(r"0\.(\d)", lambda m: f"0.{(int(m[1]) + 1) % 10}", text, count=1),
        lambda text: json.dumps(json.loads(text)["rows"]),  # as an older version wrote it
        lambda text: "3",
    ],
)
def test_a_damaged_part_is_made_again(tiny: Any, monkeypatch: pytest.MonkeyPatch, harm: Callable[[str], str]) -> None:
    asked, scores, left = Surface(points=21, draws=2), Place.scores, [1]

    def once(self: Place, xy: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return scores(self, xy)

    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    due = {run_id: table.to_dict("list") for run_id, table in surface.run(tiny({"name": "whole"}), asked).items()}
    monkeypatch.setattr(Place, "scores", once)
    with pytest.raises(KeyboardInterrupt):
        surface.run(tiny(), asked)
    (part,) = (tiny().folder / "surfaces").glob("*.parts/*.json")
    damaged = harm(part.read_text())
    assert damaged != part.read_text()
    part.write_text(damaged)
    left[0] = 10**9
    assert {run_id: table.to_dict("list") for run_id, table in surface.run(tiny(), asked).items()} == due
    assert 10**9 - left[0] == 2 * len(due)  # each draw of each run, the damaged one among them


def test_a_point_without_a_value_is_empty_with_its_status(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session = tiny()
    tables = surface.run(session, Surface(points=3, range=1e30, normalization="none", draws=1))
    for table in tables.values():
        lost = table[table["x"].abs() > 0]
        assert set(lost["status"]) == {"undefined"} and lost["loss"].isna().all() and lost["accuracy"].isna().all()
        assert set(table[table["x"] == 0]["status"]) == {"ok"}


def test_a_table_of_other_settings_is_not_taken_for_this_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its two files: the directions are new, the table is old."""
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session, few, more = tiny(), Surface(points=3), Surface(points=5)
    assert {len(t) for t in surface.run(session, few).values()} == {3 * 3 * 2}
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
        surface.run(session, more)
    monkeypatch.setattr(store, "write", keep)
    assert {len(t) for t in surface.run(session, more).values()} == {3 * 5 * 2}


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
        (("--draws", "2", "--directions", "x"), 2, "--draws: --directions are taken as they are"),
        (("--seed", "2", "--directions", "x"), 2, "--seed: --directions are taken as they are"),
        (("--normalization", "none", "--directions", "x"), 2, "--normalization: --directions are taken as they are"),
        (("--ignore", "none", "--kind", "path"), 2, "--ignore: --kind path has directions of its own"),
        (("--directions", "."), 2, "--directions: .: is a folder, name a file in it"),
        (("--points", "1"), 2, "--points 1: surface.points"),
        (
            ("--set", "surface.draws=2", "--set", "surface.directions=x"),
            2,
            "surface.draws: with directions: nothing is drawn",
        ),
        (("--runs", ","), 2, "--runs: ',' names nothing"),
    ],
)
def test_bad_input(call: Call, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    got, out, err = call("surface", "tiny.yaml", *words, "--quiet")
    assert (got, out) == (code, "") and said in err
    assert not (tmp_path / "results").exists()


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "plots").mkdir()
    xy = grid([(-1.0, 1.0)] * 2, 5).tolist()
    for run_id, lift in (("a", 0.1), ("b", 0.2)):
        kinds = {"plane": xy, "line": xy[:5], "path": xy[:5], "eigen": xy, "trajectory": xy}
        for kind, points in kinds.items():
            bowl = [(x, y, x * x + 2 * y * y + x / 2) for x, y in points]
            rows = [(0, x, y, s, lift + h * z, 0.5, "ok") for x, y, z in bowl for s, h in (("train", 1), ("test", 3))]
            columns = dict(zip(surface_tables.COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
            columns["loss"][0] = None
            table = store.lines_table(columns)
            store.write(tmp_path / "surfaces" / f"{run_id}-{kind}.csv", store.table_bytes(table))
        bends = [(0, x, y, 2.0, -x, "ok", "") for x, y in xy]
        way = [(e, 1 - e / 3, 0.1, 0.2, s, 1.0, 0.5, 1.1, 0.5, "ok") for e in range(4) for s in ("train", "test")]
        for name, columns_, rows in (
            ("plane-curvature", surface_tables.CURVATURE, bends),
            ("line-curvature", surface_tables.CURVATURE, bends[:5]),
            ("eigen-curvature", surface_tables.CURVATURE, bends),
            ("trajectory-snapshots", surface_tables.SNAPSHOTS, way),
        ):
            table = store.lines_table(dict(zip(columns_, map(list, zip(*rows, strict=True)), strict=True)))
            store.write(tmp_path / "surfaces" / f"{run_id}-{name}.csv", store.table_bytes(table))
        facts = {"to": "b" if run_id == "a" else "gone"}
        some = {"x0.w": torch.zeros(1)}
        store.write(tmp_path / "surfaces" / f"{run_id}-path.safetensors", directions.to_bytes(some, facts))
        values = {"eigenvalues": [3.0, 1.0]}
        store.write(tmp_path / "surfaces" / f"{run_id}-eigen.safetensors", directions.to_bytes(some, values))
    runs = store.lines_table({"run_id": ["a", "b"], "group": ["small", "large"]})
    told: list[Any] = []
    keep = figures_surface.curves
    monkeypatch.setattr(figures_surface, "curves", lambda *a: told.append((list(a[0]), a[3])) or keep(*a))
    shown, save = dict[str, list[str]](), figures_surface.figures_runs.save

    def saved(figure: Figure, stem: Path) -> list[Path]:
        shown[stem.name] = [ax.get_xlabel() for ax in figure.axes]
        return save(figure, stem)

    monkeypatch.setattr(figures_surface.figures_runs, "save", saved)
    drawn = figures_surface.surfaces(tmp_path, runs, ["small", "large"])
    assert shown["surface_curvature"][:4] == ["x"] * 2 + ["1st eigenvector (eigenvalue 3)"] * 2
    assert {p.name for p in drawn if p.suffix == ".png"} == {
        f"surface_{name}.png"
        for name in ("line", "line_curvature", "path", "plane", "relief", "trajectory", "eigen", "curvature")
    }
    assert told == [(["a", "b"], {}), (["a"], {"a": "b"})]  # the other end of b's path is gone
    page = (tmp_path / "plots" / "surface_relief.html").read_text()
    assert "Plotly.newPlot" in page and "small" in page and "large" in page and 'src="http' not in page
    assert figures_surface._axes({"explained_variance": [0.9, 0.05]}) == (
        "1st component (90.0% of the variance)",
        "2nd component (5.0%)",
    )
    assert figures_surface._axes({"eigenvalues": [2.0, 1.25]}) == (
        "1st eigenvector (eigenvalue 2)",
        "2nd eigenvector (1.25)",
    )
    ratio = figures_surface._ratio(store.read_table(tmp_path / "surfaces" / "a-plane-curvature.csv"))
    assert sorted(set(ratio)) == [0.0, 0.25, 0.5]
    assert figures_surface.surfaces(tmp_path / "plots", runs, ["small"]) == []
    assert list(figures_surface._read(tmp_path, "plane", ["b", "c", "a"])) == ["b", "a"]
    assert list(figures_surface._read(tmp_path, "plane", ["b"])) == ["b"]  # a is of other settings
    x, y, z = figures_surface._plane(store.read_table(tmp_path / "surfaces" / "b-plane.csv"))
    for (i, own_x), (j, own_y) in ((one, two) for one in enumerate(x) for two in enumerate(y)):
        if (i, j) != (0, 0):  # which has no value
            assert z[j, i] == pytest.approx(0.2 + own_x**2 + 2 * own_y**2 + own_x / 2)
    group_of = {"a": "small", "b": "large", "c": "small"}
    assert figures_surface._from_to({"a": "b"}, group_of) == "x, 0: small, 1: large"
    assert figures_surface._from_to({"a": "c"}, group_of) == "x, 0: a, 1: c"


def test_a_band_is_the_mean_between_the_extremes_with_gaps_where_there_is_no_value() -> None:
    drawn: dict[str, Any] = {}

    class Axes:
        def plot(self, x: Any, y: Any, **_: Any) -> None:
            drawn["line"] = (list(x), list(y))

        def fill_between(self, x: Any, low: Any, high: Any, **_: Any) -> None:
            drawn["band"] = (list(low), list(high))

    rows = [(draw, x, None if x == 0.5 else x + draw * draw) for draw in range(3) for x in (0.0, 0.5, 1.0)]
    table = store.lines_table(dict(zip(("draw", "x", "loss"), map(list, zip(*rows, strict=True)), strict=True)))
    figures_surface._band(Axes(), table, "loss", figures_surface.figures_runs.looks(["a"])["a"], "-")  # type: ignore[arg-type]
    x, y = drawn["line"]
    assert x == [0, 0.5, 1] and y[0] == pytest.approx(5 / 3) and y[1] != y[1] and y[2] == pytest.approx(8 / 3)
    assert drawn["band"][0][::2] == [0, 1] and drawn["band"][1][::2] == [4, 5]


def test_a_surface_without_any_value_is_drawn_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "plots").mkdir()
    for kind in ("line", "plane"):
        rows = [(0, x, y, s, None, None, "undefined") for x in (0, 1) for y in (0, 1) for s in ("train", "test")]
        table = store.lines_table(dict(zip(surface_tables.COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
        store.write(tmp_path / "surfaces" / f"a-{kind}.csv", store.table_bytes(table))
    drawn = figures_surface.surfaces(tmp_path, store.lines_table({"run_id": ["a"], "group": ["all"]}), ["all"])
    assert {p.name for p in drawn} <= {"surface_line.png", "surface_line.svg", "surface_relief.html"}


@pytest.mark.parametrize("kind", ["line", "plane", "path"])
def test_every_row_can_be_had_again_from_the_files(tiny: Any, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """By a plain module at minimum + x X + y Y of its own draw; BatchNorm as the kind has it."""
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    model = {"name": "mlp", "hidden": [8], "batchnorm": True}
    session = tiny({"seeds": 1, "precision": "float64", "model": model})
    asked = Surface(kind=kind, points=3, draws=None if kind == "path" else 2)
    tables = surface.run(session, asked)
    runs = store.read_table(session.folder / "runs.csv").set_index("run_id")
    data = session.data(session.runs[0].settings)
    for run_id, table in tables.items():
        module = session.module(session.runs[0].settings).eval()
        own = _state(session, run_id)
        axes = load_file(session.folder / "surfaces" / f"{run_id}-{kind}.safetensors")
        for draw, x, y, split, loss, accuracy, _ in table.itertuples(index=False):
            state = {n: t.clone() for n, t in own.items()}
            for name in dict(module.named_parameters()):
                d = axes[f"x{draw}.{name}"] * x
                state[name] += d + axes[f"y{draw}.{name}"] * y if kind == "plane" else d
            module.load_state_dict(state)
            if kind == "path":
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


def test_earlier_settings_after_an_interruption(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A, then B killed between its two tables, then A again, then B: each gives what it gave alone."""
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session = tiny({"seeds": 1})
    first, second = Surface(points=5, draws=1), Surface(points=5, draws=1, range=2.0, curvature=True)
    due = {r: t.copy() for r, t in surface.run(session, first).items()}
    keep = surface_tables.Survey.curvature

    def stops(self: surface_tables.Survey) -> Any:
        keep(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(surface_tables.Survey, "curvature", stops)
    with pytest.raises(KeyboardInterrupt):
        surface.run(session, second)
    monkeypatch.setattr(surface_tables.Survey, "curvature", keep)
    again = surface.run(session, first)
    assert all(again[r].equals(t) for r, t in due.items())
    asks: list[int] = []
    scores = Place.scores
    monkeypatch.setattr(Place, "scores", lambda self, xy: asks.append(1) or scores(self, xy))
    found = surface.run(session, second)
    assert [t["x"].max() for t in found.values()] == [2.0, 2.0]
    assert len(asks) == 2  # of the second run's losses and curvature; what was finished of the first is kept


def test_damaged_and_edited_tables_are_made_again(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session, asked = tiny({"seeds": 1}), Surface(points=3, draws=1)
    run_id, due = next(iter(surface.run(session, asked).items()))
    path = session.folder / "surfaces" / f"{run_id}-line.csv"
    whole = path.read_bytes()
    for bad in (b"", whole[:40], b"\xff\x00", whole.replace(b",ok", b"9,ok", 1)):
        path.write_bytes(bad)
        assert surface.run(session, asked)[run_id].equals(due) and path.read_bytes() == whole
    vouching = path.with_suffix(".safetensors")
    vectors_ = vouching.read_bytes()
    for bad in (b"", vectors_[:40]):
        vouching.write_bytes(bad)
        assert surface.run(session, asked)[run_id].equals(due) and vouching.read_bytes() == vectors_


def test_a_damaged_curvature_that_is_not_asked_for_is_removed(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    asked = Surface(points=3, draws=1)
    surface.run(tiny(), asked.model_copy(update={"curvature": True}))
    kept, harmed = sorted((tiny().folder / "surfaces").glob("*-curvature.csv"))
    harmed.write_bytes(harmed.read_bytes().replace(b"ok", b"no"))
    surface.run(tiny(), asked)
    assert kept.is_file() and not harmed.is_file()


def test_nothing_is_removed_through_a_link(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    surface.run(tiny(), Surface(points=3))
    folder = tiny().folder / "surfaces"
    real = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(real)
    before = {path.name: path.read_bytes() for path in real.iterdir()}
    session = tiny()
    surface.run(session, Surface(points=5))
    assert "symbolic link" in session.failures[0]
    assert {path.name: path.read_bytes() for path in real.iterdir()} == before


def test_a_file_in_the_place_of_a_folder(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    train.train(tiny())
    (tiny().folder / "surfaces").write_text("x")
    session = tiny()
    surface.run(session, Surface(points=3))
    assert "a file is in its place" in session.failures[0]


def test_directions_are_read_before_any_training(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_text("x")
    with pytest.raises(Fault, match="not a readable safetensors file"):
        surface.run(tiny(), Surface(points=3, directions=str(tmp_path / "no.safetensors")))
    assert not tiny().folder.exists()


def test_a_table_without_its_columns_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "surfaces").mkdir()
    runs = store.lines_table({"run_id": ["a"], "group": ["small"]})
    for kind, column in (("line", "split"), ("plane-curvature", "lambda_max"), ("trajectory-snapshots", "epoch")):
        path = tmp_path / "surfaces" / f"a-{kind}.csv"
        path.write_text("draw,x,y\n0,0,0\n")
        with pytest.raises(Fault, match=f"{path}: has no column {column}"):
            figures_surface.surfaces(tmp_path, runs, ["small"])
        path.unlink()


def test_other_ends_and_other_directions_are_other_surfaces(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session = tiny()
    a, b, c = (run.run_id for run in session.runs[:3])
    one, two = (surface.run(session, Surface(kind="path", points=3, runs=[a, end]))[a] for end in (b, c))
    assert not one["loss"].equals(two["loss"])
    folder = session.folder / "surfaces"
    found = []
    for seed in (1, 2):
        surface.run(session, Surface(points=3, draws=1, seed=seed, runs=[a]))
        (folder / f"{a}-line.safetensors").rename(folder / f"own{seed}.safetensors")
    for seed in (1, 2):
        asked = Surface(points=3, runs=[a], directions=str(folder / f"own{seed}.safetensors"))
        found.append(surface.run(session, asked)[a]["loss"])
        known = directions.facts(folder / f"{a}-line.safetensors")
        assert [known[k] for k in ("normalization", "ignore", "seed", "draws")] == [None] * 4  # not what was drawn
    assert not found[0].equals(found[1])


def test_directions_without_numbers_are_refused(tmp_path: Path) -> None:
    bad = {"x0.w": torch.tensor([1.0, float("nan")], dtype=torch.float64)}
    (tmp_path / "d.safetensors").write_bytes(directions.to_bytes(bad, {}))
    with pytest.raises(Fault, match=r"x0\.w holds NaN or Inf"):
        directions.read(tmp_path / "d.safetensors", {"w": (2,)}, 1)


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        ("model.hidden: [[8], [9]]", "model"),
        ("model.activation: [relu, tanh]", "model"),
        ("dataset.label_noise: [0.0, 0.5]", "dataset"),
        ("precision: [float32, float64]", "precision"),
    ],
)
def test_a_path_joins_runs_of_one_model_on_the_same_data(call: Call, tmp_path: Path, grid: str, what: str) -> None:
    words = ("--set", f"grid={{{grid}}}", "--set", "compare=null", "--quiet")
    code, out, err = call("surface", "tiny.yaml", "--kind", "path", *words)
    assert (code, out) == (2, "") and f"differ in {what}: name two runs of one" in err
    assert not (tmp_path / "results").exists()


def test_one_diverged_run_does_not_keep_the_others_from_their_surfaces(call: Call, tmp_path: Path) -> None:
    words = ("--set", "grid={training.lr: [0.1, 1e300]}", "--set", "compare=null", "--points", "3", "--quiet")
    code, out, err = call("surface", "tiny.yaml", *words)
    assert code == 3 and "no surface: it diverged" in err
    assert len([*tmp_path.glob("results/*/surfaces/*-line.csv")]) == 1 and "Report" in out
    words = ("--set", "grid={training.lr: [0.1, 1e300]}", "--set", "compare=null", "--set", "surface={kind: path}")
    code, out, err = call("compare", "tiny.yaml", *words, "--quiet")
    assert code == 3 and "no surface: --kind path: goes from one minimum to another, not to 1" in err
