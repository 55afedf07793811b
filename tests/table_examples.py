"""Tables as an experiment writes them, and figures that keep what was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from landscape_cli.report import figures_groups

GROUPS = ["small", "large"]


SHAPES = {  # metric, setting: level of the first group, factor of the last, noise
    ("train_loss", ""): (0.0099, 1.0, 0.003),
    ("test_loss", ""): (0.13, 1.4, 0.05),
    ("test_accuracy", ""): (0.961, 0.985, 0.003),
    ("hessian_top", "rank=1"): (3.1, 9.0, 0.2),
    ("hessian_top", "rank=2"): (2.2, 40.0, 0.2),
    ("hessian_trace", ""): (51.0, 3.2, 0.1),
    ("regret", "minibatch_size=1"): (0.021, 1.9, 0.08),
    ("regret", "minibatch_size=10"): (0.0061, 2.4, 0.08),
    ("gradient_norm", ""): (3e-7, 1.1, 0.5),
    ("kl_ball_volume_log", "eps=0.001;subspace=100"): (-310.0, 1.2, 0.02),
    ("adaptive_sharpness", "normalization=elementwise;rho=0.5"): (0.4, 1.02, 0.3),
    ("path_norm", ""): (48213.0, 0.97, 0.01),
    ("fisher_rao_norm", ""): (1.3e-4, 2000.0, 0.6),
    ("lowest_eigenvalue", ""): (-0.02, -1.5, 0.4),
    ("flatness_that_has_a_very_long_name_indeed", ""): (2.0, 1.0, 0.1),
}


def example(
    groups: list[str], seeds: int = 8, keep: int = 99
) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    """runs.csv, metrics.csv and run records; the last run diverged, path_norm is undefined in every third run."""
    rng, runs, rows, records = np.random.default_rng(0), [], [], []
    for i, group in enumerate(groups):
        for seed in range(seeds):
            run_id, part = f"b{i}-s{seed}-{i}{seed}af03", i / max(1, len(groups) - 1)
            ok = (i, seed) != (len(groups) - 1, seeds - 1)
            noise = {key: 1 + s * rng.standard_normal() for key, (_, _, s) in SHAPES.items()}
            value = {key: level * factor**part * abs(noise[key]) if factor > 0 else level * (1 + 3 * part) * noise[key]
                     for key, (level, factor, _) in SHAPES.items()}  # fmt: skip
            outcome = {metric: v for (metric, _), v in value.items() if metric.startswith(("train_", "test_"))}
            outcome["loss_gap"] = outcome["test_loss"] - outcome["train_loss"]
            steps = np.unique(np.geomspace(1, 4000 / (1 + 5 * part), 60).astype(int))
            loss = 2.3 / (1 + steps / (40 - 30 * part)) * np.exp(0.1 * rng.standard_normal(len(steps)))
            history = {"epoch": list(steps * (0.01 + part)), "step": [0, *steps.tolist()][1:], "train_loss": list(loss)}
            run = {"run_id": run_id, "group": group, "seed": seed, "status": "ok" if ok else "diverged"}
            records.append({**run, "history": history})
            known = outcome if ok else dict.fromkeys(outcome)
            runs.append({**run, "epochs": 120, "steps": int(steps[-1]), "train_accuracy": 1.0, **known,
                         "accuracy_gap": 1 - outcome["test_accuracy"] if ok else None, "seconds": 1.5,
                         "stack_size": 16, "message": "" if ok else "loss is nan at step 12: lower lr"})  # fmt: skip
            for (metric, setting), v in list(value.items())[:keep]:
                bad = not ok or (metric == "path_norm" and seed % 3 == 0)
                rows.append({"run_id": run_id, "group": group, "seed": seed, "epoch": None, "metric": metric,
                             "setting": setting, "value": None if bad else v, "standard_error": None,
                             "status": "undefined" if bad else "ok",
                             "message": "no path: a layer is not linear" if bad else ""})  # fmt: skip
    return pd.DataFrame(runs), pd.DataFrame(rows), records


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def draw_all(folder: Path, groups: list[str], seeds: int = 3, keep: int = 99) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    runs, metrics, records = example(groups, seeds, keep)
    return [
        *figures_groups.training_curves(records, folder / "training_curves"),
        *figures_groups.metric_by_group(metrics, runs, groups, folder / "metric_by_group"),
        *figures_groups.metric_vs_gap(metrics, runs, folder / "metric_vs_gap"),
    ]


def drawn(figure: Figure) -> list[mpl.text.Text]:
    """Texts that appear: of tick labels, matplotlib keeps some outside the limits of their axis."""
    found = [*figure.texts, *(t for box in figure.legends for t in box.get_texts())]
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]
        for k, (labels, limits) in enumerate(
            [(ax.get_xticklabels(), ax.get_xlim()), (ax.get_yticklabels(), ax.get_ylim())]
        ):
            found += [t for t in labels if min(limits) <= t.get_position()[k] <= max(limits) and t.get_visible()]
    return found
