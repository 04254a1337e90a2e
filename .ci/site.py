"""A hook of the site's build: the package as the API reference reads it.

`datasets/` has no __init__.py, so that `import datasets` in the checkout finds Hugging Face's package, and
griffe skips folders without one. So it reads a copy, build/api/patchbank, in which there is one.
"""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "api" / "patchbank"
FOLDERS = ("cache", "datasets", "extract", "finetune", "probe")


def on_startup(**_: Any) -> None:
    """Before the plugin looks for it."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, COPY)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, COPY / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (COPY / "datasets" / "__init__.py").touch()
