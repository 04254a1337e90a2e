"""Blocks by several threads: the same result as one after the other, in the same order."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache import store as store_module
from patchbank.cache.bank import Bank
from patchbank.cache.parallel import in_threads
from patchbank.cache.store import Store
from patchbank.cache.verify import repair, verify
from patchbank.errors import StoreError, VectorRefused

BLOCKS = 24
ROWS = 700  # of a block: three segments, the last one not full


@pytest.fixture(params=["zarr", "hdf5"])
def filled(
    request: pytest.FixtureRequest, tmp_path: Path, identity: Any, make_rows: Any
) -> tuple[Store, Any]:
    store = Bank(tmp_path).open_store(identity(), create=True, backend=request.param, block_rows=ROWS)
    rows = make_rows(BLOCKS * ROWS)
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    return store, rows


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads of any size are by four threads."""
    monkeypatch.setattr(store_module, "IN_THREADS", 0)
    monkeypatch.setattr(store_module, "cores", lambda: 4)


def spoil(store: Store, number: int, row: int) -> None:
    """Changes one byte of a row of a block."""
    spot, _ = store.spot_of(store.catalog.live()[number])
    path = Path(store.path) / spot.file
    content = bytearray(path.read_bytes())
    content[spot.offset + row * store.layout.row_bytes] ^= 1
    path.write_bytes(content)


def test_verify_in_threads_finds_the_same_in_the_same_order(filled: tuple[Store, Any]) -> None:
    store, rows = filled
    for number, row in ((3, 0), (3, 699), (4, 300), (17, 255), (23, 512)):
        spoil(store, number, row)
    (Path(store.path) / store.spot_of(store.catalog.live()[9])[0].file).unlink()
    serial, parallel = verify(store, jobs=1), verify(store, jobs=5)
    assert [str(damage) for damage in parallel.damage] == [str(damage) for damage in serial.damage]
    assert [damage.block for damage in serial.damage] == [
        store.catalog.live()[i].id for i in (3, 4, 9, 17, 23)
    ]
    assert serial.damage[0].rows == ((0, 255), (512, 699))
    for one, other in zip(serial.damage, parallel.damage, strict=True):
        assert np.array_equal(one.keys, other.keys)
    assert (parallel.blocks, parallel.rows, parallel.bytes) == (serial.blocks, serial.rows, serial.bytes)
    assert (parallel.blocks, parallel.rows) == (BLOCKS, len(rows.keys))
    done = repair(store, jobs=3)
    segments = 256 + 188 + 256 + 256 + 188
    assert (done.lost, done.saved) == (segments + ROWS, 4 * ROWS - segments)
    assert verify(store, jobs=2).good


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("order", ["as stored", "backwards", "shuffled", "every third", "twice"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_load_in_threads_gives_the_rows_asked_for(
    filled: tuple[Store, Any], order: str, dtype: str | None
) -> None:
    store, rows = filled
    of: dict[str, np.ndarray] = {
        "as stored": np.arange(len(rows.keys)),
        "backwards": np.arange(len(rows.keys))[::-1],
        "shuffled": np.random.default_rng(0).permutation(len(rows.keys)),
        "every third": np.arange(0, len(rows.keys), 3),
        "twice": np.repeat(np.arange(len(rows.keys)), 2),
    }
    picked = of[order]
    loaded = store.load(rows.keys[picked], dtype=dtype)
    assert loaded.dtype == np.dtype(dtype or store.dtype)
    assert np.array_equal(loaded, rows.vectors[picked])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shuffled", [False, True])
def test_load_in_threads_names_the_first_damage(filled: tuple[Store, Any], shuffled: bool) -> None:
    store, rows = filled
    for number in (19, 6, 11):
        spoil(store, number, 3)
    keys = np.random.default_rng(0).permutation(rows.keys) if shuffled else rows.keys
    with pytest.raises(StoreError, match=rf"rows 0-255 of block {store.catalog.live()[6].id} differ"):
        store.load(keys)


@pytest.mark.usefixtures("threads")
def test_numbers_beyond_the_dtype_are_refused(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    store = Bank(tmp_path).open_store(identity(dtype="float32"), create=True, block_rows=100)
    rows = make_rows(400, dtype="float32")
    rows.vectors[333, 2] = 70_000
    with store.writer() as writer:
        writer.append(*rows[:])
    with pytest.raises(VectorRefused, match=r"beyond float16 \(up to 65504\); load it as float32"):
        store.load(rows.keys, dtype="float16")
    assert np.array_equal(store.load(rows.keys[:300], dtype="float16"), rows.vectors[:300].astype(np.float16))
    assert np.array_equal(store.load(rows.keys, dtype="float64"), rows.vectors)


def test_results_come_in_the_order_of_the_items() -> None:
    first = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert first.wait(30)
        else:
            first.set()
        return item * item

    assert list(in_threads(work, range(50), 3)) == [i * i for i in range(50)]


def test_no_more_is_done_ahead_than_a_few_items_a_thread() -> None:
    begun: list[int] = []
    results: Iterator[None] = in_threads(begun.append, range(100), 3)
    for _ in range(5):
        next(results)
    assert len(begun) <= 5 + 2 * 3
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5 + 2 * 3


@pytest.mark.parametrize("threads", [1, 4])
def test_a_fault_is_raised_in_its_turn_and_ends_the_work(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item in (7, 8):
            raise ValueError(f"item {item}")
        return item

    results = in_threads(work, range(1000), threads)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="item 7"):
        next(results)
    assert not list(results)
    assert len(begun) <= 8 + 2 * threads
