"""Linear heads as others train them, by stochastic gradients: the published protocol, and two peers' recipes.

Re-implemented in numpy from their papers and configurations, for comparison; the exact solver is
`logistic.fit_logistic`. All of them take features as they are (no standardisation) and labels 0/1, thunder
and eva also 0 .. K-1.

    fit_paper_sgd   the linear probe of arXiv 2506.21444 (batch 8, Adam, plateau schedule, early stopping)
    fit_thunder     the 3 x 3 grid of heads of arXiv 2507.07860, trained side by side
    fit_eva         the AdamW head with a cosine schedule of the eva framework's offline classification
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from ...errors import InvalidRequest, ProbeError
from ..model import Steps

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Head:
    """score = X @ coef + intercept, class 1 where it is > 0; of K > 2 classes that of the highest score.

    coef : float32 (d,), or (d, K); intercept : float32 () or (K,)
    epochs : how many were run; best_epoch, best_score : of the validation metric, whose head this is
    """

    coef: Array
    intercept: Array
    epochs: int
    best_epoch: int
    best_score: float

    def decision(self, X: Array) -> Array:
        """float32 (n,), or (n, K)."""
        return X @ self.coef + self.intercept

    def steps(self) -> Steps:
        """The same as plain numbers, see `model`."""
        weight = self.coef.astype(np.float64).reshape(len(self.coef), -1)
        bias = np.atleast_1d(self.intercept.astype(np.float64))
        return (("affine", {"weight": weight, "bias": bias}),)


class Adam:
    """torch.optim.Adam, and AdamW where decoupled, on one float32 array, in place (Kingma & Ba 2015).

    lr, weight_decay : numbers, or arrays that broadcast against the parameters (one a head)
    """

    def __init__(
        self, parameters: Array, *, lr: Any, weight_decay: Any = 0.0, decoupled: bool = False
    ) -> None:
        self.parameters, self.lr, self.weight_decay, self.decoupled = parameters, lr, weight_decay, decoupled
        self.decays = bool(np.any(weight_decay))
        self.mean, self.square = np.zeros_like(parameters), np.zeros_like(parameters)
        self.scratch = np.empty_like(parameters)
        self.steps = 0

    def step(self, gradient: Array) -> None:
        """gradient : float32, changed on the way."""
        self.steps += 1
        if self.decays and self.decoupled:
            self.parameters *= np.asarray(1 - self.lr * self.weight_decay, dtype=np.float32)
        elif self.decays:
            gradient += np.asarray(self.weight_decay, dtype=np.float32) * self.parameters
        self.mean *= 0.9
        self.mean += np.multiply(gradient, np.float32(0.1), out=self.scratch)
        self.square *= 0.999
        np.multiply(gradient, gradient, out=self.scratch)
        self.scratch *= np.float32(0.001)
        self.square += self.scratch
        np.sqrt(self.square, out=self.scratch)
        self.scratch /= np.float32(np.sqrt(1 - 0.999**self.steps))
        self.scratch += np.float32(1e-8)
        np.divide(self.mean, self.scratch, out=self.scratch)
        self.scratch *= np.asarray(self.lr / (1 - 0.9**self.steps), dtype=np.float32)
        self.parameters -= self.scratch


class Plateau:
    """torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max") with its default threshold of 1e-4, relative."""

    def __init__(self, lr: float, *, factor: float, patience: int, min_lr: float) -> None:
        self.lr, self.factor, self.patience, self.min_lr = lr, factor, patience, min_lr
        self.best, self.bad = -np.inf, 0

    def step(self, score: float) -> float:
        """The learning rate for the next epoch."""
        if score > self.best * (1 + 1e-4):
            self.best, self.bad = score, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.bad = 0
            lower = max(self.lr * self.factor, self.min_lr)
            if self.lr - lower > 1e-8:
                self.lr = lower
        return self.lr


def fit_paper_sgd(
    X: Array,
    y: Array,
    X_val: Array,
    y_val: Array,
    *,
    seed: int = 0,
    lr: float = 5e-5,
    weight_decay: float = 1e-5,
    epochs: int = 100,
) -> Head:
    """The published linear probe, seeded.

    Head Linear(d, 1) with torch's initialisation, BCE with logits; each epoch draws len(X) rows with
    replacement, weighted by 1 / class count, in batches of 8; Adam; after each epoch balanced accuracy on the
    validation rows at the threshold 0.5 drives the learning rate (halved after 3 epochs without gain, not
    below 1e-7), early stopping (15 epochs without gain) and the choice of the epoch whose head is kept.
    The publication has Normal = 1; the recipe treats both classes alike, so that either may be 1.

    X : float (n, d), X_val : float (m, d), y, y_val : int 0/1. lr 1e-3, weight_decay 1e-4 for one encoder.
    Raises ProbeError where a side has one class only.
    """
    if y.max() > 1:
        raise InvalidRequest(
            "the recipe 'paper-sgd' is for two classes: take --solver thunder or eva, or --one-vs-rest NAME"
        )
    X, X_val = _checked(X, y, X_val, y_val)
    rng = np.random.default_rng(seed)
    theta, A = _initial(rng, X.shape[1], 1)[0], _with_ones(X)
    count = np.bincount(y, minlength=2)
    chance = (1 / count)[y]
    chance /= chance.sum()
    target = y.astype(np.float32)
    optimiser = Adam(theta, lr=lr, weight_decay=weight_decay)
    plateau = Plateau(lr, factor=0.5, patience=3, min_lr=1e-7)
    best, best_epoch, kept, epoch = -np.inf, 0, theta.copy(), 0
    for epoch in range(1, epochs + 1):
        drawn = rng.choice(len(y), size=len(y), p=chance)
        for lo in range(0, len(drawn), 8):
            batch = drawn[lo : lo + 8]
            rows = A[batch]
            optimiser.step(_bce_gradient(rows @ theta, target[batch]) @ rows)
        score = _balanced_accuracy(X_val @ theta[:-1] + theta[-1], y_val)
        optimiser.lr = plateau.step(score)
        if score > best:
            best, best_epoch, kept = score, epoch, theta.copy()
        elif epoch - best_epoch >= 15:
            break
    return Head(kept[:-1], kept[-1], epoch, best_epoch, best)


def fit_thunder(
    X: Array, y: Array, X_val: Array, y_val: Array, *, seed: int = 0, epochs: int = 200, batch: int = 64
) -> Head:
    """THUNDER's frozen linear probe: nine heads (lr 1e-3, 1e-4, 1e-5 x weight decay 0, 1e-3, 1e-4) on the
    same batches, Adam, cross-entropy over the classes, rows shuffled; the head and epoch with the best F1
    (the mean over the classes) on the validation rows.
    """
    X, X_val = _checked(X, y, X_val, y_val)
    rng = np.random.default_rng(seed)
    grid = np.array([(lr, decay) for lr in (1e-3, 1e-4, 1e-5) for decay in (0.0, 1e-3, 1e-4)], np.float32)
    heads, A, n_classes = len(grid), _with_ones(X), int(y.max()) + 1
    theta = _initial(rng, X.shape[1], n_classes * heads)  # rows: head 0 class 0, head 0 class 1, ...
    each = np.repeat(grid, n_classes, axis=0)
    one_hot = (y[:, None] == np.arange(n_classes)).astype(np.float32)
    optimiser = Adam(theta, lr=each[:, :1].astype(np.float64), weight_decay=each[:, 1:])
    best, best_epoch, kept = -np.inf, 0, theta[:n_classes].copy()
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(y))
        for lo in range(0, len(order), batch):
            members = order[lo : lo + batch]
            rows = A[members]
            z = (rows @ theta.T).reshape(len(members), heads, n_classes)
            if n_classes == 2:
                p = 1 / (1 + np.exp(z[:, :, 0] - z[:, :, 1]))
                residual = (p - y[members, None].astype(np.float32)) / np.float32(len(members))
                gradient = np.stack([-residual, residual], axis=2)
            else:
                gradient = (softmax(z, axis=2) - one_hot[members, None]) / np.float32(len(members))
            optimiser.step(gradient.reshape(len(members), -1).T @ rows)
        z = (X_val @ theta[:, :-1].T + theta[:, -1]).reshape(len(y_val), heads, n_classes)
        for h in range(heads):
            score = _macro_f1(
                z[:, h, 1] - z[:, h, 0] > 0 if n_classes == 2 else z[:, h].argmax(axis=1), y_val
            )
            if score > best:
                best, best_epoch, kept = score, epoch, theta[n_classes * h : n_classes * (h + 1)].copy()
    if n_classes == 2:
        kept = kept[1] - kept[0]
    return Head(kept[..., :-1].T, kept[..., -1], epochs, best_epoch, best)


def fit_eva(
    X: Array,
    y: Array,
    X_val: Array,
    y_val: Array,
    *,
    seed: int = 0,
    max_steps: int = 12500,
    batch: int = 256,
    patience: int = 70,
) -> Head:
    """One run of eva's head: Linear(d, 1), BCE with logits (of K > 2 classes Linear(d, K), cross-entropy),
    AdamW (lr 3e-4, decay 1e-2) under a cosine to 0 over 12,500 steps, batches of 256 shuffled rows; best
    validation balanced accuracy, patience 70 epochs.
    """
    X, X_val = _checked(X, y, X_val, y_val)
    rng = np.random.default_rng(seed)
    n_classes = int(y.max()) + 1
    theta, A = _initial(rng, X.shape[1], 1 if n_classes == 2 else n_classes), _with_ones(X)
    target = y.astype(np.float32)
    if n_classes == 2:
        theta = theta[0]
    else:
        target = (y[:, None] == np.arange(n_classes)).astype(np.float32)
    optimiser = Adam(theta, lr=3e-4, weight_decay=1e-2, decoupled=True)
    best, best_epoch, kept, epoch = -np.inf, 0, theta.copy(), 0
    while optimiser.steps < max_steps and epoch - best_epoch < patience:
        epoch += 1
        order = rng.permutation(len(y))
        for lo in range(0, len(order), batch):
            if optimiser.steps == max_steps:
                break
            optimiser.lr = 3e-4 * (1 + np.cos(np.pi * optimiser.steps / max_steps)) / 2
            members = order[lo : lo + batch]
            rows = A[members]
            if n_classes == 2:
                gradient = _bce_gradient(rows @ theta, target[members])
            else:
                gradient = (softmax(rows @ theta.T, axis=1) - target[members]).T / np.float32(len(members))
            optimiser.step(gradient @ rows)
        score = _balanced_accuracy(X_val @ theta[..., :-1].T + theta[..., -1], y_val)
        if score > best:
            best, best_epoch, kept = score, epoch, theta.copy()
    return Head(kept[..., :-1].T, kept[..., -1], epoch, best_epoch, best)


def _checked(X: Array, y: Array, X_val: Array, y_val: Array) -> tuple[Array, Array]:
    n_classes = max(2, int(max(y.max(), y_val.max())) + 1)
    for name, labels in (("training", y), ("validation", y_val)):
        if (present := len(np.unique(labels))) != n_classes:
            what = "have one class only: the head needs both"
            if n_classes > 2:
                what = f"have {present} of {n_classes} classes: the head needs all"
            raise ProbeError(f"the {name} rows {what}")
    return X.astype(np.float32), X_val.astype(np.float32)


def _with_ones(X: Array) -> Array:
    return np.concatenate([X, np.ones((len(X), 1), np.float32)], axis=1)


def _initial(rng: np.random.Generator, d: int, rows: int) -> Array:
    """torch.nn.Linear's initialisation: weights and bias uniform in +-1/sqrt(d); float32 (rows, d + 1)."""
    return rng.uniform(-(d**-0.5), d**-0.5, (rows, d + 1)).astype(np.float32)


def _bce_gradient(z: Array, target: Array) -> Array:
    """Of the mean binary cross-entropy in the logits z (b,)."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-z)) - target) / np.float32(len(z))


def _balanced_accuracy(z: Array, y: Array) -> float:
    """Of scores (n,), or (n, K) of K > 2 classes."""
    if z.ndim == 2:
        right = z.argmax(axis=1) == y
        return float(np.mean([right[y == k].mean() for k in range(z.shape[1])]))
    positive = z > 0
    return float((positive[y == 1].mean() + 1 - positive[y == 0].mean()) / 2)


def _macro_f1(calls: Array, y: Array) -> float:
    """Of calls (n,): class codes, or bool."""
    if calls.dtype != bool:
        n_classes = int(y.max()) + 1
        right = np.bincount(y[calls == y], minlength=n_classes)
        both = np.bincount(y, minlength=n_classes) + np.bincount(calls, minlength=n_classes)
        return float(np.mean(2 * right / np.maximum(both, 1)))
    predicted, true = calls, y == 1
    tp, wrong = np.sum(predicted & true), np.sum(predicted != true)
    tn = len(y) - wrong - tp
    return float((2 * tp / max(2 * tp + wrong, 1) + 2 * tn / max(2 * tn + wrong, 1)) / 2)
