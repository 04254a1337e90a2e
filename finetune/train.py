"""The training loop: one network, one fold, one recipe; resumes after any epoch, on a CPU bit by bit."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import InvalidRequest, TrainingError
from ..extract.allocator import keep_pages, peak_memory
from ..extract.devices import compute_threads, single_threaded
from ..extract.run import BATCH_SIZE_CPU
from ..terminal import progress_bar
from .augment import augment, d4, draw, read_steps
from .checkpoint import best_file, load_state, load_tensors, save_state, save_tensors, sweep
from .data import Patches
from .labels import Labels, class_weights
from .lora import adapters, require_gradients
from .model import Classifier
from .objective import Average, loss_of, mixed, parameter_groups, row_weights, targets_of
from .recipe import Recipe
from .scores import monitored, validation_metrics

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
    network: Classifier,
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
    """Train on `train`, choose the epoch on `validation`; afterwards the network has that epoch's weights.

    Protocol: every epoch draws as many patches as there are, or `epoch_size` (balanced with replacement, or a
    permutation), augments each from a seed of (recipe.seed, epoch, place, patch id), and steps the optimizer;
    then all validation patches are scored without augmentation or symmetries and the recipe's `monitor` is
    computed. The best epoch's weights are kept; `patience` epochs without a better one, or `epochs` in all,
    end the run. With `choose_on = "none"` all epochs are trained and the last weights are kept. No other data
    is read.

    network : already frozen or wrapped as the recipe says; its labels are what it learns, with the units of
        the training rows where these are numbers
    folder : state.safetensors and best-NNNN.safetensors are kept here, replaced atomically after every epoch;
        a run that finds them continues from there
    run_key : what this run is (recipe, data, encoder); a state of another run is refused
    max_epochs : stop after this many epochs in this call, with the state saved (for tests and short machines)
    Returns the Progress; `finished(recipe, it)` says whether the run is over.
    Raises InvalidRequest (a class is missing, fp16 without a GPU, foreign state), TrainingError (the loss is
    NaN).
    """
    _refuse_impossible(recipe, train, validation, device, network.labels)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    run = _Run(network, recipe, folder, run_key, device=device, workers=workers, progress=progress)
    at = run.at
    bar = progress_bar(total=recipe.epochs, shown=progress, initial=at.epoch, unit="epoch", desc=folder.name)
    stop_at = recipe.epochs if max_epochs is None else min(recipe.epochs, at.epoch + max_epochs)
    with bar:
        while at.epoch < stop_at and not finished(recipe, at):
            started = time.perf_counter()
            loss = run.train(train)
            at.train_seconds += time.perf_counter() - started
            score = run.choose(validation, loss)
            at.seconds += time.perf_counter() - started
            run.save()
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


def is_kept(recipe: Recipe, at: Progress, score: float) -> bool:
    """Whether the weights of the epoch that scored this are kept instead of those kept before."""
    return recipe.choose_on == "none" or at.best_score is None or score > at.best_score


@torch.no_grad()
def predict_logits(
    network: Classifier,
    patches: Patches,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    symmetries: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Logits of the positive class, float64 (n,); of K > 2 classes logits, (n, K); numbers in their units.

    symmetries : 1, or 8 for the mean of the logits (of numbers, of the numbers) over the flips and quarter
        turns of every patch
    """
    if device == "cpu":
        keep_pages()
    network.eval()
    if not len(patches):
        return np.zeros((0,) if network.labels.binary else (0, network.labels.outputs))
    keys = [(0, position, position) for position in range(len(patches))]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    out = []
    for k in range(symmetries):
        data = _Pixels(network, patches, (), 0, symmetry=k)
        bar = progress_bar(total=len(batches), shown=progress, unit="batch", leave=False)
        with bar, _forwards(network, data, batches, device, precision, workers) as parts:
            each = []
            for part in parts:
                each.append(part)
                bar.update()
        out.append(torch.cat(each))
    return network.labels.in_units(torch.stack(out).mean(0).numpy())


def scoring_batch(recipe: Recipe, device: str) -> int:
    """Patches in a forward pass without gradients: on a CPU as in extract, else four times the training's."""
    return BATCH_SIZE_CPU if device == "cpu" else recipe.batch_size * 4


@contextmanager
def _forwards(
    network: Classifier,
    data: "_Pixels",
    batches: list[Any],
    device: str,
    precision: str,
    workers: int,
) -> Iterator[Iterator[Tensor]]:
    """The outputs of each batch, float64, in order.

    On a CPU, without processes that read, every thread reads and computes batches of its own, as in extract
    (`devices.compute_threads`); what is computed is the same.
    """

    def outputs(images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, precision):  # both are of the thread
            return network(images.to(device)).float().cpu().double()

    def read(keys: list[tuple[int, int, int]]) -> Tensor:
        return torch.stack([data[key][0] for key in keys])

    if device != "cpu" or workers:
        yield (outputs(images) for images, _ in _loader(data, batches, workers))
        return
    cpu = [torch.device("cpu")]
    with ThreadPoolExecutor(len(compute_threads(cpu))) as pool, single_threaded(cpu):
        yield pool.map(lambda keys: outputs(read(keys)), batches)


def autocast(device: str, precision: str) -> Any:
    """The context of a forward pass in this precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_DTYPES[precision])


def epoch_rows(codes: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """Which rows epoch number `epoch` (from 0) visits, in order: int64 (recipe.epoch_size or n,).

    codes : the class of each row, (n,)
    """
    rng = draw("rows", recipe.seed, epoch)
    size = recipe.epoch_size or len(codes)
    if recipe.balance != "sampler":
        return rng.permutation(len(codes))[:size]
    p = class_weights(codes)
    return rng.choice(len(codes), size, replace=True, p=p / p.sum())


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


class _Run:
    """A run at work: what `fit` trains and keeps, restored from its folder.

    at : where it is
    """

    def __init__(
        self,
        network: Classifier,
        recipe: Recipe,
        folder: Path,
        run_key: Mapping[str, Any],
        *,
        device: str,
        workers: int,
        progress: bool,
    ) -> None:
        self.network, self.recipe, self.folder, self.run_key = network.to(device), recipe, folder, run_key
        self.device, self.workers, self.progress = device, workers, progress
        self.optimizer = _optimizer(network, recipe)
        self.scaler = torch.amp.GradScaler(enabled=recipe.precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
        self.average = Average(network, recipe.ema) if recipe.ema else None
        kept = {"network": network, "optimizer": self.optimizer, "average": self.average}
        done = load_state(folder, run_key=run_key, **kept)
        self.at = Progress(**done) if done is not None else Progress()
        if self.at.scaler:
            self.scaler.load_state_dict(self.at.scaler)

    def train(self, train: Patches) -> float:
        """One epoch; the mean loss over its patches."""
        recipe, at, network = self.recipe, self.at, self.network
        rows = epoch_rows(network.labels.code(train.labels), recipe, at.epoch)
        keys = [(at.epoch, position, int(row)) for position, row in enumerate(rows)]
        size, group = recipe.batch_size, recipe.batch_size * recipe.accumulate
        batches = [keys[i : i + size] for i in range(0, len(keys), size)]
        weights = row_weights(train.labels, train.domains, recipe, network.labels)
        targets = targets_of(train.labels, train.votes, recipe, network.labels)
        # dropout is the one random thing left: seeded an epoch, so that no generator state has to be saved
        torch.manual_seed(int(draw("dropout", recipe.seed, at.epoch).integers(2**62)))
        training_mode(network, recipe)
        loader = progress_bar(
            _loader(_Pixels(network, train, recipe.augment, recipe.seed), batches, self.workers),
            total=len(batches),
            shown=self.progress,
            unit="batch",
            leave=False,
            desc=f"epoch {at.epoch + 1}",
        )
        total, steps_per_epoch = 0.0, math.ceil(len(keys) / group)
        for i, (batch, row) in enumerate(loader):
            step = i // recipe.accumulate
            in_group = min(group, len(keys) - step * group)
            y, w = (torch.as_tensor(of[row.numpy()], device=self.device) for of in (targets, weights))
            images = batch.to(self.device, non_blocking=True)
            total += self._pass(images, y, w, number=i, in_group=in_group)
            if (i + 1) % recipe.accumulate == 0 or i + 1 == len(batches):
                self._step(lr_factor(recipe, at.epoch * steps_per_epoch + step, steps_per_epoch))
        at.patches += len(keys)
        return total / len(keys)

    def _pass(self, images: Tensor, targets: Tensor, weights: Tensor, *, number: int, in_group: int) -> float:
        """Forwards and backwards of a batch, from 0; the sum of the losses of its rows."""
        recipe, epoch = self.recipe, self.at.epoch
        images, targets, weights = mixed(images, targets, weights, recipe, epoch, number)
        with autocast(self.device, recipe.precision):
            outputs = self.network(images)
        loss = (weights * loss_of(outputs.float(), targets, recipe, self.network.labels)).sum()
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {epoch + 1}, batch {number + 1}; lower lr ({recipe.lr}) "
                "or use precision bf16 or fp32. The state of the last complete epoch is kept"
            )
        self.scaler.scale(loss / in_group).backward()
        return loss.item()

    def _step(self, factor: float) -> None:
        """The optimizer's, at this share of the learning rates."""
        recipe, at, network, optimizer = self.recipe, self.at, self.network, self.optimizer
        if at.steps == 0:
            require_gradients(network, recipe)
        for parameters in optimizer.param_groups:
            parameters["lr"] = parameters["full_lr"] * (at.lr_scale * factor)
        if recipe.clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], recipe.clip)
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() < scale:  # of fp16: gradients overflowed, and no weight was changed
            return
        at.steps += 1
        if self.average is not None:
            self.average.update(network, at.steps)

    def choose(self, validation: Patches, loss: float) -> float:
        """Score the epoch and keep its weights if they are the best; the monitor, higher is better."""
        recipe, at, network = self.recipe, self.at, self.network
        if self.average is not None:
            self.average.swap(network)
        values = predict_logits(
            network,
            validation,
            batch_size=scoring_batch(recipe, self.device),
            device=self.device,
            precision=recipe.precision,
            workers=self.workers,
        )
        metrics = validation_metrics(validation.labels, values, network.labels)
        score = monitored(metrics, recipe.monitor)
        at.epoch += 1
        lr = self.optimizer.param_groups[0]["lr"]  # of the epoch's last step
        at.history.append({"epoch": at.epoch, "loss": loss, "lr": lr, **metrics})
        if is_kept(recipe, at, score):
            at.best_score, at.best_epoch = score, at.epoch
            save_tensors(best_file(self.folder, at.epoch), trained_state(network, recipe))
        if self.average is not None:
            self.average.swap(network)
        if recipe.schedule == "plateau":
            _plateau(recipe, at, score)
        at.scaler = self.scaler.state_dict()
        return score

    def save(self) -> None:
        """The state, from which a killed run goes on."""
        save_state(
            self.folder,
            network=self.network,
            optimizer=self.optimizer,
            progress=vars(self.at),
            run_key=self.run_key,
            average=self.average,
        )


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameter_groups(network, recipe), lr=recipe.lr)


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


def _refuse_impossible(
    recipe: Recipe, train: Patches, validation: Patches, device: str, labels: Labels
) -> None:
    labels.require(train.labels, "the training rows")
    labels.require(validation.labels, "the validation rows")
    if recipe.precision == "fp16" and torch.device(device).type != "cuda":
        raise InvalidRequest(f"precision fp16 trains on a GPU only, not on {device}: use bf16 or fp32")
    shared = set(train.ids) & set(validation.ids)
    if shared:
        raise InvalidRequest(f"{len(shared)} patches are in training and validation, first {min(shared)!r}")
