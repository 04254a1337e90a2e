"""What `cache ls`, `cache info` and `cache merge` say about a bank as a whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ..errors import StoreError
from .bank import Bank
from .merge import merge
from .store import Store
from .table import keys_of_table, with_hash


def listing(bank: Bank, tables: Mapping[str, pd.DataFrame] | None = None) -> list[dict[str, Any]]:
    """One entry a store; `complete`: name of a table -> (patches that have a row, patches).

    A store that cannot be opened has only its name and `damage`.
    """
    counted = {name: (keys_of_table(with_hash(table)), len(table)) for name, table in (tables or {}).items()}
    entries: list[dict[str, Any]] = []
    for name in bank.names():
        try:
            store = bank.open_name(name)
            complete = {name: (int(store.contains(keys).sum()), n) for name, (keys, n) in counted.items()}
            entries.append(_entry(store) | {"complete": complete})
        except StoreError as error:
            entries.append({"name": name, "damage": str(error)})
    return entries


def _entry(store: Store) -> dict[str, Any]:
    identity = store.identity
    return {
        "name": store.name,
        "encoder": identity.encoder["id"],
        "view": identity.view,
        "tokens": identity.tokens,
        "precision": identity.precision,
        "dtype": identity.dtype,
        "dim": identity.dim,
        "rows": len(store),
        "bytes": store.published_rows * (store.layout.row_bytes + 16),
        "backend": store.backend,
        "state": _state(store),
    }


def _state(store: Store) -> str:
    live = {block.id for block in store.catalog.live()}
    if not store.catalog.order:
        return "blocks"
    return "finalized" if live == set(store.catalog.order) else "finalized, rows added since"


def information(store: Store) -> dict[str, Any]:
    """Everything that is known of a store without reading its vectors."""
    catalog = store.catalog
    return {
        **_entry(store),
        "path": str(store.path),
        "format": f"{store.description['format']} {store.description['version']}",
        "digest": store.identity.digest,
        "created": store.description["created"],
        "blocks": len(catalog.live()),
        "identity": store.identity.to_json(),
        "provenance": store.provenance,
        "writers": [
            {part: session.get(part) for part in ("writer", "time", "provenance")}
            for session in catalog.sessions
        ],
    }


def merge_banks(into: str, sources: Sequence[str], name: str | None = None) -> Iterator[tuple[str, int]]:
    """Merges, store by store, everything (or the store `name`) of other banks: (store, rows copied)."""
    target_bank = Bank(into)
    banks = [Bank(source) for source in sources]
    for bank in banks:  # before anything is copied
        bank.require()
    for bank in banks:
        for store in [bank.open_name(name)] if name else bank.stores():
            target = target_bank.open_store(
                store.identity,
                create=True,
                provenance=store.provenance,
                backend="zarr" if target_bank.files.remote else store.backend,
            )
            yield store.name, merge(target, [store], progress=True)
