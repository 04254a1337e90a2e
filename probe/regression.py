"""Ridge regression of several targets on one feature set: settings, nested choice, refit, ensemble."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from ..errors import InvalidRequest
from ..settings import Settings, not_one_of
from .classifiers.targets import RidgePath
from .config import INTERVALS, inner_folds_faults, parse_features, sample_faults
from .leaks import KINDS
from .model import Steps
from .statistics import continuous
from .training_sets import training_sets

ALPHAS = tuple(10.0 ** (k / 2) for k in range(14, -7, -1))  # 1e7 .. 1e-3, strongest first
HEST_COMPONENTS = 256


class TargetConfig(Settings):
    """Everything that decides the numbers of a study of targets, apart from the data.

    features         names of feature sets, as parse_features reads them
    solver           "exact", or "hest": as HEST-Bench does (Jaume et al., NeurIPS 2024), standardised
                     features, 256 principal components of the training rows, the penalty 100 / (256 T) for T
                     targets; nothing is chosen
    preprocess       "standardize" or "none", see `classifiers.transforms`
    components       principal components of the training rows that are kept (None: all)
    alpha            penalties, which the folds choose among (scikit-learn's, for the sum of squares)
    per_target       whether each target has its own penalty, or all have the one that is best on average
    select           what is best on the folds: "r2" (rows of all folds pooled) or "pearson" (of each fold by
                     itself, weighted by its rows)
    The rest as in `config.ProbeConfig`.
    """

    features: tuple[str, ...]
    probe: Literal["ridge"] = "ridge"
    solver: Literal["exact", "hest"] = "exact"
    preprocess: Literal["standardize", "none"] = "standardize"
    components: int | None = None
    alpha: tuple[float, ...] = ALPHAS
    per_target: bool = True
    select: Literal["r2", "pearson"] = "r2"
    folds: str | int = "balanced"
    inner_folds: str | int | None = None
    seed: int = 0
    bootstrap: int = 2000
    interval: str = "jackknife"
    level: float = 0.95
    precision: str | None = None
    dtype: str | None = None
    near_duplicates: str | None = "images"
    allow_leaks: tuple[str, ...] = ()
    sample: int | None = None
    SINGLE: ClassVar[bool] = True

    def faults(self) -> Iterable[str]:
        if not self.features:
            yield "no features: name an encoder"
        for text in self.features:
            try:
                parse_features(text)
            except InvalidRequest as error:
                yield str(error)
        if not self.alpha or not all(a > 0 and math.isfinite(a) for a in self.alpha):
            yield f"alpha has to be positive numbers, not {list(self.alpha)}"
        if self.components is not None and self.components < 1:
            yield f"components has to be 1 or more, not {self.components}"
        yield from sample_faults(self.sample)
        if isinstance(self.folds, int) and self.folds < 2:
            yield f"folds has to be 2 or more, not {self.folds}"
        yield from inner_folds_faults(self.inner_folds)
        if self.bootstrap < 0 or 0 < self.bootstrap < 100:
            yield f"bootstrap has to be 0 or at least 100, not {self.bootstrap}"
        if not 0.5 <= self.level < 1:
            yield f"level has to be in [0.5, 1), not {self.level}"
        if self.interval not in INTERVALS:
            yield not_one_of("interval", self.interval, INTERVALS)
        yield from (
            not_one_of("allow_leaks", kind, (*KINDS, "all"))
            for kind in self.allow_leaks
            if kind not in (*KINDS, "all")
        )
        if self.solver == "hest":
            own = {"preprocess": "standardize", "components": None, "alpha": ALPHAS}
            given = [name for name, default in own.items() if getattr(self, name) != default]
            if given:
                yield f"solver 'hest' fixes {', '.join(given)}: leave them out, or leave --solver out"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build one from plain values; one value stands for a list of one."""
        preprocess = values.get("preprocess", "standardize")
        name = preprocess[0] if isinstance(preprocess, list | tuple) and len(preprocess) == 1 else preprocess
        return cls.read({**values, "preprocess": name}, where="probe settings of targets")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_dump().items()}
        return values | {"preprocess": [self.preprocess]}

    def penalties(self, targets: int, components: int) -> tuple[float, ...]:
        """Strongest first; of "hest" the one that it has for this many targets and components."""
        if self.solver == "hest":
            return (100.0 / (components * targets),)
        return tuple(sorted(self.alpha, reverse=True))

    @property
    def chooses(self) -> bool:
        """Whether there are several penalties."""
        return self.solver == "exact" and len(self.alpha) > 1

    @property
    def kept(self) -> int | None:
        """Principal components."""
        return HEST_COMPONENTS if self.solver == "hest" else self.components


@dataclass(frozen=True)
class TargetRun:
    """What the protocol found for one feature set; n train rows, T targets, K outer folds.

    criterion : float64 (L, T), of each penalty and target on the outer folds, higher is better
    alpha, fold_alphas : float64 (T,) and (K, T), the chosen penalties of the refit and of each fold's model
    oof : float64 (n, T); oof_ranking : the same less the mean of the targets that the row's model was trained
        on, for correlations: the mean of the other folds is low where that of the fold is high, which would
        count against the models
    refit, fold_models : set -> float64 (n_t, T) and (n_t, K, T)
    steps : of refit and ensemble, see `model`
    """

    alphas: tuple[float, ...]
    criterion: np.ndarray
    alpha: np.ndarray
    fold_alphas: np.ndarray
    components: int | None
    oof: np.ndarray
    oof_ranking: np.ndarray
    refit: dict[str, np.ndarray]
    fold_models: dict[str, np.ndarray]
    steps: dict[str, Steps]
    dim: int
    fits: int
    seconds: dict[str, float]


def run_protocol(
    X: np.ndarray,
    Y: np.ndarray,
    folds: np.ndarray,
    inner: Sequence[np.ndarray],
    tests: Mapping[str, np.ndarray],
    *,
    config: TargetConfig,
) -> TargetRun:
    """Ridge regression of targets on one feature set.

    X : float (n, d); Y : float64 (n, T); folds : int (n,), 1..K; inner : K times int (n,), the inner folds of
        each, 0 outside its training set; tests : set -> float (n_t, d)

    Fitted on : the train rows; means, scales and principal components are those of each fit's own rows.
    Chosen on : the inner folds of outer fold k choose the penalty of model k, for each target or for all; the
        outer folds choose that of the refit. Best is the highest `config.select`; of equals the strongest.
    Refit : at the chosen penalties on all train rows. The ensemble is the mean of the K models.
    Scored : train rows by the outer model that has not seen them, tests by refit and ensemble.
    """
    started = time.perf_counter()
    outer = np.unique(folds)
    options: dict[str, Any] = {"standardize": config.preprocess == "standardize", "components": config.kept}
    oof, ranking, fold_alphas, fits = np.empty_like(Y), np.empty_like(Y), [], 0
    fold_models: dict[str, list[np.ndarray]] = {name: [] for name in tests}
    of_refit = _Criterion(config.select, Y)
    of_folds = [_Criterion(config.select, Y[folds != k]) for k in outer]
    if config.chooses:
        fits = _add_inner_folds(of_folds, X, Y, folds, inner, config, options)
    paths = []
    for k, of_fold in zip(outer, of_folds, strict=True):
        training, held_out = folds != k, folds == k
        path = RidgePath.fit(X[training], Y[training], **options)
        alphas = config.penalties(Y.shape[1], len(path.values))
        chosen = _choose(of_fold.values(), alphas, Y.shape[1], per_target=config.per_target)
        oof[held_out] = _predict(path, X[held_out], chosen)
        ranking[held_out] = oof[held_out] - path.level
        of_refit.add(path.predict(X[held_out], alphas), Y[held_out])
        for name, Z in tests.items():
            fold_models[name].append(_predict(path, Z, chosen))
        fold_alphas.append(chosen)
        paths.append(path.steps(chosen))
    whole = RidgePath.fit(X, Y, **options)
    alphas = config.penalties(Y.shape[1], len(whole.values))
    alpha = _choose(of_refit.values(), alphas, Y.shape[1], per_target=config.per_target)
    return TargetRun(
        alphas=alphas,
        criterion=of_refit.values(),
        alpha=alpha,
        fold_alphas=np.stack(fold_alphas),
        components=len(whole.values) if config.kept else None,
        oof=oof,
        oof_ranking=ranking,
        refit={name: _predict(whole, Z, alpha) for name, Z in tests.items()},
        fold_models={name: np.stack(each, axis=1) for name, each in fold_models.items()},
        steps={"refit": whole.steps(alpha), "ensemble": _mean_of(paths)},
        dim=X.shape[1],
        fits=fits + len(outer) + 1,
        seconds={"fit": time.perf_counter() - started},
    )


def _add_inner_folds(
    criteria: Sequence["_Criterion"],
    X: np.ndarray,
    Y: np.ndarray,
    folds: np.ndarray,
    inner: Sequence[np.ndarray],
    config: TargetConfig,
    options: Mapping[str, Any],
) -> int:
    """Add what the inner folds hold out to the criterion of each outer fold; how many fits that took."""
    alphas = config.penalties(Y.shape[1], 0)
    parts = [part for part in training_sets(folds, inner) if part.inner is not None]
    for part in parts:
        path = RidgePath.fit(X[part.training], Y[part.training], **options)
        for k in part.models:
            held_out = part.held_out & (inner[k - 1] > 0)
            criteria[k - 1].add(path.predict(X[held_out], alphas), Y[held_out])
    return len(parts)


class _Criterion:
    """The criterion of each penalty and target, fold by fold; Y : all rows that are held out in turn."""

    def __init__(self, name: str, Y: np.ndarray) -> None:
        self.name, self.rows = name, 0
        self.total = np.maximum(((Y - Y.mean(axis=0)) ** 2).sum(axis=0), np.finfo(np.float64).tiny)
        self.sums: np.ndarray | float = 0.0

    def add(self, predictions: Iterable[np.ndarray], Y: np.ndarray) -> None:
        """One fold: predictions of each penalty in turn, float64 (n, T)."""
        if self.name == "r2":
            of_penalties = [((p - Y) ** 2).sum(axis=0) for p in predictions]
        else:
            # a target that is constant in a fold, or is predicted so, ranks nothing
            values = [continuous.evaluate(Y, p, metrics=["pearson"])["pearson"] for p in predictions]
            of_penalties = [np.nan_to_num(value) * len(Y) for value in values]
        self.sums = self.sums + np.stack(of_penalties)
        self.rows += len(Y)

    def values(self) -> np.ndarray:
        """float64 (L, T); 0 where nothing was added."""
        sums = np.atleast_2d(self.sums)
        return 1 - sums / self.total if self.name == "r2" else sums / max(self.rows, 1)


def _choose(values: np.ndarray, alphas: Sequence[float], targets: int, *, per_target: bool) -> np.ndarray:
    """The penalty of each target, float64 (T,)."""
    if len(alphas) == 1:
        return np.full(targets, alphas[0])
    best = values.argmax(axis=0) if per_target else np.full(targets, values.mean(axis=1).argmax())
    return np.array(alphas)[best]


def _predict(path: RidgePath, X: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Predictions (n, T), each target at its own penalty."""
    predicted = np.empty((len(X), len(alpha)))
    each = np.unique(alpha)
    for value, predictions in zip(each, path.predict(X, each.tolist()), strict=True):
        predicted[:, alpha == value] = predictions[:, alpha == value]
    return predicted


def _mean_of(members: Sequence[Steps]) -> Steps:
    """Linear models as one: the mean of their predictions, as a step on the features as they are."""
    weights, biases = [], []
    for (_, shift), (_, scale), (_, affine) in members:
        weight = affine["weight"] * scale["value"][:, None]
        weights.append(weight)
        biases.append(affine["bias"] - shift["value"] @ weight)
    return (("affine", {"weight": np.mean(weights, axis=0), "bias": np.mean(biases, axis=0)}),)
