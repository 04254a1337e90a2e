"""Metrics of predicted numbers against scikit-learn and scipy, their intervals and comparisons."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import comparisons, continuous, intervals
from scipy import stats
from sklearn import metrics as reference

Floats = NDArray[np.float64]


def sample(
    n: int = 120, m: int = 2, t: int = 3, *, seed: int = 0, decimals: int = 1
) -> tuple[Floats, Floats]:
    """Targets of several scales and predictions of several qualities, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    y = rng.gamma(2.0, size=(n, t)) * 10.0 ** np.arange(t) + 5
    noise = rng.normal(size=(n, m, t)) * np.linspace(0.5, 2, m)[:, None] * y.std(axis=0)
    return np.round(y, decimals), np.round(y[:, None] * 0.8 + noise, decimals)


def scipy_spearman(y: Any, p: Any) -> float:
    found: Any = stats.spearmanr(y, p)
    return found.statistic


REFERENCE: dict[str, Callable[[Any, Any], float]] = {
    "pearson": lambda y, p: np.corrcoef(y, p)[0, 1],
    "spearman": lambda y, p: scipy_spearman(y, p),
    "r2": lambda y, p: reference.r2_score(y, p),
    "mae": lambda y, p: reference.mean_absolute_error(y, p),
}


@pytest.mark.parametrize("name", continuous.METRICS)
@pytest.mark.parametrize(("seed", "decimals"), [(0, 0), (1, 1), (2, 9)])
def test_equals_the_reference_for_each_model_and_target(name: str, seed: int, decimals: int) -> None:
    y, p = sample(seed=seed, decimals=decimals)
    found = continuous.evaluate(y, p, metrics=[name])[name]
    expected = [[REFERENCE[name](y[:, t], p[:, j, t]) for t in range(3)] for j in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    np.testing.assert_allclose(continuous.evaluate(y, p[:, 1], metrics=[name])[name], found[1], rtol=1e-13)


def test_every_metric_has_an_independent_reference() -> None:
    assert set(REFERENCE) == set(continuous.METRICS) == set(continuous.DEFAULT_METRICS)


def test_weights_of_clusters_are_repetitions_of_their_rows() -> None:
    y, p = sample()
    codes = np.random.default_rng(1).integers(0, 15, len(y))
    codes[:15] = np.arange(15)
    weights = np.random.default_rng(2).integers(0, 3, (4, 15))
    found = continuous.evaluate(y, p, weights=weights, groups=codes)
    for b, one in enumerate(weights):
        rows = np.repeat(np.arange(len(y)), one[codes])
        for name, score in REFERENCE.items():
            expected = [[score(y[rows, t], p[rows, j, t]) for t in range(3)] for j in range(2)]
            np.testing.assert_allclose(found[name][b], expected, rtol=1e-10, err_msg=name)
    one = continuous.evaluate(y, p, weights=weights[0], groups=codes)
    for name, value in one.items():
        np.testing.assert_allclose(value, found[name][0], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", continuous.METRICS)
def test_weights_that_are_no_counts_agree_with_scikit_learn(name: str) -> None:
    y, p = sample(decimals=9)
    w = np.random.default_rng(3).gamma(1.0, size=len(y))
    found = continuous.evaluate(y, p[:, 0], metrics=[name], weights=w)[name]
    for t in range(3):
        if name == "r2":
            expected = reference.r2_score(y[:, t], p[:, 0, t], sample_weight=w)
        elif name == "mae":
            expected = reference.mean_absolute_error(y[:, t], p[:, 0, t], sample_weight=w)
        else:
            a, b = y[:, t], p[:, 0, t]
            if name == "spearman":
                a, b = ([w[z < v].sum() + w[z == v].sum() / 2 for v in z] for z in (a, b))
            covariance = np.cov(a, b, aweights=w)
            expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert found[t] == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("groups", [None, "slides"])
def test_without_a_cluster_is_without_its_rows(groups: str | None) -> None:
    y, p = sample(n=60)
    codes = np.arange(60) if groups is None else np.random.default_rng(1).permutation(np.arange(60) % 9)
    found = continuous.leave_one_out(
        y, p, metrics=list(continuous.METRICS), groups=None if groups is None else codes
    )
    for g in range(codes.max() + 1):
        rows = codes != g
        again = continuous.evaluate(y[rows], p[rows])
        for name in continuous.METRICS:
            np.testing.assert_allclose(found[name][g], again[name], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize("clusters", [1200, 240])
def test_many_rows_change_spearman_one_by_one(
    monkeypatch: pytest.MonkeyPatch, decimals: int, clusters: int
) -> None:
    y, p = sample(n=1200, t=1, decimals=decimals)
    codes = np.arange(1200) % clusters
    exact = continuous.leave_one_out(y, p, metrics=["spearman"], groups=codes)["spearman"]
    monkeypatch.setattr(continuous, "_CELLS", 1000)
    near = continuous.leave_one_out(y, p, metrics=["spearman"], groups=codes)["spearman"]
    spread = exact.std(axis=0)
    assert (np.abs(near - exact).max(axis=0) < 0.05 * spread).all()
    np.testing.assert_allclose(near.std(axis=0), spread, rtol=0.02)
    blocks = continuous.evaluate(y, p, metrics=["spearman"], weights=np.ones((5, 1200)))["spearman"]
    np.testing.assert_allclose(blocks, np.broadcast_to(blocks[0], blocks.shape))


def test_large_offsets_cost_no_digits() -> None:
    y, p = sample(decimals=9)
    plain, moved = continuous.evaluate(y, p), continuous.evaluate(y + 1e7, p + 1e7)
    for name, value in plain.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-6, err_msg=name)
    scaled = continuous.evaluate(y * 1e-9, p * 1e-9)
    for name in ("pearson", "spearman", "r2"):
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-9, err_msg=name)


# --- edges


def test_a_constant_target_leaves_no_mean_over_fewer() -> None:
    y, p = sample()
    y[:, 1] = 3.0
    found = continuous.estimate(y, p, groups=np.arange(120) // 6, targets=["A", "B", "C"])
    for name in ("pearson", "spearman", "r2"):
        assert np.isnan(found[name].value).all(), name
        assert found[name].reason[0].endswith("(B)")
        assert np.isfinite(found.targets[0][name].value).all()
        assert np.isnan(found.targets[1][name].value).all()
    assert found["r2"].reason[0] == "the value is undefined: a target is constant (B)"
    assert np.isfinite(found["mae"].low).all()


def test_constant_predictions_have_an_r2_and_no_correlation() -> None:
    y, _ = sample()
    p = np.broadcast_to(y.mean(axis=0), y.shape)
    found = continuous.evaluate(y, p)
    np.testing.assert_allclose(found["r2"], 0, atol=1e-12)
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(found["spearman"]).all()


def test_one_row_has_an_error_and_nothing_else() -> None:
    found = continuous.evaluate([[2.0]], [[1.5]])
    assert found["mae"] == 0.5
    assert all(np.isnan(found[name]) for name in ("pearson", "spearman", "r2"))
    left = continuous.leave_one_out([[2.0]], [[1.5]], metrics=list(continuous.METRICS))
    assert all(np.isnan(value).all() for value in left.values())


def test_a_target_that_varies_in_one_slide_has_no_interval() -> None:
    y, p = sample(t=1)
    groups = np.arange(120) // 12
    y[groups > 0] = 7.0
    found = continuous.estimate(y, p, groups=groups)
    for name in ("pearson", "spearman", "r2"):
        assert found[name].reason[0] == "undefined without one of the groups", name
    assert found["mae"].reason[0] == ""


@pytest.mark.parametrize(
    ("y", "p", "options", "error", "message"),
    [
        ([[1.0], [np.nan]], [[1.0], [2.0]], {}, ProbeError, "1 rows have a target .* first is row 1"),
        ([[1.0], [2.0]], [[1.0], [np.inf]], {}, ProbeError, "a prediction .* first is row 1"),
        ([1.0, 2.0], [1.0, 2.0], {}, InvalidRequest, "do not fit"),
        ([[1.0]], [[1.0, 2.0]], {}, InvalidRequest, "do not fit"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, InvalidRequest, "at least one row"),
        ([[1.0]], [[1.0]], {"metrics": ["rmse"]}, InvalidRequest, "called rmse; there are: pearson"),
        ([[1.0]], [[1.0]], {"groups": ["a"]}, InvalidRequest, "integer codes"),
    ],
)
def test_bad_input_is_refused(
    y: Any, p: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        continuous.evaluate(y, p, **options)


def test_names_fit_the_targets_and_pairs_need_two_models() -> None:
    y, p = sample()
    with pytest.raises(InvalidRequest, match="2 names for 3 targets"):
        continuous.estimate(y, p, groups=None, targets=["A", "B"])
    with pytest.raises(InvalidRequest, match="two models or more"):
        continuous.compare_paired(y, p[:, 0], groups=None)


# --- intervals and comparisons


@pytest.mark.parametrize("name", continuous.METRICS)
def test_the_standard_error_is_the_jackknifes_by_hand(name: str) -> None:
    y, p = sample(n=200)
    groups = np.arange(200) // 10
    found = continuous.estimate(y, p, groups=groups, metrics=[name], inflation=1.25)
    without = np.stack(
        [continuous.evaluate(y[groups != g], p[groups != g], metrics=[name])[name] for g in range(20)]
    )

    def error(values: Floats) -> Floats:
        return np.sqrt(1.25 * 19 / 20 * ((values - values.mean(axis=0)) ** 2).sum(axis=0))

    np.testing.assert_allclose(found[name].standard_error, error(without.mean(axis=2)), rtol=1e-8)
    for t, one in enumerate(found.targets):
        np.testing.assert_allclose(one[name].standard_error, error(without[:, :, t]), rtol=1e-8)
        assert one[name].metric == name
        assert (one[name].low < one[name].value).all()
        assert (one[name].value < one[name].high).all()
    assert np.isfinite(found[name].design_effect).all()
    assert (found[name].degrees_of_freedom <= 19).all()


def test_an_interval_of_a_correlation_stays_within_its_range() -> None:
    y, _ = sample(t=1)
    p = y + 0.001 * np.random.default_rng(0).normal(size=y.shape)
    found = continuous.estimate(y, p, groups=np.arange(120) // 30, metrics=["pearson"])["pearson"]
    assert -1 < found.low[0] < found.value[0] < found.high[0] < 1


@pytest.mark.parametrize("name", continuous.METRICS)
def test_percentiles_are_those_of_rows_that_are_really_drawn(name: str) -> None:
    y, p = sample(n=60, m=1)
    groups = np.arange(60) // 4
    options: dict[str, Any] = {"method": "percentile", "n_resamples": 30, "seed": 5}
    found = continuous.estimate(y, p, groups=groups, metrics=[name], **options)[name]
    drawn = []
    for one in intervals.cluster_weights(15, n_resamples=30, seed=5):
        rows = np.repeat(np.arange(60), one[groups])
        drawn.append(continuous.evaluate(y[rows], p[rows], metrics=[name])[name].mean())
    assert found.draws is not None
    np.testing.assert_allclose(found.draws[:, 0], drawn, rtol=1e-10)
    assert found.low[0] == pytest.approx(np.quantile(drawn, 0.025))


def test_a_paired_difference_is_the_jackknifes_by_hand() -> None:
    y, p = sample(n=240)
    groups = np.arange(240) // 8
    found = continuous.compare_paired(y, p, groups=groups, metrics=list(continuous.METRICS))
    for name, one in found.items():
        without = np.stack(
            [
                continuous.evaluate(y[groups != g], p[groups != g], metrics=[name])[name].mean(axis=-1)
                for g in range(30)
            ]
        )
        apart = without[:, 0] - without[:, 1]
        error = np.sqrt(29 / 30 * ((apart - apart.mean()) ** 2).sum())
        assert one.standard_error[0] == pytest.approx(error, rel=1e-7), name
        assert one.p_method[0] == "jackknife over groups, Student's t"
        t = abs(one.difference[0] / error)
        assert one.p[0] == pytest.approx(2 * stats.t.sf(t, one.degrees_of_freedom[0]), rel=1e-5)


@pytest.mark.parametrize("name", continuous.METRICS)
def test_the_permutation_test_is_that_of_predictions_really_exchanged(name: str) -> None:
    y, p = sample(n=40)
    groups = np.arange(40) % 5
    found = continuous.permutation_test(y, p, metric=name, groups=groups)
    table = p
    if name == "pearson":
        table = (p - p.mean(axis=0)) / p.std(axis=0)
    elif name == "spearman":
        table = stats.rankdata(p, axis=0)
    null = []
    for swap in product([False, True], repeat=5):
        mask = np.array(swap)[groups][:, None]
        pair = [np.where(mask, table[:, 1 - j], table[:, j]) for j in range(2)]
        values = [np.mean([REFERENCE[name](y[:, t], q[:, t]) for t in range(3)]) for q in pair]
        null.append(values[0] - values[1])
    assert found.p[0] == np.mean(np.abs(null) >= abs(found.difference[0]) - 1e-9)
    if name in comparisons.LINEAR:
        assert found.standard_error[0] == pytest.approx(np.std(null))


def test_few_groups_are_compared_by_permutation() -> None:
    y, p = sample()
    found = continuous.compare_paired(y, p, groups=np.arange(120) // 20, metrics=["pearson", "mae"])
    for one in found.values():
        assert one.p_method[0] == "permutation, all 64 swaps of groups"
        assert one.p[0] >= 1 / 32
