"""A sample of rows: how many, of which strata, and always the same ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import Header, Manifest
from patchbank.datasets.sample import sample_rows
from patchbank.errors import InvalidRequest

N = 4000


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Slides of 2 to 200 rows, a tenth of the rows positive."""
    slide = (40 * np.sqrt(np.arange(N) * 7919 % N / N)).astype(int)
    table = pd.DataFrame(
        {
            "patch_id": [f"toy/{i}" for i in range(N)],
            "path": "a.png",
            "label": np.where(np.arange(N) % 10 == 0, "bad", "good"),
            "group": [f"slide {s}" for s in slide],
            "domain": [f"centre {s % 2}" for s in slide],
        }
    )
    header = Header(
        name="toy", version="1", classes=("good", "bad"), positive="bad", licence="-", source="a test"
    )
    return Manifest(header, table, Path())


def test_labels_domains_and_groups_keep_their_shares(manifest: Manifest) -> None:
    part = sample_rows(manifest, 400)
    assert len(part) == 400
    assert part.table["patch_id"].is_unique
    assert (part.table["label"] == "bad").sum() == 40
    for columns, rounding in ((["label", "domain"], 1), (["label", "domain", "group"], 1), (["group"], 2)):
        whole, kept = (m.table.groupby(columns).size() for m in (manifest, part))
        assert (kept.reindex(whole.index, fill_value=0) - whole / 10).abs().max() < rounding
    at = part.table["patch_id"].str[4:].astype(int)
    assert at.is_monotonic_increasing, "rows keep their order"


def test_the_same_rows_in_whatever_order_the_table_has_them(manifest: Manifest) -> None:
    first = sample_rows(manifest, 123).table["patch_id"].tolist()
    assert first[:3] == ["toy/37", "toy/46", "toy/80"], "of another version or machine, too"
    turned = manifest.select(np.arange(N)[::-1])
    assert sample_rows(turned, 123).table["patch_id"].tolist() == first[::-1]
    assert sample_rows(manifest, 123, seed=1).table["patch_id"].tolist() != first


def test_every_row_has_the_same_chance(manifest: Manifest) -> None:
    small = manifest.select(np.arange(200))
    drawn = np.zeros(200)
    for seed in range(400):
        drawn[sample_rows(small, 50, seed=seed).table["patch_id"].str[4:].astype(int)] += 1
    assert abs(drawn.mean() - 100) < 1e-9
    assert (np.abs(drawn - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_no_more_than_there_are(manifest: Manifest) -> None:
    assert sample_rows(manifest, N) is manifest
    assert len(sample_rows(manifest, N - 1)) == N - 1
    assert len(sample_rows(manifest, 1)) == 1
    with pytest.raises(InvalidRequest, match="1 row or more, not 0"):
        sample_rows(manifest, 0)
