"""What a run is made of, the text that says so, and the ids that are hashes of it.

A setting that is added with a default renames no run: the text is that of schema version 1, overlaid with what differs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from landscape_cli.config.schema import Dataset, Model, Precision, Training
from landscape_cli.config.yaml_tree import flow
from landscape_cli.registry import REGISTRY, Named

# Schema version 1: what the first version hashed of each section. Frozen: to change a value renames the runs of users.
TRAINING = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "lr_scaling": "none",
    "lr_base_batch": 128,
    "schedule": "constant",
    "milestones": [],
    "decay": 0.1,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "snapshots": [],
}
STOP = {"train_loss": None, "max_epochs": 1000, "max_steps": None, "check_every": 1}
OPTIONS = {"train_size": None, "label_noise": 0.0, "standardize": False, "seed": 0}  # of every dataset
NAMED: dict[str, dict[str, dict[str, Any]]] = {
    "dataset": {
        "mnist1d": {"train_samples": 4000, "test_samples": 1000},
        "gaussian": {"dimension": 20, "classes": 4, "separation": 2.0, "train_samples": 1000, "test_samples": 10000},
        **{name: {"root": "data"} for name in ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn")},
        "image_folder": {"size": 32},
    },
    "model": {
        "linear": {"bias": True},
        "mlp": {"hidden": [100, 100], "activation": "relu", "bias": True, "batchnorm": False},
        "cnn": {"channels": [16, 32], "batchnorm": False},
        "cnn1d": {"channels": 25},
        "vgg": {"depth": 9, "width": 64, "norm": "batch"},
        "resnet": {"depth": 20, "width": 16, "shortcuts": True, "norm": "batch"},
        "wide_resnet": {"depth": 16, "widen": 4, "dropout": 0.0},
    },
}


@dataclass(frozen=True)
class Settings:
    """What makes a run what it is, but for its seed: the sections of its config, complete."""

    dataset: Dataset
    model: Model
    training: Training
    precision: Precision

    @cached_property
    def hashed(self) -> dict[str, Any]:
        """What the ids of runs and the keys of cells are hashes of, as plain values; a config reads them back."""
        return {
            "dataset": _named("dataset", self.dataset, OPTIONS),
            "model": _named("model", self.model, {}),
            "training": _trained(self.training),
            "precision": self.precision,
        }


def _named(kind: Literal["dataset", "model"], section: Named, options: dict[str, Any]) -> dict[str, Any]:
    """A section that names a registered thing; of a plugin's, whose first version nobody knows, every setting."""
    assert isinstance(section, BaseModel)
    entry = REGISTRY[kind][section.name]
    if not entry.built_in:
        return _overlaid(options, section, entry.settings.model_fields)
    return _overlaid(options | NAMED[kind].get(section.name, {}), section)


def _trained(training: Training) -> dict[str, Any]:
    optimizer = REGISTRY["optimizer"][training.rule]
    always = [] if optimizer.built_in else optimizer.settings.model_fields
    said = _overlaid(TRAINING, training, always) | {"stop": _overlaid(STOP, training.stop)}
    if training.ascent and training.rule == "sgd":  # version 1 had sharpness-aware training of sgd alone
        said |= {"optimizer": "sam", **training.ascent.model_dump()}
        said.pop("sharpness_aware", None)
    return said


def _overlaid(table: dict[str, Any], section: BaseModel, always: Collection[str] = ()) -> dict[str, Any]:
    """The table with the values that the section has, and the section's other settings that have no or another default.

    Args:
        table: of version 1.
        section: complete.
        always: settings that are said even at their default.
    """
    fields, values = type(section).model_fields, section.model_dump(mode="json")
    later = {k: f for k, f in fields.items() if k not in table and k not in always and not f.is_required()}
    idle = [k for k, f in later.items() if getattr(section, k) == f.default]
    return table | {k: v for k, v in values.items() if k not in idle}


def canonical(obj: Any) -> str:
    """Canonical JSON, equal for equal resolved values: sorted keys, no spaces, floats by repr."""
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(obj: Any) -> Any:
    if isinstance(obj, BaseModel):
        return _plain(obj.model_dump())
    if isinstance(obj, dict):
        return {k if isinstance(k, str) else json.dumps(k): _plain(v) for k, v in obj.items()}
    return [_plain(v) for v in obj] if isinstance(obj, list | tuple) else obj


HASH, RUN_ID = 8, 60  # hex digits at the end of a run id; its characters in all


def run_id_of(swept: dict[str, Any], settings: Settings, seed: int) -> str:
    """Readable settings that are swept, the seed, and a hash of all that makes the run what it is."""
    parts = (f"{_short(key)}{_letters(value)}" for key, value in swept.items())
    tail = f"s{seed}-{digest({'settings': settings.hashed, 'seed': seed}, HASH)}"
    prefix = "-".join(parts)[: RUN_ID - len(tail) - 1].strip("-._")
    return f"{prefix}-{tail}" if prefix else tail


def _short(key: str) -> str:
    if key == "model":  # its value begins with its name
        return ""
    return "b" if key == "training.batch_size" else key.split(".")[-1].replace("_", "")


def _letters(value: Any) -> str:
    text = (
        "-".join(map(_letters, value)) if isinstance(value, list) else value if isinstance(value, str) else flow(value)
    )
    return re.sub(r"[^A-Za-z0-9._-]", "", text.replace(" ", "-"))


def digest(obj: Any, length: int) -> str:
    """The first `length` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()[:length]
