"""What is known of a public data set before a file of it is opened: manifests/datasets/NAME.toml.

The facts are what `datasets build` makes a header of, what `datasets check` compares with, and where
`datasets fetch` downloads from. A data set is added by adding a file (and a builder, where its layout is
its own).
"""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ManifestError
from ..settings import SHIPPED
from .manifest import Header, Manifest, read_toml, unknown_keys

FORMAT = "patchbank-dataset"
FORMAT_VERSION = 1
UNPINNED = "unpinned"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A shipped data set.

    counts: split -> class -> rows. groups: split -> number of known groups. domains: domain -> rows.
    duplicates: {"groups", "files", "contradictions"} of pixel-identical images. files: name -> SHA-256 of a
    table that comes with the images. contents: SHA-256 as `contents_digest` makes it, "" = not known.
    fetch: {"url", "sha256", "unpack"}; sha256 may be "unpinned".
    """

    name: str
    version: str
    classes: tuple[str, ...]
    positive: str
    licence: str
    source: str
    paper: str = ""
    description: str = ""
    group_kind: str = "slide"
    image_size: tuple[int, int] = (0, 0)
    folder: str = ""
    contents: str = ""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    fetch: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(sum(classes.values()) for classes in self.counts.values())

    def header(self) -> Header:
        return Header(**{key: getattr(self, key) for key in Header.model_fields if hasattr(self, key)})

    def table_file(self, what: str) -> Path:
        """A table of facts that is shipped beside the TOML: NAME.WHAT.csv."""
        return SHIPPED / "datasets" / f"{self.name}.{what}.csv"


def names() -> list[str]:
    """The data sets that have a file of facts."""
    return sorted(file.stem for file in (SHIPPED / "datasets").glob("*.toml"))


def load_facts(name: str) -> Facts:
    """Raises ManifestError for an unknown name (suggesting a near one) or a faulty file."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names())}."
        raise ManifestError(f"no data set is called {name!r}; {hint}")
    return read_facts(SHIPPED / "datasets" / f"{name}.toml")


def read_facts(path: Path) -> Facts:
    """Facts from a file. Raises ManifestError."""
    document = read_toml(path, FORMAT, [FORMAT_VERSION], "a file of data set facts")
    del document["format"], document["format_version"]
    faults = unknown_keys(document, [field.name for field in fields(Facts)], "")
    required = ("name", "version", "classes", "positive", "licence", "source")
    faults += [f"{key} is missing" for key in required if key not in document]
    faults += unknown_keys(document.get("fetch", {}), ("url", "sha256", "unpack"), "[fetch] ")
    if faults:
        raise ManifestError(f"{path}: {'; '.join(faults)}.")
    return Facts(
        **{
            **document,
            "classes": tuple(document["classes"]),
            "image_size": tuple(document.get("image_size", (0, 0))),
        }
    )


def contents_digest(manifest: Manifest) -> str:
    """SHA-256 of the sorted lines "patch_id label content_hash": same images, same names, same labels.

    Does not depend on how the images were packed. Raises ManifestError where content hashes are not known.
    """
    table = manifest.table
    if "content_hash" not in table.columns or (table["content_hash"] == "").any():
        raise ManifestError(f"{manifest.header.name!r} has rows without content_hash; build it with hashes.")
    lines = np.sort(
        (table["patch_id"] + " " + table["label"] + " " + table["content_hash"]).to_numpy(dtype=str)
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
