"""From a trained model and a folder of images to a CSV: `patchbank predict`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from ..datasets.layouts import SUFFIXES
from ..datasets.manifest import Header, Manifest
from ..errors import InvalidRequest
from ..files import write_atomically
from ..probe.config import ProbeConfig, parse_features
from ..probe.results import ProbeResult
from .scores import UNADJUSTED, mean_logit

COLUMNS = ("path", "score", "probability", "probability_platt", "threshold", "prediction")


def predict_finetuned(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Manifest,
    *,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    tta: bool = False,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Probabilities of the positive class by a fine-tuned model.

    model : one fold's folder, or the folder above: then the mean probability of its folds
    images : a folder (image files at any depth), or a manifest
    tta : mean logit of the 8 flips and quarter turns of every patch
    checkpoint, weights_dir : of the base encoder, if it is not where it was in training

    Returns one row an image, in the order of the paths: path; score (logit); probability; probability_platt
    and threshold, calibrated on the training's out-of-fold scores (on the probability; NaN and 0.5 for one
    fold's folder, which has none); prediction (class name at the threshold); with several folds also
    probability_fold_K.
    Raises InvalidRequest, TrainingError, EncoderError, ImageError.
    """
    from ..extract.devices import resolve_devices
    from .adapted import fold_folders, load_model
    from .data import patches_of
    from .model import crop_of
    from .recipe import recipe_from
    from .train import predict_logits

    manifest = images if isinstance(images, Manifest) else manifest_of(images)
    folders = fold_folders(Path(model))
    place = str(resolve_devices(device)[0])
    each, card = [], {}
    for folder in folders:
        network, card = load_model(folder, checkpoint=checkpoint, weights_dir=weights_dir)
        recipe = recipe_from(card["recipe"], where=str(folder))
        each.append(
            predict_logits(
                network.to(place),
                patches_of(manifest, None, crop=crop_of(recipe)),
                batch_size=batch_size,
                device=place,
                precision=recipe.eval_precision or recipe.precision,
                workers=workers,
                symmetries=8 if tta else 1,
                progress=progress,
            )
        )
    whole = Path(model) if (Path(model) / "results.json").exists() else None
    adjusted = _adjusted(whole) if whole is not None else None
    logits = np.stack(each, axis=1)
    names = [folder.name.replace("-", "_") for folder in folders]
    return _table(
        manifest, logits, names, adjusted, classes=card["data"]["classes"], positive=card["data"]["positive"]
    )


def predict_probe(
    results: str | os.PathLike[str],
    images: str | os.PathLike[str] | Manifest,
    *,
    train: Manifest,
    bank: str | os.PathLike[str],
    features: str | None = None,
    encoder_specs: Mapping[str, str] | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    tta: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Probabilities by a probe of `run_probe`, refitted on the cached embeddings at the chosen settings.

    results : folder of the probe's results; train, bank : what it was trained on, as then
    features : which feature set (None: the one that the folds chose)
    encoder_specs : how an encoder of the bank is loaded, where its id is not enough (a card file,
        finetuned:FOLDER)
    images : embedded into the bank on the way, so that a second call costs nothing
    tta : the probe is applied to the embeddings of the view "d4:mean", and only if it was trained on them
    Returns the table of `predict_finetuned`, by the refit.
    Raises InvalidRequest, StoreNotFound, RowsMissing, and what `run_extract` raises.
    """
    from ..datasets.folds import effective_groups, folds_for
    from ..extract.run import run_extract
    from ..probe.features import load_set, open_bank
    from ..probe.protocol import make_plan, run_protocol
    from ..probe.run import gather

    found = ProbeResult.load(results).document
    chosen = features or found["chosen"]
    model = next((m for m in found["models"] if m["features"] == chosen), None)
    if model is None or "choice" not in model:
        there = ", ".join(m["features"] for m in found["models"])
        raise InvalidRequest(f"{results} has no probe on {chosen!r}; it has {there}")
    sources = parse_features(chosen).sources
    if tta and not all("d4:mean" in source.view for source in sources):
        raise InvalidRequest(
            f"{chosen} was not trained on the mean over flips and turns: extract the view d4:mean"
        )
    manifest = images if isinstance(images, Manifest) else manifest_of(images)
    opened = open_bank(os.fspath(bank))
    for source in sources:
        identity = opened.find(source.encoder, view=source.view, tokens=source.tokens).identity
        run_extract(
            [manifest],
            encoder=(encoder_specs or {}).get(source.encoder, source.encoder),
            bank=str(bank),
            view=source.view,
            tokens=source.tokens,
            precision=identity.precision,
            dtype=identity.dtype,
            device=device,
            checkpoint=checkpoint,
            weights_dir=weights_dir,
            progress=progress,
        )
    choice = model["choice"]
    config = replace(
        ProbeConfig.from_dict(found["config"]),
        features=(chosen,),
        preprocess=(choice["preprocess"],),
        class_weight=(choice["class_weight"],),
        C=(choice["C"],),
    )
    study = gather(train, [], opened, config)
    groups = effective_groups(study.train_manifest)
    folds = folds_for(study.train_manifest, config.folds, seed=config.seed).assign(groups)
    plan = make_plan(study.train.y, groups, folds, config=config)
    run = run_protocol(
        load_set(study.train_manifest, chosen, bank=opened),
        study.train.y,
        plan,
        {"images": load_set(manifest, chosen, bank=opened)},
        config=config,
    )
    header = train.header
    return _table(
        manifest,
        run.refit["images"][:, None],
        ["refit"],
        np.asarray(run.adjusted),
        classes=list(header.classes),
        positive=config.positive or header.positive,
    )


def manifest_of(folder: str | os.PathLike[str]) -> Manifest:
    """The image files below a folder as an unlabelled manifest, by path. Raises InvalidRequest if none."""
    root = Path(folder)
    if not root.is_dir():
        raise InvalidRequest(f"{root} is not a folder of images")
    paths = sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.suffix.lower() in SUFFIXES and p.is_file()
    )
    if not paths:
        raise InvalidRequest(f"{root} holds no images ({', '.join(SUFFIXES)})")
    header = Header(
        name="images",
        version="1",
        classes=("unknown",),
        positive="unknown",
        licence="unknown",
        source=str(root),
    )
    table = pd.DataFrame({"patch_id": [f"images/{p}" for p in paths], "path": paths})
    for column in ("label", "group", "domain", "split"):
        table[column] = ""
    return Manifest(header, table, root)


def write_csv(table: pd.DataFrame, file: str | os.PathLike[str]) -> Path:
    """Write a table of predictions, whole or not at all."""
    return write_atomically(file, lambda to: table.to_csv(to, index=False, float_format="%.9g"))


def _adjusted(folder: Path) -> np.ndarray:
    """Threshold on the logit, 1 / temperature, Platt's scale and offset of the fold ensemble."""
    (model,) = ProbeResult.load(folder).document["models"]
    threshold = float(np.log(model["threshold"]) - np.log1p(-model["threshold"]))
    return np.array([threshold, 1 / model["temperature"] if model["temperature"] else 0.0, *model["platt"]])


def _table(
    manifest: Manifest,
    logits: np.ndarray,
    names: Sequence[str],
    adjusted: np.ndarray | None,
    *,
    classes: Sequence[str],
    positive: str,
) -> pd.DataFrame:
    score = logits[:, 0] if logits.shape[1] == 1 else mean_logit(logits)
    threshold, _, scale, offset = UNADJUSTED if adjusted is None else adjusted
    others = [c for c in classes if c != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    table: dict[str, Any] = {
        "path": manifest.table["path"].to_numpy(),
        "score": score,
        "probability": expit(score),
        "probability_platt": np.full(len(score), np.nan)
        if adjusted is None
        else expit(scale * score + offset),
        "threshold": np.full(len(score), expit(threshold)),
        "prediction": np.where(score >= threshold, positive, negative),
    }
    if len(names) > 1:
        table |= {f"probability_{name}": expit(logits[:, i]) for i, name in enumerate(names)}
    return pd.DataFrame(table)
