"""Loss, gradient and curvature against finite differences, the dual bound against the optimum, and the
standardised rows against scikit-learn's scaler.
"""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from patchbank.errors import InvalidRequest
from patchbank.probe.solver import design as design_module
from patchbank.probe.solver import objective as objective_module
from patchbank.probe.solver.design import Design
from patchbank.probe.solver.logistic import fit_logistic
from patchbank.probe.solver.objective import Objective, _balance
from patchbank.probe.solver.preconditioner import Preconditioner, Spectrum
from sklearn.preprocessing import StandardScaler


def data(n=50, d=4, k=3, seed=0):
    """Features, labels, and two sets of weights; the second leaves rows out."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(1, 20, d) + rng.standard_normal(d)
    v = rng.uniform(0.2, 2, (2, n))
    v[1, 2 * k :: 3] = 0
    return X, np.arange(n) % k, v


def problems(k, standardize=True, n=50, d=4):
    X, y, v = data(n, d, k)
    design = Design(X, y, v, n_classes=k, standardize=standardize, memory=1e9)
    objective = Objective(design, np.array([0, 1, 1]), np.array([0.5, 0.5, 20.0]))
    theta = 0.5 * np.random.default_rng(3).standard_normal((3, design.outputs, d + 1))
    return X, y, v, objective, theta


def value(coef, intercept, X, y, v, penalty):
    """From the definition, of coefficients for X as given."""
    z = X @ coef.T + intercept
    z = np.column_stack([np.zeros(len(y)), z]) if len(coef) == 1 else z
    return v @ (np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]) + penalty


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_problems_are_the_same_alone_and_beside_others(count):
    """However many columns of zeros a product is filled up with; and so is their preconditioner."""
    X, y, v = data(80, 6, 2)
    design = Design(X, y, v, n_classes=2, standardize=True, memory=1e9)
    ids = np.arange(count)
    objective = Objective(design, ids % 2, np.geomspace(0.1, 10, count))
    theta = np.random.default_rng(1).standard_normal((count, 1, 7))
    H0, all_at_once = Preconditioner(objective), objective.gradients(ids, theta)
    steps = H0(all_at_once.gradient, all_at_once.curvature, ids)
    for p in ids:
        alone = objective.gradients(ids[p : p + 1], theta[p : p + 1])
        np.testing.assert_allclose(alone.value, all_at_once.value[p : p + 1], rtol=1e-6)
        np.testing.assert_allclose(alone.gradient, all_at_once.gradient[p : p + 1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(alone.curvature, all_at_once.curvature[p : p + 1], rtol=1e-5)
        step = H0(alone.gradient, alone.curvature, ids[p : p + 1])
        np.testing.assert_allclose(step, steps[p : p + 1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("k", [2, 3])
def test_pieces_that_stay_in_the_cache_change_nothing(k, monkeypatch):
    *_, whole, theta = problems(k, n=300)
    expected = whole.exact(np.arange(3), theta)
    monkeypatch.setattr(design_module, "CACHED_BYTES", 1)
    monkeypatch.setattr(design_module, "KEPT_BYTES", 0)
    monkeypatch.setattr(objective_module, "PROFILE_BYTES", 1)
    *_, cut, theta = problems(k, n=300)
    assert (whole.design.rows_at_once, cut.design.rows_at_once) == (design_module.READ_ROWS, 64)
    found = cut.exact(np.arange(3), theta)
    for name, array in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), array, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("standardize", [True, False, "overall"])
@pytest.mark.parametrize("k", [2, 3])
def test_exact_is_the_definition_at_the_best_intercepts(k, standardize):
    X, y, v, objective, theta = problems(k, standardize)
    at = objective.exact(np.arange(3), theta)
    assert at.theta is not None
    coef, intercept = objective.design.to_raw(at.theta, objective.sets)
    for p, s in enumerate(objective.sets):
        penalty = objective.lam[p] / 2 * np.sum(at.theta[p, :, :-1] ** 2)
        assert at.value[p] == pytest.approx(value(coef[p], intercept[p], X, y, v[s], penalty), rel=1e-10)

        def of_intercepts(b, p=p, s=s, penalty=penalty):
            return value(coef[p], b, X, y, v[s], penalty)

        best = scipy.optimize.minimize(of_intercepts, intercept[p] + 0.1, tol=1e-12).fun
        assert at.value[p] == pytest.approx(best, rel=1e-8)
    np.testing.assert_array_equal(at.theta[..., :-1], theta[..., :-1])
    np.testing.assert_allclose(at.gradient[..., -1], 0, atol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_gradients_are_derivatives_in_float64_and_float32(k):
    _, _, _, objective, theta = problems(k)
    ids = np.arange(3)
    at = objective.exact(ids, theta)
    assert at.theta is not None
    for p in ids:

        def along(flat, p=p, moved=at.theta[p]):
            moved = moved.copy()
            moved[:, :-1] = flat.reshape(moved[:, :-1].shape)
            return objective.exact(np.array([p]), moved[None]).value[0]  # the intercepts follow

        flat: Any = scipy.optimize.approx_fprime(at.theta[p, :, :-1].ravel(), along, 1e-6)
        np.testing.assert_allclose(at.gradient[p, :, :-1].ravel(), flat, atol=1e-3)
    single = objective.gradients(ids, at.theta)
    np.testing.assert_allclose(single.gradient, at.gradient, atol=1e-4)
    np.testing.assert_allclose(single.curvature, at.curvature, rtol=1e-4, atol=1e-4)
    assert (single.value <= at.value).all()  # a lower bound


@pytest.mark.parametrize("k", [2, 4])
def test_the_gap_is_a_bound_and_closes_at_the_optimum(k):
    X, y, v, objective, theta = problems(k, n=60)
    at = objective.exact(np.arange(3), theta)
    fine = fit_logistic(X, y, C=[0.05, 2.0], weights=v, tol=1e-13)
    best = np.array([fine.objective[0, 1], fine.objective[1, 1], fine.objective[1, 0]])
    assert at.gap is not None
    assert (at.value - best <= at.gap).all()
    assert (at.value - best > 1e-3 * best).all()  # theta is not the optimum
    assert (fine.gap_bound < 1e-10).all()


def test_threads_and_blocks_change_nothing():
    X, y, v = data(5000, 6, 2)
    design = Design(X, y, v, n_classes=2, standardize=True, memory=1e9)
    theta = np.random.default_rng(0).standard_normal((2, 1, 7))
    one, three = (Objective(design, np.arange(2), np.ones(2), threads=t) for t in (1, 3))
    try:
        for name in ("gradients", "exact"):
            a, b = (getattr(o, name)(np.arange(2), theta) for o in (one, three))
            np.testing.assert_allclose(a.gradient, b.gradient, rtol=1e-4, atol=1e-2)
            np.testing.assert_allclose(a.value, b.value, rtol=1e-6)
    finally:
        three.close()


def test_balanced_flows_lose_what_they_get():
    flow = np.random.default_rng(0).uniform(0, 1, (5, 4, 4)) * (1 - np.eye(4))
    factors = _balance(flow)
    assert factors.max(axis=1) == pytest.approx(1)
    moved = factors[:, :, None] * flow
    np.testing.assert_allclose(moved.sum(axis=1), moved.sum(axis=2))
    assert (_balance(np.zeros((1, 3, 3))) == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_rows_of_a_set_are_those_of_a_scaler(dtype):
    X, y, v = data(80, 5, 2)
    X = X.astype(dtype)
    X[:, 4] = np.where(v[1] > 0, dtype(3), X[:, 4])  # constant in set 1
    design = Design(X, y, v, n_classes=2, standardize=True, memory=1e9)
    rows = design.unsigned(np.arange(design.n))
    for s in range(2):
        used = design.weights[s] > 0
        theirs = StandardScaler().fit_transform(X[v[s] > 0].astype(np.float64))
        ours = rows[used] * design.factor[s, :-1]
        ours -= ours.mean(axis=0)  # the intercept takes the constant
        order = design.order[used]
        expected = theirs[np.searchsorted(np.flatnonzero(v[s] > 0), order)]
        np.testing.assert_allclose(ours, expected, atol=1e-3 if dtype == np.float16 else 1e-5)
    assert (design.factor[:, 4] == 0).tolist() == [False, True]


def test_rows_are_in_the_segments_of_the_sets_that_use_them():
    X, y, _ = data(600, 3, 2)
    fold = np.arange(600) % 3
    v = np.stack([(fold != k).astype(float) for k in range(3)])
    v[:, 7] = 0  # a row of no set
    design = Design(X, y, v, n_classes=2, standardize=True, memory=1e9)
    assert design.n == 599
    assert 7 not in design.order
    assert len(design.segments) == 3
    for segment in design.segments:
        np.testing.assert_array_equal(segment.sets, design.weights[:, segment.lo] > 0)
        assert (segment.sets == design.weights[:, segment.lo : segment.hi].T).all()
    cut = design.blocks(50)
    assert [b.lo for b in cut[1:]] == [b.hi for b in cut[:-1]]
    assert max(b.hi - b.lo for b in cut) <= 50
    with pytest.raises(InvalidRequest, match="every weight is 0"):
        Design(X, y, np.zeros((1, 600)), n_classes=2, standardize=True, memory=1e9)


def test_the_preconditioner_is_the_inverse_hessian_where_all_probabilities_are_a_half():
    """At theta = 0 with balanced classes, which the shared moments are exact for."""
    X, y, _ = data(400, 6, 2)
    design = Design(X, y, np.ones((1, 400)), n_classes=2, standardize=True, memory=1e9)
    objective = Objective(design, np.zeros(2, dtype=int), np.array([3.0, 400.0]))
    A = np.column_stack([design.unsigned(np.arange(400)), np.ones(400)])
    g = np.random.default_rng(0).standard_normal((2, 1, 7)).astype(np.float32)
    h = np.full((2, 1, 1), 100.0)
    found = Preconditioner(objective)(g, h, np.arange(2))
    for p, lam in enumerate(objective.lam):
        H = A.T @ A / 4 + np.diag(np.append(np.full(6, lam), 0))
        np.testing.assert_allclose(found[p, 0], np.linalg.solve(H, g[p, 0]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spectrum", [True, False])
def test_a_refined_preconditioner_is_the_inverse_hessian_at_its_point(spectrum):
    _, _, _, objective, theta = problems(2, n=300)
    ids = np.array([1])
    at = objective.gradients(ids, theta[1:2])
    H0 = Preconditioner(objective)
    H0.refine(ids, theta[1:2], at.curvature, spectrum=spectrum)
    assert len(H0.solvers) == 2
    design = objective.design
    A = np.column_stack([design.unsigned(np.arange(300)) * design.factor[1, :-1], np.ones(300)])
    p = 1 / (1 + np.exp(-A @ theta[1, 0]))
    H = (A * (design.weights[1] * p * (1 - p))[:, None]).T @ A + np.diag([0.5] * 4 + [0])
    g = np.random.default_rng(1).standard_normal((1, 1, 5)).astype(np.float32)
    np.testing.assert_allclose(
        H0(g, at.curvature, ids)[0, 0], np.linalg.solve(H, g[0, 0]), rtol=0.01, atol=1e-4
    )
    H0.release(ids)
    assert len(H0.solvers) == 1


def test_fewer_rows_than_features_have_the_same_spectrum():
    rng = np.random.default_rng(0)
    A = np.column_stack([rng.standard_normal((12, 30)), np.ones(12)]).astype(np.float32)
    share = np.full(12, 1 / 12, dtype=np.float32)
    rows, moments = Spectrum.of_rows(A, share), Spectrum.of_moments((A * share[:, None]).T @ A)
    np.testing.assert_allclose(rows.values[-11:], moments.values[-11:], rtol=1e-3)
    centred = A[:, :-1] - A[:, :-1].mean(axis=0)  # gradients lie in the space of the rows
    b = (rng.standard_normal((2, 12)) @ centred).astype(np.float32)
    lam = np.array([0.1, 5.0], dtype=np.float32)
    h = np.ones(2, dtype=np.float32)
    np.testing.assert_allclose(rows.solve(b, h, lam), moments.solve(b, h, lam), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("k", [2, 4])
def test_moments_are_the_mean_of_the_problems_and_their_outputs(k):
    X, _, v, objective, theta = problems(k)
    ids, s = np.array([1, 2]), 1
    curvature = objective.gradients(ids, theta[ids]).curvature
    # the mean of all rows, the scale of the set's
    A = np.column_stack([(X - X.mean(axis=0)) / X[v[s] > 0].std(axis=0), np.ones(len(X))])
    z = np.einsum("nd,pmd->npm", A, theta[ids])
    z = np.concatenate([np.zeros((len(X), 2, 1)), z], axis=2) if k == 2 else z
    p = np.exp(z - np.logaddexp.reduce(z, axis=2, keepdims=True))
    own = (v[s, :, None, None] * p * (1 - p))[:, :, -objective.design.outputs :]
    each = np.einsum("npm,nd,ne->pmde", own / own.sum(axis=0), A, A)
    moments = objective.moments(ids, theta[ids], curvature)
    np.testing.assert_allclose(moments, np.tril(each.mean(axis=(0, 1))), rtol=1e-4, atol=1e-5)
