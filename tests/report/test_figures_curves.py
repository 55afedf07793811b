"""Figures of curves: what was measured at snapshots against the epoch, edges of stability, spectra."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from table_examples import drawn, texts

from landscape_cli import config
from landscape_cli.report import figures_curves, plotting, statistics
from landscape_cli.report.inputs import Inputs

GROUPS = ["0.2", "0.4"]
EDGES = {"0.2": {10.0: "2/lr"}, "0.4": {5.0: "2/lr"}}


def measured(
    *metrics: str, epochs: tuple[int, ...] = (0, 1, 10, 100, 500), groups: list[str] = GROUPS, setting: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv and metrics.csv: two runs a group with values at snapshots, 1 + epoch / 100 + run, and at epoch 1000."""
    runs, rows = [], []
    for i, group in enumerate(groups):
        for seed in range(2):
            run = {"run_id": f"{group}-s{seed}", "group": group, "seed": seed, "status": "ok"}
            runs.append(run | {"epochs": 1000})
            for metric in metrics:
                for epoch in (None, *epochs):
                    value = 1 + (1000 if epoch is None else epoch) / 100 + 2 * i + seed
                    rows.append({**run, "metric": metric, "setting": setting, "epoch": epoch, "value": value})
    return pd.DataFrame(runs), pd.DataFrame(rows)


def draw(
    folder: Path, runs: pd.DataFrame, metrics: pd.DataFrame, edges: Any = None, groups: list[str] = GROUPS
) -> list[Path]:
    return figures_curves.along_training(metrics, runs, groups, EDGES if edges is None else edges, folder / "a")


def test_curves_end_at_the_minimum(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics = measured("train_loss", "hessian_top")
    assert [p.name for p in draw(tmp_path, runs, metrics)] == ["a.png", "a.svg"]
    top, loss = figures[0].axes
    assert [t for t in texts(figures[0]) if t in ("hessian_top", "train_loss")] == ["hessian_top", "train_loss"]
    lines = [line for line in loss.lines if len(line.get_xdata()) > 1]
    assert len(lines) == 4
    np.testing.assert_allclose(lines[1].get_xdata(), [0, 1, 10, 100, 500, 1000])
    np.testing.assert_allclose(lines[1].get_ydata(), 2 + np.array([0, 1, 10, 100, 500, 1000]) / 100)
    assert len([line for line in loss.lines if len(line.get_xdata()) == 1]) == 4  # the minima, as dots
    assert len(top.lines) == 8 + 2 and len(loss.lines) == 8  # edges beside the curvature only


def test_what_counts_along_training() -> None:
    """Not what has no snapshot, is not ok or is shared; pairs are joined by group; a snapshot stands for itself."""
    runs, metrics = measured("m", epochs=(5, 1000))
    runs.loc[0, "epochs"] = None  # unknown where it ended
    alone = metrics[metrics["epoch"].isna()].assign(metric="alone")
    shared = metrics.assign(metric="_shared:m")
    bad = metrics.assign(metric="bad", status="not_converged")
    mixed = metrics.assign(metric="mixed", status=np.where(metrics["epoch"] == 5, "undefined", "ok"))
    pairs = pd.concat(
        [metrics.assign(metric="d", setting=f"to={r}", value=float(i)) for i, r in enumerate(runs["run_id"])]
    )
    found = statistics.along(pd.concat([metrics, alone, shared, bad, mixed, pairs]), runs)
    assert list(dict.fromkeys(found["metric"])) == ["m", "mixed", "d"]
    first, second = (found[(found["run_id"] == run_id) & (found["metric"] == "m")] for run_id in runs["run_id"][:2])
    assert first["epoch"].tolist() == second["epoch"].tolist() == [5, 1000]
    assert second["value"].tolist() == [2.05, 12.0]
    assert found.loc[found["metric"] == "mixed", "epoch"].tolist() == [1000] * 4
    to = found[(found["metric"] == "d") & (found["run_id"] == "0.2-s1") & (found["epoch"] == 5)]
    assert dict(zip(to["setting"], to["value"], strict=True)) == {"to=0.2": 0.5, "to=0.4": 2.5}
    assert found["group"].tolist()[:2] == ["0.2"] * 2


def test_edges_stand_beside_the_largest_eigenvalue(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics = measured("hessian_top")
    second = metrics.assign(setting="rank=2")
    blocks = metrics.assign(setting="block=0.weight;blocks=layer")
    draw(tmp_path, runs, pd.concat([metrics.assign(setting="rank=1"), second, blocks]))
    one, *others = figures[0].axes
    dashed = [line for line in one.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[10, 10], [5, 5]]
    assert [line.get_color() for line in dashed] == [plotting.PALETTE[0], plotting.PALETTE[1]]
    assert {"2/lr = 10", "2/lr = 5", "dashed: 2/lr"} <= set(texts(figures[0]))
    assert not [line for ax in others for line in ax.lines if line.get_linestyle() == "--"]
    far = {"0.2": {1e4: "2/lr"}, "none": {5.0: "2/lr"}, "0.4": {20.0: "2(1+μ)/lr", 20.1: "2(1+μ)/lr"}}
    draw(tmp_path, runs, metrics, far)  # one out of reach, one of no group, two too near for two labels
    assert [t for t in texts(figures[1]) if "lr" in t] == ["2(1+μ)/lr = 20", "dashed: 2(1+μ)/lr"]
    assert figures[1].axes[0].get_ylim()[1] < 30


def test_six_panels_at_most_and_the_curvature_first(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics = measured("a", "b", "c", "d", "e", "hessian_top", "g")
    draw(tmp_path, runs, metrics)
    assert [t for t in texts(figures[0]) if t in [*"abcdefg", "hessian_top"]] == ["hessian_top", *"abcde"]
    assert any("first 6 of 7 panels" in t for t in texts(figures[0]))
    many = pd.concat([metrics[metrics["metric"] == "a"].assign(setting=f"k={k}") for k in range(3)])
    draw(tmp_path, runs, pd.concat([many, metrics[metrics["metric"].isin(["b", "c"])]]))
    seen = [ax.get_title("left") + ax.texts[0].get_text() for ax in figures[1].axes]
    assert seen == ["k=0a", " b", " c", "k=1a", "k=2a"]


@pytest.mark.parametrize(
    ("epochs", "how"),
    [
        ((0, 1, 10, 100), "symlog"),
        ((1, 2, 5), "log"),
        ((0, 250, 500), "linear"),
        ((500, 900), "linear"),
        ((0,), "linear"),
    ],
)
def test_the_epochs_are_logarithmic_where_snapshots_crowd_at_the_start(
    epochs: tuple[int, ...], how: str, tmp_path: Path, figures: list[Figure]
) -> None:  # fmt: skip
    runs, metrics = measured("m", epochs=epochs)
    draw(tmp_path, runs, metrics)
    ax = figures[0].axes[0]
    assert ax.get_xscale() == how
    seen = [t.get_text() for t in drawn(figures[0]) if t in ax.get_xticklabels()]
    assert len(seen) >= 3 and ("0" in seen) == (0 in epochs)


def test_an_edge_that_groups_share_is_one_grey_line(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics = measured("hessian_top")
    draw(tmp_path, runs, metrics, {"0.2": {10.0: "2/lr"}, "0.4": {10.0: "2/lr", 5.0: "2/lr"}})
    dashed = [line for line in figures[0].axes[0].lines if line.get_linestyle() == "--"]
    assert [(line.get_ydata()[0], line.get_color()) for line in dashed] == [
        (10, plotting.MUTED),
        (5, plotting.PALETTE[1]),
    ]


def test_nothing_at_snapshots_draws_nothing(tmp_path: Path) -> None:
    runs, metrics = measured("m", epochs=())
    assert draw(tmp_path, runs, metrics) == []
    runs, metrics = measured("m")
    assert draw(tmp_path, runs, metrics.assign(status="undefined")) == []
    assert draw(tmp_path, runs, metrics, groups=["other"]) == []
    assert figures_curves.spectral_density(pd.DataFrame(), runs, GROUPS, tmp_path / "s") == []
    table = spectra(runs)
    assert figures_curves.spectral_density(table.assign(epoch=3), runs, GROUPS, tmp_path / "s") == []
    assert figures_curves.spectral_density(table, runs.assign(status="diverged"), GROUPS, tmp_path / "s") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        (GROUPS, 2),
        (["b10", "b32", "b100", "b320", "b1000"], 6),
        ([f"a long name {i}" for i in range(5)], 1),
        ([f"a long name {i}" for i in range(5)], 4),
    ],
)
def test_no_two_labels_overlap(
    groups: list[str], count: int, tmp_path: Path, figures: list[Figure]
) -> None:  # fmt: skip
    runs, metrics = measured("hessian_top", *"abcdef"[: count - 1], groups=groups)
    edges = {group: {10.0 + 2 * i: "2(1+μ)/((1+2μ)lr)", 3.0: "2/lr"} for i, group in enumerate(groups)}
    draw(tmp_path, runs, metrics, edges, groups)
    figures_curves.spectral_density(spectra(runs), runs, groups, tmp_path / "s")
    for figure in figures:
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in drawn(figure) if t.get_text().strip()]
        clashes = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.padded(-0.5).overlaps(b.padded(-0.5))]
        assert clashes == []
        assert all(b.x0 > -1 and b.x1 < figure.bbox.width + 1 and b.y1 < figure.bbox.height + 1 for b in boxes)


def spectra(runs: pd.DataFrame, settings: tuple[str, ...] = ("",)) -> pd.DataFrame:
    """tables/spectral_density.csv: a bulk at 0 and one outlier, at 4 + seed, on a grid of each run's own."""
    parts = []
    for _, run in runs.iterrows():
        x = np.linspace(-1, 6 + run["seed"], 300)
        bell = [np.exp(-(((x - at) / 0.1) ** 2) / 2) / 0.1 / (2 * np.pi) ** 0.5 for at in (0, 4 + run["seed"])]
        own = {"eigenvalue": x, "density": 0.999 * bell[0] + 0.001 * bell[1], "standard_error": 0.0}
        about = {"run_id": run["run_id"], "group": run["group"], "seed": run["seed"], "epoch": None}
        parts += [pd.DataFrame(about | own | {"setting": setting}, index=range(300)) for setting in settings]
    return pd.concat(parts)


def test_spectra_are_averaged_on_a_common_grid(tmp_path: Path, figures: list[Figure]) -> None:
    runs, _ = measured("m")
    written = figures_curves.spectral_density(spectra(runs), runs, GROUPS, tmp_path / "s")
    assert [p.name for p in written] == ["s.png", "s.svg"]
    (ax,) = figures[0].axes
    assert ax.get_yscale() == "log" and ax.get_xscale() == "linear"
    thin, thick = ([line for line in ax.lines if (line.get_linewidth() < 1) == fine] for fine in (True, False))
    assert (len(thin), len(thick)) == (4, 2)
    x, y = thick[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=2e-3)  # a density still
    for at in (4, 5):  # each seed's outlier, at half the height: the other run has nothing there
        peak = y[np.abs(x - at) < 0.5].max()
        assert peak == pytest.approx(0.0005 / 0.1 / (2 * np.pi) ** 0.5, rel=0.02)
    one = figures_curves.spectral_density(
        spectra(runs, ("a", "b")), runs[runs["group"] == "0.4"], GROUPS, tmp_path / "s"
    )
    assert len(one) == 2 and [len(ax.lines) for ax in figures[1].axes] == [3, 3]  # a panel a setting


def test_edges_are_those_of_each_groups_optimizer(tmp_path: Path) -> None:
    """Of gradient descent on 1/2 x^2 lambda, by running it: below the edge it shrinks, above it grows."""

    def of(records: list[dict[str, Any]]) -> dict[str, dict[float, str]]:
        return figures_curves.edges(Inputs(tmp_path, records, []))

    def edges(swept: list[dict[str, Any]], **training: Any) -> dict[str, dict[float, str]]:
        own = {"lr": 0.1, "batch_size": "full"} | training
        tree = {"name": "x", "dataset": {"name": "digits"}, "model": {"name": "linear"}, "training": own}
        (tmp_path / "experiment.yaml").write_text(config.canonical(tree))
        return of([{"group": f"g{i}", "swept": s} for i, s in enumerate(swept)])

    def grows(curvature: float, lr: float, mu: float, nesterov: bool) -> bool:
        x, v = 1.0, 0.0
        for _ in range(3000):
            gradient = curvature * x
            v = mu * v + gradient
            x -= lr * (gradient + mu * v if nesterov else v)
        return abs(x) > 1

    for mu, nesterov, formula in ((0.0, False, "2/lr"), (0.9, False, "2(1+μ)/lr"), (0.9, True, "2(1+μ)/((1+2μ)lr)")):
        found = edges([{"training.lr": 0.2}, {}, {"dataset.seed": 1}], momentum=mu, nesterov=nesterov)
        assert {g: list(each.values()) for g, each in found.items()} == {g: [formula] for g in ("g0", "g1", "g2")}
        (edge,) = found["g0"]
        assert found["g1"] == found["g2"] == {2 * edge: formula}
        assert grows(1.01 * edge, 0.2, mu, nesterov) and not grows(0.99 * edge, 0.2, mu, nesterov)
    assert edges([{"training.optimizer": "adam"}, {}, {"training.schedule": "cosine"}]).keys() == {"g1"}
    assert edges([{}], optimizer="sam") == edges([{}], warmup_epochs=2) == edges([{}], lr_scaling="linear") == {}
    two = [{"group": "same", "swept": {"training.lr": lr}} for lr in (0.1, 0.2, 0.1)]
    assert of(two) == {}
    edges([])
    assert list(of(two)["same"]) == [20, 10]
    (tmp_path / "experiment.yaml").write_text("{")
    assert of(two) == {}  # of which optimizer nobody knows: no line rather than a wrong one
    (tmp_path / "experiment.yaml").unlink()
    assert of([{"group": "g", "swept": {}}]) == {}
