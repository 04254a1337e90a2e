"""The package's version, and what made a number, apart from its settings."""

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed, without local parts such as +cu130."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(*more: str) -> dict[str, Any]:
    """Versions (patchbank, Python, numerical packages, `more`), machine, time (UTC) and command line."""
    return {
        "patchbank": __version__,
        "python": platform.python_version(),
        **versions(("numpy", "scipy", "scikit-learn", *more)),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:] if Path(sys.argv[0]).stem == "patchbank" else [],
    }
