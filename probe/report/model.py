"""The data model of a study's page: systems, published figures, maps, images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..results.files import ProbeResult
from ..results.robustness import Robustness
from ..results.schema import Estimate


@dataclass(frozen=True, kw_only=True)
class SystemRow:
    """One system of the study: an encoder with a probe, a fine-tuned network, or an ensemble of them."""

    name: str
    """Unique. A finished system's equals `features` in the result."""
    encoder: str
    """Id of the encoder's card; "" of an ensemble."""
    family: str
    """ "probe", "lora", "full" (trained end to end) or "ensemble"."""
    state: str
    """ "done" or "blocked"."""
    why: str = ""
    """Of a blocked one: what is missing and how to get it; `commands` in backticks or on lines of their
    own that begin with "$ ", URLs and line breaks are shown as such."""
    published: str = ""
    """Of a blocked one: what was published of it, in a sentence."""
    chosen: str = ""
    """The feature set that its folds chose ("dinov2-s/center:0.5/cls"), or its recipe, or its members with
    their shares."""
    licence: str = ""
    dim: int = 0
    forwards: int = 0
    """Forward passes of single patches that were made for it."""
    forwards_saved: int = 0
    """Those that the cache saved."""
    extract_seconds: float = 0.0
    """By the clock, on `device`."""
    device: str = ""
    fits: int = 0
    """Fits of probes."""
    probe_seconds: float = 0.0
    """CPU seconds."""
    train_seconds: float = 0.0
    """Fine-tuning, by the clock."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Ours beside a published figure."""

    system: str
    dataset: str
    metric: str
    """ "balanced_accuracy" or "auroc"."""
    ours: Estimate
    """The mean over the models of the folds."""
    refit: Estimate | None = None
    """The same of the refit on all training rows, for information; None where there is none."""
    against: str
    """The published system, with its family: "UNI, probe"."""
    published: float
    published_folds: tuple[float, ...]
    difference: float
    """Ours minus published; `low` and `high` are its interval, None where there is none."""
    low: float | None
    high: float | None
    p_holm: float | None
    verdict: str
    """ "higher", "lower", "not significant", or "not assessed: " and the reason."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Patches as points of a plane."""

    title: str
    """ "dinov2-s/center:0.5/cls"."""
    method: str
    """ "PCA" or "UMAP"."""
    explained: tuple[float, ...]
    """Shares of the variance along the two axes; () where the method has none."""
    points: np.ndarray
    """float32, (n, 2)."""
    patch_id: Sequence[str]
    dataset: Sequence[str]
    domain: Sequence[str]
    label: Sequence[int]
    """Number of the class; of two classes 1 is the positive one."""
    total: int
    """Patches there were before the draw."""
    sprite: bytes = b""
    """One JPEG with n tiles in the order of the points; b"": no images."""
    tile: int = 48
    """Pixels a side of a tile."""
    columns: int = 40
    """Tiles in a row of the sprite."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image of a group of identical ones with different labels."""

    patch_id: str
    dataset: str
    label: str
    path: str
    jpeg: bytes
    """b"" where it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """All of a study, for `write_page`."""

    title: str
    about: str
    """One paragraph for a pathologist."""
    result: ProbeResult | None
    """Merged over the systems; `features` are their names. None: no system is finished."""
    systems: tuple[SystemRow, ...]
    primary_set: str = ""
    primary_metric: str = ""
    """What the page leads with; "": the first held-out set, balanced accuracy."""
    published: tuple[PublishedRow, ...] = ()
    published_source: str = ""
    robustness: Robustness | None = None
    """Of the embeddings to domains; None: not measured."""
    table: bytes = b""
    """The file table.csv."""
    maps: tuple[EmbeddingMap, ...] = ()
    contradictions: tuple[tuple[LabelledImage, ...], ...] = ()
    log: tuple[tuple[str, str, str, float | None], ...] = ()
    """Steps of the last run: kind, title, state, seconds."""
