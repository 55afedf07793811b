"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Call

from landscape_cli.cli.options import size_of
from landscape_cli.network import memory
from landscape_cli.registry.errors import Fault

SIZES = {
    "4GiB": 2**32,
    "1.5 gb": 1_500_000_000,
    "512MiB": 2**29,
    " 64KB ": 64_000,
    "2e6": 2_000_000,
    "1B": 1,
    "1TiB": 2**40,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text: str) -> None:
    assert size_of(text) == SIZES[text]


@pytest.mark.parametrize(
    "text", ["", "GiB", "4 Gibs", "-1GiB", "0", ".1", "nan", "inf", "1e30", "4G4iB", "vier\nGiB", "1_0 MB x"]
)
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(Fault) as caught:
        size_of(text)
    assert str(caught.value) == f"--memory: {text!r} is no size: write a number and a unit, such as 4GiB or 500MB"


@pytest.mark.parametrize("command", ["train", "measure", "compare", "surface", "audit"])
def test_commands_that_work_take_memory_and_say_what_is_wrong_with_it(call: Call, command: str) -> None:
    code, _, err = call(command, "tiny.yaml", "--memory", "much")
    assert code == 2
    assert err.splitlines()[-1].endswith(
        "--memory: 'much' is no size: write a number and a unit, such as 4GiB or 500MB"
    )


def test_what_is_given_holds_for_one_command_and_is_kept_in_the_manifest(call: Call, tmp_path: Path) -> None:
    before = memory.budget()
    for words, due in ((["--memory", "3MB"], 3_000_000), ([], before)):
        assert call("train", "tiny.yaml", "--set", "training.stop.max_epochs=1", "--quiet", *words)[0] in (0, 3)
        assert json.loads((tmp_path / "results" / "tiny" / "manifest.json").read_text())["memory"] == due
    assert memory.budget() == before
