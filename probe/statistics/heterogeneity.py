"""How much a score differs between domains beyond chance: Cochran's Q, I2, the random-effects standard
deviation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ...errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """Between k estimates with their standard errors.

    q, p : Cochran's Q and its p, chi-square with k - 1 degrees of freedom
    sd, sd_low, sd_high : tau, the standard deviation of the true values between domains, on the scale of the
        estimates (Paule & Mandel 1982); its interval by the Q-profile (Viechtbauer, Statistics in
        Medicine 2007)
    i2, i2_low, i2_high : share of the variation between domains that is not chance (Higgins & Thompson,
        Statistics in Medicine 2002), in [0, 1], its interval from that of tau
    mean, mean_error : the random-effects mean and its standard error
    """

    k: int
    q: float
    p: float
    sd: float
    sd_low: float
    sd_high: float
    i2: float
    i2_low: float
    i2_high: float
    mean: float
    mean_error: float


def heterogeneity(
    values: Sequence[float], errors: Sequence[float], *, confidence: float = 0.95
) -> Heterogeneity:
    """Heterogeneity of k >= 2 independent estimates, float (k,), with standard errors > 0, float (k,)."""
    x, variance = np.asarray(values, np.float64), np.asarray(errors, np.float64) ** 2
    if x.shape != variance.shape or x.ndim != 1 or len(x) < 2 or not (variance > 0).all():
        raise InvalidRequest("heterogeneity needs two or more values, each with a standard error above 0")
    if not (np.isfinite(x).all() and np.isfinite(variance).all()):
        raise InvalidRequest("heterogeneity needs finite values and standard errors")
    if not 0 < confidence < 1:
        raise InvalidRequest(f"confidence lies between 0 and 1, not {confidence}")
    k = len(x)

    def spread(tau2: float) -> float:
        """Q with weights 1 / (variance + tau2), which falls in tau2."""
        w = 1 / (variance + tau2)
        return float((w * (x - (w @ x) / w.sum()) ** 2).sum())

    w = 1 / variance
    q = spread(0.0)
    scale = float(w.sum() - (w @ w) / w.sum())
    tau2 = _where(spread, k - 1)
    tail = (1 - confidence) / 2
    low, high = (_where(spread, float(special.chdtri(k - 1, t))) for t in (tail, 1 - tail))
    typical = (k - 1) / scale  # Higgins & Thompson's typical variance within a domain
    weights = 1 / (variance + tau2)
    return Heterogeneity(
        k=k,
        q=q,
        p=float(special.chdtrc(k - 1, q)),
        sd=tau2**0.5,
        sd_low=low**0.5,
        sd_high=high**0.5,
        i2=tau2 / (tau2 + typical),
        i2_low=low / (low + typical),
        i2_high=high / (high + typical),
        mean=float(weights @ x / weights.sum()),
        mean_error=float(weights.sum() ** -0.5),
    )


def _where(spread: Callable[[float], float], target: float) -> float:
    """The tau2 >= 0 at which the falling function reaches the target; 0 where it begins below."""
    from scipy.optimize import brentq

    if spread(0.0) <= target:
        return 0.0
    top = 1.0
    while spread(top) > target:
        top *= 4
    root: Any = brentq(lambda tau2: spread(tau2) - target, 0.0, top, xtol=1e-14)
    return float(root)
