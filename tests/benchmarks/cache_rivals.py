"""Engines with transactions behind one interface, for cache_speed.py and cache_kill.py.

Each keeps two columns, keys (n, 16) of uint8 and vectors (n, dim) of float16, without compression, in chunks
or fragments of `block` rows; `append` is one transaction. They are imported when they are used: `pip install
'patchbank[bench]'`. What is not on the disk when `append` returns is brought there by `sync_files`: icechunk
and Lance call fsync for nothing on a local disk, tensorstore does for each file (seen with strace).
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 8192  # rows of a transaction and of a chunk, as our stores have


class Rival:
    """One engine's table in a folder.

    Attributes
    ----------
    module
        what has to be installed.
    several_writers
        processes may append at once.
    """

    name: str
    module: str
    several_writers = True

    def __init__(self, folder: Path, dim: int, *, create: bool = False, block: int = BLOCK) -> None:
        self.folder, self.dim, self.block = folder, dim, block
        if create:
            folder.mkdir()
            self.create()
        self.open()

    def create(self) -> None:
        """Make an empty table."""

    def open(self) -> None:
        """Look at the newest version."""
        raise NotImplementedError

    def append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Add rows as one transaction."""
        raise NotImplementedError

    def keys(self) -> np.ndarray:
        """uint8 (n, 16)"""
        raise NotImplementedError

    def load(self) -> np.ndarray:
        """float16 (n, dim), all rows in the order of the table."""
        raise NotImplementedError

    def rows(self, index: np.ndarray) -> np.ndarray:
        """float16 (m, dim), rows by number, in the order asked for."""
        raise NotImplementedError

    def missing(self, wanted: np.ndarray) -> int:
        """How many of these keys, uint8 (m, 16), have no row."""
        found = np.ascontiguousarray(self.keys()).view("V16").ravel()
        return int((~np.isin(np.ascontiguousarray(wanted).view("V16").ravel(), found)).sum())


class Icechunk(Rival):
    """Zarr arrays in an icechunk repository; a transaction is a commit on the branch main.

    On a file system its own warning says that commits of several processes at once are not safe.
    """

    name = module = "icechunk"
    several_writers = False

    def _repository(self, how: str) -> Any:
        icechunk = import_module("icechunk")
        icechunk.set_logs_filter("error")
        storage = icechunk.local_filesystem_storage(str(self.folder / "repo"))
        return getattr(icechunk.Repository, how)(storage)

    def create(self) -> None:
        zarr = import_module("zarr")
        session = self._repository("create").writable_session("main")
        group = zarr.group(store=session.store)
        for column, width, kind in (("keys", 16, "uint8"), ("vectors", self.dim, "float16")):
            group.create_array(
                column, shape=(0, width), chunks=(self.block, width), dtype=kind, compressors=None
            )
        session.commit("empty")

    def open(self) -> None:
        self.repository = self._repository("open")
        self.group: Any = import_module("zarr").open_group(
            store=self.repository.readonly_session("main").store, mode="r"
        )

    def append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        session = self.repository.writable_session("main")
        group: Any = import_module("zarr").open_group(store=session.store, mode="r+")
        group["keys"].append(keys)
        group["vectors"].append(vectors)
        session.commit("rows")

    def keys(self) -> np.ndarray:
        return self.group["keys"][:]

    def load(self) -> np.ndarray:
        return self.group["vectors"][:]

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.group["vectors"].oindex[index, :]


class Lance(Rival):
    """A Lance data set; a transaction is a fragment with its manifest."""

    name = module = "lance"

    def create(self) -> None:
        self._write(np.empty((0, 16), np.uint8), np.empty((0, self.dim), np.float16), "create")

    def open(self) -> None:
        self.data: Any = import_module("lance").dataset(str(self.folder / "rows"))

    def append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        self._write(keys, vectors, "append")

    def _write(self, keys: np.ndarray, vectors: np.ndarray, mode: str) -> None:
        pa = import_module("pyarrow")
        data = pa.py_buffer(np.ascontiguousarray(keys))
        columns = {
            "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, data]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.dim),
        }
        import_module("lance").write_dataset(pa.table(columns), str(self.folder / "rows"), mode=mode)

    def keys(self) -> np.ndarray:
        found = self.data.to_table(columns=["key"])["key"].combine_chunks()
        flat = np.frombuffer(found.buffers()[1], np.uint8)[16 * found.offset :]
        return flat[: 16 * len(found)].reshape(-1, 16)

    def load(self) -> np.ndarray:
        out, done = np.empty((self.data.count_rows(), self.dim), np.float16), 0
        for batch in self.data.to_batches(columns=["vector"]):
            out[done : done + len(batch)] = self._vectors(batch)
            done += len(batch)
        return out

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self._vectors(self.data.take(index, columns=["vector"]).combine_chunks().to_batches()[0])

    def _vectors(self, batch: Any) -> np.ndarray:
        return batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)


class Tensorstore(Rival):
    """Two Zarr arrays in one OCDBT database of tensorstore; a transaction is an atomic one over both.

    It has no append of its own: several writers would have to agree on their rows (not tried).
    """

    name = module = "tensorstore"
    several_writers = False

    def create(self) -> None:
        for column, width, kind in (("keys", 16, "uint8"), ("vectors", self.dim, "float16")):
            layout = import_module("tensorstore").ChunkLayout(chunk_shape=[self.block, width])
            self._array(column, create=True, dtype=kind, shape=[0, width], chunk_layout=layout)

    def open(self) -> None:
        self.context: Any = import_module("tensorstore").Context()  # without what an earlier one keeps
        self.arrays = {column: self._array(column, context=self.context) for column in ("keys", "vectors")}

    def _array(self, column: str, **options: Any) -> Any:
        base = {"driver": "file", "path": f"{self.folder}/"}
        spec = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{column}/"}}
        return import_module("tensorstore").open(spec, **options).result()

    def append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        ts = import_module("tensorstore")
        start = self.arrays["keys"].shape[0]
        with ts.Transaction(atomic=True) as transaction:
            for column, values in (("keys", keys), ("vectors", vectors)):
                array = self.arrays[column].with_transaction(transaction)
                array = array.resize(exclusive_max=[start + len(values), None], expand_only=True).result()
                array[start : start + len(values)].write(values).result()
        for column, array in self.arrays.items():
            self.arrays[column] = array.resolve().result()

    def keys(self) -> np.ndarray:
        return self.arrays["keys"].read().result()

    def load(self) -> np.ndarray:
        return self.arrays["vectors"].read().result()

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.arrays["vectors"][index].read().result()


RIVALS: tuple[type[Rival], ...] = (Icechunk, Lance, Tensorstore)


def installed() -> list[type[Rival]]:
    """Those that can be used here; the others are named on the terminal."""
    found = [kind for kind in RIVALS if find_spec(kind.module)]
    for kind in RIVALS:
        if kind not in found:
            print(f"{kind.name} is not installed: pip install 'patchbank[bench]'")
    return found


def sync_files(folder: Path) -> None:
    """fsync of every file and folder below: what a power cut may not take."""
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):  # noqa: PTH118  thousands of them
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
