"""Cached embeddings as a matrix whose rows are a manifest's rows."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import hashes
from ..datasets.manifest import Manifest, as_manifest
from ..errors import RowsMissing, StoreNotFound
from ..settings import encoder_id
from .config import FeatureSet, Source, parse_features


def load(
    manifest: Manifest | str | os.PathLike[str],
    *,
    encoder: str,
    bank: Any,
    view: str = "full",
    tokens: str | None = None,
    precision: str | None = None,
    dtype: str = "float32",
) -> np.ndarray:
    """The embeddings of a manifest's patches, one row a patch, in the manifest's order.

    manifest : or its path or name
    encoder, view, tokens, precision : the store to read, as `Bank.find` takes them (None: the only one there
        is, or the only one that holds all of the patches)
    bank : the folder that `patchbank extract` wrote, or an open Bank
    dtype : of the result; stores hold float16 or float32
    Returns float array (len(manifest), dim).
    Warns of a store that was chosen because it alone holds all of the patches.
    Raises StoreNotFound (no such store, or several) and RowsMissing (patches without an embedding; the
    message has the command that makes them).
    """
    manifest = as_manifest(manifest)
    # an open bank that was told which data are read has chosen for all of them
    opened = bank if isinstance(bank, _Narrowed) else open_bank(bank, manifests=[manifest])
    store = opened.find(encoder, view=view, tokens=tokens, precision=precision)
    if opened is not bank and isinstance(opened, _Narrowed):
        for note in opened.notes.values():
            warnings.warn(note, stacklevel=2)
    source = Source(encoder, view, tokens)
    keys = content_keys(manifest, bank, source)
    _check(store, keys, manifest, bank, source)
    return store.load(keys, dtype=dtype)


def load_set(
    manifest: Manifest, features: FeatureSet | str, *, bank: Any, dtype: str = "float32"
) -> np.ndarray:
    """The columns of every source, side by side: float array (len(manifest), sum of dims)."""
    features = parse_features(features) if isinstance(features, str) else features
    blocks = [
        load(manifest, encoder=s.encoder, view=s.view, tokens=s.tokens, bank=bank, dtype=dtype)
        for s in features.sources
    ]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def iter_set(
    manifest: Manifest, features: FeatureSet, *, bank: Any, rows: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """`load_set` in steps of so many rows, in memory for one of them."""
    stores = _stores_of(features, bank)
    keys = content_keys(manifest, bank, features.sources[0])
    for source, store in zip(features.sources, stores, strict=True):
        _check(store, keys, manifest, bank, source)
    for lo in range(0, len(keys), rows):
        of_stores = [store.load(keys[lo : lo + rows], dtype=dtype) for store in stores]
        yield of_stores[0] if len(of_stores) == 1 else np.concatenate(of_stores, axis=1)


def stored_dtype(features: FeatureSet, bank: Any) -> np.dtype:
    """The dtype that holds what the stores of all sources hold: float16 or float32."""
    return np.result_type(*(store.dtype for store in _stores_of(features, bank)))


def columns_in(features: FeatureSet | str, bank: Any) -> int:
    """How many columns `load_set` gives."""
    features = parse_features(features) if isinstance(features, str) else features
    return sum(store.dim for store in _stores_of(features, bank))


def _stores_of(features: FeatureSet, bank: Any) -> list[Any]:
    """The store of each source."""
    return [bank.find(s.encoder, view=s.view, tokens=s.tokens) for s in features.sources]


def resolve_set(features: FeatureSet, bank: Any) -> FeatureSet:
    """The same set with every token policy named, as the bank has it; other tools' names of an encoder
    (`settings.encoder_id`) become the bank's. Raises StoreNotFound.
    """
    bank = open_bank(bank)
    sources = []
    for source in features.sources:
        encoder = source.encoder
        try:
            identity = bank.find(encoder, view=source.view, tokens=source.tokens).identity
        except StoreNotFound:
            encoder = encoder_id(source.encoder)
            if encoder == source.encoder:
                raise
            identity = bank.find(encoder, view=source.view, tokens=source.tokens).identity
        sources.append(Source(encoder, source.view, identity.tokens))
    return FeatureSet(tuple(sources))


def check_rows(manifest: Manifest, source: Source, *, bank: Any) -> None:
    """Raises RowsMissing if a patch of the manifest has no embedding of this source, without reading any."""
    store = open_bank(bank).find(source.encoder, view=source.view, tokens=source.tokens)
    _check(store, content_keys(manifest, bank, source), manifest, bank, source)


def open_bank(
    bank: Any,
    *,
    precision: str | None = None,
    dtype: str | None = None,
    manifests: Sequence[Manifest] = (),
) -> Any:
    """A Bank from a path; an open one (anything with `find`) stays as it is.

    precision, dtype : of the stores to find in it, where it has several that differ in nothing else
    manifests : of several stores that fit, the one that holds all of their patches is found
    """
    if isinstance(bank, str) or not hasattr(bank, "find"):
        from ..cache.bank import Bank

        bank = Bank(bank)
    narrow = precision or dtype or manifests
    return _Narrowed(bank, precision, dtype, tuple(manifests)) if narrow else bank


@dataclass(frozen=True)
class _Narrowed:
    """A bank in which only stores of one precision or dtype are found, and those that hold all of the data.

    notes : what was chosen because it alone is complete, a sentence each
    """

    bank: Any
    precision: str | None
    dtype: str | None
    manifests: tuple[Manifest, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    _found: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:  # open stores stay in their process
        return _Narrowed, (self.bank, self.precision, self.dtype, self.manifests)

    @property
    def path(self) -> Any:
        return self.bank.path

    def find(self, encoder: str, *, precision: str | None = None, **parts: Any) -> Any:
        parts |= {"precision": precision or self.precision, "dtype": parts.get("dtype") or self.dtype}
        if "needed" in parts:
            return self.bank.find(encoder, **parts)
        key = (encoder, *sorted(parts.items()))
        if key not in self._found:
            self._found[key] = self._find(encoder, parts)
        return self._found[key]

    def _find(self, encoder: str, parts: dict[str, Any]) -> Any:
        if not self.manifests:
            return self.bank.find(encoder, **parts)
        asked = []

        def needed() -> np.ndarray:
            asked.append(True)
            return np.concatenate([content_keys(manifest, self.bank) for manifest in self.manifests])

        store = self.bank.find(encoder, **parts, needed=needed)
        if asked:
            name = store.identity.name
            self.notes[name] = f"of several stores of {encoder}, {name} is read: it alone holds all patches"
        return store


def content_keys(manifest: Manifest, bank: Any, source: Source | None = None) -> np.ndarray:
    """The content hash of every patch: uint8 (n, 16).

    Raises RowsMissing where one is not known, or its file has changed since it was taken.
    """
    path = getattr(bank, "path", bank)
    hashed = hashes.look_up(manifest, Path(path) / "hashes" if _is_local(path) else None)
    if hashed.changed.any():
        what = (
            "have files of another size or time than when they were read (copies of images have other times, "
            "too); `extract` reads these again, and embeds only what has changed"
        )
        raise RowsMissing(_missing(manifest, bank, source, hashed.changed, what))
    if not hashed.known.all():
        raise RowsMissing(_missing(manifest, bank, source, ~hashed.known, "have never been read"))
    return hashed.hashes


def _is_local(path: Any) -> bool:
    return isinstance(path, str | Path) and "://" not in str(path)


def _check(store: Any, keys: np.ndarray, manifest: Manifest, bank: Any, source: Source) -> None:
    present = store.contains(keys)
    if not present.all():
        raise RowsMissing(_missing(manifest, bank, source, ~present, f"have no embedding in {store.path}"))


def _missing(manifest: Manifest, bank: Any, source: Source | None, absent: np.ndarray, what: str) -> str:
    first = manifest.table["patch_id"].iloc[int(np.flatnonzero(absent)[0])]
    command = f"patchbank extract {manifest.header.name}.toml --bank {getattr(bank, 'path', bank)}"
    if source is not None:
        command += f" --encoder {source.encoder}"
        command += f" --view {source.view}" if source.view != "full" else ""
        command += f" --tokens {source.tokens}" if source.tokens else ""
    return (
        f"{int(absent.sum())} of {len(manifest)} patches of {manifest.header.name} {what} "
        f"(the first: {first}). Embed them with: {command}"
    )
