"""One contract for every kind of store: local Zarr, local HDF5, memory://, an S3 stand-in on loopback."""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.identity import Identity
from patchbank.cache.merge import diff, merge, subset
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import InvalidRequest, RowsMissing, StoreNotFound, VectorRefused

MakeIdentity = Callable[..., Identity]


def fill(store: Store, rows: Any, step: int = 77) -> None:
    with store.writer() as writer:
        for start in range(0, len(rows.ids), step):
            writer.append(*rows[slice(start, start + step)])
    store.refresh()


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class Essentials:
    """What even a slow stand-in has time for. Subclasses give `bank` and a way past the store."""

    backend = "zarr"

    @pytest.fixture
    def bank(self, tmp_path: Path) -> Bank:
        return Bank(tmp_path / "bank")

    def stock(self, store: Store) -> dict[str, np.ndarray]:
        """The finalised arrays as stock software reads them."""
        group = zarr.open_group(str(store.path), mode="r")
        return {name: np.asarray(group[name]) for name, _ in group.arrays()}

    def stored(self, store: Store, on_disk: Any) -> dict[bytes, bytes]:
        return on_disk(Path(store.path))

    @pytest.fixture
    def make(self, bank: Bank, identity: MakeIdentity) -> Callable[..., Store]:
        def make(*, block_rows: int = 512, **changes: Any) -> Store:
            return bank.open_store(
                identity(**changes),
                create=True,
                backend=self.backend,
                block_rows=block_rows,
                provenance={"licence": "MIT"},
            )

        return make

    def test_rows_come_back_as_they_were(self, make: Any, make_rows: Any, on_disk: Any) -> None:
        store, rows = make(), make_rows(1300)
        fill(store, rows)
        assert self.stored(store, on_disk) == rows.as_dict()
        assert len(store) == store.published_rows == 1300
        assert same(store.load(rows.keys), rows.vectors)
        assert same(store.keys(), rows.keys)

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_any_choice_of_rows_in_any_order(self, make: Any, make_rows: Any, dtype: str) -> None:
        store, rows = make(dtype=dtype, dim=5), make_rows(1300, dim=5, dtype=dtype)
        fill(store, rows)
        shuffled = np.random.default_rng(1).permutation(1300)
        for pick in (shuffled, shuffled[:7], np.r_[shuffled[:400], shuffled[:3]], np.arange(500, 530)[::-1]):
            assert same(store.load(rows.keys[pick]), rows.vectors[pick])
            wide = store.load(rows.keys[pick], dtype="float64")
            assert same(wide, rows.vectors[pick].astype("float64"))
        assert store.load(rows.keys[:0]).shape == (0, 5)

    def test_finalized_arrays_open_with_stock_software(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(1300)
        fill(store, rows)
        fill(store, make_rows(1300))  # the same once more: repeated rows must go
        done = finalize(store, rows.table())
        assert (done.rows, done.blocks) == (1300, 3)
        arrays = self.stock(store)
        assert same(
            arrays["content_hash"][np.lexsort(arrays["content_hash"].T)], rows.keys[np.lexsort(rows.keys.T)]
        )
        place = {key.tobytes(): i for i, key in enumerate(arrays["content_hash"])}
        order = [place[key.tobytes()] for key in rows.keys]
        assert same(arrays["embeddings"][order], rows.vectors)
        for name in ("patch_id", "label", "group", "domain", "split"):
            words = [w.decode() if isinstance(w, bytes) else str(w) for w in arrays[name][order]]
            assert words == rows.table()[name].tolist()
        assert same(store.load(rows.keys), rows.vectors)
        assert verify(store).good

    def test_damage_is_found_and_repaired(self, make: Any, make_rows: Any, bank: Bank) -> None:
        """A few flips by way of the store's own file layer; `test_damage.py` flips everywhere."""
        store, rows = make(), make_rows(1300)
        fill(store, rows)
        finalize(store)
        gc(store, grace=0)  # packed blocks would give the rows back
        store.refresh()
        block = store.catalog.order[1]
        names = [store.layout.files_of(block)[0], *(name for _, name in store.layout.chunks(block, 1)[:1])]
        content = bytearray(store.files.read(names[0]))
        content[len(content) // 2] ^= 4
        for name in names:
            store.files.put({name: [content]})
        damaged = bank.open_name("fake", lenient=True)
        assert [damage.kind for damage in verify(damaged).damage] == ["rows"]
        done = repair(damaged)
        assert 0 < done.lost <= 256
        fresh = bank.find("fake:noise")
        assert verify(fresh).good
        missing = ~fresh.contains(rows.keys)
        assert missing.sum() == done.lost
        assert same(fresh.load(rows.keys[~missing]), rows.vectors[~missing])
        assert sorted(map(bytes, done.lost_keys)) == sorted(map(bytes, rows.keys[missing]))


class StoreContract(Essentials):
    """Everything that a store promises."""

    def test_what_is_not_there_is_said(self, make: Any, make_rows: Any) -> None:
        store, rows, others = make(), make_rows(100), make_rows(30, seed=1)
        assert len(store) == 0
        assert not store.contains(rows.keys).any()
        fill(store, rows)
        both = np.concatenate([rows.keys[:10], others.keys])
        assert store.contains(both).tolist() == [True] * 10 + [False] * 30
        with pytest.raises(RowsMissing, match=r"30 of 40 patches .*`patchbank extract`.*fake:noise"):
            store.load(both)

    def test_a_reader_sees_what_others_publish(self, make: Any, make_rows: Any, bank: Bank) -> None:
        store, rows = make(), make_rows(900)
        reader = bank.find("fake:noise")
        for start in range(0, 900, 90):
            with store.writer() as writer:
                writer.append(*rows[slice(start, start + 90)])
            assert not reader.contains(rows.keys[start : start + 90]).any()
            reader.refresh()
            assert reader.contains(rows.keys).sum() == len(reader) == start + 90
        assert same(bank.find("fake:noise").load(rows.keys), rows.vectors)

    def test_a_key_written_twice_is_one_row(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(200)
        fill(store, rows)
        with store.writer() as writer:
            writer.append(rows.keys, rows.vectors + 1, rows.ids)
            writer.append(*make_rows(10, seed=1)[:])
        store.refresh()
        assert (len(store), store.published_rows) == (210, 410)
        assert same(store.load(rows.keys), rows.vectors)
        fresh = Bank(os.path.dirname(os.path.dirname(str(store.path)))).find("fake:noise")  # noqa: PTH120
        assert (len(fresh), len(fresh.keys())) == (210, 210)
        assert same(fresh.load(rows.keys), rows.vectors)

    @pytest.mark.parametrize(
        ("value", "why"),
        [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf"), (7e4, "70000"), (65520.0, "65520")],
    )
    def test_bad_vectors_are_refused_by_name(self, make: Any, make_rows: Any, value: float, why: str) -> None:
        store, rows = make(), make_rows(40)
        bad = rows.vectors.astype(np.float32)
        bad[13, 3] = value
        with store.writer() as writer:
            writer.append(*rows[:10])
            with pytest.raises(VectorRefused, match=rf"set/0-13 .*{why}"):
                writer.append(rows.keys, bad, rows.ids)
        store.refresh()
        assert store.contains(rows.keys).tolist() == [True] * 10 + [False] * 30
        if why == "70000":
            wide = make(dtype="float32")
            with wide.writer() as writer:
                writer.append(rows.keys, bad, rows.ids)
            wide.refresh()
            assert same(wide.load(rows.keys), bad)

    def test_largest_float16_and_rounding(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(2)
        vectors = np.array([[65504.0, -65519.0, 1e-8, 0, 1 / 3, 2, 3, 4]] * 2)
        with store.writer() as writer:
            writer.append(rows.keys, vectors, rows.ids)
        assert same(store.load(rows.keys), vectors.astype(np.float16))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_what_was_appended_is_kept_whatever_happens(self, make: Any, make_rows: Any, error: Any) -> None:
        store, rows = make(), make_rows(700)
        with pytest.raises(error), store.writer() as writer:  # noqa: PT012
            writer.append(*rows[:600])
            raise error
        store.refresh()
        assert store.contains(rows.keys).sum() == 600

    def test_requests_that_make_no_sense(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(10)
        keys, vectors, ids = rows[:]
        with pytest.raises(InvalidRequest, match="uint8"):
            store.contains(keys.astype(np.int64))
        with pytest.raises(InvalidRequest, match="block_rows is 513"):
            store.writer(block_rows=513)
        with store.writer() as writer:
            for wrong in [
                (keys[:9], vectors, ids),
                (keys, vectors[:, :7], ids),
                (keys, vectors.astype(int), ids),
            ]:
                with pytest.raises(InvalidRequest):
                    writer.append(*wrong)
            with pytest.raises(InvalidRequest):
                writer.append(keys, vectors, ids[:3])
        assert len(store) == 0
        assert not store.catalog.sessions

    def test_finalize_twice_and_with_more_rows(
        self, make: Any, make_rows: Any, bank: Bank, on_disk: Any
    ) -> None:
        store, first, more = make(), make_rows(700), make_rows(900, seed=1)
        fill(store, first)
        assert finalize(store).blocks == 2
        assert finalize(store).packed == 0
        before = self.stock(store)
        stale = bank.find("fake:noise")
        stale.contains(first.keys)
        fill(store, more)
        assert finalize(store).rows == 1600
        after = self.stock(store)
        assert same(after["embeddings"][:512], before["embeddings"][:512])
        assert sorted(map(bytes, after["content_hash"])) == sorted([*first.as_dict(), *more.as_dict()])
        for reader in (stale, store, bank.find("fake:noise")):
            assert same(reader.load(first.keys), first.vectors)
            assert same(reader.load(more.keys), more.vectors)
        gc(store, grace=0)
        assert same(stale.load(first.keys), first.vectors)
        assert self.stored(store, on_disk) == first.as_dict() | more.as_dict()
        assert verify(store).good
        assert not verify(store).notes

    def test_nothing_to_finalize(self, make: Any) -> None:
        with pytest.raises(InvalidRequest, match="no rows"):
            finalize(make())

    def test_gc_leaves_what_is_published_and_what_is_young(
        self, make: Any, make_rows: Any, on_disk: Any
    ) -> None:
        store, rows = make(), make_rows(700)
        fill(store, rows)
        store.layout.write_block("0" * 12 + "-" + "0" * 32, rows.vectors[:9], rows.keys[:9], padded=False)
        assert len(verify(store).notes) in {1, 2}
        assert not gc(store).files
        assert gc(store, grace=0, dry_run=True).files == gc(store, grace=0).files
        assert not gc(store, grace=0).files
        assert not verify(store).notes
        assert self.stored(store, on_disk) == rows.as_dict()

    def test_merge_subset_diff(
        self, make: Any, make_rows: Any, tmp_path: Path, identity: MakeIdentity
    ) -> None:
        store, rows, more = make(), make_rows(700), make_rows(300, seed=1)
        fill(store, rows)
        other = Bank(tmp_path / "other").open_store(identity(), create=True)
        fill(other, more)
        with other.writer() as writer:
            writer.append(*rows[:50])
        assert merge(store, [other]) == 300
        assert merge(store, [other]) == 0
        assert same(store.load(more.keys), more.vectors)
        small = subset(store, rows.keys[100:300], Bank(tmp_path / "small"))
        assert len(small) == 200
        assert same(small.load(rows.keys[100:300]), rows.vectors[100:300])
        with pytest.raises(RowsMissing):
            subset(store, make_rows(3, seed=9).keys, Bank(tmp_path / "small"))
        found = diff(store, small)
        assert (found.shared, found.only_a, found.only_b, found.identical) == (200, 800, 0, 200)
        assert found.verdict == "identical"

    def test_blocks_of_a_load_are_the_load(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(1300)
        fill(store, rows)
        pick = np.random.default_rng(1).permutation(1300)[:1001]
        parts = list(store.iter_blocks(rows.keys[pick], 300))
        assert [part for part, _ in parts] == [slice(s, min(s + 300, 1001)) for s in range(0, 1001, 300)]
        assert same(np.concatenate([vectors for _, vectors in parts]), rows.vectors[pick])


class TestZarr(StoreContract):
    def test_no_warning_for_people_who_list_the_group(self, make: Any, make_rows: Any, recwarn: Any) -> None:
        store = make()
        fill(store, make_rows(20))
        finalize(store)
        assert {name for name, _ in zarr.open_group(str(store.path), mode="r").members()} >= {"embeddings"}
        assert not recwarn.list

    def test_no_second_copy(self, make: Any, make_rows: Any) -> None:
        store, rows = make(dim=64), make_rows(1024, dim=64)
        fill(store, rows, 512)
        before = {p.stat().st_ino for p in Path(store.path).rglob("*.vectors")}
        finalize(store)
        assert {p.stat().st_ino for p in Path(store.path).glob("embeddings/c/*/0")} == before


class TestHdf5(StoreContract):
    backend = "hdf5"

    def stock(self, store: Store) -> dict[str, np.ndarray]:
        here = Path.cwd()
        os.chdir("/")  # virtual datasets find their blocks wherever the reader is
        try:
            with h5py.File(Path(store.path) / "embeddings.h5", "r") as file:
                return {str(name): np.asarray(file[name]) for name in file}
        finally:
            os.chdir(here)

    def test_a_url_is_refused(self, identity: MakeIdentity) -> None:
        with pytest.raises(InvalidRequest, match="local only"):
            Bank(f"memory://{uuid.uuid4()}").open_store(identity(), create=True, backend="hdf5")

    def test_blocks_are_hdf5_files(self, make: Any, make_rows: Any) -> None:
        store, rows = make(), make_rows(512)
        fill(store, rows)
        (file,) = Path(store.path).rglob("*.h5")
        with h5py.File(file) as block:
            assert same(np.asarray(block["embeddings"]), rows.vectors)
            assert same(np.asarray(block["content_hash"]), rows.keys)


class Remote(Essentials):
    def stored(self, store: Store, on_disk: Any) -> dict[bytes, bytes]:
        """By the file system's own download, then by the independent reader."""
        import tempfile

        from fsspec.core import url_to_fs

        fs, root = url_to_fs(str(store.path))
        with tempfile.TemporaryDirectory() as name:
            for path in fs.find(root):
                local = Path(name) / path.removeprefix(fs._strip_protocol(root)).lstrip("/")
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(fs.cat_file(path))
            for log in (Path(name) / "parts/log").iterdir():  # a folder of lines stands for a file of lines
                lines = b"".join(line.read_bytes() for line in sorted(log.iterdir()))
                log.with_suffix(".jsonl").write_bytes(lines)
            return on_disk(Path(name))


class TestMemory(Remote, StoreContract):
    @pytest.fixture
    def bank(self) -> Bank:
        return Bank(f"memory://{uuid.uuid4()}")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class TestS3(Remote):
    @pytest.fixture
    def bank(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
        import s3fs
        from zarr.core.sync import _get_loop

        for name, value in {
            "ACCESS_KEY_ID": "k",
            "SECRET_ACCESS_KEY": "s",
            "ENDPOINT_URL": s3_server,
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4()}"
        s3fs.S3FileSystem().mkdir(bucket)
        yield Bank(f"s3://{bucket}/bank")
        for fs in s3fs.S3FileSystem._cache.values():  # its own finalizer waits for a tenth of a second only
            if fs._s3 is not None:
                loop = _get_loop() if fs.asynchronous else fs.loop
                asyncio.run_coroutine_threadsafe(fs._s3.__aexit__(None, None, None), loop).result(300)
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_whose_making_was_killed_is_none(tmp_path: Path, identity: Callable[..., Identity]) -> None:
    """Folders without a file: other stores are found, and the next run makes it."""
    bank = Bank(tmp_path)
    bank.open_store(identity(tokens="mean"), create=True)
    half = tmp_path / "stores" / identity().name
    for name in ("log", "blocks"):
        (half / name).mkdir(parents=True)
    assert [store.identity.tokens for store in bank.stores()] == ["mean"]
    assert bank.find("fake:noise").identity.tokens == "mean"
    with pytest.raises(StoreNotFound):
        bank.open_store(identity())
    assert bank.open_store(identity(), create=True).identity == identity()
    assert len(bank.names()) == 2


def test_a_bank_finds_its_stores(tmp_path: Path, identity: MakeIdentity) -> None:
    bank = Bank(tmp_path)
    assert bank.stores() == []
    with pytest.raises(
        StoreNotFound, match=r"no embeddings of the encoder 'uni' .*patchbank extract MANIFEST --encoder uni"
    ):
        bank.find("uni")
    with pytest.raises(StoreNotFound):
        bank.open_store(identity())
    cls, mean = identity(), identity(tokens="mean")
    for one in (cls, mean, identity(view="center:0.5"), identity(encoder={"id": "fake"})):
        bank.open_store(one, create=True)
    assert bank.open_store(cls).identity == cls
    assert bank.find("fake").identity.encoder["id"] == "fake"
    assert bank.find("fake:noise", tokens="mean").identity == mean
    assert bank.find("fake:noise", view="center:0.5").identity.view == "center:0.5"
    with pytest.raises(StoreNotFound, match=r"2 stores .*add tokens.*tokens=cls.*tokens=mean"):
        bank.find("fake:noise")
    with pytest.raises(StoreNotFound, match=r"no store of 'fake:noise'.* has view=full, dtype=float32"):
        bank.find("fake:noise", dtype="float32")
    bank.open_store(identity(encoder={"id": "fake:noise", "weights": "other"}), create=True)
    with pytest.raises(StoreNotFound, match="differ in weights or preprocessing"):
        bank.find("fake:noise", tokens="cls")
    with pytest.raises(StoreNotFound, match=r"3 stores .* have a name like"):
        bank.open_name("fake-noise.full")
    bank.remove(mean.name)
    assert mean.name not in bank.names()


def test_places_that_are_none() -> None:
    with pytest.raises(InvalidRequest, match="nowhere://x"):
        Bank("nowhere://x")
    assert Bank("file:///tmp/x").path == Path("/tmp/x")
