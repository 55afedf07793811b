"""The command `surface`: what it writes, what survives a kill, and what is refused before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call
from safetensors.torch import load_file

from landscape_cli import store
from landscape_cli.config import Surface
from landscape_cli.experiment import compare, draw_report, surface, surface_tables, train_runs
from landscape_cli.registry.errors import Fault
from landscape_cli.store import surface_files
from landscape_cli.surface.values import Slice


def test_an_interrupted_surface_goes_on_to_the_same_bits(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Surface(kind="plane", points=13)
    keep, made, asks = Slice.scores, list[Any](), list[None]()

    def counted(self: Slice, xy: torch.Tensor) -> torch.Tensor:
        asks.append(None)
        if len(asks) in (2, 4):
            raise KeyboardInterrupt
        made.append((float(self.theta.sum()), *map(tuple, xy.tolist())))
        return keep(self, xy)

    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    surface.run(tiny({"name": "whole"}), asked)
    monkeypatch.setattr(Slice, "scores", counted)
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
    asked, scores, left = Surface(points=21, draws=2), Slice.scores, [1]

    def once(self: Slice, xy: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return scores(self, xy)

    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    due = {run_id: table.to_dict("list") for run_id, table in surface.run(tiny({"name": "whole"}), asked).items()}
    monkeypatch.setattr(Slice, "scores", once)
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
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    session = tiny()
    tables = surface.run(session, Surface(points=3, range=1e30, normalization="none", draws=1))
    for table in tables.values():
        lost = table[table["x"].abs() > 0]
        assert set(lost["status"]) == {"undefined"} and lost["loss"].isna().all() and lost["accuracy"].isna().all()
        assert set(table[table["x"] == 0]["status"]) == {"ok"}


def test_a_table_of_other_settings_is_not_taken_for_this_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its two files: the directions are new, the table is old."""
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
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


def test_earlier_settings_after_an_interruption(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A, then B killed between its two tables, then A again, then B: each gives what it gave alone."""
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
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
    scores = Slice.scores
    monkeypatch.setattr(Slice, "scores", lambda self, xy: asks.append(1) or scores(self, xy))
    found = surface.run(session, second)
    assert [t["x"].max() for t in found.values()] == [2.0, 2.0]
    assert len(asks) == 2  # of the second run's losses and curvature; what was finished of the first is kept


def test_damaged_and_edited_tables_are_made_again(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
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
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    asked = Surface(points=3, draws=1)
    surface.run(tiny(), asked.model_copy(update={"curvature": True}))
    kept, harmed = sorted((tiny().folder / "surfaces").glob("*-curvature.csv"))
    harmed.write_bytes(harmed.read_bytes().replace(b"ok", b"no"))
    surface.run(tiny(), asked)
    assert kept.is_file() and not harmed.is_file()


def test_nothing_is_removed_through_a_link(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
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
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    train_runs.train(tiny())
    (tiny().folder / "surfaces").write_text("x")
    session = tiny()
    surface.run(session, Surface(points=3))
    assert "a file is in its place" in session.failures[0]


def test_directions_are_read_before_any_training(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_text("x")
    with pytest.raises(Fault, match="not a readable safetensors file"):
        surface.run(tiny(), Surface(points=3, directions=str(tmp_path / "no.safetensors")))
    assert not tiny().folder.exists()


def test_other_ends_and_other_directions_are_other_surfaces(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
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
        known = surface_files.facts(folder / f"{a}-line.safetensors")
        assert [known[k] for k in ("normalization", "ignore", "seed", "draws")] == [None] * 4  # not what was drawn
    assert not found[0].equals(found[1])


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
    (path,) = tmp_path.glob("results/*/surfaces/*-line.csv")
    assert path.name in out
    words = ("--set", "grid={training.lr: [0.1, 1e300]}", "--set", "compare=null", "--set", "surface={kind: path}")
    code, out, err = call("compare", "tiny.yaml", *words, "--quiet")
    assert code == 3 and "no surface: --kind path: goes from one minimum to another, not to 1" in err


def test_curvature_beside_a_surface_that_is_there(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    session, asked = tiny({"seeds": 1}), Surface(points=3, draws=2)
    (run_id, first), *_ = surface.run(session, asked).items()
    made: list[int] = []
    keep = Slice.scores
    monkeypatch.setattr(Slice, "scores", lambda self, xy: made.append(len(xy)) or keep(self, xy))
    path = session.folder / "surfaces" / f"{run_id}-line-curvature.csv"
    assert not path.exists()
    again = surface.run(session, asked.model_copy(update={"curvature": True}))[run_id]
    assert again.equals(first)
    table = store.read_table(path)
    assert list(table.columns) == list(surface_tables.CURVATURE) and len(table) == 2 * 3
    assert (table["lambda_max"] > table["lambda_min"]).all()
    count, stamp = len(made), path.with_name(f"{run_id}-line.safetensors").stat().st_mtime_ns
    surface.run(session, asked.model_copy(update={"curvature": True}))
    surface.run(session, asked)
    assert len(made) == count and path.exists()
    assert path.with_name(f"{run_id}-line.safetensors").stat().st_mtime_ns == stamp  # nothing to say anew
    surface.run(session, asked.model_copy(update={"points": 5}))
    assert not path.exists()  # it was of other points


def test_compare_draws_the_surface_of_its_config(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    session = tiny({"seeds": 1, "surface": {"points": 3, "draws": 1}})
    compare.compare(session, around=surface.around)
    assert len(list((session.folder / "surfaces").glob("*-line.csv"))) == 2
    lost = session.finished()
    first = next(iter(lost))
    lost[first]["status"] = "diverged"
    session = tiny({"seeds": 1, "surface": {"kind": "eigen", "points": 3}})
    surface.around(session, lost)  # a group without a minimum is left out
    (path,) = (session.folder / "surfaces").glob("*-eigen.csv")
    assert not path.name.startswith(first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--kind", "trajectory"),
            "--kind trajectory: needs training.snapshots at three or more epochs before the end",
        ),
        (("--kind", "eigen", "--draws", "2"), "--draws: --kind eigen has directions of its own"),
        (("--kind", "trajectory", "--directions", "x"), "--directions: --kind trajectory has directions of its own"),
        (("--kind", "hessian"), "surface.kind"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    got, out, err = call("surface", "tiny.yaml", *words, "--quiet")
    assert (got, out) == (2, "") and said in err
    assert not (tmp_path / "results").exists()


def test_too_few_snapshots_before_the_end(call: Call, tmp_path: Path) -> None:
    words = ("--set", "training.stop.max_epochs=3", "--set", "training.snapshots=[1,2,3]", "--quiet")
    got, _, err = call("surface", "tiny.yaml", "--kind", "trajectory", *words)
    assert got == 3 and "needs training.snapshots at three or more epochs before the end" in err


def test_what_the_command_says(call: Call) -> None:
    code, out, err = call("surface", "tiny.yaml", "--kind", "eigen", "--points", "3", "--quiet")
    assert code == 0 and "along x and y the Hessian's eigenvalues" in out, err
    words = ("--set", "training.snapshots=[0,1,2]", "--points", "3", "--quiet")
    code, out, err = call("surface", "tiny.yaml", "--kind", "trajectory", *words)
    assert code == 0 and "of the snapshots' variance" in out, err


def test_a_path_between_checkpoints_needs_two_that_differ(call: Call, tmp_path: Path) -> None:
    """The same file twice, by two names, or three: one line, before anything is written."""
    assert call("train", "tiny.yaml", "--quiet")[0] == 0
    one, two = sorted(tmp_path.glob("results/*/minima/*.safetensors"))
    (tmp_path / "copy.safetensors").write_bytes(one.read_bytes())
    for files, message in (
        ((one, one), f"--kind path: {one} and {one} hold the same minimum: name two that differ\n"),
        ((one, tmp_path / "copy.safetensors"), "hold the same minimum: name two that differ\n"),
        ((one, two, one), "--kind path: goes from one checkpoint to another, not to 3: name two\n"),
        ((one,), "--kind path: goes from one checkpoint to another, not to 1: name two\n"),
    ):
        words = ("surface", *map(str, files), "--config", "tiny.yaml", "--kind", "path", "--points", "3", "--quiet")
        code, out, err = call(*words)
        assert (code, out) == (2, "") and err.endswith(message) and err.count("\n") == 1
        assert not (tmp_path / "results" / "tiny-checkpoints").exists()
    run_id = one.stem
    code, _, err = call("surface", "tiny.yaml", "--kind", "path", "--runs", f"{run_id},{run_id}", "--quiet")
    assert code == 2 and "goes from one minimum to another, not to 1" in err
