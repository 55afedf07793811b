"""The tables of a surface: curvature at its points, and a trajectory beside its shadow, against dense mathematics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from surface_points import NETS, dense, place, plain

from landscape_cli import store
from landscape_cli.config import Surface
from landscape_cli.experiment import draw_report, measure, surface, surface_tables
from landscape_cli.metrics import point
from landscape_cli.metrics.point import Point
from landscape_cli.network.batchnorm_statistics import collect_statistics

SNAPSHOTS = {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 6}, "snapshots": [0, 1, 2, 4, 6]}}


@pytest.mark.parametrize("spec", NETS[:3])
@pytest.mark.parametrize("cut", [0, point.DENSE])
def test_curvature_at_points_is_that_of_the_dense_hessian(spec: Any, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape_cli.metrics.hessian.DENSE", cut)
    there, module = place(*spec)
    xy = torch.tensor([[0.0, 0.0], [0.4, -0.3], [-0.7, 0.9]], dtype=torch.float64)
    for (x, y), (top, low, status, message) in zip(xy, surface_tables.curvatures(there, xy), strict=True):
        assert there.Y is not None
        values = torch.linalg.eigvalsh(dense(module, there.sides["train"], there.theta + x * there.X + y * there.Y))
        assert top == pytest.approx(float(values[-1]), rel=1e-4)
        assert low == pytest.approx(float(values[0]), rel=1e-2, abs=1e-4 * float(values[-1]))
        assert (status, message) == ("ok", "")


def test_curvature_follows_the_statistics_of_batchnorm() -> None:
    there, module = place(*NETS[1], batchnorm="recompute")
    xy = torch.tensor([[1e200, 0.0], [0.5, 0.5], [-0.6, 0.2]], dtype=torch.float64)
    for point_, (top, *_) in list(zip(xy, surface_tables.curvatures(there, xy), strict=True))[1:]:
        theta, train = there.points(point_[None]), there.sides["train"]
        own = replace(train, buffers=collect_statistics(train.network, train.unflatten(theta), train.buffers, train.x))
        values = torch.linalg.eigvalsh(dense(module, own, theta))
        assert top == pytest.approx(float(values[-1]), rel=1e-4)


def test_curvature_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = place(*NETS[0])
    keep = Point.ritz

    def early(self: Point, *settings: Any) -> Any:
        return replace(keep(self, *settings), residuals=torch.ones(1, 1))

    monkeypatch.setattr(Point, "ritz", early)
    ((_, _, status, message),) = surface_tables.curvatures(there, torch.zeros(1, 2, dtype=torch.float64))
    assert status == "not_converged" and message.startswith("lambda_max: relative residual above")


def test_curvature_where_the_loss_is_not_finite() -> None:
    there, _ = place(*NETS[0])
    xy = torch.tensor([[1e200, 0.0], [0.1, 0.0]], dtype=torch.float64)
    bad, good = surface_tables.curvatures(there, xy)
    assert bad == (None, None, "undefined", "the loss is not finite") and good[2] == "ok"


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [8]}, {"name": "mlp", "hidden": [8], "batchnorm": True}])
def test_a_trajectory_beside_its_shadow(tiny: Any, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]) -> None:
    monkeypatch.setattr(draw_report, "draw", lambda *a: [])
    session = tiny(SNAPSHOTS | {"precision": "float64", "model": model})
    tables = surface.run(session, Surface(kind="trajectory", points=4))
    assert len(tables) == 2
    for run_id, values in tables.items():
        folder, settings = session.folder / "surfaces", session.runs[0].settings
        way = store.read_table(folder / f"{run_id}-trajectory-snapshots.csv")
        axes = load_file(folder / f"{run_id}-trajectory.safetensors")
        record = session.finished()[run_id]
        at = measure.point(session, [record], settings)
        flat = {a: torch.cat([axes[f"{a}0.{n}"].flatten() for n in at.train.like]) for a in "xy"}
        assert list(way.columns) == list(surface_tables.SNAPSHOTS)
        assert way[way["split"] == "train"]["epoch"].tolist() == [0, 1, 2, 4, 6]
        module = session.module(settings).double().eval()
        for (epoch, split), (row,) in ((k, g.to_dict("records")) for k, g in way.groupby(["epoch", "split"])):
            file = session.folder / (
                f"minima/{run_id}.safetensors" if epoch == 6 else _snapshot(session, run_id, epoch)
            )
            state = {n: t.double() for n, t in load_file(file).items() if not n.startswith("initial/")}
            theta = torch.cat([state[n].flatten() for n in at.train.like])
            move = theta - at.theta[0]
            assert row["x"] == pytest.approx(float(move @ flat["x"]), abs=1e-9)
            off = move - row["x"] * flat["x"] - row["y"] * flat["y"]
            assert row["off_plane"] == pytest.approx(float(off.norm()), abs=1e-6)
            side = at.train if split == "train" else at.test
            module.load_state_dict({n: t for n, t in state.items() if n in module.state_dict()}, strict=False)
            assert row["loss"] == pytest.approx(float(F.cross_entropy(module(side.x), side.y).detach()), rel=1e-6)
            shadow = at.theta + row["x"] * flat["x"] + row["y"] * flat["y"]
            own = collect_statistics(at.train.network, at.train.unflatten(shadow), at.train.buffers, at.train.x)
            module.load_state_dict({n: b[0] for n, b in own.items()}, strict=False)
            loss, accuracy = plain(module, shadow, side)
            assert (row["projected_loss"], row["projected_accuracy"]) == pytest.approx((loss, accuracy), rel=1e-6)
        assert row["off_plane"] < 1e-9 and row["loss"] == pytest.approx(row["projected_loss"])  # the minimum itself
        train = way[way["split"] == "train"]
        for axis in "xy":  # the picture holds the whole way
            assert values[axis].min() <= train[axis].min() and train[axis].max() <= values[axis].max()
            assert train[axis].iloc[0] >= 0


def _snapshot(session: Any, run_id: str, epoch: int) -> str:
    from landscape_cli.store.checkpoints import snapshot_file

    return snapshot_file(run_id, epoch)
