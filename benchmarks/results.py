"""How long `show` and `measure` take where nothing is left to do: python benchmarks/results.py [RUNS [CELLS]].

Makes an experiment of RUNS runs with CELLS cells each (default 504 and 42) by the package's own writers, with valid
keys and hashes but made-up minima and values, then runs both commands as a user would, 3 times each. Targets, on two
cores: 1.5 s at 504 runs, 15 s at 10,000; what it takes to start at all is measured beside them (`show empty`).
"""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from landscape_cli import config, store
from landscape_cli.experiment import cell_records, session
from landscape_cli.store import checkpoints

YAML = """name: zoo
dataset: {name: digits, train_size: 100}
model: {name: mlp, hidden: [10]}
training: {lr: 0.1, batch_size: 10, stop: {max_epochs: 3}}
grid: {training.lr: [0.1, 0.2, 0.3, 0.4]}
"""
LOOKS = 40  # values in the training curve of a run


def record(run: config.Run, sha: str) -> dict[str, Any]:
    scores = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), 0.1 + run.seed / 7)
    curve = {"epoch": [*range(LOOKS)], "step": [*range(LOOKS)], "train_loss": [1 / (i + 1) for i in range(LOOKS)]}
    made = {"format": store.FORMAT, "run_id": run.run_id, "group": run.group, "seed": run.seed, "swept": run.swept}
    made |= {"status": "ok", "epochs": 3, "steps": 30, "seconds": 0.5, "stack_size": 1, "message": ""}
    made |= {"minimum": {"file": f"minima/{run.run_id}.safetensors", "sha256": sha}, "stack": [run.run_id], "data": ""}
    return made | scores | {"loss_gap": 0.1, "accuracy_gap": 0.1, "history": curve}


def make(folder: Path, cells: int) -> None:
    """The experiment in folder/zoo, and its config in folder/zoo.yaml."""
    experiment = session.resolve(config.read(str(folder / "zoo.yaml")))
    place = store.open_folder(folder, "zoo")
    net = torch.nn.Sequential(torch.nn.Linear(64, 10), torch.nn.ReLU(), torch.nn.Linear(10, 10))
    params = {name: p.detach() for name, p in net.named_parameters()}
    data = checkpoints.to_bytes(checkpoints.Minimum(params, {}, {name: p.clone() for name, p in params.items()}, {}))
    sha, wanted = hashlib.sha256(data).hexdigest(), config.measurements(experiment)
    for i, run in enumerate(config.expand(experiment)):
        made = record(run, sha)
        (place / made["minimum"]["file"]).write_bytes(data)
        row = cell_records.EMPTY | {"value": i / 7, "standard_error": 0.1, "samples": 100}
        rows = [
            cell_records.cell_of(made, run.settings, what, [row | {"setting": config.setting(*what)}], 0.01)
            for what in wanted
        ]
        assert len(rows) == cells, f"the config has {len(rows)} metrics with settings"
        store.write_cells(place, rows)
        store.write_runs(place, [made])


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "landscape_cli", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return time.perf_counter() - start


def main(runs: int = 504, cells: int = 42) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = [f"{{hessian_top: {{k: {k}}}}}" for k in range(1, cells)]
        for target, seeds in (("empty.yaml", 1), ("zoo.yaml", -(-runs // 4))):
            text = YAML + f"seeds: {seeds}\nmetrics: [weight_norm, {', '.join(metrics)}]\n"
            (folder / target).write_text(text.replace("name: zoo", f"name: {Path(target).stem}"))
        make(folder, cells)
        common = ("--results", str(folder))
        for words in (("show", "empty.yaml"), ("show", "zoo.yaml"), ("measure", "zoo.yaml", "--quiet")):
            command = [words[0], str(folder / words[1]), *common, *words[2:]]
            times = [seconds(*command) for _ in range(3)]
            said = f"median {statistics.median(times):6.2f} s of {', '.join(f'{t:.2f}' for t in times)}"
            print(f"{words[0]:8} {words[1]:10} {said}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
