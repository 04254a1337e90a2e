"""Intervals and tests against scipy, statsmodels, brute force, a published example, and simulation."""

from itertools import product

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe import intervals, metrics
from scipy import stats
from statsmodels.stats.multitest import multipletests


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
    with pytest.raises(InvalidRequest, match="2 groups for 3 rows"):
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
    found = intervals.bootstrap(
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
    both = intervals.bootstrap(y, scores, groups=groups, n_resamples=100, seed=1)
    alone = intervals.bootstrap(y, scores[:, 2], groups=groups, n_resamples=100, seed=1)
    other = intervals.bootstrap(y, scores, groups=groups, n_resamples=100, seed=2)
    for name in intervals.DEFAULT_METRICS:
        np.testing.assert_allclose(both[name].draws[:, 2], alone[name].draws[:, 0], rtol=1e-12)
        assert not np.array_equal(both[name].draws, other[name].draws)


def test_blocks_of_resamples_are_those_of_one_call(monkeypatch):
    y, scores, groups = slides()
    names = [*metrics.METRICS]
    whole = intervals.bootstrap(y, scores, groups=groups, metrics=names, n_resamples=101, seed=1)
    monkeypatch.setattr(intervals, "_BLOCK_WEIGHTS", 40 * 7)  # 7 resamples or clusters at once
    cut = intervals.bootstrap(y, scores, groups=groups, metrics=names, n_resamples=101, seed=1)
    for name in names:
        np.testing.assert_allclose(cut[name].draws, whole[name].draws, rtol=1e-12)
        np.testing.assert_allclose(cut[name].low, whole[name].low, rtol=1e-12)
        jackknife = whole[name].jackknife
        assert jackknife is not None
        np.testing.assert_allclose(cut[name].jackknife, jackknife, rtol=1e-12)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_resamples_without_a_class_are_counted_and_left_out():
    y = np.array([1, 1, 0, 0, 0, 0])
    groups = ["a", "a", "b", "c", "d", "e"]  # (4/5)^5 = 33 % of the resamples have no positive
    found = intervals.bootstrap(y, [0.9, 0.3, 0.4, 0.2, 0.1, 0.5], groups=groups, n_resamples=1000, seed=0)
    one = found["auroc"]
    assert one.undefined[0] == np.isnan(one.draws[:, 0]).sum()
    assert 270 < one.undefined[0] < 390
    assert np.isfinite([one.low[0], one.high[0], one.standard_error[0]]).all()
    assert one.method[0] == "percentile"  # no jackknife without the only slide with positives
    other = intervals.bootstrap(
        y, [0.9, 0.3, 0.4, 0.2, 0.1, 0.5], groups=groups, method="jackknife", n_resamples=1000, seed=0
    )["auroc"]
    assert (other.method[0], other.low[0]) == ("percentile", np.nanquantile(one.draws[:, 0], 0.025))
    nothing = intervals.bootstrap([0, 0, 0], [0.1, 0.2, 0.3], groups=None, n_resamples=50, seed=0)["auroc"]
    assert nothing.method[0] == "none"
    assert nothing.undefined[0] == 50
    assert np.isnan([nothing.value[0], nothing.low[0], nothing.high[0]]).all()


def test_the_jackknife_of_a_mean_is_student():
    """With one row a cluster: the standard error of a mean, and the degrees of freedom by the kurtosis."""
    y, *_ = slides()
    scores = np.abs(y - np.where(np.arange(len(y)) % 20, 0.1, 0.9))  # a twentieth is far off: a long tail
    losses = (scores - y) ** 2
    found = intervals.bootstrap(
        y, scores, groups=None, metrics=["brier"], method="jackknife", n_resamples=10, seed=0
    )["brier"]
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

    linear = intervals.bootstrap_function(
        plain, n_rows=len(y), groups=None, method="jackknife", n_resamples=10, seed=0
    )["brier"]
    expected = stats.t.interval(0.95, freedom, mean, error)
    assert (linear.low[0], linear.high[0]) == pytest.approx(expected)


def test_the_jackknife_keeps_to_the_range_of_each_metric():
    y, scores, groups = slides(n_slides=8)
    found = intervals.bootstrap(
        y,
        scores,
        groups=groups,
        metrics=metrics.METRICS,
        threshold=0.7,
        method="jackknife",
        confidence=0.999,
        n_resamples=50,
        seed=0,
    )
    for name, one in found.items():
        least, most = {"fisher": (-1, 1), "logit": (0, 1), "log": (0, np.inf)}[metrics.METRICS[name].scale]
        assert (one.method == "jackknife").all()
        assert ((least < one.low) & (one.low < one.value) & (one.value < one.high) & (one.high < most)).all()
    compared = intervals.compare(found["auroc"], p_value="standard_error")
    left_out = found["auroc"].jackknife
    assert left_out is not None
    difference = left_out[:, 0] - left_out[:, 1]
    assert compared.standard_error[0] == pytest.approx(
        np.sqrt(7 / 8 * ((difference - difference.mean()) ** 2).sum())
    )
    freedom = min(7, 16 / (stats.kurtosis(difference, fisher=False) - 1))
    t = compared.difference[0] / compared.standard_error[0]
    assert compared.p[0] == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    middle = (compared.low[0] + compared.high[0]) / 2
    assert middle == pytest.approx(compared.difference[0])


def test_the_jackknife_of_two_slides_is_very_wide():
    y, scores, groups = slides(n_slides=2, rows=40)
    one = intervals.bootstrap(y, scores, groups=groups, method="jackknife", n_resamples=50, seed=0)["auroc"]
    assert one.degrees_of_freedom.tolist() == [1, 1, 1]  # so that t is 12.7 and not 1.96


def test_a_perfect_model_has_a_point_for_an_interval():
    y, _, groups = slides()
    for method in intervals.METHODS:
        one = intervals.bootstrap(y, y.astype(float), groups=groups, method=method, n_resamples=50, seed=0)
        assert (one["auroc"].low[0], one["auroc"].value[0], one["auroc"].high[0]) == (1, 1, 1)


def test_bad_options_are_refused():
    y, scores, groups = slides()
    with pytest.raises(InvalidRequest, match="one of bca, percentile, jackknife"):
        intervals.bootstrap(y, scores, groups=groups, method="basic", seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        intervals.bootstrap(y, scores, groups=groups, confidence=95, seed=0)
    with pytest.raises(InvalidRequest, match="pairs are columns"):
        intervals.compare(intervals.bootstrap(y, scores, groups=groups, seed=0)["auroc"], pairs=[(0, 3)])


def test_a_function_of_the_weights_is_resampled_like_a_metric():
    y, scores, groups = slides()

    def mean_over_models(weights, codes):
        found = metrics.evaluate(y, scores, metrics=["auroc"], weights=weights, groups=codes)["auroc"]
        return {"mean": found.mean(axis=-1), "auroc": found}

    found = intervals.bootstrap_function(
        mean_over_models, n_rows=len(y), groups=groups, n_resamples=100, seed=4
    )
    direct = intervals.bootstrap(y, scores, groups=groups, n_resamples=100, seed=4)["auroc"]
    np.testing.assert_allclose(found["auroc"].low, direct.low)
    np.testing.assert_allclose(found["mean"].draws[:, 0], direct.draws.mean(axis=1))


def test_holm_equals_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 9, 50):
        p = rng.random(size) ** 3
        np.testing.assert_allclose(
            intervals.holm(p), np.asarray(multipletests(p, method="holm")[1]), rtol=1e-14
        )
    adjusted = intervals.holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]].tolist() == [0.02, 0.04]
    assert np.isnan(adjusted[1])


def test_differences_are_those_of_the_paired_draws():
    y, scores, groups = slides(m=3)
    found = intervals.bootstrap(y, scores, groups=groups, n_resamples=400, seed=3, method="percentile")
    one = found["auroc"]
    compared = intervals.compare(one)
    assert compared.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for k, (i, j) in enumerate(compared.pairs):
        draws = one.draws[:, i] - one.draws[:, j]
        value = one.value[i] - one.value[j]
        assert compared.difference[k] == value
        assert (compared.low[k], compared.high[k]) == pytest.approx(np.quantile(draws, [0.025, 0.975]))
        extreme = sum(abs(d - value) >= abs(value) for d in draws)
        assert compared.p[k] == pytest.approx((1 + extreme) / 401)
    normal = intervals.compare(one, reference=1, p_value="standard_error")
    assert normal.pairs.tolist() == [[0, 1], [2, 1]]
    z = (one.value[0] - one.value[1]) / (one.draws[:, 0] - one.draws[:, 1]).std(ddof=1)
    assert normal.p[0] == pytest.approx(2 * stats.norm.sf(abs(z)))
    np.testing.assert_array_equal(normal.p_holm, intervals.holm(normal.p))


def test_a_model_does_not_differ_from_itself():
    y, scores, groups = slides(m=1)
    twice = np.repeat(scores, 2, axis=1)
    one = intervals.bootstrap(y, twice, groups=groups, n_resamples=100, seed=3)["auroc"]
    swapped = intervals.permutation_test(y, twice, metric="auroc", groups=groups, n_permutations=99, seed=0)
    for found in (
        intervals.compare(one),
        intervals.compare(one, p_value="standard_error"),
        intervals.delong(y, twice).compare(),
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
    found = intervals.delong(*hanley_mcneil())
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
    found = intervals.delong(y, scores, groups=groups if clustered else None)
    np.testing.assert_allclose(found.auroc, auroc, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10)


def test_clustered_delong_knows_that_copies_add_nothing():
    y, scores, _ = slides(n_slides=30, rows=3)
    alone = intervals.delong(y, scores)
    rows = np.repeat(np.arange(len(y)), 4)
    copied = intervals.delong(y[rows], scores[rows], groups=rows)
    np.testing.assert_allclose(copied.covariance, alone.covariance, rtol=1e-12)
    assert copied.clustered
    naive = intervals.delong(y[rows], scores[rows])
    assert (np.diag(naive.covariance) < np.diag(alone.covariance) / 3.9).all()


def test_delong_and_the_bootstrap_agree():
    y, scores, groups = slides(n_slides=150, rows=6)
    by_formula = intervals.delong(y, scores, groups=groups)
    drawn = intervals.bootstrap(y, scores, groups=groups, metrics=["auroc"], n_resamples=2000, seed=0)[
        "auroc"
    ]
    np.testing.assert_allclose(np.sqrt(np.diag(by_formula.covariance)), drawn.standard_error, rtol=0.1)
    formula, resampled = by_formula.compare(), intervals.compare(drawn)
    np.testing.assert_allclose(formula.standard_error, resampled.standard_error, rtol=0.1)
    np.testing.assert_allclose(formula.p, resampled.p, atol=0.06)


def test_delong_needs_two_of_each_class():
    with pytest.raises(ProbeError, match="1 have positives"):
        intervals.delong([1, 0, 0], [0.3, 0.2, 0.1])
    with pytest.raises(ProbeError, match="1 have positives"):
        intervals.delong([1, 1, 0, 0], [0.3, 0.2, 0.1, 0.4], groups=["a", "a", "b", "c"])
    perfect = intervals.delong([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2])
    assert [side[0] for side in perfect.interval()] == [1, 1]


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy", "brier"])
def test_permutation_enumerates_all_swaps_of_few_slides(metric):
    y, scores, groups = slides(n_slides=7, rows=5, m=2)
    codes = intervals.cluster_codes(groups, len(y))
    found = intervals.permutation_test(y, scores, metric=metric, groups=groups, seed=0)
    assert found.p_method == "all 128 swaps of clusters"
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
    found = intervals.permutation_test(y, scores, metric="brier", groups=None, seed=0)
    expected = stats.permutation_test(
        (losses[:, 0], losses[:, 1]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    assert found.p[0] == pytest.approx(expected.pvalue)


def test_random_permutations_do_not_depend_on_the_number_of_pairs():
    y, scores, groups = slides()
    every = intervals.permutation_test(y, scores, metric="auroc", groups=groups, n_permutations=500, seed=9)
    one = intervals.permutation_test(
        y, scores, metric="auroc", groups=groups, n_permutations=500, pairs=[(1, 2)], seed=9
    )
    assert every.p[2] == one.p[0]
    assert every.p_method == "random 500 swaps of clusters"


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
            "bca": intervals.bootstrap(y, scores, groups=groups, **rank)["auroc"],
            "jackknife": intervals.bootstrap(
                y, scores, groups=groups, method="jackknife", **{**rank, "n_resamples": 2}
            )["auroc"],
            "rows": intervals.bootstrap(y, scores[:, 0], groups=None, method="percentile", **rank)["auroc"],
        }
        bounds = {name: (one.low[0], one.high[0]) for name, one in found.items()}
        bounds["percentile"] = tuple(np.quantile(found["bca"].draws[:, 0], [0.025, 0.975]))
        formula = intervals.delong(y, scores, groups=groups)
        bounds["delong"] = tuple(side[0] for side in formula.interval())
        for name, (low, high) in bounds.items():
            inside[name] += low <= truth <= high
        p = {
            "shifted": intervals.compare(found["bca"]),
            "student": intervals.compare(found["jackknife"], p_value="standard_error"),
            "delong": formula.compare(),
            "permutation": intervals.permutation_test(
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
