"""Files of unknown origin, checked before they are read: nothing in them may run code, lead to other files,
or claim to be far larger than it is.

What is allowed is what exports of `patchbank cache export` have, and of other programs' files what can be
bounded.
"""

import json
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidRequest, PatchbankError
from .filesystem import LocalFiles
from .narrowing import is_object

if TYPE_CHECKING:
    import h5py

MAX_RATIO = 200  # of claimed to stored bytes; embeddings hardly compress
ROOM = 1 << 20  # bytes that any file may claim
CODECS = {"bytes", "vlen-utf8", "vlen-bytes", "crc32c", "transpose"}
SIZED = {"zstd", "blosc"}  # compressors whose chunks say how long they are unpacked
DEFLATE, SHUFFLE, LZF = 1, 2, 32000  # of HDF5
HDF5_FILTERS = {2, 3}  # shuffle, fletcher32: what they give is as long as what they take
ZARR_TYPES = {"bool", "string", "variable_length_utf8", "variable_length_bytes", "fixed_length_utf32"}


@contextmanager
def readable(path: Path, what: str) -> Generator[None]:
    """Turns what a reader raises at a file that is damaged, or no `what`, into one InvalidRequest.

    That may be anything: the readers of six formats have no common error. An OSError passes: it is of the
    disk (or of h5py, which has no other).
    """
    try:
        yield
    except InvalidRequest as error:
        if str(path) in str(error):
            raise
        raise InvalidRequest(f"{path}: {error}") from error
    except (PatchbankError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidRequest(
            f"{path} is not a whole {what} file (cut short, or changed?): {reason}"
        ) from error


def check_regular(path: Path) -> None:
    """Raises InvalidRequest for what is not data: a pipe or device, an empty file, a web page, a pointer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InvalidRequest(f"{path} is not a regular file")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise InvalidRequest(f"{path} is empty; copy or download it again")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise InvalidRequest(
            f"{path} is a web page, saved under this name (a login or an error page?); download it again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise InvalidRequest(
            f"{path} is a pointer of git-lfs, not the file itself; get it with `git lfs pull`"
        )


def check_size(path: Path, claimed: int, there: int) -> None:
    """Raises InvalidRequest where `claimed` bytes cannot come out of `there` bytes."""
    if claimed > MAX_RATIO * there + ROOM:
        raise InvalidRequest(
            f"{path} claims {claimed:,} bytes of arrays, but has {there:,}: it is damaged, or made to fill "
            "the memory"
        )


# --- NumPy ------------------------------------------------------------------------------------------


def npy_header(
    file: IO[bytes], path: Path, *, columns_first: bool = False
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in the .npy format; the file stands at its data then.

    columns_first : whether the reader takes arrays in Fortran order

    Raises InvalidRequest for arrays of Python objects and in Fortran order, ValueError for other formats.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran, dtype = read[version](file)
    if dtype.hasobject:
        raise InvalidRequest(
            f"{path} holds an array of Python objects (a pickle), which could run code; it is not read"
        )
    if fortran and len(shape) > 1 and not columns_first:
        raise InvalidRequest(
            f"{path} holds an array in Fortran order (column by column, as a transposed one is); save it "
            "with np.ascontiguousarray(array)"
        )
    return shape, dtype


# --- HDF5 -------------------------------------------------------------------------------------------


def check_hdf5(file: "h5py.File", path: Path, *, compressed: bool = False) -> None:
    """Raises InvalidRequest where a file leads to others, to itself, or claims more than it has.

    compressed: allow gzip and lzf, whose chunks must unpack to what they claim.
    """
    check_size(path, _claimed(file, path, {file["/"]}, compressed), path.stat().st_size)


def _claimed(group: "h5py.Group", path: Path, seen: set[Any], compressed: bool) -> int:
    """The bytes of all data sets below a group, whose links and data sets are checked on the way."""
    import h5py

    claimed = 0
    for name in group:
        where = f"{path}: {(group.name or '').rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InvalidRequest(f"{where} is a link to another place or file; links are not followed")
        item = group[name]
        if item in seen:
            raise InvalidRequest(f"{where} appears under two names (a loop?); it is not read")
        seen.add(item)
        if isinstance(item, h5py.Group):
            claimed += _claimed(item, path, seen, compressed)
        elif isinstance(item, h5py.Dataset):
            check_dataset(item, where)
            _check_filters(item, where, compressed)
            claimed += max(prod(item.shape or ()), prod(item.chunks or ())) * item.dtype.itemsize
    return claimed


def check_dataset(item: "h5py.Dataset", where: str) -> None:
    """Raises InvalidRequest where the values of a data set are in other files."""
    if item.is_virtual or item.external:
        kind = "a virtual data set" if item.is_virtual else "in external storage"
        raise InvalidRequest(f"{where} is {kind}: its values are in other files, which are not read")


def _check_filters(item: "h5py.Dataset", where: str, compressed: bool) -> None:
    """Raises InvalidRequest for compression that is not allowed, or that unpacks to more than a chunk.

    HDF5 decompresses a chunk to any size. lzf makes 88 times of it at most, gzip 1,032 times.
    """
    plist = item.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    codes = [code for code, *_ in filters]
    names = [str(name or code) for code, _, _, name in filters if code not in HDF5_FILTERS]
    if not names or (compressed and codes in ([LZF], [SHUFFLE, LZF])):
        return
    if not compressed or codes not in ([DEFLATE], [SHUFFLE, DEFLATE]):
        what = "which exports of patchbank are not" if not compressed else "which is not read"
        raise InvalidRequest(
            f"{where} is compressed ({', '.join(names)}), {what}. Fix: `h5repack -f NONE` it, if you "
            "trust its "
            "source"
        )
    width = 16 if item.dtype.hasobject else item.dtype.itemsize  # of a text in the file: where it lies
    size = prod(item.chunks or ()) * width
    for i in range(item.id.get_num_chunks()):
        about = item.id.get_chunk_info(i)
        if about.filter_mask:
            continue  # stored as it is
        if about.size > size + (size >> 10) + ROOM:
            raise InvalidRequest(f"{where}: a chunk of {size:,} bytes is stored in {about.size:,}")
        _, content = item.id.read_direct_chunk(about.chunk_offset)
        unpacker = zlib.decompressobj()
        if len(unpacker.decompress(content, size + 1)) > size:
            raise InvalidRequest(f"{where}: a chunk unpacks to more than the {size:,} bytes that it claims")


# --- Zarr -------------------------------------------------------------------------------------------


def check_zarr(path: Path) -> None:
    """Raises InvalidRequest for codecs that could run code, for objects, links, and claims too large."""
    files = LocalFiles(path)
    names = files.walk()  # refuses links and pipes
    claimed = 0
    for name in names:
        kind = name.rpartition("/")[2]
        if kind in {"zarr.json", ".zarray", ".zmetadata"}:
            document = json.loads(files.read(name))
            claimed += sum(_claimed_array(array, path / name) for array in _arrays(document, kind))
        else:
            claimed += _unpacked(files.read(name, 0, 18), files.size(name))
    check_size(path, claimed, sum(files.size(name) for name in names))


def _unpacked(start: bytes, size: int) -> int:
    """The bytes of a chunk that begins so, unpacked as its header says: what a decoder makes room for.

    Raises InvalidRequest where a Zstandard frame does not say; exports' do.
    """
    if start[:4] == b"\x28\xb5\x2f\xfd":  # RFC 8878, 3.1.1.1
        about = start[4] if len(start) > 4 else 0
        single = about >> 5 & 1
        width = (1 if single else 0, 2, 4, 8)[about >> 6]
        at = 5 + (not single) + (0, 1, 2, 4)[about & 3]
        if not width or len(start) < at + width:
            raise InvalidRequest("a chunk does not declare its decompressed size; exports of patchbank do")
        return int.from_bytes(start[at : at + width], "little") + 256 * (width == 2)
    blosc = (
        len(start) >= 16 and start[0] in (1, 2, 3, 4, 5) and int.from_bytes(start[12:16], "little") == size
    )
    return max(size, int.from_bytes(start[4:8], "little") if blosc else 0)


def _arrays(document: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The descriptions of arrays in a metadata file; consolidated ones repeat those below and count again."""
    if kind == ".zmetadata":
        yield from (entry for name, entry in document["metadata"].items() if name.endswith(".zarray"))
    elif kind == ".zarray" or document["node_type"] == "array":
        yield document
    else:
        consolidated: dict[str, Any] = document.get("consolidated_metadata") or {}
        below: dict[str, Any] = consolidated.get("metadata", {})
        yield from (entry for entry in below.values() if entry["node_type"] == "array")


def _claimed_array(array: dict[str, Any], where: Path) -> int:
    codecs = set(_codecs(array.get("codecs", [])))
    filters: list[Any] = array.get("filters") or []
    codecs |= {entry["id"] for entry in [*filters, array.get("compressor")] if entry}
    wrong = codecs - CODECS - SIZED
    if wrong:
        raise InvalidRequest(
            f"{where} asks for the codec {min(wrong)!r}, which exports of patchbank do not have"
            + (": it runs code" if "pickle" in min(wrong).lower() else "")
        )
    if array.get("storage_transformers"):
        raise InvalidRequest(f"{where} asks for storage transformers, which exports of patchbank do not have")
    kind = array.get("data_type", array.get("dtype"))
    word = str(kind["name"]) if is_object(kind) else str(kind)
    if word in ZARR_TYPES or (word == "|O" and codecs & {"vlen-utf8", "vlen-bytes"}):
        width = 4  # of a text: its length
    else:
        dtype = np.dtype(word)
        if dtype.hasobject:
            raise InvalidRequest(
                f"{where} is an array of Python objects, which could run code; it is not read"
            )
        width = dtype.itemsize
    grid: dict[str, Any] = array.get("chunk_grid") or {}
    configuration: dict[str, Any] = grid.get("configuration") or {}
    chunks: list[Any] = array.get("chunks") or configuration.get("chunk_shape") or []
    return max(prod(map(int, array["shape"])), prod(map(int, chunks))) * width


def _codecs(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        yield entry if isinstance(entry, str) else entry["name"]
        inside: dict[str, Any] = {} if isinstance(entry, str) else entry.get("configuration") or {}
        yield from _codecs(inside.get("codecs", []))
        yield from _codecs(inside.get("index_codecs", []))
