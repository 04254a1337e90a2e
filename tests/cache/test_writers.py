"""Many writers at once, leases, and the index below them."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache import index as index_module
from patchbank.cache import leases
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.index import KeyIndex
from patchbank.cache.leases import Lease
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import StoreError

# Processes are forked where no thread runs: this one may have any number.
WRITERS = """
import importlib.util, multiprocessing, sys
spec = importlib.util.spec_from_file_location("shared", {conftest!r})
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
from patchbank.cache.bank import Bank

def write(seed):
    rows = shared.Rows({count}, seed=seed)
    options = dict(backend={backend!r}, block_rows=128, provenance={{"machine": seed}})
    store = Bank({bank!r}).open_store(shared.make_identity(), create=True, **options)
    with store.writer() as writer:
        for start in range(0, {count}, 50):
            writer.append(*rows[start : start + 50])

fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=write, args=(seed,)) for seed in range({processes})]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


@pytest.fixture(params=["zarr", "hdf5"])
def store(request: pytest.FixtureRequest, tmp_path: Path, identity: Any) -> Store:
    return Bank(tmp_path).open_store(identity(), create=True, backend=request.param, block_rows=128)


def write_at_once(bank: Path, *, processes: int, count: int, backend: str = "zarr") -> None:
    """Let processes create the store, if need be, and write `Rows(count, seed=number of the process)`."""
    conftest = str(Path(__file__).with_name("conftest.py"))
    script = WRITERS.format(
        conftest=conftest, bank=str(bank), backend=backend, processes=processes, count=count
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_processes_write_at_once(store: Store, tmp_path: Path, make_rows: Any, on_disk: Any) -> None:
    shares = [make_rows(500, seed=seed) for seed in range(4)]
    write_at_once(tmp_path, processes=4, count=500, backend=store.backend)
    wanted = {key: vector for rows in shares for key, vector in rows.as_dict().items()}
    assert on_disk(Path(store.path)) == wanted
    store.refresh()
    assert len(store) == 2000
    assert finalize(store).rows == 2000
    assert on_disk(Path(store.path)) == wanted


def test_threads_write_and_read_at_once(store: Store, make_rows: Any) -> None:
    shares = [make_rows(400, seed=seed) for seed in range(3)]
    errors: list[BaseException] = []

    def work(rows: Any) -> None:
        try:
            with store.writer() as writer:
                for start in range(0, 400, 40):
                    writer.append(*rows[slice(start, start + 40)])
                    store.refresh()
                    here = store.contains(rows.keys)
                    assert store.load(rows.keys[here]).tobytes() == rows.vectors[here].tobytes()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(rows,)) for rows in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.refresh()
    assert not errors
    assert len(store) == 1200


def test_a_store_that_six_create_at_once_is_one(tmp_path: Path) -> None:
    write_at_once(tmp_path / "bank", processes=6, count=10)
    store = Bank(tmp_path / "bank").find("fake:noise")
    assert len(store) == 60
    assert verify(store).good
    assert sorted(session["provenance"]["machine"] for session in store.catalog.sessions) == list(range(6))


def test_reading_goes_on_while_blocks_are_packed_and_swept(store: Store, make_rows: Any) -> None:
    rows = make_rows(700)
    with store.writer(block_rows=20) as writer:
        writer.append(*rows[:])
    reader, late = Store(store.files), Store(store.files)
    assert reader.contains(rows.keys).all()
    finalize(store)
    gc(store, grace=0)
    assert reader.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert late.contains(rows.keys).all()  # its index is built from blocks that are gone
    more = make_rows(5, seed=1)
    steps = 0
    for part, vectors in reader.iter_blocks(rows.keys, 100):  # rows are numbered again on the way
        assert vectors.tobytes() == rows.vectors[part].tobytes()
        with store.writer() as writer:
            writer.append(*more[slice(steps % 5, steps % 5 + 1)])
        steps += 1
        finalize(store)
        gc(store, grace=0)
        reader.refresh()
        assert reader.contains(rows.keys).all()
    assert steps == 7


# --- leases -----------------------------------------------------------------------------------------


def test_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: Any, until: Any) -> None:
    files = Bank(tmp_path).open_store(identity(), create=True).files
    now = 0.0  # by the clock of whoever asks
    watch = leases.Watch(lambda: now)

    def ask() -> Lease | None:
        return Lease.acquire(files, "unit", ttl=0.4, watch=watch)

    first = Lease.acquire(files, "unit", ttl=0.4)
    assert first is not None
    assert ask() is None
    assert Lease.acquire(files, "unit2") is not None
    name, before = f"{leases.FOLDER}/unit.0.json", files.read(f"{leases.FOLDER}/unit.0.json")
    until(lambda: files.read(name) != before)
    now += 10
    assert ask() is None  # it was renewed
    first._stop.set()  # a machine that hangs
    first._thread.join()
    monkeypatch.setattr(leases, "machine", lambda: "")  # and is another, whose processes nobody can see
    assert ask() is None  # its last sign of life may be later than our last look
    now += 0.3
    assert ask() is None
    now += 0.2
    second = ask()
    assert second is not None
    assert ask() is None
    first.release()  # it wakes up: that takes nothing from its successor
    assert ask() is None
    second.release()
    third = Lease.acquire(files, "unit")
    assert third is not None
    third.release()


def test_damaged_and_lost_leases(
    tmp_path: Path, identity: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    files = Bank(tmp_path).open_store(identity(), create=True).files
    files.make_folder(leases.FOLDER)
    broken = files.path(f"{leases.FOLDER}/unit.0.json")
    Path(broken).write_text('{"own')
    assert Lease.acquire(files, "unit") is None
    monkeypatch.setattr(leases, "TTL", -1.0)
    held = Lease.acquire(files, "unit", ttl=0.2)
    assert held is not None
    for path in (tmp_path).rglob("unit.*.json"):
        path.unlink()
    until(lambda: held.lost)
    held.release()


def test_one_finalize_at_a_time(store: Store, make_rows: Any) -> None:
    with store.writer() as writer:
        writer.append(*make_rows(10)[:])
    store.refresh()
    with Lease.acquire(store.files, "finalize") or pytest.fail("no lease"):
        with pytest.raises(StoreError, match="by another process"):
            finalize(store)
        assert "finalize" in json.dumps(store.files.names(leases.FOLDER))
    assert finalize(store).rows == 10


# --- the index --------------------------------------------------------------------------------------


def test_index_against_a_dictionary() -> None:
    dice = np.random.default_rng(0)
    keys = dice.integers(0, 2, (3000, 16), dtype=np.uint8)  # many equal halves, some equal keys
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key.tobytes(), row)
    index = KeyIndex(keys)
    assert len(index) == len(first)
    assert index.first_rows().tolist() == sorted(first.values())
    asked = np.concatenate([keys, dice.integers(0, 2, (3000, 16), dtype=np.uint8)])
    assert index.find(asked).tolist() == [first.get(key.tobytes(), -1) for key in asked]
    assert KeyIndex(keys[:0]).find(keys[:2]).tolist() == [-1, -1]
    assert index.find(keys[:0]).tolist() == []


def test_an_index_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of all sizes, with keys that come again, in one step and in others; rows are counted on."""
    monkeypatch.setattr(index_module, "BATCH", 64)
    dice = np.random.default_rng(1)
    keys = np.repeat(dice.integers(0, 3, (2500, 16), dtype=np.uint8), 2, axis=0)
    keys[:, :7] = 0  # few different first halves, so that ties cross the pieces
    dice.shuffle(keys)
    first: dict[bytes, int] = {}
    index, start = KeyIndex(), 0
    while start < len(keys):
        step = keys[start : start + int(dice.integers(1, 300))]
        index.add(step, start)
        for row, key in enumerate(step, start):
            first.setdefault(key.tobytes(), row)
        start += len(step)
    assert len(index) == len(first) < len(keys)
    assert index.first_rows().tolist() == sorted(first.values())
    asked = np.concatenate([keys, dice.integers(0, 4, (500, 16), dtype=np.uint8)])
    assert index.find(asked).tolist() == [first.get(key.tobytes(), -1) for key in asked]


def test_row_numbers_beyond_32_bits() -> None:
    index = KeyIndex(np.zeros((1, 16), np.uint8))
    index.add(np.eye(16, dtype=np.uint8), 2**32 - 8)
    assert index.find(np.eye(16, dtype=np.uint8)).tolist() == list(range(2**32 - 8, 2**32 + 8))
    assert index.find(np.zeros((1, 16), np.uint8)).tolist() == [0]


def test_index_of_keys_with_equal_first_halves() -> None:
    keys = np.zeros((50, 16), np.uint8)
    keys[:, 15] = np.arange(50)[::-1]
    index = KeyIndex(keys[10:])
    assert index.find(keys).tolist() == [-1] * 10 + list(range(40))


def test_a_reader_from_before_the_arrays_were_built_anew(store: Store, make_rows: Any) -> None:
    """Every chunk of the old arrays holds another block now: who knows the old order must not read it."""
    rows = make_rows(128 * 4)
    with store.writer() as writer:
        writer.append(*rows[:])
    finalize(store)
    readers = [Store(store.files) for _ in range(3)]
    readers[1].contains(rows.keys)
    readers[2].load(rows.keys[:300])
    first, _ = store.spot_of(store.catalog.published[store.catalog.order[0]])
    victim = Path(store.path) / first.file
    content = bytearray(victim.read_bytes())
    content[first.offset + 500] ^= 1
    victim.write_bytes(content)
    assert repair(Store(store.files, lenient=True)).lost
    assert Store(store.files).contains(rows.keys).tolist() == [False] * 128 + [True] * 384
    for reader in readers:  # first without the last chunk, whose absence would give it away
        for part in (slice(130, 300), slice(128, 512)):
            assert reader.load(rows.keys[part]).tobytes() == rows.vectors[part].tobytes()
