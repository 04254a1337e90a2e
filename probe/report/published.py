"""Our figures beside published ones, and which differences are significant on these test sets."""

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from ...errors import InvalidRequest
from ...settings import SHIPPED, read_toml
from ..results.files import ProbeResult
from ..results.schema import Estimate
from ..statistics.comparisons import holm
from .model import PublishedRow

COMPARED = ("balanced_accuracy", "auroc")
_REQUIRED = {"system", "family", "dataset", *COMPARED}

HOW = (
    "Like is compared with like: the mean over the models of our folds, each trained on a part of the "
    "training set, with the mean over the models of theirs (their single values are the dots), on all "
    "patches, duplicates included, as published. The refit on all training patches stands beside it. The "
    "publication has no predictions, so the difference is not paired: its standard error is that of two "
    "independent test sets, sqrt(s² (1 + p(1-p) / q(1-q)) + (d² + e²) / K), with s the cluster standard "
    "error of ours, q our value, p the published one, d and e the deviations between the K models of "
    "each; Student's t with the degrees of freedom of s. p is adjusted by Holm over all rows of this "
    "table, both metrics and all sets as one family. Both were measured on the same patches, which makes "
    "the true error smaller. Where no slides are known, patches are taken as independent, the error is "
    "too small, and no difference is called significant. The encoder is one part of a difference: view, "
    "token policy and tuning are others."
)
NOT_SIGNIFICANT = "not significant"
NO_GROUPS = "not assessed: slides unknown"
NO_ERROR = "not assessed: no standard error"


def load_published(name: str) -> dict[str, Any]:
    """A file of published figures: a path, or a name in manifests/studies.

    Returns the document: name, source and `published`, a list of system, family, dataset and for each metric
    the values of the K models. Raises InvalidRequest, naming the entry.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = SHIPPED / "studies" / f"{name}.toml"
    try:
        document = read_toml(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"the published figures {path} cannot be read: {error}") from error
    entries = document.get("published", [])
    if not entries:
        raise InvalidRequest(f"{path} has no [[published]] entry")
    for number, entry in enumerate(entries, start=1):
        missing = _REQUIRED - set(entry)
        if missing:
            raise InvalidRequest(f"{path}: entry {number} lacks {', '.join(sorted(missing))}")
        for metric in COMPARED:
            if not entry[metric] or not all(0 < v < 1 for v in entry[metric]):
                raise InvalidRequest(f"{path}: entry {number}, {metric}: values between 0 and 1 are expected")
    return document


def source_of(document: Mapping[str, Any]) -> str:
    """Where the figures are from, with the version of the publication if the file names it."""
    version = document.get("version", "")
    return f"{document['source']}, {version}" if version else document["source"]


def beside_published(
    result: ProbeResult,
    entries: Sequence[Mapping[str, Any]],
    systems: Mapping[str, Sequence[tuple[str, str]]],
    *,
    datasets: Mapping[str, str],
    level: float = 0.95,
) -> list[PublishedRow]:
    """A row for each system x evaluation set x metric that both have; see HOW for the formula.

    result : merged over systems (`systems.merge_systems`); entries : of `load_published`
    systems : our system -> each published (system, family) that it is set beside
    datasets : our evaluation set -> data set of the publication
    A row has no interval and no p where the jackknife gives no standard error. p is adjusted (Holm) over all
    rows; a row of a set without known groups takes part in the adjustment and is never called significant.
    """
    published = {(e["system"], e["family"], e["dataset"]): e for e in entries}
    rows: list[PublishedRow] = []
    for system, others in systems.items():
        for (name, family), (dataset, published_set) in itertools.product(others, datasets.items()):
            entry = published.get((name, family, published_set))
            if entry is not None:
                compared = (_row(result, system, dataset, metric, entry, level) for metric in COMPARED)
                rows += [row for row in compared if row is not None]
    adjusted = holm([math.nan if row.p_holm is None else row.p_holm for row in rows])
    return [
        replace(
            row,
            p_holm=None if math.isnan(p) else float(p),
            verdict=_verdict(row, p, result.ungrouped, 1 - level),
        )
        for row, p in zip(rows, adjusted, strict=True)
    ]


def _verdict(row: PublishedRow, p: float, ungrouped: Sequence[str], alpha: float) -> str:
    if math.isnan(p):
        return NO_ERROR
    if row.dataset in ungrouped:
        return NO_GROUPS
    if p >= alpha:
        return NOT_SIGNIFICANT
    return "higher" if row.difference > 0 else "lower"


def in_words(entries: Sequence[Mapping[str, Any]], system: str, family: str) -> str:
    """What was published of a system, for a row without figures of ours; "" where nothing was."""
    of_system = [e for e in entries if (e["system"], e["family"]) == (system, family)]
    cells = [f"{e['dataset']} " + " / ".join(f"{np.mean(e[m]):.3f}" for m in COMPARED) for e in of_system]
    return f"Published (balanced accuracy / AUROC): {', '.join(cells)}." if cells else ""


def _row(
    result: ProbeResult, system: str, dataset: str, metric: str, entry: Mapping[str, Any], level: float
) -> PublishedRow | None:
    mean = result.results.fold_means.get(system, {}).get(dataset, {}).get(metric)
    if mean is None or mean.value is None:
        return None
    models = np.array(result.results.fold_models[system][dataset][metric], float)
    values = np.asarray(entry[metric], np.float64)
    published, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    own = float(np.std(models, ddof=1)) if len(models) > 1 else 0.0
    value, error = mean.value, mean.standard_error
    difference = value - published
    low = high = p = None
    if error and 0 < value < 1:
        freedom = mean.degrees_of_freedom or math.inf
        scaled = error**2 * (1 + published * (1 - published) / (value * (1 - value)))
        total = math.sqrt(scaled + spread**2 / len(values) + own**2 / len(models))
        half = float(stdtrit(freedom, (1 + level) / 2)) * total
        low, high = difference - half, difference + half
        p = 2 * float(stdtr(freedom, -abs(difference) / total))
    return PublishedRow(
        system=system,
        dataset=dataset,
        metric=metric,
        ours=mean,
        refit=_refit(result, system, dataset, metric),
        against=f"{entry['system']}, {entry['family']}",
        published=published,
        published_folds=tuple(values.tolist()),
        difference=difference,
        low=low,
        high=high,
        p_holm=p,
        verdict="",
    )


def _refit(result: ProbeResult, system: str, dataset: str, metric: str) -> Estimate | None:
    """Of the refit on all training rows; None where the system has models of folds only."""
    if result.results.model(system).choice is None:  # a published recipe, or fine-tuning
        return None
    scores = result.results.whole(features=system, dataset=dataset)
    return scores[0].estimate(metric) if scores else None
