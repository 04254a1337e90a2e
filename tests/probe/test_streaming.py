"""Features that do not fit in memory: read from a file, with the numbers that they have in memory."""

import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest, OutputError, ProbeError
from patchbank.files import available_memory
from patchbank.probe import streaming
from patchbank.probe.classifiers.grid import Part, fit_parts
from patchbank.probe.config import ProbeConfig
from patchbank.probe.data import audit, gather
from patchbank.probe.features import load_set, open_bank
from patchbank.probe.fewshot import run_few_shot
from patchbank.probe.robustness import run_robustness
from patchbank.probe.run import _How, run_probe
from patchbank.probe.streaming import FileRows, blocks, features_of, memory_limit, select, stack

BOTH = "good/center:0.5 + poor/full/cls"
QUICK: dict[str, Any] = {
    "C": [1e-3, 1e-2, 1e-1],
    "folds": 3,
    "inner_folds": 3,
    "bootstrap": 0,
    "progress": False,
    "jobs": 1,
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 50 rows: every set has several, and a last one that is shorter."""
    monkeypatch.setattr(streaming, "BLOCK_ROWS", 50)


@pytest.mark.usefixtures("small_blocks")
def test_a_study_read_from_a_file_is_the_study_in_memory(study: Any) -> None:
    about: dict[str, Any] = {"train": study.train, "tests": [study.external], "bank": study.bank, **QUICK}
    about |= {"features": [BOTH], "preprocess": ["standardize", "whiten"]}
    whole, streamed = run_probe(**about), run_probe(**about, memory=0)
    close = ["score", "ranking", "probability", "threshold"]
    same = [name for name in whole.predictions.columns if name not in close]
    pd.testing.assert_frame_equal(whole.predictions[same], streamed.predictions[same])
    np.testing.assert_allclose(whole.predictions[close], streamed.predictions[close], atol=1e-4)
    for a, b in zip(whole.document["models"], streamed.document["models"], strict=True):
        assert (a["choice"], a["fold_choices"]) == (b["choice"], b["fold_choices"])
    for a, b in zip(whole.document["scores"], streamed.document["scores"], strict=True):
        assert a["metrics"]["auroc"][0] == pytest.approx(b["metrics"]["auroc"][0], abs=1e-3)
    a, b = (result.document["domains"][result.chosen]["matrix"]["auroc"] for result in (whole, streamed))
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_point_of_the_grid_scores_alike(n_classes: int) -> None:
    n, d = 330, 20
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)).astype(np.float16)
    y, folds = rng.integers(0, n_classes, n), rng.integers(0, 3, n)
    votes = rng.random((n, n_classes)) if n_classes > 2 else rng.random(n)
    votes = votes / votes.sum(axis=1, keepdims=True) if n_classes > 2 else votes
    parts = [Part(folds != k, folds == k, (k,)) for k in range(3)]
    config = ProbeConfig(
        features=("a",),
        C=(1e-3, 1e-1),
        preprocess=("standardize", "l2", "whiten", "none"),
        class_weight=("balanced", "none", "votes"),
    )
    whole = fit_parts(X.astype(np.float32), y, parts, config, votes=votes)
    order = rng.permutation(n)
    rows = FileRows(X[order], np.argsort(order))  # in another order in the file
    streamed = fit_parts(rows, y, parts, config, votes=votes, memory=0)
    for a, b in zip(whole.held_out, streamed.held_out, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for p in range(4):
        setting = whole.setting((p, 2, 1))
        a = whole.scorer(X.astype(np.float32))(1, setting)
        b = streamed.scorer(rows)(1, setting)
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(a[folds == 1], whole.held_out[1][p, 2, 1], atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_a_split_that_chooses(study: Any) -> None:
    about: dict[str, Any] = {
        "train": study.train,
        "bank": study.bank,
        "encoders": ["good"],
        **QUICK,
        "select_on": "test",
    }
    whole, streamed = run_probe(**about), run_probe(**about, memory="0 GB")
    np.testing.assert_allclose(whole.predictions["score"], streamed.predictions["score"], atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_rows_in_a_file_are_those_of_the_manifests(study: Any) -> None:
    bank, manifests = (
        open_bank(study.bank, manifests=[study.train, study.external]),
        [study.train, study.external],
    )
    streamed = features_of(BOTH, manifests, bank, memory=0)
    for rows, manifest in zip(streamed, manifests, strict=True):
        assert isinstance(rows, FileRows)
        np.testing.assert_array_equal(rows[:], load_set(manifest, BOTH, bank=bank))
        np.testing.assert_array_equal(rows[7:9], rows[:][7:9])
        mask = np.arange(len(rows)) % 3 == 1
        np.testing.assert_array_equal(select(rows, mask)[:], rows[:][mask])
        np.testing.assert_array_equal(select(select(rows, mask), np.array([2, 0]))[:], rows[:][mask][[2, 0]])
    both = stack(*streamed)
    np.testing.assert_array_equal(both[:], np.concatenate([rows[:] for rows in streamed]))
    assert not list(study.bank.glob(".features-*"))  # the file has no name


def test_blocks_are_all_rows_once() -> None:
    for n in (0, 1, streaming.BLOCK_ROWS, streaming.BLOCK_ROWS + 1):
        assert [i for block in blocks(n) for i in range(block.start, block.stop)] == list(range(n))


def test_the_memory_of_a_streamed_fit_is_that_of_blocks(tmp_path: Path) -> None:
    """Traced are NumPy's own arrays; pages of the map are the system's."""
    n, d = 60_000, 256
    rng = np.random.default_rng(0)
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float16, (n, d))
    X[:] = rng.standard_normal((n, d), dtype=np.float32)
    y = (np.asarray(X[:, 0]) > rng.standard_normal(n)).astype(int)
    half = np.arange(n) % 2 == 0
    parts, config = [Part(half, ~half, (0,))], ProbeConfig(features=("a",), C=(1e-3, 1e-2))

    def peak(features: Any, memory: float) -> tuple[float, np.ndarray]:
        tracemalloc.start()
        fitted = fit_parts(features, y, parts, config, memory=memory)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, fitted.held_out[0]

    streamed, scores = peak(FileRows(X, range(n)), 0)
    whole, expected = peak(np.asarray(X, np.float32), float("inf"))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert streamed < 4 * n * d < whole  # less than one copy in float32; more than the solver's


def test_what_needs_all_rows_at_once_is_refused_before_anything_is_computed(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbank.probe.run._prepare", lambda *_, **__: pytest.fail("work was begun"))
    about: dict[str, Any] = {
        "train": study.train,
        "bank": study.bank,
        "encoders": ["good"],
        "progress": False,
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"probe": "knn"}, "the probe 'knn'"),
        ({"solver": "eva"}, "the recipe 'eva'"),
    ]
    for settings, what in cases:
        fix = r"Fix: fewer rows of each set, --sample ROWS \(up to 6 fit\); or more memory, --memory SIZE; or"
        with pytest.raises(ProbeError, match=f"{what} needs all of them at once. {fix}"):
            run_probe(**about, **settings, memory="2 KB")
    about.pop("progress")
    with pytest.raises(ProbeError, match=r"the few-shot probe needs all of them at once. .*--memory SIZE$"):
        run_few_shot(**about, memory=0)
    with pytest.raises(ProbeError, match=r"the search of neighbours needs all of them at once\."):
        run_robustness(study.train, bank=study.bank, encoders=["good"], memory=0)


def test_near_duplicates_by_embeddings_are_not_looked_for_beyond_the_memory(study: Any) -> None:
    """The results say then that nobody has looked."""
    config = ProbeConfig(features=(BOTH,), near_duplicates="embeddings")
    data = gather(study.train, [study.external], study.bank, config)
    bank = open_bank(study.bank)
    size = streaming.size_of("good/center:0.5/cls", data.manifests, bank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchbank.probe.leaks.NEAR_DIM", 12)
        assert "near-duplicate" not in audit(data, None, bank, config, memory=size).unchecked
        assert audit(data, None, bank, config, memory=size - 1).unchecked["near-duplicate"] == 560


def test_a_sample_is_probed_and_named(study: Any) -> None:
    about: dict[str, Any] = {"train": study.train, "tests": [study.external], "bank": study.bank, **QUICK}
    found = run_probe(**about, encoders=["good"], sample=150, memory=0)
    assert found.document["config"]["sample"] == 150
    train, inner, outer = found.document["data"]
    assert (train["n"], inner["n"], outer["n"]) == (150, 107, 150)
    assert train["left_out"]["not in the sample"] == 293 - 150
    assert inner["left_out"] == {}
    assert any("outer: 150 of 160 rows were drawn (--sample)" in note for note in found.document["notes"])
    ids = {*study.train.table["patch_id"], *study.external.table["patch_id"]}
    assert set(found.predictions["patch_id"]) < ids
    notes: list[str] = []
    few: dict[str, Any] = {"shots": [1], "repeats": 1, "on_note": notes.append, "sample": 150}
    run_few_shot(train=study.train, bank=study.bank, encoders=["good"], **few)
    assert "inner:train: 150 of" in notes[0]
    with pytest.raises(
        ProbeError, match=r"the sample of 1 rows of inner:train has none of .*a larger --sample"
    ):
        run_probe(**about, encoders=["good"], sample=1)
    with pytest.raises(InvalidRequest, match=r"cannot be made: .* Fix: draw more rows than 4 \(--sample\), "):
        run_probe(**about, encoders=["good"], sample=4)
    with pytest.raises(InvalidRequest, match="sample has to be 1 row or more"):
        run_probe(**about, encoders=["good"], sample=0)


def test_memory_is_a_size() -> None:
    assert memory_limit("8GB") == 8e9
    assert memory_limit("1.5 mb") == 1.5e6
    assert memory_limit(100) == memory_limit("100") == memory_limit("100 B") == 100
    assert 0 < memory_limit() <= available_memory()
    for wrong in ("8 gigs", "GB", "-1GB", "nan", "8GBGB", ""):
        with pytest.raises(InvalidRequest, match="a size such as 8GB"):
            memory_limit(wrong)


def test_a_full_disk_is_said_before_anything_is_written(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(OutputError, match=r"has room for 0\.0 GB, and the rows of good/full/cls take"):
        run_probe(train=study.train, bank=study.bank, encoders=["good"], memory=0, **QUICK)


def test_fewer_feature_sets_at_once_before_any_is_read_from_a_file(study: Any) -> None:
    config = ProbeConfig(features=("good/full/cls", "poor/full/cls", BOTH))
    data = gather(study.train, [study.external], study.bank, config)
    bank = open_bank(study.bank, manifests=data.manifests)
    largest = streaming.size_of(BOTH, data.manifests, bank)
    for memory, jobs in ((3 * largest, 3), (2.9 * largest, 2), (largest, 1), (largest - 1, 3), (0, 3)):
        how = _How.of(data, bank, config, jobs=8, backend="loky", memory=memory)
        assert (how.jobs, how.memory) == (jobs, memory / jobs)
