"""The training loop: one network, one fold, one recipe; resumes after any epoch, on a CPU bit by bit."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import InvalidRequest, TrainingError
from ..extract.allocator import keep_pages, peak_memory
from ..terminal import progress_bar
from .augment import augment, d4, draw, read_steps
from .checkpoint import best_file, load_state, load_tensors, save_state, save_tensors, sweep
from .data import Patches
from .lora import adapters, require_gradients
from .objective import Average, loss_of, mixed, rate_scales, row_weights, targets_of
from .recipe import Recipe
from .scores import validation_metrics

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Everything that a resumed run needs besides tensors; plain values, in the state file's header."""

    epoch: int = 0
    steps: int = 0
    patches: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    best_epoch: int = 0
    best_score: float | None = None
    lr_scale: float = 1.0
    plateau_best: float | None = None
    plateau_bad: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    network: nn.Module,
    recipe: Recipe,
    train: Patches,
    validation: Patches,
    *,
    folder: Path,
    run_key: Mapping[str, Any],
    device: str = "cpu",
    workers: int = 0,
    max_epochs: int | None = None,
    progress: bool = True,
) -> Progress:
    """Train on `train`, choose the epoch on `validation`; in the end the network has that epoch's weights.

    Protocol: every epoch draws as many patches as there are, or `epoch_size` (balanced with replacement, or a
    permutation), augments each from a seed of (recipe.seed, epoch, place, patch id), and steps the optimizer;
    then all validation patches are scored without augmentation and the recipe's `monitor` is computed. The
    best epoch's weights are kept; `patience` epochs without a better one, or `epochs` in all, end the run. No
    other data is read.

    network : model.Classifier, already frozen or wrapped as the recipe says
    folder : state.safetensors and best-NNNN.safetensors are kept here, replaced atomically after every epoch;
        a run that finds them continues from there
    run_key : what this run is (recipe, data, encoder); a state of another run is refused
    max_epochs : stop after this many epochs in this call, with the state saved (for tests and short machines)
    Returns the Progress; `finished(recipe, it)` says whether the run is over.
    Raises InvalidRequest (a class is missing, fp16 without a GPU, foreign state), TrainingError (the loss is
    NaN).
    """
    _refuse_impossible(recipe, train, validation, device)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    network.to(device)
    optimizer = _optimizer(network, recipe)
    scaler = torch.amp.GradScaler(enabled=recipe.precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
    average = Average(network, recipe.ema) if recipe.ema else None
    done = load_state(folder, network=network, optimizer=optimizer, run_key=run_key, average=average)
    at = Progress(**done) if done is not None else Progress()
    if at.scaler:
        scaler.load_state_dict(at.scaler)
    bar = progress_bar(total=recipe.epochs, shown=progress, initial=at.epoch, unit="epoch", desc=folder.name)
    stop_at = recipe.epochs if max_epochs is None else min(recipe.epochs, at.epoch + max_epochs)
    with bar:
        while at.epoch < stop_at and not finished(recipe, at):
            started = time.perf_counter()
            loss = _train_epoch(
                network, recipe, train, at, optimizer, scaler, average, device, workers, progress
            )
            at.train_seconds += time.perf_counter() - started
            if average is not None:
                average.swap(network)
            logits = predict_logits(
                network,
                validation,
                batch_size=recipe.batch_size * 4,
                device=device,
                precision=recipe.precision,
                workers=workers,
            )
            metrics = validation_metrics(validation.labels, logits)
            score = -metrics["log_loss"] if recipe.monitor == "log_loss" else metrics[recipe.monitor]
            at.epoch += 1
            lr = optimizer.param_groups[0]["lr"]  # of the epoch's last step
            at.history.append({"epoch": at.epoch, "loss": loss, "lr": lr, **metrics})
            if at.best_score is None or score > at.best_score:
                at.best_score, at.best_epoch = score, at.epoch
                save_tensors(folder / f"best-{at.epoch:04d}.safetensors", trained_state(network, recipe))
            if average is not None:
                average.swap(network)
            if recipe.schedule == "plateau":
                _plateau(recipe, at, score)
            at.scaler = scaler.state_dict()
            at.seconds += time.perf_counter() - started
            save_state(
                folder,
                network=network,
                optimizer=optimizer,
                progress=vars(at),
                run_key=run_key,
                average=average,
            )
            bar.set_postfix(
                loss=f"{loss:.3f}", val=f"{score:.3f}", best=f"{at.best_score:.3f}@{at.best_epoch}"
            )
            bar.update()
    if finished(recipe, at):
        put_trained(network, load_tensors(best_file(folder, at.best_epoch)))
    return at


def finished(recipe: Recipe, at: Progress) -> bool:
    """Whether training is complete: all epochs done, or `patience` of them without a better one."""
    return at.epoch >= recipe.epochs or at.epoch - at.best_epoch >= recipe.patience


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    patches: Patches,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    symmetries: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Logits of the positive class, float64 (n,).

    symmetries : 1, or 8 for the mean logit over the flips and quarter turns of every patch
    """
    if device == "cpu":
        keep_pages()
    network.eval()
    keys = [(0, position, position) for position in range(len(patches))]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    out = []
    with autocast(device, precision):
        for k in range(symmetries):
            loader = _loader(_Pixels(network, patches, (), 0, symmetry=k), batches, workers)
            parts = [
                network(batch.to(device)).float().cpu().double()
                for batch, _ in progress_bar(loader, shown=progress, unit="batch", leave=False)
            ]
            out.append(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64))
    return torch.stack(out).mean(0).numpy()


def autocast(device: str, precision: str) -> Any:
    """The context of a forward pass in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_DTYPES[precision])


def epoch_rows(labels: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """Which rows epoch number `epoch` (from 0) visits, in order: int64 (recipe.epoch_size or n,)."""
    rng = draw("rows", recipe.seed, epoch)
    size = recipe.epoch_size or len(labels)
    if recipe.balance != "sampler":
        return rng.permutation(len(labels))[:size]
    positive = labels == 1
    p = np.where(positive, 1 / positive.sum(), 1 / (~positive).sum())
    return rng.choice(len(labels), size, replace=True, p=p / p.sum())


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The share of the full learning rate in optimizer step number `step` (from 0), plateau aside."""
    warm = recipe.warmup * steps_per_epoch
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule != "cosine":
        return 1.0
    total = recipe.epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))


def trained_state(network: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """The tensors that training changes: adapters and head, or all of them (buffers too) for "full"."""
    if recipe.method == "full":
        return {n: t.detach() for n, t in network.state_dict().items()}
    return {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}


def put_trained(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of trained_state into the network."""
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def training_mode(network: nn.Module, recipe: Recipe) -> None:
    """Dropout on where something trains; frozen layers, batch norm statistics too, stay as they are."""
    network.train(recipe.method == "full")
    for module in adapters(network).values():
        module.train()
    network.get_submodule("head").train()


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: of the GPU, else of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


class _Pixels(Dataset[tuple[Tensor, int]]):
    """(epoch, position, row) -> the prepared patch and its row."""

    def __init__(
        self,
        network: Any,
        patches: Patches,
        steps: Sequence[Mapping[str, Any]],
        seed: int,
        *,
        symmetry: int = 0,
    ) -> None:
        self.prepare, self.patches, self.seed = network.prepare, patches, seed
        self.steps = read_steps(steps)
        self.symmetry = symmetry

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        epoch, position, row = key
        pixels, sized = self.patches.read(row), False
        if self.steps:
            rng = draw("augment", self.seed, epoch, position, self.patches.ids[row])
            pixels, sized = augment(pixels, self.steps, rng)
        if self.symmetry:
            pixels = d4(pixels, self.symmetry)
        return self.prepare(pixels, sized=sized), row


def _loader(data: _Pixels, batches: list[Any], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    # a batch sampler of ready keys: what a worker process does depends on the key alone, so resume stays
    # exact
    return iter(DataLoader(data, batch_sampler=batches, num_workers=workers))


def _train_epoch(
    network: nn.Module,
    recipe: Recipe,
    train: Patches,
    at: Progress,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    average: Average | None,
    device: str,
    workers: int,
    progress: bool,
) -> float:
    """One epoch; the mean loss over its patches."""
    rows = epoch_rows(train.labels, recipe, at.epoch)
    keys = [(at.epoch, position, int(row)) for position, row in enumerate(rows)]
    size, group = recipe.batch_size, recipe.batch_size * recipe.accumulate
    batches = [keys[i : i + size] for i in range(0, len(keys), size)]
    steps_per_epoch = math.ceil(len(keys) / group)
    weights = row_weights(train.labels, train.domains, recipe)
    targets = targets_of(train.labels, train.votes, recipe)
    # dropout is the one random thing left: seeded an epoch, so that no generator state has to be saved
    torch.manual_seed(int(draw("dropout", recipe.seed, at.epoch).integers(2**62)))
    training_mode(network, recipe)
    data = _Pixels(network, train, recipe.augment, recipe.seed)
    total, step_in_epoch = 0.0, 0
    loader = progress_bar(
        _loader(data, batches, workers),
        total=len(batches),
        shown=progress,
        unit="batch",
        leave=False,
        desc=f"epoch {at.epoch + 1}",
    )
    for i, (batch, row) in enumerate(loader):
        y = torch.as_tensor(targets[row.numpy()], device=device)
        w = torch.as_tensor(weights[row.numpy()], device=device)
        in_group = min(group, len(keys) - (i // recipe.accumulate) * group)
        images, y, w = mixed(batch.to(device, non_blocking=True), y, w, recipe, at.epoch, i)
        with autocast(device, recipe.precision):
            logits = network(images)
        loss = (w * loss_of(logits.float(), y, recipe)).sum()
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {at.epoch + 1}, batch {i + 1}; lower lr ({recipe.lr}) "
                "or use precision bf16 or fp32. The state of the last complete epoch is kept"
            )
        scaler.scale(loss / in_group).backward()
        total += loss.item()
        if (i + 1) % recipe.accumulate == 0 or i + 1 == len(batches):
            if at.steps == 0:
                require_gradients(network)
            factor = at.lr_scale * lr_factor(
                recipe, at.epoch * steps_per_epoch + step_in_epoch, steps_per_epoch
            )
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["full_lr"] * factor
            if recipe.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step_in_epoch += 1
            at.steps += 1
            if average is not None:
                average.update(network, at.steps)
    at.patches += len(keys)
    return total / len(keys)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    head = {id(p) for p in network.get_submodule("head").parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    named = dict(network.named_parameters())
    scales = rate_scales(network, recipe)
    groups = [
        {"params": [named[n] for n, one in scales.items() if one == scale], "full_lr": recipe.lr * scale}
        for scale in sorted(set(scales.values()), reverse=True)
    ]
    groups += [
        {"params": [p for p in trained if id(p) in head], "full_lr": recipe.head_lr or recipe.lr},
    ]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _plateau(recipe: Recipe, at: Progress, score: float) -> None:
    """torch's ReduceLROnPlateau(mode="max", threshold=1e-4 relative), as plain numbers in the progress."""
    best = at.plateau_best
    if best is None or score > best + 1e-4 * abs(best):
        at.plateau_best, at.plateau_bad = score, 0
    else:
        at.plateau_bad += 1
    if at.plateau_bad > recipe.plateau_patience:
        at.lr_scale = max(at.lr_scale * recipe.plateau_factor, recipe.min_lr / recipe.lr)
        at.plateau_bad = 0


def _refuse_impossible(recipe: Recipe, train: Patches, validation: Patches, device: str) -> None:
    for what, part in (("training", train), ("validation", validation)):
        if not len(part) or set(np.unique(part.labels)) != {0.0, 1.0}:
            classes = ", ".join(
                f"{k:g}: {n}" for k, n in zip(*np.unique(part.labels, return_counts=True), strict=True)
            )
            raise InvalidRequest(
                f"the {what} rows need both classes, all labelled; there are {len(part)} rows "
                f"({classes or 'none'})"
            )
    if recipe.precision == "fp16" and torch.device(device).type != "cuda":
        raise InvalidRequest(f"precision fp16 trains on a GPU only, not on {device}: use bf16 or fp32")
    shared = set(train.ids) & set(validation.ids)
    if shared:
        raise InvalidRequest(f"{len(shared)} patches are in training and validation, first {min(shared)!r}")
