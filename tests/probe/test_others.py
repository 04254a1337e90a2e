"""The other probes against scikit-learn and refitting by hand; the draws of few-shot curves."""

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.classifiers import simple as others
from patchbank.probe.classifiers.transforms import Scaling
from patchbank.probe.statistics import metrics
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC


def features(n=300, d=20, *, seed=0):
    """X with unequal scales and means, y with a signal in some columns, slide codes."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    direction = np.where(np.arange(d) < 4, 1.2, 0.0)
    X = (rng.normal(size=(n, d)) + y[:, None] * direction) * np.linspace(1.5, 0.5, d) + 1
    return X, y, rng.integers(0, 25, n)


def options(name):
    return {"mlp": {"hidden": 8, "epochs": 300}, "knn": {"k": 9}}.get(name, {})


@pytest.mark.parametrize("name", others.PROBES)
def test_every_probe_learns_and_keeps_the_interface(name):
    X, y, groups = features()
    test_X, test_y, _ = features(seed=1)
    probe = others.make_probe(name, **options(name))
    assert probe.fit(X, y, groups=groups) is probe
    scores = probe.decision(test_X)
    assert scores.shape == (300,)
    assert scores.dtype == np.float64
    found = metrics.evaluate(test_y, scores, threshold=probe.threshold)
    assert found["auroc"] > 0.7
    assert found["balanced_accuracy"] > 0.6
    again = others.make_probe(name, **options(name)).fit(X, y, groups=groups).decision(test_X)
    np.testing.assert_array_equal(again, scores)
    half = others.make_probe(name, **options(name)).fit(X.astype(np.float32), y).decision(test_X)
    assert metrics.auroc(test_y, half) == pytest.approx(found["auroc"], abs=0.02)


@pytest.mark.parametrize("name", others.PROBES)
def test_rows_of_weight_zero_take_no_part(name):
    X, y, groups = features()
    weight = np.where(np.arange(len(y)) % 3, 1.0, 0.0)
    spoiled = np.where(weight[:, None] > 0, X, 1e6)
    used = weight > 0
    weighted = others.make_probe(name, **options(name))
    weighted.fit(spoiled, y, sample_weight=weight, groups=groups)
    plain = others.make_probe(name, **options(name))
    plain.fit(X[used], y[used], sample_weight=weight[used], groups=groups[used])
    np.testing.assert_allclose(weighted.decision(X), plain.decision(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", others.PROBES)
def test_bad_training_data_are_refused(name):
    X, y, _ = features()
    probe = others.make_probe(name, **options(name))
    with pytest.raises(ProbeError, match="both classes"):
        probe.fit(X, np.zeros(len(y)))
    with pytest.raises(ProbeError, match="both classes"):
        probe.fit(X, y, sample_weight=1.0 - y)
    with pytest.raises(ProbeError, match="row 7"):
        probe.fit(np.where(np.arange(len(y))[:, None] == 7, np.nan, X), y)
    with pytest.raises(InvalidRequest, match="300 labels"):
        probe.fit(X[:10], y)
    with pytest.raises(InvalidRequest, match="sample_weight"):
        probe.fit(X, y, sample_weight=np.full(len(y), -1))


def test_probes_go_by_name():
    with pytest.raises(InvalidRequest, match="centroid"):
        others.make_probe("nearest")
    with pytest.raises(InvalidRequest, match="neighbours"):
        others.make_probe("knn", neighbours=3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_equals_scikit_learn(metric):
    X, y, _ = features()
    test_X, *_ = features(seed=1)
    found = others.KNN(k=7, metric=metric).fit(X, y).decision(test_X)
    reference = KNeighborsClassifier(7, metric=metric, algorithm="brute").fit(X, y)
    np.testing.assert_allclose(found, np.asarray(reference.predict_proba(test_X))[:, 1], rtol=1e-12)
    far = others.KNN(k=7, metric="euclidean").fit(X + 1e6, y).decision(test_X + 1e6)
    near = others.KNN(k=7, metric="euclidean").fit(X, y).decision(test_X)
    np.testing.assert_allclose(far, near)  # |a|^2 - 2ab + |b|^2 would lose all digits far from the origin


def test_knn_weights_and_temperature():
    X, y, _ = features()
    test_X, *_ = features(seed=1)
    weight = np.where(y == 1, 2.0, 1.0)
    found = others.KNN(k=5, temperature=0.07).fit(X, y, sample_weight=weight).decision(test_X)
    unit, test_unit = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X, test_X))
    cosine = test_unit @ unit.T
    for i in range(20):
        nearest = np.argsort(-cosine[i])[:5]
        w = weight[nearest] * np.exp(cosine[i, nearest] / 0.07)
        assert found[i] == pytest.approx((w * y[nearest]).sum() / w.sum(), rel=1e-10)
    with pytest.raises(InvalidRequest, match="temperature"):
        others.KNN(metric="euclidean", temperature=0.1).fit(X, y)
    with pytest.raises(InvalidRequest, match="k is 999"):
        others.KNN(k=999).fit(X, y)


def test_centroid_equals_scikit_learn_on_centred_unit_rows():
    X, y, _ = features()
    test_X, *_ = features(seed=1)
    probe = others.NearestCentroid().fit(X, y)
    unit, test_unit = (
        (a - X.mean(axis=0)) / np.linalg.norm(a - X.mean(axis=0), axis=1, keepdims=True) for a in (X, test_X)
    )
    reference = NearestCentroid().fit(unit, y)
    scores = probe.decision(test_X)
    assert ((scores > 0) == reference.predict(test_unit)).all()
    c0, c1 = unit[y == 0].mean(axis=0), unit[y == 1].mean(axis=0)
    distances = [((test_unit - c) ** 2).sum(axis=1) for c in (c0, c1)]
    np.testing.assert_allclose(scores, distances[0] - distances[1], atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (60, 100)])
def test_ridge_equals_refitting_without_each_group(n, d):
    X, y, groups = features(n, d)
    weight = np.where(y == 1, 2.0, 0.7)
    Z = StandardScaler().fit_transform(X)
    probe = others.Ridge(alphas=(1.0, 30.0, 1000.0)).fit(Z, y, sample_weight=weight, groups=groups)
    target = 2.0 * y - 1
    errors = []
    for alpha in probe.alphas:
        total = 0.0
        for kept, held in LeaveOneGroupOut().split(Z, y, groups):
            model = Ridge(alpha=alpha).fit(Z[kept], target[kept], sample_weight=weight[kept])
            total += weight[held] @ (model.predict(Z[held]) - target[held]) ** 2
        errors.append(total / weight.sum())
    np.testing.assert_allclose(probe.group_errors_, errors, rtol=1e-9)
    assert probe.alpha_ == probe.alphas[int(np.argmin(errors))]
    best = Ridge(alpha=probe.alpha_).fit(Z, target, sample_weight=weight)
    np.testing.assert_allclose(probe.decision(Z), best.predict(Z), rtol=1e-9)


def test_ridge_without_groups_leaves_out_rows():
    X, y, _ = features(80, 5)
    alone = others.Ridge().fit(X, y)
    named = others.Ridge().fit(X, y, groups=np.arange(80))
    np.testing.assert_allclose(alone.group_errors_, named.group_errors_, rtol=1e-12)
    with pytest.raises(ProbeError, match="at least two"):
        others.Ridge().fit(X, y, groups=np.ones(80))
    with pytest.raises(InvalidRequest, match="positive"):
        others.Ridge(alphas=(0.0, 1.0)).fit(X, y)


def test_svm_equals_a_pipeline():
    X, y, _ = features()
    scaling = Scaling.fit(X, standardize=True)
    probe = others.LinearSVM(C=0.01).fit(scaling(X), y)
    pipeline = make_pipeline(StandardScaler(), LinearSVC(C=0.01, random_state=0, max_iter=10_000)).fit(X, y)
    np.testing.assert_allclose(probe.decision(scaling(X)), pipeline.decision_function(X), rtol=1e-9)


def test_shots_are_balanced_nested_and_seeded():
    _, y, groups = features()
    drawn = list(others.few_shot_rows(y, shots=(1, 4, 16), repeats=3, groups=groups, seed=7))
    assert [(k, r) for k, r, _ in drawn] == [(k, r) for r in range(3) for k in (1, 4, 16)]
    for k, _, rows in drawn:
        assert len(set(rows.tolist())) == 2 * k
        assert y[rows].sum() == k
    sets = {(k, r): set(rows.tolist()) for k, r, rows in drawn}
    assert all(sets[1, r] < sets[4, r] < sets[16, r] for r in range(3))
    assert sets[16, 0] != sets[16, 1]
    again = others.few_shot_rows(y, shots=(1, 4, 16), repeats=3, groups=groups, seed=7)
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(drawn, again, strict=True))
    other = list(others.few_shot_rows(y, shots=(1, 4, 16), repeats=3, groups=groups, seed=8))
    assert not np.array_equal(drawn[2][2], other[2][2])


def test_shots_come_from_as_many_slides_as_there_are():
    y = np.repeat([0, 1], 60)
    groups = np.tile(np.repeat(np.arange(6), [50, 4, 3, 1, 1, 1]), 2)
    for k, _, rows in others.few_shot_rows(y, shots=(3, 6, 9, 20), repeats=5, groups=groups, seed=0):
        for value in (0, 1):
            sizes = np.bincount(groups[rows[y[rows] == value]], minlength=6)
            assert (sizes > 0).sum() == min(k, 6)
            if k == 9:
                assert sizes[:3].tolist() == [2, 2, 2]
    uneven = [rows for *_, rows in others.few_shot_rows(y, shots=(1,), repeats=400, seed=0)]
    assert np.mean(groups[np.concatenate(uneven)] == 0) == pytest.approx(50 / 60, abs=0.05)


def test_more_shots_than_rows_are_refused():
    with pytest.raises(ProbeError, match="3 shots a class"):
        list(others.few_shot_rows([0, 0, 0, 1, 1], shots=(3,), repeats=1, seed=0))


def test_few_shot_curve_rises_and_is_what_fitting_by_hand_gives():
    X, y, groups = features(600)
    test_X, test_y, _ = features(seed=1)
    curve = others.few_shot_curve(
        others.NearestCentroid,
        X,
        y,
        {"test": (test_X, test_y), "train": (X, y)},
        shots=(1, 8, 64),
        repeats=6,
        groups=groups,
        seed=3,
    )
    assert len(curve) == 3 * 6 * 2 * 2
    mean = curve[(curve.metric == "auroc") & (curve.evaluation == "test")].groupby("shots")["value"].mean()
    assert mean.is_monotonic_increasing
    assert mean[64] > mean[1] + 0.1
    k, repeat, rows = list(others.few_shot_rows(y, shots=(1, 8, 64), repeats=6, groups=groups, seed=3))[4]
    by_hand = others.NearestCentroid().fit(X[rows], y[rows])
    found = curve[(curve.shots == k) & (curve.repeat == repeat) & (curve.evaluation == "test")]
    value = found.set_index("metric")["value"]
    assert value["auroc"] == pytest.approx(metrics.auroc(test_y, by_hand.decision(test_X)))
