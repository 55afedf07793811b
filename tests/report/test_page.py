"""The report: it says what the tables say, is one file, and treats every name as text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from table_examples import GROUPS, draw_all, example

from landscape_cli.registry.errors import Fault
from landscape_cli.report import page as report
from landscape_cli.report import statistics
from landscape_cli.report.inputs import table
from landscape_cli.store import columns
from landscape_cli.store.tables import table_bytes

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags must nest and close; collects tags with attributes, and text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


def results(folder: Path, groups: list[str], seeds: int = 8, plots: bool = False) -> Path:
    folder.mkdir()
    (folder / "plots").mkdir()
    runs, metrics, _ = example(groups, seeds)
    comparison = statistics.compare(metrics, runs, groups)
    for name, frame in (("runs", runs), ("metrics", metrics), ("comparison", comparison)):
        (folder / f"{name}.csv").write_bytes(table_bytes(frame))
    (folder / "experiment.yaml").write_text("name: <b>mine</b>\n")
    (folder / "manifest.json").write_text(json.dumps({"command": "landscape compare </pre><script>"}))
    if plots:
        draw_all(folder / "plots", groups, 2, 4)
    return folder


def page(folder: Path, **about: str) -> Page:
    return Page(report.render(folder, about).decode())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results(tmp_path_factory.mktemp("r") / "small-vs-large", GROUPS, plots=True)


def test_the_headline_says_what_the_tables_say(two: Path) -> None:
    runs, comparison = table(two / "runs.csv"), table(two / "comparison.csv")
    low = comparison[~comparison["metric"].isin(columns.OUTCOMES)]
    text = report.headline(runs, comparison)
    small = runs.loc[(runs["group"] == "small") & (runs["status"] == "ok"), "test_accuracy"]
    assert f"Test accuracy: small {small.mean() * 100:.1f} % (95 % interval " in text
    assert f"{(low['p_holm'] < 0.05).sum()} of {len(low)} metrics differ between small and large" in text
    assert re.search(
        r"In large, fisher_rao_norm is \d+ times \(\d+ to \d+\) that of small, hessian_top \(rank=2\)", text
    )
    assert text.endswith("1 of 16 runs did not end ok and is left out.")
    assert text in page(two).text


def test_headline_is_honest_where_nothing_differs_or_could() -> None:
    runs = pd.DataFrame({"run_id": list("abcdef"), "group": ["x"] * 3 + ["y"] * 3, "status": "ok"})
    runs["test_accuracy"] = 0.5
    metrics = runs.assign(epoch=None, metric="m", setting="", value=[1.0, 2, 3, 4, 5, 6])
    text = report.headline(runs, statistics.compare(metrics, runs, ["x", "y"]))
    assert "None of 1 metrics differs clearly between x and y" in text and "no proof that they are equal" in text
    assert "With 3 and 3 runs the smallest possible p-value is 0.1: tested 1 times, not even" in text
    lone = report.headline(runs.assign(group="x"), statistics.compare(metrics.iloc[:0], runs, ["x"]))
    assert "nothing to compare" in lone
    few = report.headline(runs, statistics.compare(metrics.iloc[:1], runs, ["x", "y"]))
    assert "No metric has the two values a group that a test of y against x needs." in few


def test_differences_without_a_ratio_are_told_by_direction() -> None:
    row = pd.Series({"metric": "m", "setting": "", "ratio": float("nan"), "cliffs_delta": -1.0, "p_holm": 0.01})
    assert report.contrast(row, "x") == "m is lower than in x"


def test_one_file_that_reaches_for_nothing_outside(two: Path) -> None:
    found = page(two)
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert [i["alt"] for i in images] == ["Metrics by group", "Metrics against the generalization gap", "Training"]
    assert all(str(i["src"]).startswith("data:image/png;base64,") and int(str(i["width"])) > 500 for i in images)
    assert not [attrs for _, attrs in found.tags if {"href", "srcset", "action"} & set(attrs)]
    html = re.sub(rb"base64,[^\"]*", b"", report.render(two))
    assert b"http://" not in html and b"https://" not in html and b"@import" not in html and b"url(" not in html
    assert html.startswith(b"<!DOCTYPE html>")


def test_same_files_give_the_same_bytes(two: Path) -> None:
    assert report.render(two) == report.render(two)


def test_every_row_column_and_failure_is_there_with_all_digits(two: Path) -> None:
    found, comparison = page(two, hessian_top="the largest eigenvalues"), table(two / "comparison.csv")
    titles = {attrs["title"] for _, attrs in found.tags if "title" in attrs}
    for column in ("small_mean", "large_ci_high", "ratio", "p_holm"):
        assert {repr(v) for v in comparison[column].dropna()} <= titles
    assert "the largest eigenvalues" in found.text
    assert "loss is nan at step 12: lower lr" in found.text and "no path: a layer is not linear" in found.text
    rows = sum(tag == "tr" for tag, _ in found.tags)
    assert rows == (1 + len(comparison)) + (1 + 2) + (1 + 16)  # comparison, failures (a run, path_norm), runs
    assert "0.000311" in found.text  # the floor of p at 8 and 7 runs


def test_failures_of_a_metric_are_counted_over_runs_that_are_ok(two: Path) -> None:
    runs, metrics = table(two / "runs.csv"), table(two / "metrics.csv")
    assert report.failures(runs, metrics) == [
        ("b1-s7-17af03", "diverged", "loss is nan at step 12: lower lr", 1),
        ("path_norm", "undefined", "no path: a layer is not linear", 6),
    ]


def test_a_message_of_a_value_that_is_ok_is_no_failure(tmp_path: Path) -> None:
    folder = results(tmp_path / "r", GROUPS, 3)
    before = page(folder)
    metrics = table(folder / "metrics.csv")
    metrics.loc[metrics["status"] == "ok", "message"] = "rank 90 of 90 rows"
    (folder / "metrics.csv").write_bytes(table_bytes(metrics))
    after = page(folder)
    assert "rank 90" not in after.text and after.text == before.text


def test_pairs_that_failed_are_listed_by_group() -> None:
    runs = pd.DataFrame({"run_id": list("abcd"), "group": ["x", "x", "y", "y"], "status": "ok", "message": ""})
    pairs = [(a, f"to={b}") for a in "abcd" for b in "abcd" if a != b]
    metrics = pd.DataFrame(pairs, columns=["run_id", "setting"])
    metrics = metrics.assign(metric="ewc_distance", status="failed", message="no Fisher")
    assert report.failures(runs, metrics) == [
        ("ewc_distance (to=x)", "failed", "no Fisher", 4),
        ("ewc_distance (to=y)", "failed", "no Fisher", 4),
    ]


def test_the_headline_counts_a_metric_once_whatever_its_names() -> None:
    runs = pd.DataFrame(
        {"run_id": list("abcdef"), "group": ["x"] * 3 + ["y"] * 3, "status": "ok", "test_accuracy": 0.5}
    )
    one = runs.assign(epoch=None, setting="", value=[1.0, 2, 3, 4, 5, 6])
    metrics = pd.concat([one.assign(metric=m) for m in ("noise", "diversity", "coherence")])
    same = {"diversity": "noise", "coherence": "noise"}
    text = report.headline(runs, statistics.compare(metrics, runs, ["x", "y"], same), same)
    assert "None of 1 metrics differs clearly" in text and "tested 1 times" in text
    assert "None of 3 metrics differs clearly" in report.headline(runs, statistics.compare(metrics, runs, ["x", "y"]))


def test_the_regret_by_radius_has_a_title_and_a_caption(two: Path, tmp_path: Path) -> None:
    png = (two / "plots" / "training_curves.png").read_bytes()
    (tmp_path / "regret_by_radius.png").write_bytes(png)
    (figure,) = report.pictures(tmp_path)
    assert (
        figure.title == "How far the linear formula holds" and "before the linear formula misjudges" in figure.caption
    )


def test_hostile_names_are_text(tmp_path: Path) -> None:
    groups = ["<script>alert(1)</script>", "$x_1$", '"><img src=x onerror=alert(1)>', "\x1b[31mred\u202e"]
    folder = results(tmp_path / "<img src=y>", groups, 3)
    found = page(folder, hessian_top='" onmouseover="alert(1)')
    assert [tag for tag, _ in found.tags].count("script") == 1  # ours
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.text and "$x_1$" in found.text and "?[31mred?" in found.text
    assert "<b>mine</b>" in found.text and "</pre><script>" in found.text  # experiment.yaml, manifest.json
    assert not {"\x1b", "\u202e"} & set(report.render(folder).decode())


def test_a_sweep_of_five_groups_compares_the_last_with_the_first(tmp_path: Path) -> None:
    groups = ["b10", "b32", "b100", "b320", "b1000"]
    found = page(results(tmp_path / "sweep", groups, 4))
    heads = [attrs for tag, attrs in found.tags if tag == "th" and attrs.get("scope") == "col"]
    assert "b1000 / b10" in found.text and "5 groups: b10, b32, b100, b320, b1000" in found.text
    assert len(heads) >= 1 + 1 + 5 + 3


def test_what_is_missing_is_left_out_but_runs_are_needed(tmp_path: Path) -> None:
    folder = results(tmp_path / "bare", GROUPS, 2)
    for name in ("metrics.csv", "comparison.csv", "experiment.yaml", "manifest.json"):
        (folder / name).unlink()
    text = page(folder).text
    assert "4 runs" in text and "Provenance" not in text and "nothing to compare" in text
    (folder / "manifest.json").write_text("{broken")
    assert "Provenance" not in page(folder).text
    (folder / "runs.csv").unlink()
    with pytest.raises(Fault) as fault:
        report.render(folder)
    assert str(fault.value) == f"{folder}: runs.csv is missing: run `landscape train` or `landscape compare` first"


@pytest.mark.parametrize(
    ("value", "text", "digits"),
    [
        (0.123456, "0.123", "0.123456"),
        (1391.4, "1391", "1391.4"),
        (1.5e-7, "1.5e-7", "1.5e-07"),
        (3, "3", "3"),
        (float("nan"), "–", ""),
        (pd.NA, "–", ""),
        (None, "–", ""),
        ("b10", "b10", "b10"),
        (2.5e7, "2.5e7", "25000000.0"),
    ],
)
def test_numbers_are_short_and_their_digits_kept(value: object, text: str, digits: str) -> None:
    assert (report.shown(value), report.full(value)) == (text, digits)
