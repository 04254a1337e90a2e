"""Fixtures that several folders' tests share."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real images and weights; the test is skipped where it is not."""
    folder = os.environ.get("PATCHBANK_SHARED", "")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("needs real data: set PATCHBANK_SHARED to the folder that holds data/ and weights/")
    return Path(folder)


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
