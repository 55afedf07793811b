"""What is drawn again, and what is left alone; no job ends by a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from landscape_cli.experiment import draw_report
from landscape_cli.report import figures, page
from landscape_cli.report.inputs import RECORDS, Figure, Inputs

Counts = dict[str, int]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """How often each of three figures was drawn, of a table, of the records, and of tables by a pattern."""
    counts = {"one": 0, "two": 0, "three": 0, "page": 0}

    def draws(name: str) -> Any:
        def draw(inputs: Inputs, stem: Path) -> list[Path]:
            counts[name] += 1
            stem.with_suffix(".png").write_bytes(b"a picture")
            return [stem.with_suffix(".png")]

        return draw

    sources = {"one": ("runs.csv",), "two": (RECORDS,), "three": ("surfaces/*-line.csv",)}
    rows = {name: Figure(name, source, draws(name), "Title", "Caption.") for name, source in sources.items()}
    monkeypatch.setattr(figures, "figures", lambda: rows)
    monkeypatch.setattr(page, "render", lambda *a: counts.update(page=counts["page"] + 1) or b"page")
    for folder in ("plots", "surfaces"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs.csv").write_text("run_id\na\n")
    (tmp_path / "surfaces" / "a-line.csv").write_text("x\n1\n")
    return counts


def drawn_again(folder: Path, counts: Counts, records: Any = ({"run_id": "a"},)) -> set[str]:
    before = dict(counts)
    assert draw_report.draw(folder, records, ["all"]) == []
    return {name for name in counts if counts[name] != before[name]}


def test_each_figure_is_drawn_again_when_its_inputs_change_and_left_alone_otherwise(
    tmp_path: Path, drawn: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn_again(tmp_path, drawn) == {"one", "two", "three", "page"}
    assert drawn_again(tmp_path, drawn) == set()
    (tmp_path / "runs.csv").write_text("run_id\nb\n")
    assert drawn_again(tmp_path, drawn) == {"one", "page"}
    (tmp_path / "surfaces" / "b-line.csv").write_text("x\n1\n")
    assert drawn_again(tmp_path, drawn) == {"three", "page"}
    other = ({"run_id": "b"},)
    assert drawn_again(tmp_path, drawn, other) == {"two", "page"}
    (tmp_path / "plots" / "one.png").unlink()
    assert drawn_again(tmp_path, drawn, other) == {"one", "page"}
    for name, content in (("experiment.yaml", "name: x"), ("manifest.json", '{"device": "cpu", "started": "1"}')):
        (tmp_path / name).write_text(content)
        assert drawn_again(tmp_path, drawn, other) == {"page"}
    (tmp_path / "manifest.json").write_text('{"device": "cpu", "started": "2", "files": {}}')  # which is not shown
    assert drawn_again(tmp_path, drawn, other) == set()
    (tmp_path / "report.html").unlink()
    assert drawn_again(tmp_path, drawn, other) == {"page"}
    for what in ("_version", "_code"):
        monkeypatch.setattr(draw_report, what, lambda about, what=what: f"another {what}")
        assert drawn_again(tmp_path, drawn, other) == {"one", "two", "three", "page"}
    for damaged in (b"", b"{}", b"\xff", b"12", b'{"code": 1, "page": 2, "figures": {"one": 3}}'):
        (tmp_path / "plots" / ".drawn").write_bytes(damaged)
        assert drawn_again(tmp_path, drawn, other) == {"one", "two", "three", "page"}


def test_the_code_of_the_report_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("page.py", "report.html.j2", "other.txt"):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(page, "__file__", str(tmp_path / "page.py"))
    found = [draw_report._code(["a"]), draw_report._code(["b"])]
    for name in ("page.py", "report.html.j2", "other.txt"):
        (tmp_path / name).write_text("b")
        found.append(draw_report._code(["a"]))
    assert len(set(found[:4])) == 4 and found[4] == found[3]


def test_a_figure_whose_sources_are_gone_goes_too(tmp_path: Path, drawn: Counts) -> None:
    drawn_again(tmp_path, drawn)
    (tmp_path / "plots" / "mine.png").write_bytes(b"of the user's own")
    (tmp_path / "surfaces" / "a-line.csv").unlink()
    (tmp_path / "runs.csv").write_text("run_id\n")  # a heading alone
    assert drawn_again(tmp_path, drawn, ()) == {"page"}
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == {"mine.png"}


def test_a_figure_that_has_no_row_any_more_goes_too(
    tmp_path: Path, drawn: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_again(tmp_path, drawn)
    rows = figures.figures()
    monkeypatch.setattr(figures, "figures", lambda: {"one": rows["one"]})
    monkeypatch.setattr(draw_report, "_code", lambda groups: "other")
    assert drawn_again(tmp_path, drawn) == {"one", "page"}
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == {"one.png"}


@pytest.mark.parametrize("error", [RuntimeError("no ink"), KeyError("column")])
def test_no_job_ends_by_a_figure(
    tmp_path: Path, drawn: Counts, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*a: Any) -> list[Path]:
        raise error

    rows = dict(figures.figures())
    good, rows["one"] = rows["one"], Figure("one", ("runs.csv",), fails, "Title", "Caption.")
    monkeypatch.setattr(figures, "figures", lambda: rows)
    for _ in range(2):  # it is tried again
        line = f"figure one: not drawn: {type(error).__name__}: {error}"
        assert draw_report.draw(tmp_path, [{"run_id": "a"}], ["all"]) == [line]
    assert (drawn["two"], drawn["three"], drawn["page"]) == (1, 1, 2)
    rows["one"] = good
    assert drawn_again(tmp_path, drawn) == {"one", "page"}
    monkeypatch.setattr(page, "render", fails)
    (tmp_path / "runs.csv").write_text("run_id\nc\n")
    (line,) = draw_report.draw(tmp_path, [{"run_id": "a"}], ["all"])
    assert line.startswith("report.html: not written: ")


def test_a_signal_is_not_swallowed(tmp_path: Path, drawn: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*a: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        draw_report.draw(tmp_path, [{"run_id": "a"}], ["all"])
    assert not (tmp_path / "plots" / ".drawn").exists()  # nothing vouches for what was drawn in part
