"""The JSON Schema of the YAML, for editors."""

from __future__ import annotations

from typing import Any

from landscape_cli.config.schema import NAME, NAMED, Experiment, settings_of, takes_list
from landscape_cli.registry import REGISTRY, Kind


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML, with the settings of every registered dataset, model and metric."""
    root = Experiment.model_json_schema()
    shared = root.setdefault("$defs", {})
    properties = root["properties"]
    properties["name"]["pattern"] = f"^{NAME}$"
    for kind in NAMED:
        properties[kind] = {"anyOf": [_entry_schema(kind, name, shared) for name in sorted(REGISTRY[kind])]}
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


def _entry_schema(kind: Kind, name: str, shared: dict[str, Any]) -> dict[str, Any]:
    settings = settings_of(kind, name)
    assert settings is not None
    own = settings.model_json_schema()
    shared.update(own.pop("$defs", {}))
    own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
    own["required"] = ["name", *own.get("required", [])]
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
