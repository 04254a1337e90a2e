"""Between probe and LoRA: attention pooling over cached patch tokens, trained without the encoder.

It costs minutes on a CPU. The epoch is chosen as in fine-tuning, by `choose_on`.

    tokens x_1 ... x_T of a patch (store of the policy "patches"), each normalised over its numbers
    head h: weights a_t = softmax_t(q_h . x_t / sqrt(dim)), pooled vector z_h = sum_t a_t x_t
    logit = w . (z_1, ..., z_H) + b           of two classes; else one output a class or a number

2 H dim + 1 numbers are trained, for K outputs (1 + K) H dim + K. With the queries at 0, where they begin, the
z_h are the mean of the tokens.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.manifest import Manifest, as_manifest, as_manifests
from ..errors import InvalidRequest, UnknownEncoder
from ..files import check_folder_writable, locked
from ..probe.features import load, open_bank
from ..probe.results.files import ProbeResult
from ..settings import Settings, not_one_of
from .augment import draw
from .checkpoint import save_tensors
from .data import TrainingData, chosen_folds, config_of, gather_rows, use_of_rows
from .labels import TWO_CLASSES, Labels, labels_of
from .objective import loss_of, targets_of
from .recipe import CHOOSE_ON, MONITORS, Recipe, load_recipe
from .scores import OOF, assemble, monitored, validation_metrics
from .train import Progress, epoch_rows, finished, is_kept


class AttentionSettings(Settings):
    """How the pooling is trained; the meaning of each is that of the recipe's field of the same name."""

    heads: int = 4
    lr: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.1
    epochs: int = 40
    patience: int = 8
    batch_size: int = 64
    monitor: str = "auroc"
    choose_on: str = "fold"
    seed: int = 0

    def faults(self) -> Iterable[str]:
        for name in ("heads", "epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name} has to be at least 1, not {getattr(self, name)}"
        if not self.lr > 0:
            yield f"lr has to be more than 0, not {self.lr}"
        if self.weight_decay < 0:
            yield f"weight_decay must not be negative, as {self.weight_decay} is"
        if not 0 <= self.dropout < 1:
            yield f"dropout has to be in [0, 1), not {self.dropout}"
        if self.monitor not in MONITORS:
            yield not_one_of("monitor", self.monitor, MONITORS)
        if self.choose_on not in CHOOSE_ON:
            yield not_one_of("choose_on", self.choose_on, CHOOSE_ON)

    def recipe(self, labels: Labels) -> Recipe:
        """Of what fine-tuning shares with it, as it fits the labels. Raises InvalidRequest."""
        given: dict[str, Any] = {"monitor": self.monitor} if "monitor" in self.model_fields_set else {}
        shared = {name: getattr(self, name) for name in ("epochs", "patience", "choose_on", "seed")}
        recipe = Recipe(name="attention", schedule="constant", warmup=0.0, **shared, **given)
        return load_recipe(recipe, of=labels)


class AttentionProbe(nn.Module):
    """See the module's text. heads : H; dim : of a token."""

    def __init__(
        self, dim: int, *, heads: int, dropout: float, seed: int, labels: Labels = TWO_CLASSES
    ) -> None:
        super().__init__()
        self.labels = labels
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.query = nn.Parameter(torch.zeros(heads, dim))
        self.dropout = nn.Dropout(dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(heads * dim, labels.outputs)  # random: heads that are equal would stay so

    def forward(self, tokens: Tensor) -> Tensor:
        """float (b, T, dim) -> logits (b,) of two classes, else (b, outputs)."""
        outputs = self.head(self.dropout(self.pool(tokens)[0]))
        return outputs.squeeze(-1) if self.labels.binary else outputs

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors (b, H dim), attention (b, H, T), rows of which sum to 1)."""
        x = self.norm(tokens.float())
        attention = torch.softmax(self.query @ x.transpose(1, 2) / x.shape[-1] ** 0.5, dim=-1)
        return (attention @ x).flatten(1), attention


def fit_attention(
    tokens: np.ndarray,
    y: np.ndarray,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    settings: AttentionSettings | None = None,
    labels: Labels = TWO_CLASSES,
) -> tuple[AttentionProbe, list[dict[str, float]]]:
    """Train on some rows, choose the epoch on others.

    tokens : float (n, T, dim), float16 is enough; y : int (n,), 0 or 1, or codes of `labels`, or their
        numbers; train, validation : bool (n,)
    Every epoch draws as many training rows as there are, classes alike, with replacement; AdamW.
    Returns the model of the best epoch by `monitor` (with `choose_on = "none"` of the last), and every
    epoch's loss and validation metrics.
    Raises InvalidRequest where a class is missing or a row is on both sides.
    """
    settings = settings or AttentionSettings()
    if tokens.ndim != 3 or len(tokens) != len(y):
        raise InvalidRequest(f"tokens must be (n, tokens, dim) for {len(y)} labels, not {tokens.shape}")
    for what, mask in (("training", train), ("validation", validation)):
        labels.require(y[mask], f"the {what} rows")
    if (train & validation).any():
        raise InvalidRequest(f"{int((train & validation).sum())} rows are in training and validation")
    rows, held_out = np.flatnonzero(train), np.flatnonzero(validation)
    labels = labels.fitted(y[rows])
    recipe = settings.recipe(labels)
    model = AttentionProbe(
        tokens.shape[2], heads=settings.heads, dropout=settings.dropout, seed=settings.seed, labels=labels
    )
    optimizer = torch.optim.AdamW(  # no decay of the bias, as in `objective.decays`
        [
            {"params": [model.query, model.head.weight], "weight_decay": settings.weight_decay},
            {"params": [model.head.bias], "weight_decay": 0.0},
        ],
        lr=settings.lr,
    )
    at, best = Progress(), model.state_dict()
    while not finished(recipe, at):
        loss = _train_epoch(model, optimizer, tokens, y, rows, settings=settings, recipe=recipe, at=at)
        metrics = validation_metrics(y[held_out], attention_logits(model, tokens[held_out]), labels)
        score = monitored(metrics, recipe.monitor)
        at.epoch += 1
        at.history.append({"epoch": at.epoch, "loss": loss, **metrics})
        if is_kept(recipe, at, score):
            best = {n: t.clone() for n, t in model.state_dict().items()}
            at.best_score, at.best_epoch = score, at.epoch
    model.load_state_dict(best)
    return model.eval(), at.history


def _train_epoch(
    model: AttentionProbe,
    optimizer: torch.optim.Optimizer,
    tokens: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    *,
    settings: AttentionSettings,
    recipe: Recipe,
    at: Progress,
) -> float:
    """One epoch over `rows`; the mean loss."""
    targets, codes = targets_of(y[rows], None, recipe, model.labels), model.labels.code(y[rows])
    torch.manual_seed(int(draw("attention", settings.seed, at.epoch).integers(2**62)))
    model.train()
    drawn, total = epoch_rows(codes, recipe, at.epoch), 0.0
    for start in range(0, len(drawn), settings.batch_size):
        some = drawn[start : start + settings.batch_size]
        outputs = model(torch.from_numpy(tokens[rows[some]]))
        loss = loss_of(outputs, torch.from_numpy(targets[some]), recipe, model.labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(some)
    return total / len(drawn)


@torch.no_grad()
def attention_logits(model: AttentionProbe, tokens: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Logits, float64 (n,), or (n, outputs), numbers in their units, of tokens (n, T, dim)."""
    model.eval()
    parts = [
        model(torch.from_numpy(tokens[i : i + batch_size])).double().numpy()
        for i in range(0, len(tokens), batch_size)
    ]
    if not parts:
        return np.zeros(0 if model.labels.binary else (0, model.labels.outputs))
    return model.labels.in_units(np.concatenate(parts))


def run_attention(
    *,
    train: Manifest | str | os.PathLike[str],
    tests: Sequence[Manifest | str | os.PathLike[str]] = (),
    encoder: str,
    bank: str | os.PathLike[str],
    view: str = "full",
    precision: str | None = None,
    dtype: str | None = None,
    token_dim: int | None = None,
    folds: str | int = "balanced",
    only_folds: Sequence[int] | None = None,
    out: str | os.PathLike[str] | None = None,
    bootstrap: int = 2000,
    positive: str | None = None,
    one_vs_rest: str | None = None,
    near_duplicates: str = "images",
    allow_leaks: Sequence[str] = (),
    settings: AttentionSettings | Mapping[str, Any] | None = None,
) -> ProbeResult:
    """The attention-pooled probe on every fold, from a bank's store of the token policy "patches".

    Fitted on, chosen on, scored : as in `run_finetune`; the epoch on fold k, on an inner fold of the training
    rows or not at all, as `choose_on` of the settings says.

    precision, dtype : of the store to read, where the bank has several
    token_dim : width of one token; None: of the encoder's card
    Raises StoreNotFound, RowsMissing (the message has the command that makes the tokens), InvalidRequest,
    ProbeError.
    """
    started = time.perf_counter()
    train, tests = as_manifest(train), as_manifests("tests", tests)
    if out is not None:
        check_folder_writable(out)
    if not isinstance(settings, AttentionSettings):
        settings = AttentionSettings.read(settings or {}, where="attention settings")
    classes = {"positive": positive, "one_vs_rest": one_vs_rest}
    labels = labels_of(train.header, **classes)
    config = config_of(
        labels,
        features=(f"{encoder}+attention/{view}/patches",),
        folds=folds,
        seed=settings.seed,
        bootstrap=bootstrap,
        near_duplicates=near_duplicates,
        allow_leaks=tuple(allow_leaks),
        **classes,
    )
    opened = open_bank(os.fspath(bank), precision=precision, dtype=dtype, manifests=[train, *tests])
    tokens = _TokensOf(opened, encoder, view, token_dim or _width(encoder))
    folder = Path(os.fspath(bank))
    data = gather_rows(train, tests, config=config, remember=folder if folder.is_dir() else None)
    numbers = chosen_folds(data.folds, only_folds)
    models, histories, logits = _fit_folds(data, tokens, numbers, settings, labels)
    about = _about(histories, settings, settings.recipe(labels), tokens.dim)
    about |= {"seconds": {"all": time.perf_counter() - started}}
    result = assemble(data, config, logits, about, choose_on=settings.choose_on)
    if out is not None:
        _save(Path(out) / f"{encoder}+attention", models, result)
    return result


def _about(
    histories: Mapping[int, Sequence[Mapping[str, float]]],
    settings: AttentionSettings,
    recipe: Recipe,
    token_dim: int,
) -> dict[str, Any]:
    """What the results say of the models."""
    return {
        "dim": settings.heads * token_dim,
        "criterion": float(np.mean([_kept_score(history, recipe) for history in histories.values()])),
        "recipe": {"method": "attention", **settings.model_dump()},
        "folds": [{"fold": k, "history": history} for k, history in histories.items()],
    }


@dataclass(frozen=True)
class _TokensOf:
    """The tokens of a manifest's rows, from a bank; dim : width of one."""

    bank: Any
    encoder: str
    view: str
    dim: int

    def __call__(self, manifest: Manifest) -> np.ndarray:
        """float16 (n, T, dim)"""
        where = {"encoder": self.encoder, "bank": self.bank, "view": self.view}
        flat = load(manifest, **where, tokens="patches", dtype="float16")
        if flat.shape[1] % self.dim:
            raise InvalidRequest(
                f"vectors of {flat.shape[1]} numbers are not a whole number of tokens of {self.dim}"
            )
        return flat.reshape(len(flat), -1, self.dim)


def _width(encoder: str) -> int:
    """Of a token of the encoder, by its card."""
    from ..extract.registry import load_card

    try:
        return load_card(encoder).dim
    except UnknownEncoder as error:
        error.add_note("The bank may know it all the same: say how wide a token is, --token-dim 384")
        raise


def _fit_folds(
    data: TrainingData,
    tokens_of: _TokensOf,
    numbers: Sequence[int],
    settings: AttentionSettings,
    labels: Labels,
) -> tuple[dict[int, AttentionProbe], dict[int, list[dict[str, float]]], dict[int, dict[str, np.ndarray]]]:
    """Model, epochs and logits (as `assemble` takes them) of each fold."""
    study, recipe = data.study, settings.recipe(labels)
    uses = {k: use_of_rows(data, k, recipe, labels) for k in numbers}
    tokens = tokens_of(study.train_manifest)
    models, histories, logits = {}, {}, {}
    for k, use in uses.items():
        chosen = {"train": use == "training", "validation": use == "validation"}
        models[k], histories[k] = fit_attention(
            tokens, study.train.y, **chosen, settings=settings, labels=labels
        )
        logits[k] = {OOF: attention_logits(models[k], tokens[data.fold == k])}
    for rows, manifest in zip(study.tests, study.test_manifests, strict=True):
        set_tokens = tokens_of(manifest)
        for k in numbers:
            logits[k][rows.dataset] = attention_logits(models[k], set_tokens)
    return models, histories, logits


def _kept_score(history: Sequence[Mapping[str, float]], recipe: Recipe) -> float:
    """The monitor of the epoch whose weights were kept."""
    scores = [monitored(epoch, recipe.monitor) for epoch in history]
    return scores[-1] if recipe.choose_on == "none" else max(scores)


def _save(folder: Path, models: Mapping[int, AttentionProbe], result: ProbeResult) -> None:
    with locked(folder, wait=True):
        for k, model in models.items():
            about = {"labels": json.dumps(model.labels.to_card())}  # of numbers the units
            save_tensors(folder / f"fold-{k}.safetensors", model.state_dict(), about)
        result.save(folder)
