"""Weighted sums over rows: what every metric is made of, under resamples and without each cluster."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ...errors import InvalidRequest

Floats = NDArray[np.float64]

CONSTANT = 1e-12  # variance of a part of rows, over that of all, below which it is taken as 0


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """B reweightings of n rows in G clusters."""

    n: int
    weights: Floats | None
    """(B, G); None: each of the G clusters is left out in turn, B = G."""
    groups: NDArray[np.intp] | None
    """(n,), clusters 0 .. G-1; None: every row is its own."""

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """The cluster of each row, (n,)."""
        return np.arange(self.n) if self.groups is None else self.groups

    @cached_property
    def n_clusters(self) -> int:
        """G."""
        return int(self.codes.max()) + 1 if self.weights is None else self.weights.shape[1]

    @property
    def n_samples(self) -> int:
        """B."""
        return self.n_clusters if self.weights is None else len(self.weights)

    def sums(self, values: NDArray[Any]) -> Floats:
        """(n, k) -> (B, k): the weighted sums over rows."""
        if self.groups is not None:
            values = self.indicator(self.codes, self.n, self.n_clusters) @ values
        values = np.asarray(values, np.float64)
        return values.sum(axis=0) - values if self.weights is None else self.weights @ values

    def mean(self, values: NDArray[Any]) -> Floats:
        """(n, k) -> (B, k): the weighted means over rows; NaN without rows."""
        return divide(self.sums(values), self.sums(np.ones((self.n, 1))))

    def correlation(self, a: Floats, b: Floats) -> Floats:
        """Pearson's correlation of the columns of a and b, (n, k) or (n, 1) -> (B, k); NaN where one is
        constant.
        """
        # centred and scaled against cancellation in the moments
        a, b = ((c - c.mean(axis=0)) / np.where(np.ptp(c, axis=0) > 0, c.std(axis=0), 1.0) for c in (a, b))
        over = self.mean(a * b) - self.mean(a) * self.mean(b)
        spread = [self.mean(c * c) - self.mean(c) ** 2 for c in (a, b)]
        known = (spread[0] > CONSTANT) & (spread[1] > CONSTANT)
        root = np.sqrt(np.where(known, spread[0] * spread[1], 1.0))
        return np.where(known, np.clip(over / root, -1.0, 1.0), np.nan)

    @staticmethod
    def indicator(codes: NDArray[np.intp], n_rows: int, n_codes: int) -> sparse.csr_array:
        """(codes, rows), 1 where a row has the code."""
        return sparse.csr_array((np.ones(n_rows), (codes, np.arange(n_rows))), shape=(n_codes, n_rows))


def check_clusters(
    n: int, weights: ArrayLike | None, groups: ArrayLike | None
) -> tuple[NDArray[np.intp] | None, Floats, Any]:
    """Codes (n,) or None, weights (B, G), and the index that takes B out again, of `evaluate`'s arguments."""
    codes, n_groups = None, n
    if groups is not None:
        codes = np.asarray(groups)
        if codes.shape != (n,) or codes.dtype.kind not in "iu" or codes.min() < 0:
            raise InvalidRequest("groups are integer codes 0 .. G-1, one a row: see intervals.cluster_codes")
        codes, n_groups = codes.astype(np.intp), int(codes.max()) + 1
    if weights is None:
        drawn, axis = np.ones((1, n_groups)), 0
    else:
        drawn = np.asarray(weights, np.float64)
        axis = 0 if drawn.ndim == 1 else slice(None)
        drawn = np.atleast_2d(drawn)
        if drawn.ndim != 2 or drawn.shape[1] < n_groups or (groups is None and drawn.shape[1] != n_groups):
            raise InvalidRequest(
                f"weights {np.shape(weights)}: (resamples, {n_groups}), one column a cluster"
            )
        if not (np.isfinite(drawn).all() and drawn.min(initial=0) >= 0):
            raise InvalidRequest("weights are finite and not negative")
    return codes, drawn, axis


def midranks(values: NDArray[Any]) -> Floats:
    """Ranks 1 .. n down the first axis, equal values share their mean: float64, of the shape of `values`.

    scipy.stats.rankdata(axis=0), whose import takes longer than the rest of a probe's.
    """
    values = np.asarray(values)
    return pd.DataFrame(values.reshape(len(values), -1)).rank().to_numpy().reshape(values.shape)


def divide(a: Floats, b: Floats) -> Floats:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
