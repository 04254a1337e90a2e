"""Metrics against scikit-learn, hand-computed cases, and rows that are really repeated."""

from itertools import pairwise

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import metrics
from sklearn import metrics as reference

REFERENCE = {  # name -> (y, scores, sample_weight) -> value, at threshold .5
    "balanced_accuracy": lambda y, s, w: reference.balanced_accuracy_score(y, s >= 0.5, sample_weight=w),
    "auroc": lambda y, s, w: reference.roc_auc_score(y, s, sample_weight=w),
    "average_precision": lambda y, s, w: reference.average_precision_score(y, s, sample_weight=w),
    "f1": lambda y, s, w: reference.f1_score(y, s >= 0.5, sample_weight=w),
    "mcc": lambda y, s, w: reference.matthews_corrcoef(y, s >= 0.5, sample_weight=w),
    "sensitivity": lambda y, s, w: reference.recall_score(y, s >= 0.5, sample_weight=w),
    "specificity": lambda y, s, w: reference.recall_score(y, s >= 0.5, pos_label=0, sample_weight=w),
    "precision": lambda y, s, w: reference.precision_score(y, s >= 0.5, sample_weight=w),
    "brier": lambda y, s, w: reference.brier_score_loss(y, s, sample_weight=w),
    "log_loss": lambda y, s, w: reference.log_loss(y, s, sample_weight=w),
    "balanced_log_loss": lambda y, s, w: reference.log_loss(y, s, sample_weight=balanced(y, w)),
    "ece": lambda y, s, w: calibration_error(y, s, w, np.linspace(0, 1, 16)),
    "ece_mass": lambda y, s, w: calibration_error(y, s, w, np.quantile(s, np.linspace(0, 1, 16))),
}


def balanced(y, w):
    return w * np.where(y == 1, 1 / w[y == 1].sum(), 1 / w[y == 0].sum())


def calibration_error(y, s, w, edges):
    total = 0.0
    for k, (low, high) in enumerate(pairwise(edges)):
        rows = (s <= high) & ((s > low) | (k == 0))
        if w[rows].sum():
            gap = np.average(y[rows], weights=w[rows]) - np.average(s[rows], weights=w[rows])
            total += abs(gap) * w[rows].sum() / w.sum()
    return total


def sample(n=300, m=4, *, seed=0, decimals=2):
    """Labels and probabilities of m models; rounding makes ties within and between the classes."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.25).astype(int)
    logits = rng.normal(size=(n, m)) * np.linspace(0.5, 3, m) + y[:, None] - 0.5
    return y, np.round(1 / (1 + np.exp(-logits)), decimals)


def test_every_metric_has_an_independent_reference():
    assert set(REFERENCE) == set(metrics.METRICS)
    assert all(metrics.METRICS[name].name == name for name in metrics.METRICS)


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_equals_the_reference_for_each_model(name, decimals):
    y, scores = sample(decimals=decimals)
    found = metrics.evaluate(y, scores, metrics=[name])[name]
    one = np.ones(len(y))
    assert found.shape == (4,)
    np.testing.assert_allclose(found, [REFERENCE[name](y, s, one) for s in scores.T], rtol=1e-12)
    assert metrics.evaluate(y, scores[:, 0], metrics=[name])[name] == pytest.approx(found[0], rel=1e-14)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_equals_the_reference_under_weights(name):
    y, scores = sample()
    weights = np.random.default_rng(1).gamma(1.0, size=(5, len(y))) * (np.arange(len(y)) % 7 > 0)
    found = metrics.evaluate(y, scores, metrics=[name], weights=weights)[name]
    expected = [[REFERENCE[name](y, s, w) for s in scores.T] for w in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    one_row = metrics.evaluate(y, scores, metrics=[name], weights=weights[2])[name]
    np.testing.assert_allclose(one_row, found[2], rtol=1e-12)


def test_weights_of_clusters_are_repetitions_of_their_rows():
    y, scores = sample()
    groups = np.random.default_rng(2).integers(0, 30, len(y))
    weights = np.random.default_rng(3).integers(0, 4, (6, 30))
    found = metrics.evaluate(y, scores, weights=weights, groups=groups)
    for b, w in enumerate(weights):
        rows = np.repeat(np.arange(len(y)), w[groups])
        repeated = metrics.evaluate(y[rows], scores[rows])
        for name in metrics.METRICS:
            if name != "ece_mass":  # its bins are those of the sample before it is reweighted
                np.testing.assert_allclose(found[name][b], repeated[name], rtol=1e-12, err_msg=name)


def without_each(y, scores, codes, names, **options):
    """Every metric on the rows that are left, cluster by cluster."""
    found = {name: [] for name in names}
    for g in range(codes.max() + 1):
        rows = codes != g
        for name, value in metrics.evaluate(y[rows], scores[rows], metrics=names, **options).items():
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("clusters", [25, None])
@pytest.mark.parametrize("decimals", [1, 9])
def test_leaving_clusters_out_is_scoring_the_other_rows(clusters, decimals):
    y, scores = sample(n=120, decimals=decimals)
    rng = np.random.default_rng(5)
    codes = rng.permutation(len(y)) if clusters is None else rng.integers(0, clusters, len(y))
    names = [name for name in metrics.METRICS if name != "ece_mass"]  # its bins are those of the whole sample
    found = metrics.leave_one_out(y, scores, metrics=names, groups=codes)
    expected = without_each(y, scores, codes, names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, err_msg=name)
    by_weights = metrics.evaluate(
        y, scores, metrics=["ece_mass"], weights=1.0 - np.eye(codes.max() + 1), groups=codes
    )
    mass = metrics.leave_one_out(y, scores, metrics=["ece_mass"], groups=codes)
    np.testing.assert_allclose(mass["ece_mass"], by_weights["ece_mass"], rtol=1e-11)


def test_leaving_out_the_last_of_a_class_is_undefined():
    y, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.8, 0.1, 0.2])
    names = ["auroc", "average_precision", "balanced_accuracy", "sensitivity", "brier"]
    for groups in (None, np.array([0, 1, 2, 1])):
        found = metrics.leave_one_out(y, scores, metrics=names, groups=groups)
        for name in names[:4]:
            assert np.isnan(found[name][0]).all()
            assert np.isfinite(found[name][1:]).all()
        assert np.isfinite(found["brier"]).all()


def test_many_large_clusters_are_left_out_by_what_their_rows_change(monkeypatch):
    y, scores = sample(n=3000, m=2, decimals=9)
    codes = np.random.default_rng(5).integers(0, 600, len(y))
    names = ["auroc", "average_precision"]
    exact = metrics.leave_one_out(y, scores, metrics=names, groups=codes)
    monkeypatch.setattr(metrics, "_EXACT_CELLS", 0)
    near = metrics.leave_one_out(y, scores, metrics=names, groups=codes)
    for name in names:
        assert not np.array_equal(near[name], exact[name])
        np.testing.assert_allclose(near[name].std(axis=0), exact[name].std(axis=0), rtol=0.01)
        np.testing.assert_allclose(near[name], exact[name], atol=0.03 * float(np.ptp(exact[name])))
    positives_together = np.where(y == 1, 0, 1 + np.arange(len(y)) // 5)
    lost = metrics.leave_one_out(y, scores, metrics=names, groups=positives_together)
    assert np.isnan(lost["auroc"][0]).all()


def test_few_cells_are_counted_in_a_table_with_the_same_sums(monkeypatch):
    y, scores = sample(n=400, m=2, decimals=2)
    codes = np.random.default_rng(5).integers(0, 40, len(y))
    names = ["auroc", "average_precision"]
    one = np.random.default_rng(6).integers(0, 4, 40)

    def both():
        left_out = metrics.leave_one_out(y, scores, metrics=names, groups=codes)
        weighed = metrics.evaluate(y, scores, metrics=names, groups=codes, weights=one)
        return [of[name] for of in (left_out, weighed) for name in names]

    in_a_table = both()
    monkeypatch.setattr(metrics, "_TABLE_CELLS", 0)
    for table, sparse in zip(in_a_table, both(), strict=True):
        np.testing.assert_array_equal(table, sparse)


def test_logits_are_ranked_as_they_are():
    y = np.array([0, 0, 1, 1, 0, 1])
    logits = np.array([36.0, 40.0, 41.0, 42.0, 39.0, 90.0])
    found = metrics.evaluate(y, logits, metrics=["auroc", "brier", "sensitivity"], logits=True)
    assert found["auroc"] == 1
    assert metrics.evaluate(y, 1 / (1 + np.exp(-logits)), metrics=["auroc"])["auroc"] < 1, "ties of expit"
    assert found["brier"] == pytest.approx(0.5)
    assert found["sensitivity"] == 1
    at = metrics.evaluate(y, logits, metrics=["specificity"], logits=True, threshold=39.5)["specificity"]
    assert at == pytest.approx(2 / 3)
    other = metrics.evaluate(y, logits, metrics=["auroc", "sensitivity"], logits=True, order=-logits)
    assert (other["auroc"], other["sensitivity"]) == (0, 1)
    with pytest.raises(InvalidRequest, match="of one shape"):
        metrics.evaluate(y, logits, logits=True, order=np.stack([logits, logits], axis=1))


def test_ranking_does_not_depend_on_the_block_size_to_the_last_bit(monkeypatch):
    y, scores = sample()
    weights = np.random.default_rng(4).integers(0, 4, (50, len(y)))
    whole = metrics.evaluate(y, scores, metrics=["auroc", "average_precision"], weights=weights)
    monkeypatch.setattr(metrics, "_BLOCK_RESAMPLES", 7)
    cut = metrics.evaluate(y, scores, metrics=["auroc", "average_precision"], weights=weights)
    for name in whole:
        assert np.array_equal(whole[name], cut[name])


def test_hand_computed():
    # falling: + (.9), tie of - and + (.7), - (.5), + (.2), - (.1)
    y, s = [1, 0, 1, 0, 1, 0], [0.9, 0.7, 0.7, 0.5, 0.2, 0.1]
    found = metrics.evaluate(y, s)
    assert found["auroc"] == pytest.approx((3 + 2.5 + 1) / 9)
    assert found["average_precision"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(1 / 3)  # a score at the threshold is called positive
    assert found["balanced_accuracy"] == pytest.approx(0.5)
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["mcc"] == pytest.approx(0.0)
    counts = metrics.confusion(y, s)
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (2, 2, 1, 1)
    assert metrics.evaluate([1, 0], [0.9, 0.4], metrics=["ece"])["ece"] == pytest.approx((0.1 + 0.4) / 2)


def test_direction_and_range():
    y, scores = sample(decimals=9)
    best, worst = metrics.evaluate(y, y.astype(float)), metrics.evaluate(y, 1.0 - y)
    some = metrics.evaluate(y, scores[:, 1])
    for name, m in metrics.METRICS.items():
        if m.higher_is_better:
            assert worst[name] < some[name] < best[name] == 1, name
        else:
            assert worst[name] > some[name] > best[name] >= 0, name
            assert best[name] == pytest.approx(0, abs=1e-14)


def test_scores_of_order_see_only_the_order():
    y, scores = sample()
    found = metrics.evaluate(y, scores)
    moved = metrics.evaluate(y, 5 * scores**3 - 7)  # outside [0, 1]: metrics of probabilities are left out
    assert {n for n in found if n not in moved} == {
        n for n, m in metrics.METRICS.items() if m.needs == "probability"
    }
    for name in ("auroc", "average_precision"):
        np.testing.assert_array_equal(found[name], moved[name])
    np.testing.assert_allclose(metrics.auroc(1 - y, -scores), found["auroc"], rtol=1e-13)


def test_each_model_may_have_its_own_threshold():
    y, scores = sample()
    cuts = [0.2, 0.5, 0.31, 0.9]
    found = metrics.balanced_accuracy(y, scores, threshold=cuts)
    each = [metrics.balanced_accuracy(y, s, threshold=t) for s, t in zip(scores.T, cuts, strict=True)]
    np.testing.assert_array_equal(found, each)


def test_a_missing_class_is_nan_and_nothing_else_is():
    scores = np.array([0.2, 0.8, 0.6])
    no_positive = metrics.evaluate([0, 0, 0], scores)
    no_negative = metrics.evaluate([1, 1, 1], scores)
    undefined = {"balanced_accuracy", "auroc", "average_precision", "mcc", "balanced_log_loss"}
    assert {n for n, v in no_positive.items() if np.isnan(v)} == undefined | {"sensitivity"}
    assert {n for n, v in no_negative.items() if np.isnan(v)} == undefined | {"specificity"}
    assert no_positive["f1"] == 0
    assert np.isnan(metrics.evaluate([0, 0], [0.1, 0.2], metrics=["f1"])["f1"])
    nothing_drawn = metrics.evaluate([0, 1], [0.1, 0.7], weights=[[0, 0], [1, 1]])
    assert all(np.isnan(v[0]) and not np.isnan(v[1]) for v in nothing_drawn.values())
    assert metrics.evaluate([0, 1], [0.1, 0.2], metrics=["mcc"])["mcc"] == 0  # all calls the same


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0, 1], [0.1, np.nan]), {}, ProbeError, "row 1"),
        (([0, 2], [0.1, 0.2]), {}, ProbeError, "0 or 1"),
        (([], []), {}, ProbeError, "at least one row"),
        (([0, 1], [0.1]), {}, InvalidRequest, "2 labels"),
        (([0, 1], [0.1, 1.2]), {"metrics": ["brier"]}, InvalidRequest, "probabilities"),
        (([0, 1], [0.1, 0.2]), {"metrics": ["auc"]}, InvalidRequest, "auroc"),
        (([0, 1], [0.1, 0.2]), {"weights": [1, 1, 1]}, InvalidRequest, "one column a cluster"),
        (([0, 1], [0.1, 0.2]), {"weights": [1, -1]}, InvalidRequest, "not negative"),
        (([0, 1], [0.1, 0.2]), {"groups": ["a", "b"]}, InvalidRequest, "integer codes"),
        (([0, 1], [0.1, 0.2]), {"threshold": [0.1, 0.2]}, InvalidRequest, "1 models"),
    ],
)
def test_bad_input_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        metrics.evaluate(*arguments, **options)
