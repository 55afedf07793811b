"""Figures of surfaces: what they show, and what they say of a damaged table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from landscape_cli import store
from landscape_cli.experiment import surface_tables
from landscape_cli.registry.errors import Fault
from landscape_cli.report import figures_surface, plotting
from landscape_cli.report.inputs import Inputs
from landscape_cli.store import surface_files
from landscape_cli.surface.kinds import KINDS
from landscape_cli.surface.values import grid

SNAPSHOTS = {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 6}, "snapshots": [0, 1, 2, 4, 6]}}


def written(tmp_path: Path) -> None:
    """Tables of every kind of surface of two runs, one value missing, and what is known of some directions."""
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "plots").mkdir()
    xy = grid([(-1.0, 1.0)] * 2, 5).tolist()
    for run_id, lift in (("a", 0.1), ("b", 0.2)):
        for kind, entry in KINDS.items():
            points = xy if entry.facts["axes"] == 2 else xy[:5]
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
            *((f"{k}-curvature", surface_tables.CURVATURE, bends[:5]) for k in ("line", "path")),
            ("eigen-curvature", surface_tables.CURVATURE, bends),
            ("trajectory-snapshots", surface_tables.SNAPSHOTS, way),
        ):
            table = store.lines_table(dict(zip(columns_, map(list, zip(*rows, strict=True)), strict=True)))
            store.write(tmp_path / "surfaces" / f"{run_id}-{name}.csv", store.table_bytes(table))
        facts = {"to": "b" if run_id == "a" else "gone"}
        some = {"x0.w": torch.zeros(1)}
        store.write(tmp_path / "surfaces" / f"{run_id}-path.safetensors", surface_files.to_bytes(some, facts))
        values = {"eigenvalues": [3.0, 1.0]}
        store.write(tmp_path / "surfaces" / f"{run_id}-eigen.safetensors", surface_files.to_bytes(some, values))


def surfaces(folder: Path, runs: Any, groups: list[str]) -> list[Path]:
    """All figures of surfaces of a folder with these runs."""
    if folder.name != "plots":
        store.write(folder / "runs.csv", store.table_bytes(runs))
    inputs = Inputs(folder, [], groups)
    due = [figure for figure in figures_surface.figures() if all(map(inputs.present, figure.sources))]
    return [path for figure in due for path in figure.draw(inputs, folder / "plots" / figure.name)]


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    runs = store.lines_table({"run_id": ["a", "b"], "group": ["small", "large"]})
    told: list[Any] = []
    keep = figures_surface.curves
    monkeypatch.setattr(figures_surface, "curves", lambda *a: told.append((list(a[0]), a[3])) or keep(*a))
    shown, save = dict[str, list[str]](), plotting.save

    def saved(figure: Figure, stem: Path) -> list[Path]:
        shown[stem.name] = [ax.get_xlabel() for ax in figure.axes]
        return save(figure, stem)

    monkeypatch.setattr(plotting, "save", saved)
    drawn = surfaces(tmp_path, runs, ["small", "large"])
    assert shown["surface_curvature"][:4] == ["x"] * 2 + ["1st eigenvector (eigenvalue 3)"] * 2
    assert {p.name for p in drawn if p.suffix == ".png"} == {
        f"surface_{name}.png"
        for name in (
            "line",
            "line_curvature",
            "path",
            "path_curvature",
            "plane",
            "relief",
            "trajectory",
            "eigen",
            "curvature",
        )
    }
    assert told == [(["a", "b"], {}), (["a"], {"a": "b"})]  # the other end of b's path is gone
    page = (tmp_path / "plots" / "surface_relief.html").read_text()
    assert "Plotly.newPlot" in page and "small" in page and "large" in page and 'src="http' not in page
    assert KINDS["trajectory"].facts["labels"]({"explained_variance": [0.9, 0.05]}) == (
        "1st component (90.0% of the variance)",
        "2nd component (5.0%)",
    )
    assert KINDS["eigen"].facts["labels"]({"eigenvalues": [2.0, 1.25]}) == (
        "1st eigenvector (eigenvalue 2)",
        "2nd eigenvector (1.25)",
    )
    ratio = figures_surface._ratio(store.read_table(tmp_path / "surfaces" / "a-plane-curvature.csv"))
    assert sorted(set(ratio)) == [0.0, 0.25, 0.5]
    assert surfaces(tmp_path / "plots", runs, ["small"]) == []
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
    figures_surface._band(Axes(), table, "loss", plotting.looks(["a"])["a"], "-")  # type: ignore[arg-type]
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
    drawn = surfaces(tmp_path, store.lines_table({"run_id": ["a"], "group": ["all"]}), ["all"])
    assert {p.name for p in drawn} <= {"surface_line.png", "surface_line.svg", "surface_relief.html"}


def test_a_table_without_its_columns_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "surfaces").mkdir()
    runs = store.lines_table({"run_id": ["a"], "group": ["small"]})
    for kind, column in (("line", "split"), ("plane-curvature", "lambda_max"), ("trajectory", "split")):
        path = tmp_path / "surfaces" / f"a-{kind}.csv"
        path.write_text("draw,x,y\n0,0,0\n")
        with pytest.raises(Fault, match=f"{path}: has no column {column}"):
            surfaces(tmp_path, runs, ["small"])
        path.unlink()


def test_minima_without_a_group_of_the_experiment_have_a_colour_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of the user's: all in one group, which the experiment does not have."""
    written(tmp_path)
    seen: list[Figure] = []
    monkeypatch.setattr(plotting, "save", lambda figure, stem: seen.append(figure) or [])
    group_of = {"a": "checkpoint", "b": "checkpoint"}
    tables = figures_surface._read(tmp_path, "line", ["a", "b"])
    figures_surface.curves(tables, group_of, ["all"], {}, tmp_path / "x")
    figures_surface.bending(figures_surface._read(tmp_path, "line-curvature", ["a", "b"]), group_of, ["all"], tmp_path)
    for figure in seen:
        for ax in figure.axes:
            assert {line.get_color() for line in ax.lines} == set(plotting.PALETTE[:2])
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
        assert [t.get_color() for t in figure.legends[0].get_texts()] == list(plotting.PALETTE[:2])
