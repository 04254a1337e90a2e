"""Intervals and tests against scipy, statsmodels, brute force, a published example, and simulation."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import comparisons, delong, intervals, metrics
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def known(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert values is not None
    return values


def slides(seed=0, *, n_slides=40, rows=8, shift=1.0, slide_sd=0.7, m=3):
    """Rows of unequal slides that share an offset of the score; y, probabilities (n, m), slide names.

    Of every model AUROC is Phi(shift / sqrt(2 (1 + slide_sd^2))) in the population: labels and offsets
    are independent, and almost all pairs of rows come from two slides."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_slides), rng.integers(1, 2 * rows, n_slides))
    prevalence = rng.beta(1.5, 3.5, n_slides)
    y = (rng.random(len(codes)) < prevalence[codes]).astype(int)
    offset = slide_sd * rng.normal(size=n_slides)[codes]
    logits = shift * y[:, None] + offset[:, None] + rng.normal(size=(len(y), m))
    return y, 1 / (1 + np.exp(-logits)), np.array([f"slide {k}" for k in codes])


def test_clusters_are_numbered_as_they_come_and_a_row_without_group_is_its_own():
    groups = ["b", "", "a", "b", None, float("nan"), ""]
    assert intervals.cluster_codes(groups, 7).tolist() == [0, 1, 2, 0, 3, 4, 5]
    assert intervals.cluster_codes(np.array([7, 3, 7]), 3).tolist() == [0, 1, 0]
    assert intervals.cluster_codes(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(InvalidRequest, match="for 3 rows: one a row"):
        intervals.cluster_codes(["a", "b"], 3)


def test_every_resample_draws_as_many_clusters_as_there_are():
    weights = intervals.cluster_weights(17, n_resamples=100, seed=5)
    assert weights.shape == (100, 17)
    assert (weights.sum(axis=1) == 17).all()
    first = np.random.default_rng(5).integers(0, 17, (100, 17))[0]
    assert weights[0].tolist() == np.bincount(first, minlength=17).tolist()
    with pytest.raises(ProbeError, match="at least two"):
        intervals.cluster_weights(1, seed=0)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("metric", ["auroc", "balanced_log_loss"])
def test_equals_scipy_bootstrap_over_slides(method, metric):
    y, scores, groups = slides()
    found = intervals.estimate(
        y, scores, groups=groups, metrics=[metric], method=method, n_resamples=300, confidence=0.9, seed=11
    )
    codes = intervals.cluster_codes(groups, len(y))
    rows = [np.flatnonzero(codes == k) for k in range(codes.max() + 1)]

    def statistic(drawn):
        chosen = np.concatenate([rows[k] for k in drawn])
        return metrics.evaluate(y[chosen], scores[chosen, 1], metrics=[metric])[metric]

    expected = stats.bootstrap(
        (np.arange(len(rows)),),
        statistic,
        vectorized=False,
        n_resamples=300,
        confidence_level=0.9,
        method="BCa" if method == "bca" else "percentile",
        rng=np.random.default_rng(11),
    )
    one = found[metric]
    assert one.low[1] == pytest.approx(expected.confidence_interval.low, rel=1e-9)
    assert one.high[1] == pytest.approx(expected.confidence_interval.high, rel=1e-9)
    assert one.standard_error[1] == pytest.approx(expected.standard_error, rel=1e-9)
    assert one.method.tolist() == [method] * 3
    assert found.n_clusters == 40
    assert one.undefined.sum() == 0


def test_models_share_the_resamples_and_the_seed_decides():
    y, scores, groups = slides()
    options = {"groups": groups, "n_resamples": 100, "method": "bca"}
    both = intervals.estimate(y, scores, seed=1, **options)
    alone = intervals.estimate(y, scores[:, 2], seed=1, **options)
    other = intervals.estimate(y, scores, seed=2, **options)
    for name in intervals.DEFAULT_METRICS:
        draws = known(both[name].draws)
        np.testing.assert_allclose(draws[:, 2], known(alone[name].draws)[:, 0], rtol=1e-12)
        assert not np.array_equal(draws, known(other[name].draws))


def test_blocks_of_resamples_are_those_of_one_call(monkeypatch):
    y, scores, groups = slides()
    names = [*metrics.METRICS]
    options = {"groups": groups, "metrics": names, "n_resamples": 101, "method": "bca", "seed": 1}
    whole = intervals.estimate(y, scores, **options)
    monkeypatch.setattr(intervals, "_BLOCK_WEIGHTS", 40 * 7)  # 7 resamples or clusters at once
    cut = intervals.estimate(y, scores, **options)
    for name in names:
        np.testing.assert_allclose(known(cut[name].draws), known(whole[name].draws), rtol=1e-12)
        np.testing.assert_allclose(cut[name].low, whole[name].low, rtol=1e-12)


def test_the_jackknife_draws_nothing_and_is_the_same_by_weights():
    """Leaving out in closed form, or by G x G weights as for any function of the weights."""
    y, scores, groups = slides(n_slides=15)
    names = [*metrics.METRICS]
    found = intervals.estimate(y, scores, groups=groups, metrics=names)
    assert found.n_resamples == 0
    by_weights = intervals.estimate_function(
        lambda weights, codes: metrics.evaluate(y, scores, metrics=names, weights=weights, groups=codes),
        n_rows=len(y),
        groups=groups,
    )
    for name in names:
        assert found[name].draws is None
        left_out = known(found[name].left_out)
        np.testing.assert_allclose(left_out, known(by_weights[name].left_out), rtol=1e-10)
        np.testing.assert_allclose(
            found[name].standard_error, by_weights[name].standard_error, rtol=1e-8, atol=1e-14
        )
    rows = intervals.estimate(y, scores, groups=None, metrics=names)
    for name in names:
        expected = found[name].standard_error ** 2 / rows[name].standard_error ** 2
        np.testing.assert_allclose(found[name].design_effect, expected, rtol=1e-9)
        np.testing.assert_allclose(rows[name].design_effect, 1, rtol=1e-9)


@pytest.mark.parametrize("method", intervals.METHODS)
def test_a_class_in_one_slide_has_no_interval_and_says_why(method):
    rng = np.random.default_rng(0)
    y = np.r_[np.ones(12, int), np.zeros(200, int)]
    groups = np.r_[np.zeros(12, int), rng.integers(0, 21, 200)]
    scores = np.stack([y + rng.normal(size=len(y)), y + rng.normal(size=len(y))], axis=1)
    names = ["auroc", "balanced_accuracy", "sensitivity", "average_precision", "f1"]
    found = intervals.estimate(
        y, scores, groups=groups, metrics=[*names, "specificity"], method=method, n_resamples=200
    )
    for name in names[:4]:
        one = found[name]
        assert np.isfinite(one.value).all()
        assert np.isnan([one.low, one.high]).all()
        assert set(one.method) == {"none"}
        assert "one group" in one.reason[0] or "undefined in" in one.reason[0]
    if method == "jackknife":
        assert found["auroc"].reason[0] == "all positive rows are in one group"
        assert np.isfinite(found["specificity"].low).all(), "negatives are in all slides"
    compared = comparisons.compare_paired(y, scores, groups=groups, method=method, n_resamples=200)
    for one in compared.values():
        assert np.isnan([one.low[0], one.high[0], one.p[0]]).all()
        assert one.reason[0]


def test_no_interval_without_a_value_or_with_one_group():
    nothing = intervals.estimate([0, 0, 0], [0.1, 0.2, 0.3], groups=None)["auroc"]
    assert nothing.reason[0] == "the value is undefined: a class is missing"
    assert np.isnan([nothing.value[0], nothing.low[0], nothing.high[0]]).all()
    for method in intervals.METHODS:
        one = intervals.estimate([0, 1, 1], [0.1, 0.2, 0.3], groups=["a"] * 3, method=method)["auroc"]
        assert one.value[0] == 1
        assert one.reason[0] == "all rows are in one group"


def test_resamples_without_a_class_are_counted_and_left_out():
    y = np.r_[np.ones(5, int), np.zeros(25, int)]
    scores = np.random.default_rng(0).normal(size=30) + y
    found = intervals.estimate(
        y, scores, groups=None, metrics=["auroc"], n_resamples=4000, method="bca", seed=0
    )["auroc"]
    share = (25 / 30) ** 30  # .4 %: below UNDEFINED_DRAWS
    assert found.undefined[0] == np.isnan(known(found.draws)[:, 0]).sum()
    assert 0 < found.undefined[0] / 4000 < 3 * share
    assert np.isfinite([found.low[0], found.high[0], found.standard_error[0]]).all()


def test_the_jackknife_of_a_mean_is_student():
    """With one row a cluster: the standard error of a mean, and the degrees of freedom by the kurtosis."""
    y, *_ = slides()
    scores = np.abs(y - np.where(np.arange(len(y)) % 20, 0.1, 0.9))  # a twentieth is far off: a long tail
    losses = (scores - y) ** 2
    found = intervals.estimate(y, scores, groups=None, metrics=["brier"])["brier"]
    error = stats.sem(losses)
    freedom = 2 * len(y) / (stats.kurtosis(losses, fisher=False) - 1)
    assert freedom < len(y) - 1
    assert found.method[0] == "jackknife"
    assert found.standard_error[0] == pytest.approx(error, rel=1e-9)
    assert found.degrees_of_freedom[0] == pytest.approx(freedom, rel=1e-9)
    mean = losses.mean()
    half = stats.t.ppf(0.975, freedom) * error / (mean * (1 - mean))
    for side, bound in ((-1, found.low[0]), (1, found.high[0])):
        assert np.log(bound / (1 - bound)) == pytest.approx(np.log(mean / (1 - mean)) + side * half)

    def plain(weights, codes):
        return {
            "brier": metrics.evaluate(y, scores, metrics=["brier"], weights=weights, groups=codes)["brier"]
        }

    linear = intervals.estimate_function(plain, n_rows=len(y), groups=None)["brier"]
    expected = stats.t.interval(0.95, freedom, mean, error)
    assert (linear.low[0], linear.high[0]) == pytest.approx(expected)


def test_the_jackknife_keeps_to_the_range_of_each_metric():
    y, scores, groups = slides(n_slides=8)
    found = intervals.estimate(
        y, scores, groups=groups, metrics=metrics.METRICS, threshold=0.7, confidence=0.99
    )
    special = {"sensitivity": "korn-graubard", "specificity": "korn-graubard", "balanced_accuracy": "mover"}
    for name, one in found.items():
        least, most = {"fisher": (-1, 1), "logit": (0, 1), "log": (0, np.inf)}[metrics.METRICS[name].scale]
        assert set(one.method) == {special.get(name, "jackknife")}
        assert (
            (least <= one.low) & (one.low < one.value) & (one.value < one.high) & (one.high <= most)
        ).all()
        assert (one.reason == "").all()
    compared = comparisons.compare(found["auroc"])
    left_out = known(found["auroc"].left_out)
    difference = left_out[:, 0] - left_out[:, 1]
    assert compared.standard_error[0] == pytest.approx(
        np.sqrt(7 / 8 * ((difference - difference.mean()) ** 2).sum())
    )
    freedom = compared.degrees_of_freedom[0]
    assert 1 <= freedom <= min(7, 16 / (stats.kurtosis(difference, fisher=False) - 1)) + 1e-9
    t = compared.difference[0] / compared.standard_error[0]
    assert compared.p[0] == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = stats.t.ppf(0.995, freedom) * compared.standard_error[0]
    assert compared.low[0] == pytest.approx(compared.difference[0] - half)
    assert compared.high[0] == pytest.approx(compared.difference[0] + half)


def test_the_jackknife_of_two_slides_is_very_wide():
    y, scores, groups = slides(n_slides=2, rows=40)
    one = intervals.estimate(y, scores, groups=groups)["auroc"]
    assert one.degrees_of_freedom.tolist() == [1, 1, 1]  # so that t is 12.7 and not 1.96


def test_an_assumed_design_effect_widens_every_interval():
    y, scores, groups = slides()
    names = [*metrics.METRICS]
    plain = intervals.estimate(y, scores, groups=groups, metrics=names)
    wider = intervals.estimate(y, scores, groups=groups, metrics=names, inflation=2)
    for name in names:
        np.testing.assert_allclose(wider[name].standard_error, np.sqrt(2) * plain[name].standard_error)
        assert (wider[name].high - wider[name].low > 1.2 * (plain[name].high - plain[name].low)).all()
    with pytest.raises(InvalidRequest, match="inflation"):
        intervals.estimate(y, scores, groups=groups, inflation=0.5)


# --- near 0 and 1, where a standard error says nothing


def test_korn_graubard_equals_clopper_pearson_where_rows_are_independent():
    """statsmodels' exact interval; and against a design of equal copies, whose effective number is the
    originals'."""
    rng = np.random.default_rng(0)
    for hits in (1, 7, 30, 39):
        called = np.r_[np.ones(hits), np.zeros(40 - hits)]
        y, scores = np.r_[np.ones(40, int), np.zeros(5, int)], np.r_[called, rng.random(5)]
        one = intervals.estimate(y, scores, groups=None, metrics=["sensitivity"])["sensitivity"]
        expected = proportion_confint(hits, 40, method="beta")
        # n - 1 in the jackknife's variance: an effective 39 rows of 40
        assert (one.low[0], one.high[0]) == pytest.approx(expected, abs=0.003)
        assert one.low[0] <= expected[0] + 1e-12
        rows = np.repeat(np.arange(45), 6)
        copied = intervals.estimate(y[rows], scores[rows], groups=rows, metrics=["sensitivity"])[
            "sensitivity"
        ]
        assert (copied.low[0], copied.high[0]) == pytest.approx((one.low[0], one.high[0]), abs=0.01)
        assert copied.high[0] - copied.low[0] > one.high[0] - one.low[0]  # 39 degrees of freedom, not 239
        assert copied.design_effect[0] == pytest.approx(6, rel=0.03)


def test_a_perfect_model_has_honest_intervals():
    y, _, groups = slides(n_slides=25)
    codes = intervals.cluster_codes(groups, len(y))
    names = ["auroc", "balanced_accuracy", "sensitivity", "specificity", "average_precision", "f1", "mcc"]
    found = intervals.estimate(y, y.astype(float), groups=groups, metrics=names)
    counts = np.bincount(codes[y == 1])
    effective = counts.sum() ** 2 / (counts**2).sum()
    sensitivity = found["sensitivity"]
    assert sensitivity.low[0] == pytest.approx(0.025 ** (1 / effective))  # Clopper-Pearson of all of n
    assert sensitivity.high[0] == 1
    assert sensitivity.method[0] == "korn-graubard"
    for name in names[:4]:
        assert 0 < found[name].low[0] < 0.95
        assert found[name].high[0] == 1
        assert np.isnan(found[name].standard_error[0])
    both = np.hypot(1 - sensitivity.low[0], 1 - found["specificity"].low[0]) / 2
    assert found["balanced_accuracy"].low[0] == pytest.approx(1 - both)
    for name in names[4:]:
        assert np.isnan([found[name].low[0], found[name].high[0]]).all()
        assert found[name].reason[0] == intervals.STILL
    wrong = intervals.estimate(y, 1.0 - y, groups=groups, metrics=names)["auroc"]
    assert (wrong.low[0], wrong.high[0]) == (0, pytest.approx(1 - found["auroc"].low[0]))
    for method in ("bca", "percentile"):
        one = intervals.estimate(y, y.astype(float), groups=groups, method=method, n_resamples=50)["auroc"]
        assert one.reason[0] == intervals.STILL


def test_four_rows_in_two_groups():
    y, groups = [1, 0, 1, 0], ["a", "a", "b", "b"]
    one = intervals.estimate(y, [0.9, 0.1, 0.8, 0.2], groups=groups, metrics=["auroc", "balanced_accuracy"])
    assert one["auroc"].low[0] == pytest.approx(0.025)  # one pair of two slides
    assert one["auroc"].method[0] == "exact"
    assert one["balanced_accuracy"].low[0] < 0.5
    scores = np.stack([[0.9, 0.1, 0.8, 0.2], [0.5] * 4], axis=1)
    for found in comparisons.compare_paired(y, scores, groups=groups).values():
        assert found.difference[0] == 0.5
        assert found.p[0] == 0.5, "2 of the 4 swaps"
        assert np.isnan(found.low[0])
        assert found.reason[0] == intervals.STILL


def test_disjoint_pairs_of_clusters_are_counted():
    """By trying all ways to pair up to 7 clusters, each with one that has the other class."""

    def most(kinds):
        if len(kinds) < 2:
            return 0
        first, *rest = kinds
        found = [most(rest)]
        for i, other in enumerate(rest):
            if {*first, *other} == {0, 1}:
                found.append(1 + most(rest[:i] + rest[i + 1 :]))
        return max(found)

    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(40):
        kinds = [((0,), (1,), (0, 1))[k] for k in rng.integers(0, 3, rng.integers(2, 8))]
        y = np.concatenate(kinds)
        codes = np.repeat(np.arange(len(kinds)), [len(k) for k in kinds])
        if len(set(y)) == 2:
            assert intervals.Clusters.of(y.astype(bool), codes).pairs == most(kinds)
            checked += 1
    assert checked > 20


def test_bad_options_are_refused():
    y, scores, groups = slides()
    with pytest.raises(InvalidRequest, match="one of bca, percentile, jackknife"):
        intervals.estimate(y, scores, groups=groups, method="basic", seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        intervals.estimate(y, scores, groups=groups, confidence=95, seed=0)
    with pytest.raises(InvalidRequest, match="pairs are columns"):
        comparisons.compare(intervals.estimate(y, scores, groups=groups, seed=0)["auroc"], pairs=[(0, 3)])


def test_a_function_of_the_weights_is_resampled_like_a_metric():
    y, scores, groups = slides()

    def mean_over_models(weights, codes):
        found = metrics.evaluate(y, scores, metrics=["auroc"], weights=weights, groups=codes)["auroc"]
        return {"mean": found.mean(axis=-1), "auroc": found}

    found = intervals.estimate_function(
        mean_over_models, n_rows=len(y), groups=groups, method="percentile", n_resamples=100, seed=4
    )
    direct = intervals.estimate(y, scores, groups=groups, method="percentile", n_resamples=100, seed=4)[
        "auroc"
    ]
    np.testing.assert_allclose(found["auroc"].low, direct.low)
    np.testing.assert_allclose(known(found["mean"].draws)[:, 0], known(direct.draws).mean(axis=1))


def test_holm_equals_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 9, 50):
        p = rng.random(size) ** 3
        np.testing.assert_allclose(
            comparisons.holm(p), np.asarray(multipletests(p, method="holm")[1]), rtol=1e-14
        )
    adjusted = comparisons.holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]].tolist() == [0.02, 0.04]
    assert np.isnan(adjusted[1])


def test_differences_are_those_of_the_paired_draws():
    y, scores, groups = slides(m=3)
    found = intervals.estimate(y, scores, groups=groups, n_resamples=400, seed=3, method="percentile")
    one = found["auroc"]
    compared = comparisons.compare(one)
    assert compared.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for k, (i, j) in enumerate(compared.pairs):
        draws = known(one.draws)[:, i] - known(one.draws)[:, j]
        value = one.value[i] - one.value[j]
        assert compared.difference[k] == value
        assert (compared.low[k], compared.high[k]) == pytest.approx(np.quantile(draws, [0.025, 0.975]))
        extreme = sum(abs(d - value) >= abs(value) for d in draws)
        assert compared.p[k] == pytest.approx((1 + extreme) / 401)
    against = comparisons.compare_paired(
        y, scores, groups=groups, metrics=["auroc"], reference=1, n_resamples=400, seed=3, method="percentile"
    )["auroc"]
    assert against.pairs.tolist() == [[0, 1], [2, 1]]
    assert against.p[0] == compared.p[0]
    np.testing.assert_array_equal(against.p_holm, comparisons.holm(against.p))


def test_a_model_does_not_differ_from_itself():
    y, scores, groups = slides(m=1)
    twice = np.repeat(scores, 2, axis=1)
    drawn = intervals.estimate(y, twice, groups=groups, n_resamples=100, seed=3, method="bca")["auroc"]
    swapped = comparisons.permutation_test(y, twice, metric="auroc", groups=groups, n_permutations=99, seed=0)
    for found in (
        comparisons.compare(drawn),
        comparisons.compare_paired(y, twice, groups=groups)["auroc"],
        delong.delong(y, twice).compare(),
        swapped,
    ):
        assert found.difference[0] == 0
        assert found.p[0] == 1


def hanley_mcneil():
    """CT ratings 1-5 of 58 normal and 51 abnormal patients (Hanley & McNeil, Radiology 1982, table I)."""
    ratings = np.tile(np.arange(1, 6), 2)
    counts = [33, 6, 6, 11, 2, 3, 2, 2, 11, 33]
    return np.repeat([0] * 5 + [1] * 5, counts), np.repeat(ratings, counts)


def test_delong_on_a_published_example():
    """Stata's manual ([R] roctab, on these data): area .8932, DeLong's error .0307, [.83295, .95339]."""
    found = delong.delong(*hanley_mcneil())
    assert found.auroc[0] == pytest.approx(0.8932, abs=5e-5)
    assert np.sqrt(found.covariance[0, 0]) == pytest.approx(0.0307, abs=5e-5)
    low, high = found.interval(scale="linear")
    assert (low[0], high[0]) == pytest.approx((0.83295, 0.95339), abs=5e-6)
    low, high = found.interval()
    assert 0.8 < low[0] < 0.8932 < high[0] < 0.95339  # the logit scale leans towards one half


def structural_components(y, scores, codes):
    """DeLong 1988 (eq. 3-6) and Obuchowski 1997 (eq. 3-5), pair by pair."""
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)

    def kernel(a, b):
        return 1.0 if a > b else 0.5 if a == b else 0.0

    m = scores.shape[1]
    v10 = np.array(
        [
            [np.mean([kernel(scores[i, r], scores[j, r]) for j in negatives]) for r in range(m)]
            for i in positives
        ]
    )
    v01 = np.array(
        [
            [np.mean([kernel(scores[i, r], scores[j, r]) for i in positives]) for r in range(m)]
            for j in negatives
        ]
    )
    auroc = v10.mean(axis=0)
    clusters = np.unique(codes)
    x = np.array([(v10[codes[positives] == c] - auroc).sum(axis=0) for c in clusters])
    z = np.array([(v01[codes[negatives] == c] - auroc).sum(axis=0) for c in clusters])
    i10 = len(np.unique(codes[positives]))
    i01 = len(np.unique(codes[negatives]))
    n1, n0, g = len(positives), len(negatives), len(clusters)
    s10 = i10 / ((i10 - 1) * n1) * x.T @ x
    s01 = i01 / ((i01 - 1) * n0) * z.T @ z
    s11 = g / (g - 1) * x.T @ z
    return auroc, s10 / n1 + s01 / n0 + (s11 + s11.T) / (n1 * n0)


@pytest.mark.parametrize("clustered", [False, True])
def test_delong_equals_its_definition(clustered):
    y, scores, groups = slides(n_slides=12, rows=4)
    scores = np.round(scores, 1)  # ties
    codes = intervals.cluster_codes(groups if clustered else None, len(y))
    auroc, covariance = structural_components(y, scores, codes)
    found = delong.delong(y, scores, groups=groups if clustered else None)
    np.testing.assert_allclose(found.auroc, auroc, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10)


def test_clustered_delong_knows_that_copies_add_nothing():
    y, scores, _ = slides(n_slides=30, rows=3)
    alone = delong.delong(y, scores)
    rows = np.repeat(np.arange(len(y)), 4)
    copied = delong.delong(y[rows], scores[rows], groups=rows)
    np.testing.assert_allclose(copied.covariance, alone.covariance, rtol=1e-12)
    assert copied.clustered
    naive = delong.delong(y[rows], scores[rows])
    assert (np.diag(naive.covariance) < np.diag(alone.covariance) / 3.9).all()


def test_delong_and_the_bootstrap_agree():
    y, scores, groups = slides(n_slides=150, rows=6)
    by_formula = delong.delong(y, scores, groups=groups)
    drawn = intervals.estimate(
        y, scores, groups=groups, metrics=["auroc"], n_resamples=2000, method="bca", seed=0
    )["auroc"]
    np.testing.assert_allclose(np.sqrt(np.diag(by_formula.covariance)), drawn.standard_error, rtol=0.1)
    formula, resampled = by_formula.compare(), comparisons.compare(drawn)
    np.testing.assert_allclose(formula.standard_error, resampled.standard_error, rtol=0.1)
    np.testing.assert_allclose(formula.p, resampled.p, atol=0.06)


def test_delong_has_no_interval_where_no_row_changes_the_difference():
    """Neither for a model and itself, nor for two whose placement values are all alike."""
    y, scores, _ = slides(m=1)
    perfect, reversed_ = y + 0.0, 1.0 - y
    found = delong.delong(y, np.column_stack([scores, scores, perfect, reversed_])).compare(
        pairs=[(0, 1), (2, 3), (2, 0)]
    )
    assert found.difference[:2].tolist() == [0, 1]
    for name in ("standard_error", "low", "high"):
        assert np.isnan(getattr(found, name)).tolist() == [True, True, False]
    assert found.reason.tolist() == [intervals.STILL, intervals.STILL, ""]
    assert found.p[0] == 1
    assert np.isnan(found.p[1])
    assert 0 < found.p[2] < 1e-3
    np.testing.assert_allclose(found.p_holm[[0, 2]], [1, 2 * found.p[2]])


def test_delong_needs_two_of_each_class():
    with pytest.raises(ProbeError, match="1 have positives"):
        delong.delong([1, 0, 0], [0.3, 0.2, 0.1])
    with pytest.raises(ProbeError, match="1 have positives"):
        delong.delong([1, 1, 0, 0], [0.3, 0.2, 0.1, 0.4], groups=["a", "a", "b", "c"])
    perfect = delong.delong([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2])
    assert np.isnan([side[0] for side in perfect.interval()]).all(), "no width is no answer"


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy", "brier"])
def test_permutation_enumerates_all_swaps_of_few_slides(metric):
    y, scores, groups = slides(n_slides=7, rows=5, m=2)
    codes = intervals.cluster_codes(groups, len(y))
    found = comparisons.permutation_test(y, scores, metric=metric, groups=groups, seed=0)
    assert found.p_method[0] == "permutation, all 128 swaps of groups"
    exchanged = {
        "auroc": np.apply_along_axis(stats.rankdata, 0, scores),
        "balanced_accuracy": (scores >= 0.5).astype(float),
        "brier": scores,
    }[metric]
    null = []
    for swap in product([False, True], repeat=7):
        flip = np.array(swap)[codes]
        a, b = (np.where(flip, exchanged[:, i], exchanged[:, 1 - i]) for i in (1, 0))
        null.append(np.subtract(*(metrics.evaluate(y, s, metrics=[metric])[metric] for s in (a, b))))
    observed = found.difference[0]
    assert found.p[0] == pytest.approx(np.mean(np.abs(null) >= abs(observed) - 1e-12))
    assert found.standard_error[0] == pytest.approx(np.std(null))


def test_permutation_of_a_mean_is_the_sign_flip_test():
    """With one slide a row and the Brier score, the statistic is a mean of paired differences."""
    y, scores, _ = slides(n_slides=5, rows=3, m=2)
    rows = slice(0, 12)
    y, scores = y[rows], scores[rows]
    losses = (scores - y[:, None]) ** 2
    found = comparisons.permutation_test(y, scores, metric="brier", groups=None, seed=0)
    expected = stats.permutation_test(
        (losses[:, 0], losses[:, 1]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    assert found.p[0] == pytest.approx(expected.pvalue)


def test_random_permutations_do_not_depend_on_the_number_of_pairs():
    y, scores, groups = slides()
    every = comparisons.permutation_test(y, scores, metric="auroc", groups=groups, n_permutations=500, seed=9)
    one = comparisons.permutation_test(
        y, scores, metric="auroc", groups=groups, n_permutations=500, pairs=[(1, 2)], seed=9
    )
    assert every.p[2] == one.p[0]
    assert every.p_method[0] == "permutation, random 500 swaps of groups"


def test_the_comparison_is_by_permutation_where_few_slides_have_a_class():
    y, scores, groups = slides(n_slides=8, m=3)
    found = comparisons.compare_paired(y, scores, groups=groups, reference=0, seed=5)["auroc"]
    swapped = comparisons.permutation_test(y, scores, metric="auroc", groups=groups, reference=0, seed=5)
    np.testing.assert_array_equal(found.p, swapped.p)
    assert found.p_method.tolist() == swapped.p_method.tolist()
    assert np.isfinite([found.low, found.high, found.standard_error]).all()
    many, others, names = slides(m=3)
    by_t = comparisons.compare_paired(many, others, groups=names)["auroc"]
    assert set(by_t.p_method) == {"jackknife over groups, Student's t"}
    t = by_t.difference / by_t.standard_error
    np.testing.assert_allclose(by_t.p, 2 * stats.t.sf(np.abs(t), by_t.degrees_of_freedom))


def test_comparisons_rank_logits_as_they_are():
    """Above 36.7 expit makes ties of all logits: the difference would be zero."""
    y, _, groups = slides(m=2)
    rng = np.random.default_rng(0)
    logits = 60 + 3 * y[:, None] * [1, 0] + rng.normal(size=(len(y), 2))
    found = comparisons.compare_paired(y, logits, groups=groups, logits=True)["auroc"]
    assert found.difference[0] > 0.3
    assert found.p[0] < 1e-6
    again = comparisons.compare_paired(y, 0 * logits, groups=groups, logits=True, order=logits)["auroc"]
    np.testing.assert_array_equal(again.p, found.p)


@pytest.mark.slow
def test_coverage_and_error_rates_by_simulation():
    """120 data sets of 40 slides: 95 % intervals over slides hold what they say, those over rows do not.

    A proportion of .95 over 120 has a standard error of .02; stats_coverage.py has more and larger ones."""
    truth = stats.norm.cdf(1 / np.sqrt(2 * (1 + 1.2**2)))
    inside: dict[str, int] = dict.fromkeys(("jackknife", "bca", "percentile", "delong", "rows"), 0)
    rejected: dict[str, int] = dict.fromkeys(("shifted", "student", "delong", "permutation"), 0)
    n = 120
    for seed in range(n):
        y, scores, groups = slides(seed, rows=16, slide_sd=1.2, m=2)
        rank = {"metrics": ["auroc"], "n_resamples": 400, "seed": seed}
        found = {
            "bca": intervals.estimate(y, scores, groups=groups, method="bca", **rank)["auroc"],
            "jackknife": intervals.estimate(y, scores, groups=groups, metrics=["auroc"])["auroc"],
            "rows": intervals.estimate(y, scores[:, 0], groups=None, metrics=["auroc"])["auroc"],
        }
        bounds = {name: (one.low[0], one.high[0]) for name, one in found.items()}
        bounds["percentile"] = tuple(np.quantile(known(found["bca"].draws)[:, 0], [0.025, 0.975]))
        formula = delong.delong(y, scores, groups=groups)
        bounds["delong"] = tuple(side[0] for side in formula.interval())
        for name, (low, high) in bounds.items():
            inside[name] += low <= truth <= high
        p = {
            "shifted": comparisons.compare(found["bca"]),
            "student": comparisons.compare(found["jackknife"]),
            "delong": formula.compare(),
            "permutation": comparisons.permutation_test(
                y, scores, metric="auroc", groups=groups, n_permutations=199, seed=seed
            ),
        }
        for name, one in p.items():
            rejected[name] += one.p[0] < 0.05
    assert 0.92 <= inside["jackknife"] / n <= 0.985, inside
    for name in ("bca", "percentile", "delong"):  # a little narrow with 40 slides
        assert 0.88 <= inside[name] / n <= 0.985, inside
    assert inside["rows"] / n < 0.8, inside
    for name, count in rejected.items():
        assert 0.01 <= count / n <= 0.10, (name, rejected)


def test_near_the_ceiling_and_with_few_positive_slides_by_simulation():
    """80 data sets of 30 slides each: a true sensitivity of .987, and positives in few slides."""
    for n_slides, prevalence, shift, least in ((30, 0.15, 5.4, 0.93), (30, 0.05, 1.2, 0.9)):
        spread = np.hypot(1, 0.7)
        truth = {
            "sensitivity": stats.norm.cdf(shift / 2 / spread),
            "balanced_accuracy": stats.norm.cdf(shift / 2 / spread),
            "auroc": stats.norm.cdf(shift / spread / np.sqrt(2)),
        }
        inside = dict.fromkeys(truth, 0)
        n = 80
        for seed in range(n):
            rng = np.random.default_rng([seed, n_slides])
            codes = np.repeat(np.arange(n_slides), rng.geometric(0.1, n_slides))
            y = (
                rng.random(len(codes)) < rng.beta(3 * prevalence, 3 - 3 * prevalence, n_slides)[codes]
            ).astype(int)
            scores = shift * (y - 0.5) + 0.7 * rng.normal(size=n_slides)[codes] + rng.normal(size=len(y))
            found = intervals.estimate(y, scores, groups=codes, metrics=truth, threshold=0.0)
            for name, value in truth.items():
                one = found[name]
                # no interval is no wrong one
                inside[name] += bool(np.isnan(one.low[0]) or one.low[0] <= value <= one.high[0])
        assert min(inside.values()) / n >= least, inside
