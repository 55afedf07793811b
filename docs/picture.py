"""Draws the README's picture, a few of the metrics, from a folder: `picture.py results/small-vs-large`."""

import shutil
import sys
import tempfile
from pathlib import Path

from landscape_cli import store
from landscape_cli.report import figures_groups

SHOWN = ["test_accuracy", "regret", "gradient_cosine", "hessian_top", "hessian_trace", "keskar_sharpness"]
SHOWN += ["sam_sharpness", "average_sharpness"]
SETTINGS = ["", "minibatch_size=10", "eps=0.001", "solver=converged"]

folder = Path(sys.argv[1])
runs, metrics = (store.read_table(folder / name) for name in ("runs.csv", "metrics.csv"))
shown = metrics[metrics["metric"].isin(SHOWN) & metrics["setting"].fillna("").isin(SETTINGS)]
with tempfile.TemporaryDirectory() as scratch:
    figures_groups.metric_by_group(shown, runs, list(runs["group"].unique()), Path(scratch) / "picture")
    shutil.copy(Path(scratch) / "picture.png", Path(__file__).parent / "images" / "small-vs-large.png")
