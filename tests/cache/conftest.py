"""What the store tests share: made-up rows, identities, and a reader that shares no code with the store."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xxhash
from patchbank.cache.identity import Identity

_SPEC = importlib.util.spec_from_file_location(
    "cache_attack", Path(__file__).parent.parent / "benchmarks/cache_attack.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
attack: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(attack)


def make_identity(**changes: Any) -> Identity:
    parts: dict[str, Any] = {
        "encoder": {"id": "fake:noise", "weights": "sha256:00"},
        "preprocess": {"resize": 224, "mean": [0.5, 0.5, 0.5]},
        "view": "full",
        "tokens": "cls",
        "precision": "fp32",
        "dtype": "float16",
        "dim": 8,
    }
    return Identity(**(parts | changes))


class Rows:
    """Distinct random keys and vectors, the same for the same seed."""

    def __init__(self, count: int, dim: int = 8, dtype: str = "float16", seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.keys = random.integers(0, 256, (count, 16), dtype=np.uint8)
        self.vectors = random.normal(size=(count, dim)).astype(dtype)
        self.ids = [f"set/{seed}-{i}" for i in range(count)]

    def __getitem__(self, part: slice) -> tuple[np.ndarray, np.ndarray, list[str]]:
        return self.keys[part], self.vectors[part], self.ids[part]

    def as_dict(self) -> dict[bytes, bytes]:
        return {k.tobytes(): v.tobytes() for k, v in zip(self.keys, self.vectors, strict=True)}

    def table(self) -> pd.DataFrame:
        count = len(self.ids)
        return pd.DataFrame(
            {
                "patch_id": self.ids,
                "label": ["atypical" if i % 3 == 0 else "" for i in range(count)],
                "group": [f"slide {i % 4}" for i in range(count)],
                "domain": ["scänner"] * count,
                "split": ["train" if i % 2 else "test" for i in range(count)],
                "x": pd.array(range(count), "Int64"),
                "y": pd.array([7] * count, "Int64"),
                "content_hash": [key.tobytes().hex() for key in self.keys],
            }
        )


def rows_on_disk(store: Path) -> dict[bytes, bytes]:
    """Every published row of a local store, read as the format's description says, key -> vector bytes."""
    zarr = (store / "zarr.json").exists()
    text = json.loads((store / ("zarr.json" if zarr else "store.json")).read_text())
    about = (text["attributes"] if zarr else text)["patchbank"]
    assert (about["format"], about["version"]) == ("patchbank-store", 1)
    width = about["identity"]["dim"] * np.dtype(about["identity"]["dtype"]).itemsize
    blocks: dict[str, dict] = {}
    retired: set[str] = set()
    order: dict = {"generation": 0, "blocks": []}
    for log in sorted((store / "parts/log").glob("*.jsonl")):
        for line in log.read_bytes().split(b"\n")[:-1]:
            body, _, end = line.rpartition(b',"sum":"')
            assert end == xxhash.xxh3_64_hexdigest(body).encode() + b'"}'
            record = json.loads(line)
            if record["type"] == "block":
                blocks[record["block"]] = record
            elif record["type"] == "retire":
                retired |= set(record["blocks"])
            elif record["type"] == "order" and record["generation"] > order["generation"]:
                order = record
    rows: dict[bytes, bytes] = {}
    for name, block in sorted(blocks.items(), key=lambda item: (item[1]["time"], item[0])):
        if name in retired:
            continue
        count = block["rows"]
        if zarr:
            vectors, keys = (store / f"parts/blocks/{name}.{kind}" for kind in ("vectors", "keys"))
            if not vectors.exists():
                vectors = store / f"embeddings/c/{order['blocks'].index(name)}/0"
            if not keys.exists():
                keys = store / f"content_hash/c/{order['blocks'].index(name)}/0"
            data, hashes = vectors.read_bytes()[: count * width], keys.read_bytes()[: count * 16]
        else:
            with h5py.File(store / f"parts/blocks/{name}.h5") as file:
                data, hashes = (np.asarray(file[n]).tobytes() for n in ("embeddings", "content_hash"))
        sums = ""
        for start in range(0, count, 256):
            stop = min(count, start + 256)
            sums += xxhash.xxh3_64_hexdigest(
                data[start * width : stop * width] + hashes[start * 16 : stop * 16]
            )
        assert sums == block["segments"]
        assert name.partition("-")[2] == xxhash.xxh3_128_hexdigest(f"{count}:{sums}".encode())
        for i in range(count):
            rows.setdefault(hashes[i * 16 : (i + 1) * 16], data[i * width : (i + 1) * width])
    return rows


@pytest.fixture(scope="session")
def identity() -> Callable[..., Identity]:
    return make_identity


@pytest.fixture(scope="session")
def make_rows() -> type[Rows]:
    return Rows


@pytest.fixture
def on_disk() -> Callable[[Path], dict[bytes, bytes]]:
    return rows_on_disk
