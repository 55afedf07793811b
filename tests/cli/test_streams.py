"""Standard streams that are closed, full or of another encoding: the work is done, its exit code is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, yaml_of

from landscape_cli.cli import streams

SHORT = {"seeds": 1, "training": {"lr": 0.1, "batch_size": 10, "stop": {"max_epochs": 1}}, "metrics": ["weight_norm"]}
PYTHON = f"{sys.executable} -m landscape_cli"


def shell(place: Path, line: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line of bash in a folder with tiny.yaml."""
    (place / "tiny.yaml").write_text(yaml_of(TINY | SHORT))
    command = ["bash", "-c", f"set -o pipefail; {line.replace('landscape', PYTHON, 1)}"]
    done = subprocess.run(command, cwd=place, capture_output=True, env=os.environ | environment, timeout=300)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err and "internal error" not in out + err
    return done.returncode, out, err


FAILS = "--set training.stop.train_loss=1e-9"  # so that runs do not converge: exit code 3


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("landscape train tiny.yaml >&-", 0),
        ("landscape train tiny.yaml 2>&-", 0),
        ("landscape train tiny.yaml <&- >&- 2>&-", 0),
        (f"landscape train tiny.yaml {FAILS} >&-", 3),
        (f"landscape train tiny.yaml {FAILS} 2>&-", 3),
        (f"landscape train tiny.yaml {FAILS} | true", 3),
        (f"landscape train tiny.yaml {FAILS} --json | true", 3),
        ("landscape train tiny.yaml 2>&1 | true", 0),
        ("landscape train tiny.yaml 2>/dev/full", 0),
    ],
)
def test_who_does_not_listen_loses_no_results(line: str, code: int, tmp_path: Path) -> None:
    left, _, err = shell(tmp_path, line)
    assert left == code, err
    folder = tmp_path / "results" / "tiny"
    assert len((folder / "runs.csv").read_text().splitlines()) == 3 and (folder / "manifest.json").is_file()
    assert len(list((folder / "minima").iterdir())) == 2


def test_a_full_disk_behind_stdout_is_said(tmp_path: Path) -> None:
    code, _, err = shell(tmp_path, "landscape train tiny.yaml --json > /dev/full")
    assert (code, err) == (1, "standard output: cannot be written: No space left on device\n")
    assert (tmp_path / "results" / "tiny" / "runs.csv").is_file()


def test_a_closed_stdout_is_not_the_number_of_the_next_file(tmp_path: Path) -> None:
    """What a plugin writes to descriptor 1 goes into no file of results."""
    (tmp_path / "loud.py").write_text("import os\nos.system('echo shouted')\n")
    code, _, _ = shell(tmp_path, "landscape train tiny.yaml --plugin loud.py >&- 2>&-")
    assert code == 0
    assert not any(b"shouted" in p.read_bytes() for p in (tmp_path / "results").rglob("*") if p.is_file())


@pytest.mark.parametrize("columns", ["20", "0"])
def test_an_ascii_terminal_of_any_width(columns: str, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "COLUMNS": columns}
    for words in ("list models", "show tiny.yaml", "train --help"):
        code, out, err = shell(tmp_path, f"landscape {words}", **ascii_only)
        assert (code, err) == (0, "") and out.isascii() and out
    code, out, _ = shell(tmp_path, "landscape list metrics --json", **ascii_only)
    assert code == 0 and json.loads(out)["metrics"]


def test_what_an_encoding_lacks_is_spelled_out() -> None:
    streams.codecs.register_error("plain", streams.plain)
    text = "a…b ± λ größe \udcff 🌻"
    assert text.encode("ascii", "plain") == b"a~b +- lambda gr\\xf6\\xdfe \\udcff \\U0001f33b"
    assert "größe \udcff".encode("utf-8", "plain") == "größe \\udcff".encode()
