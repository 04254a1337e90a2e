"""The Cholesky factors of the preconditioner: singular moments, and such that are never definite."""

import numpy as np
import pytest
from patchbank.probe.solver import preconditioner


def test_a_singular_matrix_gets_the_ridge_that_float32_needs() -> None:
    direction = np.arange(1, 6, dtype=np.float32)
    singular = np.outer(direction, direction)
    factor, lower = preconditioner._factor(singular, 1.0, 0.0)
    product = np.tril(factor) @ np.tril(factor).T
    assert lower
    np.testing.assert_allclose(product, singular, atol=2e-3 * float(np.trace(singular)) / 5)


def test_a_matrix_that_no_ridge_makes_definite_ends_in_an_error() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="definite"):
        preconditioner._factor(-1e6 * np.eye(3, dtype=np.float32), 1.0, 0.0)


def test_rows_that_are_all_the_same_leave_the_penalty_alone() -> None:
    rows = np.zeros((5, 9), dtype=np.float32)
    rows[:, -1] = 1
    solver = preconditioner.Spectrum.of_rows(rows, np.full(5, 0.2, dtype=np.float32))
    b = np.arange(16, dtype=np.float32).reshape(2, 8)
    h, lam = np.ones(2, dtype=np.float32), np.array([1, 4], dtype=np.float32)
    np.testing.assert_allclose(solver.solve(b, h, lam), b / lam[:, None])
