"""The reader in cache/FORMAT.md, which imports nothing of patchbank, reads what patchbank writes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.store import Store
from patchbank.cache.verify import repair

TEXT = (Path(__file__).resolve().parents[2] / "cache" / "FORMAT.md").read_text("utf-8")
Read = Callable[[Path], dict[bytes, np.ndarray]]


@pytest.fixture(scope="module")
def read_store() -> Read:
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert "patchbank." not in code
    names: dict[str, Any] = {}
    exec(compile(code, "cache/FORMAT.md", "exec"), names)
    return names["read_store"]


@pytest.fixture(params=["zarr", "hdf5"])
def store(request: pytest.FixtureRequest, tmp_path: Path, identity: Any) -> Store:
    about = {"licence": "MIT", "scanner": "scänner"}
    return Bank(tmp_path).open_store(
        identity(dim=7, dtype="float32"),
        create=True,
        backend=request.param,
        block_rows=300,
        provenance=about,
    )


def fill(store: Store, rows: Any, step: int = 450) -> None:
    with store.writer() as writer:
        for start in range(0, len(rows.ids), step):
            writer.append(*rows[slice(start, start + step)])
    store.refresh()


def logs(store: Store) -> list[Path]:
    return sorted((Path(store.path) / "parts/log").glob("*.jsonl"))


def assert_read(found: dict[bytes, np.ndarray], rows: Any) -> None:
    assert {key: vector.tobytes() for key, vector in found.items()} == rows.as_dict()


def test_two_writers_finalize_and_more(store: Store, make_rows: Any, read_store: Read) -> None:
    rows = make_rows(700, dim=7, dtype="float32")
    fill(store, rows)
    assert_read(read_store(Path(store.path)), rows)
    fill(store, rows, step=200)  # every key in a second block
    assert store.published_rows == 1400
    assert_read(read_store(Path(store.path)), rows)
    assert finalize(store).rows == 700
    assert store.catalog.retired
    assert_read(read_store(Path(store.path)), rows)
    more = make_rows(50, dim=7, dtype="float32", seed=1)
    fill(store, more)
    found = read_store(Path(store.path))
    assert len(found) == 750
    assert found[more.keys[0].tobytes()].tobytes() == more.vectors[0].tobytes()


def test_an_unfinished_line_is_passed_over(store: Store, make_rows: Any, read_store: Read) -> None:
    rows = make_rows(300, dim=7, dtype="float32")
    fill(store, rows)
    with logs(store)[0].open("ab") as log:
        log.write(b'{"type":"block","blo')
    assert_read(read_store(Path(store.path)), rows)


def test_damage_is_refused_until_repair_excuses_it(store: Store, make_rows: Any, read_store: Read) -> None:
    rows = make_rows(600, dim=7, dtype="float32")
    fill(store, rows)
    log = logs(store)[0]
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], lines[1].replace('"rows":300', '"rows":299'), *lines[2:]]))
    with pytest.raises(ValueError, match=f"{log.name}:2:"):
        read_store(Path(store.path))
    assert repair(Bank(Path(store.path).parents[1]).open_name(store.name, lenient=True)).lost == 0
    assert_read(read_store(Path(store.path)), rows)
    block = next(p for p in (Path(store.path) / "parts/blocks").iterdir() if p.suffix in {".vectors", ".h5"})
    content = bytearray(block.read_bytes())
    content[-100] ^= 1
    block.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"block {block.stem} is damaged"):
        read_store(Path(store.path))


def test_a_log_of_finalize_that_was_cut_short(store: Store, make_rows: Any, read_store: Read) -> None:
    fill(store, make_rows(300, dim=7, dtype="float32"))
    finalize(store)
    log = next(log for log in logs(store) if log.name.startswith("finalize-"))
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="cut short"):
        read_store(Path(store.path))


def test_the_text_names_what_is_on_disk(store: Store, make_rows: Any) -> None:
    fill(store, make_rows(300, dim=7, dtype="float32"))
    finalize(store)
    ((line, digest),) = re.findall(r'^    (\{.*),"sum":"([0-9a-f]{16})"\}$', TEXT, re.MULTILINE)
    assert xxhash.xxh3_64_hexdigest(line.encode()) == digest
    records = [json.loads(line) for log in logs(store) for line in log.read_text().splitlines()]
    assert {record["type"] for record in records} >= {"writer", "block", "order"}
    for member in {member for record in records for member in record} - {"type"}:
        assert f"`{member}`" in TEXT, member
    for member in store.description:
        assert f"`{member}`" in TEXT, member
    for member in store.identity.to_json():
        assert f"`{member}`" in TEXT, member
    for name in ("parts/zarr.json", "parts/store.json", "parts/log", "parts/blocks"):
        assert name in TEXT
