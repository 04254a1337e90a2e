"""Thresholds and calibration against scikit-learn, scipy and exhaustive search."""

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import calibration, metrics
from scipy import special, stats
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression


def sample(n=400, m=3, *, seed=0, decimals=9):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(int)
    return y, np.round(3 * (rng.normal(size=(n, m)) + 1.2 * y[:, None]) - 1, decimals)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_best_threshold_equals_exhaustive_search(decimals):
    y, logits = sample(decimals=decimals)
    found = calibration.best_threshold(y, logits)
    for t, z in zip(found, logits.T, strict=True):
        everywhere = [metrics.balanced_accuracy(y, z, threshold=s) for s in np.unique(z)]
        assert metrics.balanced_accuracy(y, z, threshold=t) == pytest.approx(max(everywhere))
        assert not np.isclose(z, t).any() or decimals == 9  # between scores, not on one
    assert calibration.best_threshold(y, logits[:, 1]) == found[1]


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_fixed_sensitivity_is_reached_and_no_more_than_needed(target):
    y, logits = sample()
    t = calibration.best_threshold(y, logits[:, 0], rule="sensitivity", sensitivity=target)
    z = logits[:, 0]
    assert metrics.evaluate(y, z, metrics=["sensitivity"], threshold=t)["sensitivity"] >= target
    higher = z[(z > t) & (y == 1)].min() + 1e-6
    assert metrics.evaluate(y, z, metrics=["sensitivity"], threshold=higher)["sensitivity"] < target


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize("target", [0.0, 0.5, 0.9, 0.95, 1.0])
def test_fixed_specificity_is_reached_and_no_more_than_needed(target, decimals):
    y, logits = sample(decimals=decimals)
    for z in logits.T:
        t = calibration.best_threshold(y, z, rule="specificity", specificity=target)

        def specificity(cut, z=z):
            return metrics.evaluate(y, z, metrics=["specificity"], threshold=cut)["specificity"]

        assert specificity(t) >= target - 1e-12
        lower = z[z < t]
        assert not len(lower) or specificity(lower.max()) < target
    assert calibration.best_threshold([1, 0], [1.0, 2.0], rule="specificity", specificity=0.9) > 2


def test_thresholds_of_odd_cases():
    assert calibration.best_threshold([0, 1], [2.0, 3.0]) == 2.5
    assert calibration.best_threshold([1, 0], [2.0, 3.0]) == 2.0  # the wrong order: all are called
    assert calibration.best_threshold([1, 0], [2.0, 2.0]) == 2.0
    neighbours = [1.0, np.nextafter(1.0, 2)]
    assert calibration.best_threshold([0, 1], neighbours) == neighbours[1]
    assert calibration.best_threshold([0, 0, 0, 1], [0.1, 0.2, 0.1, 0.4], rule="prior") == 0.25
    with pytest.raises(InvalidRequest, match="probabilities"):
        calibration.best_threshold([0, 1], [-1.0, 2.0], rule="prior")
    with pytest.raises(InvalidRequest, match="rule is"):
        calibration.best_threshold([0, 1], [0.0, 1.0], rule="f1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProbeError, match="both classes"):
        calibration.best_threshold([0, 0], [0.0, 1.0])
    with pytest.raises(ProbeError, match="not finite"):
        calibration.best_threshold([0, 1], [0.0, np.inf])


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("smooth", [True, False])
def test_temperature_is_the_minimum_of_the_log_loss(class_weight, smooth):
    y, logits = sample()
    found = calibration.fit_temperature(y, logits, class_weight=class_weight, smooth=smooth)
    n1, n0 = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2)) if smooth else y
    weight = np.where(y == 1, 1 / n1, 1 / n0) if class_weight else np.ones(len(y))
    for t, z in zip(found, logits.T, strict=True):

        def loss(slope, z=z):
            return weight @ (np.logaddexp(0, slope * z) - target * slope * z)

        best: Any = minimize_scalar(loss, bracket=(0.1, 1.0), options={"xtol": 1e-10})
        assert t == pytest.approx(1 / best.x, rel=1e-6)
        p = special.expit(z / t)
        assert abs(weight @ ((p - target) * z)) < 1e-9 * weight.sum() * np.abs(z).max()  # stationary


def test_temperature_recovers_the_true_one():
    rng = np.random.default_rng(3)
    z = rng.normal(size=100_000) * 2
    y = rng.random(len(z)) < special.expit(z / 2.5)
    assert calibration.fit_temperature(y, z) == pytest.approx(2.5, rel=0.03)


def test_temperature_of_odd_cases():
    assert calibration.fit_temperature([0, 1, 1], [1.0, -1.0, -0.5]) == np.inf
    assert 0 < calibration.fit_temperature([0, 1], [-1.0, 1.0]) < np.inf
    with pytest.raises(ProbeError, match="separate"):
        calibration.fit_temperature([0, 1], [-1.0, 1.0], smooth=False)
    y, logits = sample(m=1)
    found = calibration.fit_temperature(y, logits[:, 0])
    for scale in (1e-6, 1e6):
        assert calibration.fit_temperature(y, scale * logits[:, 0]) == pytest.approx(scale * found)


def test_platt_equals_unpenalised_logistic_regression():
    y, logits = sample()
    found = calibration.fit_platt(y, logits, smooth=False)
    balanced = calibration.fit_platt(y, logits[:, 0], smooth=False, class_weight="balanced")
    for j in range(3):
        model = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000).fit(logits[:, [j]], y)
        assert found.scale[j] == pytest.approx(model.coef_[0, 0], rel=1e-5)
        assert found.offset[j] == pytest.approx(np.asarray(model.intercept_)[0], rel=1e-5)
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000, class_weight="balanced")
    model.fit(logits[:, [0]], y)
    expected = (model.coef_[0, 0], np.asarray(model.intercept_)[0])
    assert (balanced.scale, balanced.offset) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        balanced.probability(logits[:, 0]), model.predict_proba(logits[:, [0]])[:, 1], rtol=1e-5
    )
    # the mean probability of a logistic regression with an intercept is the share of positives
    np.testing.assert_allclose(found.probability(logits).mean(axis=0), y.mean(), rtol=1e-9)


def test_platt_smooths_targets_as_platt_did():
    """Platt's targets, as weighted hard labels: each row counts t times as positive, 1 - t as negative."""
    y, logits = sample(m=1)
    n1, n0 = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    twice = np.concatenate([logits, logits])
    labels = np.repeat([1, 0], len(y))
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000)
    model.fit(twice, labels, sample_weight=np.concatenate([target, 1 - target]))
    found = calibration.fit_platt(y, logits[:, 0])
    assert (found.scale, found.offset) == pytest.approx(
        (model.coef_[0, 0], np.asarray(model.intercept_)[0]), rel=1e-5
    )


def test_platt_of_odd_cases():
    separable = calibration.fit_platt([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0])
    assert np.isfinite(separable).all()
    with pytest.raises(ProbeError, match="separate"):
        calibration.fit_platt([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], smooth=False)
    constant = calibration.fit_platt([0, 0, 0, 1], [7.0] * 4, smooth=False)
    np.testing.assert_allclose(constant.probability([7.0]), 0.25)
    y, logits = sample(m=1)
    found = calibration.fit_platt(y, logits[:, 0])
    moved = calibration.fit_platt(y, 1e5 * logits[:, 0] + 3e6)
    np.testing.assert_allclose(
        moved.probability(1e5 * logits[:, 0] + 3e6), found.probability(logits[:, 0]), rtol=1e-6
    )


@pytest.mark.parametrize(("strategy", "metric"), [("width", "ece"), ("mass", "ece_mass")])
def test_reliability_curve_adds_up(strategy, metric):
    y, logits = sample()
    p = special.expit(logits[:, 0])
    curve = calibration.reliability_curve(y, p, strategy=strategy)
    assert curve.count.sum() == len(y)
    assert curve.calibration_error == pytest.approx(metrics.evaluate(y, p, metrics=[metric])[metric])
    filled = curve.count > 0
    for k in np.flatnonzero(filled):
        rows = (p <= curve.edges[k + 1]) & ((p > curve.edges[k]) | (k == 0))
        assert curve.count[k] == rows.sum()
        assert curve.share_positive[k] == pytest.approx(y[rows].mean())
        assert curve.mean_probability[k] == pytest.approx(p[rows].mean())
        wilson = stats.binomtest(int(y[rows].sum()), int(rows.sum())).proportion_ci(method="wilson")
        assert (curve.low[k], curve.high[k]) == pytest.approx((wilson.low, wilson.high))
    assert np.isnan(curve.low[~filled]).all()
    if strategy == "mass":
        assert curve.count.min() >= len(y) // 15 - 1
    with pytest.raises(InvalidRequest, match="in \\[0, 1\\]"):
        calibration.reliability_curve(y, logits[:, 0])


# --- how calibrated the probabilities of a set are


def clustered(seed=0, n_slides=60, rows=12):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_slides), rng.integers(4, 2 * rows, n_slides))
    z = rng.normal(size=(len(codes), 2)) * [1.5, 3.0] + [-1.0, 0.5]
    lean = 0.5 * rng.normal(size=n_slides)[codes]
    y = (rng.random(len(codes)) < special.expit(0.7 * z[:, 0] + 0.3 + lean)).astype(int)
    return y, z, codes


def test_calibration_slope_and_intercept_equal_statsmodels():
    y, z, codes = clustered()
    found = calibration.assess_calibration(y, z, codes)
    for j, column in enumerate(z.T):
        x = sm.add_constant(column)
        slope = sm.Logit(y, x).fit(disp=0)
        offset = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=column).fit()
        assert found.values["slope"][j] == pytest.approx(slope.params[1], rel=1e-7)
        assert found.values["intercept"][j] == pytest.approx(offset.params[0], rel=1e-7)
        assert found.values["observed_expected"][j] == pytest.approx(y.sum() / special.expit(column).sum())
        # the jackknife's error is near the sandwich's over the same clusters
        robust = sm.Logit(y, x).fit(disp=0, cov_type="cluster", cov_kwds={"groups": codes})
        g = codes.max() + 1
        error = np.sqrt((g - 1) ** 2 / g * found.left_out["slope"][:, j].var(ddof=1))
        assert error == pytest.approx(robust.bse[1], rel=0.1)


def test_calibration_without_a_cluster_is_that_of_the_other_rows():
    y, z, codes = clustered()
    found = calibration.assess_calibration(y, z, codes)
    for g in (0, 7, 31):
        rows = codes != g
        others = calibration.assess_calibration(y[rows], z[rows])
        for name in calibration.CALIBRATION_SCALES:
            change = others.values[name] - found.values[name]
            np.testing.assert_allclose(
                found.left_out[name][g] - found.values[name], change, rtol=0.1, atol=1e-4
            )


def test_calibration_of_odd_cases():
    y, z, _ = clustered()
    assert np.isnan(calibration.assess_calibration(np.zeros_like(y), z).values["slope"]).all()
    apart = calibration.assess_calibration(y, 2.0 * y[:, None] - 1)
    assert np.isnan(apart.values["slope"][0])
    assert np.isfinite(apart.values["observed_expected"][0])
    extreme = calibration.assess_calibration(y, 1e4 * (z - z.mean()))
    assert np.isfinite(extreme.values["slope"]).all()
    assert (extreme.values["slope"] < 1e-3).all()


def test_the_floor_of_the_calibration_error_is_that_of_drawn_labels():
    rng = np.random.default_rng(0)
    p = special.expit(2 * rng.normal(size=700) - 2)
    drawn = [float(metrics.evaluate(rng.random(700) < p, p, metrics=["ece"])["ece"]) for _ in range(600)]
    floor = calibration.calibration_floor(rng.random(700) < p, p)
    assert floor.mean == pytest.approx(np.mean(drawn), rel=0.03)
    assert floor.high == pytest.approx(np.quantile(drawn, 0.95), rel=0.05)
    assert floor.p > 0.01
    wrong = calibration.calibration_floor(rng.random(700) < special.expit(special.logit(p) + 1), p)
    assert wrong.p < 0.01
    observed = metrics.evaluate(rng.random(700) < p, p, metrics=["ece"])["ece"]
    assert observed > floor.mean / 3


def test_net_benefit_is_counted_by_hand():
    y, z, codes = clustered()
    p = special.expit(z)
    found = calibration.net_benefit(y, p, codes, at=(0.1, 0.5, 0.8))
    for t in (0.1, 0.5, 0.8):
        for j in range(2):
            counts = metrics.confusion(y, p[:, j], threshold=t)
            expected = counts.tp / len(y) - counts.fp / len(y) * t / (1 - t)
            assert found.values[f"{t:g}"][j] == pytest.approx(expected)
            rows = codes != 5
            counts = metrics.confusion(y[rows], p[rows, j], threshold=t)
            expected = counts.tp / rows.sum() - counts.fp / rows.sum() * t / (1 - t)
            assert found.left_out[f"{t:g}"][5, j] == pytest.approx(expected)
        everyone = y.mean() - (1 - y.mean()) * t / (1 - t)
        assert found.values[f"all {t:g}"] == pytest.approx([everyone] * 2)


def test_predictive_values_are_those_of_a_population():
    """At the sample's own prevalence they are the sample's."""
    y, z, _ = clustered()
    counts = metrics.confusion(y, z[:, 0], threshold=0.0)
    rates = metrics.evaluate(y, z[:, 0], metrics=["sensitivity", "specificity"], threshold=0.0)
    ppv, npv = calibration.predictive_values(rates["sensitivity"], rates["specificity"], y.mean())
    assert ppv == pytest.approx(counts.tp / (counts.tp + counts.fp))
    assert npv == pytest.approx(counts.tn / (counts.tn + counts.fn))
    assert np.isnan(calibration.predictive_values(np.array(0.0), np.array(1.0), 0.2)[0])
