"""Stores among each other: merge, subset, and how far apart two stores are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InvalidRequest
from ..terminal import progress_bar
from .bank import Bank
from .identity import Identity, canonical
from .narrowing import is_object
from .store import Store, StoreWriter

STEP = 8192  # rows in memory at a time
ABSENT = "absent"
ROUNDING, CLOSE = (
    2e-3,
    3e-2,
)  # relative differences; the first is a few roundings to float16 or of bfloat16 inputs


def differences(a: Identity, b: Identity) -> list[str]:
    """The parts in which two identities differ, in words; empty only where the identities are equal."""
    one, two = _flat(a.to_json()), _flat(b.to_json())
    return [
        f"{'.'.join(name)}: {one.get(name, ABSENT)} / {two.get(name, ABSENT)}"
        for name in sorted({*one, *two})
        if one.get(name) != two.get(name)
    ]


def _flat(document: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of names -> value as JSON, whose spelling tells 1, 1.0 and true apart as the digest does."""
    parts: dict[tuple[str, ...], str] = {}
    for name, value in document.items():
        if is_object(value) and value:
            parts |= _flat(value, (*path, name))
        else:
            parts[*path, name] = canonical(value)
    return parts


def merge(target: Store, sources: Sequence[Store], *, progress: bool = False) -> int:
    """Copies the rows missing from `target` from stores of the same identity; returns how many.

    Raises InvalidRequest, before anything is copied, if an identity differs (naming the parts).
    """
    for source in sources:
        wrong = differences(target.identity, source.identity)
        if wrong:
            raise InvalidRequest(f"{source.files} cannot be merged into {target.files}: {'; '.join(wrong)}")
    copied = 0
    with target.writer(name="merge") as writer:
        for source in sources:
            writer.flush()
            target.refresh()
            source.refresh()
            keys = source.keys()
            keys = keys[~target.contains(keys)]
            _copy(source, keys, writer, progress)
            copied += len(keys)
    target.refresh()
    return copied


def subset(store: Store, keys: np.ndarray, bank: Bank, *, progress: bool = False) -> Store:
    """The rows of some keys (uint8 (n, 16)) as a store of the same identity in another bank.

    Raises RowsMissing if the store does not have all of them; InvalidRequest if the bank is the store's own.
    """
    store.require(keys)
    target = bank.open_store(
        store.identity,
        create=True,
        provenance=store.provenance,
        backend="zarr" if bank.files.remote else store.backend,
        block_rows=store.block_rows,
    )
    if target.path == store.path:
        raise InvalidRequest(
            f"{bank.path} is the bank that the store is in; give another folder for the subset"
        )
    keys = np.unique(keys.view("V16").ravel()).view(np.uint8).reshape(-1, 16) if len(keys) else keys
    with target.writer(name="subset") as writer:
        _copy(store, keys[~target.contains(keys)], writer, progress)
    target.refresh()
    return target


def _copy(source: Store, keys: np.ndarray, writer: StoreWriter, progress: bool) -> None:
    with progress_bar(total=len(keys), shown=progress, unit="row") as bar:
        for part, vectors in source.iter_blocks(keys, STEP):
            names = [key.tobytes().hex() for key in keys[part]]
            writer.append(keys[part], vectors, names)
            bar.update(len(names))


@dataclass
class Difference:
    """How far apart the vectors of the same patches are in two stores.

    identical  rows with the same values
    cosine     1 - cosine similarity, relative |a - b| / |a|: quantiles 0.5, 0.99 and 1
    largest    largest absolute difference of a component
    worst      keys (hex) of the patches that are farthest apart, and their cosine distances
    parts      parts of the identity that differ
    """

    shared: int
    only_a: int
    only_b: int
    identical: int = 0
    cosine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    relative: tuple[float, float, float] = (0.0, 0.0, 0.0)
    largest: float = 0.0
    worst: list[tuple[str, float]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In words. Of a few patches that differ while the others are the same, it says so."""
        if not self.shared:
            return "no patch is in both"
        if self.identical == self.shared:
            return "identical"
        if self.relative[2] < ROUNDING:
            return "the same but for rounding"
        if self.relative[1] < ROUNDING:
            return "the same but for rounding, except for less than 1 % of the patches: see the worst"
        if self.relative[0] < CLOSE:
            return "close: another precision, or a slightly different resize"
        return "different: another transform, view or encoder"


def diff(a: Store, b: Store, keys: np.ndarray | None = None, *, progress: bool = False) -> Difference:
    """Compares the vectors of the keys that both stores have (of `keys`, if given), in flat memory.

    Raises InvalidRequest if the vectors are not equally long.
    """
    if a.dim != b.dim:
        raise InvalidRequest(f"{a.name} has vectors of {a.dim}, {b.name} of {b.dim}: nothing to compare")
    a.refresh()
    b.refresh()
    of_a = a.keys() if keys is None else keys[a.contains(keys)]
    shared = of_a[b.contains(of_a)]
    in_b = len(b) if keys is None else int(b.contains(keys).sum())
    difference = Difference(len(shared), len(of_a) - len(shared), in_b - len(shared))
    difference.parts = differences(a.identity, b.identity)
    if not len(shared):
        return difference
    cosine, relative = np.empty(len(shared)), np.empty(len(shared))
    with progress_bar(total=len(shared), shown=progress, unit="row") as bar:
        for part, vectors in a.iter_blocks(shared, STEP, dtype="float32"):
            two = b.load(shared[part], dtype="float32")
            apart = np.abs(vectors - two)
            difference.identical += int((apart == 0).all(axis=1).sum())
            difference.largest = max(difference.largest, float(apart.max()))
            norms = np.linalg.norm(vectors, axis=1), np.linalg.norm(two, axis=1)
            tiny = np.finfo(np.float32).tiny
            dots = np.einsum("ij,ij->i", vectors, two, dtype=np.float64)
            cosine[part] = 1 - dots / np.maximum(norms[0] * norms[1], tiny)
            relative[part] = np.linalg.norm(apart, axis=1) / np.maximum(norms[0], tiny)
            bar.update(len(vectors))
    cosine = np.maximum(cosine, 0)  # rounding
    difference.cosine = _quantiles(cosine)
    difference.relative = _quantiles(relative)
    worst = np.argsort(-relative)[:5]
    difference.worst = [(shared[i].tobytes().hex(), float(cosine[i])) for i in worst]
    return difference


def _quantiles(values: np.ndarray) -> tuple[float, float, float]:
    middle, high, top = np.quantile(values, [0.5, 0.99, 1.0])
    return float(middle), float(high), float(top)
