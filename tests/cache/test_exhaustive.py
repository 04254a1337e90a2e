"""Everything that can be tried on a small store is tried: every cut of its log, every read of a load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.filesystem import LocalFiles
from patchbank.cache.finalize import finalize
from patchbank.cache.identity import Identity
from patchbank.cache.store import Store
from patchbank.cache.verify import repair, verify
from patchbank.errors import StoreError

READS = ("read", "read_into", "names", "size", "exists", "reader", "modified", "same", "walk")


def small(bank: Path, identity: Identity, rows: Any, backend: str = "zarr") -> Store:
    """Two blocks."""
    store = Bank(bank).open_store(identity, create=True, backend=backend, block_rows=4)
    with store.writer() as writer:
        for start in range(0, len(rows.keys), 4):
            writer.append(*rows[start : start + 4])
            writer.flush()
    return Store(store.files)


@pytest.mark.parametrize("finalized", [False, True])
def test_a_log_that_is_cut_at_every_byte(
    tmp_path: Path, identity: Any, make_rows: Any, finalized: bool
) -> None:
    """A reader gets the rows of whole lines or a sentence; never a wrong row, never a traceback."""
    rows = make_rows(8)
    store = small(tmp_path / "bank", identity(), rows)
    if finalized:
        finalize(store)
    logs = sorted((Path(store.path) / "parts/log").iterdir())
    wanted = {key.tobytes(): vector.tobytes() for key, vector in zip(rows.keys, rows.vectors, strict=True)}
    cuts = 0
    for log in logs:
        whole = log.read_bytes()
        for end in range(len(whole)):
            log.write_bytes(whole[:end])
            cuts += 1
            try:
                after = Store(store.files)
                here = np.flatnonzero(after.contains(rows.keys))
                vectors = after.load(rows.keys[here])
            except StoreError as error:
                assert "\n" not in str(error)  # noqa: PT017
                continue
            for key, vector in zip(rows.keys[here], vectors, strict=True):
                assert wanted[key.tobytes()] == vector.tobytes()
            if end % 29 == 0:
                assert len(here) == 8 or not verify(Store(store.files, lenient=True)).good, end
        log.write_bytes(whole)
    assert cuts > 500
    assert Store(store.files).load(rows.keys).tobytes() == rows.vectors.tobytes()


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
@pytest.mark.parametrize("finalized", [False, True])
def test_every_read_of_a_load_may_fail(
    tmp_path: Path, identity: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch, backend: str,
    finalized: bool,
) -> None:  # fmt: skip
    """Once: the load is right or ends with a sentence, and the next one, of the same reader, is right."""
    rows = make_rows(8)
    store = small(tmp_path / "bank", identity(), rows, backend)
    if finalized:
        finalize(store)
    count, at = 0, 0

    def failing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(5, "Input/output error")
            return method(*args, **kwargs)

        return call

    for name in READS:
        monkeypatch.setattr(LocalFiles, name, failing(getattr(LocalFiles, name)))
    told = 0
    while count >= at:
        count, at = 0, at + 1
        reader = None
        try:
            reader = Store(store.files)
            assert reader.load(rows.keys).tobytes() == rows.vectors.tobytes()
        except StoreError as error:
            told += 1
            assert "Input/output error" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        seen, count = count, at  # no more faults
        if reader is not None:
            assert reader.load(rows.keys).tobytes() == rows.vectors.tobytes(), at
        count = seen
    assert at > 5
    assert told > 2  # of the others the same is read again, or they were not needed


@pytest.mark.parametrize("target", ["bank", "stores"])
def test_a_bank_that_is_a_link(tmp_path: Path, identity: Any, make_rows: Any, target: str) -> None:
    """On another disk, say: written, finalised, repaired and removed through the link, which stays."""
    rows = make_rows(8)
    real, bank = tmp_path / "disk", tmp_path / "bank"
    real.mkdir()
    link = bank if target == "bank" else bank / "stores"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(real)
    store = small(bank, identity(), rows)
    finalize(store)
    repair(Store(store.files, lenient=True))
    assert verify(Store(store.files)).good
    assert Bank(bank).open_name(store.name).load(rows.keys).tobytes() == rows.vectors.tobytes()
    Bank(bank).remove(store.name)
    assert Bank(bank).names() == []
    assert link.is_symlink()


def test_names_that_differ_in_case_are_two_stores(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    """Where the file system does not tell them apart, too: the digest in a name does."""
    names = []
    for number, encoder in enumerate(("org/UNI", "org/uni")):
        rows = make_rows(8, seed=number)
        store = small(tmp_path / "bank", identity(encoder={"id": encoder}), rows)
        names.append(store.name)
    assert len({name.lower() for name in names}) == 2
    for number, encoder in enumerate(("org/UNI", "org/uni")):
        rows = make_rows(8, seed=number)
        found = Bank(tmp_path / "bank").find(encoder)
        assert found.load(rows.keys).tobytes() == rows.vectors.tobytes()
        assert not found.contains(make_rows(8, seed=1 - number).keys).any()
