"""Files in parts/blocks beside the published blocks: do they hold rows that exist nowhere else?

A writer that was killed leaves a block without its line in a log; a log that was cut short or removed leaves
many. The name of a block proves what is in it, so that they can be published again.
"""

from dataclasses import dataclass

import numpy as np

from .backend import BLOCKS, SEGMENT_ROWS, bad_segments, name_fits, read_raw, segments_of
from .index import KeyIndex
from .log import Block
from .store import Store, StoreWriter, block_of, pending, settle


@dataclass(frozen=True)
class Leftover:
    """The files of a block that no reader sees.

    kind  "pending" (its writer is about to publish it, or was killed there), "orphan" (it was published, and
          its line is gone), "retired"
    files  its own, and the empty one that marks a pending block
    """

    block: str
    kind: str
    files: list[str]


@dataclass(frozen=True)
class ProvenRows:
    """The rows of a leftover that prove themselves. whole: the record of the block, if it is all of it."""

    keys: np.ndarray
    vectors: np.ndarray
    whole: Block | None


def leftovers(store: Store, *, strict: bool = True) -> list[Leftover]:
    """All of them, by name; blocks that are published while this looks are none."""
    own: dict[str, list[str]] = {}
    for name in store.files.names(BLOCKS):
        block = store.layout.block_of(name)
        if block is not None:
            own.setdefault(block, []).append(f"{BLOCKS}/{name}")
    store.catalog.read(strict=strict)
    marked = {block for block in own if block not in store.catalog.published and _is_marked(store, block)}
    store.catalog.read(strict=strict)  # a mark that is gone may be that of a line that was written just now
    alive = {block.id for block in store.catalog.live()}
    left: list[Leftover] = []
    for block in sorted(own.keys() - alive):
        unpublished = "pending" if block in marked else "orphan"
        kind = "retired" if block in store.catalog.retired else unpublished
        left.append(Leftover(block, kind, own[block] + [pending(block)] * (block in marked)))
    return left


def _is_marked(store: Store, block: str) -> bool:
    return store.files.exists(pending(block))


def proven(store: Store, name: str) -> ProvenRows | None:
    """The rows of a leftover that are what its record or its name says, or None: there are none."""
    record = store.catalog.published.get(name)
    try:
        if record is None:
            return _by_name(store, name)
        spots = store.spot_of(record)
        vectors, keys = store.empty_block(record.rows, spots)
        read_raw(store.files, spots, vectors, keys)
    except FileNotFoundError:
        return None
    good = np.ones(record.rows, dtype=bool)
    for segment in bad_segments(record, vectors, keys):
        good[segment * SEGMENT_ROWS : (segment + 1) * SEGMENT_ROWS] = False
    return ProvenRows(keys[good], vectors[good], record if good.all() else None) if good.any() else None


def _by_name(store: Store, name: str) -> ProvenRows | None:
    for rows, extra in store.layout.recover(name):
        spots = store.spot_of(Block(name, rows, "", "", "", 0.0, "", extra))
        vectors, keys = store.empty_block(rows, spots)
        read_raw(store.files, spots, vectors, keys)
        segments = segments_of(vectors, keys)
        if name_fits(name, rows, segments):
            block = block_of(name, vectors, keys, segments, "recovered", extra)
            # its padding may be damaged, which the name does not tell: then the rows are copied
            return ProvenRows(keys, vectors, None if store.layout.other_bytes(block, *spots) else block)
    return None


def publish(store: Store, writer: StoreWriter, leftover: Leftover, rows: ProvenRows, new: np.ndarray) -> None:
    """Publishes the rows of a leftover that exist nowhere else: `new`, bool (n,)."""
    if leftover.kind != "retired" and rows.whole is not None:
        writer.log().append(rows.whole.record())
        settle(store, [leftover.block])
    else:
        writer.publish(np.ascontiguousarray(rows.vectors[new]), np.ascontiguousarray(rows.keys[new]))


def held_keys(store: Store, without: dict[str, np.ndarray]) -> KeyIndex:
    """The keys of the published blocks, but for damaged rows: `without`, block -> bool, (rows,)."""
    index, start = KeyIndex(), 0
    for block in store.catalog.live():
        lost = without.get(block.id)
        if lost is None:
            keys = store.keys_of(block)
        elif lost.all():
            continue
        else:
            spots = store.spot_of(block)
            vectors, keys = store.empty_block(block.rows, spots)
            read_raw(store.files, spots, vectors, keys)
            keys = keys[~lost]
        index.add(np.ascontiguousarray(keys), start)
        start += len(keys)
    return index
