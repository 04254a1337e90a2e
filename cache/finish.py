"""`finalize`: the published blocks as plain arrays that any Zarr or HDF5 reader opens.

Short blocks (and blocks with rows that another block has too) are packed into full ones; then an `order`
line says which block is which chunk, the blocks' files become the chunks, and last the arrays' metadata
appears. Every step can be interrupted and run again; patchbank itself reads the store correctly at any
moment. Rows keep their places in the arrays when more are added, except those of the last, short chunk.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xxhash

from ..errors import InvalidRequest, StoreError
from .columns import text_columns
from .files import explained
from .index import KEY_BYTES, KeyIndex
from .leases import Lease
from .log import Block
from .store import Store, StoreWriter
from .table import first_of_key


@dataclass(frozen=True)
class Finalized:
    """rows: in the arrays. blocks: chunks. packed: rows that were copied on the way."""

    rows: int
    blocks: int
    packed: int


def finalize(store: Store, table: pd.DataFrame | None = None) -> Finalized:
    """Makes (or brings up to date) the arrays `embeddings` (n, dim) and `content_hash` (n, 16).

    table: rows of a manifest with `content_hash` (32 hex digits); its other columns become string arrays
        of length n (columns.py has the rule for their names), "" where a row is of no patch of the table, the
        first patch's where it is of several.

    Raises StoreError while another process finalises the same store.
    """
    lease = Lease.acquire(store.files, "finalize", ttl=120)
    if lease is None:
        raise StoreError(f"{store.files} is being finalised or repaired by another process; try again later")
    with lease, StoreWriter(store, name="finalize", block_rows=store.block_rows) as writer:
        return finalize_under_lease(store, writer, lease, table)


def finalize_under_lease(
    store: Store, writer: StoreWriter, lease: Lease, table: pd.DataFrame | None = None
) -> Finalized:
    """`finalize`, for a caller who holds the lease already."""
    store.refresh()
    if len(store) == 0:
        raise InvalidRequest(f"{store.files} has no rows yet: nothing to finalise")
    with explained("finalise", store.files):
        order, packed = _pack(store, writer)
        store.refresh()
        for block in order:
            _require_files(store, block)
        columns = {} if table is None else _columns(store, order, table)
    if lease.lost:
        raise StoreError(f"{store.files}: another process took the lease over; run this again")
    publish_order(store, writer, order, columns)
    return Finalized(sum(block.rows for block in order), len(order), packed)


def _require_files(store: Store, block: Block) -> None:
    """Raises OSError: a block without its rows must not become part of the arrays."""
    for spot, width in zip(store.spot_of(block), (store.layout.row_bytes, KEY_BYTES), strict=True):
        if store.files.size(spot.file) < spot.offset + block.rows * width:
            raise OSError(5, "the file is too short; see `patchbank cache verify`", spot.file)


def publish_order(
    store: Store, writer: StoreWriter, order: list[Block], columns: dict[str, list[str]]
) -> None:
    """Says which blocks make up the arrays and builds them; crash-safe and idempotent."""
    catalog, layout, files = store.catalog, store.layout, store.files
    view = layout.view(order, columns)
    record = {
        "type": "order",
        "generation": catalog.generation + 1,
        "blocks": [block.id for block in order],
        "view": {name: xxhash.xxh3_64_hexdigest(content) for name, content in view.items()},
        "time": time.time(),
    }
    former, former_view = catalog.order, catalog.order_record.get("view", {})
    same = record["blocks"] == former and record["view"] == former_view
    if not same:
        for _ in range(2):  # a damaged byte must not lose which chunk is which block
            writer.log().append(record)
    with explained("finalise", files):
        layout.place(order, former)
        for name, content in view.items():
            files.make_folder(name.rpartition("/")[0])
            files.put({name: [content]})
        for name in set(former_view) - set(view):
            files.remove(name)
        for folder in {name.split("/")[0] for name in set(former_view) - set(view) if "/" in name}:
            files.prune(folder)
    store.refresh()


def withdraw_order(store: Store, writer: StoreWriter) -> None:
    """Takes the arrays away; the blocks get their own files back."""
    catalog = store.catalog
    if not catalog.order:
        return
    with explained("take the arrays out of", store.files):
        for name in reversed(catalog.order_record["view"]):  # the arrays disappear before their chunks do
            store.files.remove(name)
        store.layout.displace(catalog.order)
    record = {"type": "order", "generation": catalog.generation + 1, "blocks": [], "view": {}}
    writer.log().append({**record, "time": time.time()})
    store.refresh()


def _pack(store: Store, writer: StoreWriter) -> tuple[list[Block], int]:
    """Full blocks without repeated rows: (in order, rows copied). The last may be short."""
    catalog = store.catalog
    live = {block.id: block for block in catalog.live()}
    wasted = _repeated(store, list(live.values()))
    clean = {n for n, block in live.items() if block.rows == store.block_rows and not wasted.get(n, 0)}
    kept = [name for name in catalog.order[:-1] if name in clean]
    if catalog.order:
        last = catalog.order[-1]
        if kept != catalog.order[:-1]:
            withdraw_order(store, writer)
            kept = []
        elif last in clean or (last in live and not wasted.get(last, 0) and len(live) == len(kept) + 1):
            kept.append(last)  # full, or short and still the only short one
    head = [live[name] for name in kept]
    others = [live[name] for name in live.keys() - set(kept)]
    others.sort(key=lambda block: (block.time, block.id))
    full = [block for block in others if block.id in clean]
    loose = [block for block in others if block.id not in clean]
    packed = [
        writer.publish(vectors, keys, padded=len(keys) < store.block_rows)
        for vectors, keys in _repacked(store, [*head, *full], loose)
    ]
    if loose:
        reason = f"packed by {writer.log().name}"
        writer.log().append({"type": "retire", "blocks": [block.id for block in loose], "reason": reason})
    return [*head, *full, *packed], sum(block.rows for block in packed)


def _repeated(store: Store, live: list[Block]) -> dict[str, int]:
    """Rows of each block whose key stands in an earlier row."""
    rows = sum(block.rows for block in live)
    if rows == len(store):
        return {}
    index = KeyIndex(np.concatenate([store.keys_of(block) for block in live]))
    first = np.zeros(rows, dtype=bool)
    first[index.first_rows()] = True
    ends = np.cumsum([block.rows for block in live])
    return {
        block.id: int(block.rows - first[end - block.rows : end].sum())
        for block, end in zip(live, ends, strict=True)
    }


def _repacked(
    store: Store, whole: list[Block], loose: list[Block]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of loose blocks that are in no whole block, each key once, in runs of block_rows."""
    if not loose:
        return
    keys = np.concatenate([store.keys_of(block) for block in loose])
    wanted = np.zeros(len(keys), dtype=bool)
    wanted[KeyIndex(keys).first_rows()] = True
    if whole:
        wanted &= KeyIndex(np.concatenate([store.keys_of(block) for block in whole])).find(keys) < 0
    size = store.block_rows
    out_keys = np.empty((size, KEY_BYTES), np.uint8)
    out = np.empty((size, store.dim), store.layout.dtype)
    filled = start = 0
    for block in loose:
        rows = np.flatnonzero(wanted[start : start + block.rows])
        vectors, block_keys = store.vectors_of(block), keys[start : start + block.rows]
        start += block.rows
        while len(rows):
            step = rows[: size - filled]
            out[filled : filled + len(step)] = vectors[step]
            out_keys[filled : filled + len(step)] = block_keys[step]
            filled, rows = filled + len(step), rows[len(step) :]
            if filled == size:
                yield out, out_keys
                filled = 0
    if filled:
        yield out[:filled], out_keys[:filled]


def _columns(store: Store, order: list[Block], table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a table as text, by their written names, in the order of the rows."""
    rows = first_of_key(table, np.concatenate([store.keys_of(block) for block in order]))
    return {
        name: [words[row] if row >= 0 else "" for row in rows] for name, words in text_columns(table).items()
    }
