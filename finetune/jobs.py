"""What is asked for, checked, and made into jobs: one a fold, independent of each other."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.identity import safe_name
from ..datasets.manifest import Manifest
from ..errors import InvalidRequest
from ..extract.cards import Card
from ..extract.devices import resolve_devices
from ..extract.weights import Weights, locate
from ..files import check_folder_writable
from ..probe.config import ProbeConfig
from ..probe.regression import TargetConfig
from .data import TrainingData, chosen_folds, config_of, gather_rows, use_of_rows
from .labels import TWO_CLASSES, Labels, labels_of
from .model import base_card, crop_of, policy_of
from .objective import row_weights, targets_of
from .recipe import Recipe, load_recipe


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `run.run_finetune` takes.

    encoder : what `extract.registry.load_card` takes
    recipe : name, TOML file or Recipe, of which `overrides` change single values. What is learned is what the
        header of `train` says: two classes, several (cross-entropy), grades, or numbers (squared error, each
        standardised by the rows that train the fold's model, as its card keeps). A recipe that does not fit
        them is refused; see `recipe.load_recipe` for what shipped ones leave to the labels
    out : OUT/<encoder>+<recipe>/fold-K has the model; the folder above has predictions.parquet, results.json
        and results.csv in the format of `run_probe`. The same call continues where it was interrupted
    folds, positive, one_vs_rest, bootstrap, allow_leaks : as in `run_probe`; only_folds : numbers from 1
    near_duplicates : "images" (pairs that show nearly the same are reported), "none", or a file of pairs of
        `datasets check --near --pairs`, which are refused
    remember : folder whose near/ remembers images that were compared: a bank that probes were run on, or OUT
    trust_code : allow the Python code that a card of kind "python" names
    threads : torch's on a CPU (0: its default); workers : processes that read and augment, a fold
    """

    train: Manifest
    encoder: str
    out: str | os.PathLike[str]
    tests: Sequence[Manifest] = ()
    recipe: str | Path | Recipe = "lora"
    folds: str | int = "balanced"
    only_folds: Sequence[int] | None = None
    device: str = "auto"
    checkpoint: str | Path | None = None
    weights_dir: str | Path | None = None
    threads: int = 0
    workers: int = 0
    bootstrap: int = 2000
    positive: str | None = None
    one_vs_rest: str | None = None
    near_duplicates: str = "images"
    remember: str | os.PathLike[str] | None = None
    allow_leaks: Sequence[str] = ()
    trust_code: bool = False
    progress: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **options: Any) -> "Request":
        """From `run_finetune`'s arguments; what is none of its own overrides the recipe."""
        own = {one.name for one in fields(cls)} - {"overrides"}
        overrides = {name: value for name, value in options.items() if name not in own}
        return cls(**{name: options[name] for name in own & options.keys()}, overrides=overrides)


@dataclass(frozen=True)
class Prepared:
    """Jobs of one encoder, and what their scores are put together with."""

    jobs: list["FoldJob"]
    data: TrainingData
    config: ProbeConfig | TargetConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Everything that one fold's training needs; pickles, so that it can run on another machine.

    rows : the labelled training set; y : int (n,), or numbers float64 (n, T); fold : int (n,)
    use : of each row in this fold, see `data.use_of_rows`
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
    use: np.ndarray
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
        key = {
            "encoder": self.card.id,
            "weights": self.weights.identity if self.weights else f"random, seed {self.recipe.seed}",
            "recipe": self.recipe.digest,
            "data": digest.hexdigest(),
            "fold": self.fold_number,
        }
        if self.recipe.labels == "votes" and self.votes is not None:
            key["votes"] = hashlib.blake2b(self.votes.tobytes(), digest_size=16).hexdigest()
        if self.recipe.balance_domains:
            domains = "\0".join(self.rows.table["domain"])
            key["domains"] = hashlib.blake2b(domains.encode(), digest_size=16).hexdigest()
        return key

    def scored_by(self, fold: int) -> "FoldJob":
        """The same of another fold, as far as its results are read."""
        return replace(self, folder=self.folder.with_name(f"fold-{fold}"), fold_number=fold)


def prepare(request: Request) -> Prepared:
    """The jobs of a request, one a fold, after all of its checks. Raises as `run.run_finetune` does."""
    header = request.train.header
    labels = labels_of(header, positive=request.positive, one_vs_rest=request.one_vs_rest)
    recipe = load_recipe(request.recipe, encoder=request.encoder, of=labels, **request.overrides)
    card = base_card(request.encoder, recipe, trust_code=request.trust_code)
    name, policy = f"{card.id}+{recipe.name}", policy_of(card, recipe)
    device = str(resolve_devices(request.device)[0])
    crop_of(recipe)
    config = config_of(
        labels,
        features=(f"{name}/{recipe.view}/{policy}",),
        folds=request.folds,
        seed=recipe.seed,
        bootstrap=request.bootstrap,
        positive=request.positive,
        one_vs_rest=request.one_vs_rest,
        near_duplicates=request.near_duplicates,
        allow_leaks=tuple(request.allow_leaks),
    )
    weights, where = _weights(request, card, recipe)
    remember = Path(request.remember or request.out)
    data = gather_rows(
        request.train, request.tests, config=config, remember=remember, progress=request.progress
    )
    numbers = chosen_folds(data.folds, request.only_folds)
    use = {k: use_of_rows(data, k, recipe, labels) for k in numbers}
    study = data.study
    votes = None if labels.targets else study.train.vote_share()
    _refuse_rows(data, use, votes, recipe, labels)
    folder = Path(request.out) / safe_name(name)
    check_folder_writable(folder)
    positive = (config.target or header.positive) if isinstance(config, ProbeConfig) else ""
    first = FoldJob(
        folder=folder / f"fold-{numbers[0]}",
        card=card,
        spec=request.encoder,
        weights=weights,
        base_weights=where,
        recipe=recipe,
        rows=study.train_manifest,
        y=study.train.y,
        labels=labels,
        votes=votes,
        fold=data.fold,
        fold_number=numbers[0],
        use=use[numbers[0]],
        positive=positive if labels.binary else "",
        folds_name=data.folds.name,
        tests={rows.dataset: one for rows, one in zip(study.tests, study.test_manifests, strict=True)},
        test_labels={rows.dataset: rows.y for rows in study.tests},
        device=device,
        threads=request.threads,
        workers=request.workers,
        progress=request.progress,
    )
    jobs = [replace(first.scored_by(k), use=use[k]) for k in numbers]
    return Prepared(jobs, data, config, folder)


def _weights(request: Request, card: Card, recipe: Recipe) -> tuple[Weights | None, dict[str, str | None]]:
    """The encoder's own, None for random ones; and where they were looked for, as `locate` takes it."""
    file, folder = request.checkpoint, request.weights_dir
    where = {
        "checkpoint": str(Path(file).absolute()) if file else None,
        "weights_dir": str(Path(folder).absolute()) if folder else None,
    }
    if not recipe.random_weights:
        return locate(card, checkpoint=file, weights_dir=folder), where
    if file or folder:
        raise InvalidRequest(f"recipe {recipe.name!r} starts from random weights: omit the checkpoint")
    return None, where


def _refuse_rows(
    data: TrainingData,
    use: Mapping[int, np.ndarray],
    votes: np.ndarray | None,
    recipe: Recipe,
    labels: Labels,
) -> None:
    """Raises InvalidRequest where a fold cannot be trained, before the first one is."""
    y, domains = data.study.train.y, data.study.train_manifest.table["domain"]
    for k, of_rows in use.items():
        for what in ("training", "validation"):
            labels.require(y[of_rows == what], f"fold {k}: the {what} rows")
        training = of_rows == "training"
        targets_of(
            y[training], None if votes is None else votes[training], recipe, labels.fitted(y[training])
        )
        row_weights(y[training], domains[training].tolist(), recipe, labels)
