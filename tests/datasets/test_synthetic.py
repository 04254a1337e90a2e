"""The generated sample: what the quickstart relies on."""

from pathlib import Path

import numpy as np
import pytest
from patchbank.datasets.audit import audit
from patchbank.datasets.folds import folds_for
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.datasets.sources import open_source
from patchbank.datasets.synthetic import STAINS, draw_patch, generate_manifests
from patchbank.errors import InvalidRequest, OutputError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return generate_manifests(tmp_path_factory.mktemp("sample"), n=240, seed=3)


def test_two_sets_that_say_that_they_are_synthetic(sample: list[Manifest]) -> None:
    assert [m.header.name for m in sample] == ["synthetic-mitoses", "synthetic-external"]
    assert [len(m) for m in sample] == [180, 60]
    assert all("generated, no tissue" in m.header.description for m in sample)
    assert all(m.header.positive == "Atypical" for m in sample)


def test_domains_splits_and_slides(sample: list[Manifest]) -> None:
    main, external = (m.table for m in sample)
    assert set(main["domain"]) == {"scanner-a", "scanner-b", "scanner-c"}
    assert set(external["domain"]) == {"scanner-x"}
    assert set(external["split"]) == {"test"}
    assert set(main["split"]) == {"train", "test"}
    assert (main.groupby("group")["split"].nunique() == 1).all()
    assert not set(main["group"]) & set(external["group"])
    for table in (main, external):
        share = (table["label"] == "Atypical").mean()
        assert 0.2 < share < 0.5
        agree = (table["votes_positive"] >= 2) == (table["label"] == "Atypical")
        assert agree.all()


def test_the_audit_and_the_folds_are_content(sample: list[Manifest]) -> None:
    for manifest in sample:
        assert audit(manifest, progress=False).ok
    assert folds_for(sample[0].select("train")).n_splits == 5


def test_what_is_saved_is_what_is_returned(sample: list[Manifest]) -> None:
    for manifest in sample:
        loaded = load_manifest(manifest.root / f"{manifest.header.name}.toml")
        assert loaded.table.equals(manifest.table)
        assert open_source(loaded).read(0).shape == (128, 128, 3)


def test_the_seed_decides_on_every_pixel(sample: list[Manifest], tmp_path: Path) -> None:
    again = generate_manifests(tmp_path / "again", n=240, seed=3)
    for one, two in zip(sample, again, strict=True):
        assert one.table.equals(two.table)
    other = generate_manifests(tmp_path / "other", n=80, seed=4)
    assert not set(other[0].table["content_hash"]) & set(sample[0].table["content_hash"])
    assert len(set(sample[0].table["content_hash"])) == 180


def test_patches_look_stained() -> None:
    for name, stain in STAINS.items():
        pixels = draw_patch(0.5, stain, np.random.default_rng(0))
        red, green, blue = pixels.reshape(-1, 3).mean(0)
        assert red > green, name
        assert blue > green, name
        assert pixels.std() > 15, name


def test_the_figure_says_how_atypical_it_is() -> None:
    """The dark area in the middle is the more scattered the more atypical: the signal is there."""
    spread = {}
    for atypia in (0.1, 0.9):
        values = []
        for seed in range(30):
            pixels = draw_patch(atypia, STAINS["scanner-a"], np.random.default_rng(seed))
            middle = pixels[34:94, 34:94].sum(2)
            y, x = np.nonzero(middle < np.quantile(middle, 0.06))
            values.append(np.hypot(y - y.mean(), x - x.mean()).mean())
        spread[atypia] = np.array(values)
    assert spread[0.9].mean() > spread[0.1].mean() * 1.15


def test_too_few(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="ask for 80 or more"):
        generate_manifests(tmp_path, n=20)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        generate_manifests(tmp_path / "file" / "sample", n=80)
