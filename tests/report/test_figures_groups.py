"""Figures: the same bytes twice, names that are not markup, axes that fit the data, nothing drawn that is not ok."""

import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from table_examples import GROUPS, draw_all, drawn, example, texts

from landscape_cli.report import figures_groups, plotting


def test_same_tables_give_the_same_bytes_and_leave_no_trace(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    first, again = draw_all(tmp_path / "a", GROUPS, 3, 4), draw_all(tmp_path / "b", GROUPS, 3, 4)
    assert [p.name for p in first] == [f"{s}.{k}" for s in ("training_curves", "metric_by_group", "metric_vs_gap")
                                       for k in ("png", "svg")]  # fmt: skip
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert dict(mpl.rcParams) == before
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in first)  # no temporary files
    assert b"<dc:date>" not in first[1].read_bytes()


def test_pyplot_is_never_loaded() -> None:
    loads = "import sys, landscape_cli.report.figures, landscape_cli.report.plotting as p\nwith p.styled(): pass\n"
    code = f"{loads}assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path, figures: list[Figure]) -> None:
    groups = ["<script>alert(1)</script>", "$x_1$", "_hidden", "\x1b[31mred\x1b[0m", "$\\frac{", "漢字"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs, metrics, records = example(groups, 2, 7)
        metrics.loc[metrics["metric"] == "regret", "metric"] = "$\\undefined"
        metrics.loc[metrics["metric"] == "$\\undefined", "setting"] = "$^$\x07"
        figures_groups.training_curves(records, tmp_path / "curves")
        figures_groups.metric_by_group(metrics, runs, groups, tmp_path / "$groups$.v1")
        figures_groups.metric_vs_gap(metrics, runs, tmp_path / "gap")
    assert (tmp_path / "$groups$.v1.png").exists()
    drawn = [t for figure in figures for t in texts(figure)]
    assert {"$x_1$", "_hidden", "?[31mred?[0m", "$\\undefined", "$^$?"} <= set(drawn)
    assert not any("\x1b" in t or "\x07" in t for t in drawn)
    svg = (tmp_path / "$groups$.v1.svg").read_text()
    assert "<script" not in svg


def test_a_dot_a_usable_value(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics, _ = example(GROUPS, 4)
    metrics = metrics[metrics["metric"].isin(["path_norm", "regret"])]
    figures_groups.metric_by_group(metrics, runs, GROUPS, tmp_path / "m")
    regret1, regret10, path = figures[0].axes  # the panels keep the order of the table
    dots = [[len(c.get_offsets()) for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_sizes())]
            for ax in (regret1, regret10, path)]  # fmt: skip
    assert dots == [[4, 3], [4, 3], [2, 2]]  # large-s3 diverged; seeds 0 and 3 have no path norm
    assert {"regret", "minibatch_size=1", "minibatch_size=10", "path_norm"} <= set(texts(figures[0]))


def test_pairs_of_minima_have_a_panel_a_group(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics, _ = example(GROUPS, 4)
    one = metrics[metrics["metric"] == "regret"].assign(metric="ewc_distance")
    pairs = pd.concat([one.assign(setting=f"to={run_id}") for run_id in runs["run_id"]])
    figures_groups.metric_by_group(pairs, runs, GROUPS, tmp_path / "m")
    figures_groups.metric_vs_gap(pairs, runs, tmp_path / "g")
    for figure in figures:
        assert len(figure.axes) == 2 and any("to=large" in t for t in texts(figure))


def radii(metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs.csv, and metrics.csv with R / eps of 3 runs a group at 4 radii next to the limit at radius 0."""
    runs, rows = [], []
    for group, size in (("small", 1.0), ("large", 4.0)):
        for seed in range(3):
            run = {"run_id": f"{group}{seed}", "group": group, "seed": seed, "status": "ok"}
            runs.append(run)
            for k, radius in enumerate([0, 1e-5, 1e-4, 1e-3, 1e-2]):
                value = (size + seed / 10) * 0.9**k
                rows.append({**run, "epoch": None, "metric": metric, "setting": f"radius={radius:g}", "value": value})
    return pd.DataFrame(runs), pd.DataFrame(rows)


def test_regret_by_radius_shows_means_bands_and_the_limit(tmp_path: Path, figures: list[Figure]) -> None:
    (runs, metrics), (_, kl) = radii("regret_exact"), radii("regret_kl_exact")
    written = figures_groups.regret_by_radius(pd.concat([metrics, kl]), runs, GROUPS, tmp_path / "r")
    assert [p.name for p in written] == ["r.png", "r.svg"]
    exact, other = figures[0].axes
    assert "radius, square root of symmetrized KL" in other.get_xlabel() and exact.get_xscale() == "log"
    (limit, small, high, large), bands = exact.lines, exact.collections
    np.testing.assert_allclose(small.get_xdata(), [1e-5, 1e-4, 1e-3, 1e-2])
    np.testing.assert_allclose(small.get_ydata(), 1.1 * 0.9 ** np.arange(1, 5))
    np.testing.assert_allclose(large.get_ydata(), 4.1 * 0.9 ** np.arange(1, 5))
    np.testing.assert_allclose([limit.get_ydata(), high.get_ydata()], [[1.1] * 2, [4.1] * 2])
    _, *ends = figures_groups.t_interval(np.array([0.9, 0.99, 1.08]))
    edge = bands[0].get_paths()[0].vertices
    at_first = edge[edge[:, 0] == 1e-5, 1]
    assert [at_first.min(), at_first.max()] == pytest.approx(ends)
    assert "dashed: first order" in texts(figures[0])


def test_regret_by_radius_takes_two_radii_of_usable_values(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics = radii("regret_exact")
    near = metrics["setting"].isin(["radius=1e-05", "radius=0.0001"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures_groups.regret_by_radius(
            metrics[metrics["group"] == "small"], runs, GROUPS, tmp_path / "a"
        )  # a group without
        figures_groups.regret_by_radius(metrics[near], runs.iloc[::3], GROUPS, tmp_path / "b")  # single runs, no limit
    assert [sum(len(line.get_xdata()) > 0 for line in figure.axes[0].lines) for figure in figures] == [2, 2]
    for few in (metrics[metrics["setting"].isin(["radius=0", "radius=0.01"])], metrics.assign(status="undefined")):
        assert figures_groups.regret_by_radius(few, runs, GROUPS, tmp_path / "c") == []
    assert not list(tmp_path.glob("c*"))


@pytest.mark.parametrize(("values", "log"), [([1, 40], True), ([1, 20], False), ([-1, 40], False), ([0, 40], False)])
def test_axes_are_logarithmic_where_data_span_decades(
    values: list[float], log: bool, tmp_path: Path, figures: list[Figure]
) -> None:
    runs, metrics, _ = example(GROUPS, 3)
    metrics = metrics[metrics["metric"] == "gradient_norm"].assign(value=np.resize(values, 6), status="ok")
    figures_groups.metric_by_group(metrics, runs, GROUPS, tmp_path / "m")
    figures_groups.metric_vs_gap(metrics, runs, tmp_path / "g")
    assert (figures[0].axes[0].get_yscale() == "log") == (figures[1].axes[0].get_xscale() == "log") == log


def test_rho_is_spearmans_and_outcomes_are_not_their_own_predictors(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics, _ = example(GROUPS, 4)
    runs["loss_gap"] = [1.0, 2, 3, 4, 5, 6, 7, 100]
    metrics.loc[metrics["metric"] == "gradient_norm", "value"] = [2.0, 1, 3, 4, 5, 6, 7, np.nan]
    figures_groups.metric_vs_gap(metrics, runs, tmp_path / "g")
    assert f"ρ = {1 - 6 * 2 / (7 * 48):.2f}" in texts(figures[0])  # 0.96: one swap among the 7 ok runs
    assert not set(texts(figures[0])) & set(figures_groups.OUTCOMES)


def test_no_rho_for_a_constant_or_for_two_runs() -> None:
    for few in ({"value": np.ones(5), "gap": np.arange(5.0)}, {"value": np.arange(2.0), "gap": np.arange(2.0)}):
        assert np.isnan(figures_groups._spearman(pd.DataFrame(few)))
    assert figures_groups._spearman(pd.DataFrame({"value": np.arange(3.0), "gap": -np.arange(3.0)})) == -1


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    runs, metrics, records = example(GROUPS, 2)
    none = metrics.assign(status="undefined", value=None)
    assert figures_groups.metric_by_group(none, runs, GROUPS, tmp_path / "a") == []
    assert figures_groups.metric_vs_gap(none, runs, tmp_path / "b") == []
    assert figures_groups.metric_vs_gap(metrics, runs.assign(loss_gap=None), tmp_path / "b") == []
    assert figures_groups.training_curves([{**r, "history": None} for r in records], tmp_path / "c") == []
    assert list(tmp_path.iterdir()) == []


def test_single_runs_and_many_panels_are_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    runs, metrics, _ = example([f"group {i}" for i in range(8)], 1)
    assert len(figures_groups.metric_by_group(metrics, runs, list(runs["group"]), tmp_path / "m")) == 2
    one = metrics[metrics["metric"] == "path_norm"].assign(status="ok", value=1.0)
    many = pd.concat([one.assign(setting=f"rank={k}") for k in range(7)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_groups, "MAX_PANELS", 6)
        patch.setattr(plotting, "save", lambda figure, stem: figures.append(figure) or [])
        figures_groups.metric_by_group(many, runs, ["group 0"], tmp_path / "n")
    assert len(figures[-1].axes) == 6
    assert any("6 of 7 panels" in t for t in texts(figures[-1]))


def test_curves_leave_out_what_a_log_axis_cannot_show() -> None:
    history = {"step": [0, 1, 2, 3], "train_loss": [2.0, 1.0, float("nan"), None]}
    x, y = figures_groups.curve({"history": history}, "step")
    assert (x.tolist(), y.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize(
    ("value", "label"), [(0.0, "0"), (0.1 + 0.2, "0.3"), (3e-7, "3e-7"), (-2.5, "−2.5"), (1e5, "1e5"), (1500, "1500")]
)
def test_ticks_read_plainly(value: float, label: str) -> None:
    assert plotting.tick(value) == label


@pytest.mark.parametrize(
    "groups", [GROUPS, ["b10", "b32", "b100", "b320", "b1000"], [f"a long name {i}" for i in range(5)]]
)
def test_no_two_labels_overlap(groups: list[str], tmp_path: Path, figures: list[Figure]) -> None:
    draw_all(tmp_path, groups, 2, 7)
    (runs, exact), (_, kl) = radii("regret_exact"), radii("regret_kl_exact")
    figures_groups.regret_by_radius(pd.concat([exact, kl]), runs, GROUPS, tmp_path / "r")
    for figure in figures:
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in drawn(figure) if t.get_text().strip()]
        clashes = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.padded(-0.5).overlaps(b.padded(-0.5))]
        assert clashes == []
        assert all(b.x0 > -1 and b.x1 < figure.bbox.width + 1 and b.y1 < figure.bbox.height + 1 for b in boxes)


def test_where_not_all_settings_fit_every_metric_is_shown_before_a_second_setting() -> None:
    shown = [(m, s, pd.DataFrame()) for m, s in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", ""))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_groups, "MAX_PANELS", 4)
        assert [(m, s) for m, s, _ in figures_groups._one_of_each(shown)] == [
            ("a", "1"),
            ("a", "2"),
            ("b", "1"),
            ("c", ""),
        ]


def test_where_not_all_metrics_fit_those_that_follow_the_gap_best_are_shown(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, metrics, _ = example(GROUPS, 3)
    runs["loss_gap"] = [1.0, 2, 3, 4, 5, 6]
    one = metrics[metrics["metric"] == "path_norm"].assign(status="ok")
    values = {"a": [1.0, 2, 3, 4, 5, 6], "b": [3.0, 1, 6, 2, 5, 4], "c": [6.0, 5, 4, 3, 2, 1], "d": [1.0] * 6}
    table = pd.concat([one.assign(setting=f"is={name}", value=v) for name, v in values.items()])
    monkeypatch.setattr(figures_groups, "MAX_PANELS", 2)
    figures_groups.metric_vs_gap(table, runs, tmp_path / "g")
    said = " ".join(texts(figures[0]))
    assert "is=a" in said and "is=c" in said and "is=b" not in said and "is=d" not in said
    assert "the 2 largest |ρ| of 4" in said
