"""Results of more than two classes, made from drawn logits by the package's own statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.images import content_hash
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.schema import Results
from patchbank.probe.statistics import multiclass
from PIL import Image

METRICS = ["accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "kappa", "log_loss"]
METRICS += ["balanced_log_loss", "brier", "ece"]
LOSSES = ("log_loss", "balanced_log_loss", "brier", "ece")
SIGNALS = {"good/full/cls": 2.2, "poor/full/cls": 0.7}
CONFIG = {
    "features": list(SIGNALS),
    "folds": "balanced",
    "interval": "jackknife",
    "level": 0.95,
    "bootstrap": 1,
}
UNIT = ("standard_error", "degrees_of_freedom", "design_effect", "method", "reason")


@pytest.fixture(scope="session", name="make_class_result")
def _make_class_result() -> Callable[..., ProbeResult]:
    return make_class_result


def make_class_result(
    classes: list[str], *, ordered: bool = True, root: Path | None = None, n: int = 240, lacking: str = ""
) -> ProbeResult:
    """Two systems on a training set (out of fold) and another; patches lie on 12 slides.

    root : where an image of each patch is written. lacking : a class that the other set lacks
    """
    rng = np.random.default_rng(0)
    k = len(classes)
    scores, frames, comparisons = [], [], []
    data = []
    for dataset, role in (("grades", "oof"), ("elsewhere", "refit")):
        share = rng.dirichlet(np.full(k, 4.0))
        if lacking and role == "refit":
            share[classes.index(lacking)] = 0
        y = rng.choice(k, n, p=share / share.sum())
        slides = np.array([f"slide {i:02d}" for i in rng.integers(0, 12, n)])
        domain = np.array([f"scanner {'AB'[i]}" for i in rng.integers(0, 2, n)])
        near = -np.abs(np.arange(k) - y[:, None]) if ordered else np.eye(k)[y]
        logits = {name: signal * near + rng.normal(size=(n, k)) for name, signal in SIGNALS.items()}
        about = pd.DataFrame(
            {
                "patch_id": [f"{dataset}/{i:03d}" for i in range(n)],
                "path": [f"{dataset}-{i}.png" for i in range(n)],
                "content_hash": [_image(root, f"{dataset}-{i}.png", i + 17 * k) for i in range(n)],
                "dataset": dataset,
                "domain": domain,
                "group": slides,
                "label": np.array(classes, object)[y],
                "fold": 0,
            }
        )
        for name, z in logits.items():
            probability = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
            columns = {"features": name, "role": role, "call": np.array(classes, object)[z.argmax(1)]}
            for j, label in enumerate(classes):
                columns[f"score_{label}"] = z[:, j]
                columns[f"ranking_{label}"] = multiclass.log_odds(z, j)
                columns[f"probability_{label}"] = probability[:, j]
            frames.append(about.assign(**columns))
            for where in ("", "scanner A", "scanner B"):
                rows = (domain == where) | (where == "")
                record = {"features": name, "role": role, "dataset": dataset, "domain": where}
                scores.append(
                    record | _score(y[rows], z[rows], slides[rows], classes, ordered, whole=not where)
                )
        counts = [int((y == j).sum()) for j in range(k)]
        data.append(
            {"dataset": dataset, "name": dataset, "version": "1", "licence": "made up", "source": "a test"}
            | {
                "group_kind": "slide",
                "positive": "",
                "classes": classes,
                "ordered": ordered,
                "counts": counts,
            }
            | {"root": str(root or ""), "n": n, "n_groups": 12, "groups_known": True, "n_distinct": n}
            | {"domains": {"scanner A": 1, "scanner B": 1}}
        )
        pair = np.stack(list(logits.values()), axis=1)
        made = multiclass.compare_paired(
            y,
            pair,
            logits=True,
            groups=slides,
            metrics=["auroc", "balanced_accuracy", "kappa"],
            ordered=ordered,
        )
        for metric, d in made.items():
            low, value, high = (_known(-_first(v)) for v in (d.high, d.difference, d.low))
            comparisons.append(
                {"dataset": dataset, "role": role, "metric": metric, "test": "paired over groups"}
                | {"a": "poor/full/cls", "b": "good/full/cls", "difference": value, "low": low, "high": high}
                | dict.fromkeys(("p", "p_holm"), _known(_first(d.p)))
            )
    models = [
        {"features": name, "criterion": signal / 3, "temperature": 0.9, "dim": 12, "seconds": {"all": 0.1}}
        for name, signal in SIGNALS.items()
    ]
    document: dict[str, Any] = {
        "config": CONFIG,
        "provenance": {"patchbank": "0", "finished": "today"},
        "data": data,
        "folds": {"name": "balanced", "n_splits": 3},
        "chosen": "good/full/cls",
        "models": models,
        "scores": scores,
        "comparisons": comparisons,
    }
    return ProbeResult(Results.model_validate(document), pd.concat(frames, ignore_index=True))


def _score(
    y: np.ndarray, z: np.ndarray, slides: np.ndarray, classes: list[str], ordered: bool, *, whole: bool
) -> dict[str, Any]:
    k = len(classes)
    made = multiclass.estimate(
        y, z[:, None], groups=slides, metrics=METRICS, logits=True, ordered=ordered, classes=classes
    )
    record: dict[str, Any] = {"subset": "raw", "n": len(y), "n_groups": len(set(slides)), "n_classes": k}
    record |= {"metrics": {m: _triple(made[m]) for m in METRICS}}
    record |= {"uncertainty": {"metrics": {m: _unsure(made[m]) for m in METRICS}}}
    record |= {"temperature": {m: [record["metrics"][m][0], None, None] for m in LOSSES}}
    record["missing"] = [c for j, c in enumerate(classes) if not (y == j).any()]
    if not whole:
        return record
    table = multiclass.confusion(y, z).astype(int).reshape(k, k)
    record["confusion"] = table.tolist()
    off = [(i, j) for i in range(k) for j in range(k) if i != j and table[i, j]]
    record["confused"] = [
        {"label": classes[i], "called": classes[j], "rows": int(table[i, j])}
        | {"groups": len(set(slides[(y == i) & (z.argmax(1) == j)])), "share": table[i, j] / table[i].sum()}
        for i, j in sorted(off, key=lambda ij: -table[ij])
    ]
    record["classes"] = [
        {"label": c, "n": int((y == j).sum()), "n_groups": len(set(slides[y == j]))}
        | {"called": int(table[:, j].sum()), "metrics": {m: _triple(v) for m, v in made.classes[j].items()}}
        for j, c in enumerate(classes)
    ]
    return record


def _first(value: Any) -> float:
    return float(np.ravel(value)[0])


def _triple(one: Any) -> list[float | None]:
    return [_known(_first(v)) for v in (one.value, one.low, one.high)]


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _unsure(one: Any) -> dict[str, Any]:
    return dict.fromkeys(UNIT) | {"method": "jackknife", "reason": str(np.ravel(one.reason)[0])}


def _image(root: Path | None, name: str, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    if root:
        Image.fromarray(pixels).save(root / name)
    return content_hash(pixels).hex()
