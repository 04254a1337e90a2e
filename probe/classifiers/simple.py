"""Probes other than logistic regression, behind one interface, and few-shot curves.

Every probe has `fit(X, y, *, sample_weight=None, groups=None)`, which returns itself, `decision(X)`, one
score a row, larger meaning more positive, `steps()`, the same as plain numbers (see `model`), and
`threshold`, the score at which it changes its call. Of K > 2 classes there are K scores a row, and the call
is the class of the highest.
X is (n, d) float, finite; y (n,) 0 .. K-1, all present; sample_weight (n,) not negative, 0 leaving the row
out; groups (n,) as `intervals.cluster_codes` reads them, used only where a probe chooses something itself.
Probes take features as they are: `transforms` has what is done to them before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ...errors import InvalidRequest, ProbeError
from ..model import Steps, apply, unit
from ..statistics import multiclass
from ..statistics.intervals import cluster_codes
from ..statistics.metrics import check_labels, evaluate
from .transforms import Scaling, fit_transform

Floats = NDArray[np.float64]


class Probe(Protocol):
    """What the module's docstring says."""

    threshold: ClassVar[float]

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self: ...

    def decision(self, X: ArrayLike) -> Floats: ...

    def steps(self) -> Steps: ...


@dataclass(frozen=True)
class _TrainingRows:
    """Checked training rows of positive weight."""

    X: Floats
    y: NDArray[np.intp]
    weight: Floats
    weighted: bool  # whether weights were given
    codes: NDArray[np.intp]
    n_classes: int

    @property
    def one_hot(self) -> NDArray[np.bool_]:
        """(n, K), True at each row's class."""
        return self.y[:, None] == np.arange(self.n_classes)


def _rows(
    X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, groups: ArrayLike | None
) -> _TrainingRows:
    labels = _labels(y)
    table = np.asarray(X, np.float64)
    if table.ndim != 2 or len(table) != len(labels):
        raise InvalidRequest(f"features {table.shape} for {len(labels)} labels: have to be (n, d)")
    if not np.isfinite(table).all():
        bad = int((~np.isfinite(table).all(axis=1)).argmax())
        raise ProbeError(f"features that are not finite cannot be fitted; the first are in row {bad}")
    weight = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weight.shape != labels.shape or not (np.isfinite(weight).all() and weight.min() >= 0):
        raise InvalidRequest("sample_weight: one finite number >= 0 a row")
    codes = cluster_codes(groups, len(labels))
    used = weight > 0
    n_classes = max(2, int(labels.max()) + 1)
    if len(np.unique(labels[used])) < n_classes:
        raise ProbeError(
            f"a probe needs training rows of {'both' if n_classes == 2 else f'all {n_classes}'} classes"
        )
    return _TrainingRows(
        table[used], labels[used], weight[used], sample_weight is not None, codes[used], n_classes
    )


def _labels(y: ArrayLike) -> NDArray[np.intp]:
    """Class codes (n,) from 0. Raises ProbeError for anything else."""
    labels = np.asarray(y)
    if labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels) and labels.min() >= 0:
        return labels.astype(np.intp)
    return check_labels(y).astype(np.intp)


class _Fitted:
    """What all probes share: rows are checked before they are learned from, scores are those of the steps."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        self._learn(_rows(X, y, sample_weight, groups))
        return self

    def _learn(self, rows: _TrainingRows) -> None:
        raise NotImplementedError

    def decision(self, X: ArrayLike) -> Floats:
        return apply(self.steps(), np.asarray(X))

    def steps(self) -> Steps:
        raise NotImplementedError


@dataclass
class KNN(_Fitted):
    """k nearest neighbours, exact, in blocks of rows.

    The score is the weighted share of positives (of each class) among the k: weights are the sample weights,
    times exp((similarity - 1) / temperature) if a temperature is given (cosine only; .07 in DINO). Which of
    several training rows at the very same distance count as the k-th is not defined.
    """

    k: int = 20
    metric: Literal["cosine", "euclidean"] = "cosine"
    temperature: float | None = None
    threshold: ClassVar[float] = 0.5

    def _learn(self, rows: _TrainingRows) -> None:
        if self.metric not in ("cosine", "euclidean"):
            raise InvalidRequest(f"metric is 'cosine' or 'euclidean', not {self.metric!r}")
        if self.temperature is not None and (self.metric != "cosine" or self.temperature <= 0):
            raise InvalidRequest("a temperature is positive and goes with metric='cosine'")
        if not 1 <= self.k <= len(rows.X):
            raise InvalidRequest(f"k is {self.k}, and there are {len(rows.X)} training rows")
        # distances do not change with the origin, and small numbers lose less in |a|^2 - 2ab + |b|^2
        self._origin = rows.X.mean(axis=0) if self.metric == "euclidean" else np.zeros(rows.X.shape[1])
        self._train = unit(rows.X) if self.metric == "cosine" else rows.X - self._origin
        self._of_class = rows.y == 1 if rows.n_classes == 2 else rows.one_hot
        self._weight = rows.weight

    def steps(self) -> Steps:
        scaling = ("unit", {}) if self.metric == "cosine" else ("shift", {"value": self._origin})
        return (scaling, ("neighbours", {
            "train": self._train,
            "positive": self._of_class,
            "weight": self._weight,
            "k": np.array(self.k),
            "temperature": np.array(np.nan if self.temperature is None else self.temperature),
            "euclidean": np.array(self.metric == "euclidean"),
        }))  # fmt: skip


@dataclass
class NearestCentroid(_Fitted):
    """SimpleShot (Wang et al. 2019, CL2N): centre on the training mean, scale to length 1, compare with
    the class means. The score is |x - c0|^2 - |x - c1|^2; of more than two classes, of class k, |x|^2 -
    |x - ck|^2. Sample weights act within a class only.
    """

    threshold: ClassVar[float] = 0.0

    def _learn(self, rows: _TrainingRows) -> None:
        self._mean = np.average(rows.X, axis=0, weights=rows.weight)
        scaled = unit(rows.X - self._mean)
        of_class = [rows.y == k for k in range(rows.n_classes)]
        self._centroids = [np.average(scaled[of], axis=0, weights=rows.weight[of]) for of in of_class]

    def steps(self) -> Steps:
        scaling = (("shift", {"value": self._mean}), ("unit", {}))
        if len(self._centroids) > 2:
            centroids = np.stack(self._centroids, axis=1)
            return (*scaling, _affine(2 * centroids, -(centroids**2).sum(axis=0)))
        negative, positive = self._centroids
        weight = 2 * (positive - negative)[:, None]
        return (*scaling, ("shift", {"value": (positive + negative) / 2}), _affine(weight, np.zeros(1)))


@dataclass
class Ridge(_Fitted):
    """Least squares on targets -1 and 1 with an L2 penalty alpha, closed form for all alphas at once. Of more
    than two classes each has its own target, against the rest.

    Of `alphas` the one with the least weighted squared error with one group left out is taken (of equals
    the first), the same for all classes. That costs no refits: held-out residuals are (I - H_gg)^-1 r_g with
    the hat matrix H. The intercept is free. One alpha alone needs no groups.
    After `fit`: alpha_, group_errors_ (len(alphas),; 0 of one alpha alone), coef_ (d,) or (d, K), and
    intercept_, float or (K,).
    """

    alphas: Sequence[float] = tuple(10.0 ** (k / 2) for k in range(-4, 15))
    threshold: ClassVar[float] = 0.0

    def _learn(self, rows: _TrainingRows) -> None:
        if not len(self.alphas) or min(self.alphas) <= 0:
            raise InvalidRequest("alphas are positive, at least one")
        root = np.sqrt(rows.weight)
        centre = np.average(rows.X, axis=0, weights=rows.weight)
        positives = [rows.y == k for k in ([1] if rows.n_classes == 2 else range(rows.n_classes))]
        targets = [np.where(positive, 1.0, -1.0) for positive in positives]
        levels = [np.average(target, weights=rows.weight) for target in targets]
        search = len(self.alphas) > 1
        if search and len(np.unique(rows.codes)) < 2:
            raise ProbeError("ridge leaves groups out to choose alpha: it needs at least two")
        # weighted rows; centring makes the free intercept orthogonal to them
        z = root[:, None] * (rows.X - centre)
        aims = [root * (target - level) for target, level in zip(targets, levels, strict=True)]
        wide = z.shape[1] > z.shape[0]
        curvature, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
        curvature = np.maximum(curvature, 0.0)
        turned = vectors * np.sqrt(curvature) if wide else z @ vectors  # z in its principal axes
        projected = [turned.T @ aim for aim in aims]
        intercept_root = root / np.sqrt(rows.weight.sum())
        errors = []
        for alpha in self.alphas if search else ():
            shrunk = curvature + alpha
            residuals = [aim - turned @ (p / shrunk) for aim, p in zip(aims, projected, strict=True)]
            hat_root = np.column_stack([turned / np.sqrt(shrunk), intercept_root])
            errors.append(sum(_left_out_error(hat_root, residual, rows.codes) for residual in residuals))
        self.group_errors_ = np.array(errors or [0.0]) / rows.weight.sum()
        self.alpha_ = float(self.alphas[int(self.group_errors_.argmin())])
        shrunk = curvature + self.alpha_
        if wide:
            weights = [z.T @ (vectors @ (vectors.T @ aim / shrunk)) for aim in aims]
        else:
            weights = [vectors @ (p / shrunk) for p in projected]
        intercepts = [float(level - centre @ w) for level, w in zip(levels, weights, strict=True)]
        several = len(weights) > 1
        self.coef_ = np.stack(weights, axis=1) if several else weights[0]
        self.intercept_ = np.array(intercepts) if several else intercepts[0]

    def steps(self) -> Steps:
        weight = self.coef_ if self.coef_.ndim == 2 else self.coef_[:, None]
        return (_affine(weight, np.atleast_1d(self.intercept_)),)


def _left_out_error(hat_root: Floats, residual: Floats, codes: NDArray[np.intp]) -> float:
    """Sum over groups of the squared residuals (n,) that they have when left out; H = hat_root hat_root'."""
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    total = 0.0
    for size in {len(m) for m in members}:  # groups of one size are solved as one stack
        stack = np.stack([m for m in members if len(m) == size])  # (groups, size)
        step = max(1, (1 << 22) // (size * (size + hat_root.shape[1])))
        for start in range(0, len(stack), step):
            block = stack[start : start + step]
            h = hat_root[block]
            outside = np.eye(size) - h @ h.transpose(0, 2, 1)
            total += float((np.linalg.solve(outside, residual[block][..., None]) ** 2).sum())
    return total


@dataclass
class LinearSVM(_Fitted):
    """scikit-learn's LinearSVC (squared hinge, L2; of more than two classes each against the rest); the score
    is the margin.
    """

    C: float = 1e-3
    max_iter: int = 10_000
    seed: int = 0
    threshold: ClassVar[float] = 0.0

    def _learn(self, rows: _TrainingRows) -> None:
        from sklearn.svm import LinearSVC

        svm = LinearSVC(C=self.C, dual="auto", max_iter=self.max_iter, random_state=self.seed)
        self._svm = svm.fit(rows.X, rows.y, sample_weight=rows.weight)

    def steps(self) -> Steps:
        return (_affine(np.asarray(self._svm.coef_).T, np.asarray(self._svm.intercept_)),)


@dataclass
class MLP(_Fitted):
    """scikit-learn's MLPClassifier (one hidden layer, Adam); scores are logits.

    It runs its epochs without early stopping, whose random validation rows would ignore the groups.
    Sample weights need scikit-learn 1.7.
    """

    hidden: int = 128
    alpha: float = 1e-2
    epochs: int = 30
    seed: int = 0
    threshold: ClassVar[float] = 0.0

    def _learn(self, rows: _TrainingRows) -> None:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        mlp = MLPClassifier((self.hidden,), alpha=self.alpha, max_iter=self.epochs, random_state=self.seed)
        weight = {"sample_weight": rows.weight} if rows.weighted else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the choice here
            self._mlp = mlp.fit(rows.X.astype(np.float32), rows.y, **weight)

    def steps(self) -> Steps:
        hidden, out = zip(self._mlp.coefs_, self._mlp.intercepts_, strict=True)
        return (
            _affine(*hidden),
            ("relu", {}),
            _affine(*out),
        )


def _affine(weight: np.ndarray, bias: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    return "affine", {"weight": weight.astype(np.float64), "bias": bias.astype(np.float64)}


PROBES: MappingProxyType[str, type[Probe]] = MappingProxyType(
    {"knn": KNN, "centroid": NearestCentroid, "ridge": Ridge, "svm": LinearSVM, "mlp": MLP}
)


def make_probe(name: str, **options: Any) -> Probe:
    """A new probe of `PROBES` by name. Raises InvalidRequest for an unknown name or option."""
    if name not in PROBES:
        raise InvalidRequest(f"no probe is called {name!r}; there are: {', '.join(PROBES)}")
    try:
        return PROBES[name](**options)
    except TypeError as e:
        raise InvalidRequest(f"probe {name!r}: {e}") from e


def few_shot_rows(
    y: ArrayLike,
    *,
    shots: Sequence[int],
    repeats: int,
    groups: ArrayLike | None = None,
    seed: int,
    classes: Sequence[str] = (),
) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
    """(k, repeat, rows): k training rows of each class, for every k of shots and repeat 0 .. repeats-1.

    The draws depend on y, groups and seed only, so probes and encoders see the same ones; within a repeat
    the rows of a smaller k are among those of a larger. With groups (slides), a class's rows are drawn in
    rounds, one a group, so that k shots come from as many slides as there are. classes : names of 0 .. K-1.
    Raises ProbeError if a class has fewer rows than the largest k.
    """
    labels = _labels(y)
    codes = cluster_codes(groups, len(labels))
    most, counts = max(shots), np.bincount(labels, minlength=2)
    if min(shots) < 1 or most > counts.min():
        names = classes or (("negative", "positive") if len(counts) == 2 else range(len(counts)))
        words = [f"{n} {name}" for n, name in zip(counts, names, strict=True)]
        raise ProbeError(f"{most} shots a class: there are {', '.join(words)} rows")
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        queues = [_in_rounds(np.flatnonzero(labels == k), codes, rng)[:most] for k in range(len(counts))]
        for k in shots:
            yield k, repeat, np.concatenate([queue[:k] for queue in queues])


def _in_rounds(rows: NDArray[np.intp], codes: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """A random order of rows in which every group's first row comes before any group's second."""
    shuffled = rng.permutation(rows)
    mixed = codes[shuffled]
    by_group = np.argsort(mixed, kind="stable")
    _, start, size = np.unique(mixed[by_group], return_index=True, return_counts=True)
    turn = np.empty(len(rows), np.intp)
    turn[by_group] = np.arange(len(rows)) - np.repeat(start, size)
    return shuffled[np.argsort(turn, kind="stable")]


def few_shot_curve(
    make: Callable[[], Probe],
    X: ArrayLike,
    y: ArrayLike,
    evaluations: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    repeats: int = 20,
    groups: ArrayLike | None = None,
    metrics: Sequence[str] = ("balanced_accuracy", "auroc"),
    preprocess: str = "none",
    seed: int,
    classes: Sequence[str] = (),
) -> pd.DataFrame:
    """Scores of a probe that is fitted on k rows of each class.

    make : gives a fresh probe, which is given the groups of its rows where they have more than one
    preprocess : of `transforms`, learned from the rows that are drawn
    X, y, groups, classes : the training rows that are drawn from, see `few_shot_rows`
    evaluations : name -> (X, y) to score on; metrics : of `metrics.METRICS`, not those of probabilities
    Returns columns shots, repeat, evaluation, metric, value: one row each. The spread over repeats is that of
    the draw of the shots; that of the evaluation rows comes on top.
    """
    table = np.asarray(X)
    labels = np.asarray(y)
    records = []
    draws = {"shots": shots, "repeats": repeats, "groups": groups, "seed": seed, "classes": classes}
    for k, repeat, rows in few_shot_rows(labels, **draws):
        transform = fit_transform(preprocess, table[rows])
        shot = transform(table[rows])
        scaling = Scaling.fit(shot, standardize=preprocess == "standardize")
        of = None if groups is None else np.asarray(groups)[rows]
        of = None if of is None or len(set(of.tolist())) < 2 else of
        probe = make().fit(scaling(shot), labels[rows], groups=of)
        for name, (test_X, test_y) in evaluations.items():
            decision = probe.decision(scaling(transform(np.asarray(test_X))))
            if decision.ndim == 2:
                scores = multiclass.evaluate(test_y, decision, metrics=metrics, logits=True, order=decision)
            else:
                scores = evaluate(test_y, decision, metrics=metrics, threshold=probe.threshold)
            records += [(k, repeat, name, metric, float(value)) for metric, value in scores.items()]
    return pd.DataFrame(records, columns=pd.Index(["shots", "repeat", "evaluation", "metric", "value"]))
