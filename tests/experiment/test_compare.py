"""The whole pipeline on a tiny experiment: its files, what a second call redoes, what goes stale, what fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from landscape_cli import config, engine, registry, store, training
from landscape_cli.config import grid
from landscape_cli.experiment import compare, draw_report, planning, result_tables, train_runs, user_checkpoints
from landscape_cli.experiment.session import Session
from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault
from landscape_cli.store import checkpoints

Open = Callable[..., Session]
RUN_COLUMNS = (
    "run_id,group,seed,training.batch_size,status,epochs,steps,train_loss,train_accuracy,test_loss,test_accuracy,"
    "loss_gap,accuracy_gap,seconds,stack_size,message"
)
METRIC_COLUMNS = (
    "run_id,group,seed,epoch,metric,setting,value,standard_error,samples,iterations,residual,seconds,status,message"
)
PICTURES = ("training_curves", "metric_by_group", "metric_vs_gap")
FIGURES = [f"plots/{name}.{kind}" for name in PICTURES for kind in ("png", "svg")]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Figures take seconds, and one test looks at them."""
    if "figures" not in request.keywords:
        monkeypatch.setattr(draw_report, "draw", lambda *args: [])


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of change of every file but the manifest and the lock."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in (store.MANIFEST, store.LOCK)]
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files
    }


def compared(session: Session) -> dict[str, tuple[str, int]]:
    compare.compare(session)
    return snapshot(session.folder)


def head(path: Path) -> str:
    return path.read_text().splitlines()[0]


def rows(session: Session, metric: str) -> list[dict[str, Any]]:
    table = store.read_table(session.folder / "metrics.csv")
    return table[table["metric"] == metric].to_dict("records")


@pytest.mark.figures
def test_files_of_the_contract(tiny: Open) -> None:
    session = tiny()
    compare.compare(session)
    folder, ids = session.folder, [run.run_id for run in session.runs]
    assert [i.rsplit("-", 1)[0] for i in ids] == ["b10-s0", "b10-s1", "b60-s0", "b60-s1"]
    assert head(folder / "runs.csv") == RUN_COLUMNS
    assert head(folder / "metrics.csv") == METRIC_COLUMNS
    first = (
        "metric,setting,small_mean,small_ci_low,small_ci_high,small_n,large_mean,large_ci_low,large_ci_high,large_n,"
        "ratio,ratio_low,ratio_high,cliffs_delta,p_value,p_holm"
    )
    assert head(folder / "comparison.csv") == first
    runs = store.read_table(folder / "runs.csv")
    assert list(runs["run_id"]) == ids and list(runs["group"]) == ["small"] * 2 + ["large"] * 2
    assert list(runs["epochs"]) == [30] * 4 and list(runs["steps"]) == [180, 180, 30, 30]
    assert list(runs["stack_size"]) == [2] * 4 and set(runs["status"]) == {"ok"}
    assert (runs["loss_gap"] == runs["test_loss"] - runs["train_loss"]).all()
    assert (runs["accuracy_gap"] == runs["train_accuracy"] - runs["test_accuracy"]).all()
    files = set(snapshot(folder))
    assert {*FIGURES, "report.html", "experiment.yaml"} <= files
    assert {f"runs/{i}.json" for i in ids} | {f"minima/{i}.safetensors" for i in ids} <= files
    assert {f for f in files if f.startswith("cells/")} == {f"cells/{i}.json" for i in ids}
    assert not [f for f in files if f.startswith("stacks/")]
    manifest = json.loads((folder / store.MANIFEST).read_text())
    assert set(manifest["files"]) == files and manifest["device"] == "cpu" and manifest["threads"] == 1
    assert all(manifest["files"][f] == digest for f, (digest, _) in snapshot(folder).items())
    assert config.resolve(config.read(str(folder / "experiment.yaml"))) == session.experiment
    stored = checkpoints.metadata(folder / f"minima/{ids[1]}.safetensors")
    assert (stored["seed"], stored["epoch"], stored["settings"]) == (1, 30, session.runs[1].settings.hashed)
    compare.compare(tiny())  # the page shows how it came to be, which stands in the manifest only now
    before = snapshot(folder)
    assert "Provenance" in (folder / "report.html").read_text()
    compare.compare(tiny())
    assert {f for f, v in snapshot(folder).items() if before[f][0] != v[0]} == set()
    assert {f for f, v in snapshot(folder).items() if f.startswith(("plots", "report")) and before[f] != v} == set()
    (folder / "plots/regret_by_radius.png").write_bytes(b"of a config that measured it")
    draw_report.rewrite_report(folder)
    assert {f for f in snapshot(folder) if f.startswith("plots/")} == {*FIGURES, "plots/.drawn"}


def test_minima_are_what_the_tables_say(tiny: Open) -> None:
    """weight_norm, train_loss and hessian_top of a file, computed here by plain PyTorch."""
    session = tiny()
    compare.compare(session)
    run = session.runs[2]
    module, data = session.module(run.settings), session.data(run.settings)
    at = checkpoints.read(session.folder / f"minima/{run.run_id}.safetensors", module)
    module.load_state_dict(at.params | at.buffers)
    by_name = {m: next(r for r in rows(session, m) if r["run_id"] == run.run_id) for m in ("weight_norm", "train_loss")}
    theta = torch.cat([p.detach().flatten() for p in module.parameters()]).double()
    assert by_name["weight_norm"]["value"] == pytest.approx(float(theta.norm()), rel=1e-6)
    module = module.double()
    x, y = data.x_train.double(), data.y_train
    loss = float(torch.nn.functional.cross_entropy(module(x), y).detach())
    assert by_name["train_loss"]["value"] == pytest.approx(loss, rel=1e-5)
    names, shapes = zip(*[(n, p.shape) for n, p in module.named_parameters()], strict=True)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes])
        own = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(module, own, (x,)), y)

    top = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, theta))[-1])
    (found,) = [r for r in rows(session, "hessian_top") if r["run_id"] == run.run_id]
    assert found["value"] == pytest.approx(top, rel=2e-3)


def test_second_call_changes_nothing(tiny: Open) -> None:
    before = compared(tiny())
    after = compared(tiny())
    tables = {"runs.csv", "metrics.csv", "comparison.csv", "experiment.yaml"}
    assert {f: v[0] for f, v in before.items()} == {f: v[0] for f, v in after.items()}
    assert {f for f in before if before[f] != after[f]} <= tables  # these are derived, and written again


def test_more_seeds_train_the_new_ones_only(tiny: Open) -> None:
    before = compared(tiny())
    session = tiny(seeds=3)
    after = compared(session)
    kept = {f for f in before if f.startswith(("runs/", "minima/", "cells/"))}
    assert kept and all(before[f] == after[f] for f in kept)
    new = {f.split("/")[1].split(".")[0] for f in set(after) - set(before)}
    assert new == {run.run_id for run in session.runs if run.seed == 2}
    assert len(store.read_table(session.folder / "runs.csv")) == 6
    fewer = tiny(seeds=1)
    compare.compare(fewer)
    assert len(store.read_table(session.folder / "runs.csv")) == 2  # the others stay on disk
    assert snapshot(session.folder).keys() == after.keys()


def test_a_changed_metric_setting_adds_cells_only(tiny: Open) -> None:
    session = tiny()
    before, cells = compared(session), store.read_cells(session.folder)
    metrics = ["weight_norm", {"hessian_top": {"k": 2}}, "train_loss"]
    after = compared(tiny({"metrics": metrics}))
    kept = {f for f in before if f.startswith(("runs/", "minima/"))}
    assert all(before[f] == after[f] for f in kept) and after.keys() == before.keys()
    again = store.read_cells(session.folder)
    assert all(cell in again for cell in cells if not cell["metric"].startswith("_"))
    new = [cell["metric"] for cell in again if cell not in cells and not cell["metric"].startswith("_")]
    assert new == ["hessian_top"] * 4


def test_a_changed_training_setting_makes_runs_of_its_own(tiny: Open) -> None:
    before = compared(tiny())
    after = compared(tiny({"training": TINY["training"] | {"lr": 0.2}}))
    kept = {f for f in before if f.startswith(("runs/", "minima/", "cells/"))}
    assert all(before[f] == after[f] for f in kept)
    assert len([f for f in after if f.startswith("runs/")]) == 8


def test_a_changed_minimum_is_refused_and_made_again(tiny: Open) -> None:
    session = tiny()
    before = compared(session)
    path = session.folder / f"minima/{session.runs[1].run_id}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4  # a flipped bit in a weight, which safetensors does not notice
    path.write_bytes(data)
    with pytest.raises(Fault) as caught:
        compared(tiny({"metrics": ["distance_from_init"]}))
    assert str(caught.value) == f"{path}: damaged, its hash is not the one that was recorded: delete it and train again"
    path.unlink()
    after = compared(tiny())
    assert len(rows(session, "weight_norm")) == 4
    assert all(before[f] == after[f] for f in before if f.startswith("cells/") and session.runs[0].run_id in f)


def test_a_record_of_another_minimum_makes_cells_stale(tiny: Open) -> None:
    session = tiny()
    compared(session)
    record_path = session.folder / f"runs/{session.runs[0].run_id}.json"
    record = json.loads(record_path.read_text())
    path = session.folder / record["minimum"]["file"]
    module = session.module(session.runs[0].settings, 7)
    other = checkpoints.Minimum({n: p.detach() for n, p in module.named_parameters()}, {}, None, {})
    path.write_bytes(checkpoints.to_bytes(other))
    record["minimum"]["sha256"] = store.file_hash(path)
    record_path.write_text(json.dumps(record))
    assert planning.plan(tiny())["measured"] == 9
    compared(tiny())
    norm = sum(float(p.detach().square().sum()) for p in module.parameters()) ** 0.5
    assert rows(session, "weight_norm")[0]["value"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("what", ["runs", "cells"])
def test_garbled_files_are_made_again(tiny: Open, what: str) -> None:
    session = tiny()
    before = compared(session)
    path = next(p for p in sorted((session.folder / what).rglob("*.json")) if "_shared" not in p.name)
    path.write_text(path.read_text()[:100])
    session = tiny()
    after = compared(session)
    assert len(session.warnings) >= 1 and all(str(path) in w for w in session.warnings)
    assert before.keys() == after.keys()
    json.loads(path.read_text())


def test_a_metric_that_raises(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are `failed` with the reason, all others are there, and the next call tries it again."""
    broken = True

    def toy(at: Point) -> Estimate:
        """Toy."""
        if broken:
            raise ValueError("no such luck\nsecond line")
        return exact(at.theta[:, 0])

    monkeypatch.setitem(REGISTRY["metric"], "toy", Entry("toy", "metric", toy, REGISTRY["metric"]["weight_norm"].facts))
    metrics = {"metrics": ["toy", "weight_norm"]}
    compared(tiny(metrics))
    session = tiny(metrics)
    failed = rows(session, "toy")
    assert len(failed) == 4 and {r["status"] for r in failed} == {"failed"}
    assert failed[0]["value"] != failed[0]["value"]  # empty
    assert failed[0]["message"].startswith("ValueError: no such luck (toy:") and "\n" not in failed[0]["message"]
    assert {r["status"] for r in rows(session, "weight_norm")} == {"ok"}
    _, lines = result_tables.outcome(session)
    assert len(lines) == 4 and lines[0].startswith(f"{session.runs[0].run_id}: toy(): failed: ValueError: no such luck")
    broken = False
    before = compared(session)
    assert {r["status"] for r in rows(session, "toy")} == {"ok"}
    assert {f for f, v in compared(tiny(metrics)).items() if before[f] != v and f.startswith("cells")} == set()


def test_compare_counts_once_what_says_it_is_the_same(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(registry.same_as().values()) & registry.same_as().keys()  # it is a metric that names none
    own = REGISTRY["metric"]["distance_from_init"]
    monkeypatch.setitem(REGISTRY["metric"], own.name, replace(own, facts=own.facts | {"same": "weight_norm"}))
    table = compare.compare(tiny({"metrics": ["weight_norm", "distance_from_init"], "seeds": 3}))
    assert (table["p_holm"] == table["p_value"]).all() and table["p_value"].min() < 0.5  # one test


def test_fresh(tiny: Open) -> None:
    before = compared(tiny())
    session = tiny()
    other = session.folder / "minima" / "mine.safetensors"
    other.write_bytes(b"keep")
    compare.compare(session, fresh=True)
    after = snapshot(session.folder)
    assert after.pop("minima/mine.safetensors")
    assert before.keys() == after.keys()
    assert all(before[f][1] < after[f][1] for f in before if f.startswith(("runs/", "minima/", "cells/")))
    assert all(before[f][0] == after[f][0] for f in before if f.startswith("minima/"))  # the same bits


def test_runs_that_diverge_are_recorded_and_left_unmeasured(tiny: Open) -> None:
    wild = {"grid": {"training.lr": [0.1, 1e300]}, "compare": {"by": "training.lr", "labels": {}}}
    session = tiny(wild)
    compare.compare(session)
    table = store.read_table(session.folder / "runs.csv")
    assert list(table["status"]) == ["ok", "ok", "diverged", "diverged"]
    assert {r["run_id"] for r in rows(session, "weight_norm")} == {r.run_id for r in session.runs[:2]}
    _, lines = result_tables.outcome(session)
    assert lines == [f"{r.run_id}: diverged: training loss nan: lower training.lr" for r in session.runs[2:]]
    compare.compare(tiny(wild | {"grid": {"training.lr": [1e300]}}))  # nothing to compare at all


def test_not_converged_is_measured_and_named(tiny: Open) -> None:
    session = tiny({"training": TINY["training"] | {"stop": {"train_loss": 1e-6, "max_epochs": 2}}})
    compare.compare(session)
    _, lines = result_tables.outcome(session)
    assert len(lines) == 4 and len(rows(session, "weight_norm")) == 4
    assert lines[0].startswith(f"{session.runs[0].run_id}: not_converged: train_loss ")
    assert lines[0].endswith(" is above stop.train_loss=1e-06 at max_epochs=2: raise it")


def test_a_users_checkpoint_gives_the_projects_own_numbers(tiny: Open, tmp_path: Path) -> None:
    session = tiny()
    compare.compare(session)
    ours = session.folder / f"minima/{session.runs[0].run_id}.safetensors"
    state = checkpoints.read(ours, session.module(session.runs[0].settings))
    theirs = tmp_path / "my model.pt"
    torch.save({"state_dict": {f"module.{n}": t for n, t in (state.params | state.buffers).items()}}, theirs)
    wanted = config.measurements(session.experiment)

    def measure(*paths: Path) -> Any:
        watch = session.watch
        return user_checkpoints.measure_checkpoints(
            session.experiment, [*paths], tmp_path / "results", wanted, "cpu", watch
        )

    before = snapshot(session.folder)
    other, table = measure(ours, theirs)
    assert snapshot(session.folder) == before and other.folder.name == "tiny-checkpoints"
    values = {k: part.set_index("metric")["value"].to_dict() for k, part in table.groupby("run_id")}
    mine = next(v for k, v in values.items() if k.startswith("my-model-"))
    for metric in ("weight_norm", "train_loss", "hessian_top"):
        due = rows(session, metric)[0]["value"]
        assert mine[metric] == pytest.approx(due, rel=1e-6)
    assert len(values) == 2
    kept = snapshot(other.folder)
    measure(ours, theirs)
    assert {f for f, v in snapshot(other.folder).items() if f.startswith("cells") and kept[f] != v} == set()


def test_plan_writes_nothing_and_counts(tiny: Open, tmp_path: Path) -> None:
    plan = planning.plan(tiny())
    assert (plan["runs"], plan["trained"], plan["cells"], plan["measured"]) == (4, 0, 12, 0)
    assert [len(s["runs"]) for s in plan["stacks"]] == [2, 2] and plan["seconds_left"] is None
    assert not (tmp_path / "results").exists()
    compared(tiny())
    plan = planning.plan(tiny(seeds=3))
    assert (plan["runs"], plan["trained"], plan["cells"], plan["measured"]) == (6, 4, 18, 12)
    assert plan["seconds_left"] > 0


def test_json_rows_read_back_exactly(tiny: Open) -> None:
    from pandas import DataFrame

    values = [1e-20, 0.1 + 0.2, 1e-5 / 3, None, 1e300]
    table = DataFrame({"value": values, "n": [1, 2, 3, 4, 5], "text": ["a", "", None, "b", "c"]})
    back = json.loads(json.dumps(result_tables.as_json(table), allow_nan=False))
    assert [row["value"] for row in back] == values and [row["n"] for row in back] == [1, 2, 3, 4, 5]
    assert back[2]["text"] is None


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"training": TINY["training"] | {"batch_size": 61}, "grid": {}, "compare": None}, "60"),
        ({"model": {"name": "cnn1d"}}, "model.name: 'cnn1d' does not take inputs of shape (1, 8, 8) ("),
        ({"dataset": {"name": "digits", "train_size": 1001}}, "1001"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_written(
    tiny: Open, tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(Fault) as caught:
        tiny(changes)
    assert wrong in str(caught.value) and caught.value.code == 2
    assert not (tmp_path / "results").exists()


def test_report_again_from_the_tables(tiny: Open, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        draw_report.rewrite_report(tmp_path / "results" / "tiny")
    folder = tmp_path / "results" / "tiny"
    missing = "lacks runs.csv, metrics.csv, comparison.csv: run `landscape compare` first"
    assert (str(caught.value), caught.value.code) == (f"{folder}: {missing}", 5)


def test_setting_tells_rows_apart() -> None:
    entry = REGISTRY["metric"]["hessian_top"]
    assert grid.setting("hessian_top", entry.settings().model_dump()) in ("", "k=1")
    assert "k=3" in grid.setting("hessian_top", entry.settings(k=3).model_dump(), "rank=2")


@pytest.mark.parametrize("what", ["x_train", "x_test"])
def test_changed_data_make_runs_and_cells_stale(tiny: Open, tmp_path: Path, what: str) -> None:
    """A file of the user's own under the same path: nothing in the config tells that it is another."""
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.standard_normal((30, 4)), "x_test": rng.standard_normal((10, 4))}
    labels = {"y_train": np.arange(30) % 3, "y_test": np.arange(10) % 3}
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    own = {
        "dataset": {"name": "npz", "path": str(tmp_path / "a.npz")},
        "grid": {"training.batch_size": [10, 30]},
        "compare": None,
        "metrics": ["test_loss"],
    }
    session = tiny(own)
    compare.compare(session)
    before = rows(session, "test_loss")
    assert planning.plan(tiny(own))["trained"] == 4
    arrays[what] = arrays[what] * 2
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    assert planning.plan(tiny(own))["trained"] == 0
    compare.compare(tiny(own))
    after = rows(session, "test_loss")
    assert len(after) == 4 and all(a["value"] != b["value"] for a, b in zip(after, before, strict=True))


def test_a_small_net_alone_is_trained_on_one_thread(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trained = [], training.train

    def noting(*args: Any) -> Any:
        seen.append((len(args[3]), torch.get_num_threads()))
        return trained(*args)

    monkeypatch.setattr(training, "train", noting)
    session = tiny()
    lone = next(run for run in session.runs if run.seed == 0)
    session.runs = [lone, *(run for run in session.runs if run.settings != lone.settings)]
    with engine.on_threads(3):
        train_runs.train(session)
        assert torch.get_num_threads() == 3
    assert seen == [(1, 1), (2, 3)] and torch.get_num_threads() == 1


def test_a_signal_while_drawing_is_not_lost(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is written, yet the command must not end as if nobody had asked it to stop."""
    monkeypatch.setattr(draw_report, "draw", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    session = tiny()
    with pytest.raises(engine.Interrupted) as caught:
        compare.compare(session)
    assert caught.value.code == 143
    assert (session.folder / store.MANIFEST).is_file() and not engine.interrupted()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
