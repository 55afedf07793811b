"""The table of figures: each row has its words and is drawn from tables as an experiment writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from table_examples import GROUPS, example

from landscape_cli.experiment import draw_report
from landscape_cli.report import page, plotting
from landscape_cli.report.figures import figures
from landscape_cli.report.inputs import Inputs
from landscape_cli.store.tables import table_bytes


def write(path: Path, frame: pd.DataFrame) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(table_bytes(frame))


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A folder with every table that some figure is drawn from, as small as can be."""
    runs, metrics, records = example(GROUPS, 2, 4)
    along = metrics.assign(epoch=1)
    radii = [metrics.assign(metric="regret_exact", setting=f"radius={r:g}", value=1.0) for r in (0, 1e-3, 1e-2)]
    write(tmp_path / "metrics.csv", pd.concat([metrics, along, *radii]))
    write(tmp_path / "runs.csv", runs)
    run_ids = list(runs["run_id"])
    (tmp_path / "plots").mkdir()
    first = {"run_id": run_ids[0], "group": GROUPS[0]}
    spectrum = first | {"epoch": None, "setting": "", "eigenvalue": [0.0, 1.0, 2.0], "density": 0.3}
    write(tmp_path / "tables" / "spectral_density.csv", pd.DataFrame(spectrum, index=range(3)))
    curve = first | {"image": "minimum", "hessian_top": 1.0, "x": [0.0, 1.0], "train_loss": [0.1, 0.2]}
    both = [pd.DataFrame(curve | {"normalization": name}, index=range(2)) for name in ("none", "filter")]
    write(tmp_path / "tables" / "lines.csv", pd.concat(both))
    row = {"run_id": run_ids[0], "metric": "regret", "setting": "", "transform": "alpha_scale", "strength": 0.1}
    row |= {"before": 1.0, "after": 2.0, "ratio": 2.0, "claim": "", "verdict": "never claimed"}
    write(tmp_path / "invariance.csv", pd.DataFrame([row]))
    for name, figure in figures().items():
        for source in (s for s in figure.sources if s.startswith("surfaces/")):
            path = tmp_path / source.replace("*", f"{run_ids[0]}-plane" if name == "surface_curvature" else run_ids[0])
            write(path, _surface(source.endswith("-curvature.csv")))
    end = {"to": run_ids[1]}
    from landscape_cli.store import surface_files

    (tmp_path / "surfaces" / f"{run_ids[0]}-path.safetensors").write_bytes(surface_files.to_bytes({}, end))
    return Inputs(tmp_path, records, GROUPS)


def _surface(bends: bool) -> pd.DataFrame:
    xy = [(x, y) for y in (0.0, 1.0) for x in (0.0, 1.0)]
    if bends:
        return pd.DataFrame([{"draw": 0, "x": x, "y": y, "lambda_max": 2.0, "lambda_min": -1.0} for x, y in xy])
    rows: list[dict[str, Any]] = [
        {"draw": 0, "x": x, "y": y, "split": split, "loss": 0.1 + x + y, "accuracy": 0.5, "status": "ok"}
        for x, y in xy
        for split in ("train", "test")
    ]
    return pd.DataFrame(rows)


def test_every_row_is_drawn_and_captioned_and_no_file_has_no_row(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "DPI", 20)
    assert draw_report.draw(inputs.folder, inputs.records, inputs.groups) == []
    rows = figures()
    files = {path.stem for path in (inputs.folder / "plots").glob("*.*") if path.stem != ".drawn"}
    assert files == set(rows)
    shown = page.pictures(inputs.folder / "plots")
    assert [picture.title for picture in shown] == [row.title for row in rows.values()]
    assert [picture.caption for picture in shown] == [row.caption for row in rows.values()]
    assert len({row.title for row in rows.values()}) == len(rows)
    for name, row in rows.items():
        assert name == row.name and row.title and row.caption.endswith(".") and row.sources, name
    html = (inputs.folder / "report.html").read_text()
    assert html.count("<figure>") == len(rows)
