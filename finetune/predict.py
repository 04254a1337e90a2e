"""Fine-tuned models on further images: by the network of a fold, or by the mean of all folds'."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.manifest import Manifest
from ..extract.devices import resolve_devices
from ..probe.held_out import unadjusted
from ..probe.model import About, ProbeModel, mean_logit
from ..probe.results.files import ProbeResult
from .adapted import fold_folders, load_model
from .data import patches_of
from .labels import Labels, labels_of_card
from .lora import merge
from .model import crop_of
from .recipe import recipe_of_card
from .train import predict_logits, scoring_batch


@dataclass(frozen=True)
class Scored:
    """Scores of images.

    score : float64 (n,) logits of two classes, (n, K) of more, or numbers (n, T)
    model : what they become: probabilities, threshold, calls; without a network
    folds : of several folds, column -> the score of each, float64 (n,)
    seconds : "encoder" (to load), "images" (to read and score)
    """

    score: np.ndarray
    model: ProbeModel
    folds: dict[str, np.ndarray]
    seconds: dict[str, float]


def score_images(
    folder: Path,
    manifest: Manifest,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    tta: bool = False,
    progress: bool = True,
    **weights: Any,
) -> Scored:
    """The images of a manifest by a fold's model, or by the ensemble of all folds (the mean probability, of
    numbers the mean), with threshold and calibration that the folds chose.

    folder : of one fold, or the one above; batch_size : None: as in training
    tta : mean of the 8 flips and quarter turns of every patch
    weights : of `adapted.load_model`. Raises TrainingError, EncoderError, ImageError.
    """
    folders = fold_folders(folder)
    place = str(resolve_devices(device)[0])
    seconds = {"encoder": 0.0, "images": 0.0}
    each, card = [], {}
    for one in folders:
        lap = time.perf_counter()
        network, card = load_model(one, merged=False, **weights)
        recipe = recipe_of_card(card, where=str(one))
        precision = recipe.eval_precision or recipe.precision
        if (
            recipe.method == "lora" and precision == "fp32"
        ):  # rounded to fewer bits a merged weight gives other scores than in training
            merge(network.inner)
        seconds["encoder"] += time.perf_counter() - lap
        lap = time.perf_counter()
        each.append(
            predict_logits(
                network.to(place),
                patches_of(manifest, None, crop=crop_of(recipe)),
                batch_size=batch_size or scoring_batch(recipe, place),
                device=place,
                precision=precision,
                workers=workers,
                symmetries=8 if tta else recipe.symmetries,
                progress=progress,
            )
        )
        seconds["images"] += time.perf_counter() - lap
    labels, data = labels_of_card(card["data"]), card["data"]
    scores = np.stack(each, axis=1)
    about = About(
        features=folder.name,
        classes=() if labels.targets else tuple(data["classes"]),
        positive=data["positive"],
        targets=labels.targets,
    )
    score = scores.mean(axis=1) if labels.targets else mean_logit(scores)
    folds = _of_folds(folders, scores, labels) if len(folders) > 1 else {}
    return Scored(score, ProbeModel((), _adjusted(folder, labels, each[0]), about), folds, seconds)


def _of_folds(folders: Sequence[Path], scores: np.ndarray, labels: Labels) -> dict[str, np.ndarray]:
    """score_fold_K, score_fold_K_CLASS or prediction_fold_K_TARGET -> float64 (n,)."""
    columns = {}
    for i, folder in enumerate(folders):
        for name, column in zip(labels.columns, scores[:, i].reshape(len(scores), -1).T, strict=True):
            kind, _, of = name.partition("_")
            columns["_".join(filter(None, (kind, folder.name.replace("-", "_"), of)))] = column
    return columns


def _adjusted(folder: Path, labels: Labels, score: np.ndarray) -> np.ndarray:
    """As `ProbeModel` has it, of the fold ensemble; a fold alone has none chosen."""
    if labels.targets:
        return np.empty(0)
    if not (folder / "results.json").exists():
        return unadjusted(np.zeros((1, *score.shape[1:])))[0]
    (model,) = ProbeResult.load(folder).results.models
    slope = 1 / model.temperature if model.temperature else 0.0
    if not labels.binary:
        return np.array([slope])
    assert model.threshold_score is not None
    return np.array([model.threshold_score, slope, *(model.platt or ())])
