"""Which strengths start from which, and the fits that are followed along the path."""

import numpy as np
import pytest
from patchbank.probe.solver.design import Design
from patchbank.probe.solver.lbfgs import Minimum, lagrange, minimise
from patchbank.probe.solver.objective import Objective
from patchbank.probe.solver.path import follow, ladder
from patchbank.probe.solver.preconditioner import Preconditioner


def test_the_ladder_starts_every_strength_from_others_that_come_before_it():
    grid = np.logspace(-6, 1, 40)
    parents = ladder(grid)
    depth = np.zeros(40, dtype=int)
    for _ in range(3):
        depth = np.array([1 + max(depth[of], default=-1) for of in parents])
    assert depth.max() == 2
    assert sum(not of for of in parents) == 11
    assert all(len(of) in (0, 4) and k not in of for k, of in enumerate(parents))
    assert parents[38][0] in (37, 39)
    assert ladder(np.array([1.0])) == [[]]
    assert not any(ladder(np.logspace(-4, 1, 4)))  # too far apart


def test_the_ladder_of_short_passes_begins_with_every_second_strength():
    parents = ladder(np.logspace(-2, 2, 13), stride=2)
    assert [not of for of in parents] == [k % 2 == 0 for k in range(13)]
    assert all(abs(parents[k][0] - k) == 1 for k in range(1, 13, 2))


@pytest.mark.parametrize("degree", range(4))
def test_lagranges_shares_reproduce_polynomials(degree):
    nodes = np.array([-1.0, 0.3, 1.0, 2.5])
    coefficients = np.arange(1, degree + 2)
    values = np.polyval(coefficients, nodes)
    assert np.dot(lagrange(0.7, nodes), values) == pytest.approx(np.polyval(coefficients, 0.7))
    assert sum(lagrange(0.7, nodes)) == pytest.approx(1)


def test_what_the_descent_has_left_is_followed_from_the_last_solution():
    """Half of the strengths are solved, the others not begun: their optimum is the one from zero."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 10))
    y = (X[:, 0] + rng.logistic(size=120) > 0).astype(int)
    design = Design(X, y, np.ones((1, 120)), n_classes=2, standardize=True, memory=1e9)
    lam = 1 / np.logspace(-3, 3, 8)
    objective = Objective(design, np.zeros(8, dtype=int), lam)
    options = {"tol": 1e-9, "max_rounds": 300}
    H0, ids = Preconditioner(objective), np.arange(8)
    whole = minimise(objective, H0, ids, **options)
    found = Minimum.nothing(8, 1, 11)
    follow(objective, H0, found, **options)
    assert np.isinf(found.value).all()  # there is no solution to start from
    found.put(ids[:4], minimise(objective, H0, ids[:4], **options))
    follow(objective, H0, found, **options)
    assert found.converged.all()
    np.testing.assert_allclose(found.value, whole.value, rtol=1e-7)
    np.testing.assert_allclose(found.theta, whole.theta, atol=1e-3)
