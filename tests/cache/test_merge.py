"""Stores among each other: what may be merged, what a subset holds, how far apart two stores are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.merge import diff, differences, merge, subset
from patchbank.cache.store import Store
from patchbank.cache.verify import verify
from patchbank.errors import InvalidRequest, RowsMissing


def filled(folder: Path, identity: Identity, *shares: Any, backend: str = "zarr") -> Store:
    store = Bank(folder).open_store(identity, create=True, backend=backend, block_rows=64)
    with store.writer() as writer:
        for rows in shares:
            writer.append(*rows[:])
    store.refresh()
    return store


def contents(store: Store) -> dict[bytes, bytes]:
    keys = store.keys()
    return {key.tobytes(): vector.tobytes() for key, vector in zip(keys, store.load(keys), strict=True)}


# --- identities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"weights": "a"}, {"weights": "b"}, ['encoder.weights: "a" / "b"']),
        ({"act": None}, {}, ["encoder.act: null / absent"]),
        ({"args": {}}, {}, ["encoder.args: {} / absent"]),
        (
            {"args": {"depth": 2}},
            {"args": {}},
            ["encoder.args: absent / {}", "encoder.args.depth: 2 / absent"],
        ),
        ({"scale": 1}, {"scale": 1.0}, ["encoder.scale: 1 / 1.0"]),
        ({"flag": True}, {"flag": 1}, ["encoder.flag: true / 1"]),
        ({"a.b": 1}, {"a": {"b": 1}}, ["encoder.a.b: absent / 1", "encoder.a.b: 1 / absent"]),
        ({"list": [1, 2]}, {"list": [1, 2, 3]}, ["encoder.list: [1,2] / [1,2,3]"]),
    ],
)
def test_identities_without_a_difference_are_equal(
    identity: Any, one: dict[str, Any], other: dict[str, Any], said: list[str]
) -> None:
    """Every pair whose digests differ is named: what is merged on the word of `differences` is equal."""
    a, b = identity(encoder={"id": "fake", **one}), identity(encoder={"id": "fake", **other})
    assert a != b
    assert differences(a, b) == said
    assert differences(a, a) == differences(b, b) == []
    assert len(differences(b, a)) == len(said)


@pytest.mark.parametrize("value", [None, {}, 0])
def test_an_argument_that_only_one_encoder_states_keeps_stores_apart(
    tmp_path: Path, identity: Any, make_rows: Any, value: object
) -> None:
    rows = make_rows(10)
    source = filled(tmp_path / "a", identity(encoder={"id": "fake", "act": value}), rows)
    target = filled(tmp_path / "b", identity(encoder={"id": "fake"}))
    with pytest.raises(InvalidRequest, match=r"cannot be merged into .*encoder\.act: absent /"):
        merge(target, [source])
    assert len(target) == 0
    assert verify(target).good


# --- merge and subset ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backends", [("zarr", "hdf5"), ("hdf5", "zarr")])
def test_sources_that_overlap_are_copied_once(
    tmp_path: Path, identity: Any, make_rows: Any, backends: tuple[str, str]
) -> None:
    shares = [make_rows(90, seed=seed) for seed in range(3)]
    sources = [
        filled(tmp_path / "0", identity(), shares[0], shares[1], backend=backends[0]),
        filled(tmp_path / "1", identity(), shares[1], shares[2], backend=backends[0]),
        filled(tmp_path / "2", identity(), backend=backends[0]),
    ]
    target = filled(tmp_path / "target", identity(), shares[0], backend=backends[1])
    assert merge(target, [*sources, target]) == 180
    assert target.published_rows == 270, "no row is stored twice"
    wanted: dict[bytes, bytes] = {}
    for rows in shares:
        wanted |= rows.as_dict()
    assert contents(target) == wanted
    assert merge(target, sources) == 0
    assert verify(target).good


def test_a_merge_that_is_refused_copies_nothing(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    """The second source is wrong: the first is not copied either."""
    good = filled(tmp_path / "good", identity(), make_rows(20))
    wrong = filled(tmp_path / "wrong", identity(precision="bf16"), make_rows(20, seed=1))
    target = filled(tmp_path / "target", identity())
    with pytest.raises(InvalidRequest, match='precision: "fp32" / "bf16"'):
        merge(target, [good, wrong])
    assert target.published_rows == 0
    assert target.catalog.sessions == [], "not even a writer was opened"


def test_rows_written_while_stores_were_open_are_merged(
    tmp_path: Path, identity: Any, make_rows: Any
) -> None:
    rows, later = make_rows(30), make_rows(30, seed=1)
    source, target = filled(tmp_path / "a", identity(), rows), filled(tmp_path / "b", identity())
    with Store(source.files).writer() as writer:
        writer.append(*later[:])
    with Store(target.files).writer() as writer:
        writer.append(*rows[:10])
    assert merge(target, [source]) == 50
    assert contents(target) == rows.as_dict() | later.as_dict()


def test_a_subset_is_of_distinct_keys_and_can_grow(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    rows, bank = make_rows(100), Bank(tmp_path / "part")
    store = filled(tmp_path / "whole", identity(), rows)
    assert len(subset(store, rows.keys[:0], bank)) == 0
    part = subset(store, np.concatenate([rows.keys[40:60], rows.keys[50:70]]), bank)
    assert (len(part), part.published_rows) == (30, 30)
    part = subset(store, rows.keys[60:90], bank)
    assert part.published_rows == 50, "what it has is not written again"
    assert contents(part) == {k: v for k, v in rows.as_dict().items() if k in set(contents(part))}
    with pytest.raises(RowsMissing):
        subset(store, np.concatenate([rows.keys[:5], make_rows(1, seed=9).keys]), Bank(tmp_path / "other"))
    with pytest.raises(InvalidRequest, match="is the bank that the store is in"):
        subset(store, rows.keys[:5], Bank(tmp_path / "whole"))
    assert len(Store(store.files)) == 100


# --- differences between vectors ----------------------------------------------------------------------


def moved(rows: Any, changes: dict[int, float]) -> Any:
    """The same keys, with rows multiplied by 1 + change."""
    other = type(rows)(len(rows.ids), dtype="float32")
    other.keys, other.vectors = rows.keys, rows.vectors.copy()
    for row, change in changes.items():
        other.vectors[row] *= 1 + change
    return other


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "identical"),
        ({7: 1e-3}, "the same but for rounding"),
        ({7: 1.0}, "the same but for rounding, except for less than 1 % of the patches: see the worst"),
        (dict.fromkeys(range(300), 1e-2), "close: another precision, or a slightly different resize"),
        (dict.fromkeys(range(300), 1.0), "different: another transform, view or encoder"),
    ],
)
def test_few_rows_that_differ_are_not_passed_over(
    tmp_path: Path, identity: Any, make_rows: Any, changes: dict[int, float], verdict: str
) -> None:
    rows = make_rows(300, dtype="float32")
    a = filled(tmp_path / "a", identity(dtype="float32"), rows)
    b = filled(tmp_path / "b", identity(dtype="float32"), moved(rows, changes))
    found = diff(a, b)
    assert found.verdict == verdict
    assert found.identical == 300 - len(changes)
    assert found.relative[2] == pytest.approx(max(changes.values(), default=0.0), rel=1e-3, abs=1e-12)
    assert found.cosine[2] == pytest.approx(0, abs=1e-6)
    if len(changes) == 1:
        assert found.worst[0][0] == rows.keys[7].tobytes().hex()


def test_a_difference_by_hand(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    rows = make_rows(4, dim=2, dtype="float32")
    rows.vectors = np.array([[1, 0], [0, 1], [3, 4], [1, 1]], np.float32)
    other = make_rows(4, dim=2, dtype="float32")
    other.vectors = np.array([[0, 1], [0, 1], [3, 4], [9, 9]], np.float32)
    a = filled(tmp_path / "a", identity(dim=2, dtype="float32"), rows)
    b = filled(tmp_path / "b", identity(dim=2, dtype="float32"), other)
    keys = np.concatenate([rows.keys[:3], make_rows(1, seed=5).keys])
    found = diff(a, b, keys)
    assert (found.shared, found.only_a, found.only_b, found.identical) == (3, 0, 0, 2)
    assert found.largest == 1
    assert found.cosine[2] == pytest.approx(1)
    assert found.relative[2] == pytest.approx(np.sqrt(2))
    assert found.worst[0] == (rows.keys[0].tobytes().hex(), pytest.approx(1))
    wide = filled(tmp_path / "c", identity(dim=3, dtype="float32"))
    with pytest.raises(InvalidRequest, match=r"vectors of 2, .* of 3"):
        diff(a, wide)
