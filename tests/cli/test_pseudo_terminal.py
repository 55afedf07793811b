"""The main command as a person runs it: in a terminal, with its live line, to a good end."""

from __future__ import annotations

import csv
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, yaml_of

SHORT = ["--set", "training.stop.train_loss=1.0", "--metrics", "train_loss,hessian_top"]


def in_terminal(place: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code of `landscape WORDS` in a pseudo-terminal, and all that was shown there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "landscape_cli", *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=place, env=os.environ | environment
    ) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    text = shown.decode()
    assert "Traceback" not in text and "internal error" not in text
    return process.returncode, text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its last user has gone
        return b""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_small_vs_large_ends_well(threads: str, tmp_path: Path) -> None:
    words = ("compare", "small-vs-large", "--seeds", "2", *SHORT)
    code, text = in_terminal(
        tmp_path, *words, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE", TERM="xterm-256color"
    )
    assert code == 0, text
    assert "training small" in text and "measuring hessian_top" in text and "Report: results/small-vs-large" in text
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") > 0  # the cursor is back
    with (tmp_path / "results" / "small-vs-large" / "runs.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 4
    assert (tmp_path / "results" / "small-vs-large" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"},
        {"NO_COLOR": "1", "COLUMNS": "20"},
        {"COLUMNS": "1", "LINES": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"},
        {"FORCE_COLOR": "1", "TERM": ""},
    ],
    ids=lambda environment: ",".join(environment),
)
def test_any_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    stop = {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 2}}
    (tmp_path / "größe.yaml").write_text(yaml_of(TINY | {"seeds": 1, "training": stop, "metrics": ["weight_norm"]}))
    os.symlink("größe.yaml", tmp_path / "tiny.yaml")
    code, text = in_terminal(tmp_path, "compare", "tiny.yaml", **environment)
    assert code == 0 and "Report: " in text.replace("\r\n", "")
    assert ("\x1b[" in text) <= (environment.get("TERM") != "dumb")
