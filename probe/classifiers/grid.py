"""The classifiers behind one interface: many training sets and a whole grid in one call."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import InvalidRequest
from ..config import ProbeConfig
from ..model import Steps
from ..solver.logistic import fit_logistic
from ..streaming import Features, blocks, select
from ..training_sets import Part
from .simple import Probe, make_probe
from .transforms import Scaling, Transform, Transformed, apply, fit_transform


class Models(Protocol):
    """Fitted models: S training sets x L grid values.

    Scores of K > 2 classes have an axis more, (K,), at the end, here and below.
    """

    def scores(self, X: np.ndarray, sets: Sequence[int], value: int | None = None) -> np.ndarray:
        """Scores of rows: float (n, len(sets), L), or (n, len(sets)) at one grid value."""
        ...

    def steps(self, of: int, value: int) -> Steps:
        """One model as steps, see `model`."""
        ...


@dataclass
class LinearModels:
    """score = X @ coef + intercept; coef (S, L, d), intercept (S, L), or (S, L, K, d) and (S, L, K)."""

    coef: np.ndarray
    intercept: np.ndarray

    def scores(self, X: np.ndarray, sets: Sequence[int], value: int | None = None) -> np.ndarray:
        sets = list(sets)
        coef, intercept = self.coef[sets], self.intercept[sets]
        if value is not None:  # the few models that are kept: in float64
            coef, intercept = coef[:, value], intercept[:, value]
            flat = coef.reshape(-1, coef.shape[-1]).T.astype(np.float64)
            return (X.astype(np.float64) @ flat).reshape(len(X), *intercept.shape) + intercept
        flat = np.ascontiguousarray(coef.reshape(-1, coef.shape[-1]).T, dtype=X.dtype)
        return (X @ flat).reshape(len(X), *intercept.shape) + intercept.astype(X.dtype)

    def steps(self, of: int, value: int) -> Steps:
        weight = np.atleast_2d(self.coef[of, value].astype(np.float64)).T
        bias = np.atleast_1d(self.intercept[of, value].astype(np.float64))
        return (("affine", {"weight": weight, "bias": bias}),)


@dataclass(frozen=True)
class Targets:
    """What is fitted: every row at its label and, for class weight "votes", the rows on which the experts are
    divided once more at each other label that has votes, so that a row's weights are the shares of its votes.

    rows : int (n + m,), 0 .. n-1 and then the divided rows; y : int (n + m,)
    share : float64 (n + m,), the share of votes for y; 1 where there are no votes
    """

    rows: np.ndarray
    y: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, votes: np.ndarray | None, config: ProbeConfig) -> "Targets":
        """y : int (n,), 0 .. K-1; votes : float (n,), share of positive votes, or (n, K), the shares of K > 2
        classes; NaN where there are none.
        """
        everything = np.arange(len(y))
        if votes is None or "votes" not in config.class_weight:
            return cls(everything, y, np.ones(len(y)))
        if votes.ndim == 2:
            own = y[:, None] == np.arange(votes.shape[1])
            shares = np.where(np.isnan(votes), own, votes)
            divided, others = np.nonzero(shares * ~own)
            return cls(
                np.concatenate([everything, divided]),
                np.concatenate([y, others]),
                np.concatenate([shares[own], shares[divided, others]]),
            )
        share = np.where(np.isnan(votes), 1.0, np.where(y == 1, votes, 1 - votes))
        divided = np.flatnonzero(share < 1)
        return cls(
            np.concatenate([everything, divided]),
            np.concatenate([y, 1 - y[divided]]),
            np.concatenate([share, 1 - share[divided]]),
        )

    def weights(self, training: np.ndarray, class_weight: str) -> np.ndarray:
        """Sample weights, float64 (n + m,), of one training set (bool (n,)): 0 outside it.

        "none": 1 for each row; "balanced": n / (K n_class); "votes": the shares, scaled so that all K labels
        have the same weight.
        """
        weights = training[self.rows].astype(np.float64)
        if class_weight == "votes":
            weights *= self.share
        else:
            weights[len(training) :] = 0
        if class_weight != "none":
            total, labels = weights.sum(), np.unique(self.y)
            for label in labels:
                of_label = self.y == label
                weights[of_label] *= total / (len(labels) * weights[of_label].sum())
        return weights


# --- one call for many training sets ------------------------------------------------------------------


def fit_logistic_grid(
    X: Features | Transformed,
    y: np.ndarray,
    weights: np.ndarray,
    values: np.ndarray,
    preprocess: str,
    config: ProbeConfig,
    *,
    memory: float = float("inf"),
) -> tuple[Models, dict[str, Any]]:
    """Fit every training set (row of weights, float64 (S, n), 0 = held out) at every C.

    Scales are those of `transforms.Scaling`, of each set's own rows. memory : as for `fit_logistic`
    """
    standardize = True if preprocess == "standardize" else "overall"
    options: dict[str, Any] = {"standardize": standardize, "tol": config.tol, "memory": memory}
    fits = fit_logistic(X, y, C=values, weights=weights, **options)
    status, counts = np.unique(np.asarray(fits.status), return_counts=True)
    facts = {
        "fits": int(np.asarray(fits.status).size),
        "status": {str(s): int(c) for s, c in zip(status, counts, strict=True)},
        "worst_gap_bound": float(np.max(fits.gap_bound)),
    }
    return LinearModels(fits.coef, fits.intercept), facts


@dataclass
class OtherModels:
    """Probes of `others`, fitted one by one. Scores are less the probe's threshold: they divide at 0."""

    scaling: list[Scaling]  # [set]
    fitted: list[list[Probe]]  # [set][value]

    def scores(self, X: np.ndarray, sets: Sequence[int], value: int | None = None) -> np.ndarray:
        columns = []
        for s in sets:
            Z = self.scaling[s](X)
            probes = self.fitted[s] if value is None else [self.fitted[s][value]]
            columns.append(np.stack([probe.decision(Z) - probe.threshold for probe in probes], axis=1))
        scores = np.stack(columns, axis=1)
        return scores if value is None else scores[:, :, 0]

    def steps(self, of: int, value: int) -> Steps:
        probe = self.fitted[of][value]
        threshold = ("shift", {"value": np.array([probe.threshold])})
        return (*self.scaling[of].steps(), *probe.steps(), threshold)


def fit_others_grid(
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray | None,
    values: np.ndarray,
    preprocess: str,
    config: ProbeConfig,
) -> tuple[Models, dict[str, Any]]:
    """Fit a probe of `others` on every training set at every value of its own parameter."""
    scaling, fitted = [], []
    for row in weights:
        used = row > 0
        scaling.append(Scaling.fit(X[used], standardize=preprocess == "standardize"))
        Z, of = scaling[-1](X[used]), None if groups is None else groups[used]
        probes = [make_probe(config.probe, **_options(config, value)) for value in values]
        fitted.append([probe.fit(Z, y[used], sample_weight=row[used], groups=of) for probe in probes])
    count = len(weights) * len(values)
    return OtherModels(scaling, fitted), {"fits": count, "status": {"fitted": count}, "worst_gap_bound": None}


def _options(config: ProbeConfig, value: float) -> dict[str, Any]:
    """What `make_probe` is given at one value of the probe's parameter."""
    varied = {"k": {"k": int(value)}, "alpha": {"alpha": value}, "C": {"C": value}, "": {}}
    if config.probe == "ridge":
        return {"alphas": (value,)}
    fixed = {
        "knn": {"metric": config.metric, "temperature": config.temperature},
        "mlp": {"hidden": config.hidden, "seed": config.seed},
        "svm": {"seed": config.seed},
    }
    return varied[config.parameter] | fixed.get(config.probe, {})


def grid_values(config: ProbeConfig, n_smallest: int) -> np.ndarray:
    """The last axis of the grid, float64 (L,), strongest smoothing first: of equals the first is taken.

    n_smallest : rows of the smallest training set, which bounds the k of neighbours
    """
    values = np.asarray(config.grid)
    if config.parameter == "k":
        values = values[values <= n_smallest]
        if not len(values):
            raise InvalidRequest(
                f"k is {', '.join(f'{k:g}' for k in config.grid)}, and the smallest training set of the "
                f"folds has {n_smallest} rows: give a k of {n_smallest} or less"
            )
    return values


# --- all training sets of a protocol ------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One point of the grid; parameter : "C", "k", "alpha", or "" for a probe that has none."""

    preprocess: str
    class_weight: str
    parameter: str
    value: float
    index: tuple[int, int, int]  # (preprocess, class weight, value)

    def to_dict(self) -> dict[str, Any]:
        """For results.json: the value under the parameter's own name, which `parameter` tells."""
        own = {self.parameter: self.value} if self.parameter else {}
        about = {"preprocess": self.preprocess, "class_weight": self.class_weight}
        return {**about, "parameter": self.parameter, **own}


@dataclass
class Fitted:
    """The models of all parts at all points of the grid (P, W, L)."""

    config: ProbeConfig
    values: np.ndarray  # (L,)
    held_out: list[np.ndarray]  # per part float32 (P, W, L, its held-out rows[, K])
    models: dict[tuple[int, int], tuple[Transform, Models, list[int]]]  # (preprocessing, part) -> its W sets
    facts: dict[str, Any]
    seconds: dict[str, float]

    def setting(self, index: Sequence[int]) -> Setting:
        p, w, v = index
        c = self.config
        return Setting(c.preprocess[p], c.class_weight[w], c.parameter, float(self.values[v]), (p, w, v))

    def scorer(self, X: Features) -> Callable[[int, Setting], np.ndarray]:
        """A function (part, setting) -> scores float64 (n[, K]) of these rows; it transforms once what is in
        memory.
        """
        transformed: dict[int, Features | Transformed] = {}

        def score(part: int, setting: Setting) -> np.ndarray:
            p, w, v = setting.index
            transform, models, sets = self.models[p, part]
            if id(transform) not in transformed:
                transformed[id(transform)] = apply(transform, X)
            Z = transformed[id(transform)]
            scores = [models.scores(Z[block], [sets[w]], v)[:, 0] for block in blocks(len(Z))]
            return np.concatenate(scores).astype(np.float64)

        return score

    def steps(self, part: int, setting: Setting) -> Steps:
        """The model of a part at a setting, from the features as they are, as steps (see `model`)."""
        p, w, v = setting.index
        transform, models, sets = self.models[p, part]
        return (*transform.steps(), *models.steps(sets[w], v))


def fit_parts(
    X: Features,
    y: np.ndarray,
    parts: Sequence[Part],
    config: ProbeConfig,
    *,
    votes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    memory: float = float("inf"),
) -> Fitted:
    """Fit all parts at all points of the grid, in as few calls of the solver as possible: one for each
    preprocessing, or one for the parts of the same models where the preprocessing learns from rows.

    X : float (n, d), or `FileRows` for the probe "logistic"; y : int (n,), 0 .. K-1; votes : see `Targets`
    groups : (n,), for probes that choose something themselves
    memory : bytes that the solver's copy of the features may take; else it reads X in every pass
    """
    targets = Targets.of(y, votes, config)
    outputs = () if (n_classes := int(y.max()) + 1) <= 2 else (n_classes,)
    values = grid_values(config, min(int(part.training.sum()) for part in parts))
    P, W, L = len(config.preprocess), len(config.class_weight), len(values)
    held_out = [np.empty((P, W, L, int(part.held_out.sum()), *outputs), np.float32) for part in parts]
    models: dict[tuple[int, int], tuple[Transform, Models, list[int]]] = {}
    facts: list[dict[str, Any]] = []
    seconds = {"fit": 0.0, "score": 0.0}
    for p, preprocess in enumerate(config.preprocess):
        for members in _share(preprocess, parts):
            lap = time.perf_counter()
            transform = fit_transform(preprocess, select(X, parts[members[0]].training))
            Z = apply(transform, X)
            weights = np.stack(
                [targets.weights(parts[i].training, w) for i in members for w in config.class_weight]
            )
            if config.probe == "logistic":
                F = Z if len(targets.rows) == len(Z) else select(Z, targets.rows)
                of_logistic = (targets.y, weights, values, preprocess, config)
                fits, about = fit_logistic_grid(F, *of_logistic, memory=memory)
            else:
                fits, about = fit_others_grid(Z[:], y, weights, groups, values, preprocess, config)
            facts.append(about)
            seconds["fit"] += time.perf_counter() - lap
            lap = time.perf_counter()
            sets_of = {i: list(range(k * W, (k + 1) * W)) for k, i in enumerate(members)}
            for i, sets, mask, into, rows in _held_out_blocks(Z, parts, sets_of):
                held_out[i][p][:, :, into] = np.moveaxis(fits.scores(rows[mask], sets), 0, 2)
            models |= {(p, i): (transform, fits, sets_of[i]) for i in members if parts[i].inner is None}
            seconds["score"] += time.perf_counter() - lap
    return Fitted(config, values, held_out, models, sum_facts(facts), seconds)


def _held_out_blocks(
    Z: Features | Transformed, parts: Sequence[Part], sets: Mapping[int, list[int]]
) -> Iterator[tuple[int, list[int], np.ndarray, slice, np.ndarray]]:
    """Every part's held-out rows, in blocks of which each is read once for all parts.

    Gives the part, its sets, which rows of the block (bool), their places among the part's, and the block.
    """
    done = dict.fromkeys(sets, 0)
    for block in blocks(len(Z)):
        rows = Z[block]
        for i, of_part in sets.items():
            mask = parts[i].held_out[block]
            if mask.any():
                start, done[i] = done[i], done[i] + int(mask.sum())
                yield i, of_part, mask, slice(start, done[i]), rows


def _share(preprocess: str, parts: Sequence[Part]) -> Iterator[list[int]]:
    """Parts that one transform serves, and so one call.

    A transform that learns nothing serves all. One that learns is fitted on the training rows of the first
    part of the same models. That of one model is the outer one: its own inner folds share it, so the choice
    inside a fold has seen the features (no labels) of its inner held-out rows, and the outer score has not.
    """
    if preprocess != "whiten":
        yield list(range(len(parts)))
        return
    for models in dict.fromkeys(part.models for part in parts):
        yield [i for i, part in enumerate(parts) if part.models == models]


def sum_facts(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts about several calls as those about one: fits, calls, statuses, the worst gap bound."""
    status: dict[str, int] = {}
    for fact in facts:
        for name, count in fact["status"].items():
            status[name] = status.get(name, 0) + count
    bounds: list[Any] = [one.get("worst_gap_bound") for one in facts]  # closed forms have none
    return {
        "fits": sum(one["fits"] for one in facts),
        "calls": sum(one.get("calls", 1) for one in facts),
        "status": status,
        "worst_gap_bound": None if None in bounds else max(bounds),
    }
