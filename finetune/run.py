"""Fine-tune one encoder on every fold: jobs that are independent of each other, then one table of scores."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..cache.identity import safe_name
from ..datasets.manifest import Manifest, as_manifest, as_manifests, load_manifest
from ..errors import InvalidRequest, TrainingError
from ..extract.allocator import keep_pages
from ..extract.cards import Card, declaration
from ..extract.devices import resolve_devices
from ..extract.weights import Weights, locate
from ..files import check_folder_writable, locked, write_atomically, write_text
from ..probe.config import ProbeConfig
from ..probe.regression import TargetConfig
from ..probe.results.files import ProbeResult
from ..version import provenance
from . import checkpoint as files
from .data import TrainingData, chosen_folds, config_of, gather_rows, patches_of
from .engines import run_all
from .labels import TWO_CLASSES, Labels, labels_of
from .lora import adapter_config, adapter_state
from .model import Classifier, base_card, classifier, crop_of, policy_of
from .plan import FinetunePlan, load_plan
from .recipe import Recipe, load_recipe
from .scores import OOF, assemble
from .train import Progress, finished, fit, peak_memory_bytes, predict_logits


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Everything that one fold's training needs; pickles, so that it can run on another machine.

    rows : the labelled training set; y : int (n,), or numbers float64 (n, T); fold : int (n,)
    tests : evaluation sets by name, scored at the end; labels : what is learned
    base_weights : where the weights were found, as `locate` takes it
    """

    folder: Path
    card: Card
    spec: str
    weights: Weights | None
    base_weights: Mapping[str, str | None]
    recipe: Recipe
    rows: Manifest
    y: np.ndarray
    fold: np.ndarray
    fold_number: int
    positive: str
    folds_name: str
    tests: Mapping[str, Manifest]
    test_labels: Mapping[str, np.ndarray]
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    progress: bool = True
    votes: np.ndarray | None = None
    labels: Labels = TWO_CLASSES

    @property
    def run_key(self) -> dict[str, Any]:
        """What has to be equal for a run to be continued."""
        digest = hashlib.blake2b(digest_size=16)
        columns = (self.rows.table["patch_id"], self.rows.table["content_hash"], self.y, self.fold)
        for column in columns:
            digest.update("\0".join(map(str, column)).encode())
        if not self.labels.binary:
            digest.update(f"{self.labels!r} {self.y.tolist()!r}".encode())
        return {
            "encoder": self.card.id,
            "weights": self.weights.identity if self.weights else f"random, seed {self.recipe.seed}",
            "recipe": self.recipe.digest,
            "data": digest.hexdigest(),
            "fold": self.fold_number,
        }


def run_finetune(
    *,
    train: Manifest | str | os.PathLike[str],
    tests: Sequence[Manifest | str | os.PathLike[str]] = (),
    encoder: str,
    recipe: str | Path | Recipe = "lora",
    out: str | os.PathLike[str],
    folds: str | int = "balanced",
    only_folds: Sequence[int] | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    engine: str = "local",
    threads: int = 0,
    workers: int = 0,
    bootstrap: int = 2000,
    positive: str | None = None,
    one_vs_rest: str | None = None,
    near_duplicates: str = "images",
    remember: str | os.PathLike[str] | None = None,
    allow_leaks: Sequence[str] = (),
    trust_code: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> ProbeResult:
    """Fine-tune one encoder, one model a fold.

    Fitted on : for fold k, the labelled rows of `train` (split "train") that are not in fold k.
    Chosen on : the rows of fold k: after every epoch the recipe's `monitor`, which keeps the best epoch,
        stops the run and, with "plateau", sets the learning rate. So fold k's out-of-fold score is of rows
        that chose the epoch (an optimism that a probe's nested choice has not; the test sets have none).
    Refit : none. The ensemble is the mean probability of the fold models, of numbers their mean.
    Labels : as the manifest's header says: two classes, several (cross-entropy), grades, or numbers (squared
        error, each standardised by the rows that train the fold's model, as its card keeps). A recipe that
        does not fit them is refused; see `recipe.load_recipe` for what shipped ones leave to the labels.
    Scored : fold k's rows by model k ("oof"); the other splits of `train` and all labelled rows of `tests`,
        after training, by every fold's model ("fold 1", ...) and by the ensemble. Threshold, temperature and
        Platt's scaling of a fold come from the other folds' out-of-fold scores; of the ensemble from all of
        them.

    encoder : what `extract.cards.load_card` takes; recipe : name, TOML file or Recipe, `overrides` change
        single values
    out : OUT/<encoder>+<recipe>/fold-K has the model; the folder above has predictions.parquet, results.json
        and results.csv in the format of `run_probe`. The same call continues where it was interrupted.
    folds, positive, one_vs_rest, bootstrap, allow_leaks : as in `run_probe`; only_folds : numbers from 1
    near_duplicates : "images" (pairs that show nearly the same are reported), "none", or a file of pairs of
        `datasets check --near --pairs`, which are refused
    remember : folder whose near/ remembers images that were compared: a bank that probes were run on, or OUT
    trust_code : allow the Python code that a card of kind "python" names
    engine : "local" (one after the other) or "ray" (independent tasks, one GPU each where there are any)
    threads : torch's on a CPU (0: its default); workers : processes that read and augment, a fold

    Raises InvalidRequest, UnknownEncoder, EncoderError, ProbeError, ... before any training; TrainingError in
    it.
    """
    train, tests = as_manifest(train), as_manifests("tests", tests)
    jobs, data, config, folder = prepare_jobs(
        train=train,
        tests=tests,
        encoder=encoder,
        recipe=recipe,
        out=out,
        folds=folds,
        only_folds=only_folds,
        device=device,
        checkpoint=checkpoint,
        weights_dir=weights_dir,
        threads=threads,
        workers=workers,
        bootstrap=bootstrap,
        positive=positive,
        one_vs_rest=one_vs_rest,
        near_duplicates=near_duplicates,
        remember=remember,
        allow_leaks=allow_leaks,
        trust_code=trust_code,
        progress=progress,
        **overrides,
    )
    run_all(train_fold, jobs, engine=engine)
    return collect(folder, jobs, data, config)


def run_plan(plan: str | Path | FinetunePlan, *, engine: str = "local", **options: Any) -> list[ProbeResult]:
    """Train the encoders that a plan has chosen, all folds of all of them as independent jobs.

    options : as `run_finetune` takes them, the same for all. Returns one result an encoder, in the plan's
        order.
    Raises InvalidRequest if the plan chooses none.
    """
    chosen = plan if isinstance(plan, FinetunePlan) else load_plan(plan)
    if not chosen.chosen:
        raise InvalidRequest("the plan selects no encoder: set train = true for those to train")
    train = load_manifest(chosen.train)
    tests = [load_manifest(one) for one in chosen.tests]
    shared = {"folds": chosen.folds, "positive": chosen.positive or None, **options}
    prepared = [
        prepare_jobs(train=train, tests=tests, encoder=entry.encoder, recipe=entry.recipe, **shared)
        for entry in chosen.chosen
    ]
    run_all(train_fold, [job for jobs, *_ in prepared for job in jobs], engine=engine)
    return [collect(folder, jobs, data, config) for jobs, data, config, folder in prepared]


def prepare_jobs(
    *,
    train: Manifest,
    tests: Sequence[Manifest],
    encoder: str,
    recipe: str | Path | Recipe,
    out: str | os.PathLike[str],
    folds: str | int = "balanced",
    only_folds: Sequence[int] | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    threads: int = 0,
    workers: int = 0,
    bootstrap: int = 2000,
    positive: str | None = None,
    one_vs_rest: str | None = None,
    near_duplicates: str = "images",
    remember: str | os.PathLike[str] | None = None,
    allow_leaks: Sequence[str] = (),
    trust_code: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> tuple[list[FoldJob], TrainingData, ProbeConfig | TargetConfig, Path]:
    """The jobs of `run_finetune`, one a fold, after all checks of the request."""
    labels = labels_of(train.header, positive=positive, one_vs_rest=one_vs_rest)
    chosen = load_recipe(recipe, encoder=encoder, of=labels, **overrides)
    card = base_card(encoder, chosen, trust_code=trust_code)
    policy = policy_of(card, chosen)
    torch_device = str(resolve_devices(device)[0])
    crop_of(chosen)
    name = f"{card.id}+{chosen.name}"
    config = config_of(
        labels,
        features=(f"{name}/{chosen.view}/{policy}",),
        folds=folds,
        seed=chosen.seed,
        bootstrap=bootstrap,
        positive=positive,
        one_vs_rest=one_vs_rest,
        near_duplicates=near_duplicates,
        allow_leaks=tuple(allow_leaks),
    )
    if chosen.random_weights and (checkpoint or weights_dir):
        raise InvalidRequest(f"recipe {chosen.name!r} starts from random weights: omit the checkpoint")
    weights = None
    if not chosen.random_weights:
        weights = locate(card, checkpoint=checkpoint, weights_dir=weights_dir)
    data = gather_rows(train, tests, config=config, remember=Path(remember or out), progress=progress)
    folder = Path(out) / safe_name(name)
    check_folder_writable(folder)
    job = FoldJob(
        folder=folder,
        card=card,
        spec=encoder,
        weights=weights,
        base_weights={
            "checkpoint": str(Path(checkpoint).absolute()) if checkpoint else None,
            "weights_dir": str(Path(weights_dir).absolute()) if weights_dir else None,
        },
        recipe=chosen,
        rows=data.study.train_manifest,
        y=data.study.train.y,
        labels=labels,
        votes=None if labels.targets else data.study.train.vote_share(),
        fold=data.fold,
        fold_number=0,
        positive=(config.target or train.header.positive)
        if isinstance(config, ProbeConfig) and labels.binary
        else "",
        folds_name=data.folds.name,
        tests={r.dataset: m for r, m in zip(data.study.tests, data.study.test_manifests, strict=True)},
        test_labels={r.dataset: r.y for r in data.study.tests},
        device=torch_device,
        threads=threads,
        workers=workers,
        progress=progress,
    )
    numbers = chosen_folds(data.folds, only_folds)
    return [replace(job, folder=folder / f"fold-{k}", fold_number=k) for k in numbers], data, config, folder


def train_fold(job: FoldJob, *, max_epochs: int | None = None) -> dict[str, Any] | None:
    """Train one fold to completion, score its rows and the evaluation sets, write the model; the card.

    Its folder is held alone meanwhile. A fold that is done is not trained again, only evaluation sets that
    are new are scored. None where `max_epochs` stopped it before its end.
    """
    with locked(job.folder):
        return _train_fold(job, max_epochs)


def _train_fold(job: FoldJob, max_epochs: int | None) -> dict[str, Any] | None:
    card_file = job.folder / files.CARD
    if card_file.exists():
        done = files.read_card(job.folder)
        if done["run_key"] != job.run_key:
            different = [k for k, v in job.run_key.items() if done["run_key"].get(k) != v]
            raise InvalidRequest(
                f"{job.folder} holds a finished model of another {', '.join(different)}: choose another --out"
            )
        _score_new_sets(job)
        return done
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.device == "cpu":
        keep_pages()
    held_out = job.fold == job.fold_number
    crop = crop_of(job.recipe)
    votes = None if job.votes is None else job.votes[~held_out]
    train = patches_of(job.rows.select(~held_out), job.y[~held_out], crop=crop, votes=votes)
    validation = patches_of(job.rows.select(held_out), job.y[held_out], crop=crop)
    labels = job.labels.fitted(job.y[~held_out])
    network, names = classifier(job.card, job.recipe, weights=job.weights, labels=labels)
    at = fit(
        network,
        job.recipe,
        train,
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
    logits = {OOF: _score(network, job, validation)}
    _write_scores(job, logits | _score_sets(network, job, list(job.tests)))
    _write_rows(job, held_out)
    _write_model(network, names, job)
    files.write_card(job.folder, _about_model(job, network, names, at, held_out))
    return files.read_card(job.folder)


def _about_model(
    job: FoldJob, network: Classifier, names: Sequence[str], at: Progress, held_out: np.ndarray
) -> dict[str, Any]:
    """The model's card."""
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
            "training_rows": int((~held_out).sum()),
            **_counts("training", job.labels, job.y[~held_out]),
            "validation_rows": int(held_out.sum()),
            **_counts("validation", job.labels, job.y[held_out]),
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
        "provenance": _provenance(),
    }


def _counts(what: str, labels: Labels, y: np.ndarray) -> dict[str, Any]:
    """How many rows of each class."""
    if labels.binary:
        return {f"{what}_positive": int(y.sum())}
    if labels.targets:
        return {}
    return {f"{what}_counts": np.bincount(y, minlength=labels.outputs).tolist()}


def collect(
    folder: Path, jobs: Sequence[FoldJob], data: TrainingData, config: ProbeConfig | TargetConfig
) -> ProbeResult:
    """Scores with intervals and every prediction, saved in `folder`.

    Over the folds of these jobs and those that were trained before, so that folds may be run one at a time;
    two runs of different folds write one after the other.
    """
    with locked(folder, wait=True):
        return _collect(folder, jobs, data, config)


def _collect(
    folder: Path, jobs: Sequence[FoldJob], data: TrainingData, config: ProbeConfig | TargetConfig
) -> ProbeResult:
    every = (
        replace(jobs[0], folder=folder / f"fold-{k}", fold_number=k)
        for k in range(1, data.folds.n_splits + 1)
    )
    jobs = [job for job in every if _is_done(job)]
    cards = [files.read_card(job.folder) for job in jobs]
    numbers = [job.fold_number for job in jobs]
    logits: dict[int, dict[str, np.ndarray]] = {}
    labels = jobs[0].labels
    columns = labels.columns if labels.outputs > 1 else labels.columns[0]
    for job in jobs:
        table = pd.read_parquet(job.folder / files.SCORES)
        ids = {OOF: data.study.train.patch_id[data.fold == job.fold_number]}
        ids |= {rows.dataset: rows.patch_id for rows in data.study.tests}
        logits[job.fold_number] = {
            name: table[table["dataset"] == name].set_index("patch_id").loc[list(wanted), columns].to_numpy()
            for name, wanted in ids.items()
        }
    about = {
        "dim": cards[0]["encoder"]["dim"],
        "criterion": float(np.mean([c["validation"][c["recipe"]["monitor"]] for c in cards])),
        "recipe": cards[0]["recipe"],
        "folds": [
            {"fold": k, "validation": c["validation"], "training": c["training"], "files": c["files"]}
            for k, c in zip(numbers, cards, strict=True)
        ],
        "seconds": {"all": sum(c["training"]["seconds"] for c in cards)},
    }
    weighted = jobs[0].recipe.balance != "none"
    result = assemble(data, config, logits, about | {"provenance": _provenance()}, weighted=weighted)
    result.save(folder)
    return result


def _is_done(job: FoldJob) -> bool:
    there = (job.folder / files.CARD).exists()
    return there and files.read_card(job.folder)["run_key"] == job.run_key


def _score(network: Classifier, job: FoldJob, patches: Any) -> np.ndarray:
    return predict_logits(
        network,
        patches,
        batch_size=job.recipe.batch_size * 4,
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
    """Evaluation sets (or rows of them) that a finished model has not scored yet."""
    from .adapted import load_model

    before = pd.read_parquet(job.folder / files.SCORES)
    known = {str(name): set(part["patch_id"]) for name, part in before.groupby("dataset")}
    new = [n for n, m in job.tests.items() if not set(m.table["patch_id"]) <= known.get(n, set())]
    if not new:
        return
    where = {k: v for k, v in job.base_weights.items() if v}
    network, _ = load_model(job.folder, merged=False, trust_code=job.card.kind == "python", **where)
    logits = _score_sets(network.to(job.device), job, new)
    _write_scores(job, logits, before=before[~before["dataset"].isin(new)])


def _write_scores(job: FoldJob, logits: Mapping[str, np.ndarray], before: pd.DataFrame | None = None) -> None:
    ids = {
        OOF: job.rows.table["patch_id"][job.fold == job.fold_number],
        **{n: m.table["patch_id"] for n, m in job.tests.items()},
    }
    parts = [
        pd.DataFrame({"dataset": name, "patch_id": ids[name].to_numpy()}).join(
            pd.DataFrame(values.reshape(len(values), -1), columns=job.labels.columns)
        )
        for name, values in logits.items()
    ]
    bad = {name: int((~np.isfinite(values)).sum()) for name, values in logits.items()}
    if any(bad.values()):
        raise TrainingError(
            f"{job.folder}: scores that are not finite: {bad}; use eval_precision bf16 or fp32"
        )
    table = pd.concat([*([] if before is None else [before]), *parts], ignore_index=True)
    write_atomically(job.folder / files.SCORES, lambda to: table.to_parquet(to, index=False))


def _write_rows(job: FoldJob, held_out: np.ndarray) -> None:
    """Which patches the model was trained on and chosen by: what the leak rule reads (see adapted.py)."""
    table = job.rows.table[["patch_id", "content_hash", "group"]].assign(
        role=np.where(held_out, "validation", "training")
    )
    write_atomically(job.folder / "rows.parquet", lambda to: table.to_parquet(to, index=False))


def _write_model(network: Classifier, names: Sequence[str], job: FoldJob) -> None:
    head = {n: t.detach() for n, t in network.head.state_dict().items()}
    files.save_tensors(job.folder / "head.safetensors", head)
    if job.recipe.method == "full":
        files.save_tensors(job.folder / "model.safetensors", network.inner.state_dict())
        return
    files.save_tensors(job.folder / "adapter_model.safetensors", adapter_state(network.inner))
    text = json.dumps(adapter_config(job.recipe, names), indent=1) + "\n"
    write_text(job.folder / "adapter_config.json", text)


def _provenance() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return provenance("torch", "timm", "peft") | {"gpu": gpu}
