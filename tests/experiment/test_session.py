"""What only shows may fail without the job: progress, figures and manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Call

from landscape_cli.cli import progress
from landscape_cli.engine import Interrupted
from landscape_cli.experiment import draw_report, session
from landscape_cli.registry.errors import Fault


def broken(error: BaseException) -> Any:
    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


ERRORS = [
    RuntimeError("no font\nfound"),
    Fault("plots: cannot be written: disk full"),
    MemoryError(),
    OSError(28, "No space left on device"),
    SystemExit(1),
]


DRAW = draw_report.draw  # which `call` leaves out


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_figures_that_fail_are_a_warning(
    error: BaseException, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_report, "draw", DRAW)
    monkeypatch.setattr(draw_report, "_draw", broken(error))
    for words in (("compare", "tiny.yaml"), ("surface", "tiny.yaml", "--points", "3"), ("audit", "tiny.yaml")):
        code, out, err = call(*words, "--json", "--quiet")
        assert code == 0 and json.loads(out)["report"] is None
        first, second = err.splitlines()
        why = str(error) if isinstance(error, Fault) else type(error).__name__
        assert first.startswith(f"warning: report.html: not written: {why}")
        assert second == "warning: once that is mended, draw them with `landscape report results/tiny`"
    folder = tmp_path / "results" / "tiny"
    for table in ("runs.csv", "metrics.csv", "comparison.csv", "invariance.csv"):
        assert (folder / table).is_file()
    code, out, _ = call("compare", "tiny.yaml", "--quiet")
    assert code == 0 and "Report:" not in out


@pytest.mark.parametrize("error", ERRORS[:4], ids=repr)
def test_a_manifest_that_fails_is_a_warning(error: Exception, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.store, "write_manifest", broken(error))
    code, out, err = call("train", "tiny.yaml", "--json")
    assert code == 0 and [run["status"] for run in json.loads(out)["runs"]] == ["ok", "ok"]
    assert err.startswith("warning: results/tiny/manifest.json: was not written: ") and err.count("\n") == 1


@pytest.mark.parametrize("where", ["__call__", "__init__", "_note", "_show"])
def test_progress_that_fails_is_a_warning_at_most(
    where: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress.Display, where, broken(OverflowError("too large")))
    code, out, err = call("compare", "tiny.yaml", "--json")
    assert code == 0 and json.loads(out)["comparison"]
    assert err in ("", "warning: progress is no longer shown: OverflowError: too large\n")
    assert (tmp_path / "results" / "tiny" / "comparison.csv").is_file()


def test_a_signal_passes_through_all_of_them(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_report, "draw", broken(Interrupted(15)))
    code, out, err = call("compare", "tiny.yaml", "--quiet")
    assert (code, out) == (143, "") and err.startswith("interrupted: ")


def test_results_that_cannot_be_written_are_a_fault(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.store, "write_runs", broken(Fault("runs: cannot be written: disk full")))
    code, out, err = call("compare", "tiny.yaml", "--quiet")
    assert (code, out, err) == (2, "", "runs: cannot be written: disk full\n")
