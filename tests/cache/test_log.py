"""The commit log by itself: lines, records, and a catalog that is read while others write."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache import log as log_module
from patchbank.cache.bank import Bank
from patchbank.cache.filesystem import Files
from patchbank.cache.log import Block, Catalog, LogWriter, commit, decode, encode
from patchbank.cache.records import MAX_ROWS, check_record, is_block_id
from patchbank.errors import StoreError

ID = "0123456789ab-" + "c" * 32
SUM = "0123456789abcdef"


def block(number: int = 0, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "type": "block", "block": f"{number:012x}-{number:032x}", "rows": 300, "segments": 2 * SUM,
        "keys": SUM, "first": SUM, "time": float(number), "writer": "w",
    }  # fmt: skip
    return record | changes


RECORDS: dict[str, dict[str, Any]] = {
    "writer": {"type": "writer", "writer": "me", "time": 1.5, "lines": 3},
    "block": block(1, padding=4, vectors_at=0, keys_at=2**40, frame="12:" + SUM),
    "retire": {"type": "retire", "blocks": [ID], "time": 2},
    "order": {"type": "order", "generation": 1, "blocks": [ID], "view": {"labels/c/0": SUM}, "time": 1.0},
    "excuse": {"type": "excuse", "lines": ["parts/log/a.jsonl:3:00"]},
}


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path, identity: Any) -> Files:
    place = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"
    return Bank(place).open_store(identity(), create=True).files


# --- lines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        *RECORDS.values(),
        {"a": 'quote " backslash \\ newline \n nul \0 scänner 🔬'},
        {"sum": SUM},
        {"x": [{}]},
    ],
    ids=repr,
)
def test_a_line_comes_back(record: dict[str, Any]) -> None:
    line = encode(record)
    assert b"\n" not in line
    assert line.isascii()
    assert json.loads(line).keys() >= record.keys(), "a line is JSON for other software, too"
    assert decode(line) == record


def test_no_line_with_another_byte_is_read() -> None:
    line = encode({**RECORDS["retire"], "n": 1})
    for at in range(len(line)):
        for bit in range(8):
            changed = bytearray(line)
            changed[at] ^= 1 << bit
            assert decode(bytes(changed)) is None, (at, bit)
    for end in range(len(line)):
        assert decode(line[:end]) is None
        assert decode(line[end + 1 :]) is None
    assert decode(line + b" ") is None
    assert decode(line + line) is None


def test_what_json_has_no_word_for_is_not_written() -> None:
    for value in (float("nan"), float("inf"), object(), b"bytes", {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            encode({"type": "writer", "about": value})


def test_a_sealed_line_of_endless_brackets_is_no_record() -> None:
    body = b'{"a":' + b"[" * 200_000
    import xxhash

    assert decode(body + b',"sum":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}') is None


# --- records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECORDS)
def test_every_member_of_a_record_is_asked_for_and_checked(kind: str) -> None:
    good = {**RECORDS[kind], "n": 0}
    assert check_record(good) is None
    optional = {
        "writer": {"lines"},
        "retire": {"time"},
        "block": {"padding", "vectors_at", "keys_at", "frame"},
    }
    for name in good.keys() - {"type"}:
        without = {key: value for key, value in good.items() if key != name}
        fault = check_record(without)
        if name in optional.get(kind, set()):
            assert fault is None
        else:
            assert fault is not None
            assert f"has no '{name}'" in fault
        for wrong in (None, True, {"x": 1}, [1], "no\0", -1, 1.5j):
            fault = check_record({**good, name: wrong})
            if (name, wrong) in (("writer", "no\0"), ("time", -1)):  # any word, any time
                assert fault is None
            else:
                assert f"says '{name}' is " in str(fault), wrong
    assert check_record({**good, "more": object()}) is None, "what a later version adds is passed over"
    for other in ({}, {"type": None}, {"type": "rename"}, {"type": ["block"]}):
        assert "which this patchbank does not know" in str(check_record({**good, "type": None, **other}))


@pytest.mark.parametrize(
    ("change", "possible"),
    [
        ({"rows": 1, "segments": SUM}, True),
        ({"rows": 256, "segments": SUM}, True),
        ({"rows": 256, "segments": 2 * SUM}, False),
        ({"rows": 257, "segments": SUM}, False),
        ({"rows": 0, "segments": SUM}, False),
        ({"rows": MAX_ROWS + 1}, False),
        ({"segments": ""}, False),
        ({"segments": 2 * SUM.upper()}, False),
        ({"time": float("inf")}, False),
        ({"time": -5}, True),
        ({"block": "../" + ID[3:]}, False),
        ({"block": ID.upper()}, False),
        ({"block": ID + "\n"}, False),
        ({"frame": "1:" + SUM + "\n"}, False),
        ({"frame": ":" + SUM}, False),
        ({"padding": 1 << 62}, False),
    ],
    ids=repr,
)
def test_what_a_block_may_say(change: dict[str, Any], possible: bool) -> None:
    assert (check_record({**block(), "n": 0, **change}) is None) == possible


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("embeddings.h5", True), ("labels/zarr.json", True), ("labels/c/0", True), ("labels/c/10", True),
        ("embeddings/zarr.json", True), ("embeddings/c/0", False), ("content_hash/c/1", False),
        ("parts/c/0", False), ("parts/zarr.json", False), ("../labels/zarr.json", False),
        ("labels/c/01", False), (".hidden/zarr.json", False), ("a/b/zarr.json", False),
        ("a\\b/zarr.json", False), ("c:/zarr.json", False),
        ("/zarr.json", False), ("zarr.json", False), ("labels/c/0\n", False), ("labels/c/0/0", False),
    ],
)  # fmt: skip
def test_files_that_an_order_may_name(name: str, possible: bool) -> None:
    """Never a block, a chunk of one, or a log: `gc` and `finalize` replace what stands here."""
    order = {**RECORDS["order"], "n": 0, "view": {name: SUM}}
    assert (check_record(order) is None) == possible


def test_names_of_blocks() -> None:
    assert is_block_id(ID)
    for word in (ID[:-1], ID + "0", ID.replace("-", "_"), ID.replace("c", "g"), "", None, 7, ID.encode()):
        assert not is_block_id(word)
    twice = {**RECORDS["retire"], "n": 0, "blocks": [ID, ID]}
    assert "says 'blocks' is" in str(check_record(twice))


def test_a_block_is_its_record() -> None:
    for record in (block(3), block(3, padding=1, frame="5:" + SUM)):
        assert Block.of({**record, "n": 9}).record() == record


# --- a catalog and its writers ------------------------------------------------------------------------


def state(catalog: Catalog) -> tuple[Any, ...]:
    return (
        catalog.published, catalog.retired, catalog.order, catalog.chunks, catalog.generation,
        catalog.next_generation, catalog.excused, [b.id for b in catalog.live()],
        sorted(s["writer"] for s in catalog.sessions),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_catalog_read_bit_by_bit_is_one_read_at_once(files: Files, seed: int) -> None:
    """Writers, blocks, finalize and excuses in any order; a model in plain sets says what there is."""
    dice = np.random.default_rng(seed)
    followed = Catalog(files)
    writers = [LogWriter(files, None, {"machine": seed})]
    published: set[str] = set()
    retired: set[str] = set()
    order: list[str] = []
    for number in range(1, 40):
        action = dice.choice(["block", "block", "writer", "commit", "late", "read"])
        if action == "block":
            record = block(number, time=float(dice.integers(5)))
            writers[int(dice.integers(len(writers)))].append(record)
            published.add(record["block"])
        elif action == "writer":
            writers.append(LogWriter(files, f"writer {number}/../x", {}))
        elif action == "commit":
            fresh = Catalog(files)
            fresh.read()
            gone = sorted(published - retired)[: int(dice.integers(3))]
            order = sorted(published - retired - set(gone))
            records = [
                {"type": "retire", "blocks": gone, "time": 1.0},
                {
                    "type": "order",
                    "generation": fresh.next_generation,
                    "blocks": order,
                    "view": {},
                    "time": 1.0,
                },
            ]
            assert commit(files, fresh.next_generation, records, {})
            assert not commit(files, fresh.next_generation, records, {}), "a generation is taken once"
            retired |= set(gone)
        elif action == "late":
            assert not commit(files, max(1, followed.generation), [], {}) or followed.generation == 0
        if action == "read" or number % 7 == 0:
            followed.read()
    followed.read()
    whole = Catalog(files)
    whole.read()
    assert state(followed) == state(whole)
    assert whole.published.keys() == published
    assert whole.retired.keys() == retired
    assert {b.id for b in whole.live()} == published - retired
    assert whole.live() == sorted(whole.live(), key=lambda b: (b.time, b.id))
    assert whole.order == order
    assert whole.chunks == {name: chunk for chunk, name in enumerate(order)}
    assert not whole.damage()
    version = followed.version
    followed.read()
    assert followed.version == version, "nothing new, nothing changed"
    for writer in writers:
        writer.close()
        writer.close()


def test_an_older_order_does_not_replace_a_newer_one(files: Files) -> None:
    """Logs are read by name, which is no order in time."""
    names = [f"{number:012x}-{number:032x}" for number in range(2)]
    for generation, order in ((3, names), (2, names[:1])):
        record = {"type": "order", "generation": generation, "blocks": order, "view": {}, "time": 0.0}
        assert commit(files, generation, [record], {})
    catalog = Catalog(files)
    catalog.read()
    assert (catalog.generation, catalog.order, catalog.next_generation) == (3, names, 4)


def test_a_retirement_without_a_time_is_of_its_session(files: Files) -> None:
    """As patchbank 0.1.0 wrote it."""
    assert commit(
        files, 1, [{"type": "retire", "blocks": [ID]}, {"type": "retire", "blocks": [], "time": 5}], {}
    )
    catalog = Catalog(files)
    catalog.read()
    assert catalog.retired[ID] == catalog.sessions[0]["time"] > 1e9


def test_a_line_that_is_gone_is_missed(tmp_path: Path, identity: Any) -> None:
    """Whole lines with good checksums on either side: the numbers say that there was one between."""
    files = Bank(tmp_path).open_store(identity(), create=True).files
    writer = LogWriter(files, "w", {})
    for number in range(3):
        writer.append(block(number))
    writer.close()
    log = Path(files.path("parts/log")) / f"{writer.name}.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2] + lines[3:]))
    catalog = Catalog(files)
    with pytest.raises(StoreError, match=r"line 3: lines before it are missing .*patchbank cache repair"):
        catalog.read()
    (bad,) = catalog.damage()
    assert (bad.kind, bad.line) == ("missing", 3)
    repairer = LogWriter(files, "repair", {})
    repairer.append({"type": "excuse", "lines": [bad.excuse()]})
    repairer.close()
    again = Catalog(files)
    again.read()
    assert sorted(b.time for b in again.live()) == [0.0, 2.0]
    assert again.damage() == []


@pytest.mark.parametrize("sound", [True, False])
def test_nothing_is_written_behind_half_a_line(
    tmp_path: Path, identity: Any, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """A full disk takes half a line. It is taken away again; where even that fails, the log ends there."""
    files = Bank(tmp_path).open_store(identity(), create=True).files
    writer = LogWriter(files, "w", {})
    writer.append(block(0))
    real, calls = os.write, []

    def half(descriptor: int, line: bytes) -> int:
        calls.append(line)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no space")
        return real(descriptor, line[: len(line) // 2])

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(log_module.os, "write", half)
        if not sound:
            patch.setattr(log_module.os, "ftruncate", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            writer.append(block(1))
    if sound:
        writer.append(block(2))
    else:
        with pytest.raises(StoreError, match="a line could not be written"):
            writer.append(block(2))
    writer.close()
    catalog = Catalog(files)
    catalog.read()
    assert [found.time for found in catalog.live()] == ([0.0, 2.0] if sound else [0.0])
    assert [bad.kind for bad in catalog.bad.values()] == ([] if sound else ["torn"])
