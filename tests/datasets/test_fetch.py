"""Downloads from a server on the loopback: resumed, checked, unpacked with suspicion."""

import base64
import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.datasets import fetch as module
from patchbank.datasets.declarations import Archive, Declaration, Part
from patchbank.datasets.fetch import fetch, unpack
from patchbank.errors import FetchError, InvalidRequest

from .conftest import TOY


class Server:
    """What the loopback server gives, and what it was asked."""

    def __init__(self) -> None:
        self.body = b""
        self.etag = '"1"'
        self.ranges = True
        self.break_after: list[int] = []  # bytes after which the next answers break off
        self.status: list[int] = []  # errors that the next requests get
        self.asked: list[str | None] = []  # the Range headers
        self.logins: list[str | None] = []  # the Authorization headers
        self.headers: dict[str, str] = {}  # instead of the right ones; "" for none
        self.to = ""  # a redirect of /moved
        self.url = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "CHUNK", 4096)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            state.logins.append(self.headers.get("Authorization"))
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", state.to)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if state.status:
                self.send_error(state.status.pop(0))
                return
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(state.body):
                    self.send_error(416)
                    return
            part = state.body[start:]
            self.send_response(206 if start or "Content-Range" in state.headers else 200)
            headers = {"Content-Length": str(len(part)), "ETag": state.etag}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(state.body) - 1}/{len(state.body)}"
            for name, value in {**headers, **state.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(part[: state.break_after.pop(0)] if state.break_after else part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{listening.server_port}/archive.zip"
        yield state
        listening.shutdown()
        thread.join()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # the same bytes at any time
    return stream.getvalue()


NOISE = np.random.default_rng(0).bytes(60_000)
GOOD = {"top/AMi-Br/a.png": NOISE, "top/votes.csv": b"a,b\n", "top/empty/": b""}


@pytest.fixture
def facts(server: Server) -> Declaration:
    server.body = zipped(GOOD)
    return Declaration(
        parts=(Part(builder="folder"),),
        **TOY,
        licence="",
        source="somewhere",
        files={"votes.csv": hashlib.sha256(b"a,b\n").hexdigest(), "lost.csv": "0" * 64},
        archives=(Archive(url=server.url, sha256="unpinned", unpack="Toy"),),
    )


def changed(facts: Declaration, **changes: str) -> Declaration:
    return facts.replace(archives=(facts.archives[0].replace(**changes),))


def get(facts: Declaration, folder: Path, **options: Any) -> module.Fetched:
    (got,) = fetch(facts, folder, progress=False, **options)
    return got


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_download_and_unpack(facts: Declaration, server: Server, tmp_path: Path) -> None:
    got = get(facts, tmp_path)
    assert got.new
    assert not got.pinned
    assert got.sha256 == hashlib.sha256(server.body).hexdigest()
    assert got.bytes == len(server.body)
    assert got.files == {"votes.csv": "ok", "lost.csv": "missing"}
    assert (tmp_path / "Toy" / "top" / "AMi-Br" / "a.png").read_bytes() == NOISE
    assert left(tmp_path) == {"fetched.json", "Toy/top/AMi-Br/a.png", "Toy/top/votes.csv"}
    assert json.loads((tmp_path / "fetched.json").read_text())[server.url]["sha256"] == got.sha256


def test_what_is_there_is_not_downloaded_again(facts: Declaration, server: Server, tmp_path: Path) -> None:
    get(facts, tmp_path)
    got = get(facts, tmp_path)
    assert not got.new
    assert got.files["votes.csv"] == "ok"
    assert len(server.asked) == 1
    assert get(facts, tmp_path, again=True).new
    assert len(server.asked) == 2


def test_a_broken_connection_is_resumed(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.break_after = [20_000, 10_000]
    got = get(facts, tmp_path)
    assert got.sha256 == hashlib.sha256(server.body).hexdigest()
    assert server.asked == [None, "bytes=20000-", "bytes=30000-"]


def test_a_later_command_goes_on(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.break_after = [1000] * module.ATTEMPTS
    with pytest.raises(FetchError, match=r"failed 5 times .*; 5000 bytes are kept, the same command goes on"):
        get(facts, tmp_path)
    assert left(tmp_path) == {".fetch/Toy.part", ".fetch/Toy.part.json"}
    server.asked.clear()
    assert get(facts, tmp_path).new
    assert server.asked == ["bytes=5000-"]


def test_a_server_without_ranges_starts_again(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [20_000]
    assert get(facts, tmp_path).sha256 == hashlib.sha256(server.body).hexdigest()


def test_another_version_is_not_glued_to_the_old_start(
    facts: Declaration, server: Server, tmp_path: Path
) -> None:
    server.break_after = [2000] * module.ATTEMPTS
    with pytest.raises(FetchError):
        get(facts, tmp_path)
    server.break_after = []
    server.body, server.etag = zipped({"top/other.png": NOISE[::-1]}), '"2"'
    assert get(facts, tmp_path).sha256 == hashlib.sha256(server.body).hexdigest()
    assert left(tmp_path / "Toy") == {"top/other.png"}


def test_a_weak_validator_promises_nothing(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.etag = 'W/"1"'
    server.break_after = [20_000]
    assert get(facts, tmp_path).new
    assert server.asked == [None, None]


def test_a_part_as_long_as_the_file(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.break_after = [1000] * module.ATTEMPTS
    with pytest.raises(FetchError):
        get(facts, tmp_path)
    server.break_after = []
    (tmp_path / ".fetch" / "Toy.part").write_bytes(bytes(len(server.body)))  # the server answers 416
    assert get(facts, tmp_path).sha256 == hashlib.sha256(server.body).hexdigest()


def test_errors_of_the_server(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.status = [503, 502]  # passing
    assert get(facts, tmp_path).new
    server.status = [404]
    with pytest.raises(FetchError, match="the server answers 404"):
        get(facts, tmp_path, again=True)
    assert (tmp_path / "Toy").is_dir()


def test_nobody_listens(facts: Declaration, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="failed 5 times"):
        get(facts, tmp_path, url="http://127.0.0.1:9/a.zip")


def test_a_pinned_checksum(facts: Declaration, server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        FetchError, match=r"SHA-256 is [0-9a-f]{64}, but 0{64} is pinned\. Nothing was unpacked"
    ):
        get(facts, tmp_path, sha256="0" * 64)
    assert left(tmp_path) == set()  # a wrong file is not gone on with
    digest = hashlib.sha256(server.body).hexdigest()
    assert get(facts, tmp_path, sha256=digest.upper()).pinned
    pinned = changed(facts, sha256=digest)
    assert get(pinned, tmp_path, again=True).pinned


def test_an_unpinned_checksum_is_remembered(facts: Declaration, server: Server, tmp_path: Path) -> None:
    get(facts, tmp_path)
    server.body = zipped({"top/other.png": NOISE})
    with pytest.raises(
        FetchError, match=r"was downloaded before \(recorded in .*fetched.json\).*give it as --sha256"
    ):
        get(facts, tmp_path, again=True)
    assert "Toy/top/votes.csv" in left(tmp_path)  # the old files stay
    digest = hashlib.sha256(server.body).hexdigest()
    assert get(facts, tmp_path, again=True, sha256=digest).new
    assert left(tmp_path / "Toy") == {"top/other.png"}


def test_what_cannot_be_asked_for(facts: Declaration, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no public archive to download"):
        get(facts.replace(archives=()), tmp_path)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/a.zip"):
        with pytest.raises(InvalidRequest, match="only http and https"):
            get(facts, tmp_path, url=url)


def test_a_page_instead_of_an_archive(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.body = b"<html>please log in</html>"
    with pytest.raises(FetchError, match=r"neither a zip nor a tar \(it starts with b'<html>please"):
        get(facts, tmp_path)
    assert not (tmp_path / "Toy").exists()


def test_a_folder_that_cannot_be_made(facts: Declaration, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="nothing was unpacked"):
        get(facts, tmp_path / "file" / "data")


def test_a_full_disk(facts: Declaration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(FetchError, match="No space left on device; nothing was unpacked"):
        get(facts, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "Toy").exists()


def test_another_size_than_declared_is_not_downloaded(
    facts: Declaration, server: Server, tmp_path: Path
) -> None:
    size = len(server.body)
    assert get(sized(facts, size), tmp_path).bytes == size
    wrong = sized(facts, size + 1)
    with pytest.raises(FetchError, match=rf"has {size:,} bytes, and {size + 1:,} are declared.*--sha256"):
        get(wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong/.fetch/Toy.part").exists()
    digest = hashlib.sha256(server.body).hexdigest()
    assert get(wrong, tmp_path / "asked", sha256=digest).pinned
    server.headers = {"Content-Length": ""}
    with pytest.raises(FetchError, match="are declared: another version, or an error page"):
        get(wrong, tmp_path / "without")
    assert not (tmp_path / "without/Toy").exists()


def sized(facts: Declaration, size: int) -> Declaration:
    return facts.replace(archives=(facts.archives[0].replace(size=size),))


def test_a_disk_that_is_too_small_is_named_before_the_download(
    facts: Declaration, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": len(server.body) - 1})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"GB are to come, and .* GB left; not downloaded. Fix: make room"):
        get(facts, tmp_path)
    assert left(tmp_path) <= {".fetch/Toy.part.json"}


def test_a_damaged_record(facts: Declaration, tmp_path: Path) -> None:
    (tmp_path / "fetched.json").write_text("{")
    with pytest.raises(FetchError, match=r"fetched\.json is damaged"):
        get(facts, tmp_path)


# --- archives that want more than to be unpacked ----------------------------------------------------


SECRETS = ("hunter2", "ab12signature", "my-token", "anna")


def test_secrets_of_a_url_are_kept_nowhere(
    facts: Declaration, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in fetched.json, not beside a part that has arrived, not in a message."""
    base, host = server.url, server.url.removeprefix("http://")
    query = "?X-Amz-Signature=ab12signature&token=my-token&download=1"
    url = f"http://anna:hunter2@{host}{query}#my-token"
    facts = changed(facts, url=url)

    server.break_after = [5_000] * 5
    with pytest.raises(FetchError) as caught:
        get(facts, tmp_path)
    said = [str(caught.value)]
    parts = [file.read_text() for file in (tmp_path / ".fetch").glob("*.json")]
    assert len(parts) == 1
    assert get(facts, tmp_path).new
    assert server.asked[-1] is not None, "it goes on where it was"
    assert set(server.logins) == {"Basic " + base64.b64encode(b"anna:hunter2").decode()}
    assert not get(facts, tmp_path).new
    server.body = zipped({**GOOD, "more": b""})
    with pytest.raises(FetchError, match="SHA-256") as caught:
        get(facts, tmp_path, again=True)
    server.status = [404]
    said.append(str(caught.value))
    with pytest.raises(FetchError, match="404") as caught:
        get(facts, tmp_path, again=True)
    said += [str(caught.value), (tmp_path / "fetched.json").read_text(), *parts, *capsys.readouterr()]
    assert not [secret for secret in SECRETS for text in said if secret in text]
    assert all(base in text for text in said[:3])

    other = changed(facts, url=url.replace("download=1", "download=2"))
    assert get(other, tmp_path / "b").new
    record = json.loads((tmp_path / "fetched.json").read_text())
    (name,) = record
    (tmp_path / "fetched.json").write_text(json.dumps({url.partition("#")[0]: record[name]}))  # as before
    old = changed(facts, url=url.partition("#")[0])
    assert not get(old, tmp_path).new
    server.body = zipped(GOOD)
    assert get(old, tmp_path, again=True).new
    assert [*json.loads((tmp_path / "fetched.json").read_text())] == [name]


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x.zip", "file:///etc/passwd", "data:,x", "gopher://x/"])
def test_redirects_lead_to_web_servers_only(
    facts: Declaration, server: Server, tmp_path: Path, to: str
) -> None:
    server.to = to
    with pytest.raises(FetchError, match=r"redirects to .*neither http nor https"):
        get(facts, tmp_path, url=server.url.replace("/archive.zip", "/moved?token=my-token"))
    assert len(server.asked) == 1, "not tried again"


def test_a_login_is_not_sent_to_where_a_redirect_leads(
    facts: Declaration, server: Server, tmp_path: Path
) -> None:
    server.to = server.url.replace("127.0.0.1", "localhost")
    url = server.url.replace("http://", "http://anna:hunter2@").replace("/archive.zip", "/moved")
    assert get(facts, tmp_path, url=url).new
    assert [login is not None for login in server.logins] == [True, False]


def test_a_redirect_to_a_page_that_is_not_encrypted() -> None:
    import urllib.request

    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(FetchError, match="not encrypted"):
        module._Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/b")


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "5, 5", "9" * 40])
def test_a_length_that_is_no_number(facts: Declaration, server: Server, tmp_path: Path, length: str) -> None:
    server.headers = {"Content-Length": length}
    with pytest.raises(FetchError, match=r"bytes, which is not a number"):
        get(facts, tmp_path)


def test_no_length_at_all(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.headers = {"Content-Length": ""}
    assert get(facts, tmp_path).new


@pytest.mark.parametrize("kind", ["", "bytes", "bytes x-5/9", "items 0-5/9", "bytes */60000"])
def test_a_part_that_does_not_say_which(
    facts: Declaration, server: Server, tmp_path: Path, kind: str
) -> None:
    server.break_after = [20_000]
    server.headers = {"Content-Range": kind}
    with pytest.raises(FetchError, match="did not say which"):
        get(facts, tmp_path)
    server.headers = {}
    server.break_after = []
    assert get(facts, tmp_path).new


def test_a_part_of_somewhere_else(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.headers = {"Content-Range": "bytes 30000-59999/60000"}
    with pytest.raises(FetchError, match="behind the end"):
        get(facts, tmp_path)


def test_a_download_without_end(facts: Declaration, server: Server, tmp_path: Path) -> None:
    for length in ("", str(10**15)):
        server.headers = {"Content-Length": length}
        with pytest.raises(FetchError, match=r"longer than 10,000 bytes"):
            get(facts, tmp_path, max_bytes=10_000)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://h:x/", "http://", "ftp://h/x", "file:///etc/passwd", "x", "http:///x"]
)
def test_urls_that_are_none(facts: Declaration, tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidRequest):
        get(facts, tmp_path, url=url)


def test_a_checksum_that_is_none(facts: Declaration, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="64 hex digits"):
        get(facts, tmp_path, sha256="abc")


def test_characters_outside_ascii_in_a_url(facts: Declaration, server: Server, tmp_path: Path) -> None:
    assert get(facts, tmp_path, url=server.url.replace("archive", "über all")).new


@pytest.mark.parametrize(
    "text", ["[]", "5", '{"a": 1}', '{"a": {}}', '{"a": {"sha256": 5, "bytes": 1}}', "[" * 10**5]
)
def test_a_record_of_other_things(facts: Declaration, tmp_path: Path, text: str) -> None:
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(FetchError, match=r"fetched\.json is damaged"):
        get(facts, tmp_path)


def test_headers_of_a_tar_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A long name, or attributes, of a gigabyte: a megabyte of gzip."""
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        info = tarfile.TarInfo("x")
        info.size, info.type = 1 << 30, kind
        for opened in (gzip.open, bz2.open, lzma.open, open):
            archive = tmp_path / "x.tar"
            with opened(archive, "wb") as stream:
                stream.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 21))
            with pytest.raises(FetchError):
                unpack(archive, tmp_path / "out", progress=False)
            assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def tarred(add: Callable[[tarfile.TarFile], None], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        add(archive)
    return stream.getvalue()


def tar_member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, target: str = "") -> Any:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(data) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(data))

    return add


def zip_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


def zip_twice() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    return stream.getvalue()


MALICIOUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip up": (lambda: zipped({"ok": b"1", "../evil": b"2"}), "would leave the folder"),
    "zip up inside": (lambda: zipped({"a/../../evil": b"2"}), "would leave the folder"),
    "zip absolute": (lambda: zipped({"/evil": b"2"}), "would leave the folder"),
    "zip backslash": (lambda: zipped({"a\\..\\..\\evil": b"2"}), "would leave the folder"),
    "zip drive": (lambda: zipped({"C:evil": b"2"}), "would leave the folder"),
    "zip link": (zip_link, "is a link or device"),
    "zip twice": (zip_twice, "occurs twice"),
    "zip same place": (lambda: zipped({"a": b"1", "./a": b"2"}), "two members have one file name"),
    "zip below a file": (lambda: zipped({"a": b"1", "a/b": b"2"}), "two members have one file name"),
    "zip bomb": (lambda: zipped({"a": bytes(30 << 20)}), "far more than an archive of images"),
    "zip many small": (lambda: zipped({f"{k}": bytes(3 << 20) for k in range(10)}), "far more than"),
    "tar up": (lambda: tarred(tar_member("../evil")), "would leave the folder"),
    "tar absolute": (lambda: tarred(tar_member("/evil")), "would leave the folder"),
    "tar symlink": (
        lambda: tarred(tar_member("a", kind=tarfile.SYMTYPE, target="/etc")),
        "is a link or device",
    ),
    "tar hard link": (
        lambda: tarred(tar_member("a", kind=tarfile.LNKTYPE, target="../b")),
        "is a link or device",
    ),
    "tar device": (lambda: tarred(tar_member("a", kind=tarfile.CHRTYPE)), "is a link or device"),
    "tar folder up": (lambda: tarred(tar_member("../evil", kind=tarfile.DIRTYPE)), "would leave the folder"),
    "tar bomb": (lambda: tarred(tar_member("a", bytes(30 << 20)), "w:gz"), "far more than"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_archives_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    make, message = MALICIOUS[name]
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "x.part"
    archive.write_bytes(make())
    with pytest.raises(FetchError, match=message):
        unpack(archive, tmp_path / "in" / "out", progress=False)
    assert left(tmp_path) == {"in/x.part"}
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["x.part"]


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_damaged_archives(tmp_path: Path, cut: float) -> None:
    packed = tarred(tar_member("a", NOISE), "w:gz")
    (tmp_path / "x.part").write_bytes(packed[: int(len(packed) * cut)])
    with pytest.raises(FetchError, match=r"cannot be unpacked|neither a zip nor a tar"):
        unpack(tmp_path / "x.part", tmp_path / "out", progress=False)
    packed = bytearray(zipped({"a": NOISE}))
    packed[1000] ^= 0xFF
    (tmp_path / "y.part").write_bytes(packed)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(tmp_path / "y.part", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_good_tars(tmp_path: Path, mode: str) -> None:
    def add(archive: tarfile.TarFile) -> None:
        tar_member("top", kind=tarfile.DIRTYPE)(archive)
        tar_member("top/a.png", NOISE)(archive)

    (tmp_path / "x.part").write_bytes(tarred(add, mode))
    unpack(tmp_path / "x.part", tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "top" / "a.png").read_bytes() == NOISE


def test_what_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(zipped({"a": b"new"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    with pytest.raises(FetchError, match="already exists"):
        unpack(tmp_path / "x.part", tmp_path / "out", progress=False)
    assert left(tmp_path / "out") == {"mine"}
    unpack(tmp_path / "x.part", tmp_path / "out", replace=True, progress=False)
    assert left(tmp_path) == {"x.part", "out/a"}


def test_a_limit_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(zipped({"a": NOISE}))
    with pytest.raises(FetchError, match="far more than"):
        unpack(tmp_path / "x.part", tmp_path / "out", max_bytes=10_000, progress=False)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_unpacking_again_on_a_failing_disk_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    archive, place = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(zipped({"a.txt": b"old"}))
    unpack(archive, place, progress=False)
    archive.write_bytes(zipped({"a.txt": b"new"}))
    rename = Path.rename

    def fails(path: Any, *to: Any) -> Any:
        if to and (path == place or path.suffix == ".old"):  # aside, and back
            return rename(path, *to)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (Path, "rename")), fails)
        with pytest.raises(OSError, match="Input/output error"):
            unpack(archive, place, replace=True, progress=False)
    assert (place / "a.txt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
    unpack(archive, place, replace=True, progress=False)
    assert (place / "a.txt").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_an_md5_and_members_that_are_skipped(facts: Declaration, server: Server, tmp_path: Path) -> None:
    digest = hashlib.md5(server.body).hexdigest()
    got = get(changed(facts, md5=digest, skip="^top/AMi-Br/"), tmp_path)
    assert got.pinned
    assert [p.name for p in (tmp_path / "Toy").rglob("*") if p.is_file()] == ["votes.csv"]
    with pytest.raises(FetchError, match=f"the archive's MD5 is {digest}, but 0000.* is pinned"):
        get(changed(facts, md5="0" * 32, unpack="Other"), tmp_path / "else")
    assert not (tmp_path / "else" / "Other").exists()


def test_a_file_that_is_no_archive(facts: Declaration, server: Server, tmp_path: Path) -> None:
    server.body = gzip.compress(NOISE)
    got = get(changed(facts, file="images.h5"), tmp_path)
    assert got.folder == tmp_path / "images.h5"
    assert got.folder.read_bytes() == NOISE
    assert not get(changed(facts, file="images.h5"), tmp_path).new
    server.body = b"a,b\n"
    facts = changed(facts, file="votes.csv")
    assert get(facts, tmp_path / "plain").files == {"votes.csv": "ok", "lost.csv": "missing"}
    server.body = gzip.compress(NOISE)[:-20]
    with pytest.raises(FetchError, match="cannot be decompressed"):
        get(changed(facts, file="broken.h5"), tmp_path / "broken")
    assert not (tmp_path / "broken" / "broken.h5").exists()


def test_several_archives(facts: Declaration, server: Server, tmp_path: Path) -> None:
    one = facts.archives[0]
    both = facts.replace(archives=[one, one.replace(url=f"{server.url}?second", unpack="Second")])
    got = fetch(both, tmp_path, progress=False)
    assert [one.folder.name for one in got] == ["Toy", "Second"]
    with pytest.raises(InvalidRequest, match="has 2 archives: --url and --sha256 are of one"):
        fetch(both, tmp_path, url=server.url, progress=False)
