"""Temperature scaling of K classes, fitted on out-of-fold logits; the calibration of the call.

Labels are int (n,), 0 .. K-1. What is fitted here is applied to the logits of other rows as it is.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ...errors import InvalidRequest, ProbeError
from .multiclass import check_scores
from .weighted import Floats

ClassWeight = Literal["balanced"] | None


def fit_temperature(
    y: ArrayLike, logits: ArrayLike, *, class_weight: ClassWeight = None, smooth: bool = True
) -> Any:
    """The T > 0 that minimises the log-loss of softmax(logits / T) (Guo et al., ICML 2017).

    logits : (n, K), or (n, m, K) for m models
    class_weight : "balanced" weighs the classes with rows alike
    smooth : targets (N_k + 1) / (N_k + K) for the label, of which there are N_k rows, and 1 / (N_k + K) for
        the other classes, instead of 1 and 0, so that T > 0 where every call is right; of two classes these
        are Platt's (1999). Without it such logits raise ProbeError.
    The derivative in 1/T rises, and its root is found by bracketing, to the last digit. inf where every T is
    worse than equal probabilities. Returns float, or float64 (m,).
    """
    from scipy.optimize import brentq

    labels, table, one_model = check_scores(y, logits)
    targets, weights = _targets(labels, table.shape[2], class_weight, smooth)
    temperatures = np.empty(table.shape[1])
    for j in range(table.shape[1]):
        z = table[:, j] - table[:, j].max(axis=1, keepdims=True)
        if not smooth and (np.take_along_axis(z, labels[:, None], axis=1) == 0).all():
            raise ProbeError(f"model {j}: every call is right, T would be 0; use smooth=True")
        wanted = float(weights @ (targets * z).sum(axis=1))

        def slope(s: float, z: Floats = z, wanted: float = wanted) -> float:
            return float(weights @ (special.softmax(s * z, axis=1) * z).sum(axis=1)) - wanted

        if slope(0.0) >= 0:
            temperatures[j] = np.inf
            continue
        high = 1.0 / max(float(-z.min()), np.finfo(np.float64).tiny)
        while slope(high) < 0:
            high *= 4
        root: Any = brentq(slope, 0.0, high, xtol=1e-300, rtol=4 * np.finfo(np.float64).eps)
        temperatures[j] = 1 / root
    return float(temperatures[0]) if one_model else temperatures


def _targets(
    labels: NDArray[np.intp], k: int, class_weight: ClassWeight, smooth: bool
) -> tuple[Floats, Floats]:
    """Probabilities (n, K) that are aimed at, and weights (n,) of sum 1."""
    if class_weight not in (None, "balanced"):
        raise InvalidRequest(f"class_weight is None or 'balanced', not {class_weight!r}")
    counts = np.bincount(labels, minlength=k)[labels]
    targets = np.equal.outer(labels, np.arange(k)).astype(np.float64)
    if smooth:
        targets = (counts[:, None] * targets + 1) / (counts[:, None] + k)
    weights = 1.0 / counts if class_weight else np.ones(len(labels))
    return targets, weights / weights.sum()
