"""Fixtures that several folders' tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real images and weights; the test is skipped where it is not."""
    folder = os.environ.get("PATCHBANK_SHARED", "")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("needs real data: set PATCHBANK_SHARED to the folder that holds data/ and weights/")
    return Path(folder)
