"""`verify`, `repair` and `gc`: is every byte what was written, and what to do where it is not."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash
from tqdm import tqdm

from ..errors import StoreError
from .files import TEMPORARY, as_bytes, explained
from .finish import finalize_under_lease, withdraw_order
from .index import KEY_BYTES
from .layout import BLOCKS, SEGMENT_ROWS, name_fits, segments_of
from .leases import FOLDER as LEASES
from .leases import Lease, stale_leases
from .log import Block
from .store import Store, StoreWriter, block_of

GRACE = 86_400.0  # seconds before a file that no log speaks of is taken for a leftover


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    kind  "description", "log", "rows", "file" (of a block, not its rows), "arrays" (of a finalised store)
    rows  (first, last) row numbers within the block, both included
    keys  uint8, (m, 16): the keys of these rows, as far as the key file can be believed
    """

    kind: str
    file: str
    what: str
    block: str = ""
    rows: tuple[tuple[int, int], ...] = ()
    keys: np.ndarray = field(default_factory=lambda: np.empty((0, KEY_BYTES), np.uint8), compare=False)

    def __str__(self) -> str:
        where = ", ".join(f"{first}-{last}" for first, last in self.rows)
        return f"{self.file}: {self.what}" + (f" (block {self.block}, rows {where})" if where else "")


@dataclass
class Verified:
    """What `verify` looked at and found. `notes` are harmless (leftovers of killed writers)."""

    blocks: int = 0
    rows: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.damage


def verify(store: Store, *, progress: bool = False) -> Verified:
    """Reads every byte of a store that counts and compares it with its checksum.

    The store may be one that was opened leniently (`Bank.open_name(name, lenient=True)`), being damaged.
    """
    found = Verified()
    with explained("read", store.files):
        _verify_descriptions(store, found)
        store.catalog.read(strict=False)
        for bad in store.catalog.bad.values():
            if bad.kind == "torn":
                found.notes.append(f"{bad.file}, line {bad.line} is unfinished: its writer was killed there")
            else:
                found.damage.append(Damage("log", bad.file, f"line {bad.line}: {bad.kind}"))
        live = store.catalog.live()
        for block in tqdm(live, "verify", unit="block", mininterval=1, disable=not progress):
            found.blocks += 1
            found.rows += block.rows
            found.bytes += block.rows * (store.layout.row_bytes + KEY_BYTES)
            faults = list(_verify_block(store, block))
            if faults:  # perhaps packed and swept since the log was read
                store.catalog.read(strict=False)
                found.damage += [] if block.id in store.catalog.retired else faults
        _verify_arrays(store, found)
        for name in _unpublished(store):
            found.notes.append(f"{name} belongs to no published block; `cache gc` sweeps it after a day")
    return found


def _verify_descriptions(store: Store, found: Verified) -> None:
    right = store.layout.describe(store.description)
    for name in store.layout.descriptions:
        if not store.files.exists(name):
            found.damage.append(Damage("description", name, "is missing"))
        elif store.files.read(name) != right:
            found.damage.append(Damage("description", name, "was changed after it was written"))


def _verify_block(store: Store, block: Block) -> Iterator[Damage]:
    everything = ((0, block.rows - 1),)
    try:
        vectors_at, keys_at = store.spot_of(block)
        other = store.layout.other_bytes(block, vectors_at, keys_at)
    except FileNotFoundError as error:
        yield Damage("rows", str(error.filename), "is missing", block.id, everything)
        return
    vectors, keys = _read_whole(store, block)
    bad = _bad_segments(block, vectors, keys)
    if bad:
        rows = tuple((s * SEGMENT_ROWS, min((s + 1) * SEGMENT_ROWS, block.rows) - 1) for s in bad)
        of = np.concatenate([keys[first : last + 1] for first, last in rows])
        name = vectors_at.file if vectors_at.file == keys_at.file else f"{vectors_at.file} or {keys_at.file}"
        yield Damage("rows", name, "rows are not what was written", block.id, rows, of)
    elif other:
        yield Damage("file", vectors_at.file, other, block.id)


def _read_whole(store: Store, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and keys of a block; rows that its files are too short for are zeros."""
    vectors = np.zeros((block.rows, store.dim), store.layout.dtype)
    keys = np.zeros((block.rows, KEY_BYTES), np.uint8)
    for spot, array in zip(store.spot_of(block), (vectors, keys), strict=True):
        store.files.read_into(spot.file, spot.offset, as_bytes(array))
    return vectors, keys


def _bad_segments(block: Block, vectors: np.ndarray, keys: np.ndarray) -> list[int]:
    now = segments_of(vectors, keys)
    return [i // 16 for i in range(0, len(now), 16) if now[i : i + 16] != block.segments[i : i + 16]]


def _verify_arrays(store: Store, found: Verified) -> None:
    """The files of a finalised store beside its blocks."""
    catalog = store.catalog
    for name, wanted in catalog.order_record.get("view", {}).items():
        if not store.files.exists(name):
            found.damage.append(Damage("arrays", name, "is missing (`cache finalize` was interrupted?)"))
        elif xxhash.xxh3_64_hexdigest(store.files.read(name)) != wanted:
            found.damage.append(Damage("arrays", name, "was changed after it was written"))
    known = {block.id: block for block in catalog.live()}
    for chunk, name in enumerate(catalog.order):
        if name not in known:
            found.damage.append(Damage("arrays", name, "is a block of the arrays and is not published"))
            continue
        spots = store.layout.spots(known[name], chunk)
        for kind in spots:
            if len(kind) > 1 and store.files.exists(kind[0].file):
                found.damage.append(
                    Damage("arrays", kind[0].file, "is not in its place (`cache finalize` again)")
                )


def _unpublished(store: Store) -> list[str]:
    """Files in the blocks folder that no log speaks of, or that were retired."""
    catalog = store.catalog
    names = store.files.names(BLOCKS)
    alive = {block.id for block in catalog.live()}
    return [f"{BLOCKS}/{name}" for name in names if store.layout.block_of(name) not in alive]


# --- repair -----------------------------------------------------------------------------------------


@dataclass
class Repaired:
    """What `repair` did. `lost` rows have to be embedded again (`extract` does it by itself)."""

    lost: int = 0
    saved: int = 0
    actions: list[str] = field(default_factory=list)
    lost_keys: np.ndarray = field(default_factory=lambda: np.empty((0, KEY_BYTES), np.uint8))


def repair(store: Store, *, progress: bool = False) -> Repaired:
    """Takes everything damaged out of a store, so that what remains verifies; keeps every good row.

    Nothing is overwritten: good rows of a damaged block go to a new block, the old one is retired, damaged
    log lines are excused, and blocks whose line was lost are published again from what their names prove.

    Raises StoreError while another process finalises or repairs the store.
    """
    lease = Lease.acquire(store.files, "finalize", ttl=120)
    if lease is None:
        raise StoreError(f"{store.files} is being finalised or repaired by another process; try again later")
    done = Repaired()
    with lease, StoreWriter(store, name="repair", block_rows=store.block_rows) as writer:
        found = verify(store, progress=progress)
        _repair_descriptions(store, found, done)
        had_arrays = bool(store.catalog.order)
        if store.catalog.damage():
            _repair_log(store, writer, done)
            found = verify(store)
        faulty = {damage.block: damage for damage in found.damage if damage.block}
        broken = [damage for damage in found.damage if damage.kind == "arrays"]
        if faulty:
            withdraw_order(store, writer)
        lost = [_replace(store, writer, store.catalog.published[name], faulty[name], done) for name in faulty]
        store.reopen()
        if lost:
            keys = np.concatenate(lost)
            done.lost_keys = keys[~store.contains(keys)]
        if had_arrays and (faulty or broken or not store.catalog.order) and len(store):
            finalize_under_lease(store, writer, lease)
            done.actions.append(
                "the finalised arrays were built again (columns of a table: `cache finalize`)"
            )
    return done


def _repair_descriptions(store: Store, found: Verified, done: Repaired) -> None:
    """The document that `store` was opened with has a valid checksum: both files get it."""
    for damage in found.damage:
        if damage.kind == "description":
            with explained("write", store.files):
                store.files.put({damage.file: [store.layout.describe(store.description)]})
            done.actions.append(f"{damage.file} was written again from its copy")


def _repair_log(store: Store, writer: StoreWriter, done: Repaired) -> None:
    """Excuses damaged lines; publishes the blocks that they spoke of again, where their files are whole."""
    damaged = store.catalog.damage()
    writer.log().append({"type": "excuse", "lines": [bad.excuse() for bad in damaged]})
    done.actions.append(f"damaged lines that are passed over from now on: {len(damaged)}")
    store.catalog.read()
    if any(name not in store.catalog.published for name in store.catalog.order):
        withdraw_order(store, writer)
    known = set(store.catalog.published)
    names = {store.layout.block_of(name) for name in store.files.names(BLOCKS)} - known - {None}
    for name in sorted(name for name in names if name is not None):
        block = recovered(store, name)
        if block is not None:
            writer.log().append(block.record())
            done.saved += block.rows
            done.actions.append(f"block {name} was published again: its name proves its {block.rows} rows")
    store.catalog.read()


def recovered(store: Store, name: str) -> Block | None:
    """A block made from its own files, if they are what its name says."""
    for rows, extra in store.layout.recover(name):
        vectors, keys = _read_whole(store, Block(name, rows, "", "", "", 0.0, "", extra))
        segments = segments_of(vectors, keys)
        if name_fits(name, rows, segments):
            return block_of(name, vectors, keys, segments, "repair", extra)
    return None


def _replace(store: Store, writer: StoreWriter, block: Block, damage: Damage, done: Repaired) -> np.ndarray:
    """Retires a damaged block after its good rows went to a new one. Returns the keys of the others."""
    good = np.ones(block.rows, dtype=bool)
    for first, last in damage.rows:
        good[first : last + 1] = False
    if good.any():
        vectors, keys = _read_whole(store, block)
        writer.publish(vectors[good], keys[good])
    writer.log().append({"type": "retire", "blocks": [block.id], "reason": f"damaged: {damage}"})
    lost = int((~good).sum())
    done.lost += lost
    done.saved += block.rows - lost
    done.actions.append(f"{damage}: {block.rows - lost} rows kept, {lost} taken out")
    return damage.keys


# --- gc ---------------------------------------------------------------------------------------------


@dataclass
class Swept:
    """What `gc` removed (or would)."""

    files: list[str] = field(default_factory=list)
    bytes: int = 0


def gc(store: Store, *, grace: float = GRACE, dry_run: bool = False) -> Swept:
    """Removes leftovers: temporary and unpublished files older than `grace` seconds, blocks that were packed
    or replaced, stale leases. Published blocks are never touched, whoever is writing meanwhile, as long as
    `grace` is longer than a writer takes from a block's files to its line in the log (seconds at most).
    """
    swept = Swept()
    files, layout = store.files, store.layout
    with explained("sweep", files):
        seen = [f"{BLOCKS}/{name}" for name in files.names(BLOCKS)]
        temporary = [name for name in files.walk() if name.rpartition("/")[2].startswith(TEMPORARY)]
        store.refresh()  # after the listing: what was published since is not taken for a leftover
        alive = {block.id for block in store.catalog.live()}
        unused = [name for name in seen if (b := layout.block_of(name.rpartition("/")[2])) and b not in alive]
        now = files.clock()
        for name in sorted({*unused, *temporary, *stale_leases(files)}):
            try:
                if not name.startswith(LEASES) and now - files.modified(name) < grace:
                    continue
                size = files.size(name)
                if not dry_run:
                    files.remove(name)
            except FileNotFoundError:  # another sweep, or a writer that was quicker
                continue
            swept.files.append(name)
            swept.bytes += size
    return swept
