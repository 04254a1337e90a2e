"""What `patchbank probe robustness` found, as frozen classes: what robustness.json holds."""

import json
import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import ProbeError
from ...files import write_text

FILE = "robustness.json"
FORMAT, FORMAT_VERSION = "patchbank-robustness", 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Part):
    """A number with its interval; value None: undefined. low, high None: no interval, `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def triple(self) -> tuple[float | None, float | None, float | None]:
        """value, low, high"""
        return self.value, self.low, self.high


class Drop(_Part):
    """The average performance drop of a linear probe, over `iterations` draws of the groups.

    inside : on groups left out of the same domains; outside : on the other domains (None: there are none).
    Relative, 0 no loss; the interval is the 2.5 and 97.5 percentile over iterations.
    baseline_* : balanced accuracy without correlation; by_share : the same at each correlation
    """

    inside: Measured
    outside: Measured
    baseline_inside: float
    baseline_outside: float | None
    shares: list[float]
    by_share_inside: list[float]
    by_share_outside: list[float]
    pairs: int
    iterations: int


class SetRobustness(_Part):
    """One feature set.

    index : robustness index, SO / (SO + OS) of the k nearest rows of other groups, in [0, 1]
    index_by_k, vote_by_k : index, and balanced accuracy of the vote of k neighbours for the class, by `ks`
    precision : share of the k nearest that are of the same class; precision_chance : of all rows of other
    groups; precision_of : by class
    domain : balanced accuracy of predicting the domain, groups held out; domain_chance : 1 / domains
    clustering : mean over pairs of classes and domains, -1 .. 1; clustering_sd : its standard deviation over
        them; pairs : how many. None where no pair of classes and of domains has all four combinations
    """

    features: str
    dim: int
    index: Measured
    index_by_k: list[float | None]
    vote_by_k: list[float]
    precision: Measured
    precision_chance: float
    precision_of: dict[str, Measured]
    domain: Measured
    domain_chance: float
    clustering: float | None = None
    clustering_sd: float | None = None
    clustering_pairs: int = 0
    drop: Drop | None = None
    seconds: dict[str, float] = {}


class Consistency(_Part):
    """Vectors of two views of the same patches: mean cosine, and how often the nearest of all patches in the
    other view is the patch itself (top 1), or it is among the k nearest.
    """

    features: str
    other: str
    cosine: Measured
    top: dict[int, Measured]


class Alignment(_Part):
    """Two encoders on the same patches: linear CKA, and the share of common nearest neighbours."""

    a: str
    b: str
    cka: float
    mutual: Measured
    k: int


class Robustness(_Part):
    """All of it. rows, groups, classes and domains that it is of; k : neighbours; ks : those tried."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    dataset: str
    rows: int
    groups: int
    group_kind: str
    classes: dict[str, int]
    domains: dict[str, int]
    k: int
    k_chosen: bool
    ks: list[int]
    sets: list[SetRobustness]
    consistency: list[Consistency]
    alignment: list[Alignment]
    notes: list[str]
    made_by: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write FOLDER/robustness.json."""
        file = Path(folder) / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        return write_text(file, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read FOLDER/robustness.json. Raises ProbeError: none there, another format, or damaged."""
        file = Path(folder) / FILE
        try:
            values = json.loads(file.read_text("utf-8"))
            if (values.get("format"), values.get("format_version")) != (FORMAT, FORMAT_VERSION):
                raise ProbeError(f"{file} is not of {FORMAT}, version {FORMAT_VERSION}: upgrade patchbank")
            return cls.model_validate(values)
        except (OSError, ValueError, AttributeError, ValidationError) as error:
            if isinstance(error, ProbeError):
                raise
            raise ProbeError(f"{file} cannot be read as {FORMAT}: {error}") from error
