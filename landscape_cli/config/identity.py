"""What a run is made of, as canonical text, and the id that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import BaseModel

from landscape_cli.config.yaml_tree import flow


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


def run_id_of(swept: dict[str, Any], settings: dict[str, Any], seed: int) -> str:
    """Readable settings that are swept, the seed, and a hash of all that makes the run what it is."""
    parts = (f"{_short(key)}{_letters(value)}" for key, value in swept.items())
    tail = f"s{seed}-{digest({'settings': settings, 'seed': seed}, HASH)}"
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
