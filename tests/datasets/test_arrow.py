"""Texts in Arrow's memory: hashes as texts and back, and whether all texts differ."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from patchbank.datasets.arrow import TEXT, all_differ, are_hex, hex_hashes, of_arrow, of_hex


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


def test_texts_that_are_nearly_alike_differ() -> None:
    """Texts of one letter or two, runs of a letter, and long texts that differ in one letter anywhere."""
    letters = [chr(a) + chr(b) for a in range(128) for b in range(128)] + [chr(a) for a in range(128)]
    runs = ["a" * length for length in range(3, 80)]
    long = ["x" * k + "y" + "x" * (99 - k) for k in range(100)]
    assert all_differ(texts(*letters, *runs, *long))
    for again in (letters[77], runs[40], long[50]):
        assert not all_differ(texts(*letters, *runs, *long, again))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_whether_all_are_hexadecimal(kind: pa.DataType) -> None:
    good = ["0123456789abcdef" * 2, "", "f" * 32]
    assert are_hex(of_arrow(pa.array(good, kind)))
    assert are_hex(of_arrow(pa.array(["X", *good, "X"], kind)[1:-1]))
    assert are_hex(of_arrow(pa.array([], kind)))
    many = [*good * 9000, "a" * 31 + "G"]
    for bad in (
        ["a" * 31],
        ["a" * 33],
        ["A" * 32],
        ["a" * 31 + "g"],
        ["/" * 32],
        [":" * 32],
        ["`" * 32],
        many,
    ):
        assert not are_hex(of_arrow(pa.array([*good, *bad], kind)))
        assert not are_hex(of_arrow(pa.chunked_array([pa.array(good, kind), pa.array(bad, kind)])))
