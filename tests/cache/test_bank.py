"""A bank: which store a name or an encoder means, and what is made and removed in it."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.leases import FOLDER, Lease
from patchbank.cache.store import Store
from patchbank.errors import InvalidRequest, StoreError, StoreNotFound


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "bank")


def filled(bank: Bank, identity: Identity, rows: Any) -> Store:
    store = bank.open_store(identity, create=True)
    with store.writer() as writer:
        writer.append(*rows[:])
    return store


def test_no_bank_is_no_empty_bank(bank: Bank, tmp_path: Path) -> None:
    assert bank.names() == []
    assert repr(bank) == f"Bank({str(tmp_path / 'bank')!r})"
    with pytest.raises(StoreNotFound, match=r"there is no bank at .*bank \(no stores\); check --bank"):
        bank.require()
    with pytest.raises(StoreNotFound, match="there is no bank at"):
        bank.open_name("x")
    (tmp_path / "bank/stores").mkdir(parents=True)
    bank.require()  # somebody is about to fill it
    with pytest.raises(StoreNotFound, match=r"0 stores .* have a name like 'x'; there are: none"):
        bank.open_name("x")


def test_a_name_may_be_shortened_as_long_as_it_is_one(bank: Bank, identity: Any) -> None:
    one, two = identity(), identity(tokens="mean")
    for each in (one, two):
        bank.open_store(each, create=True)
    assert bank.full_name(one.name) == one.name
    assert bank.full_name("fake-noise.full.c") == one.name
    assert bank.full_name("fake-noise.full.mean") == two.name
    with pytest.raises(StoreNotFound, match=rf"2 stores .*: {one.name}, {two.name}$"):
        bank.full_name("fake")
    with pytest.raises(StoreNotFound, match=rf"0 stores .* like 'other'; there are: {one.name}, {two.name}$"):
        bank.full_name("other")
    for empty in ("", "  "):
        with pytest.raises(InvalidRequest, match="the name of a store is empty"):
            bank.full_name(empty)
    # a whole name is that store, though another begins with it
    shutil.copytree(str(bank.open_store(one).path), f"{bank.path}/stores/{one.name}-copy")
    assert bank.full_name(one.name) == one.name


def test_a_store_under_another_name_is_not_taken_for_it(bank: Bank, identity: Any) -> None:
    one, two = identity(), identity(dim=16)
    store = bank.open_store(one, create=True)
    Path(store.path).rename(Path(store.path).with_name(two.name))
    with pytest.raises(StoreError, match="holds a different identity from its name; move it"):
        bank.open_store(two)
    with pytest.raises(StoreError, match="holds a different identity"):
        bank.open_store(two, create=True)


def test_of_several_that_fit_the_one_with_all_rows_is_taken(
    bank: Bank, identity: Any, make_rows: Any
) -> None:
    rows = make_rows(20)
    whole = filled(bank, identity(), rows)
    half = bank.open_store(identity(precision="bf16"), create=True)
    with half.writer() as writer:
        writer.append(*rows[:10])
    with pytest.raises(StoreNotFound, match=r"2 stores .* \(add precision\)"):
        bank.find("fake:noise")
    asked: list[int] = []

    def needed() -> np.ndarray:
        asked.append(1)
        return rows.keys

    assert bank.find("fake:noise", needed=needed).identity == whole.identity
    assert asked == [1]
    assert bank.find("fake:noise", precision="bf16", needed=needed).identity == half.identity
    assert asked == [1]  # where one fits, nobody is asked
    with pytest.raises(StoreNotFound, match=r"2 stores .* \(add precision\)"):  # both have these
        bank.find("fake:noise", needed=lambda: rows.keys[:10])
    with pytest.raises(StoreNotFound, match=r"2 stores .* \(add precision\)"):  # none has these
        bank.find("fake:noise", needed=lambda: make_rows(3, seed=9).keys)


def test_an_encoder_is_its_id_and_no_beginning_of_it(bank: Bank, identity: Any) -> None:
    for name in ("uni", "uni2", "uni:x", "uni/x"):  # the last two have one name as a folder
        bank.open_store(identity(encoder={"id": name}), create=True)
    for name in ("uni", "uni2", "uni:x", "uni/x"):
        assert bank.find(name).identity.encoder["id"] == name
    with pytest.raises(
        StoreNotFound, match=r"no embeddings of the encoder 'un' .*there are: uni, uni-x, uni2\."
    ):
        bank.find("un")


def test_imports_from_two_sources_say_how_they_become_one(bank: Bank, identity: Any) -> None:
    for source in ("a", "b"):
        about = {"id": "mine", "origin": "imported", "source": source}
        bank.open_store(identity(encoder=about), create=True)
    with pytest.raises(StoreNotFound, match=r"imported from different sources: `patchbank cache rm` one, or"):
        bank.find("mine")


def test_whether_a_store_could_be_made_is_known_before(bank: Bank, tmp_path: Path, identity: Any) -> None:
    bank.check_new(identity(), "zarr")
    bank.check_new(identity(), "hdf5")
    assert not (tmp_path / "bank").exists()  # it only looked
    with pytest.raises(InvalidRequest, match="unknown backend 'lmdb'; available: zarr and hdf5"):
        bank.check_new(identity(), "lmdb")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"cannot create a store in .*file: it is a file\. Fix: choose another"
    ):
        Bank(tmp_path / "file/bank").check_new(identity(), "zarr")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(bank: Bank, tmp_path: Path, identity: Any) -> None:
    (tmp_path / "bank").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="it cannot be written"):
        bank.check_new(identity(), "zarr")


class TestFoldersWithoutAStore:
    """What runs leave behind that ended before they wrote anything."""

    @pytest.fixture
    def folder(self, bank: Bank, identity: Any) -> Path:
        folder = Path(str(bank.files_of(identity())))
        for name in ("parts/log", "parts/blocks", "parts/leases"):
            (folder / name).mkdir(parents=True)
        return folder

    def test_they_are_no_stores(self, bank: Bank, folder: Path, identity: Any) -> None:
        assert bank.names() == []
        assert bank.empty_names() == [folder.name]
        with pytest.raises(StoreNotFound):
            bank.open_store(identity())
        assert bank.open_store(identity(), create=True).identity == identity()  # the next run makes it
        assert (bank.names(), bank.empty_names()) == ([folder.name], [])
        assert not bank.remove_empty(folder.name)
        assert folder.is_dir()

    def test_the_run_that_made_one_removes_it(self, bank: Bank, folder: Path) -> None:
        assert bank.remove_empty(folder.name)
        assert not folder.exists()
        assert not bank.remove_empty(folder.name)

    def test_without_leases_the_age_decides(self, bank: Bank, folder: Path) -> None:
        (folder / "parts/leases").rmdir()
        assert not bank.remove_empty(folder.name)
        assert not bank.remove_empty(folder.name, grace=3600.0)
        os.utime(folder, (0, 0))
        assert bank.remove_empty(folder.name, grace=3600.0)

    def test_one_in_which_somebody_works_stays(self, bank: Bank, folder: Path) -> None:
        lease = Lease.acquire(bank.files.at(f"stores/{folder.name}"), "unit")
        assert lease is not None
        assert not bank.remove_empty(folder.name)
        assert (folder / FOLDER).is_dir()
        assert lease.is_held()
        lease.release()
        assert bank.remove_empty(folder.name)


def test_remote_banks_have_no_folders_to_remove(identity: Any, make_rows: Any) -> None:
    pytest.importorskip("fsspec")
    bank = Bank(f"memory://{uuid.uuid4()}")
    assert not bank.remove_empty("x", grace=0.0)
    with pytest.raises(StoreNotFound, match="there is no bank at memory://"):
        bank.require()
    bank.check_new(identity(), "zarr")
    with pytest.raises(InvalidRequest, match="HDF5 stores are local only"):
        bank.check_new(identity(), "hdf5")
    store = filled(bank, identity(), make_rows(3))
    assert bank.names() == [store.name]
    assert [one.name for one in bank.stores()] == [store.name]
    bank.remove(store.name)
    assert bank.names() == []
