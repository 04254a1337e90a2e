"""The two files of stored probes: probe.safetensors (arrays) and probe.json (all the rest)."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ProbeError
from ..files import sha256, write_atomically, write_text
from ..version import __version__

FORMAT, FORMAT_VERSION = "patchbank-probe", 1
ABOUT, ARRAYS = "probe.json", "probe.safetensors"


def write_artefact(
    folder: str | os.PathLike[str], about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Write the arrays and then the JSON that has their digest: files of two runs are not read as one."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    plain = {name: np.array(value, order="C") for name, value in arrays.items()}
    write_atomically(folder / ARRAYS, lambda to: save_file(plain, to))
    head = {"format": FORMAT, "version": FORMAT_VERSION, "patchbank": __version__}
    document = {**head, "arrays": sha256(folder / ARRAYS), **about}
    write_text(folder / ABOUT, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return folder


def read_artefact(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(probe.json, the arrays). Raises ProbeError where they are missing, damaged or of another format."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    folder = folder.parent if folder.name in (ABOUT, ARRAYS) else folder
    file = folder / ABOUT
    try:
        about = json.loads(file.read_text("utf-8"))
        data = (folder / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        raise ProbeError(f"{folder} holds no probe: it has no {Path(error.filename).name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ProbeError(f"{file} cannot be read as a probe: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ProbeError(f"{file} is not a probe of patchbank (format {FORMAT})")
    if about.get("version") != FORMAT_VERSION:
        raise ProbeError(
            f"{file} is version {about.get('version')!r} of {FORMAT}; this patchbank reads version "
            f"{FORMAT_VERSION}: upgrade patchbank"
        )
    if hashlib.sha256(data).hexdigest() != about.get("arrays"):
        raise ProbeError(
            f"{folder / ARRAYS} is not the file that {ABOUT} was written with. Fix: copy both again"
        )
    try:
        return about, load(data)
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ProbeError(f"{folder / ARRAYS} cannot be read: {error}") from error
