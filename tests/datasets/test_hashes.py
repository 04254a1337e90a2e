"""The index of content hashes: believed only for the file as it was."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from patchbank.datasets import hashes
from patchbank.datasets.builders import hash_images
from patchbank.datasets.manifest import Manifest
from patchbank.errors import ManifestError


@pytest.fixture
def digests(toy: Manifest) -> np.ndarray:
    found, failures = hash_images(toy, progress=False)
    assert not failures
    return found


def test_nothing_is_known_at_first(toy: Manifest, tmp_path: Path) -> None:
    for index in (None, tmp_path / "hashes"):
        found, known = hashes.resolve(toy, index)
        assert found.shape == (8, 16)
        assert found.dtype == np.uint8
        assert not known.any()


def test_the_manifests_column_goes_first(toy: Manifest, digests: np.ndarray, tmp_path: Path) -> None:
    column = hashes.hex_hashes(digests)
    column[2] = ""
    manifest = Manifest(toy.header, toy.table.assign(content_hash=column), toy.root)
    found, known = hashes.resolve(manifest)
    assert known.tolist() == [i != 2 for i in range(8)]
    np.testing.assert_array_equal(found[known], digests[known])
    hashes.record(toy, range(8), digests[::-1].copy(), tmp_path / "hashes")  # wrong on purpose
    found, known = hashes.resolve(manifest, tmp_path / "hashes")
    assert known.tolist() == [i == 2 for i in range(8)], "the files are not those of the column: not served"
    assert hashes.look_up(manifest, tmp_path / "hashes").changed.tolist() == [i != 2 for i in range(8)]
    np.testing.assert_array_equal(found[0], digests[0])
    np.testing.assert_array_equal(found[2], digests[5])


def test_what_was_recorded_is_found(toy: Manifest, digests: np.ndarray, tmp_path: Path) -> None:
    index = tmp_path / "bank" / "hashes"
    hashes.record(toy, [1, 3], digests[[1, 3]], index)
    hashes.record(toy, [5], digests[[5]], index)
    found, known = hashes.resolve(toy, index)
    assert np.flatnonzero(known).tolist() == [1, 3, 5]
    np.testing.assert_array_equal(found[known], digests[known])


def test_a_changed_file_is_not_believed(toy: Manifest, digests: np.ndarray, tmp_path: Path) -> None:
    index = tmp_path / "hashes"
    hashes.record(toy, range(8), digests, index)
    file = Path(toy.path(4))
    file.write_bytes(file.read_bytes() + b"\0")  # another size
    status = Path(toy.path(5)).stat()
    os.utime(toy.path(5), ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))  # another time
    Path(toy.path(6)).unlink()
    _, known = hashes.resolve(toy, index)
    assert np.flatnonzero(~known).tolist() == [4, 5, 6]


def test_the_newest_entry_wins(toy: Manifest, digests: np.ndarray, tmp_path: Path) -> None:
    index = tmp_path / "hashes"
    hashes.record(toy, [0], digests[[7]], index)
    hashes.record(toy, [0], digests[[0]], index)
    found, _ = hashes.resolve(toy, index)
    np.testing.assert_array_equal(found[0], digests[0])


def test_another_root_with_the_same_files_is_another_place(
    toy: Manifest, digests: np.ndarray, tmp_path: Path
) -> None:
    hashes.record(toy, range(8), digests, tmp_path / "hashes")
    elsewhere = Manifest(toy.header, toy.table, tmp_path)
    _, known = hashes.resolve(elsewhere, tmp_path / "hashes")
    assert not known.any()


def test_many_writers_at_once(toy: Manifest, digests: np.ndarray, tmp_path: Path) -> None:
    index = tmp_path / "hashes"
    threads = [
        threading.Thread(target=hashes.record, args=(toy, [i], digests[[i]], index))
        for i in range(8)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, known = hashes.resolve(toy, index)
    assert known.all()
    np.testing.assert_array_equal(found, digests)
    assert all(file.name.endswith(hashes.SUFFIX) for file in index.iterdir())  # no temporary file is left


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY garbage", b"x" * 500])
def test_a_damaged_index_file_is_named(toy: Manifest, tmp_path: Path, content: bytes) -> None:
    index = tmp_path / "hashes"
    index.mkdir()
    (index / f"1{hashes.SUFFIX}").write_bytes(content)
    with pytest.raises(ManifestError, match="delete it"):
        hashes.resolve(toy, index)


def test_wrong_shapes_are_refused(toy: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(2, 16\)"):
        hashes.record(toy, [0, 1], np.zeros((1, 16), np.uint8), tmp_path)
    hashes.record(toy, [], np.zeros((0, 16), np.uint8), tmp_path / "hashes")
    assert not (tmp_path / "hashes").exists()
