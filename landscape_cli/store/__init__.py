"""The results folder: atomic files, lock, run records, cells, checkpoints, tables; the only one that writes results.

Imports `registry` only. Begin with folder.py; what a checkpoint holds is in checkpoints.py, a column of a run in
columns.py.
"""

from landscape_cli.store.cells import cells_path, has_vectors, read_cells, vectors_path, write_cells
from landscape_cli.store.columns import RUN_COLUMNS, run_record
from landscape_cli.store.files import Seen, file_hash, remove, remove_if_empty, write, write_many
from landscape_cli.store.folder import LOCK, OWNER, check_name, lock, open_folder
from landscape_cli.store.json_files import FORMAT, files_in
from landscape_cli.store.manifest import MANIFEST, write_manifest
from landscape_cli.store.records import read_runs, write_runs
from landscape_cli.store.tables import (
    curve_tables,
    invariance_table,
    lines_table,
    metrics_table,
    read_table,
    runs_table,
    table_bytes,
    write_curves,
)

__all__ = [
    "FORMAT",
    "LOCK",
    "MANIFEST",
    "OWNER",
    "RUN_COLUMNS",
    "Seen",
    "cells_path",
    "check_name",
    "curve_tables",
    "file_hash",
    "files_in",
    "has_vectors",
    "invariance_table",
    "lines_table",
    "lock",
    "metrics_table",
    "open_folder",
    "read_cells",
    "read_runs",
    "read_table",
    "remove",
    "remove_if_empty",
    "run_record",
    "runs_table",
    "table_bytes",
    "vectors_path",
    "write",
    "write_cells",
    "write_curves",
    "write_manifest",
    "write_many",
    "write_runs",
]
