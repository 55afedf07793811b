"""What a person reads: labels of rows, complaints, and how many tests a p-value was corrected for."""

import pandas as pd
import pytest

from landscape_cli import registry
from landscape_cli.cli import print_tables
from landscape_cli.report import statistics


def rows(*cells: tuple[str, str, str, str, str]) -> pd.DataFrame:
    """metrics.csv: run, metric, setting, status, message; the group is the run's first letter."""
    table = pd.DataFrame(cells, columns=["run_id", "metric", "setting", "status", "message"])
    return table.assign(group=table["run_id"].str[0], value=1.0, standard_error=0.0)


def test_a_message_of_a_value_that_is_ok_is_no_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(("x0", "regret_kl", "", "ok", "rank 90 of 90 rows"), ("x1", "regret_kl", "", "undefined", "rank 0"))
    assert print_tables.complaints(table) == []
    print_tables.metrics(table)
    assert "rank" not in "".join(capsys.readouterr())


def test_complaints_join_runs_and_the_pairs_of_a_group() -> None:
    lost = [(a, "ewc_distance", f"to={b}", "failed", "no Fisher") for a in ("x0", "x1") for b in ("x0", "x1", "y0")]
    table = rows(*lost, ("y0", "hessian_top", "k=1", "not_converged", "raise steps"))
    assert print_tables.complaints(table) == [
        "ewc_distance(to=x): failed: no Fisher (2 runs, first x0)",
        "ewc_distance(to=y): failed: no Fisher (2 runs, first x0)",
        "hessian_top(k=1): not_converged: raise steps (1 runs, first y0)",
    ]


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ("", "m"),
        ("minibatch_size=10", "m m=10"),
        ("solver=converged", "m converged"),
        ("damping=1;to=large", "m damping=1 to=large"),
        ('to="a;b"', 'm to="a;b"'),
        ("radius=0.1;radius=[0.1, 1]", "m radius=0.1"),
    ],
)
def test_labels(setting: str, label: str) -> None:
    assert print_tables.label({"metric": "m", "setting": setting}, set(), 80) == label


def test_a_label_leaves_out_what_all_rows_share_and_what_has_no_room() -> None:
    row = {"metric": "regret_kl", "setting": "minibatch_size=10;over=train_and_test;samples=1000"}
    assert print_tables.common([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}]) == {"a"}
    assert print_tables.common([{"a": "1"}]) == set()  # a single row keeps all
    assert print_tables.label(row, {"samples"}, 120) == "regret_kl m=10 over=train_and_test"
    assert len(print_tables.label(row, set(), 80)) == print_tables.LABEL


def test_the_comparison_says_how_many_tests_were_corrected_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"diversity": "noise"}
    monkeypatch.setattr(registry, "same_as", lambda: same)
    runs = pd.DataFrame({"run_id": list("abcd"), "group": list("xxyy"), "status": "ok", "test_accuracy": 0.5})
    one = runs.assign(epoch=None, setting="", value=[1.0, 2, 3, 4])
    metrics = pd.concat([one.assign(metric=m) for m in ("noise", "diversity", "other")])
    print_tables.comparison(statistics.compare(metrics, runs, ["x", "y"], same), ["x", "y"], runs)
    out = " ".join(capsys.readouterr().out.split())
    assert "Holm over 2 tests." in out and "None of 2 metrics differs" in out
