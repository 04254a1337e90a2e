"""`finalize`: the published blocks as plain arrays that any Zarr or HDF5 reader opens.

Short blocks (and blocks with rows that another block has too) are packed into full ones; then an `order`
line says which block is which chunk, the blocks' files get the chunks' names too, and last the arrays'
metadata appears. Every step can be interrupted and run again; patchbank itself reads the store correctly at
any moment. Rows keep their places in the arrays when more are added, except those of the last, short chunk.

Two that finalise or repair at once (one was stopped for longer than its lease, or the clocks of two machines
made it look so) cannot lose rows: blocks are never overwritten, and what is retired is said in one step with
what replaces it, under a generation that is taken once. The slower one learns that and stops.
"""

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product, takewhile
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from ..errors import InvalidRequest, StoreError
from .backend import BLOCKS, Spot, bad_segments, read_raw
from .columns import text_columns
from .filesystem import TEMPORARY, explained
from .index import KEY_BYTES, KeyIndex
from .leases import Lease, hold
from .log import Block, commit
from .store import Store, make_folders, pending, settle, write_block
from .table import first_of_key

LEASE = 120.0  # seconds without a sign of life after which another process takes over


@dataclass(frozen=True)
class Finalized:
    """rows: in the arrays. blocks: chunks. packed: rows that were copied on the way."""

    rows: int
    blocks: int
    packed: int


def finalize(
    store: Store, table: pd.DataFrame | None = None, *, say: Callable[[str], object] | None = None
) -> Finalized:
    """Makes (or brings up to date) the arrays `embeddings` (n, dim) and `content_hash` (n, 16).

    table: rows of a manifest with `content_hash` (32 hex digits); its other columns become string arrays
        of length n (columns.py has the rule for their names), "" where a row is of no patch of the table, the
        first patch's where it is of several.
    say: called with who is waited for, where another process holds the store and gives no sign of life.

    Raises StoreError while another process finalises the same store, and where a row that would have to be
    copied is damaged.
    """
    with hold(store.files, "finalize", ttl=LEASE, owner="finalize", say=say) as lease:
        return finalize_under_lease(store, lease, table)


def finalize_under_lease(store: Store, lease: Lease, table: pd.DataFrame | None = None) -> Finalized:
    """`finalize`, for a caller who holds the lease already."""
    make_folders(store)
    store.refresh()
    generation = store.catalog.next_generation  # of what is read from here on; no other process can take it
    if len(store) == 0:
        raise InvalidRequest(f"{store.files} has no rows yet: nothing to finalise")
    with written(store) as packed:
        with explained("finalise", store.files):
            give_own_files(store)
            order, loose = _pack(store, f"finalize-{generation}", packed)
            for block in order:
                _require_files(store, block)
            columns = {} if table is None else _columns(store, order, table)
        publish_order(store, lease, generation, order, columns, packed=packed, loose=loose)
    return Finalized(sum(block.rows for block in order), len(order), sum(block.rows for block in packed))


@contextmanager
def written(store: Store) -> Generator[list[Block]]:
    """A list for blocks that are written to be published together; after an error those that were not go."""
    blocks: list[Block] = []
    try:
        yield blocks
    except BaseException:
        with explained("sweep", store.files):
            store.refresh()
            for block in blocks:
                if block.id not in store.catalog.published:
                    for name in (*store.layout.files_of(block.id), pending(block.id)):
                        store.files.remove(name)
        raise


def replace_blocks(
    store: Store,
    lease: Lease,
    generation: int,
    new: Sequence[Block],
    retired: Mapping[str, str],
    order: Sequence[dict[str, Any]] = (),
) -> None:
    """Publishes blocks and takes back those that they replace (id -> why), in one step.

    generation: `Catalog.next_generation` from before it was decided that nothing else holds these rows.

    Raises StoreError, and changes nothing, where another process took the generation or the lease.
    """
    records = [block.record() for block in new]
    reasons: dict[str, list[str]] = {}
    for block, reason in retired.items():
        reasons.setdefault(reason, []).append(block)
    for reason, blocks in reasons.items():  # twice: a damaged byte must not lose what no file proves
        records += [{"type": "retire", "blocks": blocks, "time": time.time(), "reason": reason}] * 2
    records += [record for record in order for _ in range(2)]
    lease.check()
    if not commit(store.files, generation, records, {"provenance": store.session}):
        raise StoreError(
            f"{store.files}: another process finalised or repaired the store meanwhile; nothing was changed, "
            "run this again"
        )
    settle(store, [block.id for block in new])


def _require_files(store: Store, block: Block) -> None:
    """Raises OSError: a block without its rows must not become part of the arrays."""
    for spot, width in zip(store.spot_of(block), (store.layout.row_bytes, KEY_BYTES), strict=True):
        if store.files.size(spot.file) < spot.offset + block.rows * width:
            raise OSError(5, "the file is too short; see `patchbank cache verify`", spot.file)


def publish_order(
    store: Store,
    lease: Lease,
    generation: int,
    order: list[Block],
    columns: dict[str, list[str]],
    *,
    packed: Sequence[Block] = (),
    loose: Sequence[Block] = (),
) -> None:
    """Says which blocks make up the arrays and builds them; crash-safe and idempotent.

    packed: blocks whose files are written and that are published by this. loose: blocks that it retires.

    Raises StoreError, and changes nothing, where another process took the generation or the lease.
    """
    catalog, layout, files = store.catalog, store.layout, store.files
    view = layout.view(order, columns) if order else {}
    sums = {name: xxhash.xxh3_64_hexdigest(content) for name, content in view.items()}
    former, former_view = list(catalog.order), dict(catalog.order_record.get("view", {}))
    names = [block.id for block in order]
    if not packed and not loose and names == former and sums == former_view:
        generation = catalog.generation
    else:
        reason = f"packed by finalize-{generation}"
        line = {"type": "order", "generation": generation, "blocks": names, "view": sums, "time": time.time()}
        retired = {block.id: reason for block in loose}
        replace_blocks(store, lease, generation, packed, retired, [line])
    try:
        with explained("finalise", files):
            _build(
                store, lease, names, former if _is_built(store, former_view) else [], view, set(former_view)
            )
    finally:
        _settle_arrays(store, generation)


def _is_built(store: Store, view: dict[str, str]) -> bool:
    """Whether arrays were built to the end: they disappear before a chunk changes, and appear last."""
    files = store.files
    return all(
        files.exists(name) and xxhash.xxh3_64_hexdigest(files.read(name)) == wanted
        for name, wanted in view.items()
    )


def _build(
    store: Store,
    lease: Lease,
    order: list[str],
    former: list[str],
    view: dict[str, bytes],
    former_view: set[str],
) -> None:
    """Moves the arrays' files to their names; blocks are never changed here."""
    files, stale = store.files, former_view - set(view)
    wrong = misplaced(store, order, former)
    if any(files.exists(target) for _, target in wrong):
        for name in reversed([*stale, *view]):  # no arrays rather than vectors beside the keys of others
            lease.check()
            files.remove(name)
    for source, target in wrong:
        lease.check()
        _replace_chunk(store, source, target, former)
    for name, content in view.items():
        lease.check()
        files.make_folder(name.rpartition("/")[0])
        files.put({name: [content]})
    for name in sorted(stale):
        lease.check()
        files.remove(name)
    for folder in sorted({name.split("/")[0] for name in stale if "/" in name}):
        files.prune(folder)


def misplaced(store: Store, order: Sequence[str], former: Sequence[str]) -> list[tuple[str | None, str]]:
    """What has to become of the arrays' chunks: (a block's file, the name that it gets too); None: no chunk.

    former: the order that the chunks are known to have; where that says nothing and a file cannot have two
        names, their bytes are compared.
    """
    files = store.files
    there = set(store.layout.placed())
    wrong: list[tuple[str | None, str]] = []
    for chunk, name in enumerate(order):
        for own, target in store.layout.chunks(name, chunk):
            if target in there:
                there.remove(target)
                known = files.same(own, target) or list(former[chunk : chunk + 1]) == [name]
                if known or files.read(own) == files.read(target):
                    continue
            wrong.append((own, target))
    return [*wrong, *((None, target) for target in sorted(there))]


def _replace_chunk(store: Store, source: str | None, target: str, former: Sequence[str]) -> None:
    """A chunk gets another file, or none. What it held is set aside for `gc` unless a block's file has it."""
    files = store.files
    if files.exists(target):
        chunk = int(target.split("/")[-2])
        held = [own for name in former[chunk : chunk + 1] for own, _ in store.layout.chunks(name, chunk)]
        if not any(files.same(own, target) for own in held):
            files.move(target, f"{BLOCKS}/{TEMPORARY}chunk-{secrets.token_hex(8)}")
    if source is None:
        files.remove(target)
        files.prune(target.rpartition("/")[0])
        return
    folder = target.rpartition("/")[0]
    files.make_folder(folder)
    files.duplicate(source, target)
    files.sync(folder)


def _settle_arrays(store: Store, generation: int) -> None:
    """Corrects what this process may have changed in arrays that another process built meanwhile."""
    while True:
        store.refresh()
        if store.catalog.generation == generation:
            return
        generation = store.catalog.generation
        with explained("finalise", store.files):
            restore_arrays(store)


def restore_arrays(store: Store) -> bool:
    """Puts the arrays' files right as the newest order has them; False: some cannot be (string columns), or
    are not what `finalize` makes.

    Raises OSError where a block's file does not exist.
    """
    files, catalog = store.files, store.catalog
    give_own_files(store)
    if not all(name in catalog.published for name in catalog.order):
        return False
    for source, target in misplaced(store, catalog.order, ()):
        _replace_chunk(store, source, target, catalog.order)
    blocks = [catalog.published[name] for name in catalog.order]
    view = store.layout.view(blocks, {}) if blocks else {}
    whole = True
    kept: dict[str, bytes] = {}
    for name, wanted in catalog.order_record.get("view", {}).items():
        content = files.read(name) if files.exists(name) else b""
        if xxhash.xxh3_64_hexdigest(content) == wanted:
            kept[name] = content
        elif name in view and xxhash.xxh3_64_hexdigest(view[name]) == wanted:
            files.make_folder(name.rpartition("/")[0])
            files.put({name: [view[name]]})
        else:
            whole = False
    return whole and not store.layout.foreign(kept, blocks)


def give_own_files(store: Store, damaged: Sequence[Block] = ()) -> list[str]:
    """Gives blocks that exist only as a chunk of the arrays their own files; returns their names.

    Written by patchbank 0.1.0, or somebody removed parts/blocks. A chunk gets a block's name only if it is
    the block; where no order says which chunk that is, the keys tell.
    damaged: blocks whose own files are damaged, which a chunk may be (a copy, not a second name).
    """
    layout, catalog = store.layout, store.catalog
    bare = [*bare_blocks(store), *damaged]
    chunks = sorted({int(name.split("/")[-2]) for name in layout.placed()}) if bare else []
    given: list[str] = []
    for block in bare:
        known = catalog.chunks.get(block.id)
        if any(
            _adopt(store, block, layout.chunks(block.id, chunk))
            for chunk in sorted(chunks, key=lambda chunk, known=known: chunk != known)
        ):
            given.append(block.id)
    if given:
        store.files.sync(BLOCKS)
    return given


def bare_blocks(store: Store) -> list[Block]:
    """Published blocks without their own file."""
    names = {f"{BLOCKS}/{name}" for name in store.files.names(BLOCKS)}
    return [block for block in store.catalog.live() if not names.issuperset(store.layout.files_of(block.id))]


def _adopt(store: Store, block: Block, names: list[tuple[str, str]]) -> bool:
    """The chunk's files become the block's own, where these are missing or damaged, if they are the block."""
    files = store.files
    choices = [[name for name in pair if files.exists(name)] for pair in names]
    return any(_adopt_these(store, block, names, sources) for sources in product(*choices))


def _adopt_these(store: Store, block: Block, names: list[tuple[str, str]], sources: tuple[str, ...]) -> bool:
    files = store.files
    keys = files.read(sources[1], 0, block.rows * KEY_BYTES)
    if xxhash.xxh3_64_hexdigest(keys) != block.keys_sum:
        return False
    interim = [f"{BLOCKS}/{TEMPORARY}{secrets.token_hex(8)}" for _ in sources]
    try:
        for source, name in zip(sources, interim, strict=True):
            files.duplicate(source, name)  # first, so that it is these very bytes that are compared
        spots = Spot(interim[0], 0), Spot(interim[1], 0)
        vectors, hashes = store.empty_block(block.rows, spots)
        read_raw(files, (Spot(interim[0], 0), Spot(interim[1], 0)), vectors, hashes)
        if bad_segments(block, vectors, hashes):
            return False
        for (own, _), source, name in zip(names, sources, interim, strict=True):
            if source != own:
                files.move(name, own)
    finally:
        for name in interim:
            files.remove(name)
    return True


def _pack(store: Store, writer: str, packed: list[Block]) -> tuple[list[Block], list[Block]]:
    """Full blocks without repeated rows, in order (the last may be short), and those that they replace.

    `packed` gets the new ones among them as they are written, unpublished.
    """
    catalog = store.catalog
    live = {block.id: block for block in catalog.live()}
    wasted = _repeated(store, list(live.values()))
    clean = {n for n, block in live.items() if block.rows == store.block_rows and not wasted.get(n, 0)}
    kept = list(takewhile(lambda name: name in clean, catalog.order[:-1]))
    if catalog.order and len(kept) == len(catalog.order) - 1:
        last = catalog.order[-1]
        if last in clean or (last in live and not wasted.get(last, 0) and len(live) == len(kept) + 1):
            kept.append(last)  # full, or short and still the only short one
    head = [live[name] for name in kept]
    others = [live[name] for name in live.keys() - set(kept)]
    others.sort(key=lambda block: (block.time, block.id))
    full = [block for block in others if block.id in clean]
    loose = [block for block in others if block.id not in clean]
    for vectors, keys in _repacked(store, [*head, *full], loose):
        packed.append(write_block(store, vectors, keys, writer=writer, padded=len(keys) < store.block_rows))
    return [*head, *full, *packed], loose


def _repeated(store: Store, live: list[Block]) -> dict[str, int]:
    """Rows of each block whose key occurs in an earlier row."""
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
    size = max(1, min(store.block_rows, int(wanted.sum())))
    out_keys = np.empty((size, KEY_BYTES), np.uint8)
    out = np.empty((size, store.dim), store.layout.dtype)
    filled = start = 0
    for block in loose:
        rows = np.flatnonzero(wanted[start : start + block.rows])
        block_keys, vectors = store.read_block(block)
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
