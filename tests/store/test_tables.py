"""Tables read back exactly, and nothing in them is computed by a spreadsheet."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from landscape_cli import store
from landscape_cli.registry.errors import Fault

TEXTS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["", "nan", "None", "none", "NA", "null", "=1+1", "'=1", "''x", "-5", "+", "@a", "\tx", "\r\n", '"', ",", "a\\nb"]
)
FLOATS = st.floats(allow_nan=False) | st.sampled_from([5e-324, -5e-324, 1.7976931348623157e308, -0.0, 0.1, 1e16])
RUN: dict[str, Any] = {"run_id": "r1", "group": "small", "seed": 0, "swept": {}, "status": "ok", "message": ""}


def round_trip(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    store.write(path, store.table_bytes(frame))
    return store.read_table(path)


def cell(run_id: str, metric: str, *settings: str, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    rows = [{"epoch": None, "setting": text, "value": 0.5, "status": "ok", "message": "", **more} for text in settings]
    return {"run_id": run_id, "metric": metric, "key": "00ff00ff00ff", "seconds": seconds, "rows": rows}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(TEXTS, st.none() | FLOATS, st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=6),
    header=TEXTS,
)
@example(rows=[("", None, None)], header="")
@example(rows=[("\ud800\u2028\x1b[31m", math.inf, 2**63 - 1)], header="=small")
def test_tables_read_back_exactly(tmp_path: Path, rows: list[tuple[Any, ...]], header: str) -> None:
    texts, floats, integers = ([row[i] for row in rows] for i in range(3))
    frame = pd.DataFrame(
        {
            "message": pd.Series(texts, dtype="str"),
            "value": pd.Series([math.nan if x is None else x for x in floats], dtype="float64"),
            "samples": pd.Series(integers, dtype="Int64"),
            f"mean {header}": pd.Series([1.5] * len(rows), dtype="float64"),
        }
    )
    frame.columns = frame.columns.astype("str")
    back = round_trip(frame, tmp_path / "x.csv")
    if not rows:  # a column without cells and outside the contract has no type of its own
        back = back.astype({f"mean {header}": "float64"})
    assert_frame_equal(back, frame, check_exact=True)
    assert [math.copysign(1, x) for x in back["value"]] == [math.copysign(1, x) for x in frame["value"]]
    assert store.table_bytes(back) == store.table_bytes(frame)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, number=FLOATS)
def test_spreadsheets_compute_nothing_and_numbers_are_left_alone(text: str, number: float) -> None:
    data = store.table_bytes(pd.DataFrame({"message": [text], "value": [number]}))
    lines = data.decode().split("\n")  # a line a row, whatever the text holds
    assert len(lines) == 3
    message, value = next(csv.reader([lines[1]]))
    assert not message.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert message.isprintable()
    assert value == repr(number)


def test_the_bytes_of_a_table() -> None:
    frame = pd.DataFrame({"run_id": ["a", "b"], "value": [0.1, math.nan], "message": ['say "x", y', "=1\n"]})
    frame["samples"] = pd.Series([1, None], dtype="Int64")
    expected = 'run_id,value,message,samples\na,0.1,"say ""x"", y",1\nb,,\'=1\\n,\n'
    assert store.table_bytes(frame).decode() == expected


def test_runs_table(tmp_path: Path) -> None:
    swept = [{"training.batch_size": 10, "training.lr": 0.1}, {"training.batch_size": "full", "training.lr": 1.0}]
    numbers = {"epochs": 3, "steps": 30, "train_loss": 1e-3, "stack_size": 2, "seconds": 0.25, "test_loss": None}
    records = [RUN | {"swept": swept[0], **numbers}, RUN | {"run_id": "r2", "group": "none", "swept": swept[1]}]
    frame = store.runs_table(records)
    header = (
        "run_id,group,seed,training.batch_size,training.lr,status,epochs,steps,train_loss,train_accuracy,test_loss,"
        "test_accuracy,loss_gap,accuracy_gap,seconds,stack_size,message"
    )
    assert store.table_bytes(frame).decode() == (
        f"{header}\nr1,small,0,10,0.1,ok,3,30,0.001,,,,,,0.25,2,\nr2,none,0,full,1.0,ok,,,,,,,,,,,\n"
    )
    assert frame["group"].tolist() == ["small", "none"]
    assert_frame_equal(round_trip(frame, tmp_path / "x.csv"), frame, check_exact=True)
    assert (
        store.table_bytes(store.runs_table([])).decode()
        == header.replace("training.batch_size,training.lr,", "") + "\n"
    )


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([10, 1000], "Int64"), ([0.1, 1], "float64"), (["10", "0.10", "full"], "str"), ([[100, 100], [8]], "str"),
     ([True, False], "str"), ([10, None], "Int64"), ([2**70, 1], "str"), (["'-5", "-5", "x"], "str")],
)  # fmt: skip
def test_swept_columns_have_the_type_of_their_values(tmp_path: Path, values: list[Any], dtype: str) -> None:
    frame = store.runs_table([RUN | {"swept": {"k": value}} for value in values])
    assert frame["k"].dtype == pd.Series([], dtype=dtype).dtype
    assert_frame_equal(round_trip(frame, tmp_path / "x.csv"), frame, check_exact=True)


def test_metrics_table_is_in_the_given_order(tmp_path: Path) -> None:
    runs = [RUN | {"run_id": "r2", "group": "large", "seed": 1}, RUN]
    cells = [
        cell("r1", "regret", "m=100", "m=10", "m=2", seconds=3.0),
        cell("r1", "_shared:gram", "", value=None),
        cell("r2", "zeta", "eps=0.01", "eps=1e-3", "eps=0.001;rank=2"),
        cell("r2", "alpha", "", samples=4, standard_error=0.25),
        cell("r1", "hessian_top", ""),
        cell("r1", "hessian_top", "", epoch=5),
        cell("stale", "regret", ""),
    ]
    frame = store.metrics_table(cells, runs, ["regret", "hessian_top"])
    assert list(zip(frame["run_id"], frame["metric"], frame["setting"], strict=True)) == [
        ("r2", "alpha", ""),
        *(("r2", "zeta", text) for text in ("eps=1e-3", "eps=0.001;rank=2", "eps=0.01")),
        *(("r1", "regret", text) for text in ("m=2", "m=10", "m=100")),
        ("r1", "hessian_top", ""),
        ("r1", "hessian_top", ""),
        ("r1", "_shared:gram", ""),
    ]
    assert frame["epoch"].isna().tolist() == [True] * 8 + [False, True]
    assert frame.loc[frame["metric"] == "regret", "seconds"].tolist() == [1.0] * 3
    assert frame["group"].tolist() == ["large"] * 4 + ["small"] * 6
    text = store.table_bytes(frame).decode()
    assert text.startswith(
        "run_id,group,seed,epoch,metric,setting,value,standard_error,samples,iterations,residual,seconds,status,message\n"
        "r2,large,1,,alpha,,0.5,0.25,4,,,1.0,ok,\n"
    )
    assert_frame_equal(round_trip(frame, tmp_path / "x.csv"), frame, check_exact=True)
    assert store.table_bytes(store.metrics_table(cells[::-1], runs, ["regret", "hessian_top"])).decode() == text
    assert store.metrics_table([], runs).empty


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfrun_id,value,samples\r\nr1,1.50E-3,\r\nr2,,7\r\n")
    frame = store.read_table(path)
    assert frame["run_id"].tolist() == ["r1", "r2"]
    assert frame["value"].iloc[0] == 1.5e-3
    assert frame["samples"].dtype == "Int64"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n", b"a,b\n1\n", b"\xff\xfe\x00", b'a,b\n"1,2'])
def test_garbled_tables_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(Fault) as caught:
        store.read_table(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as a table (")
    with pytest.raises(Fault, match="cannot be read as a table"):
        store.read_table(tmp_path / "none.csv")


def test_python_csv_agrees(tmp_path: Path) -> None:
    """Another reader sees the same rows: no dialect of our own."""
    data = store.table_bytes(pd.DataFrame({"message": ["a,b", '"', ""], "value": [1.0, 2.0, 3.0]}))
    assert list(csv.reader(io.StringIO(data.decode()))) == [
        ["message", "value"],
        ["a,b", "1.0"],
        ['"', "2.0"],
        ["", "3.0"],
    ]


def test_curve_tables_are_tidy_and_in_order(tmp_path: Path) -> None:
    """By run, setting, epoch, the minimum first; columns that a curve lacks are empty; not every cell has one."""
    runs = [RUN | {"run_id": "r2", "group": "large", "seed": 1}, RUN]

    def curve(setting: str, **columns: list[Any]) -> dict[str, Any]:
        return {"setting": setting, "columns": list(columns), "values": list(columns.values())}

    def with_curve(run_id: str, setting: str, epoch: int | None = None, **columns: list[Any]) -> dict[str, Any]:
        more = {} if epoch is None else {"epoch": epoch}
        return cell(run_id, "density", setting) | {"curves": [curve(setting, **columns)]} | more

    cells = [
        with_curve("r1", "m=10", x=[1.5, None], y=[1, 2]),
        with_curve("r1", "m=2", epoch=5, x=[0.25, 0.5]),
        with_curve("r1", "m=2", x=[0.0, 1.0], z=["=1+1", "b"]),
        with_curve("r2", "", x=[1e-300, 0.1 + 0.2]),
        with_curve("stale", "", x=[9.0]),
        cell("r1", "regret", ""),
        cell("r1", "other", "") | {"curves": [curve("", rank=[1, 2, 3])]},
    ]
    found = store.curve_tables(cells, runs)
    assert list(found) == ["density", "other"]
    frame = found["density"]
    assert list(frame.columns) == ["run_id", "group", "seed", "epoch", "setting", "x", "z", "y"]
    keys = [(r, s) for r, s in zip(frame["run_id"], frame["setting"], strict=True)]
    assert keys == [("r2", "")] * 2 + [("r1", "m=2")] * 4 + [("r1", "m=10")] * 2
    assert frame["epoch"].isna().tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert frame["group"].tolist() == ["large"] * 2 + ["small"] * 6
    assert frame["y"].dtype == "Int64" and frame["z"].tolist() == [""] * 2 + ["=1+1", "b"] + [""] * 4
    for name, table in found.items():
        assert_frame_equal(round_trip(table, tmp_path / f"{name}.csv"), table, check_exact=True)
        assert store.table_bytes(store.curve_tables(cells[::-1], runs)[name]) == store.table_bytes(table)
    assert store.curve_tables([], runs) == {}
