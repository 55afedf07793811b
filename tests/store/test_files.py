"""Files stay whole, old or new, when the disk fails or the process is killed at any system call."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from landscape_cli import store
from landscape_cli.registry.errors import Fault
from landscape_cli.store import files

OLD, NEW = b"old " * 1000, b"new " * 1500
CALLS = ("open", "write", "fsync", "replace")

CHILD = """
import os, signal, sys, types
from pathlib import Path
for name in ("landscape_cli", "landscape_cli.store", "landscape_cli.registry"):  # without what the packages import
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(Path.cwd() / name.replace(".", "/"))]
from landscape_cli.store import files

call, when, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
if call:
    count, real = 0, getattr(os, call)
    def killed(*args, **kwargs):
        global count
        count += 1
        if count == when:
            if call == "write":
                real(args[0], bytes(args[1])[:7])  # torn
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, call, killed)
files.write_many([(folder / name, b"new " * 1500) for name in ("a/1", "a/2", "b/3")])
"""


def three_files(folder: Path) -> list[Path]:
    """a/1, a/2 and b/3 with the old content."""
    paths = [folder / name for name in ("a/1", "a/2", "b/3")]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(OLD)
    return paths


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".landscape-tmp-*"))


def child(call: str, when: int, folder: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-B", "-S", "-E", "-c", CHILD, call, str(when), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, when: int, code: int) -> list[int]:
    """Let the `when`-th os.<call> raise; returns a list that holds the number of calls seen."""
    seen, real = [0], getattr(os, call)

    def failing(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] == when:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    return seen


def test_write_says_whether_it_changed_anything_and_leaves_equal_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert store.write(path, OLD)
    before = path.stat()
    assert not store.write(path, OLD)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert store.write(path, OLD[::-1])  # equal length: content decides
    assert path.read_bytes() == OLD[::-1]
    assert store.write_many([(path, b""), (tmp_path / "y", b"y"), (tmp_path / "y", b"y")]) == 3
    assert (path.read_bytes(), (tmp_path / "y").read_bytes(), leftovers(tmp_path)) == (b"", b"y", [])


def test_files_are_durable_before_they_appear_and_each_folder_is_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, events = three_files(tmp_path), []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b)))
    store.write_many((path, NEW) for path in paths)
    assert all(".landscape-tmp-" in event for event in events[:3])
    assert events[3:] == ["replace"] * 3 + [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_failing_disk_leaves_every_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    for when in range(1, 100):
        paths = three_files(tmp_path)
        with monkeypatch.context() as patch:
            seen = fail_at(patch, call, when, code)
            try:
                store.write_many((path, NEW) for path in paths)
                failed = False
            except Fault as fault:
                failed = True
                assert fault.code == 1
                found = re.fullmatch(
                    rf"{re.escape(str(tmp_path))}/[ab].*: cannot be written \({os.strerror(code)}\): "
                    r"18000 bytes needed, \d+ free; what was there is intact: free some space or use --results "
                    r"with another disk, then run the same command to go on",
                    str(fault),
                )
                assert found, str(fault)
        contents = [path.read_bytes() for path in paths]
        assert set(contents) <= {OLD, NEW}
        if call == "write" or (call, when) in {("fsync", 1), ("fsync", 2), ("fsync", 3)}:
            assert set(contents) == ({OLD} if failed else {NEW})  # before the first rename nothing has changed
        assert not leftovers(tmp_path)
        if seen[0] < when:
            assert not failed
            assert when > 3
            return
        assert failed


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:1000]))
    store.write(tmp_path / "x", NEW)
    assert (tmp_path / "x").read_bytes() == NEW


@pytest.mark.parametrize("call", CALLS)
def test_sigkill_at_every_call_leaves_every_file_whole(tmp_path: Path, call: str) -> None:
    for when in range(1, 100):
        paths = three_files(tmp_path)
        done = child(call, when, tmp_path)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        check_whole_then_resume(tmp_path, paths)
        if done.returncode == 0:
            assert when > 3  # teeth: the calls were counted
            return


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; the test above kills without it")
@pytest.mark.parametrize(("call", "path"), [("write", ""), ("fsync", ""), ("rename", ""), ("openat", "tmp-")])
def test_sigkill_at_every_system_call_leaves_every_file_whole(tmp_path: Path, call: str, path: str) -> None:
    log, place = tmp_path / "strace.log", tmp_path / "files"
    three_files(place)
    trace = ("strace", "-f", "-o", str(log), "-e", f"trace={call}")
    done = child("", 0, place, trace)
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    lines = [line for line in log.read_text().splitlines() if f" {call}(" in line]
    first = next(i for i, line in enumerate(lines, 1) if path in line)  # openat: after the interpreter's own
    assert len(lines) - first >= 2
    for when in range(first, len(lines) + 1):
        paths = three_files(place)
        done = child("", 0, place, (*trace, "-e", f"inject={call}:signal=KILL:when={when}"))
        assert done.returncode == -signal.SIGKILL
        check_whole_then_resume(place, paths)


def check_whole_then_resume(folder: Path, paths: list[Path]) -> None:
    assert all(path.read_bytes() in (OLD, NEW) for path in paths)
    with store.lock(folder):
        assert not leftovers(folder)
        store.write_many((path, NEW) for path in paths)
    assert [path.read_bytes() for path in paths] == [NEW] * len(paths)
    assert not leftovers(folder)


def test_removed_are_files_of_the_folder_and_nothing_behind_a_link(tmp_path: Path) -> None:
    """All are looked at before the first one goes."""
    folder, outside = tmp_path / "exp", tmp_path / "outside"
    for place in (folder / "a", outside):
        place.mkdir(parents=True)
        (place / "x").write_bytes(OLD)
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "x")
    for wrong in (outside / "x", folder / ".." / "outside" / "x", folder / "link" / "x", folder / "file", folder):
        with pytest.raises(Fault, match=r"is not in|is a symbolic link"):
            files.remove(folder, [folder / "a" / "x", wrong])
    with pytest.raises(Fault, match="cannot be"):
        files.remove(tmp_path, [folder / "a"])  # a folder
    assert (folder / "a" / "x").exists() and (outside / "x").exists() and (folder / "file").is_symlink()
    files.remove(folder, [folder / "a" / "x", folder / "a" / "gone", folder / "nowhere" / "x"])
    assert not (folder / "a" / "x").exists()
    files.remove_if_empty(folder / "a")
    files.remove_if_empty(folder)
    assert not (folder / "a").exists() and folder.exists()


def test_what_was_seen_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    path, reads, seen = tmp_path / "x", [], files.Seen()

    def read(path: Path) -> bytes:
        reads.append(path)
        return path.read_bytes() if path.exists() else b""

    assert [seen.read(path, read) for _ in range(2)] == [b"", b""]  # what is missing may come
    files.write(path, OLD)
    assert [seen.read(path, read) for _ in range(3)] == [OLD] * 3 and len(reads) == 3
    files.write(path, NEW)
    assert [seen.read(path, read) for _ in range(3)] == [NEW] * 3 and len(reads) == 4
    assert seen.hash(path) == files.file_hash(path)  # another function, another value
