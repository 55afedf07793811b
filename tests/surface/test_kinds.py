"""Planes of a trajectory and of Hessian eigenvectors, and curvature over planes, against dense mathematics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Call
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from surface_points import NETS, place, plain
from torch import nn

from landscape_cli import store
from landscape_cli.config import Surface
from landscape_cli.curvature.objective import Objective
from landscape_cli.experiment import compare, drawing, measure, surface, surface_tables
from landscape_cli.metrics import point
from landscape_cli.metrics.point import Point
from landscape_cli.network.batchnorm_statistics import collect_statistics
from landscape_cli.registry.errors import Fault
from landscape_cli.surface.kinds import eigenvectors, principal
from landscape_cli.surface.values import Place

SNAPSHOTS = {"training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 6}, "snapshots": [0, 1, 2, 4, 6]}}


def dense(module: nn.Module, at: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The Hessian of the mean cross-entropy, by PyTorch's own differentiation of the plain module in eval mode."""

    def loss(flat: torch.Tensor) -> torch.Tensor:
        state = {n: t[0] for n, t in at.unflatten(flat[None]).items()} | {n: b[0] for n, b in at.buffers.items()}
        return F.cross_entropy(torch.func.functional_call(module, state, (at.x,)), at.y)

    H: torch.Tensor = torch.autograd.functional.hessian(loss, theta.flatten())
    return H


def test_principal_components_are_those_of_a_library() -> None:
    rng = torch.Generator().manual_seed(0)
    moves = torch.randn(7, 40, generator=rng, dtype=torch.float64) * torch.linspace(1, 3, 40) + 2.0
    axes, shares = principal(moves)
    due = PCA(2).fit(moves.numpy())
    assert np.allclose(shares.numpy(), due.explained_variance_ratio_, rtol=1e-10)
    assert np.allclose((axes.numpy() * due.components_).sum(1).__abs__(), 1.0, rtol=1e-10)
    assert ((axes @ moves[0]) > 0).all()
    with pytest.raises(Fault, match="lie on one line"):
        principal(torch.outer(torch.arange(5.0), torch.ones(9)).double())


@pytest.mark.parametrize("spec", NETS[:3])
def test_eigenvectors_are_those_of_the_dense_hessian(spec: Any) -> None:
    there, module = place(*spec)
    train = there.sides["train"]
    axes, facts = eigenvectors(Point(there.theta, train, train))
    values, vectors = torch.linalg.eigh(dense(module, train, there.theta))
    assert facts["eigenvalues"] == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-5)
    assert max(facts["residuals"]) <= 1e-3
    for axis, due in zip(axes, vectors.T.flip(0), strict=False):
        assert float((axis @ due).abs()) == pytest.approx(1.0, abs=1e-4)
        assert float(axis.norm()) == pytest.approx(1.0, abs=1e-12)
        assert axis[axis.abs().argmax()] > 0
    again, h = Place(there.sides, there.theta, axes[0], axes[1]), 1e-3
    low, mid, high = again.scores(torch.tensor([[-h, 0.0], [0.0, 0.0], [h, 0.0]], dtype=torch.float64))[:, 0, 0]
    slope = float(low + high - 2 * mid) / h**2
    assert slope == pytest.approx(facts["eigenvalues"][0], rel=0.05)


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
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
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


def test_curvature_beside_a_surface_that_is_there(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
    session, asked = tiny({"seeds": 1}), Surface(points=3, draws=2)
    (run_id, first), *_ = surface.run(session, asked).items()
    made: list[int] = []
    keep = Place.scores
    monkeypatch.setattr(Place, "scores", lambda self, xy: made.append(len(xy)) or keep(self, xy))
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
    monkeypatch.setattr(drawing, "draw", lambda *a: None)
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
def test_bad_input(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
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
