"""Fine-tune one encoder, or those of a plan, on every fold; then one table of scores."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..datasets.manifest import Manifest, as_manifest, as_manifests, load_manifest
from ..errors import InvalidRequest
from ..files import locked
from ..probe.results.files import ProbeResult
from .checkpoint import CARD, SCORES, differences, read_card, sweep
from .data import TrainingData
from .engines import run_all
from .fold import train_fold, training_provenance
from .jobs import FoldJob, Prepared, Request, prepare
from .plan import FinetunePlan, load_plan, names_of_recipes
from .recipe import Recipe
from .scores import OOF, assemble


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
    """Fine-tune one encoder, one model a fold. `jobs.Request` describes the arguments.

    Fitted on : for fold k, the labelled rows of `train` (split "train") that are not in fold k.
    Chosen on : the rows of fold k: after every epoch the recipe's `monitor`, which keeps the best epoch,
        stops the run and, with "plateau", sets the learning rate. So fold k's out-of-fold score is of rows
        that chose the epoch (an optimism that a probe's nested choice has not; the test sets have none; a
        note of the result says so). With `choose_on = "inner"` an inner fold of the training rows chooses,
        and is not trained on; with "none" nothing is chosen. Neither has that optimism.
    Refit : none. The ensemble is the mean probability of the fold models, of numbers their mean.
    Scored : fold k's rows by model k ("oof"); the other splits of `train` and all labelled rows of `tests`,
        after training, by every fold's model ("fold 1", ...) and by the ensemble. Threshold, temperature and
        Platt's scaling of a fold come from the other folds' out-of-fold scores; of the ensemble from all of
        them.

    engine : "local" (one after the other) or "ray" (independent tasks, one GPU each where there are any)
    Raises InvalidRequest, UnknownEncoder, EncoderError, ProbeError, ... before any training; TrainingError in
    it.
    """
    request = Request(
        train=as_manifest(train),
        encoder=encoder,
        out=out,
        tests=as_manifests("tests", tests),
        recipe=recipe,
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
        overrides=overrides,
    )
    prepared = prepare(request)
    run_all(train_fold, prepared.jobs, engine=engine)
    return collect(prepared)


def run_plan(plan: str | Path | FinetunePlan, *, engine: str = "local", **options: Any) -> list[ProbeResult]:
    """Train the encoders that a plan has chosen, all folds of all of them as independent jobs.

    options : as `run_finetune` takes them, the same for all, over what the plan's entries say. Returns one
        result an entry, in the plan's order.
    Raises InvalidRequest if the plan chooses none.
    """
    chosen = plan if isinstance(plan, FinetunePlan) else load_plan(plan)
    if not chosen.chosen:
        raise InvalidRequest("the plan selects no encoder: set train = true for those to train")
    train = load_manifest(chosen.train)
    tests = [load_manifest(one) for one in chosen.tests]
    shared = {"folds": chosen.folds, "positive": chosen.positive or None, **options}
    names = names_of_recipes([(one.encoder, one.recipe, one.system) for one in chosen.chosen])
    prepared = []
    for entry, own_name in zip(chosen.chosen, names, strict=True):
        changes = {**({"name": own_name} if own_name else {}), **entry.changes, **shared}
        request = Request.of(train=train, tests=tests, encoder=entry.encoder, recipe=entry.recipe, **changes)
        prepared.append(prepare(request))
    run_all(train_fold, [job for one in prepared for job in one.jobs], engine=engine)
    return [collect(one) for one in prepared]


def collect(prepared: Prepared) -> ProbeResult:
    """Scores with intervals and every prediction, saved in the folder.

    Over the folds of these jobs and those that were trained before, so that folds may be run one at a time;
    two runs of different folds write one after the other.
    """
    with locked(prepared.folder, wait=True):
        return _collect(prepared)


def _collect(prepared: Prepared) -> ProbeResult:
    sweep(prepared.folder)
    data, first = prepared.data, prepared.jobs[0]
    every = (first.scored_by(fold) for fold in range(1, data.folds.n_splits + 1))
    jobs = [job for job in every if _is_done(job)]
    cards = [read_card(job.folder) for job in jobs]
    logits = {job.fold_number: _logits(job, data) for job in jobs}
    criterion = [card["validation"][card["recipe"]["monitor"]] for card in cards]
    about = {
        "dim": cards[0]["encoder"]["dim"],
        "criterion": float(np.mean(criterion)),
        "recipe": cards[0]["recipe"],
        "folds": [
            {"fold": k, **{part: card[part] for part in ("validation", "training", "files")}}
            for k, card in zip(logits, cards, strict=True)
        ],
        "seconds": {"all": sum(card["training"]["seconds"] for card in cards)},
        "provenance": training_provenance(),
    }
    recipe = first.recipe
    how = {"choose_on": recipe.choose_on, "weighted": recipe.balance != "none"}
    result = assemble(data, prepared.config, logits, about, **how)
    result.save(prepared.folder)
    return result


def _logits(job: FoldJob, data: TrainingData) -> dict[str, np.ndarray]:
    """Scores of a trained fold: of its own rows, and of each evaluation set, in the rows' order."""
    table = pd.read_parquet(job.folder / SCORES)
    ids = {OOF: data.study.train.patch_id[data.fold == job.fold_number]}
    ids |= {rows.dataset: rows.patch_id for rows in data.study.tests}
    columns = job.labels.columns[0] if job.labels.binary else job.labels.columns
    return {
        name: table[table["dataset"] == name].set_index("patch_id").loc[list(wanted), columns].to_numpy()
        for name, wanted in ids.items()
    }


def _is_done(job: FoldJob) -> bool:
    if not (job.folder / CARD).exists():
        return False
    return not differences(read_card(job.folder)["run_key"], job.run_key)
