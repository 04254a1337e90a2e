"""The rows of X as the solver wants them: centred, scaled, signed, in blocks, never a copy a set.

Every set (fold x class weight x label subset x seed) shares one matrix. A set's own standardisation is one
factor a feature: with `x~ = (x - mean) / scale` over all rows and `w` in the set's standardised units,

    sum_j (x_j - mean_sj) / scale_sj * w_j  =  sum_j x~_j * (a_sj w_j) + constant,   a_sj = scale_j / scale_sj

and the free intercept takes the constant. So a product with the set's standardised matrix is a product with
the shared one, between two multiplications of d numbers.

Rows are sorted by which sets hold them out, so that a product skips whole blocks of held-out rows (a fifth
of the work with five folds, nearly all of it with few-shot subsets).
"""

# pyright: reportConstantRedefinition=false

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...errors import InvalidRequest, ProbeError

Array = np.ndarray[Any, np.dtype[Any]]
Float = type[np.float32] | type[np.float64]
READ_ROWS = 4096  # rows read at once from a file where all of it is passed over
CACHED_BYTES = 2**21  # of float64 rows of an array that are worked on at once: they stay in the L2 cache
KEPT_BYTES = 2**28  # a float64 copy as small as this is kept, larger ones are made block by block


@dataclass(frozen=True)
class Segment:
    """Rows lo..hi (exclusive) of the sorted order, and which sets have weight there: bool (S,)."""

    lo: int
    hi: int
    sets: Array


class Design:
    """X, y and the sets' weights, prepared.

    X : anything with .shape, .dtype and X[lo:hi] -> float16/32/64 (rows, d): array, np.memmap, HDF5, Zarr
    y : int (n,), every class of 0..n_classes-1 in every set
    weights : float (S, n), >= 0
    standardize : as for `fit_logistic`
    memory : bytes that the float32 copy of X may take, and one in float64 of up to KEPT_BYTES where there is
        room for both; above, blocks are prepared again in every pass

    d, n (rows with weight in any set), n_classes
    outputs : columns of coefficients a problem, 1 for two classes, else K
    spread : float64 (S,), sum of the squared norms of the set's rows, in its standardised units
    rows_at_once : rows of a pass over X in float64, where they are made for it
    factor : float64 (S, d + 1), the a_sj above; 1 for the intercept, 0 for features constant in the set
    weights : float64 (S, n) in the sorted order, weights32 float32 (n, S)
    """

    def __init__(
        self,
        X: Any,
        y: Array,
        weights: Array,
        *,
        n_classes: int,
        standardize: bool | Literal["overall"],
        memory: float,
    ) -> None:
        n, self.d = map(int, X.shape)
        self.X, self.n_classes = X, n_classes
        self.outputs = 1 if n_classes == 2 else n_classes
        used: Array = np.greater(weights, 0)
        in_memory = isinstance(X, np.ndarray) and not isinstance(X, np.memmap)
        streamed = 4.0 * n * (self.d + 1) > memory
        self.rows_at_once = READ_ROWS
        if isinstance(X, np.ndarray):
            self.rows_at_once = int(np.clip(CACHED_BYTES // (8 * max(self.d, 1)), 64, READ_ROWS))
        if in_memory or (isinstance(X, np.memmap) and not streamed):
            self.order, self.segments = _sorted_rows(used)
        else:  # a file is read front to back
            self.order = np.arange(n)
            self.segments = [
                Segment(lo, min(n, lo + READ_ROWS), np.any(used[:, lo : lo + READ_ROWS], axis=1))
                for lo in range(0, n, READ_ROWS)
            ]
        self.sequential = bool(np.array_equal(self.order, np.arange(n)))
        self.n = len(self.order)
        self.y = y[self.order]
        self.sign = np.where(self.y == 1, 1.0, -1.0) if self.outputs == 1 else np.ones(self.n)
        self.weights = np.ascontiguousarray(weights[:, self.order])
        self.weights32 = np.ascontiguousarray(self.weights.T, dtype=np.float32)
        self._moments(used[:, self.order], standardize)
        self._blocks: dict[int, list[Segment]] = {}
        self.in_memory = not streamed
        self._prepared: dict[Float, Array] = {}
        if self.in_memory:
            numbers = self.n * (self.d + 1)
            if 8 * numbers <= min(KEPT_BYTES, memory - 4 * numbers):
                self._prepared[np.float64] = self._prepare(np.float64)
                self._prepared[np.float32] = self._prepared[np.float64].astype(np.float32)
                self.rows_at_once = READ_ROWS
            else:
                self._prepared[np.float32] = self._prepare(np.float32)

    def _read(self, lo: int, hi: int) -> Array:
        """Rows lo..hi of the sorted order as they are in X."""
        return np.asarray(self.X[lo:hi] if self.sequential else self.X[self.order[lo:hi]])

    def _moments(self, used: Array, standardize: bool | Literal["overall"]) -> None:
        """Means and scales, a pass over X in float64; refuses NaN and Inf."""
        every = np.concatenate([used, np.any(used, axis=0)[None]])
        masks, of_set = _distinct(every)
        count = masks.sum(axis=1)[:, None]
        first = self._read(0, min(self.n, 512)).astype(np.float64)
        shift = np.where(np.isfinite(first), first, 0).mean(
            axis=0
        )  # near the mean: saves the variance's digits
        total, squares = np.zeros((2, len(masks), self.d))
        for lo in range(0, self.n, self.rows_at_once):
            hi = min(self.n, lo + self.rows_at_once)
            A = self._read(lo, hi).astype(np.float64)
            if not np.isfinite(A.sum()) and not (finite := np.isfinite(A).all(axis=1)).all():
                row = self.order[lo + int(np.argmin(finite))]
                raise ProbeError(f"row {row} of X has NaN or Inf: drop the row or embed the patch again")
            A -= shift
            mask = masks[:, lo:hi].astype(np.float64)
            total += mask @ A
            squares += mask @ np.square(A, out=A)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        doubtful = variance <= 1e-8 * mean**2
        doubtful[of_set[-1]] = False  # all rows: their mean is what was subtracted, nearly
        self._recompute(variance, masks, doubtful)
        mean += shift
        eps = np.finfo(np.float64).eps  # scikit-learn's _is_constant_feature
        constant = variance <= count * eps * variance + (count * mean * eps) ** 2
        scale = np.where(constant, 1.0, np.sqrt(variance))
        if standardize == "overall":
            overall = np.sqrt(variance.mean(axis=1, keepdims=True))
            scale = np.broadcast_to(np.where(overall > 0, overall, 1.0), scale.shape)
        elif not standardize:
            scale = np.ones_like(scale)
        self.mean, self.scale = mean[of_set[-1]], scale[of_set[-1]]
        self.set_scale = scale[of_set[:-1]]
        self.factor = np.ones((len(used), self.d + 1))
        self.factor[:, :-1] = np.where(constant[of_set[:-1]], 0.0, self.scale / self.set_scale)
        self.factor32 = self.factor.astype(np.float32)
        self.has_constant: bool = bool(constant[of_set[:-1]].any())
        offset = mean[of_set[:-1]] - self.mean
        self.spread = count[of_set[:-1], 0] * ((variance[of_set[:-1]] + offset**2) / self.set_scale**2).sum(
            axis=1
        )

    def _recompute(self, variance: Array, masks: Array, doubtful: Array) -> None:
        """In place: where a subset's mean is far from all rows', the difference of squares is rounding only.

        Taken again from the subset's first row on: a feature that is constant in it then has exactly 0.
        """
        for k in np.flatnonzero(doubtful.any(axis=1)):
            columns, rows = np.flatnonzero(doubtful[k]), np.flatnonzero(masks[k])
            first = self._read(int(rows[0]), int(rows[0]) + 1)[0, columns].astype(np.float64)
            total, squares = np.zeros((2, len(columns)))
            for part in np.array_split(rows, -(-len(rows) // READ_ROWS)):
                lo, hi = int(part[0]), int(part[-1]) + 1
                A = self._read(lo, hi)[part - lo][:, columns].astype(np.float64) - first
                total += A.sum(axis=0)
                squares += np.square(A).sum(axis=0)
            variance[k, columns] = np.maximum(squares / len(rows) - (total / len(rows)) ** 2, 0)

    def standardized(self, lo: int, hi: int, dtype: Float) -> Array:
        """(rows, d + 1) of dtype: x~ and a column of ones, times the sign of the label if K is 2."""
        A = self._read(lo, hi)
        wide = np.float64 if np.float64 in (A.dtype, dtype) else np.float32
        A = np.subtract(A, self.mean.astype(wide), dtype=wide)
        A *= (1 / self.scale).astype(wide)
        out = np.empty((hi - lo, self.d + 1), dtype=dtype)
        sign = self.sign[lo:hi, None].astype(dtype)
        np.multiply(A, sign, out=out[:, :-1], casting="same_kind")
        out[:, -1:] = sign
        return out

    def unsigned(self, rows: Array) -> Array:
        """x~ of these rows (ascending places in the sorted order), float64 (rows, d), without the sign."""
        out = np.empty((len(rows), self.d))
        for lo in range(0, self.n, READ_ROWS):
            hi = min(self.n, lo + READ_ROWS)
            part = slice(*np.searchsorted(rows, [lo, hi]))
            block = self.block(lo, hi, np.float64)[rows[part] - lo]
            out[part] = block[:, :-1] * block[:, -1:]
        return out

    def _prepare(self, dtype: Float) -> Array:
        out = np.empty((self.n, self.d + 1), dtype=dtype)
        for lo in range(0, self.n, self.rows_at_once):
            hi = min(self.n, lo + self.rows_at_once)
            out[lo:hi] = self.standardized(lo, hi, dtype)
        return out

    def block(self, lo: int, hi: int, dtype: Float = np.float32) -> Array:
        """`standardized` rows, from a copy where there is one."""
        if dtype in self._prepared:
            return self._prepared[dtype][lo:hi]
        return self.standardized(lo, hi, dtype)

    def blocks(self, rows: int) -> list[Segment]:
        """The segments, cut into even pieces of at most `rows` rows."""
        if rows not in self._blocks:
            self._blocks[rows] = [
                Segment(lo, hi, part.sets)
                for part in self.segments
                for lo, hi in itertools.pairwise(
                    np.linspace(part.lo, part.hi, -(-(part.hi - part.lo) // rows) + 1).astype(int).tolist()
                )
            ]
        return self._blocks[rows]

    def to_raw(self, theta: Array, sets: Array) -> tuple[Array, Array]:
        """Coefficients (P, m, d) and intercepts (P, m) for X as given, of theta (P, m, d + 1)."""
        coef = theta[..., :-1] * (self.factor[sets, None, :-1] / self.scale)
        return coef, theta[..., -1] - coef @ self.mean


def _distinct(masks: Array) -> tuple[Array, Array]:
    """The different ones of the rows, and which of them each row is (numpy's unique sorts whole rows)."""
    place: dict[bytes, int] = {}
    of = np.array([place.setdefault(mask.tobytes(), len(place)) for mask in masks])
    return masks[np.unique(of, return_index=True)[1]], of


def _sorted_rows(used: Array) -> tuple[Array, list[Segment]]:
    """Rows grouped by the sets that use them; rows of no set are left out."""
    # a random 64-bit sum tells the patterns apart; were two to collide, their segment would have both's sets
    key = np.random.default_rng(0).integers(1, 2**62, len(used)) @ used
    pattern, group = np.unique(key, return_inverse=True)
    order = np.argsort(group, kind="stable")
    order = order[np.any(used, axis=0)[order]]
    if not len(order):
        raise InvalidRequest("every weight is 0: there is no row to fit")
    if len(pattern) * 64 > len(order):  # random subsets: groups too small for a product of their own
        order = np.sort(order)
        cuts = np.arange(READ_ROWS, len(order), READ_ROWS)
    else:
        cuts = np.flatnonzero(np.diff(group[order])) + 1
    edges = [0, *cuts.tolist(), len(order)]
    return order, [
        Segment(lo, hi, np.any(used[:, order[lo:hi]], axis=1)) for lo, hi in itertools.pairwise(edges)
    ]
