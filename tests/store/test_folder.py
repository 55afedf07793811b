"""The results folder under rival processes, symbolic links, deletion and garbled files."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from store_examples import cell, run

from landscape_cli import store
from landscape_cli.registry.errors import Fault
from landscape_cli.store import files
from landscape_cli.store.folder import OWNER

OLD, NEW = b"old", b"new"
HOLDER = """
import sys, time
from pathlib import Path
from landscape_cli import store

with store.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store.open_folder(tmp_path / "results", "exp")


def test_symbolic_links_are_not_followed(tmp_path: Path, folder: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(OLD)
    (folder / "x").symlink_to(outside / "x")
    (folder / "sub").symlink_to(outside)
    for path, link in ((folder / "x", folder / "x"), (folder / "sub" / "y", folder / "sub")):
        with pytest.raises(Fault) as caught:
            store.write(path, NEW)
        wrong = "is a symbolic link, which is not followed for writing: put a real one in its place"
        assert str(caught.value) == f"{link}: {wrong}"
    (folder / "cells" / "r1").symlink_to(outside)
    with pytest.raises(Fault, match="symbolic link"):
        store.write_cells(folder, [cell("r1")], [(store.vectors_path(folder, cell("r1")), NEW)])
    (folder / "cells" / "r2.json").symlink_to(outside / "x")
    with pytest.raises(Fault, match="symbolic link"):
        store.write_cells(folder, [cell("r2")])
    (folder.parent / "other").symlink_to(outside)
    with pytest.raises(Fault, match="other: is a symbolic link"):
        store.open_folder(folder.parent, "other")
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("x", OLD)]
    (tmp_path / "scratch").symlink_to(outside)  # the user's own choice of --results may be a link
    store.write(store.open_folder(tmp_path / "scratch", "exp") / "x", NEW)


def test_deleted_folder_is_not_made_again(tmp_path: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    record = run("r1")
    attempts: list[Callable[[], Any]] = [
        lambda: store.write(folder / "runs.csv", b"x"),
        lambda: store.write_runs(folder, [record]),
        lambda: store.write_cells(folder, [cell("r1")]),
        lambda: store.lock(folder).__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises(Fault) as caught:
            attempt()
        wrong = ": its folder is gone, deleted while in use? Nothing was made again: run the same command afresh"
        assert str(caught.value).startswith(str(folder))
        assert str(caught.value).endswith(wrong)
        assert caught.value.code == 1
    assert not folder.exists()


def test_folder_deleted_between_staging_and_rename(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (shutil.rmtree(folder), real(a, b)))
    with pytest.raises(Fault, match="its folder is gone"):
        store.write(folder / "x", NEW)
    assert not folder.exists()


# --- folder and lock ---


def test_open_folder_makes_subfolders_and_keeps_what_is_there(tmp_path: Path) -> None:
    folder = store.open_folder(tmp_path / "a" / "results", "exp", ("runs", "surfaces"))
    (folder / "runs" / "x").write_bytes(OLD)
    assert store.open_folder(tmp_path / "a" / "results", "exp") == folder
    assert sorted(p.name for p in folder.iterdir()) == ["cells", "minima", "plots", "runs", "stacks", "surfaces"]
    assert [p.name for p in (folder / "runs").iterdir()] == ["x"]


def test_read_only_place_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(Fault) as caught:
        store.open_folder(tmp_path, "exp")
    reason = "cannot be written (Read-only file system): make it writable, or use --results with another folder"
    assert (str(caught.value), caught.value.code) == (f"{tmp_path}/exp: {reason}", 2)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_bytes(OLD)
    with pytest.raises(Fault, match="cannot be made, a file is in its place") as caught:
        store.open_folder(tmp_path / "results", "exp")
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["", "../x", "/abs", "a/b", "-x", ".x", "a\0b", "a\n", "x" * 82, "é"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Fault, match=r"the first a letter or digit$"):
        store.check_name(name)
    with pytest.raises(Fault):
        store.open_folder(tmp_path / "results", name)
    with pytest.raises(Fault):
        store.write_runs(tmp_path, [run(name)])
    with pytest.raises(Fault):
        store.write_cells(tmp_path, [cell(name)])
    with pytest.raises(Fault):
        store.vectors_path(tmp_path, cell(name))
    assert list(tmp_path.iterdir()) == []


def test_lock_is_exclusive_and_free_at_once_after_sigkill(folder: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    cwd = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        unfinished = folder / "cells" / f"{files.TEMPORARY}1"
        unfinished.write_bytes(OLD)
        with pytest.raises(Fault) as caught, store.lock(folder):
            pytest.fail("two owners")
        line = rf"results folder {folder} is in use by process {holder.pid} on \S+ since 20\S+: wait for it, or .*"
        assert re.fullmatch(line, str(caught.value))
        assert caught.value.code == 4
        assert unfinished.exists()  # only the owner sweeps
        for garbled in (b"{", b"[]", b'{"pid": 1, "host": "\\u001b[31m", "since": "now"}', b'{"pid": 1, "host": 2}'):
            (folder / OWNER).write_bytes(garbled)
            with pytest.raises(Fault, match=r"in use by another process: wait for it, or use --results$"):
                store.lock(folder).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with store.lock(folder):
        assert json.loads((folder / OWNER).read_bytes())["pid"] == os.getpid()
        assert not unfinished.exists()
    assert not (folder / OWNER).exists()


def test_waiting_for_the_lock(folder: Path) -> None:
    script = HOLDER.replace("sleep(60)", "sleep(0.5)")
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        start = time.monotonic()
        with store.lock(folder, wait=True):
            assert time.monotonic() - start > 0.3
        assert holder.wait() == 0


def test_sweep_takes_our_unfinished_files_only(folder: Path) -> None:
    ours = [folder / f"{files.TEMPORARY}ab", folder / "cells" / f"{files.TEMPORARY}cd"]
    theirs = [folder / ".tmp-x", folder / "notes.landscape-tmp-", folder / "cells" / "x.json"]
    for path in ours + theirs:
        path.write_bytes(OLD)
    with store.lock(folder):
        pass
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


# --- manifest ---


def test_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-secret")
    store.write_runs(folder, [run("r1")])
    for ignored in ("stacks/s1", f"cells/{files.TEMPORARY}1", "manifest.json", ".lock", ".lock-owner.json"):
        (folder / ignored).write_bytes(b"abc")
    (folder / "runs.csv").write_bytes(b"abc")
    (folder / "link").symlink_to("/etc/hostname")
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    store.write_manifest(folder, ["landscape", "train", "x"], started, {"device": "cpu", "threads": 2})
    content = json.loads((folder / "manifest.json").read_bytes())
    assert set(content["files"]) == {"runs.csv", "runs/r1.json"}
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content["files"]["runs.csv"] == abc == store.file_hash(folder / "runs.csv")
    assert content["command"] == ["landscape", "train", "x"]
    assert (content["device"], content["threads"], content["started"]) == ("cpu", 2, "2026-01-02T03:04:05+00:00")
    assert content["ended"] > content["started"]
    assert {"python", "torch", "numpy"} <= set(content["versions"])
    assert b"hunter2" not in (folder / "manifest.json").read_bytes()


def test_manifest_names_commit_and_dirty_flag(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git() -> Any:
        store.write_manifest(folder, [], datetime.now(UTC), {})
        return json.loads((folder / "manifest.json").read_bytes())["git"]

    assert git() is None
    (repository / "x").write_text("1")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "x"), (*identity, "commit", "-q", "--no-verify", "-m", "x")):
        subprocess.run(("git", *words), check=True)
    assert re.fullmatch("[0-9a-f]{40}", git()["commit"])
    assert git()["dirty"] is False
    (repository / "x").write_text("2")
    assert git()["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert git() is None


def test_import_loads_neither_torch_nor_pandas() -> None:
    script = "import sys; from landscape_cli import store; print({'torch', 'pandas', 'filelock'} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "set()\n", done.stderr
