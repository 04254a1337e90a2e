"""Newton's steps: derivatives against finite differences, every way to a step against a dense solve, the
optimum against scikit-learn, and rows that are read block by block.
"""

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from patchbank.probe.solver import logistic, newton
from patchbank.probe.solver.design import Design
from patchbank.probe.solver.newton import Rows, _System, solve
from sklearn.linear_model import LogisticRegression


def data(n=60, d=5, k=3, seed=0):
    """Features, labels with every class, and weights."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + rng.standard_normal(d)
    y = np.append(
        np.arange(k), np.argmax(X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k)), axis=1)[k:]
    )
    return X, y, rng.uniform(0.1, 3, n)


def rows_of(k, n=60, d=5, seed=0):
    X, y, v = data(n, d, k, seed)
    return Rows.of(X, y, v, n_classes=k), rng_theta(1 if k == 2 else k, d + 1, seed)


def rng_theta(m, D, seed):
    return np.random.default_rng(seed + 1).standard_normal((m, D))


def in_blocks(rows, size=7):
    """The same rows, read in blocks."""
    n = len(rows.y)
    bounds = [(lo, min(n, lo + size)) for lo in range(0, n, size)]
    return Rows(rows.block, rows.y, rows.weights, n_classes=rows.n_classes, bounds=bounds, basis=rows.basis)


def hessian(rows, p, lam):
    """Written out: sum_i v_i (diag(p_i) - p_i p_i') kron x_i x_i', and lam."""
    A, m = rows.block(0, len(rows.y)), rows.outputs
    D = A.shape[1]
    H = np.zeros((m * D, m * D))
    for a, q, v in zip(A, p[:, -m:], rows.weights, strict=True):
        H += v * np.kron(np.diag(q) - np.outer(q, q), np.outer(a, a))
    return H + np.diag(np.tile(np.append(np.full(D - 1, lam), 0), m))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_objective_is_the_definitions_and_the_gradient_its_derivative(k):
    rows, theta = rows_of(k)
    f, g, p = rows.at(theta, 0.7)
    A = rows.block(0, 60)
    z = A @ theta.T
    z = np.column_stack([np.zeros(60), z]) if k == 2 else z
    loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(60), rows.y]
    assert f == pytest.approx(rows.weights @ loss + 0.35 * np.sum(theta[:, :-1] ** 2), rel=1e-12)
    np.testing.assert_allclose(p, np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)), rtol=1e-10)
    flat: Any = scipy.optimize.approx_fprime(
        theta.ravel(), lambda t: rows.at(t.reshape(theta.shape), 0.7)[0], 1e-6
    )
    np.testing.assert_allclose(g.ravel(), flat, atol=1e-3)


def test_losses_are_exact_far_below_the_rounding_of_one():
    """log(1 + exp(-60)) is 9e-27, and the gradient has its digits too."""
    rows = Rows.of(np.array([[60.0], [-60.0]]), np.array([1, 0]), np.ones(2), n_classes=2)
    f, g, p = rows.at(np.array([[1.0, 0.0]]), 0.0)
    assert f == pytest.approx(2 * np.exp(-60), rel=1e-12, abs=0)
    assert g[0, 0] == pytest.approx(-120 * np.exp(-60), rel=1e-12, abs=0)
    assert p[0, 0] == pytest.approx(np.exp(-60), rel=1e-12, abs=0)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("blocks", [False, True])
def test_every_way_to_a_step_is_a_dense_solve(k, blocks):
    rows, theta = rows_of(k)
    rows = in_blocks(rows) if blocks else rows
    _, g, p = rows.at(theta, 0.3)
    expected = (
        np.linalg.pinv(hessian(rows, p, 0.3)) @ g.ravel()
    )  # pinv: all intercepts may change by a number
    system = _System(rows, p, 0.3)
    b = g * system.scale
    steps = {
        "cholesky": system._cholesky(b, anyhow=False),
        "qr": system._least_squares(b),
        "cg": system._conjugate_gradients(b)[0],
    }
    for name, step in steps.items():
        step = step * system.scale
        if k > 2:
            step[:, -1] -= step[:, -1].mean()
        tolerance = 0.02 if name == "cg" else 1e-8
        np.testing.assert_allclose(
            step.ravel(), expected, atol=tolerance * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.parametrize("k", [2, 3])
def test_a_hessian_that_cholesky_cannot_have_is_solved_by_qr(k):
    """Two columns equal to 1e-9 and hardly a penalty: the step is that of the least squares problem."""
    X, y, v = data(40, 3, k)
    X[:, 1] = X[:, 0] + 1e-9 * X[:, 2]
    rows = Rows.of(X, y, v, n_classes=k)
    theta = np.zeros((rows.outputs, 4))
    _, g, p = rows.at(theta, 1e-12)
    system = _System(rows, p, 1e-12)
    assert system._cholesky(g * system.scale, anyhow=False) is None
    step = system.solve(g)
    assert system.trusted
    H = hessian(rows, p, 1e-12)
    np.testing.assert_allclose(H @ step.ravel(), g.ravel(), atol=1e-6 * np.abs(g).max())
    # where even that would take too long: a larger diagonal, and no trust
    rough = system._cholesky(g * system.scale, anyhow=True) * system.scale
    assert not system.trusted
    assert np.sum(rough * g) > 0


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("shape", [(150, 8), (40, 90), (30, 300)])
def test_the_optimum_is_scikit_learns(shape, k, blocks):
    """Fewer rows than features: in the space of the rows."""
    X, y, v = data(shape[0], shape[1], k)
    rows = Rows.of(X, y, v, n_classes=k)
    assert (rows.basis is None) == (shape[0] > shape[1])
    rows = in_blocks(rows) if blocks else rows
    fit = solve(rows, 2.0, [np.zeros((rows.outputs, X.shape[1] + 1))], tol=1e-16)
    ref = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-12).fit(X, y, v)
    np.testing.assert_allclose(fit.theta[:, :-1], ref.coef_, atol=1e-5)
    np.testing.assert_allclose(
        fit.theta[:, -1] - fit.theta[:, -1].mean(), ref.intercept_ - ref.intercept_.mean(), atol=1e-5
    )
    assert fit.trusted
    assert np.abs(rows.at(rows.inside(fit.theta), 2.0)[1]).max() < 1e-6


def test_columns_of_very_different_scales_keep_them_where_rows_are_few():
    X, y, v = data(20, 40, 2)
    assert Rows.of(X, y, v, n_classes=2).basis is not None
    X *= np.geomspace(1e-5, 1e5, 40)
    assert Rows.of(X, y, v, n_classes=2).basis is None
    wide = np.tile(X, (1, 20))
    assert Rows.of(wide, y, v, n_classes=2).basis is not None


def test_a_start_that_is_far_off_or_no_number_does_no_harm():
    rows, _ = rows_of(3)
    fine = solve(rows, 0.01, [np.zeros((3, 6))], tol=1e-12)
    for bad in (np.full((3, 6), np.nan), np.full((3, 6), 1e200), 1e6 * rng_theta(3, 6, 3)):
        with np.errstate(all="ignore"):
            fit = solve(rows, 0.01, [bad], tol=1e-12)
        assert fit.objective == pytest.approx(fine.objective, rel=1e-10)


def test_the_best_of_the_starts_is_taken():
    rows, _ = rows_of(2)
    fine = solve(rows, 1.0, [np.zeros((1, 6))], tol=1e-14)
    again = solve(rows, 1.0, [np.zeros((1, 6)), fine.theta, np.full((1, 6), 9.0)], tol=1e-8)
    assert fine.n_iter > 2
    assert again.n_iter == 1  # the step that shows that there is nothing left


def test_a_decrement_is_the_distance_to_the_optimum():
    """Near it: f - f* = g' H^-1 g / 2, of the point before the last step."""
    rows, _ = rows_of(3)
    fine = solve(rows, 1.0, [np.zeros((3, 6))], tol=1e-16)
    near = fine.theta + 1e-3 * rng_theta(3, 6, 5)
    before = rows.at(near, 1.0)[0]
    fit = solve(rows, 1.0, [near], tol=1e-2)
    assert fit.n_iter == 1
    assert fit.decrement == pytest.approx(before - fine.objective, rel=0.02)
    assert fit.objective - fine.objective < 1e-4 * fit.decrement


@pytest.mark.parametrize("k", [2, 3])
def test_a_sets_rows_are_the_same_kept_or_read_anew(monkeypatch, k):
    X, y, _ = data(300, 6, k)
    v = np.random.default_rng(2).integers(0, 3, (2, 300)).astype(float)
    v[:, :k] = 1
    design = Design(X, y, v, n_classes=k, standardize=True, memory=1e9)
    kept = logistic._rows(design, 1)
    monkeypatch.setattr(logistic, "KEPT_ROWS", 0)
    monkeypatch.setattr(logistic, "READ_ROWS", 32)
    read = logistic._rows(design, 1)
    assert len(read.bounds) > 5
    assert read.bounds[-1][1] == len(read.y) == (v[1] > 0).sum()
    np.testing.assert_allclose(np.concatenate([A for _, A in read.blocks()]), kept.block(0, len(kept.y)))
    theta = rng_theta(kept.outputs, 7, 0)
    for one, other in zip(kept.at(theta, 0.5), read.at(theta, 0.5), strict=True):
        np.testing.assert_allclose(one, other)
    # in the set's own units
    used = X[v[1] > 0]
    A = np.concatenate([A for _, A in read.blocks()])[:, :-1]
    np.testing.assert_allclose(A.std(axis=0), 1, rtol=1e-9)
    np.testing.assert_allclose(
        np.sort(A - A.mean(axis=0), axis=0), np.sort((used - used.mean(0)) / used.std(0), axis=0), atol=1e-9
    )


@pytest.mark.parametrize("likely", [0, 100])
def test_many_classes_by_conjugate_gradients(monkeypatch, likely):
    monkeypatch.setattr(newton, "CG_LIKELY", likely)
    rows, _ = rows_of(5, n=200, d=12)
    fit = solve(rows, 0.5, [np.zeros((5, 13))], tol=1e-10)
    X, y, v = data(200, 12, 5)
    ref = LogisticRegression(C=2, solver="newton-cholesky", tol=1e-12).fit(X, y, v)
    np.testing.assert_allclose(fit.theta[:, :-1], ref.coef_, atol=1e-4)


def test_conjugate_gradients_without_any_curvature_give_up():
    """All probabilities are 0 or 1: a division by zero, on real embeddings of 8 classes."""
    rows, theta = rows_of(5)
    with np.errstate(all="ignore"):
        _, g, p = rows.at(1e5 * theta, 0.0)
        system = _System(rows, p, 0.0)
        step, done = system._conjugate_gradients(g * system.scale)
    assert not system.own.any()
    assert not done
    assert np.isfinite(step).all()
