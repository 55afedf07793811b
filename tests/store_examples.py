"""A run record and a cell, whole, as the package writes them."""

from typing import Any


def run(run_id: str, **more: Any) -> dict[str, Any]:
    base = {"format": 1, "run_id": run_id, "group": "small", "seed": 0, "swept": {}, "status": "ok", "epochs": 3}
    base |= {"steps": 9, "seconds": 0.25, "stack_size": 1, "message": "", "stack": [run_id], "data": ""}
    base |= dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), 0.5)
    base |= {"loss_gap": 0.0, "accuracy_gap": 0.0, "minimum": {"file": f"minima/{run_id}.safetensors", "sha256": "ff"}}
    return base | {"history": {"epoch": [0, 3], "step": [0, 9], "train_loss": [2.0, 0.5]}, "snapshots": {}} | more


def cell(run_id: str, metric: str = "regret", key: str = "0123456789ab", **more: Any) -> dict[str, Any]:
    row = {"epoch": None, "setting": "", "value": 0.1, "standard_error": None, "samples": 5, "iterations": None}
    row |= {"residual": None, "status": "ok", "message": ""}
    base = {"run_id": run_id, "metric": metric, "key": key, "inputs": "ff", "settings": {}, "seconds": 1.5}
    return base | {"rows": [row]} | more
