"""Identities that hold for every sample, and the ends of the range: one row, one class, ties, weights of
zero, values that are no numbers. Each expected value is computed by hand or by another formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import (
    agreement,
    calibration,
    comparisons,
    delong,
    intervals,
    metrics,
    multiclass,
)
from patchbank.probe.statistics.heterogeneity import heterogeneity
from scipy import special, stats
from sklearn.metrics import auc, cohen_kappa_score, precision_recall_curve, roc_curve
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.proportion import proportion_confint

PROBABILITY_METRICS = [m.name for m in metrics.METRICS.values() if m.needs == "probability"]
NOT_FINITE = [np.nan, np.inf, -np.inf]


def sample(n: int = 80, *, seed: int = 0, decimals: int = 2) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels (n,) and probabilities (n, 2), with ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return y, np.round(special.expit(rng.normal(size=(n, 2)) + y[:, None] - 0.4), decimals)


# --- one row, one class, nothing but ties


CALIBRATED = ("brier", "log_loss", "ece", "ece_mass")
ONE_ROW = {  # label of the row, whose probability is 0.7 -> what is known
    1: dict.fromkeys(("f1", "sensitivity", "precision"), 1.0)
    | dict(zip(CALIBRATED, (0.3**2, -np.log(0.7), 0.3, 0.3), strict=True)),
    0: dict.fromkeys(("f1", "precision", "specificity"), 0.0)
    | dict(zip(CALIBRATED, (0.7**2, -np.log(0.3), 0.7, 0.7), strict=True)),
}


@pytest.mark.parametrize("label", [1, 0])
def test_one_row(label: int) -> None:
    values = metrics.evaluate([label], [0.7])
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    assert known == pytest.approx(ONE_ROW[label])
    assert set(values) == set(metrics.METRICS)


def test_without_the_only_row_nothing_is_known() -> None:
    found = metrics.leave_one_out([1], [0.7], metrics=list(metrics.METRICS))
    for name, value in found.items():
        assert value.shape == (1, 1), name
        assert np.isnan(value[0, 0]), name


@pytest.mark.parametrize("score", [0.0, 0.3, 0.5, 1.0])
def test_scores_that_are_all_alike_rank_nothing(score: float) -> None:
    y = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    found = metrics.evaluate(y, np.full(8, score))
    assert found["auroc"] == 0.5
    assert found["average_precision"] == 0.25, "the share of positives"
    assert found["balanced_accuracy"] == 0.5
    assert found["mcc"] == 0
    assert found["ece"] == pytest.approx(abs(score - 0.25))
    assert found["brier"] == pytest.approx(0.25 * (1 - score) ** 2 + 0.75 * score**2)


def test_one_pair_of_rows_ranks_right_tied_or_wrong() -> None:
    for scores, auroc, precision in (([0.8, 0.2], 1, 1), ([0.5, 0.5], 0.5, 0.5), ([0.2, 0.8], 0, 0.5)):
        found = metrics.evaluate([1, 0], scores, metrics=["auroc", "average_precision"])
        assert (found["auroc"], found["average_precision"]) == (auroc, precision)


# --- other formulas for the same number


@pytest.mark.parametrize("decimals", [1, 9])
def test_auroc_is_mann_whitneys_u_and_the_area_under_the_curve(decimals: int) -> None:
    y, scores = sample(decimals=decimals)
    for column in scores.T:
        found = metrics.auroc(y, column)
        u = stats.mannwhitneyu(column[y == 1], column[y == 0]).statistic
        assert found == pytest.approx(u / (y.sum() * (1 - y).sum()), rel=1e-13)
        assert found == pytest.approx(auc(*roc_curve(y, column)[:2]), rel=1e-13)
        wins = np.sign(column[y == 1][:, None] - column[y == 0])
        assert found == pytest.approx((1 + wins.mean()) / 2, rel=1e-13)


@pytest.mark.parametrize("decimals", [1, 9])
def test_average_precision_is_the_sum_of_the_steps(decimals: int) -> None:
    y, scores = sample(decimals=decimals)
    precision, recall, _ = precision_recall_curve(y, scores[:, 0])
    assert metrics.average_precision(y, scores[:, 0]) == pytest.approx(-np.diff(recall) @ precision[:-1])


def test_placement_values_have_the_auroc_as_their_mean_in_both_classes() -> None:
    y, scores = sample()
    of = metrics.placements(y == 1, scores)
    np.testing.assert_allclose(of[y == 1].mean(axis=0), metrics.auroc(y, scores), rtol=1e-13)
    np.testing.assert_allclose(of[y == 0].mean(axis=0), metrics.auroc(y, scores), rtol=1e-13)
    beaten = (scores[0] > scores[y != y[0]]).mean(axis=0) + (scores[0] == scores[y != y[0]]).mean(axis=0) / 2
    np.testing.assert_allclose(of[0], beaten if y[0] else 1 - beaten, rtol=1e-13)


def test_metrics_of_calls_are_functions_of_four_counts() -> None:
    y, scores = sample()
    called = scores[:, 0] >= 0.5
    tp, fp = (called & (y == 1)).sum(), (called & (y == 0)).sum()
    fn, tn = (~called & (y == 1)).sum(), (~called & (y == 0)).sum()
    counts = metrics.confusion(y, scores[:, 0])
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (tp, fp, fn, tn)
    found = metrics.evaluate(y, scores[:, 0])
    assert found["mcc"] == pytest.approx(np.corrcoef(y, called)[0, 1])
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert found["f1"] == pytest.approx(stats.hmean([precision, recall]))
    assert found["balanced_accuracy"] == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2)


def test_proper_scores_are_least_at_the_truth() -> None:
    """Of constant predictions the share of positives has the least Brier score and log-loss."""
    y = np.repeat([1, 0], [3, 7])
    constant = np.round(np.arange(0.05, 1, 0.05), 2)
    found = metrics.evaluate(y, np.tile(constant, (10, 1)))
    for name in ("brier", "log_loss"):
        assert constant[found[name].argmin()] == 0.3
    assert constant[found["balanced_log_loss"].argmin()] == 0.5
    assert found["brier"].min() == pytest.approx(0.3 * 0.7)
    assert found["log_loss"].min() == pytest.approx(stats.entropy([0.3, 0.7]))


def test_certain_and_wrong_costs_the_logarithm_of_the_clip() -> None:
    worst = -np.log(np.finfo(float).eps)
    found = metrics.evaluate([1, 0], [0.0, 1.0])
    assert found["log_loss"] == pytest.approx(worst, rel=1e-12)
    assert found["brier"] == 1
    logits = metrics.evaluate([1, 0], [-800.0, 800.0], logits=True, metrics=["log_loss"])
    assert logits["log_loss"] == pytest.approx(worst, rel=1e-12), "no overflow"
    assert metrics.evaluate([1, 0], [1.0, 0.0])["log_loss"] == pytest.approx(0, abs=1e-15)


# --- what must not change a metric


@pytest.mark.parametrize("name", metrics.METRICS)
def test_neither_the_order_of_rows_nor_the_scale_of_weights_counts(name: str) -> None:
    y, scores = sample()
    moved = np.random.default_rng(1).permutation(len(y))
    plain = metrics.evaluate(y, scores, metrics=[name])[name]
    np.testing.assert_allclose(
        metrics.evaluate(y[moved], scores[moved], metrics=[name])[name], plain, rtol=1e-12
    )
    for scale in (1e-6, 1e9):
        weighted = metrics.evaluate(y, scores, metrics=[name], weights=np.full(len(y), scale))[name]
        np.testing.assert_allclose(weighted, plain, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in metrics.METRICS if name != "ece_mass"])
def test_a_weight_of_zero_takes_the_row_out(name: str) -> None:
    y, scores = sample()
    kept = np.random.default_rng(2).random(len(y)) < 0.7
    found = metrics.evaluate(y, scores, metrics=[name], weights=kept.astype(float))[name]
    np.testing.assert_allclose(
        found, metrics.evaluate(y[kept], scores[kept], metrics=[name])[name], rtol=1e-12
    )


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_labels_of_any_kind_of_number(kind: type) -> None:
    y, scores = sample()
    assert metrics.auroc(y.astype(kind), scores[:, 0]) == metrics.auroc(y, scores[:, 0])


def test_a_cluster_without_rows_changes_nothing() -> None:
    y, scores = sample(30)
    codes = np.arange(30) // 3 * 2  # odd codes have no row
    found = metrics.leave_one_out(y, scores, metrics=list(metrics.METRICS), groups=codes)
    whole = metrics.evaluate(y, scores)
    for name, value in found.items():
        assert value.shape == (19, 2)
        np.testing.assert_allclose(value[1::2], np.tile(whole[name], (9, 1)), rtol=1e-12, err_msg=name)


def test_a_score_at_the_threshold_is_called_positive_and_the_next_lower_is_not() -> None:
    for threshold in (0.5, 0.1 + 0.2, 1e-300, -3.0):
        scores = [threshold, np.nextafter(threshold, -np.inf)]
        counts = metrics.confusion([1, 1], scores, threshold=threshold)
        assert (counts.tp, counts.fn) == (1, 1)
    none = metrics.confusion([1, 0], [0.2, 0.9], threshold=np.inf)
    assert (none.tp, none.fp, none.fn, none.tn) == (0, 0, 1, 1)


def test_bins_are_open_below_and_closed_above() -> None:
    edges = metrics.bin_edges([0.0], bins=4)
    assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    p = [0.0, 0.1, 0.25, np.nextafter(0.25, 1), 0.5, 0.75, 0.9, 1.0]
    assert metrics.bin_of(p, edges).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    mass = metrics.bin_edges(np.arange(8) / 8, bins=4, strategy="mass")
    assert np.bincount(metrics.bin_of(np.arange(8) / 8, mass)).tolist() == [2, 2, 2, 2]
    together = metrics.bin_edges([0.2] * 7 + [0.9], bins=4, strategy="mass")
    assert np.bincount(metrics.bin_of([0.2] * 7 + [0.9], together), minlength=4).tolist() == [7, 0, 0, 1]
    with pytest.raises(InvalidRequest, match="one or more"):
        metrics.bin_edges([0.1], bins=0)
    with pytest.raises(InvalidRequest, match="'width' or in 'mass'"):
        metrics.bin_edges([0.1], strategy="equal")  # pyright: ignore[reportArgumentType]


# --- no number that is none gets through


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_score_that_is_not_finite_is_refused_everywhere_and_its_row_named(bad: float) -> None:
    y, scores = sample(20)
    y[:4], scores[3, 1] = [0, 1, 0, 1], bad
    votes, total = np.where(y, 2, 1), np.full(20, 3)
    uses: list[Callable[[], object]] = [
        lambda: metrics.evaluate(y, scores),
        lambda: metrics.evaluate(y, scores[:, 0], order=scores[:, 1]),
        lambda: metrics.confusion(y, scores),
        lambda: metrics.leave_one_out(y, scores, metrics=["auroc"]),
        lambda: intervals.estimate(y, scores, groups=None),
        lambda: comparisons.compare_paired(y, scores, groups=None),
        lambda: delong.delong(y, scores),
        lambda: comparisons.permutation_test(y, scores, metric="auroc", groups=None),
        lambda: calibration.best_threshold(y, scores),
        lambda: calibration.fit_temperature(y, scores),
        lambda: calibration.fit_platt(y, scores),
        lambda: calibration.reliability_curve(y, scores[:, 1]),
        lambda: calibration.assess_calibration(y, scores),
        lambda: calibration.calibration_floor(y, scores[:, 1]),
        lambda: calibration.net_benefit(y, scores),
        lambda: agreement.by_votes(scores, votes, total),
        lambda: agreement.by_agreement(y, scores, votes, total),
        lambda: agreement.soft_scores(votes, total, scores),
        lambda: agreement.human_line(votes, total, scores),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(ProbeError, match="not finite, the first is row 3"):
            raise AssertionError(f"use {number} gave {use()}")


@pytest.mark.parametrize("bad", [-1e-9, 1 + 1e-9, 7.0])
def test_what_needs_probabilities_refuses_other_scores(bad: float) -> None:
    y, scores = sample(20)
    y[:2], scores[3, 1] = [0, 1], bad
    votes, total = np.where(y, 2, 1), np.full(20, 3)
    uses: list[Callable[[], object]] = [
        *(lambda name=name: metrics.evaluate(y, scores, metrics=[name]) for name in PROBABILITY_METRICS),
        lambda: calibration.reliability_curve(y, scores[:, 1]),
        lambda: calibration.calibration_floor(y, scores[:, 1]),
        lambda: calibration.net_benefit(y, scores),
        lambda: calibration.best_threshold(y, scores, rule="prior"),
        lambda: agreement.soft_scores(votes, total, scores),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(InvalidRequest, match=r"\[0, 1\]"):
            raise AssertionError(f"use {number} gave {use()}")


@pytest.mark.parametrize(
    "labels", [[0, np.nan], [0, 2], [-1, 1], ["0", "1"], [None, 1], [0.5, 1], [[0], [1]]]
)
def test_labels_that_are_not_0_and_1_are_refused(labels: list[Any]) -> None:
    for use in (
        lambda: metrics.evaluate(labels, [0.1, 0.2]),
        lambda: intervals.estimate(labels, [0.1, 0.2], groups=None),
        lambda: delong.delong(labels, [0.1, 0.2]),
        lambda: calibration.best_threshold(labels, [0.1, 0.2]),
        lambda: calibration.net_benefit(labels, [0.1, 0.2]),
        lambda: agreement.by_agreement(labels, [0.1, 0.2], [1, 2], [3, 3]),
    ):
        with pytest.raises(ProbeError, match="labels are"):
            use()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, np.nan]}, "finite and not negative"),
        ({"weights": [1, np.inf]}, "finite and not negative"),
        ({"weights": [[1, -1]]}, "finite and not negative"),
        ({"weights": [[[1, 1]]]}, "one column a cluster"),
        ({"weights": [1]}, "one column a cluster"),
        ({"groups": [0, -1]}, "integer codes"),
        ({"groups": [0.0, 1.0]}, "integer codes"),
        ({"groups": [0]}, "integer codes"),
        ({"weights": [1], "groups": [0, 1]}, "one column a cluster"),
    ],
)
def test_weights_and_groups_are_checked_for_metrics_and_votes_alike(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        metrics.evaluate([0, 1], [0.1, 0.2], **options)
    with pytest.raises(InvalidRequest, match=message):
        multiclass.evaluate([0, 1], [[0.9, 0.1], [0.2, 0.8]], **options)
    with pytest.raises(InvalidRequest, match=message):
        agreement.soft_scores([1, 2], [3, 3], [0.1, 0.2], **options)
    with pytest.raises(InvalidRequest, match=message):
        agreement.score_experts([[0, 0, 1], [1, 1, 0]], **options)


def test_a_resample_that_draws_no_row_is_undefined() -> None:
    soft = agreement.soft_scores([1, 2], [3, 3], [0.1, 0.2], weights=[[0, 0], [1, 1]])
    for name, value in soft.items():
        assert np.isnan(value[0]), name
        assert np.isfinite(value[1]), name
    experts = agreement.score_experts([[0, 0, 1], [1, 1, 0]], weights=[[0, 0], [1, 1]])
    assert np.isnan(experts["mean"]).tolist() == [True, False]


def test_a_threshold_that_is_no_number_is_refused() -> None:
    for threshold in (np.nan, [0.5, np.nan]):
        with pytest.raises(InvalidRequest, match="threshold is NaN"):
            metrics.evaluate([0, 1], [[0.1, 0.2], [0.3, 0.4]], threshold=threshold)


# --- intervals


def test_holm_by_hand() -> None:
    assert comparisons.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert comparisons.holm([0.2]).tolist() == [0.2]
    assert comparisons.holm([]).tolist() == []
    assert comparisons.holm([0.5, 0.6]).tolist() == [1, 1]
    found = comparisons.holm([0.01, np.nan, 0.02])
    assert found[[0, 2]].tolist() == pytest.approx([0.02, 0.02])
    assert np.isnan(found[1])


def test_effective_numbers_of_clusters_by_hand() -> None:
    y = np.array([1, 1, 1, 0, 0, 1, 0], bool)
    found = intervals.Clusters.of(y, np.array([0, 0, 0, 0, 1, 2, 1]))
    assert (found.n, found.rows, found.holding) == (3, (3, 4), (2, 2))
    assert found.effective == pytest.approx((9 / (1 + 4), 16 / (9 + 1)))
    assert found.pairs == 1, "clusters 0 and 1, or 1 and 2"


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_jackknifes_error_is_its_formula(name: str) -> None:
    y, scores = sample(60)
    groups = np.arange(60) // 3
    found = intervals.estimate(y, scores[:, 0], groups=groups, metrics=[name])[name]
    if name == "ece_mass":  # its bins are those of the whole sample
        left = metrics.evaluate(y, scores[:, 0], metrics=[name], weights=1 - np.eye(20), groups=groups)[name]
    else:
        left = np.array(
            [
                metrics.evaluate(y[groups != g], scores[groups != g, 0], metrics=[name])[name]
                for g in range(20)
            ]
        )
    assert found.standard_error[0] == pytest.approx(np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum()))
    assert found.low[0] < found.value[0] < found.high[0]


def test_intervals_nest_and_do_not_depend_on_names_or_order() -> None:
    y, scores = sample(90)
    groups = np.array([f"slide {k}" for k in np.arange(90) // 4])
    wide, middle, narrow = (
        intervals.estimate(y, scores, groups=groups, confidence=c)["auroc"] for c in (0.99, 0.95, 0.5)
    )
    assert (wide.low < middle.low).all()
    assert (middle.low < narrow.low).all()
    assert (narrow.high < middle.high).all()
    assert (middle.high < wide.high).all()
    moved = np.random.default_rng(0).permutation(90)
    renamed = np.array([f"{name[::-1]}!" for name in groups])
    again = intervals.estimate(y[moved], scores[moved], groups=renamed[moved])["auroc"]
    np.testing.assert_allclose(again.low, middle.low, rtol=1e-10)
    np.testing.assert_allclose(again.high, middle.high, rtol=1e-10)


def test_classes_swapped_and_scores_negated_give_the_same_interval_of_the_auroc() -> None:
    y, scores = sample(90)
    groups = np.arange(90) // 4
    one = intervals.estimate(y, scores, groups=groups, metrics=["auroc"])["auroc"]
    other = intervals.estimate(1 - y, -scores, groups=groups, metrics=["auroc"])["auroc"]
    mirrored = intervals.estimate(y, -scores, groups=groups, metrics=["auroc"])["auroc"]
    for field in ("value", "low", "high", "standard_error", "degrees_of_freedom"):
        np.testing.assert_allclose(getattr(other, field), getattr(one, field), rtol=1e-9)
    np.testing.assert_allclose(mirrored.low, 1 - one.high, rtol=1e-9)
    np.testing.assert_allclose(mirrored.high, 1 - one.low, rtol=1e-9)


def test_a_difference_turned_round_is_the_negative_one() -> None:
    y, scores = sample(90)
    about: dict[str, Any] = {"groups": np.arange(90) // 3, "metrics": ["auroc", "balanced_accuracy", "brier"]}
    there = comparisons.compare_paired(y, scores, pairs=[(0, 1)], **about)
    back = comparisons.compare_paired(y, scores, pairs=[(1, 0)], **about)
    for name in about["metrics"]:
        np.testing.assert_allclose(back[name].difference, -there[name].difference)
        np.testing.assert_allclose(back[name].low, -there[name].high)
        np.testing.assert_allclose(back[name].p, there[name].p)


def test_a_paired_difference_of_means_is_students_paired_test() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal((0.4, 0.0), size=(25, 2))

    def mean(weights: NDArray[Any] | None, codes: NDArray[np.intp]) -> dict[str, Any]:
        w = np.ones((1, 25)) if weights is None else weights
        found = (w @ values) / w.sum(axis=1, keepdims=True)
        return {"mean": found[0] if weights is None else found}

    found = comparisons.compare(intervals.estimate_function(mean, n_rows=25, groups=None)["mean"])
    reference = stats.ttest_rel(*values.T)
    low, high = reference.confidence_interval()
    # the tails are a little heavier than the normal's: freedom is at most 24
    assert found.degrees_of_freedom[0] <= 24
    assert found.difference[0] / found.standard_error[0] == pytest.approx(reference.statistic)
    if found.degrees_of_freedom[0] == 24:
        assert (found.low[0], found.high[0]) == pytest.approx((low, high))
        assert found.p[0] == pytest.approx(reference.pvalue)
    else:
        assert found.low[0] < low < high < found.high[0]
        assert found.p[0] > reference.pvalue


@pytest.mark.parametrize(("hits", "n"), [(0, 9), (1, 9), (5, 10), (9, 9)])
def test_a_proportion_of_independent_rows_is_clopper_pearsons(hits: int, n: int) -> None:
    p = hits / n
    found = intervals.proportion_interval(p, (p * (1 - p) / n) ** 0.5, n=n, n_clustered=n)
    assert found == pytest.approx(proportion_confint(hits, n, method="beta"), abs=1e-9)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("number", [-1, 0, 1])
def test_fewer_than_two_resamples_are_refused(method: intervals.Method, number: int) -> None:
    with pytest.raises(InvalidRequest, match="two or more"):
        intervals.estimate([0, 1], [0.1, 0.2], groups=None, method=method, n_resamples=number)


def test_a_permutation_test_needs_permutations_and_models() -> None:
    y, scores = sample(20)
    with pytest.raises(InvalidRequest, match="0 permutations"):
        comparisons.permutation_test(y, scores, metric="auroc", groups=None, n_permutations=0)
    with pytest.raises(InvalidRequest, match="have to be"):
        comparisons.permutation_test(y, scores[:, 0], metric="auroc", groups=None)
    one_class = comparisons.permutation_test(np.zeros(4, int), scores[:4], metric="auroc", groups=None)
    assert np.isnan([one_class.difference[0], one_class.p[0]]).all()


def test_groups_are_one_column() -> None:
    for groups in ([["a"], ["b"]], ["a"], [[1, 2]]):
        with pytest.raises(InvalidRequest, match="for 2 rows"):
            intervals.cluster_codes(groups, 2)
    assert intervals.cluster_codes(np.array([7, 3, 7], np.uint8), 3).tolist() == [0, 1, 0]


def test_delongs_covariance_is_symmetric_positive_and_mirrors_the_classes() -> None:
    y, scores = sample(70)
    three = np.column_stack([scores, scores.mean(axis=1)])
    found = delong.delong(y, three)
    np.testing.assert_allclose(found.covariance, found.covariance.T, rtol=1e-12)
    assert np.linalg.eigvalsh(found.covariance).min() > -1e-15
    mirrored = delong.delong(1 - y, -three)
    np.testing.assert_allclose(mirrored.covariance, found.covariance, rtol=1e-10)
    np.testing.assert_allclose(mirrored.of_positives, found.of_negatives, rtol=1e-10)
    moved = delong.delong(y, np.exp(3 * three))  # the order is all that counts
    np.testing.assert_allclose(moved.covariance, found.covariance, rtol=1e-12)


# --- calibration


def test_calibration_follows_the_logits() -> None:
    """Logits moved by c have an intercept less by c; logits times k have a k-th of the slope."""
    y, p = sample(200)
    z = special.logit(np.clip(p, 0.01, 0.99))
    plain = calibration.assess_calibration(y, z)
    moved = calibration.assess_calibration(y, z + 0.7)
    scaled = calibration.assess_calibration(y, 4 * z)
    np.testing.assert_allclose(moved.values["intercept"], plain.values["intercept"] - 0.7, rtol=1e-7)
    np.testing.assert_allclose(moved.values["slope"], plain.values["slope"], rtol=1e-6)
    np.testing.assert_allclose(scaled.values["slope"], plain.values["slope"] / 4, rtol=1e-6)
    recalibrated = calibration.fit_platt(y, z, smooth=False).probability(z)
    again = calibration.assess_calibration(y, special.logit(recalibrated))
    np.testing.assert_allclose(again.values["slope"], 1, rtol=1e-6)
    np.testing.assert_allclose(again.values["intercept"], 0, atol=1e-7)
    np.testing.assert_allclose(again.values["observed_expected"], 1, rtol=1e-7)


def test_every_calibration_method_refuses_one_class_and_other_shapes() -> None:
    for use in (calibration.best_threshold, calibration.fit_temperature, calibration.fit_platt):
        for y in ([0, 0, 0], [1, 1, 1]):
            with pytest.raises(ProbeError, match="both classes"):
                use(y, [0.1, 0.2, 0.3])
        with pytest.raises(InvalidRequest, match="do not fit 3 labels"):
            use([0, 1, 1], [0.1, 0.2])
    for fit in (calibration.fit_temperature, calibration.fit_platt):
        with pytest.raises(InvalidRequest, match="'balanced'"):
            fit([0, 1], [0.1, 0.2], class_weight="equal")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_move_with_the_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, z = np.tile([0, 1, 1], 6), rng.integers(0, 6, 18).astype(float)
    for rule in ("balanced_accuracy", "sensitivity", "specificity"):
        t = calibration.best_threshold(y, z, rule=rule)
        assert calibration.best_threshold(y, 8 * z - 32, rule=rule) == pytest.approx(8 * t - 32)
        called = z >= t
        best = max((z >= cut)[y == 1].mean() - (z >= cut)[y == 0].mean() for cut in [*np.unique(z), np.inf])
        if rule == "balanced_accuracy":
            assert called[y == 1].mean() - called[y == 0].mean() == pytest.approx(best)


def test_thresholds_and_targets_out_of_range_are_refused() -> None:
    for option in ({"rule": "sensitivity", "sensitivity": 0}, {"rule": "sensitivity", "sensitivity": 1.1}):
        with pytest.raises(InvalidRequest, match="sensitivity lies in"):
            calibration.best_threshold([0, 1], [0.1, 0.2], **option)  # pyright: ignore[reportArgumentType]
    for target in (-0.1, 1.1):
        with pytest.raises(InvalidRequest, match="specificity lies in"):
            calibration.best_threshold([0, 1], [0.1, 0.2], rule="specificity", specificity=target)
    for at in ([0.0], [1.0], [0.5, np.nan]):
        with pytest.raises(InvalidRequest, match="between 0 and 1"):
            calibration.net_benefit([0, 1], [0.1, 0.2], at=at)
    for prevalence in (0.0, 1.0, 1.5, np.nan):
        with pytest.raises(InvalidRequest, match="prevalence"):
            calibration.predictive_values(np.array(0.9), np.array(0.9), prevalence)
    with pytest.raises(InvalidRequest, match="confidence"):
        calibration.reliability_curve([0, 1], [0.1, 0.2], confidence=95)
    with pytest.raises(InvalidRequest, match="of one model"):
        calibration.reliability_curve([0, 1], [[0.1, 0.2], [0.3, 0.4]])


def test_the_decision_curve_of_a_perfect_model_is_the_prevalence() -> None:
    y = np.array([1, 0, 0, 0, 1])
    found = calibration.net_benefit(y, y.astype(float), at=(0.05, 0.5, 0.95))
    for t in (0.05, 0.5, 0.95):
        assert found.values[f"{t:g}"] == pytest.approx([0.4])
    never = calibration.net_benefit(y, np.zeros(5), at=(0.5,))
    assert never.values["0.5"] == [0]


def test_predictive_values_by_bayes() -> None:
    """Sensitivity and specificity of 90 % and 1 diseased in 100: 9 in 108 positive tests are right."""
    ppv, npv = calibration.predictive_values(np.array([0.9, 0.0]), np.array([0.9, 1.0]), 0.01)
    assert ppv[0] == pytest.approx(9 / 108)
    assert npv[0] == pytest.approx(891 / 892)
    assert np.isnan(ppv[1]), "nothing is called positive"
    assert npv[1] == pytest.approx(0.99)
    assert np.isnan(calibration.predictive_values(np.array(1.0), np.array(0.0), 0.3)[1])


def test_probabilities_of_0_and_1_that_are_right_have_no_calibration_error() -> None:
    y = np.array([0, 1, 1, 0])
    floor = calibration.calibration_floor(y, y.astype(float))
    assert floor == (0, 0, 1)
    wrong = calibration.calibration_floor(y, 1.0 - y, draws=99)
    assert (wrong.mean, wrong.p) == (0, 0.01)
    curve = calibration.reliability_curve(y, y.astype(float), bins=2)
    assert curve.count.tolist() == [2, 2]
    assert curve.share_positive.tolist() == curve.mean_probability.tolist() == [0, 1]
    assert (curve.low[0], curve.high[1]) == pytest.approx((0, 1))


# --- votes


def test_kappa_of_two_raters_is_scotts_pi() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.3
    second = np.where(rng.random(200) < 0.8, first, rng.random(200) < 0.3)
    votes = first.astype(int) + second
    share = votes.sum() / 400
    chance = share**2 + (1 - share) ** 2
    pi = ((first == second).mean() - chance) / (1 - chance)
    assert agreement.fleiss_kappa(np.stack([votes, 2 - votes], axis=1)) == pytest.approx(pi)
    assert abs(pi - cohen_kappa_score(first, second)) < 0.01
    assert agreement.fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1), "they never agree"
    swapped = np.stack([2 - votes, votes], axis=1)
    assert agreement.fleiss_kappa(swapped) == pytest.approx(pi)


@pytest.mark.parametrize(
    ("positive", "total", "message"),
    [
        ([1, 1.5], [3, 3], "row 1: votes are whole numbers, not 1.5 of 3"),
        ([1, 1], [3, 2.5], "row 1: votes are whole numbers, not 1 of 2.5"),
        ([1, np.inf], [3, 3], "row 1: votes are whole numbers"),
        (["1", "many"], [3, 3], "row 1: votes are whole numbers, not many of 3"),
        ([1, -1], [3, 3], "row 1: -1 positive of 3"),
        ([0, 0], [3, 0], "row 1: 0 positive of 0"),
        ([1, None], [3, 3], "row 1 has no votes"),
        ([1, np.nan], [3, 3], "row 1 has no votes"),
        ([1], [3, 3], "two columns"),
        ([], [], "at least one row"),
    ],
)
def test_votes_that_are_no_counts_are_refused(positive: list[Any], total: list[Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        agreement.unanimous_share(positive, total)


def test_counts_of_raters_are_whole_numbers() -> None:
    for table in ([[3.5, 0.5]], [[-1, 4]], [[np.nan, 4]]):
        with pytest.raises(ProbeError, match="whole numbers"):
            agreement.fleiss_kappa(table)


def test_unanimous_experts_agree_with_each_other_and_with_the_right_model() -> None:
    positive, total = [3, 0, 5, 0], [3, 3, 5, 5]
    called = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    found = agreement.human_line(positive, total, called)
    assert found.values["expert"].tolist() == [1]
    assert found.values["model"].tolist() == [1, 0]
    assert (found.votes, found.tied) == (16, 0)
    assert agreement.unanimous_share(positive, total) == 1
    with pytest.raises(InvalidRequest, match="calls are positive or not"):
        agreement.human_line(positive, total, [0.9, 0.1, 0.8, 0.2])


def test_experts_need_rows_and_votes_of_0_and_1() -> None:
    for votes in (np.zeros((0, 3)), [[0, 1, np.nan]], [[0, 1, 2]], [[0, 1]], [0, 1, 1]):
        with pytest.raises(InvalidRequest, match="at least three experts"):
            agreement.leave_one_out(votes)


# --- between domains


def test_two_domains_by_hand() -> None:
    """Values 0 and 3 with variance 1 each: Q = 9 / 2 and tau^2 = 9 / 2 - 1."""
    found = heterogeneity([0.0, 3.0], [1.0, 1.0])
    assert found.q == pytest.approx(4.5)
    assert found.p == pytest.approx(stats.chi2.sf(4.5, 1))
    assert found.sd == pytest.approx(3.5**0.5)
    assert found.mean == pytest.approx(1.5)
    assert found.mean_error == pytest.approx((4.5 / 2) ** 0.5)
    assert found.i2 == pytest.approx(3.5 / 4.5), "1 - 1 / Q"
    assert found.sd_low <= found.sd <= found.sd_high


def test_log_odds_ratios_of_domains_pool_like_mantel_and_haenszel() -> None:
    """Without heterogeneity the random-effects mean is the inverse-variance one, near Mantel-Haenszel's."""
    tables = [
        np.array([[40, 60], [20, 80]]),
        np.array([[80, 120], [42, 158]]),
        np.array([[20, 30], [10, 40]]),
    ]
    log_odds = [float(np.log(t[0, 0] * t[1, 1] / (t[0, 1] * t[1, 0]))) for t in tables]
    errors = [float((1 / t).sum() ** 0.5) for t in tables]
    found = heterogeneity(log_odds, errors)
    assert (found.sd, found.i2, found.sd_low) == (0, 0, 0)
    weights = 1 / np.square(errors)
    assert found.mean == pytest.approx(weights @ np.array(log_odds) / weights.sum())
    pooled = StratifiedTable([t.astype(float) for t in tables])
    assert found.mean == pytest.approx(pooled.logodds_pooled, abs=0.01)
    assert found.mean_error == pytest.approx(pooled.logodds_pooled_se, rel=0.02)


@pytest.mark.parametrize("values", [[1, np.nan], [1, np.inf], [1], [1, 2, 3], [[1, 2]]], ids=repr)
def test_values_of_domains_are_numbers(values: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="heterogeneity needs"):
        heterogeneity(values, [1, 1])


@pytest.mark.parametrize("errors", [[1], [1, 0], [1, np.inf], [1, np.nan]], ids=repr)
def test_errors_of_domains_are_above_0(errors: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="heterogeneity needs"):
        heterogeneity([1, 2], errors)
    with pytest.raises(InvalidRequest, match="confidence"):
        heterogeneity([1, 2], [1, 1], confidence=95)
