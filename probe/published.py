"""Our figures beside published ones, and which differences these test sets can tell apart."""

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import logit

from ..errors import InvalidRequest
from ..settings import read_toml
from .entries import PublishedRow
from .intervals import holm
from .results import ProbeResult

COMPARED = ("balanced_accuracy", "auroc")
_REQUIRED = {"system", "family", "dataset", *COMPARED}

HOW = (
    "Published: the mean over the models of the folds, whose single values are the dots. Ours: the same mean "
    "where the system follows the published protocol, else what the system reports. The publication has no "
    "predictions, so the difference cannot be paired: its standard error is that of two independent test "
    "sets, sqrt(s² (1 + p(1-p) / q(1-q)) + (d² + e²) / K), with s the cluster standard error of ours, q our "
    "value, p the published one, d and e the deviations between the K models of each; Student's t, Holm over "
    "the rows of one metric. Both were measured on the same patches, which makes the true error smaller: a "
    "difference called distinguishable is so, one that is not called so may be."
)


def load_published(name: str) -> dict[str, Any]:
    """A file of published figures: a path, or a name in manifests/studies.

    Returns the document: name, source and `published`, a list of system, family, dataset and for each metric
    the values of the K models. Raises InvalidRequest, naming the entry.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = Path(
            str(resources.files(str(__package__).rpartition(".")[0]) / "manifests/studies" / f"{name}.toml")
        )
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
    systems : our system -> each (system, family) there that it is set beside
    datasets : our evaluation set -> data set there
    Fold means are compared where the result has several models of folds and no refit of its own, else the
    reported score.
    """
    published = {(e["system"], e["family"], e["dataset"]): e for e in entries}
    rows = []
    for system, others in systems.items():
        for (name, family), (dataset, theirs) in itertools.product(others, datasets.items()):
            entry = published.get((name, family, theirs))
            if entry is not None:
                found = (_row(result, system, dataset, metric, entry, level) for metric in COMPARED)
                rows += [row for row in found if row is not None]
    adjusted: dict[int, PublishedRow] = {}
    for metric in COMPARED:
        mine = [i for i, row in enumerate(rows) if row.metric == metric]
        for i, p in zip(mine, holm([rows[i].p_holm for i in mine]), strict=True):
            higher = "higher" if rows[i].difference > 0 else "lower"
            verdict = higher if p < 1 - level else "not distinguishable"
            adjusted[i] = replace(rows[i], p_holm=float(p), verdict=verdict)
    return [adjusted[i] for i in range(len(rows))]


def in_words(entries: Sequence[Mapping[str, Any]], system: str, family: str) -> str:
    """What was published of a system, for a row without figures of ours; "" where nothing was."""
    mine = [e for e in entries if (e["system"], e["family"]) == (system, family)]
    cells = [f"{e['dataset']} " + " / ".join(f"{np.mean(e[m]):.3f}" for m in COMPARED) for e in mine]
    return f"Published (balanced accuracy / AUROC): {', '.join(cells)}." if cells else ""


def _row(
    result: ProbeResult, system: str, dataset: str, metric: str, entry: Mapping[str, Any], level: float
) -> PublishedRow | None:
    values = np.asarray(entry[metric], np.float64)
    there, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    ours = _ours(result, system, dataset, metric)
    if ours is None:
        return None
    role, value, low, high, error, freedom, models = ours
    own = float(np.std(models, ddof=1)) if len(models) > 1 else 0.0
    scaled = error**2 * (1 + there * (1 - there) / (value * (1 - value)))
    total = math.sqrt(scaled + spread**2 / len(values) + own**2 / max(len(models), 1))
    difference = value - there
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * total
    p = 2 * float(stats.t.sf(abs(difference) / total, freedom))
    return PublishedRow(
        system=system,
        dataset=dataset,
        metric=metric,
        ours=(value, low, high),
        role=role,
        against=f"{entry['system']}, {entry['family']}",
        published=there,
        published_folds=tuple(values.tolist()),
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_holm=p,
        verdict="",
    )


def _ours(
    result: ProbeResult, system: str, dataset: str, metric: str
) -> tuple[str, float, float, float, float, float, list[float]] | None:
    """(what was scored, value, low, high, standard error, degrees of freedom, values of the fold models)."""
    document = result.document
    mean = document["fold_means"].get(system, {}).get(dataset, {}).get(metric)
    models = document["fold_models"].get(system, {}).get(dataset, {}).get(metric, [])
    if mean is None or not mean["standard_error"] or not 0 < mean["value"] < 1:
        return None
    freedom = mean["degrees_of_freedom"] or math.inf
    model = next(m for m in document["models"] if m["features"] == system)
    if "choice" not in model:  # a published recipe, or fine-tuning: models of folds only
        value, low, high = mean["value"], mean["low"], mean["high"]
        return "mean of the fold models", value, low, high, mean["standard_error"], freedom, models
    for record in document["scores"]:
        whole = record["dataset"] == dataset and not record["domain"] and record["subset"] == "raw"
        if whole and record["features"] == system:
            value, low, high = record["metrics"][metric]
            if low is None or not 0 < low < high < 1:
                return None
            # the interval is symmetric for the logit (intervals._spread), with much the same freedom
            half = float(logit(high) - logit(low)) / 2 * value * (1 - value)
            error = half / float(stats.t.ppf((1 + document["config"]["level"]) / 2, freedom))
            return record["role"], value, low, high, error, freedom, []
    return None
