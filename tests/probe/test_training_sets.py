"""Inner folds that are the other outer folds: against scikit-learn, without leaks, every kind of target."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from patchbank.datasets.folds import make_folds
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe import regression
from patchbank.probe.config import ProbeConfig
from patchbank.probe.data import fold_notes
from patchbank.probe.protocol import ProtocolRun, make_plan, run_protocol, scale_of
from patchbank.probe.regression import TargetConfig
from patchbank.probe.report.write import markdown_report
from patchbank.probe.results.merge import merge_systems
from patchbank.probe.run import run_probe
from patchbank.probe.selection import criterion
from patchbank.probe.streaming import FileRows
from patchbank.probe.training_sets import can_share, shared_folds, training_sets
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

C = (1e-2, 1e-1, 1.0)


def data(classes: int = 2, folds: int = 5, n: int = 300, d: int = 6) -> tuple[Any, ...]:
    """Features, labels, groups of unequal size, folds of whole groups."""
    rng = np.random.default_rng(classes)
    slide = rng.choice(40, n, p=np.arange(1, 41) / np.arange(1, 41).sum())
    y = rng.integers(0, classes, n)
    X = rng.standard_normal((n, d)).astype(np.float32)
    X[np.arange(n), y % d] += 1.5
    groups = np.array([f"s{s}" for s in slide], dtype=object)
    return X, y, groups, slide % folds + 1


def config(**settings: Any) -> ProbeConfig:
    base: dict[str, Any] = {"features": ["any"], "C": list(C), "bootstrap": 0, "inner_folds": "shared"}
    if settings.get("probe", "logistic") not in ("logistic", "svm"):
        base.pop("C")
    return ProbeConfig.from_dict(base | settings)


def run(X: Any, y: Any, groups: Any, folds: Any, **settings: Any) -> ProtocolRun:
    of = config(**settings)
    names = [f"class {k}" for k in range(y.max() + 1)]
    return run_protocol(X, y, make_plan(y, groups, folds, config=of, classes=names), {}, config=of)


@pytest.mark.parametrize("n_folds", [3, 5, 6, 10])
def test_every_pair_of_folds_is_left_out_once(n_folds: int) -> None:
    _, _, groups, folds = data(folds=n_folds)
    parts = training_sets(folds, shared_folds(folds))
    assert len(parts) == 1 + n_folds + n_folds * (n_folds - 1) // 2
    pairs = [part for part in parts if part.inner is not None]
    left_out = [part.models for part in pairs]
    assert len(set(left_out)) == len(pairs)
    assert all(i < j for i, j in left_out)
    for part in pairs:
        np.testing.assert_array_equal(part.held_out, np.isin(folds, part.models))
        np.testing.assert_array_equal(part.training, ~part.held_out)
        assert not set(groups[part.training]) & set(groups[part.held_out])


def test_inner_folds_of_their_own_are_not_merged() -> None:
    folds = np.arange(60) % 3 + 1
    inner = [np.where(folds == k, 0, np.arange(60) // 3 % 4 + 1) for k in (1, 2, 3)]
    parts = training_sets(folds, inner)
    assert [part.models for part in parts] == [(0,)] + [(k,) for k in (1, 2, 3) for _ in range(5)]


@pytest.mark.parametrize("classes", [2, 8])
def test_scores_are_those_of_a_pipeline_without_both_folds(classes: int) -> None:
    X, y, groups, folds = data(classes, n=240 * (1 + classes // 4))
    found = run(X, y, groups, folds)
    for i, k in enumerate(np.unique(folds)):
        rows = folds != k
        held = np.zeros((len(C), len(y), classes)[: 3 if classes > 2 else 2])
        for c, strength in enumerate(C):
            for j in np.unique(folds[rows]):
                training = rows & (folds != j)
                model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=1000)
                pipeline = make_pipeline(StandardScaler(), model).fit(X[training].astype("f8"), y[training])
                held[c, folds == j] = pipeline.decision_function(X[folds == j].astype("f8"))
        expected = criterion("log_loss", y[rows], np.moveaxis(held[:, rows], 0, 1), folds[rows])
        np.testing.assert_allclose(found.fold_paths[i][0, 0], expected, atol=1e-4)
        assert found.fold_choices[i].value == C[int(expected.argmax())]
        if classes == 2:
            chosen = scale_of(held[int(expected.argmax()), rows])
            np.testing.assert_allclose(found.scales[i], chosen, rtol=1e-2, atol=1e-3)
    assert found.fits["fits"] == 16 * len(C)
    assert found.fits["shared"] == 10 * len(C)
    assert found.fits["calls"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preprocess": ["whiten", "standardize"], "class_weight": ["balanced", "none"]},
        {"probe": "knn", "k": [5, 20]},
        {"probe": "ridge", "alpha": [1.0, 100.0]},
        {"select": "auroc"},
    ],
    ids=["logistic", "whiten", "knn", "ridge", "auroc"],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_nothing_of_a_fold_is_in_its_choice(settings: dict[str, Any], classes: int) -> None:
    X, y, groups, folds = data(classes)
    before = run(X, y, groups, folds, **settings)
    rng = np.random.default_rng(0)
    rows, changed, moved = folds == 2, y.copy(), X.copy()
    changed[rows] = rng.permutation(y[rows])
    moved[rows] += rng.standard_normal((int(rows.sum()), X.shape[1])).astype(np.float32)
    after = run(moved, changed, groups, folds, **settings)
    np.testing.assert_allclose(after.fold_paths[1], before.fold_paths[1], atol=1e-4)
    np.testing.assert_allclose(after.scales[1], before.scales[1], rtol=1e-4)
    np.testing.assert_allclose(after.oof_adjusted[rows], before.oof_adjusted[rows], rtol=1e-2, atol=1e-3)
    assert after.fold_choices[1] == before.fold_choices[1]
    assert np.abs(after.fold_paths[0] - before.fold_paths[0]).max() > 1e-3, "others have changed"


def test_from_a_file_it_is_the_same(tmp_path: Any) -> None:
    X, y, groups, folds = data()
    np.save(tmp_path / "X.npy", X)
    rows = FileRows(np.load(tmp_path / "X.npy", mmap_mode="r"), range(len(X)))
    found, expected = (run(features, y, groups, folds) for features in (rows, X))
    np.testing.assert_allclose(found.fold_paths, expected.fold_paths, atol=1e-5)
    np.testing.assert_allclose(found.oof, expected.oof, atol=1e-4)


def test_what_is_shared_where_nothing_is_said() -> None:
    shared = {}
    for k in (3, 4, 5, 11, 12):
        _, y, groups, folds = data(folds=k)
        plan = make_plan(y, groups, folds, config=config(inner_folds=None))
        shared[k] = plan.shared
        assert plan.inner_folds == [k - 1 if plan.shared else 5] * k
        assert not make_plan(y, groups, folds, config=config(inner_folds=3)).shared
        assert make_plan(y, groups, folds, config=config()).shared
    assert shared == {3: False, 4: False, 5: True, 11: True, 12: False}
    _, y, groups, folds = data()
    with pytest.raises(InvalidRequest, match=r"3 folds or more, not 2.*--folds 5"):
        make_plan(y, groups, folds % 2 + 1, config=config())
    rare = np.where(folds <= 2, y, 0)  # class 1 is in two folds alone
    assert not can_share(folds, rare)
    assert can_share(folds)
    with pytest.raises(ProbeError, match=r"outer folds 1 and 2, left out together.*--inner-folds 2"):
        make_plan(rare, groups, folds, config=config())
    plan = make_plan(rare, groups, folds, config=config(inner_folds=None))
    made = make_folds(y.astype(str), groups, n_splits=5)
    notes = fold_notes(made, plan, config(inner_folds=None))
    assert notes[0] == "inner folds of their own: without two of the folds a class has no rows"
    assert fold_notes(made, replace(plan, inner=shared_folds(folds)), config()) == []


def test_the_penalty_of_numbers_is_chosen_on_shared_folds() -> None:
    X, _, _, folds = data()
    rng = np.random.default_rng(0)
    Y = X @ rng.standard_normal((6, 2)) + rng.standard_normal((len(X), 2)) * [1.0, 30.0]
    alphas = (1e3, 1e2, 1e1, 1e-1)
    of = TargetConfig(features=("any",), alpha=alphas, inner_folds="shared")
    found = regression.run_protocol(X, Y, folds, shared_folds(folds), {}, config=of)
    assert found.fits == 16
    for i, k in enumerate(np.unique(folds)):
        rows, values = folds != k, np.zeros((len(alphas), 2))
        for a, alpha in enumerate(alphas):
            held = np.empty_like(Y)
            for j in np.unique(folds[rows]):
                training = rows & (folds != j)
                model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(X[training], Y[training])
                held[folds == j] = model.predict(X[folds == j])
            values[a] = r2_score(Y[rows], held[rows], multioutput="raw_values")
        np.testing.assert_array_equal(found.fold_alphas[i], np.array(alphas)[values.argmax(axis=0)])
    assert len(np.unique(found.fold_alphas)) > 1
    moved = Y.copy()
    moved[folds == 2] = rng.permutation(Y[folds == 2]) + 10
    again = regression.run_protocol(X, moved, folds, shared_folds(folds), {}, config=of)
    np.testing.assert_array_equal(again.fold_alphas[1], found.fold_alphas[1])


def test_a_study_says_how_it_chose(study: Any) -> None:
    about: dict[str, Any] = {"train": study.train, "tests": [study.external], "bank": study.bank, "jobs": 1}
    about |= {"encoders": ["good"], "C": C, "bootstrap": 100, "progress": False, "folds": 5}
    found = run_probe(**about, repeats=2)
    folds = found.results.folds
    assert (folds.inner, folds.shared) == ([4] * 5, True)
    fits = found.results.models[0].fits
    assert fits is not None
    assert (fits.fits, fits.shared) == (16 * len(C), 10 * len(C))
    text = " ".join(markdown_report(found).split())
    assert "Inner folds: the other folds, shared" in text
    own = run_probe(**about, inner_folds=3)
    assert (own.results.folds.inner, own.results.folds.shared) == ([3] * 5, False)
    assert "Inner folds: 3 of their own" in " ".join(markdown_report(own).split())
    merged = merge_systems({"shared": found, "own": own}).results.folds
    assert (merged.n_splits, merged.inner, merged.shared) == (5, None, None), "no statement for both"
    assert merge_systems({"a": own, "b": own}).results.folds == own.results.folds


def test_the_setting_is_a_number_or_the_word() -> None:
    assert config(inner_folds=4).inner_folds == 4
    for settings in (ProbeConfig, TargetConfig):
        with pytest.raises(InvalidRequest, match="'share' is neither a number nor 'shared', did you mean"):
            settings(features=("a",), inner_folds="share")
        with pytest.raises(InvalidRequest, match="inner_folds has to be 2 or more, not 1"):
            settings(features=("a",), inner_folds=1)
