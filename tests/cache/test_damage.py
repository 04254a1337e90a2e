"""Broken disks, full disks, edited logs, stores from the future: clear errors, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.backend import seal
from patchbank.cache.bank import Bank
from patchbank.cache.filesystem import LocalFiles
from patchbank.cache.finalize import finalize
from patchbank.cache.leases import FOLDER
from patchbank.cache.log import Catalog, encode
from patchbank.cache.store import Store, pending
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import StoreError, StoreNotFound

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
Make = Callable[..., Store]


@pytest.fixture(params=["zarr", "hdf5"])
def make(request: pytest.FixtureRequest, tmp_path: Path, identity: Any) -> Make:
    def make(**changes: Any) -> Store:
        bank = Bank(tmp_path / "bank")
        return bank.open_store(identity(**changes), create=True, backend=request.param, block_rows=64)

    return make


def again(store: Store, *, lenient: bool = False) -> Store:
    return Store(store.files, lenient=lenient)


def log_of(store: Store) -> Path:
    (log,) = (Path(store.path) / "parts/log").iterdir()
    return log


def change(path: Path, at: int, by: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= by
    path.write_bytes(content)


@pytest.fixture
def filled(make: Make, make_rows: Any) -> tuple[Store, Any]:
    """150 rows in three blocks, in one log."""
    store, rows = make(), make_rows(150)
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    return store, rows


@pytest.mark.slow
def test_every_byte_of_a_small_store_is_checked(filled: tuple[Store, Any]) -> None:
    """Flips every 13th byte of every file, one at a time; `verify` names the file each time."""
    store, _ = filled
    finalize(store)
    tried = 0
    known = set()
    for path in sorted(Path(store.path).rglob("*")):
        if not path.is_file() or path.stat().st_ino in known:  # a chunk and its block are one file
            continue
        known.add(path.stat().st_ino)
        whole = path.read_bytes()
        name = path.relative_to(store.path).as_posix()
        block = store.layout.block_of(path.name) if "blocks" in name else None
        if block in store.catalog.retired:
            continue
        for at in range(0, len(whole), 13 if len(whole) < 4000 else 201):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            tried += 1
            found = verify(again(store, lenient=True))
            assert found.damage, f"{name} at {at}"
        path.write_bytes(whole)
    assert tried > 300
    assert verify(again(store)).good


@pytest.mark.parametrize("script", ["cache_flip.py", "cache_kill.py"])
def test_the_benchmarks_of_damage_find_no_fault(script: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_torn_last_line_is_ignored(filled: tuple[Store, Any], make_rows: Any) -> None:
    store, rows = filled
    log = log_of(store)
    *whole, last = log.read_bytes().splitlines(keepends=True)
    cut = json.loads(last)["block"]
    for rest in (last[:1], last[:40], last[:-19], last[:-2], last[:-30] + b"\0" * 30):
        log.write_bytes(b"".join(whole) + rest)
        reader = again(store)
        assert reader.contains(rows.keys).sum() == 128
        found = verify(reader)
        assert any("unfinished" in note for note in found.notes)
        assert [damage.kind for damage in found.damage] == ["unpublished"]  # the line was there once
        store.files.mark(pending(cut))  # as a writer that is killed in the middle of the line leaves it
        found = verify(reader)
        assert found.good
        assert any("its writer was killed" in note for note in found.notes)
        store.files.remove(pending(cut))
    with again(store).writer() as writer:  # goes on in a log of its own
        writer.append(*rows[128:])
    assert again(store).load(rows.keys).tobytes() == rows.vectors.tobytes()
    log.write_bytes(b"".join(whole) + last[:-1])  # only the newline did not make it
    assert verify(again(store)).good
    assert len(again(store)) == 150
    log.write_bytes(b"".join(whole) + last + b"\0" * 500)  # zeros, as a power failure may leave
    assert len(again(store)) == 150


def test_a_line_that_is_finished_later_is_read_then(filled: tuple[Store, Any]) -> None:
    """A reader that looks while a writer is in the middle of a line, on a file system that shows it."""
    store, _ = filled
    log = log_of(store)
    content = log.read_bytes()
    log.write_bytes(b"")
    catalog = Catalog(store.files)
    seen = set()
    for end in range(0, len(content) + 1, 50):
        log.write_bytes(content[:end])
        catalog.read()
        seen.add(len(catalog.published))
    log.write_bytes(content)
    catalog.read()
    assert seen | {len(catalog.published)} == {0, 1, 2, 3}


@pytest.mark.parametrize("edit", ["digit", "line deleted", "lines swapped", "line added", "newline gone"])
def test_a_log_edited_by_hand_is_refused_by_name(filled: tuple[Store, Any], edit: str) -> None:
    store, rows = filled
    log = log_of(store)
    header, *lines = log.read_text().splitlines()
    match edit:
        case "digit":
            lines[1] = lines[1].replace('"rows":64', '"rows":63')
        case "line deleted":
            del lines[1]
        case "lines swapped":
            lines = [lines[1], lines[0], lines[2]]
        case "line added":
            lines.insert(1, '{"type":"block"}')
        case "newline gone":
            lines[0:2] = ["".join(lines[0:2])]
    log.write_text("\n".join([header, *lines, ""]))
    with pytest.raises(StoreError, match=rf"parts/log/{log.name}, line [234].*patchbank cache repair"):
        again(store)
    assert not verify(again(store, lenient=True)).good
    repair_loses_nothing(store, rows)


def test_without_its_log_a_store_is_rebuilt_from_its_blocks(filled: tuple[Store, Any]) -> None:
    store, rows = filled
    log_of(store).write_bytes(b"nothing\n")
    assert repair(again(store, lenient=True)).saved == 150
    assert again(store).load(rows.keys).tobytes() == rows.vectors.tobytes()


@pytest.mark.parametrize("harm", ["missing", "empty", "cut"])
def test_missing_and_short_files(filled: tuple[Store, Any], harm: str) -> None:
    store, rows = filled
    victim = sorted(Path(store.path).rglob("*.vectors" if store.backend == "zarr" else "*.h5"))[1]
    if harm == "missing":
        victim.unlink()
    else:
        os.truncate(victim, 0 if harm == "empty" else victim.stat().st_size - 5)
    fresh = again(store, lenient=True)
    (damage,) = verify(fresh).damage
    assert damage.kind in {"rows", "file"}
    if harm != "cut" or store.backend == "zarr":
        with pytest.raises(StoreError, match=r"cannot read|shorter than its record"):
            again(store).load(rows.keys)
        with pytest.raises(StoreError, match=r"cannot finalise|cannot read|shorter"):
            finalize(again(store))
    done = repair(again(store, lenient=True))
    assert done.lost <= 64
    left = again(store)
    here = left.contains(rows.keys)
    assert here.sum() == 150 - done.lost
    assert left.load(rows.keys[here]).tobytes() == rows.vectors[here].tobytes()
    assert verify(left).good


def test_description(filled: tuple[Store, Any], make: Make) -> None:
    store, rows = filled
    first, copy = (Path(store.path) / name for name in store.layout.descriptions)
    change(first, first.read_bytes().index(b"fp32"), 1)
    with pytest.raises(StoreError, match=r"was changed after it was written.*cache repair"):
        again(store)
    assert [d.kind for d in verify(again(store, lenient=True)).damage] == ["description"]
    repair(again(store, lenient=True))
    first.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        make()
    repair(again(store, lenient=True))
    first.unlink()
    repair(again(store, lenient=True))
    copy.unlink()
    repair(again(store, lenient=True))
    assert verify(again(store)).good
    assert len(again(store)) == len(rows.ids)


def test_a_newer_store_is_refused_by_name(filled: tuple[Store, Any]) -> None:
    store, _ = filled
    newer = seal(store.description | {"version": 2})
    for name in store.layout.descriptions:
        store.files.put({name: [store.layout.describe(newer)]})
    for lenient in (False, True):
        with pytest.raises(StoreError, match=r"format version 2, .* reads version 1; update patchbank"):
            again(store, lenient=lenient)
    other = seal(store.description | {"format": "somebody's"})
    for name in store.layout.descriptions:
        store.files.put({name: [store.layout.describe(other)]})
    with pytest.raises(StoreError, match="somebody's"):
        again(store)
    shutil.rmtree(store.path)
    with pytest.raises(StoreNotFound):
        again(store)


def test_a_line_of_a_newer_kind_is_refused_by_name(filled: tuple[Store, Any]) -> None:
    store, _ = filled
    with log_of(store).open("ab") as log:
        log.write(encode({"type": "compress", "n": 4}) + b"\n")
    with pytest.raises(StoreError, match=r"'compress'.*update patchbank"):
        again(store)


def test_a_whole_line_that_lacks_something_is_of_another_version(filled: tuple[Store, Any]) -> None:
    store, _ = filled
    with log_of(store).open("ab") as log:
        log.write(encode({"type": "block", "n": 4, "block": "0" * 12}) + b"\n")
    with pytest.raises(StoreError, match=r"line \d+ has no 'first', .*'rows'.*another version of patchbank"):
        again(store)


def test_a_store_of_format_version_1_stays_readable(tmp_path: Path, make_rows: Any) -> None:
    """tests/data/cache-v1.zip: a finalised Zarr and an HDF5 store of 40 rows, made by version 0.1.0."""
    shutil.unpack_archive(Path(__file__).parent.parent / "data/cache-v1.zip", tmp_path)
    rows = make_rows(40)
    stores = Bank(tmp_path).stores()
    assert {store.backend for store in stores} == {"zarr", "hdf5"}
    for store in stores:
        assert verify(store).good
        assert store.load(rows.keys).tobytes() == rows.vectors.astype(store.dtype).tobytes()
        with store.writer() as writer:
            writer.append(*make_rows(5, seed=1)[:])
        assert finalize(store).rows == 45


def test_finalised_blocks_without_files_of_their_own(filled: tuple[Store, Any]) -> None:
    """parts/blocks is gone: the arrays hold the rows (Zarr), or nothing does and the store can be used."""
    store, rows = filled
    finalize(store, rows.table())
    gc(store, grace=0)
    shutil.rmtree(Path(store.path) / "parts/blocks")
    if store.backend == "zarr":
        assert again(store).load(rows.keys).tobytes() == rows.vectors.tobytes()
    done = repair(again(store, lenient=True))
    assert done.lost == (0 if store.backend == "zarr" else 150)
    assert verify(again(store)).good
    assert again(store).contains(rows.keys).sum() == 150 - done.lost
    with again(store).writer() as writer:
        writer.append(*rows[:])
    fresh = again(store)
    finalize(fresh)
    assert fresh.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert verify(again(store)).good


def test_arrays_of_0_1_0_without_the_log_of_finalize(tmp_path: Path, make_rows: Any) -> None:
    """Blocks were renamed to chunks then; those whose line is left are found by their keys."""
    shutil.unpack_archive(Path(__file__).parent.parent / "data/cache-v1.zip", tmp_path)
    (store,) = [store for store in Bank(tmp_path).stores() if store.backend == "zarr"]
    (order,) = [record for record in [store.catalog.order_record] if record]
    full = [b for b in store.catalog.live() if b.rows == store.block_rows and b.id in order["blocks"]]
    log = Path(store.path) / "parts/log"
    for file in log.iterdir():
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if b'"type":"order"' not in line]
        if len(kept) < len(lines):
            file.write_bytes(b"".join(kept))
    done = repair(again(store, lenient=True))
    fresh = again(store)
    assert verify(fresh).good
    assert done.lost == 40 - len(fresh)
    rows = make_rows(40)
    here = fresh.contains(rows.keys)
    assert here.sum() >= sum(block.rows for block in full)
    assert fresh.load(rows.keys[here]).tobytes() == rows.vectors[here].astype(fresh.dtype).tobytes()


def repair_loses_nothing(store: Store, rows: Any) -> None:
    assert repair(again(store, lenient=True)).lost == 0
    assert verify(again(store)).good
    assert again(store).load(rows.keys).tobytes() == rows.vectors.tobytes()


@pytest.mark.parametrize("line", ["block", "retire", "order", "writer"])
def test_a_flip_in_any_line_of_finalize_loses_nothing(filled: tuple[Store, Any], line: str) -> None:
    store, rows = filled
    finalize(store)
    gc(store, grace=0)
    (log,) = (Path(store.path) / "parts/log").glob("finalize-*")
    change(log, log.read_bytes().index(b'{"type":"%s"' % line.encode()) + 20)
    repair_loses_nothing(store, rows)


def test_gc_never_removes_the_last_copy_of_a_row(filled: tuple[Store, Any]) -> None:
    """The block that others were packed into is damaged or gone: theirs stay, and repair takes the rows."""
    store, rows = filled
    finalize(store)
    store.refresh()
    packed = store.catalog.published[store.catalog.order[-1]]
    spot, _ = store.spot_of(packed)
    change(Path(store.path) / spot.file, spot.offset + 3)
    gc(again(store), grace=0)
    repair_loses_nothing(store, rows)


def test_grace_counts_from_retirement(filled: tuple[Store, Any]) -> None:
    """A block written a week ago and packed just now is still read by those who opened the store before."""
    store, rows = filled
    week_ago = time.time() - 7 * 86_400
    for path in (Path(store.path) / "parts/blocks").iterdir():
        os.utime(path, (week_ago, week_ago))
    finalize(store)
    assert not gc(again(store)).files
    assert gc(again(store), grace=0).files
    assert again(store).load(rows.keys).tobytes() == rows.vectors.tobytes()


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_that_change_on_disk_are_refused(filled: tuple[Store, Any], when: str) -> None:
    """Few rows or all of them; before the first look, or between two (its stamps tell)."""
    store, rows = filled
    reader = again(store)
    if when == "after":
        reader.load(rows.keys)
    for block in store.catalog.live():
        spot, _ = store.spot_of(block)
        change(Path(store.path) / spot.file, spot.offset + (block.rows - 1) * store.layout.row_bytes)
    for part in (slice(0, 1), slice(3, 150, 40), slice(0, 150)):
        with pytest.raises(
            StoreError, match=r"rows 0-\d+ of block .* differ from what was written.*cache repair"
        ):
            reader.load(rows.keys[part])
    with pytest.raises(StoreError, match="differ from what was written"):
        list(reader.iter_blocks(rows.keys))


class Failing:
    """Makes the file operations fail after the first few; leases are spared, they are another story."""

    def __init__(self, good: int) -> None:
        self.left = good

    def version_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if FOLDER not in str(arguments[1:]):
                self.left -= 1
                if self.left < 0:
                    raise OSError(5, "Input/output error")
            return method(*arguments)

        return call


@pytest.mark.parametrize("work", [finalize, repair])
def test_finalize_and_repair_can_be_cut_off_anywhere(
    make: Make, make_rows: Any, monkeypatch: pytest.MonkeyPatch, work: Callable[[Store], object]
) -> None:
    """The n-th change of a file fails: all rows are still read, and a second try succeeds."""
    first, more = make_rows(150), make_rows(100, seed=1)
    keys, vectors = np.concatenate([first.keys, more.keys]), np.concatenate([first.vectors, more.vectors])
    turn, done = -1, False
    while not done:
        turn += 1 if turn < 1 else 13  # every n was tried once; that takes minutes
        store = make(encoder={"id": f"turn{turn}"})
        for rows in (first, more):
            with store.writer() as writer:
                writer.append(*rows[:])
            if rows is first:
                finalize(store, rows.table())
        stale = again(store)
        if work is repair:  # a damaged chunk of the arrays: everything has to move
            name = store.spot_of(store.catalog.published[store.catalog.order[0]])[0].file
            change(Path(store.path) / name, 1100 if store.backend == "hdf5" else 9)
        with monkeypatch.context() as patch:
            failing = Failing(turn)
            for name in ("put", "create", "move", "duplicate", "remove", "sync"):
                patch.setattr(LocalFiles, name, failing.version_of(getattr(LocalFiles, name)))
            try:
                work(again(store, lenient=True))
                done = True
            except StoreError:
                done = False
        good = np.ones(250, dtype=bool)
        good[:64] = work is finalize
        for reader in (again(store), stale):
            assert reader.load(keys[good]).tobytes() == vectors[good].tobytes()
        assert {d.kind for d in verify(again(store, lenient=True)).damage} <= {"arrays", "rows"}
        work(again(store, lenient=True))
        assert verify(again(store)).good
        assert again(store).load(keys[good]).tobytes() == vectors[good].tobytes()
    assert 1 <= turn < 200


# --- disks ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_full_disk(small_disk: Path, identity: Any, make_rows: Any, backend: str) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    store = Bank(small_disk).open_store(identity(dim=64), create=True, backend=backend, block_rows=512)
    rows = make_rows(9000, dim=64)
    writer = store.writer()
    with pytest.raises(StoreError, match=r"disk is full; free some space"):
        writer.append(*rows[:])
    published = writer.published
    assert 512 <= published < 9000
    reader = again(store)
    assert reader.contains(rows.keys).sum() == published
    assert verify(reader).good
    ballast.unlink()
    writer.close()  # what was appended before the disk was full
    reader.refresh()
    assert reader.contains(rows.keys).sum() >= published
    here = reader.contains(rows.keys)
    assert reader.load(rows.keys[here]).tobytes() == rows.vectors[here].tobytes()
    assert verify(reader).good
    assert not verify(reader).notes  # no leftovers


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_read_only_store(small_disk: Path, identity: Any, make_rows: Any, backend: str) -> None:
    rows = make_rows(100)
    bank = Bank(small_disk)
    store = bank.open_store(identity(), create=True, backend=backend)
    with store.writer() as writer:
        writer.append(*rows[:])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    reader = bank.open_store(identity(), create=True)
    assert reader.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert verify(reader).good
    with pytest.raises(StoreError, match="cannot be written"), reader.writer() as writer:
        writer.append(*make_rows(1, seed=1)[:])
    for attempt in (finalize, repair, lambda store: bank.remove(store.name)):
        with pytest.raises(StoreError, match="cannot be written"):
            attempt(reader)
    with pytest.raises(StoreError, match=r"cannot create a store.*cannot be written"):
        bank.open_store(identity(view="center:0.5"), create=True)


def test_a_line_that_was_not_written_whole_is_taken_back(
    filled: tuple[Store, Any], make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = filled
    more = make_rows(10, seed=1)
    write = os.write
    with store.writer() as writer:
        writer.append(*more[:5])
        writer.flush()
        log = writer.log()

        def half(descriptor: int, data: Any) -> int:
            if descriptor != log._descriptor:
                return write(descriptor, data)
            if len(data) < 60:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:50])

        monkeypatch.setattr(os, "write", half)
        writer.append(*more[5:])
        with pytest.raises(StoreError, match="disk is full"):
            writer.flush()
        monkeypatch.undo()
    assert verify(again(store)).good
    assert again(store).contains(np.concatenate([rows.keys, more.keys])).all()


def test_one_damaged_store_does_not_hide_the_others(
    filled: tuple[Store, Any], make: Make, tmp_path: Path
) -> None:
    from patchbank.cache.listing import listing

    store, _ = filled
    make(encoder={"id": "other"})
    change(log_of(store), 30)
    bank = Bank(tmp_path / "bank")
    assert bank.find("other").identity.encoder["id"] == "other"
    assert {entry["name"]: "damage" in entry for entry in listing(bank)} == {
        store.name: True,
        bank.find("other").name: False,
    }
    with pytest.raises(StoreError, match="not what was written"):
        bank.find("fake:noise")


def test_json_of_every_line_is_plain(filled: tuple[Store, Any]) -> None:
    lines = [json.loads(line) for line in log_of(filled[0]).read_text().splitlines()]
    assert [line["type"] for line in lines] == ["writer", "block", "block", "block"]
    assert [line["n"] for line in lines] == [0, 1, 2, 3]


def test_a_block_that_is_the_beginning_of_a_chunk(make: Make, make_rows: Any) -> None:
    """Its retire line is damaged and its files are gone: the chunk begins with its rows, and has more."""
    rows = make_rows(150)
    store = make()
    if store.backend != "zarr":
        pytest.skip("HDF5 has no chunks")
    with store.writer() as writer:
        writer.append(*rows[:40])
    finalize(store)  # one block of 40 rows and padding
    with store.writer() as writer:
        writer.append(*rows[40:60])
    finalize(store)  # packed: the first 60 rows are another block, which is the chunk
    retired = sorted(store.catalog.retired)
    assert retired
    gc(store, grace=-1.0)
    for log in (Path(store.path) / "parts/log").iterdir():
        log.write_bytes(log.read_bytes().replace(b'"type":"retire"', b'"type":"retirE"'))
    assert not verify(again(store, lenient=True)).good
    repair(again(store, lenient=True))
    assert verify(again(store)).good
    assert again(store).load(rows.keys[:60]).tobytes() == rows.vectors[:60].tobytes()
