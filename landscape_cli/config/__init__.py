"""The YAML of an experiment: read with the place of each value, checked as a whole, expanded into runs with their ids.

Imports `registry` only. Begin with schema.py; reading.py reads a file, checks.py checks it, grid.py makes runs of it,
identity.py their ids.
"""

from landscape_cli.config.grid import Measurement, Run, expand, measurements, setting
from landscape_cli.config.identity import Settings, canonical, digest
from landscape_cli.config.json_schema import json_schema
from landscape_cli.config.reading import (
    dump,
    find,
    of_settings,
    origins,
    read,
    resolve,
    section,
    shipped,
    summary,
    trainings_of,
)
from landscape_cli.config.schema import (
    Audit,
    Compare,
    Dataset,
    Experiment,
    Model,
    SharpnessAware,
    Stop,
    Surface,
    Training,
)
from landscape_cli.config.yaml_tree import Tree

__all__ = [
    "Audit",
    "Compare",
    "Dataset",
    "Experiment",
    "Measurement",
    "Model",
    "Run",
    "Settings",
    "SharpnessAware",
    "Stop",
    "Surface",
    "Training",
    "Tree",
    "canonical",
    "digest",
    "dump",
    "expand",
    "find",
    "json_schema",
    "measurements",
    "of_settings",
    "origins",
    "read",
    "resolve",
    "section",
    "setting",
    "shipped",
    "summary",
    "trainings_of",
]
