"""Killed, interrupted and rival processes: the same command goes on to the same tables and the same bytes."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, yaml_of

LONG = {
    "training": {"lr": 0.01, "batch_size": 10, "stop": {"max_epochs": 150}},
    "metrics": ["weight_norm", "hessian_top", "train_loss", "test_loss", "distance_from_init"],
}
SAVING = """
from landscape_cli.experiment import train_runs
from landscape_cli.__main__ import main
train_runs.SAVE_EVERY = 0.05
main()
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(place: Path, *words: str, code: str = SAVING) -> subprocess.Popen[str]:
    """`landscape ...` in a process group of its own, one that saves its state often."""
    command = [sys.executable, "-c", code, *words]
    pipe: Any = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=place, env=ENVIRONMENT, process_group=0)


def compare(place: Path, results: str, *words: str) -> subprocess.Popen[str]:
    return start(place, "compare", "tiny.yaml", "--results", results, "--quiet", *words)


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def table(path: Path, without: tuple[str, ...] = ()) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def facts(folder: Path) -> dict[str, Any]:
    """All that must not depend on what happened on the way."""
    minima = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "minima").iterdir())}
    return {
        "runs": table(folder / "runs.csv", ("seconds",)),
        "metrics": table(folder / "metrics.csv", ("seconds",)),
        "comparison": (folder / "comparison.csv").read_bytes(),
        "minima": minima,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The experiment without a fault."""
    place = tmp_path_factory.mktemp("faults")
    (place / "tiny.yaml").write_text(yaml_of(TINY | LONG))
    with ended(compare(place, "whole")) as process:
        said, wrong = process.communicate(timeout=300)
        assert process.returncode == 0, wrong
    assert "weight_norm" in said
    return place, facts(place / "whole" / "tiny")


def moments(folder: Path) -> list[Callable[[], bool]]:
    """Signs on disk that training, measuring or drawing has come so far."""

    def count(pattern: str, least: int) -> Callable[[], bool]:
        return lambda: sum(1 for _ in folder.glob(pattern)) >= least

    return [
        count("stacks/*.safetensors", 1),
        count("runs/*.json", 1),
        count("cells/*.json", 1),
        count("plots/*", 1),
    ]


def test_killed_again_and_again(whole: tuple[Path, dict[str, Any]]) -> None:
    """SIGKILL in training, between two runs, while measuring and while drawing, a random moment after each sign."""
    place, due = whole
    folder, rng, killed = place / "killed" / "tiny", random.Random(4), 0
    for moment in moments(folder):
        with ended(compare(place, "killed")) as process:
            wait_for(process, moment)
            time.sleep(rng.uniform(0, 0.05))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
    assert killed >= 3  # else nothing was tried
    with ended(compare(place, "killed")) as process:
        _, wrong = process.communicate(timeout=300)
        assert (process.returncode, wrong) == (0, "")
    assert facts(folder) == due
    left = [
        p.name for p in folder.rglob("*") if p.is_file() and (p.name.startswith(".tmp") or p.parent.name == "stacks")
    ]
    assert left == []


def test_interrupted_and_in_use(whole: tuple[Path, dict[str, Any]]) -> None:
    """A second process is turned away while the first one trains; SIGINT leaves with 130; going on gives the same."""
    place, due = whole
    folder = place / "asked" / "tiny"
    with ended(compare(place, "asked")) as first:
        wait_for(first, lambda: any(folder.glob("stacks/*.safetensors")))
        os.kill(first.pid, signal.SIGSTOP)  # it holds the folder however slow the second one is
        with ended(compare(place, "asked")) as second:
            _, wrong = second.communicate(timeout=300)
        assert second.returncode == 4
        owner = rf"process {first.pid} on \S+ since \S+"
        said = rf"results folder asked/tiny is in use by {owner}: wait for it, or use --results\n"
        assert re.fullmatch(said, wrong), wrong
        os.kill(first.pid, signal.SIGCONT)
        os.kill(first.pid, signal.SIGINT)
        said, wrong = first.communicate(timeout=300)
    assert (first.returncode, said) == (130, "")
    assert wrong == "interrupted: what was finished is kept; the same command goes on\n"
    assert any(folder.glob("stacks/*.safetensors")) and not (folder / "comparison.csv").exists()
    with ended(compare(place, "asked")) as third:
        _, wrong = third.communicate(timeout=300)
        assert (third.returncode, wrong) == (0, "")
    assert facts(folder) == due


def test_a_surface_killed_three_times(whole: tuple[Path, dict[str, Any]]) -> None:
    """SIGKILL between the parts of a plane: the files are the same to the byte, and no finished part is made again."""
    place, _ = whole
    words = ("surface", "tiny.yaml", "--kind", "plane", "--points", "31", "--quiet", "--set", "seeds=1")
    with ended(start(place, *words, "--results", "whole")) as process:
        _, wrong = process.communicate(timeout=300)
        assert process.returncode == 0, wrong
    folder, log = place / "cut" / "tiny", place / "asked.log"
    code = f"""
import landscape_cli.surface.values as s
keep = s.Slice.scores
def scores(self, xy):
    values = keep(self, xy)
    with open({str(log)!r}, "a") as file:
        file.write(repr((float(self.theta.sum()), xy[0].tolist())) + "\\n")
    return values
s.Slice.scores = scores
{SAVING}
"""
    parts, finished = 0, 0
    for _ in range(3):
        with ended(start(place, *words, "--results", "cut", code=code)) as process:
            wait_for(process, lambda: len([*folder.glob("surfaces/*.parts/*.json")]) >= parts + 3)  # noqa: B023
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        parts = len([*folder.glob("surfaces/*.parts/*.json")])
        assert parts > finished
        finished = parts
    with ended(start(place, *words, "--results", "cut", code=code)) as process:
        _, wrong = process.communicate(timeout=300)
        assert (process.returncode, wrong) == (0, "")
    made = log.read_text().splitlines()
    assert len(set(made)) == 2 * -(-31 * 31 // 64)
    assert len(made) <= len(set(made)) + 3  # the one that each kill caught before its file was in place
    for path in sorted((folder / "surfaces").iterdir()):
        assert path.read_bytes() == (place / "whole" / "tiny" / "surfaces" / path.name).read_bytes()
