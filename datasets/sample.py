"""A part of a manifest's rows that stands for all of them, where all are more than can be fitted."""

import hashlib

import numpy as np
import pandas as pd

from ..errors import InvalidRequest
from .arrow import chunks_of
from .manifest import Manifest

_BLOCK = 1 << 16  # ids that are Python strings at once


def sample_rows(manifest: Manifest, n: int, *, seed: int = 0) -> Manifest:
    """At most n rows, in their order: every label, domain and group has the share that it has of all rows.

    Rows in the order of label, domain and group, shuffled inside a group, of which every (len / n)-th is
    taken (systematic sampling): a label of m rows keeps m n / len, rounded up or down, and so does a group of
    a label, so that groups of fewer rows than len / n may have none. Every row has the same chance,
    so that means over rows stay unbiased; groups keep fewer rows, and intervals over groups remain valid.
    Shuffled is by BLAKE2b of seed and patch_id: the same rows wherever and whenever, in whatever order the
    table has them.

    Raises InvalidRequest for fewer than one row.
    """
    if n < 1:
        raise InvalidRequest(f"a sample has 1 row or more, not {n}")
    total = len(manifest)
    if total <= n:
        return manifest
    table = manifest.table
    strata = [pd.factorize(table[name], sort=True)[0] for name in ("group", "domain", "label")]
    order = np.lexsort((_shuffled(table["patch_id"], seed), *strata))
    start = _number(f"{seed}") % total  # of n equal steps through total rows, in steps of 1 / n
    every = (start + total * np.arange(n, dtype=np.int64)) // n
    return manifest.select(np.sort(order[every]))


def drawn(n: int, total: int) -> str:
    """A clause that says that n rows were drawn."""
    return f"{n:,} of {total:,} rows were drawn (--sample), every label, domain and group with its share"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _shuffled(ids: pd.Series, seed: int) -> np.ndarray:
    """uint64 (n,), BLAKE2b of the seed and each id."""
    numbers = np.zeros(len(ids), np.uint64)
    at = 0
    for chunk in chunks_of(ids):
        for lo in range(0, len(chunk), _BLOCK):
            for text in chunk.slice(lo, _BLOCK).to_pylist():
                numbers[at] = _number(f"{seed}/{text}")
                at += 1
    return numbers
