"""A fitted probe as plain numbers, so that it can be stored with its results and applied without a refit.

A probe is a short list of steps over the rows of a feature matrix, each a kind and its arrays:

    shift       X - value                       value (d,)
    scale       X * value                       value (d,)
    unit        rows scaled to length 1; zero rows stay
    affine      X @ weight + bias               weight (d, k), bias (k,)
    relu        negative numbers become 0
    neighbours  weighted share of positives among the nearest training rows, see `neighbours`

All are applied in float64. The file is an .npz without pickles, with a JSON text "about" in it.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp

from ..errors import InvalidRequest, ProbeError
from ..files import write_atomically

FORMAT, FORMAT_VERSION = "patchbank-probes", 1
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
BLOCK_ROWS = 1024  # of a matrix of similarities

Arrays = Mapping[str, np.ndarray]
Steps = tuple[tuple[str, Arrays], ...]


@dataclass(frozen=True)
class ProbeModel:
    """The probe of one feature set.

    members : one for the refit; several for a fold ensemble, the mean of whose probabilities counts
    adjusted : float64 (4,), chosen on held-out scores: threshold on the score, 1 / temperature, Platt's scale
        and offset
    """

    members: tuple[Steps, ...]
    adjusted: np.ndarray

    def score(self, X: np.ndarray) -> np.ndarray:
        """float (n, d) -> float64 (n,): logits of the positive class (decision values of other probes).

        Raises InvalidRequest where the rows have another number of columns than the training rows had.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise InvalidRequest(f"features {X.shape} for a probe on {self.dim} columns")
        return mean_logit(np.stack([apply(steps, X) for steps in self.members], axis=1))

    @property
    def dim(self) -> int:
        """Columns of the feature set."""
        kind, arrays = next(step for step in self.members[0] if step[0] != "unit")
        if kind == "neighbours":
            return arrays["train"].shape[1]
        return len(arrays["weight" if kind == "affine" else "value"])


def apply(steps: Steps, X: np.ndarray) -> np.ndarray:
    """float (n, d) -> float64 (n,)."""
    rows = np.asarray(X, np.float64)
    for kind, arrays in steps:
        rows = KINDS[kind](rows, **arrays)
    return rows.reshape(len(rows))


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
    """Share of positives among the k nearest rows of `train`, float64 (n,).

    train : (m, d), of unit length for cosine similarity; positive : bool (m,); weight : float (m,)
    temperature : weights times exp((similarity - 1) / temperature); NaN: none
    """
    k, temperature = int(k), float(temperature)
    half_norms = (train**2).sum(axis=1) / 2 if euclidean else 0.0
    score = np.empty(len(X))
    for start in range(0, len(X), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        # cosine, or (|x|^2 - distance^2) / 2, which has the same order within a row
        near = X[block] @ train.T - half_norms
        nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
        share = weight[nearest]
        if not np.isnan(temperature):
            cosine = np.take_along_axis(near, nearest, axis=1)
            share = share * np.exp((cosine - cosine.max(axis=1, keepdims=True)) / temperature)
        score[block] = (share * positive[nearest]).sum(axis=1) / share.sum(axis=1)
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
    """The logit of the mean probability of K models: float (n, K) -> float64 (n,), without saturation."""
    each = np.asarray(each, np.float64)
    if each.shape[1] == 1:
        return each[:, 0]
    positive, negative = (logsumexp(-np.logaddexp(0, sign * each), axis=1) for sign in (-1, 1))
    return positive - negative


def calibrated(score: np.ndarray, adjusted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability and threshold of rows on one scale, the calibrated one: each float64 (n,).

    score : float64 (n,); adjusted : float64 (n, 4) or (4,), see `ProbeModel`
    A row is called positive where probability >= threshold.
    """
    cut, _, scale, offset = np.broadcast_to(adjusted, (len(score), 4)).T
    return expit(scale * score + offset), expit(scale * cut + offset)


def save_probes(file: Path, probes: Mapping[str, ProbeModel]) -> None:
    """Write the probes of all feature sets into one file; no pickles."""
    arrays, about = {}, {}
    for i, (name, probe) in enumerate(probes.items()):
        arrays[f"{i}.adjusted"] = probe.adjusted
        about[name] = [[kind for kind, _ in steps] for steps in probe.members]
        for j, steps in enumerate(probe.members):
            for k, (_, values) in enumerate(steps):
                arrays |= {f"{i}.{j}.{k}.{key}": value for key, value in values.items()}
    text = json.dumps({"format": FORMAT, "version": FORMAT_VERSION, "probes": about})

    def write(to: Path) -> None:
        with to.open("wb") as stream:
            np.savez(stream, about=np.array(text), **arrays)

    write_atomically(file, write)


def load_probes(file: Path) -> dict[str, ProbeModel]:
    """What `save_probes` wrote. Raises ProbeError for anything else."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["format"] != FORMAT or about["version"] != FORMAT_VERSION:
                raise ProbeError(
                    f"{file} is {about['format']!r} version {about['version']!r}; this patchbank reads "
                    f"{FORMAT!r} version {FORMAT_VERSION}"
                )
            probes = {
                name: ProbeModel(
                    tuple(_read_steps(stored, f"{i}.{j}", kinds) for j, kinds in enumerate(members)),
                    stored[f"{i}.adjusted"],
                )
                for i, (name, members) in enumerate(about["probes"].items())
            }
    except ProbeError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise ProbeError(f"{file} cannot be read as probes of `patchbank probe run`: {error}") from error
    return probes


def _read_steps(stored: Any, place: str, kinds: Sequence[str]) -> Steps:
    steps = []
    for k, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f"a step of the unknown kind {kind!r}")
        start = f"{place}.{k}."
        steps.append((kind, {n.removeprefix(start): stored[n] for n in stored.files if n.startswith(start)}))
    return tuple(steps)
