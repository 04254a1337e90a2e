"""Fixtures that several folders' tests share."""

import base64
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real images and weights; the test is skipped where it is not."""
    folder = os.environ.get("PATCHBANK_SHARED", "")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("needs real data: set PATCHBANK_SHARED to the folder that holds data/ and weights/")
    return Path(folder)


@pytest.fixture(autouse=True)
def listening_to_ctrl_c() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and processes inherit that.

    A command that was interrupted leaves SIGINT to the system, and so to the tests after it.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], object]], None]:
    """until(condition) waits for another thread or process, however slow the machine is."""

    def wait(condition: Callable[[], object], seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except FileNotFoundError:  # a folder vanished while it was listed
                pass
            assert time.monotonic() < end, "what was waited for did not happen"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`patchbank quickstart --json`, run once: its folder and what it printed."""
    from patchbank.cli import patchbank

    folder = tmp_path_factory.mktemp("quickstart") / "patchbank-quickstart"
    done = CliRunner().invoke(patchbank, ["quickstart", "--out", str(folder), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="session")
def quickstart_folder(quickstart_run: tuple[Path, dict[str, Any]]) -> Path:
    return quickstart_run[0]


@pytest.fixture(scope="session")
def quickstart_output(quickstart_run: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return quickstart_run[1]


class Killed(BaseException):
    """The process ends here."""


class Faults:
    """Ends a piece of code at one of its file operations, as kill -9 does: none of the later ones happens."""

    CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"})
    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self) -> None:
        self.folder, self.at, self.count = "", 0, 0
        sys.addaudithook(self._hook)  # cannot be taken away again; without a folder it does nothing

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or (event != "open" and event not in self.CHANGES):
            return
        if not isinstance(args[0], str | bytes | os.PathLike) or not os.fsdecode(args[0]).startswith(
            self.folder
        ):
            return
        if event == "open" and not args[2] & self.WRITES:
            return
        self.count += 1
        if self.at and self.count >= self.at:
            raise Killed

    @contextmanager
    def kill(self, folder: Path, at: int = 0) -> Iterator[None]:
        """Kill the block at the at-th change below a folder (0: never); `count` is how many there were."""
        self.folder, self.at, self.count = str(folder), at, 0
        try:
            yield
        except Killed:
            pass
        finally:
            self.folder = ""


@pytest.fixture(scope="session")
def faults() -> Faults:
    return Faults()


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: create, preupload (everything inline), commit, list, resolve."""

    repositories: dict[str, dict[str, bytes]]
    refusal: tuple[int, bytes] | None = None  # the answer to everything
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the terminal."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, document: Any) -> None:
        self.answer(200, json.dumps(document).encode(), Content_Type="application/json")

    @property
    def commit(self) -> str:
        return "a" * 40

    def do_POST(self) -> None:
        if self.refusal is not None:
            return self.refuse()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(
                401,
                b'{"error": "Invalid username or password."}',
                X_Error_Message="Invalid username or password.",
            )
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = (
                f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            )
            self.repositories.setdefault(name, {})
            kind = "datasets/" if wanted.get("type") == "dataset" else ""
            return self.json({"url": f"http://{self.headers['Host']}/{kind}{name}", "id": name})
        if found := re.fullmatch(r"/api/(?:datasets|models)/(.+)/preupload/main", path):
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.json({"files": modes})
        if found := re.fullmatch(r"/api/(?:datasets|models)/(.+)/commit/main", path):
            repository = self.repositories[found[1]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del repository[line["value"]["path"]]
            url = f"http://{self.headers['Host']}/datasets/{found[1]}/commit/{self.commit}"
            return self.json({"success": True, "commitOid": self.commit, "commitUrl": url, "hookOutput": ""})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        return self.answer(404)

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.refusal is not None
        code, content = self.refusal
        self.answer(code, content, Content_Type="text/html")

    def do_GET(self) -> None:
        if self.refusal is not None:
            return self.refuse()
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(/revision/.+)?", path):
            files = self.repositories.get(found[1])
            if files is None:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            siblings = [{"rfilename": name} for name in files]
            about = {"id": found[1], "sha": self.commit, "siblings": siblings, "private": True, "tags": []}
            return self.json({**about, "downloads": 0, "likes": 0})
        if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            files = self.repositories.get(found[1])
            if files is None:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            names = [name for name in files if name.startswith(found[3])]
            entries = [
                {"type": "file", "path": n, "size": len(files[n]), "oid": hashlib.sha1(files[n]).hexdigest()}
                for n in names
            ]
            return self.json(entries)
        if found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.repositories.get(found[1], {}).get(found[3])
            if content is None:
                return self.answer(404, b"", X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(200, content, ETag=etag, X_Repo_Commit=self.commit)
        return self.answer(404)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Hub]]]:
    """(endpoint, handler) of a stand-in of the hub on loopback; its token is "secret"."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    handler = type("OneHub", (Hub,), {"repositories": {}, "refusal": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(hub_server: tuple[str, type[Hub]]) -> tuple[str, dict[str, dict[str, bytes]]]:
    """(endpoint, repositories: name -> file -> content) of the stand-in."""
    endpoint, handler = hub_server
    return endpoint, handler.repositories


@pytest.fixture
def refuse(hub_server: tuple[str, type[Hub]]) -> Callable[[int, bytes], None]:
    """refuse(code, content): the stand-in answers everything with that."""
    return lambda code, content: setattr(hub_server[1], "refusal", (code, content))
