"""From a trained model and a folder of images to a CSV: `patchbank predict`."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.layouts import folder_table
from ..datasets.manifest import Header, Manifest
from ..errors import InvalidRequest, ManifestError
from ..probe.config import parse_features
from ..probe.model import calibrated, mean_logit
from ..probe.results.files import ProbeResult
from ..probe.results.schema import Store
from .scores import UNADJUSTED


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
    trust_code: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Probabilities of the positive class by a fine-tuned model.

    model : one fold's folder, or the folder above: then the mean probability of its folds
    images : a folder (image files at any depth), or a manifest
    tta : mean logit of the 8 flips and quarter turns of every patch
    checkpoint, weights_dir : of the base encoder, if it is not where it was in training
    trust_code : allow the Python code that a base encoder's card of kind "python" names

    Returns one row an image, in the order of the paths: path; score (logit); probability, calibrated on the
    training's out-of-fold scores, and the threshold on it that they chose (for one fold's folder, which has
    none, as fitted, and 0.5); prediction: the positive class where probability >= threshold, else the other;
    with several folds also score_fold_K, the logits of the single models.
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
    torch_device = str(resolve_devices(device)[0])
    each, card = [], {}
    for folder in folders:
        network, card = load_model(
            folder, checkpoint=checkpoint, weights_dir=weights_dir, trust_code=trust_code
        )
        recipe = recipe_from(card["recipe"], where=str(folder))
        each.append(
            predict_logits(
                network.to(torch_device),
                patches_of(manifest, None, crop=crop_of(recipe)),
                batch_size=batch_size,
                device=torch_device,
                precision=recipe.eval_precision or recipe.precision,
                workers=workers,
                symmetries=8 if tta else 1,
                progress=progress,
            )
        )
    whole = Path(model) if (Path(model) / "results.json").exists() else None
    adjusted = UNADJUSTED if whole is None else _adjusted(whole)
    logits = np.stack(each, axis=1)
    names = [folder.name.replace("-", "_") for folder in folders]
    return _table(
        manifest, logits, names, adjusted, classes=card["data"]["classes"], positive=card["data"]["positive"]
    )


def predict_probe(
    results: str | os.PathLike[str],
    images: str | os.PathLike[str] | Manifest,
    *,
    bank: str | os.PathLike[str],
    train: Manifest | None = None,
    features: str | None = None,
    encoder_specs: Mapping[str, str] | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    tta: bool = False,
    trust_code: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Probabilities by a probe of `run_probe`, as it was fitted: nothing is refitted.

    results : folder of the probe's results
    images : embedded into `bank` on the way, so that a second call costs nothing
    train : the manifest that the probe was trained on, to be checked; not needed
    features : which feature set (None: the one that the folds chose)
    encoder_specs : how an encoder of the bank is loaded, where its id is not enough (a card file,
        finetuned:FOLDER)
    tta : the probe is applied to the embeddings of the view "d4:mean", and only if it was trained on them
    Returns the table of `predict_finetuned`, by the refit (of a published recipe: by its ensemble).
    Raises InvalidRequest: no such probe; other rows or labels in `train` than in the results; embeddings of
    other weights or preprocessing than those that the probe was fitted on. And what `run_extract` raises.
    """
    from ..extract.run import run_extract
    from ..probe.data import labelled_train_rows
    from ..probe.describe import rows_digest
    from ..probe.features import load_set, open_bank

    loaded = ProbeResult.load(results)
    chosen = features or loaded.chosen
    of = loaded.probes.get(chosen)
    if not of:
        there = ", ".join(loaded.probes) or "none: they are of trained networks"
        raise InvalidRequest(f"{results} has no probe on {chosen!r}; it has {there}")
    about, stores = loaded.results.train, loaded.results.stores
    if train is not None and rows_digest(labelled_train_rows(train)) != about.rows:
        raise InvalidRequest(
            f"{train.header.name} is not the training set of {results}: ids or labels of its training rows "
            "differ. Fix: omit --train (predictions do not need it), or give the original manifest"
        )
    sources = parse_features(chosen).sources
    if tta and not all("d4:mean" in source.view for source in sources):
        raise InvalidRequest(
            f"{chosen} was not trained on the mean over flips and turns: extract the view d4:mean"
        )
    manifest = images if isinstance(images, Manifest) else manifest_of(images)
    for source in sources:
        fitted = stores[str(source)]
        report = run_extract(
            [manifest],
            encoder=(encoder_specs or {}).get(source.encoder, source.encoder),
            bank=str(bank),
            view=source.view,
            tokens=source.tokens,
            precision=fitted.precision,
            dtype=fitted.dtype,
            device=device,
            checkpoint=checkpoint,
            weights_dir=weights_dir,
            trust_code=trust_code,
            progress=progress,
        )
        _check_identity(report.stores[0].name, fitted, str(source))
    first = stores[str(sources[0])]
    opened = open_bank(os.fspath(bank), precision=first.precision, dtype=first.dtype)
    probe = of.get("refit") or of["ensemble"]
    score = probe.score(load_set(manifest, chosen, bank=opened))
    words = {"classes": about.classes, "positive": about.positive}
    return _table(manifest, score[:, None], ["refit"], probe.adjusted, **words)


def _check_identity(name: str, fitted: Store, source: str) -> None:
    """Raise where the embeddings are of other weights or preprocessing than the probe was fitted on."""
    if name != fitted.store:
        raise InvalidRequest(
            f"{source}: the probe was fitted on {fitted.store}, and the images were embedded as {name}: "
            "weights or preprocessing differ. Fix: use the original weights (--checkpoint, --weights-dir, or "
            "--encoder ID=SPEC)"
        )


def manifest_of(
    folder: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = (),
    on_note: Callable[[str], None] | None = None,
) -> Manifest:
    """The images below a folder, or in a zip or tar, as an unlabelled manifest, by path.

    The rules are those of `datasets build folder`.
    suffixes : of files that are images too, beside `layouts.SUFFIXES`
    on_note : called with a sentence for files that were left out (or warns)
    Raises InvalidRequest if there are none.
    """
    say = on_note or (lambda note: warnings.warn(note, stacklevel=3))
    root = Path(folder)
    try:
        # any path; no labels
        table, base = folder_table(root, pattern="(?P<label>)", suffixes=suffixes, say=say)
    except ManifestError as error:
        raise InvalidRequest(str(error)) from error
    header = Header(
        name="images",
        version="1",
        classes=("unknown",),
        positive="unknown",
        licence="unknown",
        source=str(root),
    )
    table = table.assign(patch_id="images/" + table["path"])
    for column in ("label", "group", "domain", "split"):
        table[column] = ""
    return Manifest(header, table, base)


def _adjusted(folder: Path) -> np.ndarray:
    """Threshold on the logit, 1 / temperature, Platt's scale and offset of the fold ensemble."""
    (model,) = ProbeResult.load(folder).results.models
    slope = 1 / model.temperature if model.temperature else 0.0
    return np.array([model.threshold_score, slope, *model.platt])


def _table(
    manifest: Manifest,
    logits: np.ndarray,
    names: Sequence[str],
    adjusted: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str,
) -> pd.DataFrame:
    score = mean_logit(logits)
    probability, threshold = calibrated(score, adjusted)
    others = [c for c in classes if c != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    table: dict[str, Any] = {
        "path": manifest.table["path"].to_numpy(),
        "score": score,
        "probability": probability,
        "threshold": threshold,
        "prediction": np.where(probability >= threshold, positive, negative),
    }
    if len(names) > 1:
        table |= {f"score_{name}": logits[:, i] for i, name in enumerate(names)}
    return pd.DataFrame(table)
