"""Texts in Arrow's memory: hashes as texts and back, and which texts occur more than once."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from patchbank.datasets.arrow import TEXT, are_hex, hex_hashes, of_arrow, of_hex, repeated


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
    ("values", "which"),
    [
        ([], []), (["a"], []), (["a", "b", "ab", "ba", ""], []), (["a", "b", "a"], [0, 2]),
        (["", "a", ""], [0, 2]), (["", ""], [0, 1]), (["a", "a\0"], []), (["é", "e\u0301"], []),
        ([f"{k:06d}" for k in range(40_000)], []), ([*(f"{k}" for k in range(40_000)), "7"], [7, 40_000]),
        (["x" * 40 + "y" * 24, "z" * 40 + "y" * 24], []),  # the last bytes are equal
        ([f"{k % 9000}.{'y' * 24}" for k in range(10_000)], [*range(1000), *range(9000, 10_000)]),
    ],
)  # fmt: skip
def test_which_texts_are_repeated(kind: pa.DataType, values: list[str], which: list[int]) -> None:
    halves = [pa.array(values[: len(values) // 3], kind), pa.array(values[len(values) // 3 :], kind)]
    sliced = pa.array(["x", *values, "x"], kind)[1:-1]
    for column in (pa.array(values, kind), pa.chunked_array(halves, kind), sliced):
        assert np.flatnonzero(repeated(of_arrow(column))).tolist() == which


def test_texts_that_are_nearly_alike_differ() -> None:
    """Texts of one letter or two, runs of a letter, and long texts that differ in one letter anywhere."""
    letters = [chr(a) + chr(b) for a in range(128) for b in range(128)] + [chr(a) for a in range(128)]
    runs = ["a" * length for length in range(3, 80)]
    long = ["x" * k + "y" + "x" * (99 - k) for k in range(100)]
    every = [*letters, *runs, *long]
    assert not repeated(texts(*every)).any()
    for again in (letters[77], runs[40], long[50]):
        found = np.flatnonzero(repeated(texts(*every, again)))
        assert found.tolist() == [every.index(again), len(every)]


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
