"""`verify`, `repair` and `gc`: is every byte what was written, and what to do where it is not."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash

from ..errors import StoreError
from ..files import cores
from ..terminal import progress_bar
from .backend import SEGMENT_ROWS, bad_segments, compared, read_raw
from .filesystem import TEMPORARY, explained
from .finalize import (
    LEASE,
    finalize_under_lease,
    give_own_files,
    publish_order,
    replace_blocks,
    restore_arrays,
    written,
)
from .index import KEY_BYTES
from .leases import Found, Lease, hold, holder, sweepable
from .leftovers import Leftover, ProvenRows, held_keys, leftovers, proven, publish
from .log import Block
from .parallel import in_threads
from .store import Store, StoreWriter, make_folders, write_block

PATIENCE = 100  # looks at a block that others keep moving
STEP = 8192  # rows in memory at a time
GRACE = 86_400.0  # seconds before a file that no log names is taken for a leftover


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    kind  "description", "log", "rows", "file" (of a block, not its rows), "arrays" (of a finalised store),
          "unpublished" (rows with valid checksums that no log names)
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
    """What `verify` checked and found. `notes` are harmless (leftovers of killed writers)."""

    blocks: int = 0
    rows: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.damage


def verify(store: Store, *, progress: bool = False, jobs: int | None = None) -> Verified:
    """Reads every byte of a store that counts and compares it with its checksum.

    jobs: blocks that are read at once, by threads, a MiB or two of each in memory; by default one a
    processor. Of a store behind a URL it is always one.

    The store may be one that was opened leniently (`Bank.open_name(name, lenient=True)`), being damaged.
    What other processes publish, pack or finalise meanwhile does not count as damage.
    """
    report = Verified()
    with explained("read", store.files):
        _verify_descriptions(store, report)
        store.catalog.read(strict=False)
        for bad in store.catalog.bad.values():
            if bad.kind == "torn":
                report.notes.append(f"{bad.file}, line {bad.line} is unfinished: its writer was killed there")
            else:
                report.damage.append(Damage("log", bad.file, f"line {bad.line}: {bad.kind}"))
        _verify_blocks(store, report, progress=progress, jobs=jobs)
        _verify_leftovers(store, report)
        _verify_arrays(store, report)
    return report


def _verify_blocks(
    store: Store, report: Verified, *, progress: bool = False, jobs: int | None = None
) -> None:
    live = store.catalog.live()
    threads = 1 if store.files.remote else jobs or cores()
    looks = in_threads(lambda block: list(_verify_block(store, block)), live, threads)
    bar = progress_bar(live, shown=progress, desc="verify", unit="block")
    for block, faults in zip(bar, looks, strict=True):
        for _ in range(PATIENCE):
            if not faults or block.id in store.catalog.retired:
                break
            seen = store.state()  # perhaps packed, moved or swept since the log was read
            store.catalog.read(strict=False)
            faults = list(_verify_block(store, block))
            if store.state() == seen:
                break
        if block.id in store.catalog.retired:
            continue
        report.blocks += 1
        report.rows += block.rows
        report.bytes += block.rows * (store.layout.row_bytes + KEY_BYTES)
        report.damage += faults


def _verify_leftovers(store: Store, report: Verified) -> None:
    damage: list[Damage] = []
    notes: list[str] = []
    lossy = any(fault.rows for fault in report.damage)
    for _ in range(PATIENCE):
        damage, notes, seen = [], [], store.state()
        try:
            for leftover, rows, new in _unpublished(store, report):
                fault = _fault_of(leftover, rows, new, notes, lossy=lossy)
                damage += [fault] if fault else []
            if not damage:
                break
        except FileNotFoundError:  # a block was packed and swept meanwhile, as all of this may have been
            store.catalog.read(strict=False)
            if store.state() == seen:
                raise
            continue
        store.catalog.read(strict=False)
        if store.state() == seen:
            break
    report.damage += damage
    report.notes += notes


def _fault_of(
    leftover: Leftover, rows: ProvenRows | None, new: np.ndarray, notes: list[str], *, lossy: bool
) -> Damage | None:
    file = leftover.files[0]
    if rows is None or not new.any():
        what = "was packed or replaced" if leftover.kind == "retired" else "is not a published block"
        notes += [f"{name} {what}; `cache gc` sweeps it after a day" for name in leftover.files]
        return None
    what = f"no published block holds {int(new.sum())} of its {len(new)} rows, which are whole"
    if leftover.kind == "pending":
        notes.append(f"{file}: its writer was killed, or is at it; {what}")
    elif leftover.kind == "retired" and lossy:
        notes.append(f"{file}: {what}; `cache repair` takes them from there")
    else:
        return Damage("unpublished", file, what, keys=rows.keys[new])
    return None


def _unpublished(store: Store, report: Verified) -> Iterator[tuple[Leftover, ProvenRows | None, np.ndarray]]:
    """The files beside the published blocks, their rows, and which rows (bool) exist nowhere else."""
    left = leftovers(store, strict=False)
    if not left:
        return
    bad: dict[str, np.ndarray] = {}
    rows_of = {block.id: block.rows for block in store.catalog.live()}
    for damage in report.damage:
        if damage.block in rows_of and damage.rows:
            mask = bad.setdefault(damage.block, np.zeros(rows_of[damage.block], dtype=bool))
            for first, last in damage.rows:
                mask[first : last + 1] = True
    held = held_keys(store, bad)
    for leftover in left:
        rows = proven(store, leftover.block)
        if rows is None:
            yield leftover, None, np.zeros(0, dtype=bool)
            continue
        new = held.find(rows.keys) < 0
        held.add(rows.keys[new], sum(rows_of.values()))  # two leftovers may hold the same rows
        yield leftover, rows, new


def _verify_descriptions(store: Store, report: Verified) -> None:
    right = store.layout.describe(store.description)
    for name in store.layout.descriptions:
        if not store.files.exists(name):
            report.damage.append(Damage("description", name, "is missing"))
        elif store.files.read(name) != right:
            report.damage.append(Damage("description", name, "was changed after it was written"))


def _verify_block(store: Store, block: Block) -> Iterator[Damage]:
    everything = ((0, block.rows - 1),)
    try:
        vectors_at, keys_at = spots = store.spot_of(block)
        store.check_claim(block.rows, spots)
        other = store.layout.other_bytes(block, vectors_at, keys_at)
        bad, keys = compared(store.files, spots, block, store.layout.row_bytes)
    except FileNotFoundError as error:
        try:
            keys = store.keys_of(block)
        except OSError:
            keys = np.empty((0, KEY_BYTES), np.uint8)
        yield Damage("rows", str(error.filename), "is missing", block.id, everything, keys)
        return
    if bad:
        rows = tuple((s * SEGMENT_ROWS, min((s + 1) * SEGMENT_ROWS, block.rows) - 1) for s in bad)
        of = np.concatenate([keys[first : last + 1] for first, last in rows])
        of = of[of.any(axis=1)]  # zeros: the file is too short for them
        name = vectors_at.file if vectors_at.file == keys_at.file else f"{vectors_at.file} or {keys_at.file}"
        yield Damage("rows", name, "rows are not what was written", block.id, rows, of)
    elif other:
        yield Damage("file", vectors_at.file, other, block.id)


def _verify_arrays(store: Store, report: Verified) -> None:
    """The files of a finalised store beside its blocks."""
    faults: list[Damage] = []
    for _ in range(PATIENCE):
        other, seen = _builder(store), store.state()
        faults = list(_faults_of_arrays(store))
        if not faults:
            return
        if other is not None:
            report.notes.append(f"the arrays are being built by {other}; if it has ended, finalise again")
            return
        store.catalog.read(strict=False)
        if store.state() == seen and _builder(store) is None:
            break
    report.damage += faults


def _builder(store: Store) -> Found | None:
    """Who is finalising the store now, as far as can be seen; not this process."""
    other = holder(store.files, "finalize")
    return None if other is None or other.is_gone or other.pid == os.getpid() else other


def _faults_of_arrays(store: Store) -> Iterator[Damage]:
    catalog, files, layout = store.catalog, store.files, store.layout
    try:
        view: dict[str, bytes] = {}
        for name, wanted in catalog.order_record.get("view", {}).items():
            content = files.read(name) if files.exists(name) else None
            if content is None:
                yield Damage("arrays", name, "is missing (`cache finalize` was interrupted?)")
            elif xxhash.xxh3_64_hexdigest(content) != wanted:
                yield Damage("arrays", name, "was changed after it was written")
            else:
                view[name] = content
        if not catalog.order and files.exists(layout.arrays):
            yield Damage(
                "arrays", layout.arrays, "exists, but no log says which blocks the arrays consist of"
            )
        known = {block.id: block for block in catalog.live()}
        if known.keys() >= set(catalog.order):
            foreign = layout.foreign(view, [known[name] for name in catalog.order])
            if foreign:
                yield Damage("arrays", layout.arrays, foreign)
        for chunk, name in enumerate(catalog.order):
            if name not in known:
                yield Damage("arrays", name, "is a block of the arrays and is not published")
                continue
            for own, target in layout.chunks(name, chunk):
                if not files.exists(target):
                    yield Damage("arrays", target, "is missing (`cache finalize` again)")
                elif (
                    files.exists(own)
                    and not files.same(own, target)
                    and files.read(own) != files.read(target)
                ):
                    yield Damage(
                        "arrays", target, "is not the block that it should be (`cache finalize` again)"
                    )
    except FileNotFoundError as error:  # taken away between two looks
        yield Damage("arrays", str(error.filename), "is missing (`cache finalize` was interrupted?)")


# --- repair -----------------------------------------------------------------------------------------


@dataclass
class Repaired:
    """What `repair` did. `lost` rows have to be embedded again (`extract` does so automatically)."""

    lost: int = 0
    saved: int = 0
    actions: list[str] = field(default_factory=list)
    lost_keys: np.ndarray = field(default_factory=lambda: np.empty((0, KEY_BYTES), np.uint8))


def repair(
    store: Store,
    *,
    progress: bool = False,
    say: Callable[[str], object] | None = None,
    jobs: int | None = None,
) -> Repaired:
    """Takes everything damaged out of a store, so that what remains verifies; keeps every good row.

    Nothing is overwritten: good rows of a damaged block go to a new block, the old one is retired, damaged
    log lines are excused, and blocks whose line was lost are published again from what their names prove.

    say: called with who is waited for, where another process holds the store and gives no sign of life.
    jobs: see `verify`.
    Raises StoreError while another process finalises or repairs the store.
    """
    done = Repaired()
    with (
        hold(store.files, "finalize", ttl=LEASE, owner="repair", say=say) as lease,
        StoreWriter(store, name="repair", block_rows=store.block_rows) as writer,
        explained("repair", store.files),
    ):
        make_folders(store)
        report = Verified()
        _verify_descriptions(store, report)
        _repair_descriptions(store, report, done)
        store.catalog.read(strict=False)
        _excuse(store, writer, done)
        generation = store.catalog.next_generation  # of what is read from here on
        given = give_own_files(store)
        _verify_blocks(store, report, progress=progress, jobs=jobs)
        faulty = {damage.block for damage in report.damage if damage.rows}
        if faulty:
            anew = give_own_files(store, [store.catalog.published[name] for name in faulty])
            report.damage = [damage for damage in report.damage if damage.block not in anew]
            for name in anew:  # its rows are right now; what is behind them in the chunk may be another's
                report.damage += _verify_block(store, store.catalog.published[name])
            given += anew
        if given:
            done.actions.append(f"blocks whose files were restored from the arrays: {len(set(given))}")
        for leftover, rows, new in _unpublished(store, report):
            if rows is not None and new.any():
                publish(store, writer, leftover, rows, new)
                done.saved += int(new.sum())
                done.actions.append(
                    f"block {leftover.block} was published again: its {int(new.sum())} rows prove themselves"
                )
        saved = done.saved
        store.catalog.read()
        damaged = {damage.block: damage for damage in report.damage if damage.block}
        if damaged:
            with written(store) as new:
                for name, damage in damaged.items():
                    _rescue(store, store.catalog.published[name], damage, new, done)
                retired = {name: f"damaged: {damage}" for name, damage in damaged.items()}
                replace_blocks(store, lease, generation, new, retired)
        store.reopen()
        _count_lost(store, list(damaged.values()), saved, done)
        _repair_arrays(store, lease, done)
    return done


def _count_lost(store: Store, damaged: list[Damage], saved: int, done: Repaired) -> None:
    """Rows that no block holds now; of rows whose keys are gone too, as many as were not `saved`."""
    keys = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *(damage.keys for damage in damaged)])
    done.lost_keys = np.unique(keys[~store.contains(keys)], axis=0)
    rows = sum(last - first + 1 for damage in damaged for first, last in damage.rows)
    done.lost = len(done.lost_keys) + max(0, rows - len(keys) - saved)


def _repair_arrays(store: Store, lease: Lease, done: Repaired) -> None:
    catalog, files = store.catalog, store.files
    if not catalog.order and not files.exists(store.layout.arrays):
        return
    if not any(_faults_of_arrays(store)):
        return
    if not len(store):
        publish_order(store, lease, catalog.next_generation, [], {})
        done.actions.append("the finalised arrays were taken away: no row is left")
        return
    alive = {block.id for block in catalog.live()}
    if catalog.order and alive.issuperset(catalog.order) and restore_arrays(store):
        done.actions.append("the finalised arrays' files were put right")
        return
    finalize_under_lease(store, lease)
    done.actions.append("the finalised arrays were built again (columns of a table: `cache finalize`)")


def _repair_descriptions(store: Store, report: Verified, done: Repaired) -> None:
    """The document that `store` was opened with has a valid checksum: both files get it."""
    for damage in report.damage:
        if damage.kind == "description":
            with explained("write", store.files):
                store.files.put({damage.file: [store.layout.describe(store.description)]})
            done.actions.append(f"{damage.file} was written again from its copy")


def _excuse(store: Store, writer: StoreWriter, done: Repaired) -> None:
    """Damaged lines of logs are passed over from now on; what they spoke of is looked for."""
    damaged = store.catalog.damage()
    if damaged:
        writer.log().append({"type": "excuse", "lines": [bad.excuse() for bad in damaged]})
        done.actions.append(f"damaged lines that are passed over from now on: {len(damaged)}")
    store.catalog.read()


def _rescue(store: Store, block: Block, damage: Damage, new: list[Block], done: Repaired) -> None:
    """Writes the good rows of a damaged block to a new one, which `new` gets."""
    good = np.ones(block.rows, dtype=bool)
    for first, last in damage.rows:
        good[first : last + 1] = False
    if good.any():
        spots = store.spot_of(block)
        vectors, keys = store.empty_block(block.rows, spots)
        read_raw(store.files, spots, vectors, keys)
        bad = {row // SEGMENT_ROWS for row in np.flatnonzero(~good).tolist()}
        if bad.symmetric_difference(bad_segments(block, vectors, keys)):
            raise StoreError(f"{damage.file} is being written to by something else; run this again")
        new.append(write_block(store, vectors[good], keys[good], writer="repair"))
    kept = int(good.sum())
    done.saved += kept
    done.actions.append(f"{damage}: {kept} rows kept, {block.rows - kept} taken out")


# --- gc ---------------------------------------------------------------------------------------------


@dataclass
class Swept:
    """What `gc` removed (or would), and how many rows it published instead: no other block holds them."""

    files: list[str] = field(default_factory=list)
    bytes: int = 0
    published: int = 0


def gc(store: Store, *, grace: float = GRACE, dry_run: bool = False) -> Swept:
    """Removes leftovers: temporary and unpublished files older than `grace` seconds, blocks that were packed
    or replaced so long ago, leases of processes that are gone.

    Published blocks are never touched, whoever is writing meanwhile, as long as `grace` is longer than a
    writer takes from a block's files to its line in the log (seconds at most). Nor is the last copy of a
    row: before a block's files go, every row in them that proves itself is read from another block, or is
    published if there is none.
    """
    swept = Swept()
    files = store.files
    with explained("sweep", files), StoreWriter(store, name="gc", block_rows=store.block_rows) as writer:
        temporary = [name for name in files.walk() if name.rpartition("/")[2].startswith(TEMPORARY)]
        now = files.clock()
        gone: list[str] = []
        kept: set[str] = set()
        for leftover in leftovers(store):
            old = _age(store, leftover, now) >= grace
            kept.update(leftover.files)
            if (
                (old or leftover.kind == "orphan")
                and _is_spare(store, writer, leftover, swept, dry_run)
                and old
            ):
                gone += leftover.files
        old = [name for name in temporary if name not in kept and _modified(store, name, now) <= now - grace]
        for name in sorted({*gone, *old, *sweepable(files, grace)}):
            try:
                size = files.size(name)
                if not dry_run:
                    files.remove(name)
            except FileNotFoundError:  # another sweep, or a writer that was quicker
                continue
            swept.files.append(name)
            swept.bytes += size
    return swept


def _modified(store: Store, name: str, now: float) -> float:
    try:
        return store.files.modified(name)
    except FileNotFoundError:  # its writer has just finished
        return now


def _age(store: Store, leftover: Leftover, now: float) -> float:
    """Seconds since a block was retired, by our clock; since it was written, by the file system's."""
    if leftover.kind == "retired":
        return max(0.0, time.time() - store.catalog.retired[leftover.block])
    return now - max(_modified(store, name, now) for name in leftover.files)


def _is_spare(store: Store, writer: StoreWriter, leftover: Leftover, swept: Swept, dry_run: bool) -> bool:
    """Whether every row of a leftover that proves itself can be read elsewhere. If not, it is published."""
    rows = proven(store, leftover.block)
    if rows is None:
        return True
    new = ~store.contains(rows.keys)
    if new.any():
        if not dry_run:
            publish(store, writer, leftover, rows, new)
            store.refresh()
        swept.published += int(new.sum())
        return False
    try:
        for start in range(0, len(rows.keys), STEP):
            store.load(rows.keys[start : start + STEP])
    except StoreError:  # the other copy is damaged: `repair` may need this one
        return False
    return True
