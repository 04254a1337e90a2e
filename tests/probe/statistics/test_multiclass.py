"""Metrics of K classes against scikit-learn and the binary ones, their intervals and comparisons."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import comparisons, intervals, metrics, multiclass
from scipy import special, stats
from sklearn import metrics as reference
from sklearn.preprocessing import label_binarize

Floats = NDArray[np.float64]


def sample(
    n: int = 200, m: int = 2, k: int = 4, *, seed: int = 0, decimals: int = 2
) -> tuple[NDArray[np.intp], Floats]:
    """Labels, one class rare, and logits (n, m, K); rounding makes ties of rows and of classes."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, k + 1)
    y = rng.choice(k, n, p=share / share.sum())
    y[:k] = np.arange(k)
    logits = rng.normal(size=(n, m, k)) * np.linspace(0.5, 2, m)[:, None] + np.eye(k)[y][:, None]
    return y, np.round(logits, decimals)


def ece(y: NDArray[Any], p: Floats, w: Floats) -> float:
    """Of probabilities p of the event y, bins (a, b] of equal width."""
    total = 0.0
    for b in range(metrics.BINS):
        rows = (p <= (b + 1) / metrics.BINS) & ((p > b / metrics.BINS) | (b == 0))
        if w[rows].sum():
            total += abs(np.average(y[rows], weights=w[rows]) - np.average(p[rows], weights=w[rows])) * (
                w[rows].sum() / w.sum()
            )
    return total


def by_class(y: NDArray[Any], w: Floats) -> Floats:
    return w / np.bincount(y, w)[y]


ZERO: dict[str, Any] = {"zero_division": 0}  # typed as str alone
WHOLE: dict[str, Any] = {"scale_by_half": False}
Reference = Callable[[Any, Any, Any, Any], float]
REFERENCE: dict[str, Reference] = {  # (y, probabilities (n, K), calls, weights) -> value
    "accuracy": lambda y, p, c, w: reference.accuracy_score(y, c, sample_weight=w),
    "balanced_accuracy": lambda y, p, c, w: reference.balanced_accuracy_score(y, c, sample_weight=w),
    "auroc": lambda y, p, c, w: reference.roc_auc_score(y, p, multi_class="ovr", sample_weight=w),
    "average_precision": lambda y, p, c, w: reference.average_precision_score(
        label_binarize(y, classes=range(p.shape[1])), p, sample_weight=w
    ),
    "f1": lambda y, p, c, w: reference.f1_score(y, c, average="macro", sample_weight=w, **ZERO),
    "kappa": lambda y, p, c, w: reference.cohen_kappa_score(y, c, sample_weight=w),
    "log_loss": lambda y, p, c, w: reference.log_loss(y, p, sample_weight=w),
    "balanced_log_loss": lambda y, p, c, w: reference.log_loss(y, p, sample_weight=by_class(y, w)),
    "brier": lambda y, p, c, w: reference.brier_score_loss(y, p, sample_weight=w, **WHOLE),
    "ece": lambda y, p, c, w: ece(y == c, p.max(axis=1), w),
    "ece_classwise": lambda y, p, c, w: float(np.mean([ece(y == k, p[:, k], w) for k in range(p.shape[1])])),
}
CLASS_REFERENCE: dict[str, Callable[[Any, Any, Any], float]] = {  # (is it k, probability of k, called k)
    "sensitivity": lambda y, p, c: reference.recall_score(y, c),
    "specificity": lambda y, p, c: reference.recall_score(~y, ~c),
    "precision": lambda y, p, c: reference.precision_score(y, c),
    "f1": lambda y, p, c: reference.f1_score(y, c),
    "auroc": lambda y, p, c: reference.roc_auc_score(y, p),
    "average_precision": lambda y, p, c: reference.average_precision_score(y, p),
}


def test_every_metric_has_an_independent_reference() -> None:
    assert set(REFERENCE) == set(multiclass.METRICS)
    assert set(CLASS_REFERENCE) == set(multiclass.CLASS_METRICS)
    assert all(m.name == name for name, m in multiclass.METRICS.items())


@pytest.mark.parametrize("name", multiclass.METRICS)
@pytest.mark.parametrize(("seed", "k", "decimals"), [(0, 3, 0), (1, 4, 1), (2, 8, 2), (3, 5, 9)])
def test_equals_the_reference_under_weights(name: str, seed: int, k: int, decimals: int) -> None:
    y, logits = sample(seed=seed, k=k, decimals=decimals)
    p = special.softmax(logits, axis=2)
    weights = np.random.default_rng(seed).gamma(1.0, size=(3, len(y))) * (np.arange(len(y)) % 7 != 6)
    weights[0] = 1
    # probabilities for those that see ties: softmax of equal logits differs in the last digit
    found = multiclass.evaluate(y, p, metrics=[name], weights=weights)[name]
    expected = [[REFERENCE[name](y, q, q.argmax(axis=1), w) for q in p.transpose(1, 0, 2)] for w in weights]
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    of_one = multiclass.evaluate(y, p[:, 1], metrics=[name])[name]
    assert of_one.shape == ()
    assert of_one == pytest.approx(found[0, 1], rel=1e-12)


@pytest.mark.parametrize("name", multiclass.METRICS)
def test_logits_are_probabilities_by_the_softmax(name: str) -> None:
    y, logits = sample(decimals=9)
    found = multiclass.evaluate(y, logits, metrics=[name], logits=True)[name]
    expected = multiclass.evaluate(y, special.softmax(logits, axis=2), metrics=[name])[name]
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    shifted = logits + np.random.default_rng(1).normal(size=(*logits.shape[:2], 1))
    np.testing.assert_allclose(
        multiclass.evaluate(y, shifted, metrics=[name], logits=True)[name], found, rtol=1e-11
    )


@pytest.mark.parametrize("seed", range(3))
def test_kappa_of_grades_has_quadratic_weights(seed: int) -> None:
    y, p = sample(seed=seed, k=5)
    found = multiclass.evaluate(y, p, metrics=["kappa"], logits=True, ordered=True)["kappa"]
    expected = [
        reference.cohen_kappa_score(y, q.argmax(axis=1), weights="quadratic") for q in p.swapaxes(0, 1)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(found, multiclass.evaluate(y, p, metrics=["kappa"], logits=True)["kappa"])


@pytest.mark.parametrize("k", [2, 3, 6])
def test_each_class_against_the_rest_equals_the_reference(k: int) -> None:
    y, logits = sample(k=k, n=150)
    p = special.softmax(logits, axis=2)
    found = multiclass.estimate(y, p, groups=np.arange(len(y)) // 5)
    assert len(found.classes) == k
    for c, j in product(range(k), range(2)):
        one = found.classes[c]
        called = p[:, j].argmax(axis=1) == c
        for name, score in CLASS_REFERENCE.items():
            assert one[name].value[j] == pytest.approx(score(y == c, p[:, j, c], called)), (c, name)
    for name, parts in (("balanced_accuracy", "sensitivity"), ("auroc", "auroc")):
        mean = np.mean([one[parts].value for one in found.classes], axis=0)
        np.testing.assert_allclose(found[name].value, mean, rtol=1e-14)


def test_ranking_is_by_order_where_it_is_given() -> None:
    y, logits = sample(m=1)
    by = np.random.default_rng(1).normal(size=logits.shape)
    found = multiclass.evaluate(y, logits, logits=True, order=by)
    plain = multiclass.evaluate(y, logits, logits=True)
    for name in multiclass.METRICS:
        if name == "auroc":
            areas = [reference.roc_auc_score(y == k, by[:, 0, k]) for k in range(4)]
            assert found[name][0] == pytest.approx(np.mean(areas))
        assert (found[name] == plain[name]).all() == (name not in ("auroc", "average_precision")), name


def test_log_odds_keep_the_order_where_probabilities_are_all_one() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 2])
    logits = np.zeros((7, 3))
    logits[:, 1] = [60, 55, 50, 49, 48, 47, 46]  # p_1 is 1 to the last digit throughout
    assert (special.softmax(logits, axis=1)[:, 1] == 1).all()
    found = multiclass.estimate(y, logits, logits=True, groups=None)
    assert found.classes[1]["auroc"].value[0] == 1
    assert multiclass.log_odds(logits, 1) == pytest.approx(logits[:, 1] - np.log(2))


# --- edges


def test_a_class_without_rows_leaves_no_mean_over_fewer() -> None:
    y, logits = sample(k=4)
    y[y == 2] = 0
    found = multiclass.estimate(
        y, logits, logits=True, groups=None, metrics=list(multiclass.METRICS), classes=["A", "B", "C", "D"]
    )
    means = {*multiclass.MACRO, "balanced_log_loss"}
    for name, one in found.items():
        assert np.isnan(one.value).all() == (name in means), name
        if name in means:
            assert one.reason[0] == "the value is undefined: no row of C in the set"
    assert np.isnan(found.classes[2]["sensitivity"].value).all()
    assert found.classes[2]["specificity"].value == pytest.approx((logits.argmax(axis=2) != 2).mean(axis=0))
    everything = np.eye(4)[y][
        :, None
    ]  # calls of the classes there are, all right: F1 of C has no row, no call
    assert np.isnan(multiclass.evaluate(y, everything, metrics=["f1"])["f1"]).all()


def test_a_class_that_a_resample_loses_is_no_mean_over_fewer() -> None:
    y, logits = sample(k=3)
    weights = np.ones((2, len(y)))
    weights[1, y == 1] = 0
    found = multiclass.evaluate(y, logits, logits=True, weights=weights)
    for name, value in found.items():
        assert np.isfinite(value[0]).all(), name
        assert np.isnan(value[1]).all() == (name in {*multiclass.MACRO, "balanced_log_loss"}), name


def test_one_row_of_each_class() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    found = multiclass.evaluate([0, 1, 2], p)
    assert found["accuracy"] == found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx((0.5 + 0.75 + 1) / 3)
    assert found["kappa"] == pytest.approx(0.5)
    assert found["log_loss"] == found["balanced_log_loss"] == pytest.approx(-np.log([0.5, 0.3, 0.7]).mean())
    assert found["brier"] == pytest.approx((0.25 + 0.09 + 0.04 + 0.36 + 0.49 + 0.01 + 0.01 + 0.04 + 0.09) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    interval = multiclass.estimate([0, 1, 2], p, groups=None, metrics=["f1", "accuracy"])
    assert interval["f1"].reason[0] == "all class 0 and class 1 and class 2 rows are in one group"
    assert interval["accuracy"].low[0] < 2 / 3 < interval["accuracy"].high[0]


def test_equal_scores_call_the_first_class() -> None:
    found = multiclass.evaluate([0, 1, 2], np.full((3, 3), 1 / 3))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["auroc"] == 0.5
    assert found["kappa"] == 0


def test_extreme_probabilities_are_clipped_as_scikit_learn_does() -> None:
    y = np.array([0, 1, 2, 1])
    p = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    found = multiclass.evaluate(y, p, metrics=["log_loss", "brier"])
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, p))
    assert found["brier"] == pytest.approx(0.5)
    logits = np.where(p == 1, 2000.0, -2000.0)
    same = multiclass.evaluate(y, logits, metrics=["log_loss", "brier", "auroc"], logits=True)
    assert same["log_loss"] == pytest.approx(found["log_loss"])
    assert same["brier"] == pytest.approx(0.5)
    assert np.isfinite(same["auroc"])


def test_all_labels_and_calls_of_one_class_have_no_kappa() -> None:
    found = multiclass.estimate([1, 1, 1], np.eye(3)[[1, 1, 1]], groups=None, metrics=["kappa", "accuracy"])
    assert found["kappa"].reason[0] == "the value is undefined: all labels and calls are of one class"
    assert found["accuracy"].value[0] == 1
    assert found["accuracy"].low[0] == pytest.approx(0.025 ** (1 / 3)), "the exact bound of 3 of 3"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0, 3], np.eye(3)[:2]), {}, ProbeError, "from 0 to 2: row 1 has 3"),
        (([0, -1], np.eye(3)[:2]), {}, ProbeError, "row 1 has -1"),
        (([0.0, 1.0], np.eye(2)), {}, ProbeError, "column of integers"),
        (([], np.zeros((0, 3))), {}, ProbeError, "at least one row"),
        (([0, 1], np.eye(2) * 2), {}, InvalidRequest, "row 0 do not sum to 1"),
        (([0, 1], [[0.5, 0.5], [-0.5, 1.5]]), {}, InvalidRequest, "row 1 do not sum to 1, or one is below 0"),
        (([0, 1], [[0.5, 0.5], [np.nan, 1.5]]), {}, ProbeError, "1 rows have .* first is row 1"),
        (([0, 1], [0.5, 0.5]), {}, InvalidRequest, r"\(n, K\) or \(n, models, K\)"),
        (([0], np.eye(2)), {}, InvalidRequest, "do not fit 1 labels"),
        (([0], [[1.0]]), {}, InvalidRequest, "K two or more"),
        (([0], np.full((1, 1000), 1e-3)), {}, InvalidRequest, "1000 classes, .* path of each patch"),
        (([0, 1], np.eye(2)), {"metrics": ["mcc"]}, InvalidRequest, "called mcc; there are: accuracy"),
        (([0, 1], np.eye(2)), {"order": np.eye(3)}, InvalidRequest, "of one shape"),
        (([0, 1], np.eye(2)), {"order": [[0, np.inf], [0, 0]]}, InvalidRequest, "and finite"),
    ],
)
def test_bad_input_is_refused(
    arguments: tuple[Any, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        multiclass.evaluate(*arguments, **options)


def test_names_fit_the_classes_and_pairs_need_two_models() -> None:
    y, logits = sample(k=3)
    with pytest.raises(InvalidRequest, match="2 names for 3 classes"):
        multiclass.estimate(y, logits, logits=True, groups=None, classes=["A", "B"])
    with pytest.raises(InvalidRequest, match="two models or more"):
        multiclass.compare_paired(y, logits[:, 0], logits=True, groups=None, estimates={})


# --- two classes are the binary case


def test_two_classes_have_the_values_and_intervals_of_the_binary_metrics() -> None:
    y, logits = sample(k=2, n=160, m=3)
    groups = np.arange(len(y)) // 8
    found = multiclass.estimate(y, logits, logits=True, groups=groups, metrics=list(multiclass.METRICS))
    names = ["balanced_accuracy", "auroc", "log_loss", "balanced_log_loss", "sensitivity", "brier"]
    binary = intervals.estimate(
        y, logits[:, :, 1] - logits[:, :, 0] - 1e-12, logits=True, groups=groups, metrics=names
    )
    for name in ("balanced_accuracy", "auroc", "log_loss", "balanced_log_loss"):
        for part in ("value", "low", "high", "standard_error", "degrees_of_freedom", "design_effect"):
            np.testing.assert_allclose(
                getattr(found[name], part), getattr(binary[name], part), rtol=1e-7, err_msg=f"{name} {part}"
            )
    np.testing.assert_allclose(found["brier"].value, 2 * binary["brier"].value, rtol=1e-9)
    positive = found.classes[1]["sensitivity"]
    np.testing.assert_allclose(positive.low, binary["sensitivity"].low, rtol=1e-9)
    assert found["balanced_accuracy"].method[0] == "mover"


# --- reweighting


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("groups", [None, "slides"])
def test_leaving_a_cluster_out_is_a_weight_of_zero(logits: bool, groups: str | None) -> None:
    y, scores = sample(n=60, k=3)
    scores = scores if logits else special.softmax(scores, axis=2)
    codes = None if groups is None else np.random.default_rng(1).permutation(np.arange(60) % 12)
    size = 60 if codes is None else 12
    found = multiclass.leave_one_out(y, scores, metrics=list(multiclass.METRICS), logits=logits, groups=codes)
    drawn = multiclass.evaluate(y, scores, logits=logits, weights=1 - np.eye(size), groups=codes)
    for name in multiclass.METRICS:
        np.testing.assert_allclose(found[name], drawn[name], rtol=1e-10, err_msg=name)


def test_weights_of_clusters_are_repetitions_of_their_rows() -> None:
    y, logits = sample(k=3)
    codes = np.random.default_rng(2).integers(0, 20, len(y))
    codes[:20] = np.arange(20)
    weights = np.random.default_rng(3).integers(0, 3, (2, 20))
    found = multiclass.evaluate(y, logits, logits=True, weights=weights, groups=codes)
    table = multiclass.confusion(y, logits, weights=weights, groups=codes)
    for b in range(2):
        rows = np.repeat(np.arange(len(y)), weights[b][codes])
        again = multiclass.evaluate(y[rows], logits[rows], logits=True)
        for name in multiclass.METRICS:
            np.testing.assert_allclose(found[name][b], again[name], rtol=1e-10, err_msg=name)
        np.testing.assert_array_equal(table[b], multiclass.confusion(y[rows], logits[rows]))


def test_blocks_of_clusters_give_the_same_kappa(monkeypatch: pytest.MonkeyPatch) -> None:
    y, logits = sample(k=5)
    options: dict[str, Any] = {"metrics": ["kappa"], "logits": True}
    whole = multiclass.leave_one_out(y, logits, **options)["kappa"]
    weights = np.random.default_rng(0).integers(0, 3, (31, len(y)))
    drawn = multiclass.evaluate(y, logits, weights=weights, **options)["kappa"]
    monkeypatch.setattr(multiclass, "_BLOCK_CELLS", 7 * 25)
    np.testing.assert_array_equal(multiclass.leave_one_out(y, logits, **options)["kappa"], whole)
    np.testing.assert_array_equal(multiclass.evaluate(y, logits, weights=weights, **options)["kappa"], drawn)


def test_the_confusion_matrix_is_scikit_learns() -> None:
    y, logits = sample(k=5)
    found = multiclass.confusion(y, logits)
    assert found.shape == (2, 5, 5)
    for table, scores in zip(found, logits.swapaxes(0, 1), strict=True):
        np.testing.assert_array_equal(table, reference.confusion_matrix(y, scores.argmax(axis=1)))


# --- intervals


@pytest.mark.parametrize("name", multiclass.METRICS)
def test_the_standard_error_is_the_jackknifes_by_hand(name: str) -> None:
    y, logits = sample(k=3, n=120)
    groups = np.arange(len(y)) // 6
    found = multiclass.estimate(y, logits, logits=True, groups=groups, metrics=[name], inflation=1.25)[name]
    without = np.stack(
        [
            multiclass.evaluate(y[groups != g], logits[groups != g], logits=True, metrics=[name])[name]
            for g in range(20)
        ]
    )
    error = np.sqrt(1.25 * 19 / 20 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-9)
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    assert np.isfinite(found.design_effect).all()
    assert (found.degrees_of_freedom <= 19).all()


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "auroc", "f1", "kappa", "log_loss"])
def test_percentiles_are_those_of_rows_that_are_really_drawn(name: str) -> None:
    y, logits = sample(k=3, n=120, m=1)
    groups = np.arange(len(y)) // 4
    options: dict[str, Any] = {"method": "percentile", "n_resamples": 40, "seed": 5}
    found = multiclass.estimate(y, logits, logits=True, groups=groups, metrics=[name], **options)[name]
    counts = intervals.cluster_weights(30, n_resamples=40, seed=5)
    drawn = []
    for one in counts:
        rows = np.repeat(np.arange(len(y)), one[groups])
        drawn.append(multiclass.evaluate(y[rows], logits[rows], logits=True, metrics=[name])[name][0])
    assert found.draws is not None
    np.testing.assert_allclose(found.draws[:, 0], drawn, rtol=1e-10)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_perfect_calls_have_intervals_and_no_width_zero() -> None:
    y = np.arange(90) % 3
    found = multiclass.estimate(
        y, np.eye(3)[y], groups=np.arange(90) // 9, metrics=["accuracy", "balanced_accuracy", "auroc", "f1"]
    )
    assert all(one.value[0] == 1 for one in found.values())
    # 10 slides of equal size are 10 independent rows
    assert found["accuracy"].low[0] == pytest.approx(0.025**0.1)
    each = 1 - found.classes[0]["sensitivity"].low[0]
    assert found["balanced_accuracy"].low[0] == pytest.approx(1 - each / 3**0.5)
    assert found["auroc"].low[0] == pytest.approx(found.classes[0]["auroc"].low[0])
    assert found["f1"].reason[0] == intervals.STILL
    assert np.isnan(found["f1"].low[0])


def test_a_class_in_one_slide_has_no_interval_of_a_mean() -> None:
    y, logits = sample(k=3, n=90)
    groups = np.where(y == 2, 0, 1 + np.arange(90) // 9)
    found = multiclass.estimate(
        y, logits, logits=True, groups=groups, metrics=["f1", "accuracy"], classes=["A", "B", "C"]
    )
    assert found["f1"].reason[0] == "all C rows are in one group"
    assert found["accuracy"].reason[0] == ""
    assert found.classes[2]["sensitivity"].reason[0] == "all C rows are in one group"
    assert found.clusters is not None
    assert found.clusters.holding[2] == 1


# --- comparisons


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc", "kappa", "log_loss"])
def test_a_paired_difference_is_the_jackknifes_by_hand(name: str) -> None:
    y, logits = sample(k=3, n=240)
    groups = np.arange(len(y)) // 8
    found = multiclass.compare_paired(y, logits, logits=True, groups=groups, metrics=[name])[name]
    without = np.stack(
        [
            multiclass.evaluate(y[groups != g], logits[groups != g], logits=True, metrics=[name])[name]
            for g in range(30)
        ]
    )
    apart = without[:, 0] - without[:, 1]
    error = np.sqrt(29 / 30 * ((apart - apart.mean()) ** 2).sum())
    assert found.standard_error[0] == pytest.approx(error)
    assert found.p_method[0] == "jackknife over groups, Student's t"
    assert found.p[0] == pytest.approx(
        2 * stats.t.sf(abs(found.difference[0] / error), found.degrees_of_freedom[0])
    )


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc", "log_loss"])
def test_the_permutation_test_is_that_of_scores_really_exchanged(name: str) -> None:
    y, logits = sample(k=3, n=40)
    groups = np.arange(40) % 5
    found = multiclass.permutation_test(y, logits, metric=name, logits=True, groups=groups)
    table = special.softmax(logits, axis=2)
    if name == "auroc":
        odds = np.stack([multiclass.log_odds(logits, k) for k in range(3)], axis=2)
        table = stats.rankdata(odds, axis=0)
    null = []
    for swap in product([False, True], repeat=5):
        mask = np.array(swap)[groups][:, None]
        pair = [np.where(mask, table[:, 1 - j], table[:, j]) for j in range(2)]
        if name == "auroc":
            values = [np.mean([reference.roc_auc_score(y == k, p[:, k]) for k in range(3)]) for p in pair]
        else:
            values = [multiclass.evaluate(y, p, metrics=[name])[name] for p in pair]
        null.append(values[0] - values[1])
    assert found.p[0] == np.mean(np.abs(null) >= abs(null[0]) - 1e-12)
    assert found.p_method[0] == "permutation, all 32 swaps of groups"


@pytest.mark.parametrize("name", sorted(comparisons.LINEAR & set(multiclass.METRICS)))
def test_linear_in_the_swaps_is_what_all_swaps_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    y, logits = sample(k=3, n=60)
    options: dict[str, Any] = {"logits": True, "groups": np.arange(60) % 12, "n_permutations": 300}
    found = multiclass.permutation_test(y, logits, metric=name, **options)
    binary = comparisons.permutation_test(y == 0, logits[:, :, 0], metric="auroc", **options)
    monkeypatch.setattr(comparisons, "LINEAR", set[str]())
    again = multiclass.permutation_test(y, logits, metric=name, **options)
    assert (found.p[0], found.standard_error[0]) == (again.p[0], pytest.approx(again.standard_error[0]))
    again = comparisons.permutation_test(y == 0, logits[:, :, 0], metric="auroc", **options)
    assert binary.p[0] == again.p[0]


def test_few_groups_of_a_class_are_compared_by_permutation() -> None:
    y, logits = sample(k=3, n=120)
    groups = np.where(y == 2, np.arange(120) % 4, np.arange(120) // 6)
    found = multiclass.compare_paired(y, logits, logits=True, groups=groups)
    for one in found.values():
        assert one.p_method[0] == "permutation, random 9999 swaps of groups"
        assert 0 < one.p[0] <= 1


def test_an_expert_is_compared_with_models_on_the_same_rows() -> None:
    y, logits = sample(k=3, n=240)
    rng = np.random.default_rng(1)
    expert = np.where(rng.random(240) < 0.8, y, rng.integers(0, 3, 240))
    both = np.concatenate([special.softmax(logits, axis=2), multiclass.one_hot(expert, 3)[:, None]], axis=1)
    names = ["balanced_accuracy", "kappa"]
    groups = np.arange(240) // 8
    found = multiclass.estimate(y, both, groups=groups, metrics=names)
    assert found["kappa"].value[2] == pytest.approx(reference.cohen_kappa_score(y, expert))
    against = multiclass.compare_paired(y, both, groups=groups, metrics=names, reference=2, estimates=found)
    assert against["kappa"].difference == pytest.approx(found["kappa"].value[:2] - found["kappa"].value[2])
    with pytest.raises(ProbeError, match="row 3 has 3"):
        multiclass.one_hot([0, 1, 2, 3], 3)


def test_of_equal_models_nothing_differs() -> None:
    y, logits = sample(k=3, n=240)
    same = logits[:, [0, 0]]
    found = multiclass.compare_paired(y, same, logits=True, groups=np.arange(240) // 8)
    for one in found.values():
        assert (one.difference[0], one.p[0]) == (0, 1)
        assert isinstance(one, comparisons.Differences)
