"""The JSON Schema of the YAML, for editors."""

from __future__ import annotations

from typing import Any

from landscape_cli.config.schema import (
    NAME,
    NAMED,
    Experiment,
    optimizers_with,
    section_model,
    takes_list,
    training_model,
)
from landscape_cli.registry import REGISTRY, Kind


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML, with the settings of every registered dataset, model and metric."""
    root = Experiment.model_json_schema()
    shared = root.setdefault("$defs", {})
    properties = root["properties"]
    properties["name"]["pattern"] = f"^{NAME}$"
    for kind in NAMED:
        properties[kind] = {"anyOf": [_entry_schema(kind, name, shared) for name in sorted(REGISTRY[kind])]}
    properties["training"] = _training_schema(shared)
    for generic in ("Dataset", "Model", "Training"):  # each has its own, with its settings, by now
        del shared[generic]
    names = sorted(REGISTRY["metric"])
    one = [{"enum": names}, *(_metric_schema(name, shared) for name in names)]
    properties["metrics"] = {"anyOf": [{"enum": ["default", "all"]}, {"type": "array", "items": {"anyOf": one}}]}
    kinds = REGISTRY["surface"].values()
    shared["Surface"]["properties"]["kind"] |= {
        "enum": [kind.name for kind in kinds],
        "description": "; ".join(f"{kind.name}: {kind.summary}" for kind in kinds),
    }
    properties["grid"] |= {"propertyNames": {"pattern": r"^((dataset|model|training)\..+|model|precision)$"}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "title": "landscape experiment"}


def _training_schema(shared: dict[str, Any]) -> dict[str, Any]:
    own = training_model().model_json_schema()
    shared.update(own.pop("$defs", {}))
    for key in {key for e in REGISTRY["optimizer"].values() for key in e.settings.model_fields}:
        own["properties"][key]["description"] = f"of {', '.join(optimizers_with(key))}"
    return own


def _entry_schema(kind: Kind, name: str, shared: dict[str, Any]) -> dict[str, Any]:
    named = section_model(kind, name) if kind in NAMED else None
    own = (named or REGISTRY[kind][name].settings).model_json_schema()
    shared.update(own.pop("$defs", {}))
    own["properties"] = own.get("properties", {}) | {"name": {"const": name}}
    own["required"] = list(dict.fromkeys(["name", *own.get("required", [])]))
    return own | {"description": REGISTRY[kind][name].summary, "additionalProperties": False}


def _metric_schema(name: str, shared: dict[str, Any]) -> dict[str, Any]:
    own = _entry_schema("metric", name, shared)
    fields = REGISTRY["metric"][name].settings.model_fields
    for key, one in own["properties"].items():
        if key in fields and not takes_list(fields[key].annotation):
            own["properties"][key] = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    del own["properties"]["name"]
    own["required"].remove("name")
    return {
        "type": "object",
        "properties": {name: {"anyOf": [own, {"type": "null"}]}},
        "required": [name],
        "additionalProperties": False,
    }
