"""ABO's archives arrive whole and once, whatever the connection does. The server is real, and as bad as it is told to be."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.abo import download
from data_prep.abo.download import fetch_archive
from data_prep.outcomes import UserError
from tests.conftest import launch, output

NAME = "abo-listings.tar"


def archive(text: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(20):
            data = f"{text} {number} ".encode() * 4000
            member = tarfile.TarInfo(f"listings/metadata/listings_{number}.json.gz")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


class Mirror:
    """A server of one archive, which cuts connections after so many bytes, ignores ranges, refuses, or stalls."""

    def __init__(self) -> None:
        self.data, self.etag = archive("a"), ""
        self.cut_after: int | None = None
        self.ranges = True
        self.refusals: list[int] = []
        self.stalls = 0
        self.sent = 0
        self.asked: list[str | None] = []
        self.released = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.refusals:
            request.send_response(self.refusals.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        etag = self.etag or f'"{hashlib.md5(self.data).hexdigest()}"'
        start = 0
        if wanted and self.ranges and request.headers.get("If-Range") == etag:
            start = int(re.findall(r"\d+", wanted)[0])
        request.send_response(206 if start else 200)
        request.send_header("ETag", etag)
        request.send_header("Content-Length", str(len(self.data) - start))
        request.end_headers()
        body = self.data[start:]
        if self.stalls:
            self.stalls -= 1
            request.wfile.write(body[:1000])
            request.wfile.flush()
            self.released.wait(20)
            return
        if self.cut_after is not None:
            body = body[: self.cut_after]
        self.sent += len(body)
        request.wfile.write(body)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    one = Mirror()
    yield one
    one.released.set()
    one.server.shutdown()


def fetch(mirror: Mirror, folder: Path, stalled: float = 5.0) -> bool:
    return fetch_archive(NAME, folder, lambda *_: None, source=mirror.url, pause=0.01, stalled=stalled)


def complete(folder: Path, text: str = "a") -> bool:
    files = sorted((folder / "listings/metadata").iterdir())
    return len(files) == 20 and all(file.read_bytes().startswith(f"{text} ".encode()) for file in files)


def test_what_is_cut_off_again_and_again_arrives_whole_and_no_byte_is_sent_twice(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.cut_after = 100_000
    assert fetch(mirror, tmp_path) and complete(tmp_path)
    assert mirror.sent == len(mirror.data) and len(mirror.asked) == -(-len(mirror.data) // 100_000)
    assert not fetch(mirror, tmp_path), "what is there is not fetched again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abo-listings.tar.json", "listings"]


def test_an_interrupted_command_goes_on_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("unpacking") and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_archive(NAME, tmp_path, interrupt, source=mirror.url)
    assert fetch(mirror, tmp_path) and complete(tmp_path)
    assert len(mirror.asked) == 1


def test_a_version_that_changed_in_between_is_begun_anew_and_never_mixed(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = 100_000
    (tmp_path / f"{NAME}.part").write_bytes(mirror.data[:50_000])
    (tmp_path / f"{NAME}.part.json").write_text('{"etag": "\\"an older one\\"", "bytes": 999}')
    mirror.data = archive("b")
    assert fetch(mirror, tmp_path) and complete(tmp_path, "b")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_recovers_is_asked_again(mirror: Mirror, tmp_path: Path, status: int) -> None:
    mirror.refusals = [status] * 3
    assert fetch(mirror, tmp_path) and complete(tmp_path)


def test_a_server_without_ranges_and_one_that_stalls_are_no_obstacle(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges, mirror.stalls = False, 2
    assert fetch(mirror, tmp_path, stalled=0.3) and complete(tmp_path)


def test_an_address_that_is_gone_is_an_error_at_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.refusals = [404]
    with pytest.raises(UserError, match=r"the server answered 404.*docs/abo\.md"):
        fetch(mirror, tmp_path)
    assert len(mirror.asked) == 1


def test_a_server_that_never_sends_anything_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.refusals = [503] * 100
    with pytest.raises(UserError, match=r"HTTP 503.*goes on where it stopped"):
        fetch(mirror, tmp_path)
    assert len(mirror.asked) == download.TRIES


def test_bytes_that_changed_on_the_way_are_noticed(mirror: Mirror, tmp_path: Path) -> None:
    mirror.etag = f'"{hashlib.md5(b"something else").hexdigest()}"'
    with pytest.raises(UserError, match="arrived damaged"):
        fetch(mirror, tmp_path)
    assert not (tmp_path / f"{NAME}.part").exists()


def test_too_small_a_disk_is_an_error_before_anything_is_written(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs 0\.0 GB in .*, packed and unpacked"):
        fetch(mirror, tmp_path)
    assert mirror.sent in (0, len(mirror.data)) and not (tmp_path / f"{NAME}.part").exists()


def test_the_command_fetches_both_archives_and_says_how_to_go_on(mirror: Mirror, tmp_path: Path) -> None:
    done = launch("fetch", "--data", tmp_path / "abo", "--mirror", mirror.url)
    assert done.returncode == 0, output(done)
    assert complete(tmp_path / "abo") and len(mirror.asked) == 2
    assert f"export ABO_ROOT={tmp_path}/abo" in done.stdout
