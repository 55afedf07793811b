"""Downloads, from a server on this machine that breaks off, lies or knows nothing of ranges."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Call

from landscape_cli.data import download
from landscape_cli.registry.errors import Fault

DATA = bytes(range(256)) * 4000
MD5 = hashlib.md5(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """What it was asked for, and how it behaves."""

    asked: list[str | None]
    breaks = 0
    ranges = True


class Handler(BaseHTTPRequestHandler):
    """Serves DATA at /file, other bytes at /lie."""

    server: Server

    def do_GET(self) -> None:  # its name there
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path == "/none":
            self.send_error(404)
            return
        body = DATA if self.path == "/file" else DATA[::-1]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(body[start : start + 300_000])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(body[start:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def at(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_file_is_fetched_once_and_told_about(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    files = [("deep/file.bin", [at(server, "none"), at(server, "file")], MD5)]
    (path,) = download.fetch(files, tmp_path / "root", lambda *told: seen.append(told))
    assert path.read_bytes() == DATA and seen[-1] == ("deep/file.bin", len(DATA), len(DATA))
    asked = len(server.asked)
    assert download.fetch(files, tmp_path / "root") == [path] and len(server.asked) == asked
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.breaks, server.ranges = 1, ranges
    files = [("file.bin", [at(server, "file")], MD5)]
    with pytest.raises(Fault, match="what came is kept, the same command goes on") as caught:
        download.fetch(files, tmp_path)
    assert caught.value.code == 5 and not (tmp_path / "file.bin").exists()
    there = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < there < len(DATA)
    (path,) = download.fetch(files, tmp_path)
    assert path.read_bytes() == DATA and server.asked == [None, f"bytes={there}-"]


def test_another_file_than_is_due_is_not_put_in_place(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="another one than is due"):
        download.fetch([("file.bin", [at(server, "lie")], MD5)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command(server: Server, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "sources", lambda name: [(f"{name}.bin", [at(server, "file")], MD5)])
    code, out, err = call("data", "fetch", "mnist", "--root", "there")
    assert (code, out, err) == (0, "there/mnist.bin\n", "")
    assert (tmp_path / "there" / "mnist.bin").read_bytes() == DATA
    monkeypatch.undo()


def test_an_unknown_set(call: Call) -> None:
    code, out, err = call("data", "fetch", "digits")
    assert code == 2 and out == "" and err.startswith("data fetch: 'digits': nothing to download")


def test_every_known_set_has_sources_with_checksums() -> None:
    for name in download.NAMES:
        for file, addresses, md5 in download.sources(name):
            assert file and addresses and all(a.startswith("http") for a in addresses) and len(md5) == 32
    with pytest.raises(Fault, match="'digits': nothing to download: there are cifar10, cifar100"):
        download.sources("digits")
