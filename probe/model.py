"""A fitted probe as plain numbers: stored with its results, taken away, applied without a refit.

A probe is a short list of steps over the rows of a feature matrix, each a kind and its arrays:

    shift       X - value                       value (d,)
    scale       X * value                       value (d,)
    unit        rows scaled to length 1; zero rows stay
    affine      X @ weight + bias               weight (d, k), bias (k,)
    relu        negative numbers become 0
    neighbours  weighted share of a class among the nearest training rows, see `neighbours`

The last step gives one column, the score of the positive class, or one for each of K > 2 classes.

All are applied in float64. `probe.safetensors` has the arrays, `probe.json` all the rest; FORMAT.md of
results describes both, with a reader of a few lines.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidRequest, ProbeError
from .artefact import read_artefact, write_artefact

if TYPE_CHECKING:
    from sklearn.model_selection import FixedThresholdClassifier
    from sklearn.pipeline import Pipeline

ROLES = ("refit", "ensemble")
BLOCK_ROWS = 1024  # of a matrix of similarities

Arrays = Mapping[str, np.ndarray]
Steps = tuple[tuple[str, Arrays], ...]


@dataclass(frozen=True, kw_only=True)
class About:
    """What a probe is for.

    features : the feature set, as "uni2-h/full/cls" or "a/full/cls + b/full/cls": the columns in this order
    role : "refit" (one model of all training rows) or "ensemble" (the mean probability of the folds' models)
    classes : the labels; positive : the one that a binary probe finds, against the rest
    targets : instead of classes, the numbers that are predicted
    stores : source -> name, identity (encoder, weights, preprocessing, view, tokens, ...) and provenance
        (licence, hub, ...) of the embeddings that it was fitted on
    training : data set, licence, number of rows and the digest of their ids and labels
    scores : dataset -> metric -> [value, low, high]
    """

    features: str = ""
    role: str = "refit"
    classes: Sequence[str] = ()
    positive: str = ""
    targets: Sequence[str] = ()
    stores: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "targets", tuple(self.targets))

    def to_json(self) -> dict[str, Any]:
        """As it stands in probe.json."""
        return {f: getattr(self, f) for f in self.__dataclass_fields__} | {
            "classes": list(self.classes),
            "targets": list(self.targets),
        }


@dataclass(frozen=True)
class ProbeModel:
    """The probe of one feature set.

    members : one for the refit; several for a fold ensemble, the mean of whose probabilities counts
    adjusted : chosen on held-out scores; float64 (4,): threshold on the score, 1 / temperature, Platt's scale
        and offset; of more than two classes float64 (1,): 1 / temperature; of targets float64 (0,)
    about : what it is for
    """

    members: tuple[Steps, ...]
    adjusted: np.ndarray
    about: About = field(default_factory=About)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, features: str | None = None, role: str | None = None
    ) -> "ProbeModel":
        """The probe in a folder of results, or in one that has its two files only; numpy is all it needs.

        features : of a folder with several probes (None: the one that the folds chose)
        role : "refit", or "ensemble" of the models of the folds (None: the refit where there is one)
        Raises ProbeError (no probe, damaged), InvalidRequest (no such feature set or role).
        """
        probes, chosen = load_probes(path)
        return pick_probe(probes, features or chosen, role, where=str(path))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write probe.json and probe.safetensors of this probe alone. Returns the folder."""
        return save_probes(folder, [self], chosen=self.about.features)

    def score(self, X: np.ndarray) -> np.ndarray:
        """float (n, d) -> float64 (n,): logits of the positive class (decision values of other probes), or
        float64 (n, K): those of K > 2 classes, or the numbers of K targets.

        Raises InvalidRequest where the rows have another number of columns than the training rows had.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise InvalidRequest(f"features {X.shape} for a probe on {self.dim} columns")
        each = [apply(steps, X) for steps in self.members]
        if self.about.targets:
            return np.mean([member.reshape(len(X), -1) for member in each], axis=0)
        return mean_logit(np.stack(each, axis=1))

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """float (n, d) embeddings, as they are in the store -> float64 (n, K): probabilities of `classes`.

        Calibrated on the scores that were held out in training (Platt; by temperature where K > 2). Rows sum
        to 1.
        """
        return self.probabilities(self.score(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """float (n, d) -> object (n,): the positive class where its probability reaches `threshold`; of more
        than two classes the most probable one. Of targets float64 (n, targets), the numbers.
        """
        return self.score(X) if self.about.targets else self.calls(self.score(X))

    def probabilities(self, score: np.ndarray) -> np.ndarray:
        """Scores, as `score` gives them -> float64 (n, K); see `predict_proba`. InvalidRequest of targets."""
        if self.about.targets:
            raise InvalidRequest(
                f"{', '.join(self.about.targets)} are numbers, without probabilities: predict"
            )
        if self.multiclass:
            return class_probabilities(score, self.adjusted)
        probability = calibrated(score, self.adjusted)[0]
        columns = [1 - probability, probability]
        return np.stack(columns if self.classes[1] == self.about.positive else columns[::-1], axis=1)

    def calls(self, score: np.ndarray) -> np.ndarray:
        """Scores -> object (n,), labels; see `predict`."""
        if self.multiclass:
            return np.array(self.classes, dtype=object)[score.argmax(axis=1)]
        negative = next(name for name in self.classes if name != self.about.positive)
        probability, threshold = calibrated(score, self.adjusted)
        return np.where(probability >= threshold, self.about.positive, negative).astype(object)

    @property
    def multiclass(self) -> bool:
        """Whether there is a score for each of more than two classes."""
        return len(self.adjusted) == 1

    @property
    def classes(self) -> tuple[str, ...]:
        """What the columns of `predict_proba` are of; of a class against several others "not CLASS"; () of
        targets.
        """
        classes, positive = tuple(self.about.classes), self.about.positive
        return (
            classes
            if len(classes) != 1 and (len(classes) < 3 or self.multiclass)
            else (f"not {positive}", positive)
        )

    @property
    def threshold(self) -> float | None:
        """On the probability of the positive class, chosen on held-out scores (best balanced accuracy); None
        of more than two classes and of targets.
        """
        return None if len(self.adjusted) < 4 else float(calibrated(np.zeros(1), self.adjusted)[1][0])

    @property
    def dim(self) -> int:
        """Columns of the feature set."""
        kind, arrays = next((kind, arrays) for kind, arrays in self.members[0] if kind != "unit")
        if kind == "neighbours":
            return arrays["train"].shape[1]
        return len(arrays["weight" if kind == "affine" else "value"])

    def to_sklearn(self) -> "FixedThresholdClassifier | Pipeline":
        """The same probabilities and calls from a fitted classifier of scikit-learn, of targets a regressor.

        `predict_proba` is calibrated, `predict` calls at `threshold`, `classes_` are the labels.
        Raises InvalidRequest for an ensemble, and for nearest neighbours.
        """
        from .conversion import sklearn_of

        pipeline, threshold = self._pipeline(), self.threshold
        if threshold is None:
            return pipeline
        return sklearn_of(pipeline, threshold=threshold, positive=self.about.positive)

    def to_onnx(self, file: str | os.PathLike[str]) -> Path:
        """Write the probe as ONNX, through skl2onnx (`pip install patchbank[onnx]`).

        Input "embeddings", float32 (n, d); outputs "label" (the most probable class) and "probabilities",
        float32 (n, classes); of targets "variable", float32 (n, targets). Its metadata has `patchbank`:
        features, classes, encoder and training data as in probe.json; and of two classes `threshold`, on the
        probability of the positive one.
        Raises MissingDependency, OutputError, and InvalidRequest as `to_sklearn`.
        """
        from .conversion import write_onnx

        about = {"patchbank": json.dumps(self.about.to_json())}
        if self.threshold is not None:
            about["threshold"] = repr(self.threshold)
        return write_onnx(self._pipeline(), file, about=about)

    def _pipeline(self) -> "Pipeline":
        from .conversion import pipeline_of

        steps, *others = self.members
        if others:
            raise InvalidRequest("an ensemble is several classifiers: take the refit (role='refit')")
        # calibration as a part of the last layer
        scale, offset = 1.0, 0.0
        if self.multiclass:
            scale = self.adjusted[0]
        elif not self.about.targets:
            scale, offset = self.adjusted[2:]
            if self.classes[1] != self.about.positive:
                scale, offset = -scale, -offset
        return pipeline_of(folded(steps), dim=self.dim, classes=self.classes, scale=scale, offset=offset)


def folded(steps: Steps) -> Steps:
    """The same function with neighbouring linear steps as one: of a linear probe, its coefficients on the
    features as they are.
    """
    made: list[tuple[str, Arrays]] = []
    for kind, arrays in steps:
        if kind == "affine":
            weight, bias = arrays["weight"], arrays["bias"]
            while made and made[-1][0] in ("shift", "scale", "affine"):
                before, values = made.pop()
                if before == "shift":
                    bias = bias - values["value"] @ weight
                elif before == "scale":
                    weight = values["value"][:, None] * weight
                else:
                    weight, bias = values["weight"] @ weight, values["bias"] @ weight + bias
            made.append(("affine", {"weight": weight, "bias": bias}))
        elif kind == "shift" and made and made[-1][0] == "affine":
            before = made.pop()[1]
            made.append(("affine", {**before, "bias": before["bias"] - arrays["value"]}))
        else:
            made.append((kind, arrays))
    return tuple(made)


def apply(steps: Steps, X: np.ndarray) -> np.ndarray:
    """float (n, d) -> float64 (n,), or (n, K) for K > 2 classes."""
    rows = np.asarray(X, np.float64)
    for kind, arrays in steps:
        rows = KINDS[kind](rows, **arrays)
    return rows[:, 0] if rows.ndim == 2 and rows.shape[1] == 1 else rows


def unit(X: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; zero rows stay."""
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(length > 0, length, 1.0)


def neighbours(
    X: np.ndarray,
    *,
    train: np.ndarray,
    positive: np.ndarray,
    weight: np.ndarray,
    k: np.ndarray | int,
    temperature: np.ndarray | float,
    euclidean: np.ndarray | bool,
) -> np.ndarray:
    """Share of positives among the k nearest rows of `train`, float64 (n,) or (n, K).

    train : (m, d), of unit length for cosine similarity; positive : bool (m,), or (m, K) for the shares of K
        classes; weight : float (m,)
    temperature : weights times exp((similarity - 1) / temperature); NaN: none
    """
    k, temperature = int(k), float(temperature)
    half_norms = (train**2).sum(axis=1) / 2 if euclidean else 0.0
    score = np.empty((len(X), *positive.shape[1:]))
    for start in range(0, len(X), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        # cosine, or (|x|^2 - distance^2) / 2, which has the same order within a row
        near = X[block] @ train.T - half_norms
        nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
        share = weight[nearest]
        if not np.isnan(temperature):
            cosine = np.take_along_axis(near, nearest, axis=1)
            share = share * np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
        if positive.ndim == 1:
            score[block] = (share * positive[nearest]).sum(axis=1) / share.sum(axis=1)
        else:
            score[block] = np.einsum("nk,nkc->nc", share, positive[nearest]) / share.sum(axis=1)[:, None]
    return score


KINDS: Mapping[str, Any] = {
    "shift": lambda X, value: X - value,
    "scale": lambda X, value: X * value,
    "unit": unit,
    "affine": lambda X, weight, bias: X @ weight + bias,
    "relu": lambda X: np.maximum(X, 0.0),
    "neighbours": neighbours,
}


def mean_logit(each: np.ndarray) -> np.ndarray:
    """The logit of the mean probability of M models: float (n, M) -> float64 (n,), without saturation.

    Of K > 2 classes float (n, M, K) -> float64 (n, K): logarithms of mean probabilities.
    """
    each = np.asarray(each, np.float64)
    if each.shape[1] == 1:
        return each[:, 0]
    if each.ndim == 3:
        return np.logaddexp.reduce(_log_softmax(each), axis=1) - np.log(each.shape[1])
    positive, negative = (np.logaddexp.reduce(-np.logaddexp(0, sign * each), axis=1) for sign in (-1, 1))
    return positive - negative


def calibrated(score: np.ndarray, adjusted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability and threshold of rows on one scale, the calibrated one: each float64 (n,).

    score : float64 (n,); adjusted : float64 (n, 4) or (4,), see `ProbeModel`
    A row is called positive where probability >= threshold.
    """
    cut, _, scale, offset = np.broadcast_to(adjusted, (len(score), 4)).T
    return _expit(scale * score + offset), _expit(scale * cut + offset)


def class_probabilities(score: np.ndarray, adjusted: np.ndarray) -> np.ndarray:
    """Calibrated probabilities of K > 2 classes, float64 (n, K): softmax(score / temperature).

    score : float64 (n, K); adjusted : float64 (n, 1) or (1,), see `ProbeModel`
    A row is called what is most probable, which is what has the highest score.
    """
    return np.exp(_log_softmax(score * np.broadcast_to(adjusted, (len(score), 1))))


def _expit(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)); numpy alone, as all that applies a probe."""
    return np.exp(-np.logaddexp(0.0, -logit))


def _log_softmax(score: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return score - np.logaddexp.reduce(score, axis=-1, keepdims=True)


def save_probes(folder: str | os.PathLike[str], probes: Sequence[ProbeModel], *, chosen: str) -> Path:
    """Write probes as probe.safetensors and, last, probe.json. Linear ones as coefficients on the features.

    chosen : the feature set that stands for the whole
    """
    arrays: dict[str, np.ndarray] = {}
    records = []
    for i, probe in enumerate(probes):
        members = []
        for j, steps in enumerate(map(folded, probe.members)):
            members.append([kind for kind, _ in steps])
            for k, (_, values) in enumerate(steps):
                arrays |= {f"{i}.{j}.{k}.{name}": value for name, value in values.items()}
        records.append(
            {
                **probe.about.to_json(),
                "threshold": probe.threshold,
                "adjusted": probe.adjusted.tolist(),
                "members": members,
            }
        )
    return write_artefact(folder, {"chosen": chosen, "probes": records}, arrays)


def load_probes(folder: str | os.PathLike[str]) -> tuple[list[ProbeModel], str]:
    """(probes, the chosen feature set) of what `save_probes` wrote. Raises ProbeError for anything else."""
    about, arrays = read_artefact(folder)
    try:
        probes = [
            ProbeModel(
                tuple(read_steps(arrays, f"{i}.{j}", kinds) for j, kinds in enumerate(record["members"])),
                np.array(record["adjusted"], np.float64),
                About(**{key: record[key] for key in About.__dataclass_fields__ if key in record}),
            )
            for i, record in enumerate(about["probes"])
        ]
        for probe in probes:
            apply(probe.members[0], np.zeros((1, probe.dim)))
        return probes, str(about["chosen"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProbeError(f"{folder} does not hold a probe: {error!r}") from error


def pick_probe(probes: Sequence[ProbeModel], features: str, role: str | None, *, where: str) -> ProbeModel:
    """One of several probes, see `ProbeModel.load`. Raises InvalidRequest, naming those that there are."""
    if role not in (None, *ROLES):
        raise InvalidRequest(f"role {role!r} is not one of {', '.join(ROLES)}")
    of = {probe.about.role: probe for probe in probes if probe.about.features == features}
    for candidate in ROLES if role is None else (role,):
        if candidate in of:
            return of[candidate]
    if of:
        raise InvalidRequest(f"{where} has no {role} of {features!r}, only its {', '.join(of)}")
    known = ", ".join(dict.fromkeys(probe.about.features for probe in probes))
    raise InvalidRequest(f"{where} has no probe on {features!r}; it has {known or 'none'}")


def read_steps(arrays: Arrays, where: str, kinds: Sequence[str]) -> Steps:
    """The steps of one model from arrays named "PLACE.STEP.ARRAY". Raises ValueError for an unknown kind."""
    steps = []
    for k, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f"a step of the unknown kind {kind!r}")
        start = f"{where}.{k}."
        steps.append((kind, {n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)}))
    return tuple(steps)
