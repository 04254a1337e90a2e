"""How many labelled patches does a feature set need: probes fitted on k rows of each class."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from ..datasets.manifest import Manifest, as_manifest, as_manifests
from ..errors import InvalidRequest
from .classifiers.simple import few_shot_curve, make_probe
from .config import FeatureSet, ProbeConfig, feature_sets
from .data import StudyData, audit, gather, leak_notes, sample_notes
from .features import load_set, open_bank, resolve_set
from .streaming import memory_limit, refuse_large

SHOTS = (1, 2, 4, 8, 16, 32, 64)


def run_few_shot(
    *,
    train: Manifest | str | os.PathLike[str],
    tests: Sequence[Manifest | str | os.PathLike[str]] = (),
    bank: Any,
    encoders: Iterable[str] = (),
    views: Iterable[str] = ("full",),
    tokens: Iterable[str | None] | None = None,
    features: Iterable[str | FeatureSet] = (),
    probe: str = "centroid",
    preprocess: str | None = None,
    shots: Sequence[int] = SHOTS,
    repeats: int = 20,
    seed: int = 0,
    positive: str | None = None,
    one_vs_rest: str | None = None,
    allow_leaks: Sequence[str] = (),
    near_duplicates: str = "images",
    sample: int | None = None,
    memory: str | float | None = None,
    precision: str | None = None,
    dtype: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Few-shot curves of every feature set.

    Fitted on : k rows of each class of the train split, drawn slide by slide (`others.few_shot_rows`), the
        same draws for every feature set. Chosen : nothing. Scored : the other splits of `train` and `tests`.

    train, tests, bank, encoders, views, tokens, features, near_duplicates, positive, one_vs_rest, sample,
        precision, dtype : as for `run_probe`
    memory : that the features of a set may take; larger ones are refused
    probe : of `others.PROBES`; "knn" takes as many neighbours as the smallest k
    preprocess : of `transforms`, as for `run_probe` (None: the probe's default)
    on_note : called with a sentence for each of the notes of `run_probe` (or warns): which of several stores
        is read, near-duplicates on both sides of a split
    Returns columns features, shots, repeat, evaluation, metric ("balanced_accuracy", "auroc"), value.
    Raises what `run_probe` raises, and InvalidRequest where there is nothing to score on.
    """
    train, tests = as_manifest(train), as_manifests("tests", tests)
    bank = open_bank(bank, precision=precision, dtype=dtype, manifests=[train, *tests])
    asked = feature_sets(encoders=encoders, views=views, tokens=tokens, features=features)
    names = list(dict.fromkeys(str(resolve_set(feature_set, bank)) for feature_set in asked))
    config = ProbeConfig(
        features=tuple(names),
        probe=probe,
        preprocess=(preprocess,) if preprocess else (),
        positive=positive,
        one_vs_rest=one_vs_rest,
        allow_leaks=tuple(allow_leaks),
        sample=sample,
        seed=seed,
        near_duplicates=near_duplicates,
    )
    data = gather(train, tests, bank, config)
    if not data.tests:
        raise InvalidRequest(f"{train.header.name} has no split but 'train': give a manifest to score on")
    limit = memory_limit(memory)
    refuse_large(names, data.manifests, bank, limit=limit, what="the few-shot probe")
    leaks = audit(data, None, bank, config, memory=limit)
    say = on_note or (lambda note: warnings.warn(note, stacklevel=3))
    for note in (*config.notes, *bank.notes.values(), *sample_notes(data), *leak_notes(leaks, config)):
        say(note)
    curves = [
        _curve(data, name, bank, config, shots=shots, repeats=repeats, seed=seed).assign(features=name)
        for name in names
    ]
    table = pd.concat(curves, ignore_index=True)
    return table[["features", *(c for c in table.columns if c != "features")]]


def _curve(
    data: StudyData,
    name: str,
    bank: Any,
    config: ProbeConfig,
    *,
    shots: Sequence[int],
    repeats: int,
    seed: int,
) -> pd.DataFrame:
    """Of one feature set."""
    X, *others = [load_set(manifest, name, bank=bank) for manifest in data.manifests]
    options = {"k": min(shots)} if config.probe == "knn" else {}
    return few_shot_curve(
        lambda: make_probe(config.probe, **options),
        X,
        data.train.y,
        {rows.dataset: (Z, rows.y) for rows, Z in zip(data.tests, others, strict=True)},
        shots=shots,
        repeats=repeats,
        groups=data.train.group,
        preprocess=config.preprocess[0],
        seed=seed,
        classes=data.classes if data.train.classes else (),
    )


def summarise(curve: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (ddof 1) over the draws: features, evaluation, metric, shots, mean, sd."""
    by = ["features", "evaluation", "metric", "shots"]
    summary = curve.groupby(by, sort=False)["value"].agg(mean="mean", sd="std")
    return summary.reset_index()
