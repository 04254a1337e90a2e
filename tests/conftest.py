"""Fixtures that several folders' tests share."""

import json
import os
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
