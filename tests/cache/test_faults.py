"""Faults of disks, clocks and hands: a read that fails once, logs cut anywhere, files in the wrong place."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import StoreError

from .conftest import attack

READS = ("read", "read_into", "names", "size", "exists", "reader", "modified", "same", "walk")


@pytest.fixture(params=["zarr", "hdf5"])
def store(request: pytest.FixtureRequest, tmp_path: Path, identity: Any, make_rows: Any) -> Store:
    """40 rows in four blocks."""
    made = Bank(tmp_path / "bank").open_store(identity(), create=True, backend=request.param, block_rows=16)
    rows = make_rows(40)
    with made.writer() as writer:
        for start in range(0, 40, 10):
            writer.append(*rows[start : start + 10])
            writer.flush()
    made.refresh()
    return made


@pytest.mark.parametrize("work", ["finalize", "repair", "gc"])
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_read_that_fails_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, work: str
) -> None:
    """Each in eleven: the work stops with a sentence or goes on, and what was published is all there."""
    monkeypatch.setattr(attack, "CHANGES", READS)

    def fail() -> None:
        raise OSError(5, "Input/output error")

    stopped, at, more = 0, 1, True
    while more:
        store, keys, vectors = attack.half_done(tmp_path / str(at), backend, damaged=False)
        with attack.Interfered(at, fail) as interfered:
            try:
                attack.WORKS[work](attack.again(store, lenient=True))
            except StoreError as error:
                assert "\n" not in str(error)  # noqa: PT017
                stopped += 1
        more = interfered.count >= at
        assert not attack.faults(store, keys, vectors), at
        repair(attack.again(store, lenient=True))
        assert verify(attack.again(store)).good, at
        assert not attack.faults(store, keys, vectors), at
        shutil.rmtree(tmp_path / str(at))
        at += 11
    assert stopped > 1


def test_a_log_that_is_cut_anywhere(store: Store, make_rows: Any) -> None:
    rows = make_rows(40)
    (log,) = (Path(store.path) / "parts/log").iterdir()
    whole = log.read_bytes()
    told = 0
    for end in range(0, len(whole), 67):
        log.write_bytes(whole[:end])
        found = verify(attack.again(store, lenient=True))
        assert not found.good or attack.again(store).contains(rows.keys).all()
        told += not found.good
        done = repair(attack.again(store, lenient=True))
        after = attack.again(store)
        assert (done.lost, verify(after).good) == (0, True)
        assert after.load(rows.keys).tobytes() == rows.vectors.tobytes()
        for other in (Path(store.path) / "parts/log").iterdir():
            other.unlink()
    assert told > 10


def test_a_log_of_another_store(store: Store, tmp_path: Path, make_rows: Any) -> None:
    """Its blocks are not here: that is said, and taking it out costs none of the rows that are."""
    other = Bank(tmp_path / "other").open_store(
        store.identity, create=True, backend=store.backend, block_rows=16
    )
    foreign, rows = make_rows(20, seed=5), make_rows(40)
    with other.writer() as writer:
        writer.append(*foreign[:])
    (log,) = (Path(other.path) / "parts/log").iterdir()
    shutil.copy(log, Path(store.path) / "parts/log" / log.name)
    found = verify(attack.again(store, lenient=True))
    assert any("is missing" in str(damage) for damage in found.damage)
    assert repair(attack.again(store, lenient=True)).lost == 20
    after = attack.again(store)
    assert verify(after).good
    assert after.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert not after.contains(foreign.keys).any()


def test_blocks_that_changed_places_are_not_read(store: Store, make_rows: Any) -> None:
    rows = make_rows(40)
    first, second = (store.layout.files_of(block.id) for block in store.catalog.live()[:2])
    for one, two in zip(first, second, strict=True):
        a, b, aside = (Path(store.path) / name for name in (one, two, "aside"))
        a.rename(aside)
        b.rename(a)
        aside.rename(b)
    for part in (slice(0, 1), slice(0, 20), slice(0, 40)):
        with pytest.raises(StoreError, match="differ from what was written"):
            attack.again(store).load(rows.keys[part])
    assert not verify(attack.again(store, lenient=True)).good
    repair(attack.again(store, lenient=True))
    after = attack.again(store)
    assert verify(after).good
    assert after.load(rows.keys[20:]).tobytes() == rows.vectors[20:].tobytes()


def test_a_block_that_was_copied_under_another_name(store: Store, make_rows: Any) -> None:
    """Its name does not prove it: nothing is published, and gc sweeps it."""
    rows = make_rows(40)
    block = store.catalog.live()[0].id
    for name in store.layout.files_of(block):
        copy = name.replace(block, "0" * 12 + "-" + "1" * 32)
        shutil.copy(Path(store.path) / name, Path(store.path) / copy)
    swept = gc(attack.again(store), grace=-1.0)
    assert (len(swept.files), swept.published) == (len(store.layout.files_of(block)), 0)
    after = attack.again(store)
    assert verify(after).good
    assert after.load(rows.keys).tobytes() == rows.vectors.tobytes()


@pytest.mark.parametrize("hours", [-50, 50])
def test_a_clock_that_jumps(
    store: Store, make_rows: Any, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Between what is packed and its sweep; nothing that is read goes, whatever time it is."""
    rows, now = make_rows(40), time.time
    finalize(attack.again(store))
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    more = make_rows(10, seed=8)
    with attack.again(store).writer() as writer:
        writer.append(*more[:])
    gc(attack.again(store))
    finalize(attack.again(store))
    monkeypatch.setattr(time, "time", now)
    gc(attack.again(store))
    after = attack.again(store)
    assert verify(after).good
    assert after.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert after.load(more.keys).tobytes() == more.vectors.tobytes()
