"""`--where`: a query on a table's columns picks rows, and a typing error is a sentence."""

import pandas as pd
import pytest
from patchbank.cache.table import select
from patchbank.errors import InvalidRequest

TABLE = pd.DataFrame({"domain": ["x", "y", None], "n": ["1", "2", "3"], "a b": [True, False, True]})


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (None, ["1", "2", "3"]),
        ("", ["1", "2", "3"]),
        ("domain == 'x'", ["1"]),
        ("domain != 'x' and n in ['2', '3']", ["2", "3"]),
        ("`a b`", ["1", "3"]),
        ("n == '4'", []),
        ("n == 2", ["2"]),  # a CSV has no types: a column of numbers may be taken as one
        ("n > 1", ["2", "3"]),
        ("n + 1 == 2", ["1"]),
        ("n > 1 and domain == 'y'", ["2"]),
        ("n > '1'", ["2", "3"]),
        ("n == 4", []),
        ("domain == ''", []),  # a missing cell is no empty text
        ("n.str.startswith('9')", []),  # fits texts only, and picks none
    ],
)
def test_rows_are_picked(where: str | None, rows: list[str]) -> None:
    picked = select(TABLE, where)
    assert picked["n"].tolist() == rows
    assert picked.index.tolist() == list(range(len(rows)))


def test_what_is_picked_is_as_it_was() -> None:
    table = pd.DataFrame({"age": ["60", "", "75"], "group": ["1", "2", "10"], "mixed": ["1", "x", "2"]})
    picked = select(table, "age > 59")
    assert picked["age"].tolist() == ["60", "75"]  # texts still
    assert select(table, "group == '10'")["age"].tolist() == ["75"]
    with pytest.raises(InvalidRequest, match="does not fit"):
        select(table, "group > 5")  # a name is no number, whatever it looks like
    with pytest.raises(InvalidRequest, match="does not fit"):
        select(table, "mixed > 1")
    assert select(table.iloc[:0], "age > 59").empty
    assert select(table.astype("string[pyarrow]"), "age > 59")["age"].tolist() == ["60", "75"]


@pytest.mark.parametrize(
    "where",
    [
        *(
            "domain = 'x'",
            "domain == 'x",
            "(domain == 'x'",
            "((((",
            "domian == 'x'",
            "domain == x",
            "domain ==",
        ),
        *(
            "domain > 3",
            "1",
            "True",
            "domain",
            "'x'",
            "import os",
            "domain.str.foo()",
            "domain + 1 == 2",
            "lambda: 0",
        ),
        *("[1,2]", "domain == 'x' and", "\n", "@foo == 1", "`a b == 1", "domain == 'x' && n == 1", "~domain"),
        *("None", "a b == 1", "domain == \0", "1/0 == domain", "domain.str.match('(')", "n.sum()"),
    ],
)
def test_typing_errors_are_a_sentence(where: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the query .*columns: domain, n, a b"):
        select(TABLE, where)
