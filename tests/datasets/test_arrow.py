"""Texts in Arrow's memory: hashes as texts and back, and whether all texts differ."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from patchbank.datasets.arrow import TEXT, all_differ, hex_hashes, of_arrow, of_hex


def texts(*values: str) -> pd.Series:
    return pd.Series(values, dtype=object).astype(TEXT)


@pytest.mark.parametrize("n", [0, 1, 40_000])
def test_hashes_as_texts_and_back(n: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)
    column = hex_hashes(hashes)
    assert column.dtype == TEXT
    assert column.tolist() == [row.tobytes().hex() for row in hashes]
    np.testing.assert_array_equal(of_hex(column), hashes)
    np.testing.assert_array_equal(of_hex(column[1:]), hashes[1:])
    np.testing.assert_array_equal(of_hex(pd.concat([column, column])), np.concatenate([hashes, hashes]))


def test_what_is_no_hash() -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        of_hex(texts("ab"))
    with pytest.raises(ValueError, match="hexadecimal"):
        of_hex(texts("g" * 32))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize(
    ("values", "differ"),
    [
        ([], True), (["a"], True), (["a", "b", "ab", "ba", ""], True), (["a", "b", "a"], False),
        (["", "a", ""], False), (["", ""], False), (["a", "a\0"], True), (["é", "e\u0301"], True),
        ([f"{k:06d}" for k in range(40_000)], True), ([*(f"{k}" for k in range(40_000)), "7"], False),
    ],
)  # fmt: skip
def test_whether_all_differ(kind: pa.DataType, values: list[str], differ: bool) -> None:
    assert all_differ(of_arrow(pa.array(values, kind))) == differ
    halves = [pa.array(values[: len(values) // 3], kind), pa.array(values[len(values) // 3 :], kind)]
    assert all_differ(of_arrow(pa.chunked_array(halves, kind))) == differ
    sliced = pa.array(["x", *values, "x"], kind)[1:-1]
    assert all_differ(of_arrow(sliced)) == differ


def test_short_texts_of_all_kinds_differ() -> None:
    """No two of the 65,536 texts of two letters have one sum: weights that are even would give many."""
    letters = [chr(a) + chr(b) for a in range(1, 128) for b in range(1, 128)]
    assert all_differ(texts(*letters))
