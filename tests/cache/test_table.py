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
    ],
)
def test_rows_are_picked(where: str | None, rows: list[str]) -> None:
    picked = select(TABLE, where)
    assert picked["n"].tolist() == rows
    assert picked.index.tolist() == list(range(len(rows)))


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
            "n + 1 == 2",
            "lambda: 0",
        ),
        *("[1,2]", "domain == 'x' and", "\n", "@foo == 1", "`a b == 1", "domain == 'x' && n == 1", "~domain"),
        *("None", "a b == 1", "domain == \0", "1/0 == domain", "domain.str.match('(')", "n.sum()"),
    ],
)
def test_typing_errors_are_a_sentence(where: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the query .*columns: domain, n, a b"):
        select(TABLE, where)
