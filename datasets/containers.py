"""Files that hold many patches: zip, tar, HDF5, npz and parquet; whole-slide images are in slides.py.

A container reads from several threads: the raw bytes under a lock, the decoding of images outside of it.
"""

import math
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..errors import ImageError
from .container import DAMAGE, Container
from .hdf5 import hdf5_array, hdf5_rows
from .images import MAX_PIXELS, decode_image, open_regular

MEMBER_BYTES = 1 << 29  # a member that claims more is not a patch
HEADER_BYTES = 1 << 20  # of a tar: names and attributes of one file
_ABOUT_OTHERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
HDF5_CACHE = 64 << 20  # bytes; a chunk of many patches is then decompressed once for all of them
ROW_GROUPS = 4  # of a parquet file, kept decoded
_ROW = re.compile(r"(?P<name>.+)\[(?P<row>[0-9]+)\]\Z")


class ZipImages(Container):
    """Members of a zip file, by their names."""

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    @cached_property
    def _index(self) -> dict[str, zipfile.ZipInfo]:
        files = (info for info in self._zip.infolist() if not info.is_dir())
        return {info.filename.removeprefix("./"): info for info in files}

    def members(self) -> list[str]:
        return list(self._index)

    def _read(self, member: str, name: str) -> np.ndarray:
        with self._lock:  # ZipFile counts its readers without one
            info = self._index.get(member.removeprefix("./"))
            if info is None:
                raise ImageError(f"{name}: the zip has no such member.")
            _refuse_large(info.file_size, name)
            data = self._zip.read(info)
        return decode_image(data, name)


class _Member(tarfile.TarInfo):
    """Refuses headers of headers (long names, pax records) that claim to be large: they are read at once."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # of Python's tarfile, 3.11 to 3.14
        if self.type in _ABOUT_OTHERS and self.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes is too large")
        return super()._proc_member(tarfile_)  # type: ignore[misc]


class TarImages(Container):
    """Members of an uncompressed tar file, by their names; the file is read through once for its index."""

    @cached_property
    def _index(self) -> dict[str, tuple[int, int]]:
        with tarfile.open(self.path, "r:", tarinfo=_Member) as tar:
            plain = [info for info in tar if info.isreg() and not info.sparse]
            end = tar.offset
        with open_regular(self.path) as stream:  # at a damaged header tarfile ends as at the end of the file
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"its table is damaged at byte {end}, behind {len(plain)} files")
        # `tar cf x.tar .` writes ./a.png
        return {info.name.removeprefix("./"): (info.offset_data, info.size) for info in plain}

    @cached_property
    def _file(self) -> Any:
        return open(self.path, "rb")  # noqa: PTH123  stays open; `Container` closes it

    def members(self) -> list[str]:
        return list(self._index)

    def _read(self, member: str, name: str) -> np.ndarray:
        with self._lock:
            if member not in self._index:
                raise ImageError(f"{name}: the tar has no such member.")
            offset, size = self._index[member]
            _refuse_large(size, name)
            self._file.seek(offset)
            data = self._file.read(size)
        return decode_image(data, name)


class Hdf5Arrays(Container):
    """Rows of uint8 arrays (n, h, w), (n, h, w, 1) or (n, h, w, 3): PCam's layout."""

    @cached_property
    def _file(self) -> h5py.File:
        return h5py.File(self.path, "r", rdcc_nbytes=HDF5_CACHE)

    @cached_property
    def _known(self) -> dict[str, h5py.Dataset]:
        """The arrays that may be read: asking for their size in the file walks all chunks."""
        return {}

    @cached_property
    def _checked(self) -> set[Any]:
        """The chunks that decompress to no more than they claim."""
        return set()

    def _read(self, member: str, name: str) -> np.ndarray:
        key, row = parse_row(member, name)
        with self._lock:
            if key not in self._known:
                self._known[key] = hdf5_array(self._file, key, self.path)
            array = self._known[key]
            _check_row(row, array.shape, name)
            return as_rgb(hdf5_rows(array, row, self.path, self._checked), name)


class NpzArrays(Container):
    """The same in an npz: MedMNIST's layout. Compressed arrays are held in memory, others are mapped."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, key: str) -> np.ndarray:
        """A whole array. Raises ImageError: no such key, or an array of Python objects (never unpickled)."""
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = self._load(key)
            return self._arrays[key]

    def keys(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    def _load(self, key: str) -> np.ndarray:
        if key not in self.keys():
            raise ImageError(f"{self.path}: there is no array {key!r}; the file has {self.keys()}.")
        with zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{key}.npy")
            try:
                with archive.open(info) as stream:
                    version = np.lib.format.read_magic(stream)
                    header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                        version, np.lib.format.read_array_header_2_0
                    )
                    shape, fortran, dtype = header(stream)
                    if dtype.hasobject:
                        raise ImageError(
                            f"{self.path}: {key!r} holds Python objects, which are never unpickled."
                        )
                    size, held = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
                    if size != held:
                        raise ImageError(f"{self.path}: {key!r} claims {size} bytes and holds {held}.")
                    if info.compress_type == zipfile.ZIP_STORED and not fortran:
                        start = _data_offset(self.path, info) + stream.tell()
                        return np.memmap(self.path, dtype, "r", offset=start, shape=shape)
                with archive.open(info) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            except ImageError:
                raise
            except DAMAGE as error:
                raise ImageError(f"{self.path}: the array {key!r} cannot be read: {error}.") from error

    def _read(self, member: str, name: str) -> np.ndarray:
        key, row = parse_row(member, name)
        array = self.array(key)
        _check_row(row, array.shape, name)
        return as_rgb(array[row], name)


class ParquetImages(Container):
    """Rows of an image column as Hugging Face writes them: struct<bytes, path>, or plain binary."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    @cached_property
    def _file(self) -> pyarrow.parquet.ParquetFile:
        return pyarrow.parquet.ParquetFile(self.path)

    @cached_property
    def _starts(self) -> np.ndarray:
        """First row of each row group, and one past the last row."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def _read(self, member: str, name: str) -> np.ndarray:
        column, row = parse_row(member, name)
        with self._lock:
            if column not in self._file.schema_arrow.names:
                have = self._file.schema_arrow.names
                raise ImageError(f"{name}: there is no column {column!r}; the file has {have}.")
            _check_row(row, (int(self._starts[-1]),), name)
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            value = self._group(column, group)[row - int(self._starts[group])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: the row holds no image bytes; only embedded images can be read.")
        return decode_image(data, name)

    def _group(self, column: str, group: int) -> pa.ChunkedArray:
        key = (column, group)
        if key not in self._groups:
            self._groups[key] = self._file.read_row_group(group, columns=[column]).column(0)
            if len(self._groups) > ROW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def _open_slide(path: str) -> Container:
    from .slides import Slide  # needs openslide, an extra

    return Slide(path)


_KINDS: dict[str, Callable[[str], Container]] = {
    ".zip": ZipImages,
    ".tar": TarImages,
    ".h5": Hdf5Arrays,
    ".hdf5": Hdf5Arrays,
    ".npz": NpzArrays,
    ".parquet": ParquetImages,
}


def open_container(path: str) -> Container:
    """The reader for a file, by its suffix; any other suffix is a whole-slide image. Raises ImageError."""
    open_regular(path).close()  # a pipe would be waited for
    if path.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        raise ImageError(f"{path}: a compressed tar has no random access; decompress it to a .tar first.")
    try:
        container = _KINDS.get(Path(path).suffix.lower(), _open_slide)(path)
        _touch(container)
    except ImageError:
        raise
    except DAMAGE as error:
        raise ImageError(f"{path}: cannot be opened: {error}.") from error
    return container


def _touch(container: Container) -> None:
    """Open the file now, so that what is wrong with it is said of the file and not of a patch."""
    match container:
        case ZipImages():
            _ = container._zip
        case TarImages():
            _ = container._index, container._file
        case Hdf5Arrays() | ParquetImages():
            _ = container._file
        case NpzArrays():
            container.keys()


def parse_row(member: str, name: str) -> tuple[str, int]:
    """("x", 123) of "x[123]". Raises ImageError."""
    match = _ROW.match(member)
    if match is None:
        raise ImageError(f"{name}: the place in this file is written as NAME[ROW], for example x[123].")
    return match["name"], int(match["row"])


def as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 (h, w), (h, w, 1), (h, w, 3) or (h, w, 4, no alpha) as uint8 (h, w, 3). Raises ImageError."""
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
    ):
        raise ImageError(f"{name}: a patch must be uint8 (h, w[, 3]), this is {array.dtype} {array.shape}.")
    if array.ndim == 2:
        array = array[..., None]
    rgb = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    return np.array(rgb)  # a copy: the array may be a map of the file


def _check_row(row: int, shape: tuple[int, ...], name: str) -> None:
    if math.prod(shape[1:3]) > MAX_PIXELS:
        raise ImageError(f"{name}: {shape[1]} x {shape[2]} pixels are too many for a patch.")
    if row >= (shape[0] if shape else 0):
        raise ImageError(f"{name}: there are only {shape[0] if shape else 0} rows (counted from 0).")


def _refuse_large(size: int, name: str) -> None:
    if size > MEMBER_BYTES:
        raise ImageError(f"{name}: {size} bytes are too many for a patch.")


def _data_offset(path: str, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header (not as long as the directory's entry)."""
    with open(path, "rb") as stream:  # noqa: PTH123
        stream.seek(info.header_offset + 26)
        lengths = np.frombuffer(stream.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())
