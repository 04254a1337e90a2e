"""The attacks of tests/benchmarks/cache_attack.py, a few cases of each kind; run the script for all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patchbank.cache import leases
from patchbank.cache.filesystem import LocalFiles
from patchbank.cache.finalize import finalize, replace_blocks, written
from patchbank.cache.leases import Lease, Watch, hold, holder
from patchbank.cache.store import Store, write_block
from patchbank.cache.verify import repair, verify
from patchbank.errors import StoreError

from .conftest import attack


def check(found: Any) -> None:
    assert sum(found.values()) > 0
    assert {what: count for what, count in found.items() if count and what not in attack.HARMLESS} == {}


@pytest.mark.parametrize(
    "kind",
    [
        attack.skew,
        lambda folder: attack.damage(folder, 5),
        lambda folder: attack.logs(folder, 11),
        lambda folder: attack.readers(folder, 1.0),
        lambda folder: attack.steps_of_create(folder, "zarr"),
        lambda folder: attack.steps_of_create(folder, "hdf5"),
    ],
    ids=["skew", "damage", "logs", "readers", "create zarr", "create hdf5"],
)
def test_nothing_is_lost_or_wrong(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    check(kind(tmp_path))


@pytest.mark.parametrize("other", [None, "finalize", "repair"])
@pytest.mark.parametrize("work", ["finalize", "repair"])
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_every_step_may_fail_or_be_overtaken(
    tmp_path: Path, backend: str, work: str, other: str | None
) -> None:
    """One change of a file in thirteen; the first and the last are among them."""
    check(attack.steps_of(tmp_path, backend, work, other, 13))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return attack.half_done(tmp_path, "zarr", damaged=False)[0]


def test_a_generation_is_taken_once(store: Store) -> None:
    """What was decided before another one finalised is not published, and its files go."""
    slow = attack.again(store)
    generation = slow.catalog.next_generation
    finalize(attack.again(store))
    files = set(store.files.walk())
    old = [block.id for block in slow.catalog.live()]

    def publish() -> None:
        with Lease.acquire(store.files, "other") or pytest.fail("no lease") as lease, written(slow) as new:
            new.append(write_block(slow, *attack.rows(9, 7)[::-1], writer="slow"))
            replace_blocks(slow, lease, generation, new, dict.fromkeys(old, "packed"))

    with pytest.raises(StoreError, match=r"meanwhile; nothing was changed, run this again"):
        publish()
    assert set(store.files.walk()) == files
    assert verify(attack.again(store)).good


def test_a_chunk_that_no_block_proves_is_set_aside(store: Store) -> None:
    chunk = Path(store.path) / "embeddings/c/2/0"
    assert not chunk.is_symlink()
    strange = b"?" * 1000
    chunk.unlink()
    chunk.write_bytes(strange)
    finalize(store)
    aside = [p for p in (Path(store.path) / "parts/blocks").glob(".tmp-chunk-*") if p.read_bytes() == strange]
    assert len(aside) == 1
    assert verify(attack.again(store)).good


def test_without_hard_links_chunks_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT or some network file systems: nothing is renamed over, and damage of one copy is repaired."""

    def link(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    store, keys, vectors = attack.half_done(tmp_path, "zarr", damaged=False)
    finalize(store)
    finalize(store)
    assert verify(attack.again(store)).good
    spot, _ = store.spot_of(store.catalog.published[store.catalog.order[1]])
    attack.flip(Path(store.path) / spot.file, 7)
    assert not verify(attack.again(store)).good
    done = repair(attack.again(store, lenient=True))
    assert (done.lost, verify(attack.again(store)).good) == (0, True)
    assert not attack.faults(store, keys, vectors)


def test_leases_of_others_are_watched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent holder elsewhere is waited for, by name; one that gives a sign of life is not disturbed."""
    now = [0.0]
    mine, theirs = Watch(lambda: now[0]), Watch(lambda: now[0])
    with monkeypatch.context() as patch:
        patch.setattr(leases, "machine", lambda: "elsewhere/boot/pid")
        other = Lease.acquire(store.files, "finalize", ttl=60, owner="finalize", watch=theirs)
    assert other is not None
    said: list[str] = []

    def wait(seconds: float) -> None:
        now[0] += seconds

    with hold(
        store.files, "finalize", ttl=60, owner="repair", watch=mine, sleep=wait, say=said.append
    ) as held:
        assert now[0] >= 60
        assert held.is_held()
        assert not other.is_held()
        with pytest.raises(StoreError, match="another one took its work over"):
            other.check()
    assert "on elsewhere" in said[0]
    other.release()
    assert holder(store.files, "finalize") is None

    with monkeypatch.context() as patch:
        patch.setattr(leases, "machine", lambda: "elsewhere/boot/pid")
        other = Lease.acquire(store.files, "finalize", ttl=60, owner="finalize", watch=theirs)
    assert other is not None

    def wait_and_beat(seconds: float) -> None:
        now[0] += seconds
        store.files.rewrite(other._name, other._start, leases._next_beat)

    with pytest.raises(StoreError, match=r"by another process, finalize \(process \d+ on elsewhere\)"):
        hold(store.files, "finalize", ttl=60, owner="repair", watch=mine, sleep=wait_and_beat)
    other.release()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"7", b'{"pid": "x", "ttl": -1}', b'{"ttl": 1e999, "machine": [1], "pid": true}', b"\xff{"],
)
def test_a_lease_that_is_none_is_waited_for_and_taken(store: Store, content: bytes) -> None:
    store.files.make_folder(leases.FOLDER)
    (Path(store.path) / leases.FOLDER / "unit.3.json").write_bytes(content)
    now = [0.0]
    watch = Watch(lambda: now[0])
    assert Lease.acquire(store.files, "unit", watch=watch) is None
    now[0] = leases.TTL + 1
    lease = Lease.acquire(store.files, "unit", watch=watch)
    assert lease is not None
    assert store.files.names(leases.FOLDER) == ["unit.4.json"]
    lease.release()


def test_a_lease_under_an_old_name_is_not_mistaken_for_ours(store: Store) -> None:
    """ABA: taken over, given back, taken by a third under the first one's file name."""
    first = Lease.acquire(store.files, "unit")
    assert first is not None
    store.files.remove(f"{leases.FOLDER}/unit.0.json")
    third = Lease.acquire(store.files, "unit")
    assert third is not None
    assert third.is_held()
    assert not first.is_held()
    first.release()
    assert third.is_held()
    third.release()


def test_a_sweep_between_temporary_file_and_rename(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gc --grace 0` beside a writer: the file is written once more."""
    interim, swept = LocalFiles._write, []

    def write_and_sweep(path: Path, pieces: Any) -> None:
        interim(path, pieces)
        if len(swept) < 3:
            swept.append(path)
            path.unlink()

    monkeypatch.setattr(LocalFiles, "_write", staticmethod(write_and_sweep))
    store.files.put({"a": [b"1"], "b": [b"2"]})
    assert store.files.create("c", b"3")
    assert [store.files.read(name) for name in "abc"] == [b"1", b"2", b"3"]
    assert len(swept) == 3


def test_size_limit_and_read_refusal_are_sentences(tmp_path: Path) -> None:
    import errno

    from patchbank.cache.filesystem import explained

    with pytest.raises(StoreError, match=r"file size is limited here"), explained("write to", tmp_path):
        raise OSError(errno.EFBIG, "File too large")
    with (
        pytest.raises(StoreError, match=r"cannot read .*: no permission to read it"),
        explained("read", tmp_path),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_both_descriptions_are_synced(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store = attack.make(tmp_path, backend)
    root = Path(store.path)
    for name in store.layout.descriptions:
        assert {(root / name).stat().st_ino, (root / name).parent.stat().st_ino} <= synced


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_limit_on_the_size_of_files(tmp_path: Path, backend: str) -> None:
    """A sentence, no traceback, and the rows are published once the limit is gone."""
    resource = pytest.importorskip("resource")
    store = attack.make(tmp_path, backend)
    keys, vectors = attack.rows(512, 9)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = store.writer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"file size is limited here .*ulimit -f"):
            writer.append(keys, vectors, ["x"] * 512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    assert not attack.faults(store, keys, vectors)
    found = verify(attack.again(store))
    assert (found.damage, found.notes) == ([], [])
