"""What is looked at in a foreign file before anything in it is believed."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache import untrusted
from patchbank.cache.untrusted import (
    MAX_RATIO,
    ROOM,
    check_regular,
    check_size,
    check_zarr,
    npy_header,
    readable,
)
from patchbank.errors import InvalidRequest, StoreError


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty; copy or download it again"),
        (b" \n\t", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page, saved under this name"),
        (b"\n  <HTML>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "get it with `git lfs pull`"),
    ],
)
def test_what_is_no_data(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InvalidRequest, match=why):
        check_regular(tmp_path / "x.npy")


def test_files_that_are_data(tmp_path: Path) -> None:
    for content in (b"\x93NUMPY", b"PK\x03\x04", b"{}", b"\0" * 600, b"html"):
        (tmp_path / "x").write_bytes(content)
        check_regular(tmp_path / "x")
    with pytest.raises(InvalidRequest, match="is not a regular file"):
        check_regular(tmp_path)


@pytest.mark.parametrize("there", [0, 1, 1000, 1 << 30])
def test_how_much_a_file_may_claim(tmp_path: Path, there: int) -> None:
    most = MAX_RATIO * there + ROOM
    check_size(tmp_path, most, there)
    with pytest.raises(InvalidRequest, match=rf"claims {most + 1:,} bytes of arrays, but has {there:,}"):
        check_size(tmp_path, most + 1, there)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<U7", "|b1", "<u8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 5), (1, 2, 3)])
def test_headers_of_arrays(version: tuple[int, int], dtype: str, shape: tuple[int, ...]) -> None:
    stream = io.BytesIO()
    array = np.zeros(shape, dtype)
    np.lib.format.write_array(stream, array, version=version)
    stream.seek(0)
    assert npy_header(stream, Path("x.npy")) == (shape, np.dtype(dtype))
    assert len(stream.read()) == array.nbytes  # it stands at the numbers


def test_headers_that_are_refused() -> None:
    def header(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> io.BytesIO:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, version=version)
        stream.seek(0)
        return stream

    with pytest.raises(InvalidRequest, match=r"x\.npy holds an array of Python objects"):
        npy_header(header(np.array([{}, None])), Path("x.npy"))
    with pytest.raises(InvalidRequest, match="Python objects"):
        npy_header(header(np.zeros(2, [("a", "f4"), ("b", object)])), Path("x.npy"))
    with pytest.raises(ValueError, match=r"version \(3, 0\)"):
        npy_header(header(np.zeros(2), (3, 0)), Path("x.npy"))
    with pytest.raises(ValueError, match="magic"):
        npy_header(io.BytesIO(b"not an array at all"), Path("x.npy"))
    turned = np.asfortranarray(np.zeros((3, 2)))
    with pytest.raises(InvalidRequest, match="in Fortran order"):
        npy_header(header(turned), Path("x.npy"))
    assert npy_header(header(turned), Path("x.npy"), columns_first=True) == ((3, 2), np.dtype("f8"))
    column = np.asfortranarray(np.zeros(3))
    assert npy_header(header(column), Path("x.npy"))[0] == (3,)  # of one axis there is one order


def test_one_sentence_for_whatever_a_reader_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.h5ad"
    for error, wanted in (
        (KeyError("X"), r"x\.h5ad is not a whole export file \(cut short, or changed\?\): 'X'$"),
        (ValueError("a\n b"), r"changed\?\): a b$"),
        (RuntimeError(), r"changed\?\): RuntimeError$"),
        (InvalidRequest("no such key"), rf"^{path}: no such key$"),
        (InvalidRequest(f"{path} has none"), rf"^{path} has none$"),
    ):
        with pytest.raises(InvalidRequest, match=wanted), readable(path, "export"):
            raise error
    for error in (OSError("disk"), StoreError("store"), KeyboardInterrupt()):
        with pytest.raises(type(error)), readable(path, "export"):
            raise error


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_535, 65_536, 300_000])
@pytest.mark.parametrize("codec", ["zstd", "blosc lz4", "blosc zstd", "none"])
def test_the_size_of_an_unpacked_chunk_is_that_of_its_header(codec: str, size: int) -> None:
    """Compared with what the codecs themselves unpack."""
    numcodecs: Any = pytest.importorskip("numcodecs")
    content = np.random.default_rng(size).integers(0, 4, size, dtype=np.uint8).tobytes()
    if codec == "none":
        assert untrusted._unpacked(content[:18], size) == size
        return
    coder = numcodecs.Zstd() if codec == "zstd" else numcodecs.Blosc(cname=codec.split()[1])
    packed = bytes(coder.encode(content))
    assert len(coder.decode(packed)) == size
    assert untrusted._unpacked(packed[:18], len(packed)) >= size
    assert untrusted._unpacked(packed[:18], len(packed)) <= max(size, len(packed))


def test_a_frame_that_does_not_say_how_long_it_is() -> None:
    for start in (b"\x28\xb5\x2f\xfd\x00\x58", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xc0\x00\x00"):
        with pytest.raises(InvalidRequest, match="does not declare its decompressed size"):
            untrusted._unpacked(start, 100)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"codecs": [{"name": "bytes"}, {"name": "zstd"}]}, ""),
        ({"codecs": ["bytes", "crc32c"]}, ""),
        ({"codecs": [{"name": "pickle"}]}, "asks for the codec 'pickle', .*: it runs code"),
        ({"codecs": [{"name": "numcodecs.zfpy"}]}, "asks for the codec 'numcodecs.zfpy'"),
        (
            {"codecs": [{"name": "bytes", "configuration": {"codecs": [{"name": "gzip"}]}}]},
            "asks for the codec 'gzip'",
        ),
        ({"storage_transformers": [{"name": "x"}]}, "asks for storage transformers"),
        ({"data_type": "|O"}, "an array of Python objects"),
        ({"data_type": {"name": "string"}}, ""),
        ({"shape": [1 << 40]}, "claims "),
        ({"chunk_grid": {"configuration": {"chunk_shape": [1 << 40]}}}, "claims "),
        ({"filters": [{"id": "pickle"}]}, "asks for the codec 'pickle'"),
        ({"compressor": {"id": "lzma"}}, "asks for the codec 'lzma'"),
    ],
)
def test_arrays_of_zarr(tmp_path: Path, change: dict[str, Any], why: str) -> None:

    array = {"node_type": "array", "zarr_format": 3, "shape": [3], "data_type": "float32", "codecs": []}
    (tmp_path / "X").mkdir()
    (tmp_path / "X/zarr.json").write_text(json.dumps(array | change))
    (tmp_path / "zarr.json").write_text('{"node_type": "group"}')
    if not why:
        check_zarr(tmp_path)
        return
    with pytest.raises(InvalidRequest, match=why):
        check_zarr(tmp_path)
    # and where the group repeats its arrays' descriptions
    (tmp_path / "X/zarr.json").write_text(json.dumps(array))
    group = {"node_type": "group", "consolidated_metadata": {"metadata": {"X": array | change}}}
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(InvalidRequest, match=why):
        check_zarr(tmp_path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_zarr_that_links_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr/zarr.json").symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="is a symbolic link"):
        check_zarr(tmp_path / "x.zarr")
