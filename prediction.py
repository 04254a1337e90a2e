"""From a fitted model and images to predictions: `patchbank predict`.

The model is a probe (`probe.json`, as `probe run` writes it) or a fine-tuned one. Neither its training data
nor a bank is needed: without one the embeddings live as long as the prediction. A probe on embeddings of
another program is applied to such embeddings instead of images.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .datasets.layouts import SUFFIXES
from .datasets.manifest import Header, Manifest
from .datasets.unlabelled import COLUMNS, manifest_of
from .errors import ImageError, InvalidRequest, PatchbankError
from .extract.external import is_imported, read_embeddings
from .extract.report import KEPT
from .finetune.listing import CARD, STATE
from .probe.artefact import ABOUT
from .probe.config import Source, parse_features
from .probe.model import ProbeModel, pick_probe
from .probe.results.files import ProbeResult
from .probe.results.older import PROBES

SAME_MPP = 0.01  # resolutions that differ by less are one
SAME = ("encoder", "preprocess", "view", "tokens", "dim")  # of two identities, for a probe to be applied
ABOUT_ROWS = ("patch_id", "path", "label", "group", "domain")  # columns of a manifest that are passed on
PROBE_OPTIONS = "--bank, --features, --role, --encoder, --precision and --on-error"


@dataclass(frozen=True)
class Predictions:
    """What `predict` returns.

    table : DataFrame, one row an image, in the order of the source: of the manifest patch_id, path, label,
        group and domain, where known; score (logit); probability of the positive class, calibrated on
        held-out scores of the training, and the threshold on it that they chose; prediction: the positive
        class where probability >= threshold, else the other. Of more than two classes instead score_CLASS,
        probability_CLASS, and the most probable as prediction; of numbers prediction_TARGET. Of several
        fine-tuned folds also score_fold_K, score_fold_K_CLASS or prediction_fold_K_TARGET.
    manifest : the images
    model : what was applied; classes, positive, threshold
    skipped : (image, why) of those that could not be read
    seconds : "encoder" (to load), "images" (to read and embed), "model", "all"
    """

    table: pd.DataFrame
    manifest: Manifest
    model: ProbeModel
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_html(max_rows=20, notebook=True)


def predict(
    model: str | os.PathLike[str] | ProbeModel,
    source: str | os.PathLike[str] | Manifest,
    *,
    bank: str | os.PathLike[str] | None = None,
    features: str | None = None,
    role: str | None = None,
    encoders: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    tta: bool = False,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    trust_code: bool = False,
    on_error: str = "fail",
    progress: bool = True,
    **images: Any,
) -> Predictions:
    """Apply a fitted model to images.

    model : a folder of `probe run` (or a copy of its probe.json and probe.safetensors), a ProbeModel, a probe
        on the hub, "hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION", or the folder of a fine-tuned model: one
        fold's, or the one above (the mean probability of its folds)
    source : a folder of images, one image, a manifest, a container, a slide; see `manifest_of`, whose other
        arguments (coordinates, size, mpp, ...) are taken too. For a probe on imported embeddings: a file or
        folder of such, as `import_embeddings` takes them
    bank : of embeddings, to be read and added to (None: they are not kept)
    features, role : of a probe, see `ProbeModel.load`
    encoders : id -> how the encoder is loaded, where its id is not enough (a card file, a Card)
    precision : to embed in (None: what the probe was fitted on, or fp32 on a CPU that cannot)
    tta : of fine-tuned models: mean logit of the 8 flips and quarter turns of every patch
    on_error : at an image that cannot be read: "fail", or "skip" (see `Predictions.skipped`)

    Raises InvalidRequest: no such model; embeddings of other weights or preprocessing than the probe was
    fitted on. TrainingError, ProbeError, EncoderError, ImageError.
    """
    started = time.perf_counter()
    how = {"device": device, "checkpoint": checkpoint, "weights_dir": weights_dir, "trust_code": trust_code}
    probe = _probe_of(model, features, role)
    if probe is not None and (identity := _imported(probe)):
        predictions = _by_embeddings(probe, source, identity)
        predictions.seconds["all"] = time.perf_counter() - started
        return predictions
    manifest = manifest_of(source, **images)
    if probe is None:
        if bank or features or role or encoders or precision or on_error != "fail":
            raise InvalidRequest(f"{PROBE_OPTIONS} belong to a probe, and {model} has no {ABOUT}")
        predictions = _by_networks(
            Path(str(model)), manifest, batch_size=batch_size, workers=workers or 0, tta=tta,
            progress=progress, **how,
        )  # fmt: skip
    else:
        if tta:
            raise InvalidRequest(
                "the view belongs to a probe: extract d4:mean and fit one on it, instead of --tta"
            )
        options = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "progress": progress}
        predictions = _by_probe(
            probe, manifest, bank=bank, encoders=encoders or {}, precision=precision, **options, **how
        )
    predictions.seconds["all"] = time.perf_counter() - started
    return predictions


def _probe_of(
    model: str | os.PathLike[str] | ProbeModel, features: str | None, role: str | None
) -> ProbeModel | None:
    """The probe; None where the folder has none and may be a fine-tuned model."""
    if isinstance(model, ProbeModel):
        return model
    if str(model).startswith("hf:"):
        from .probe.hub import probe_of_hub

        repo, _, revision = str(model).removeprefix("hf:").partition("@")
        if not repo:
            raise InvalidRequest(f"{model} names no repository: hf:OWNER/NAME")
        return probe_of_hub(repo, features=features, role=role, revision=revision or None)
    folder = Path(model)
    if not folder.exists():
        raise InvalidRequest(
            f"{model} does not exist; a model is a folder of `patchbank probe run` or `patchbank finetune "
            "run`, or a probe on the hub, hf:OWNER/NAME"
        )
    folder = folder.parent if folder.name in (ABOUT, "results.json") else folder
    if (folder / ABOUT).exists():
        return ProbeModel.load(folder, features=features, role=role)
    if (folder / PROBES).exists():
        result = ProbeResult.load(folder)
        probes = [probe for of in result.probes.values() for probe in of.values()]
        return pick_probe(probes, features or result.chosen, role, where=str(folder))
    if (folder / "results.json").exists() and not any(folder.glob("fold-*")):
        systems = ProbeResult.load(folder).results.models
        names = ", ".join(one.features for one in systems)
        what = (
            f"compares {len(systems)} systems ({names}), and holds none of their models"
            if len(systems) > 1
            else f"has the result of {names}, and not its model (fold-1, ...)"
        )
        raise InvalidRequest(
            f"{folder} {what}. Fix: predict with the folder of one system, as `patchbank probe run` or "
            "`patchbank finetune run` wrote it"
        )
    if not (folder / CARD).exists() and not any(folder.glob("fold-*")) and not (folder / STATE).exists():
        raise InvalidRequest(
            f"{folder} holds no model: neither {ABOUT}, which `patchbank probe run -o {folder}` writes, nor "
            f"{CARD} of `patchbank finetune run`"
        )
    return None


def _imported(probe: ProbeModel) -> Mapping[str, Any]:
    """The identity of the embeddings of another program that a probe was fitted on; {} of computed ones."""
    identities = [of.get("identity", {}) for of in probe.about.stores.values()]
    imported = [identity for identity in identities if is_imported(identity)]
    if imported and len(identities) > 1:
        raise InvalidRequest(
            f"{probe.about.features} is of several sources, some of them imported: put their columns side by "
            "side and call ProbeModel.load(FOLDER).predict_proba(X) in Python"
        )
    return imported[0] if imported else {}


def _by_embeddings(probe: ProbeModel, source: Any, identity: Mapping[str, Any]) -> Predictions:
    encoder, started = identity["encoder"]["id"], time.perf_counter()
    if isinstance(source, Manifest) or Path(source).suffix.lower() in (".toml", *SUFFIXES):
        raise InvalidRequest(
            f"the probe was fitted on embeddings of {encoder!r} that another program made, and takes such: "
            f"name their file or folder, not {getattr(source, 'root', source)}"
        )
    table, X = read_embeddings(source, identity)
    ids = table.get("patch_id", table["path"]).astype(str)
    kept = table[[name for name in COLUMNS if name in table.columns]]
    header = Header(name="images", version="1", licence="unknown", source=str(source))
    manifest = Manifest(header, kept.assign(patch_id="images/" + ids), Path(source).parent)
    read = time.perf_counter()
    predicted = _table(manifest, probe.score(X), probe)
    seconds = {"encoder": 0.0, "images": read - started, "model": time.perf_counter() - read}
    return Predictions(predicted, manifest, probe, seconds=seconds)


def _by_probe(
    probe: ProbeModel,
    manifest: Manifest,
    *,
    bank: str | os.PathLike[str] | None,
    encoders: Mapping[str, Any],
    precision: str | None,
    device: str,
    **options: Any,
) -> Predictions:
    from .extract.run import run_extract
    from .probe.features import content_keys, open_bank
    from .probe.streaming import blocks

    seconds = {"encoder": 0.0, "images": 0.0}
    skipped: dict[str, str] = {}
    sources = parse_features(probe.about.features).sources
    _check_resolution(manifest, sources)
    with _bank(bank) as place:
        reports = []
        for source in sources:
            stored = probe.about.stores.get(str(source), {}).get("identity", {})
            lap = time.perf_counter()
            report = run_extract(
                [manifest],
                encoder=encoders.get(source.encoder, source.encoder),
                bank=place,
                view=source.view,
                tokens=source.tokens,
                precision=precision or _precision(stored.get("precision"), device),
                dtype=stored.get("dtype", "float16"),
                device=device,
                **options,
            )
            seconds["encoder"] += (load_time := report.seconds.get("load", 0.0))
            seconds["images"] += time.perf_counter() - lap - load_time
            skipped |= dict(report.failed)
            reports.append((source, stored, report.stores[0]))
        manifest = manifest.select(~manifest.table["patch_id"].isin(list(skipped)).to_numpy())
        if not len(manifest):
            raise InvalidRequest(f"no image could be read: {next(iter(skipped.values()))}")
        lap, opened = time.perf_counter(), open_bank(place)
        stores = [opened.open_name(report.name) for _, _, report in reports]
        for (source, stored, report), store in zip(reports, stores, strict=True):
            _check_identity(store.identity.to_json(), stored, source, report.name)
        keys = content_keys(manifest, opened, sources[0])
        scores = []
        for part in blocks(len(keys)):  # never all of the embeddings
            columns = [store.load(keys[part], dtype="float32") for store in stores]
            scores.append(probe.score(np.concatenate(columns, axis=1)))
        score = np.concatenate(scores)
        table = _table(manifest, score, probe)
    seconds["model"] = time.perf_counter() - lap
    return Predictions(table, manifest, probe, list(skipped.items()), seconds)


@contextmanager
def _bank(given: str | os.PathLike[str] | None) -> Iterator[str]:
    if given is not None:
        yield os.fspath(given)
        return
    with tempfile.TemporaryDirectory(prefix="patchbank-predict-") as folder:
        try:
            yield folder
        except (KeyboardInterrupt, PatchbankError) as error:  # unlike those of a bank, which go on from there
            error.__notes__ = [note for note in getattr(error, "__notes__", []) if KEPT not in note]
            error.add_note("Nothing was kept: --bank FOLDER keeps the embeddings.")
            if isinstance(error, ImageError):
                error.add_note("--on-error skip leaves out images that cannot be read.")
            raise


def _precision(fitted: str | None, device: str) -> str:
    """What the probe was fitted on; half precision of a GPU is computed in fp32 on a CPU."""
    if fitted != "fp16":
        return fitted or "auto"
    from .extract.devices import resolve_devices

    return "fp32" if resolve_devices(device)[0].type == "cpu" else fitted


def _check_resolution(manifest: Manifest, sources: Sequence[Source]) -> None:
    """Raise where a view resamples from another resolution than the images have."""
    for source in sources:
        fitted = re.search(r"mpp:[^+@]+@([0-9.]+)", source.view)
        if fitted and manifest.header.mpp and abs(manifest.header.mpp / float(fitted[1]) - 1) > SAME_MPP:
            raise InvalidRequest(
                f"{source} resamples patches of {fitted[1]} micrometres a pixel, and these have "
                f"{manifest.header.mpp:g}. Fix: read them at {fitted[1]} (of slides --mpp {fitted[1]})"
            )


def _check_identity(found: Mapping[str, Any], fitted: Mapping[str, Any], source: Source, name: str) -> None:
    """Raise where the embeddings are of other weights or preprocessing than the probe was fitted on."""
    different = [part for part in SAME if fitted and found.get(part) != fitted.get(part)]
    if different:
        raise InvalidRequest(
            f"{source}: the images were embedded as {name}, and the probe was fitted on embeddings with "
            f"another {', '.join(different)}: weights or preprocessing differ. Fix: use the original weights "
            "(--checkpoint, --weights-dir, or --encoder ID=SPEC)"
        )


def _by_networks(folder: Path, manifest: Manifest, **options: Any) -> Predictions:
    from .finetune.predict import score_images

    found = score_images(folder, manifest, **options)
    table = _table(manifest, found.score, found.model).assign(**found.folds)
    return Predictions(table, manifest, found.model, seconds={**found.seconds, "model": 0.0})


def _table(manifest: Manifest, score: np.ndarray, model: ProbeModel) -> pd.DataFrame:
    known = [name for name in ABOUT_ROWS if (manifest.table[name] != "").any()]
    if manifest.header.name == "images":  # the name of a source that is no manifest
        known.remove("patch_id")
    table: dict[str, Any] = {name: manifest.table[name].to_numpy() for name in known}
    if model.about.targets:
        return pd.DataFrame(
            {**table, **{f"prediction_{t}": score[:, i] for i, t in enumerate(model.about.targets)}}
        )
    probabilities = model.probabilities(score)
    if score.ndim == 1:
        column = list(model.classes).index(model.about.positive)
        table |= {"score": score, "probability": probabilities[:, column], "threshold": model.threshold}
    else:
        for kind, values in (("score", score), ("probability", probabilities)):
            table |= {f"{kind}_{name}": values[:, i] for i, name in enumerate(model.classes)}
    return pd.DataFrame({**table, "prediction": model.calls(score)})
