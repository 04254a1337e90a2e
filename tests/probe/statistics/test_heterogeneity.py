"""Heterogeneity between domains against statsmodels and a grid."""

from typing import Any

import numpy as np
import pytest
from patchbank.errors import InvalidRequest
from patchbank.probe.statistics.heterogeneity import heterogeneity
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_equals_statsmodels_paule_mandel(spread):
    rng = np.random.default_rng(3)
    errors = rng.uniform(0.05, 0.4, 7)
    values = 1 + spread * rng.normal(size=7) + errors * rng.normal(size=7)
    found = heterogeneity(values.tolist(), errors.tolist())
    reference: Any = combine_effects(values, errors**2, method_re="iterated", atol=1e-12)
    assert found.q == pytest.approx(reference.q, rel=1e-12)
    assert found.p == pytest.approx(reference.test_homogeneity().pvalue, rel=1e-9)
    assert found.sd**2 == pytest.approx(reference.tau2, rel=1e-5)
    typical = 6 * (1 / errors**2).sum() / ((1 / errors**2).sum() ** 2 - (1 / errors**4).sum())
    assert found.i2 == pytest.approx(found.sd**2 / (found.sd**2 + typical))
    assert found.mean == pytest.approx(reference.mean_effect_re, rel=1e-5)
    assert found.mean_error == pytest.approx(reference.sd_eff_w_re, rel=1e-5)
    assert 0 <= found.sd_low <= found.sd <= found.sd_high
    assert 0 <= found.i2_low <= found.i2 <= found.i2_high <= 1


def test_the_interval_holds_what_a_test_does_not_reject():
    """Q at tau2 is a chi-square with k - 1 degrees of freedom: tried on a grid."""
    rng = np.random.default_rng(5)
    errors = rng.uniform(0.05, 0.4, 6)
    values = 0.4 * rng.normal(size=6) + errors * rng.normal(size=6)
    found = heterogeneity(values.tolist(), errors.tolist())
    grid = np.linspace(0, 4, 40001)
    weights = 1 / (errors**2 + grid[:, None])
    means = (weights * values).sum(axis=1) / weights.sum(axis=1)
    q = (weights * (values - means[:, None]) ** 2).sum(axis=1)
    kept = grid[(stats.chi2.cdf(q, 5) > 0.025) & (stats.chi2.cdf(q, 5) < 0.975)]
    assert found.sd_low**2 == pytest.approx(kept.min(), abs=2e-4)
    assert found.sd_high**2 == pytest.approx(kept.max(), abs=2e-4)


def test_equal_domains_have_none():
    found = heterogeneity([0.45, 0.56, 0.5], [0.1, 0.1, 0.1])
    assert (found.sd, found.sd_low, found.i2) == (0, 0, 0)
    assert found.sd_high > 0
    assert found.p > 0.5


def test_one_estimate_has_no_heterogeneity():
    with pytest.raises(InvalidRequest, match="two or more"):
        heterogeneity([1.0], [0.1])
    with pytest.raises(InvalidRequest, match="above 0"):
        heterogeneity([1.0, 2.0], [0.1, 0.0])
