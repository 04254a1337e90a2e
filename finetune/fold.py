"""Train one fold to completion and score its rows and the evaluation sets; what is on disk afterwards."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..datasets.manifest import Manifest
from ..errors import InvalidRequest, TrainingError
from ..extract.allocator import keep_pages
from ..extract.cards import declaration
from ..files import locked, write_atomically, write_text
from ..version import provenance
from . import checkpoint
from .data import Patches, patches_of
from .jobs import FoldJob
from .lora import adapter_config, adapter_state
from .model import Classifier, classifier, crop_of, policy_of
from .scores import OOF
from .train import Progress, finished, fit, peak_memory_bytes, predict_logits, scoring_batch


def train_fold(job: FoldJob, *, max_epochs: int | None = None) -> dict[str, Any] | None:
    """Train one fold to completion, score its rows and the evaluation sets, write the model; the card.

    Its folder is held alone meanwhile. A fold that is done is not trained again, only evaluation sets that
    are new are scored. None where `max_epochs` stopped it before its end.
    """
    with locked(job.folder):
        checkpoint.sweep(job.folder)
        return _train_fold(job, max_epochs)


def _train_fold(job: FoldJob, max_epochs: int | None) -> dict[str, Any] | None:
    if (job.folder / checkpoint.CARD).exists():
        done = checkpoint.read_card(job.folder)
        if different := checkpoint.differences(done["run_key"], job.run_key):
            raise InvalidRequest(
                f"{job.folder} holds a finished model of another {', '.join(different)}: choose another "
                "--out or another name of the recipe (--set name=NAME)"
            )
        _score_new_sets(job)
        return done
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.device == "cpu":
        keep_pages()
    training, validation = _patches(job, job.use == "training"), _patches(job, job.use == "validation")
    labels = job.labels.fitted(job.y[job.use == "training"])
    network, names = classifier(job.card, job.recipe, weights=job.weights, labels=labels)
    at = fit(
        network,
        job.recipe,
        training,
        validation,
        folder=job.folder,
        run_key=job.run_key,
        device=job.device,
        workers=job.workers,
        max_epochs=max_epochs,
        progress=job.progress,
    )
    if not finished(job.recipe, at):
        return None
    held_out = validation if job.recipe.choose_on != "inner" else _patches(job, job.use == "held out")
    logits = {OOF: _score(network, job, held_out)} | _score_sets(network, job, list(job.tests))
    _write_scores(job, logits)
    _write_rows(job)
    _write_model(network, names, job)
    checkpoint.write_card(job.folder, _about_model(job, network, names, at))
    return checkpoint.read_card(job.folder)


def _patches(job: FoldJob, chosen: np.ndarray) -> Patches:
    """Some of the train rows."""
    votes = None if job.votes is None else job.votes[chosen]
    return patches_of(job.rows.select(chosen), job.y[chosen], crop=crop_of(job.recipe), votes=votes)


def _about_model(job: FoldJob, network: Classifier, names: Sequence[str], at: Progress) -> dict[str, Any]:
    """The model's card. names : of the adapted layers"""
    header = job.rows.header
    return {
        "name": f"{job.folder.parent.name}.{job.folder.name}",
        "run_key": job.run_key,
        "encoder": {
            "spec": job.spec,
            "card": declaration(job.card),
            "id": job.card.id,
            "weights": job.run_key["weights"],
            "dim": network.dim,
            "tokens": policy_of(job.card, job.recipe),
            "view": job.recipe.view,
            "input_size": job.card.transform.size,
            "adapted_layers": names,
            "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "base_weights": dict(job.base_weights),
        "recipe": job.recipe.to_dict(),
        "data": {
            "name": header.name,
            "version": header.version,
            "positive": job.positive,
            "classes": list(header.classes),
            "folds": job.folds_name,
            "fold": job.fold_number,
            **_counts(job, "training"),
            **_counts(job, "validation"),
            **network.labels.to_card(),
            "scored": {name: len(manifest) for name, manifest in job.tests.items()},
        },
        "training": {
            "epochs": at.epoch,
            "best_epoch": at.best_epoch,
            "steps": at.steps,
            "patches": at.patches,
            "seconds": round(at.seconds, 3),
            "patches_per_second": round(at.patches / at.train_seconds, 2),
            "peak_memory_bytes": peak_memory_bytes(job.device),
            "device": job.device,
            "threads": torch.get_num_threads(),
            "history": at.history,
        },
        "validation": at.history[at.best_epoch - 1],
        "provenance": training_provenance(),
    }


def _counts(job: FoldJob, what: str) -> dict[str, Any]:
    """How many rows of this use, and of each class."""
    y = job.y[job.use == what]
    rows: dict[str, Any] = {f"{what}_rows": len(y)}
    if job.labels.binary:
        rows[f"{what}_positive"] = int(y.sum())
    elif not job.labels.targets:
        rows[f"{what}_counts"] = np.bincount(y, minlength=job.labels.outputs).tolist()
    return rows


def _score(network: Classifier, job: FoldJob, patches: Patches) -> np.ndarray:
    return predict_logits(
        network,
        patches,
        batch_size=scoring_batch(job.recipe, job.device),
        device=job.device,
        precision=job.recipe.eval_precision or job.recipe.precision,
        workers=job.workers,
        symmetries=job.recipe.symmetries,
        progress=job.progress,
    )


def _score_sets(network: Classifier, job: FoldJob, names: Sequence[str]) -> dict[str, np.ndarray]:
    crop = crop_of(job.recipe)
    return {n: _score(network, job, patches_of(job.tests[n], job.test_labels[n], crop=crop)) for n in names}


def _score_new_sets(job: FoldJob) -> None:
    """Evaluation sets that a finished model has not scored yet, or of which rows or images are new."""
    from .adapted import load_model

    before = pd.read_parquet(job.folder / checkpoint.SCORES)
    keys = [key for key in ("patch_id", "content_hash") if key in before]  # hashes since version 0.2

    def known(name: str, manifest: Manifest) -> bool:
        scored = before.loc[before["dataset"] == name, keys].itertuples(index=False)
        return set(manifest.table[keys].itertuples(index=False)) <= set(scored)

    new = [name for name, manifest in job.tests.items() if not known(name, manifest)]
    if not new:
        return
    where = {k: v for k, v in job.base_weights.items() if v}
    network, _ = load_model(job.folder, merged=False, trust_code=job.card.kind == "python", **where)
    logits = _score_sets(network.to(job.device), job, new)
    _write_scores(job, logits, before=before[~before["dataset"].isin(new)])


def _write_scores(job: FoldJob, logits: Mapping[str, np.ndarray], before: pd.DataFrame | None = None) -> None:
    bad = {name: int((~np.isfinite(values)).sum()) for name, values in logits.items()}
    if any(bad.values()):
        raise TrainingError(
            f"{job.folder}: scores that are not finite: {bad}; use eval_precision bf16 or fp32"
        )
    tables = {name: manifest.table for name, manifest in job.tests.items()}
    tables[OOF] = job.rows.table[job.fold == job.fold_number]
    parts = [
        tables[name][["patch_id", "content_hash"]]
        .assign(dataset=name)
        .reset_index(drop=True)
        .join(pd.DataFrame(values.reshape(len(values), -1), columns=job.labels.columns))
        for name, values in logits.items()
    ]
    table = pd.concat([*([] if before is None else [before]), *parts], ignore_index=True)
    write_atomically(job.folder / checkpoint.SCORES, lambda to: table.to_parquet(to, index=False))


def _write_rows(job: FoldJob) -> None:
    """What each train row was used for: what the leak rule reads (see adapted.py)."""
    table = job.rows.table[["patch_id", "content_hash", "group"]].assign(role=job.use)
    write_atomically(job.folder / "rows.parquet", lambda to: table.to_parquet(to, index=False))


def _write_model(network: Classifier, names: Sequence[str], job: FoldJob) -> None:
    head = {n: t.detach() for n, t in network.head.state_dict().items()}
    checkpoint.save_tensors(job.folder / "head.safetensors", head)
    if job.recipe.method == "full":
        checkpoint.save_tensors(job.folder / "model.safetensors", network.inner.state_dict())
        return
    checkpoint.save_tensors(job.folder / "adapter_model.safetensors", adapter_state(network.inner))
    text = json.dumps(adapter_config(job.recipe, names), indent=1) + "\n"
    write_text(job.folder / "adapter_config.json", text)


def training_provenance() -> dict[str, Any]:
    """Versions, and the GPU's name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return provenance("torch", "timm", "peft") | {"gpu": gpu}
