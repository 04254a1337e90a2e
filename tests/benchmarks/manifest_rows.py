"""A manifest at 1e6 and 1e7 rows: made, saved, loaded, counted, its groups, hashes, distinct rows, a sample.

CPU seconds, those of them that the kernel takes (it clears every page of memory that is used for the first
time), and the bytes a row by which each step raises the peak of its process.

python tests/benchmarks/manifest_rows.py [ROWS ...]
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from patchbank.datasets.folds import effective_groups
from patchbank.datasets.hashes import resolve
from patchbank.datasets.manifest import TEXT, Header, Manifest, load_manifest
from patchbank.datasets.sample import sample_rows
from patchbank.probe.leaks import deduplicate

HEADER = Header(
    name="tcga-tils", version="1", classes=("til-negative", "til-positive"), positive="til-positive",
    licence="-", source="benchmark", group_kind="patient",
)  # fmt: skip

HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def peak() -> int:
    """Bytes: the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table_of(n: int) -> pd.DataFrame:
    """As a folder of TCGA-TILs gives it: the text columns, and content hashes."""

    def texts(values: np.ndarray) -> pd.Series:
        return pd.Series(values).astype(TEXT)

    at = np.arange(n)
    group = texts(np.array([f"TCGA-OR-A{k:04d}" for k in range(8000)], object)[at % 8000])
    split = texts(np.array(["train", "val", "test"], object)[at % 3])
    label = texts(np.array(HEADER.classes, object)[at % 2])
    digits = pd.Series(at).astype(TEXT).str.zfill(8)
    stem = "acc/" + split + "/" + label + "/" + group + "-01Z-00-DX1_" + digits
    raw = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), n, [None, pa.py_buffer(np.random.default_rng(0).choice(HEX, 32 * n).tobytes())]
    )
    return pd.DataFrame(
        {
            "patch_id": "tcga-tils/" + stem,
            "path": "images-tcga-tils/" + stem + ".png",
            "label": label,
            "group": group,
            "domain": texts(np.full(n, "acc", object)),
            "split": split,
            "content_hash": TEXT.__from_arrow__(raw.cast(pa.binary()).cast(pa.string())),
        }
    )


def measure(n: int, folder: Path, what: str) -> None:
    """One step in this process, whose peak is its own."""
    file = folder / f"{n}.toml"

    def timed(name: str, run: Callable[[], object]) -> object:
        before, start = peak(), os.times()
        result = run()
        end = os.times()
        own, kernel = end.user - start.user, end.system - start.system  # of the CPU: others may use it too
        print(
            f"{n:>10,} rows  {name:<9} {own + kernel:6.2f} CPU s ({kernel:5.2f} of the kernel)  "
            f"peak +{(peak() - before) / n:5.0f} bytes a row",
            flush=True,
        )
        return result

    if what == "make":
        table = table_of(n)
        manifest = timed("make", lambda: Manifest(HEADER, table, folder))
        assert isinstance(manifest, Manifest)
        timed("save", lambda: manifest.save(file))
        return
    manifest = timed("load", lambda: load_manifest(file))
    assert isinstance(manifest, Manifest)
    held = int(manifest.table.memory_usage(deep=True).sum())
    disk = file.with_suffix(".parquet").stat().st_size if file.with_suffix(".parquet").exists() else 0
    print(
        f"{n:>10,} rows  held      {held / n:7.0f} bytes a row in memory, {disk / n:.0f} on disk", flush=True
    )
    timed("counts", manifest.counts)
    timed("select", lambda: manifest.select("train"))
    timed("groups", lambda: effective_groups(manifest))
    timed("hashes", lambda: resolve(manifest))
    timed("distinct", lambda: deduplicate(manifest.table))
    timed("sample", lambda: sample_rows(manifest, n // 10))


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        measure(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        return
    for n in [int(float(one)) for one in sys.argv[1:]] or [1_000_000, 10_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            for what in ("make", "load"):
                subprocess.run([sys.executable, __file__, "--step", str(n), folder, what], check=True)


if __name__ == "__main__":
    main()
