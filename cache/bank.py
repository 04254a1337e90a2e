"""A bank: the folder (or URL) that holds the stores of many encoders over many data sets."""

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidRequest, StoreError, StoreNotFound
from .filesystem import TEMPORARY, Files, LocalFiles, explained, open_files
from .identity import Identity, safe_name
from .store import BLOCK_ROWS, Store, is_empty, layout_class

STORES = "stores"


class Bank:
    """BANK/stores/NAME is a store each; BANK/hashes belongs to `datasets`."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.files = open_files(place)

    def __repr__(self) -> str:
        return f"Bank({str(self.files)!r})"

    @property
    def path(self) -> Path | str:
        """The folder, or the URL of a remote bank."""
        return self.files.root if isinstance(self.files, LocalFiles) else self.files.url

    def names(self) -> list[str]:
        """The names of the stores, damaged ones too.

        Not of folders in which nothing has been written: a store is being made there now, or its run was
        killed at that moment, and the next one makes it.
        """
        return self._folders(empty=False)

    def _folders(self, *, empty: bool) -> list[str]:
        with explained("read", self.files):
            names = [name for name in self.files.at(STORES).names("") if not name.startswith(TEMPORARY)]
            return [name for name in names if is_empty(self.files.at(f"{STORES}/{name}")) == empty]

    def require(self) -> None:
        """Raises StoreNotFound where there is no bank: a name that was typed wrong is not an empty bank."""
        with explained("read", self.files):
            there = bool(self.files.at(STORES).names("")) or self.files.exists(STORES)
        if not there:
            raise StoreNotFound(
                f"there is no bank at {self.files} (no stores); check --bank, or `patchbank extract` first"
            )

    def stores(self) -> list[Store]:
        """Every store, opened. Raises StoreError at one that cannot be."""
        return [self.open_name(name) for name in self.names()]

    def full_name(self, name: str) -> str:
        """The one store with this name, or whose name starts with it.

        Raises StoreNotFound; InvalidRequest for an empty name, with which every name starts.
        """
        if not name.strip():
            raise InvalidRequest("the name of a store is empty; `patchbank cache ls` lists the names")
        self.require()
        near = [known for known in self.names() if known.startswith(name)]
        if name in near:
            near = [name]
        if len(near) != 1:
            known = ", ".join(near or self.names()) or "none"
            raise StoreNotFound(
                f"{len(near)} stores in {self.files} have a name like {name!r}; there are: {known}"
            )
        return near[0]

    def open_name(self, name: str, *, lenient: bool = False) -> Store:
        """A store by its name, or by the beginning of it. lenient: for `verify` and `repair`."""
        return Store(self.files.at(f"{STORES}/{self.full_name(name)}"), lenient=lenient)

    def remove(self, name: str) -> None:
        """Removes a store, whatever state it is in."""
        files = self.files.at(f"{STORES}/{name}")
        with explained("remove", files):
            files.remove_tree()

    def files_of(self, identity: Identity) -> Files:
        """The location of the store of an identity, whether it exists or not."""
        return self.files.at(f"{STORES}/{identity.name}")

    def check_new(self, identity: Identity, backend: str) -> None:
        """Checks, without writing, that `open_store` could create this store. Raises StoreError if not."""
        files = self.files_of(identity)
        layout_class(backend)(files, dim=identity.dim, dtype=identity.dtype, block_rows=BLOCK_ROWS)
        if isinstance(files, LocalFiles):
            there = next(folder for folder in (files.root, *files.root.parents) if folder.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                what = "it cannot be written" if there.is_dir() else "it is a file"
                raise StoreError(f"cannot create a store in {there}: {what}. Fix: choose another --bank")

    def remove_empty(self, name: str, *, grace: float | None = None) -> bool:
        """Removes the folder of a store that was never created; returns whether it was removed.

        Folder by folder, only while each is empty, and that of the leases first: a run that works there holds
        one. Without a lease, only the age decides.

        grace: seconds since its last change after which a folder counts as abandoned; None: at once, for the
            run that made it, where it had leases.
        """
        files = self.files.at(f"{STORES}/{name}")
        if not isinstance(files, LocalFiles) or not files.root.is_dir() or not is_empty(files):
            return False
        if grace is None:
            over = (files.root / "parts/leases").is_dir()
        else:
            over = time.time() - files.root.stat().st_mtime > grace
        if not over:
            return False
        for folder in ("parts/leases", "parts/log", "parts/blocks", "parts", ""):
            try:
                (files.root / folder).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another run works there
                    return False
                raise StoreError(f"cannot remove {files.root}: {error.strerror}") from error
        return True

    def empty_names(self) -> list[str]:
        """Folders in which runs started and wrote nothing; `gc` removes those without a holder."""
        return self._folders(empty=True)

    def open_store(
        self,
        identity: Identity,
        *,
        create: bool = False,
        provenance: Mapping[str, Any] | None = None,
        backend: str = "zarr",
        block_rows: int = BLOCK_ROWS,
    ) -> Store:
        """The store of an identity. Raises StoreNotFound where there is none and `create` is off.

        provenance, backend, block_rows: for a new store. The provenance of later sessions is kept in the
        logs of their writers.
        """
        files = self.files_of(identity)
        try:
            store = Store(files, provenance=provenance)
        except StoreNotFound:
            if not create:
                raise
            return Store.create(
                files, identity, provenance=provenance, backend=backend, block_rows=block_rows
            )
        if store.identity != identity:
            raise StoreError(f"{files} holds a different identity from its name; move it")
        return store

    def find(
        self,
        encoder: str,
        *,
        view: str = "full",
        tokens: str | None = None,
        precision: str | None = None,
        dtype: str | None = None,
        needed: Callable[[], np.ndarray] | None = None,
    ) -> Store:
        """The one store of an encoder (its readable id) that fits.

        needed: gives the keys, uint8 (n, 16), that are to be read; asked only where several stores fit, of
            which the one that holds all of them is taken.

        Raises StoreNotFound, listing what there is and what to add, where none or several fit.
        """
        wanted = {"view": view, "tokens": tokens, "precision": precision, "dtype": dtype}
        prefix = safe_name(encoder) + "."
        stores = [self.open_name(name) for name in self.names() if name.startswith(prefix)]
        stores = [store for store in stores if store.identity.encoder["id"] == encoder]
        fits = [
            store
            for store in stores
            if all(value is None or getattr(store.identity, part) == value for part, value in wanted.items())
        ]
        if len(fits) > 1 and needed is not None:
            keys = needed()
            complete = [store for store in fits if store.contains(keys).all()]
            fits = complete if len(complete) == 1 else fits
        if len(fits) == 1:
            return fits[0]
        if not stores:
            known = sorted({name.split(".")[0] for name in self.names()})
            raise StoreNotFound(
                f"no embeddings of the encoder {encoder!r} in {self.files}; "
                f"there are: {', '.join(known) or 'none'}. "
                f"Run: patchbank extract MANIFEST --encoder {encoder} --bank {self.files}"
            )
        asked = ", ".join(f"{part}={value}" for part, value in wanted.items() if value is not None)
        listing = "; ".join(_summary(store.identity) for store in fits or stores)
        if not fits:
            raise StoreNotFound(f"no store of {encoder!r} in {self.files} has {asked}; there are: {listing}")
        parts = [p for p in wanted if len({getattr(store.identity, p) for store in fits}) > 1]
        more = f"add {' or '.join(parts)}" if parts else "they differ in weights or preprocessing"
        if not parts and all(store.identity.encoder.get("origin") == "imported" for store in fits):
            more = (
                "they were imported from different sources: `patchbank cache rm` one, or import all of "
                "them again "
                "with one --revision, which makes them one store"
            )
        raise StoreNotFound(
            f"{len(fits)} stores of {encoder!r} in {self.files} fit {asked} ({more}): {listing}"
        )


def _summary(identity: Identity) -> str:
    parts = ("view", "tokens", "precision", "dtype")
    return f"{identity.name} ({', '.join(f'{part}={getattr(identity, part)}' for part in parts)})"
