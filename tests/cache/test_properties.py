"""Exports of tables as strange as tables get, drawn from seeds, and what comes back of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.columns import read_columns, written_columns
from patchbank.cache.export.write import DOCUMENTED, LAYOUTS, export
from patchbank.cache.importing.exports import import_export
from patchbank.cache.importing.foreign import read_source
from patchbank.cache.store import Store
from patchbank.errors import InvalidRequest

SUFFIXES = {"trident": ".h5", "stamp": ".h5", "webdataset": ".tar", "qupath": ".geojson"}
FOLDERS = ("clam", "eva", "npy", "huggingface", "projector", "fiftyone")
WORDS = [
    "", " ", "a", "A", "007", "1e5", "-0", "NaN", "nan", "None", "null", "True", "false", "inf", "<NA>", "+1",
    "N/A", "naïve", "nai\u0308ve", "組織", "мозг", "صورة", "🔬", "\u200b", "\ufeff", "\u2028", "a,b", "it's",
    'say "x"', "a\tb", "a\nb", "a\r\nb", "\r", "a\\nb", "=1+1", "@x", "-x", "#x", "%2F", "[1, 2]", "x" * 999,
    '{"a": 1}', "\x01", "\x7f", "\x85", "a ", " a", "1_000", "１２", "0x1F", "1.", ".5",
]  # fmt: skip
IDS = [
    "{i}",
    "{i:04d}",
    "s/{i}.png",
    "s::tile[{i},0]",
    "Ω {i}",
    "a,{i}",
    '"{i}"',
    "{i}\n",
    "..{i}",
    "{i}%",
    " {i}",
]


def text(dice: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(dice.choice(np.array([*WORDS, "word"], dtype=object), rows), dtype=object)


def whole(dice: np.random.Generator, rows: int) -> pd.Series:
    ends = [-(2**63), 2**63 - 1, 2**53 + 1, -1, 0, 1]
    return pd.Series(dice.choice(np.array(ends, np.int64), rows))


def unsigned(dice: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(dice.choice(np.array([0, 1, 2**63, 2**64 - 1], np.uint64), rows))


def real(dice: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(dice.choice([np.nan, np.inf, -np.inf, 0.1, -0.0, 5e-324, 1.7e308, 1 / 3], rows))


def truth(dice: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(dice.integers(0, 2, rows).astype(bool))


def missing(kind: Any, make: Callable[[np.random.Generator, int], pd.Series]) -> Any:
    """A maker of columns of a pandas type with empty cells, one at the least."""

    def column(dice: np.random.Generator, rows: int) -> pd.Series:
        values = make(dice, rows).astype(kind)
        values[dice.random(rows) < 0.3] = pd.NA
        values.iloc[0] = pd.NA
        return values

    return column


def classes(dice: np.random.Generator, rows: int) -> pd.Series:
    return text(dice, rows).astype("category")


MAKERS: dict[str, Callable[[np.random.Generator, int], pd.Series]] = {
    "text": text, "whole": whole, "unsigned": unsigned, "real": real, "truth": truth, "classes": classes,
    "maybe whole": missing("Int64", whole), "maybe unsigned": missing("UInt64", unsigned),
    "maybe true": missing("boolean", truth), "maybe text": missing("string", text),
    "empty": lambda dice, rows: pd.Series([""] * rows, dtype=object),
}  # fmt: skip


def odd_table(dice: np.random.Generator, keys: np.ndarray) -> pd.DataFrame:
    """A table of each kind of column, in an order of its own, with ids of one odd form."""
    rows = len(keys)
    form = str(dice.choice(np.array(IDS, dtype=object)))
    fixed = {
        "patch_id": [form.format(i=i) for i in range(rows)],
        "label": dice.choice(["a", "b", "ä/ö"], rows),
        "group": [f"slide {i % 3}" for i in range(rows)],
        "split": dice.choice(["train", "val", "test"], rows),
        "x": np.arange(rows),
        "y": dice.integers(0, 9, rows),
        "content_hash": [key.tobytes().hex() for key in keys],
    }
    table = pd.DataFrame({**fixed, **{name: make(dice, rows) for name, make in MAKERS.items()}})
    return table[[str(name) for name in dice.permutation(np.array(table.columns, dtype=object))]]


def cells(column: pd.Series) -> list[Any]:
    """The cells as they may be compared: missing ones and empty texts are one, NaN is itself."""
    return [
        "" if cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell) else cell
        for cell in column.astype(object)
    ]


def make_store(place: Path, identity: Any, rows: Any, dtype: str = "float32") -> Store:
    store = Bank(place).open_store(identity(dtype=dtype), create=True, block_rows=64)
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    return store


def written(folder: Path, store: Store, layout: str, table: pd.DataFrame | None) -> Path:
    path = folder / ("x" if layout in FOLDERS else f"x{SUFFIXES.get(layout, f'.{layout}')}")
    options = {"tile_um": 112.0, "tile_px": 224, "mpp": 0.5} if layout == "stamp" else {}
    export(store, path, layout, table, **options)
    return path


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layout", DOCUMENTED)
def test_odd_tables_come_back(tmp_path: Path, identity: Any, make_rows: Any, layout: str, seed: int) -> None:
    dice = np.random.default_rng([seed, LAYOUTS.index(layout)])
    count = int(dice.choice([1, 63, 64, 65, 130]))
    rows = make_rows(count, dtype="float32", seed=seed)
    table = odd_table(dice, rows.keys)
    store = make_store(tmp_path / "bank", identity, rows)
    done = import_export(Bank(tmp_path / "back"), written(tmp_path, store, layout, table))
    assert done.store.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert sorted(done.table.columns) == sorted(table.columns)
    back = done.table.set_index("content_hash").loc[table["content_hash"]].reset_index()
    for name in table.columns:
        assert cells(back[name]) == cells(table[name]), name
    assert np.signbit(back["real"].to_numpy(float)).tolist() == np.signbit(table["real"].to_numpy()).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_written_columns_say_all_that_reading_them_needs(seed: int) -> None:
    dice = np.random.default_rng(seed)
    keys = dice.integers(0, 256, (int(dice.integers(1, 40)), 16), dtype=np.uint8)
    table = odd_table(dice, keys)
    columns, changed = written_columns(table)
    back = read_columns(columns, changed)
    assert [*back] == [name for name in table.columns if name != "content_hash"]
    for name, column in back.items():
        assert cells(column) == cells(table[name]), name
    # files without missing values have floats or texts in place of pandas' own types
    plain = {
        name: values
        if isinstance(values, np.ndarray)
        else pd.Series(values).astype("string").fillna("").to_numpy(object)
        for name, values in columns.items()
    }
    for name, column in read_columns(plain, changed).items():
        assert cells(column) == cells(table[name]), name


@pytest.mark.parametrize("layout", ["trident", "npy", "parquet", "safetensors", "npz"])
def test_more_rows_than_are_written_at_a_time(
    tmp_path: Path, identity: Any, make_rows: Any, layout: str
) -> None:
    rows = make_rows(8192 + 700)
    store = make_store(tmp_path / "bank", identity, rows, "float16")
    order = np.random.default_rng(0).permutation(len(rows.keys))
    path = written(tmp_path, store, layout, rows.table().iloc[order].reset_index(drop=True))
    done = import_export(Bank(tmp_path / "back"), path, backend="hdf5")
    assert (done.rows, done.added) == (8892, 8892)
    assert done.store.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert done.table["x"].tolist() == order.tolist()


@pytest.mark.parametrize("layout", ["csv", "projector", "webdataset"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layouts_without_a_document_hold_the_same_numbers(
    tmp_path: Path, identity: Any, make_rows: Any, layout: str, dtype: str
) -> None:
    """Read as any other program's files are: as numbers that round to those stored."""
    rows = make_rows(70, dtype=dtype)
    store = make_store(tmp_path / "bank", identity, rows, dtype)
    source = read_source(written(tmp_path, store, layout, rows.table()))
    vectors = np.concatenate(list(source.vectors.read()))
    assert vectors.astype(dtype).tobytes() == rows.vectors.tobytes()
    assert source.table["patch_id"].tolist() == rows.ids
    assert source.table["domain"].tolist() == ["scänner"] * 70


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_no_export(tmp_path: Path, identity: Any, make_rows: Any, layout: str) -> None:
    store = make_store(tmp_path / "bank", identity, make_rows(3))
    table = make_rows(3).table()
    with pytest.raises(InvalidRequest, match=r"no rows to write to .*the table has none \(does --where"):
        written(tmp_path / "out", store, layout, table.iloc[:0])
    empty = make_store(tmp_path / "empty", identity, make_rows(0))
    with pytest.raises(InvalidRequest, match=r"no rows to write to .*stores.* is empty"):
        written(tmp_path / "out", empty, layout, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1.1", "1.10", "2.5"], "text"),  # names of blocks, perhaps: as numbers two would be one
        (["0.5", "0.50"], "text"),
        (["1e3", "1000"], "text"),
        (["1.1", "1.2", ""], "float64"),
        (["1.5", "1.5", "2.5"], "float64"),
        (["1", "2", "10"], "int64"),
        (["1", "", "10"], "Int64"),
        (["1", "02"], "text"),
        (["-0", "0"], "text"),
        (["1e400", "2.5"], "text"),
        (["9223372036854775808", "1"], "text"),
        (["0.12345678901234567", "0.5"], "text"),  # more digits than a float has
        (["nan", "1.5"], "text"),
        (["", ""], "text"),
    ],
)
def test_texts_become_numbers_only_where_nothing_is_lost(texts: list[str], kind: str) -> None:
    columns, _ = written_columns(pd.DataFrame({"n": pd.Series(texts, dtype=object)}))
    values = columns["n"]
    assert ("text" if values.dtype == object else str(values.dtype)) == kind
    assert len({str(value) for value in values}) == len({*texts})
    names, _ = written_columns(pd.DataFrame({"group": pd.Series(texts, dtype=object)}))
    assert names["group"].tolist() == texts  # the name of a slide is never a number


@pytest.mark.parametrize("kind", ["Int64", "UInt64", "boolean", "string", "Float64"])
def test_a_column_of_empty_cells_only(tmp_path: Path, identity: Any, make_rows: Any, kind: Any) -> None:
    rows = make_rows(3)
    store = make_store(tmp_path / "bank", identity, rows, "float16")
    table = rows.table().assign(none=pd.array([None] * 3, dtype=kind))
    for layout in ("npz", "safetensors", "trident", "parquet"):
        done = import_export(
            Bank(tmp_path / f"back {layout}"), written(tmp_path / layout, store, layout, table)
        )
        assert cells(done.table["none"]) == ["", "", ""], layout
