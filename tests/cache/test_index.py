"""The index of keys against a dictionary."""

import numpy as np
import pytest
from patchbank.cache import index
from patchbank.cache.index import KeyIndex


def keys_of(random: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Hashes; keys of which many are the same; keys whose first halves are the same, and not their second."""
    if kind == "hashes":
        return random.integers(0, 256, (count, 16), dtype=np.uint8)
    keys = np.zeros((count, 16), np.uint8)
    keys[:, 0] = random.integers(0, 4, count)
    keys[:, 9] = random.integers(0, 3 if kind == "repeated" else 250, count)
    return keys


@pytest.mark.parametrize("kind", ["hashes", "repeated", "ties"])
def test_rows_are_those_of_a_dictionary(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(index, "BATCH", 50)
    monkeypatch.setattr(index, "NEAR", 3)
    random = np.random.default_rng(0)
    for _ in range(60):
        keys, step = keys_of(random, kind, int(random.integers(1, 400))), int(random.integers(1, 90))
        known: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            known.setdefault(key.tobytes(), row)
        built = KeyIndex()
        for start in range(0, len(keys), step):
            built.add(keys[start : start + step], start)
        asked = np.concatenate([keys, keys_of(random, kind, 50), keys_of(random, "hashes", 5)])
        assert built.find(asked).tolist() == [known.get(key.tobytes(), -1) for key in asked]
        assert len(built) == len(known)
        assert built.first_rows().tolist() == sorted(known.values())


def test_an_index_without_keys() -> None:
    assert KeyIndex().find(keys_of(np.random.default_rng(0), "hashes", 3)).tolist() == [-1, -1, -1]
    assert KeyIndex().find(np.empty((0, 16), np.uint8)).tolist() == []
    assert len(KeyIndex(np.empty((0, 16), np.uint8))) == 0
