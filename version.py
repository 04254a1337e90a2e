"""The package's version, and what made a number, apart from its settings."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed, without local parts such as +cu130."""
    installed: dict[str, str] = {}
    for name in packages:
        try:
            installed[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return installed


@cache
def commit() -> str:
    """Commit of a checkout that this runs from, with "-dirty" where files differ from it; else ""."""
    root = Path(__file__).resolve().parent
    if not (root / ".git").exists():
        return ""
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance(*more: str) -> dict[str, Any]:
    """Versions (patchbank, its commit, Python, numerical packages, `more`), machine, time, command line."""
    program = Path(sys.argv[0])  # patchbank, or patchbank/__main__.py
    return {
        "patchbank": __version__,
        **({"commit": commit()} if commit() else {}),
        "python": platform.python_version(),
        **versions(("numpy", "scipy", "scikit-learn", *more)),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:] if "patchbank" in (program.stem, program.parent.name) else [],
    }
