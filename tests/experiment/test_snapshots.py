"""Snapshots are measured like minima, beside them: the same values, files of their own, and no part in comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, settings_of

from landscape_cli import cli, config, store
from landscape_cli.experiment import (
    cell_records,
    compare,
    draw_report,
    measure,
    planning,
    result_tables,
    session,
    snapshots,
    user_checkpoints,
)
from landscape_cli.experiment.session import Session
from landscape_cli.metrics.point import Estimate, Point, exact
from landscape_cli.registry import REGISTRY, Entry
from landscape_cli.registry.errors import Fault
from landscape_cli.report import page, statistics
from landscape_cli.store import checkpoints

Open = Callable[..., Session]
FACTS = REGISTRY["metric"]["weight_norm"].facts


def small(end: int = 4, **more: Any) -> dict[str, Any]:
    training = {"lr": 0.1, "batch_size": 20, "stop": {"max_epochs": end}, "snapshots": [0, 2, 3]}
    grid: dict[str, Any] = {"grid": {}, "compare": None}
    return {"training": training, "metrics": ["weight_norm"], "along": True} | grid | more


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *args: [])


def rows(session: Session) -> list[dict[str, Any]]:
    table = store.read_table(session.folder / "metrics.csv")
    return table[~table["metric"].str.startswith("_")].astype(object).to_dict("records")


def along(session: Session) -> dict[tuple[str, Any], float]:
    """(run, epoch; None at the minimum) -> value of the one metric."""
    return {(r["run_id"], None if r["epoch"] != r["epoch"] else r["epoch"]): r["value"] for r in result_tables.as_json(
        store.read_table(session.folder / "metrics.csv")) if not r["metric"].startswith("_")}  # fmt: skip


def cells(session: Session) -> dict[Any, dict[str, Any]]:
    """The cells of the one metric: run and epoch -> its content."""
    found = (cell for cell in store.read_cells(session.folder) if cell["metric"] == "weight_norm")
    return {(cell["run_id"], cell.get("epoch")): cell for cell in found}


def test_a_snapshot_has_the_value_of_a_run_that_ended_there(tiny: Open) -> None:
    whole, short = tiny(small()), tiny(small(end=3) | {"name": "short"})
    for one in (whole, short):
        compare.compare(one)
    found, due = along(whole), along(short)
    ids = [run.run_id for run in whole.runs]
    assert set(found) == {(i, epoch) for i in ids for epoch in (None, 0, 2, 3)}
    for mine, theirs in zip(ids, (run.run_id for run in short.runs), strict=True):
        assert [found[mine, epoch] for epoch in (0, 2, 3)] == [due[theirs, epoch] for epoch in (0, 2, None)]
        assert found[mine, None] != found[mine, 3]
    first = whole.module(whole.runs[1].settings, seed=1).parameters()
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in first))
    assert found[ids[1], 0] == pytest.approx(norm, rel=1e-6)


def test_each_is_a_cell_of_its_own_and_only_what_is_missing_is_made(
    tiny: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def toy(at: Point) -> Estimate:
        sizes.append(len(at.theta))
        return exact(at.theta.double().square().sum(1).sqrt())

    monkeypatch.setitem(REGISTRY["metric"], "weight_norm", Entry("weight_norm", "metric", toy, FACTS))
    one = tiny(small() | {"along": False})
    compare.compare(one)
    assert sizes == [2] and len(cells(one)) == 2
    compare.compare(tiny(small()))
    before = cells(one)
    assert sizes == [2] * 4 and len(before) == 8  # the minima were there; two runs together at each of three epochs
    run_id = one.runs[0].run_id
    for epoch, sha in ((e, store.file_hash(one.folder / checkpoints.snapshot_file(run_id, e))) for e in (0, 2, 3)):
        (cell,) = [c for c in before.values() if c["inputs"] == sha]
        assert (cell["run_id"], cell["epoch"], [r["epoch"] for r in cell["rows"]]) == (run_id, epoch, [epoch])
        assert cell["key"] == cell_records.key_of(one.runs[0].settings, ("weight_norm", {}), epoch)
    assert len({cell["key"] for cell in before.values()}) == 4  # keys differ by epoch
    table = (one.folder / "metrics.csv").read_bytes()
    path, lost = store.cells_path(one.folder, run_id), before[run_id, 2]
    kept = [line for line in path.read_text().splitlines() if lost["key"] not in line]
    path.write_text("\n".join(kept).replace(",\n]", "\n]"))
    assert cells(one).keys() == before.keys() - {(run_id, 2)}
    compare.compare(tiny(small()))
    after = cells(one)
    assert sizes == [2] * 5 and [i for i in before if after[i] != before[i]] == [(run_id, 2)]  # in its old company
    assert [line.split(",")[:-4] for line in (one.folder / "metrics.csv").read_text().splitlines()] == [
        line.split(",")[:-4] for line in table.decode().splitlines()
    ]
    compare.compare(tiny(small() | {"along": False}))
    assert len(sizes) == 5 and len(rows(one)) == 8  # what was measured stays in the table


def test_comparison_and_printed_table_look_at_the_minimum_only(
    tiny: Open, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = {k: TINY[k] for k in ("grid", "compare")}
    plain, with_them = tiny(small(along=False, **whole)), tiny(small(**whole) | {"name": "along"})
    for one in (plain, with_them):
        compare.compare(one)
    first, second = (one.folder / "comparison.csv" for one in (plain, with_them))
    assert first.read_bytes() == second.read_bytes()
    metrics, table = (store.read_table(with_them.folder / f"{name}.csv") for name in ("metrics", "runs"))
    assert metrics["epoch"].notna().sum() > 10
    assert len(statistics.usable(metrics, table)) == len(statistics.at_minimum(metrics, table)) == 4
    monkeypatch.chdir(tmp_path)
    assert (cli.app(["measure", "tiny.yaml", "--quiet"], standalone_mode=False) or 0) == 0
    assert capsys.readouterr().out.count("weight_norm") == 4


def test_trouble_at_snapshots_is_one_line_a_metric(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(at: Point) -> Estimate:
        found, start = exact(at.theta[:, 0].double()), at.training is not None and at.training[0]["epochs"] == 0
        return found.not_converged(found.value == found.value, "raise steps") if start else found

    monkeypatch.setitem(REGISTRY["metric"], "toy", Entry("toy", "metric", toy, FACTS))
    one = tiny(small() | {"metrics": ["toy"]})
    compare.compare(one)
    _, lines = result_tables.outcome(one)
    first, tables = one.runs[0].run_id, (store.read_table(one.folder / f"{name}.csv") for name in ("runs", "metrics"))
    assert page.failures(*tables) == [("toy at snapshots", "not_converged", "raise steps", 2)]
    assert lines == [f"toy(): not_converged at 2 snapshots of 2 runs: {first} epoch 0: raise steps"]


def test_the_plan_counts_them(tiny: Open) -> None:
    def counted(changes: dict[str, Any]) -> tuple[int, int]:
        plan = planning.plan(tiny(changes))
        return plan["cells"], plan["measured"]

    assert counted(small()) == (8, 0) and counted(small() | {"along": False}) == (2, 0)
    assert counted(small(end=2)) == (6, 0)  # epoch 3 will not come
    compare.compare(tiny(small() | {"along": False}))
    assert counted(small()) == (8, 2)
    one = tiny(small())
    measure.measure(one, [("weight_norm", {})])
    assert counted(small()) == (8, 8)
    record = one.folder / "runs" / f"{one.runs[0].run_id}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"epochs": 2}))  # it reached its goal there
    assert counted(small()) == (7, 7)


@pytest.mark.parametrize("how", ["missing", "garbled", "of another", "bit"])
def test_a_snapshot_that_is_not_what_it_was(tiny: Open, how: str) -> None:
    one = tiny(small() | {"along": False})
    compare.compare(one)
    run_id, other = (run.run_id for run in one.runs)
    path = one.folder / checkpoints.snapshot_file(run_id, 2)
    remedy = f"delete {one.folder}/runs/{run_id}.json and train again"
    before = path.read_bytes()
    if how == "missing":
        path.unlink()
        again = tiny(small())
        compare.compare(again)
        assert set(again.warnings) == {f"{path}: missing, what it was is left out: {remedy}"}
        assert (run_id, 2) not in along(again) and len(along(again)) == 7
    else:
        data = bytearray(before)
        data[-5] ^= 4
        path.write_bytes(
            {"garbled": b"{", "bit": data}.get(how) or (one.folder / checkpoints.snapshot_file(other, 3)).read_bytes()
        )
        if how != "bit":  # a record of before hashes were kept: the file has to speak for itself
            record = one.folder / "runs" / f"{run_id}.json"
            kept = {k: v for k, v in json.loads(record.read_text()).items() if k != "snapshots"}
            record.write_text(json.dumps(kept))
        with pytest.raises(Fault) as caught:
            compare.compare(tiny(small()))
        said = {
            "garbled": f"{path}: not a readable safetensors file (",
            "of another": f"{path}: holds {other} at epoch 3: {remedy}",
            "bit": f"{path}: damaged, its hash is not the one that was recorded: {remedy}",
        }[how]
        assert str(caught.value).startswith(said) and str(caught.value).endswith(remedy)
    (one.folder / "runs" / f"{run_id}.json").unlink()
    last = tiny(small())
    compare.compare(last)
    assert len(along(last)) == 8 and path.read_bytes() == before and last.warnings == []


def test_a_snapshot_that_was_made_anew_is_measured_anew(tiny: Open) -> None:
    """A changed file makes its cells stale, and those of no other."""
    one = tiny(small())
    compare.compare(one)
    before, run = along(one), one.runs[1]
    path = one.folder / checkpoints.snapshot_file(run.run_id, 2)
    found = checkpoints.read(path, one.module(run.settings))
    twice = {n: 2 * t for n, t in found.params.items()}
    path.write_bytes(checkpoints.to_bytes(checkpoints.Minimum(twice, found.buffers, found.initial, found.metadata)))
    record = one.folder / "runs" / f"{run.run_id}.json"  # as if it were trained anew
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "snapshots"}))
    assert planning.plan(tiny(small()))["measured"] == 7
    compare.compare(tiny(small()))
    after = along(one)
    assert {k for k in before if after[k] != before[k]} == {(run.run_id, 2)}
    assert after[run.run_id, 2] == pytest.approx(2 * before[run.run_id, 2])


def test_pairs_take_the_minima_for_peers_that_of_the_same_run_too(tiny: Open) -> None:
    one = tiny(small() | {"metrics": ["ewc_distance"]})
    compare.compare(one)
    ids = [run.run_id for run in one.runs]
    said = {(r["run_id"], r["epoch"] if r["epoch"] == r["epoch"] else None, r["setting"]) for r in rows(one)}
    assert said == {
        *((a, None, f"to={b}") for a in ids for b in ids if a != b),
        *((a, epoch, f"to={b}") for a in ids for b in ids for epoch in (0, 2, 3)),
    }


def test_training_facts_are_those_of_each_run_up_to_there(tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rates in one stack, a batch that does not divide the data, `full`, rates scaled by the batch size."""
    seen: list[Any] = []

    def toy(at: Point) -> Estimate:
        seen.append(at.training)
        return exact(at.theta[:, 0].double())

    monkeypatch.setitem(REGISTRY["metric"], "toy", Entry("toy", "metric", toy, FACTS))
    own = {"grid": {"training.lr": [0.1, 0.2]}, "seeds": 1, "metrics": ["toy"]}
    training = small()["training"] | {"batch_size": 16, "lr_scaling": "sqrt", "lr_base_batch": 4}
    compare.compare(tiny(small() | own | {"training": training}))
    assert [[f["lr"] for f in stack] for stack in seen] == [[0.2, 0.4]] * 4  # sqrt(16 / 4) of the config's
    assert [(f["steps"], f["epochs"], f["batch_size"]) for f, _ in seen] == [
        (16, 4, 16),
        (0, 0, 16),
        (8, 2, 16),
        (12, 3, 16),
    ]
    assert [f["history"]["epoch"] for f, _ in seen] == [[0, 1, 2, 3, 4], [0], [0, 1, 2], [0, 1, 2, 3]]
    assert all(len(v) == len(f["history"]["epoch"]) for f, _ in seen for v in f["history"].values())
    seen.clear()
    full = small()["training"] | {"batch_size": "full"}
    one = tiny(small() | own | {"training": full})
    compare.compare(one)
    assert [(f["steps"], f["batch_size"], f["lr"]) for f, _ in seen[:3]] == [(4, 60, 0.1), (0, 60, 0.1), (2, 60, 0.1)]
    seen.clear()
    path = one.folder / checkpoints.snapshot_file(one.runs[0].run_id, 2)
    wanted: list[config.Measurement] = [("toy", {})]
    user_checkpoints.measure_checkpoints(one.experiment, [path], one.folder.parent, wanted, "cpu", one.watch)
    assert seen == [None]


def test_epochs_are_those_that_a_run_reached() -> None:
    training = settings_of(snapshots=[0, 5, 10, 20], stop={"max_epochs": 12})
    model = config.section("model", name="linear")
    settings = config.Settings(config.section("dataset", name="digits"), model, training, "float32")
    assert snapshots.epochs(settings) == [0, 5, 10]
    assert snapshots.epochs(settings, {"epochs": 5}) == [0, 5] and snapshots.epochs(settings, {"epochs": None}) == []


def test_along_without_snapshots_says_what_to_add(tiny: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fault) as caught:
        tiny({"along": True})
    line, _ = str(caught.value).split("\n")
    place = f"{tmp_path}/tiny.yaml:8:8: along: "
    assert (
        line == place + "does nothing without training.snapshots: add the epochs to keep, snapshots: [0, 1, 2, 5, 10]"
    )
    assert caught.value.code == 2
    tiny({"along": True, "grid": {"training.snapshots": [[], [0, 1]]}, "compare": None})  # some have them
    tiny({"along": False})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text().replace("along: false\n", ""))
    due = (
        "--along: tiny keeps nothing on the way: add the epochs to keep, --set 'training.snapshots=[0, 1, 2, 5, 10]' "
        "(its runs are then trained anew)"
    )
    for words in (["measure", "tiny.yaml"], ["compare", "tiny.yaml", "--dry-run"]):
        with pytest.raises(Fault) as caught:
            cli.app([*words, "--along", "--quiet"], standalone_mode=False)
        assert (str(caught.value), caught.value.code) == (due, 2)
    with pytest.raises(
        Fault, match=r"^--along: a checkpoint has no snapshots: name the config of its experiment instead$"
    ):
        cli.app(["measure", "a.pt", "--config", "tiny.yaml", "--along"], standalone_mode=False)
    assert not (tmp_path / "results").exists()


def test_the_option_is_the_key(tiny: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tiny(small() | {"along": False})
    monkeypatch.chdir(tmp_path)
    cli.app(["measure", "tiny.yaml", "--along", "--quiet"], standalone_mode=False)
    assert len(along(one)) == 8
    kept = session.resolve(config.read(str(one.folder / "experiment.yaml")))
    assert kept == one.experiment.model_copy(update={"along": True})
