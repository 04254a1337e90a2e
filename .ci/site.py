"""Hooks of the site's build: the package as the API reference reads it.

`datasets/` has no __init__.py, so that `import datasets` in the checkout finds Hugging Face's package, and
griffe skips folders without one. So it reads a copy, build/api/patchbank, in which there is one.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "api" / "patchbank"
FOLDERS = ("cache", "datasets", "extract", "finetune", "probe")
_SECTIONS = re.compile(r"^\s*(?:-{3,}|(?:Args|Attributes|Raises|Returns):)\s*$", re.MULTILINE)
_ITEM = re.compile(r"([a-z_*]\w*(?:, [a-z_*]\w*)*|Fitted on|Chosen on|Refit|Scored) ?: (?=\S)")


def on_startup(**_: Any) -> None:
    """Before the plugin looks for it."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, COPY)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, COPY / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (COPY / "datasets" / "__init__.py").touch()


class Lists(griffe.Extension):
    """Lines `name : what it is` of docstrings without sections become lists; Markdown would join them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and not _SECTIONS.search(obj.docstring.value):
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if match := _ITEM.match(line):
            before = lines[-1] if lines else ""
            if before and not before.startswith(("* ", " ")):
                lines.append("")
            line = f"* `{match[1]}`: {line[match.end() :]}"
        elif line and not line.startswith(" ") and lines and lines[-1].startswith(("* ", " ")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
