"""The compact L-BFGS direction against the dense BFGS update, pair by pair; slots that move."""

from typing import cast

import numpy as np
import pytest
from patchbank.probe.solver.lbfgs import _Slots
from patchbank.probe.solver.preconditioner import Preconditioner


def diagonal(g, curvature, ids):
    """An H0: a fixed diagonal."""
    return (g * np.arange(1, g.shape[-1] + 1)).astype(np.float32)


scaled = cast(Preconditioner, diagonal)


def dense(pairs, D):
    """The inverse Hessian after these pairs (s, y), from the diagonal of `scaled`."""
    H = np.diag(np.arange(1.0, D + 1))
    for s, y in pairs:
        rho = 1 / (s @ y)
        V = np.eye(D) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return H


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_the_direction_is_the_dense_updates(count):
    """Memory 4: of six pairs the last four count."""
    rng, D = np.random.default_rng(0), 5
    curved = np.diag(rng.uniform(0.5, 2, D))
    slots = _Slots(2, 4, 1, D)
    for problem in range(2):
        slot = slots.add(problem, np.zeros((1, D)))
        slots.gradient[slot] = rng.standard_normal((1, D))
    pairs = [[], []]
    for _ in range(count):
        s = rng.standard_normal((2, D)).astype(np.float32)
        y = (s @ curved).astype(np.float32)
        slots.push(slice(0, 2), s, y)
        for p in range(2):
            pairs[p].append((s[p].astype(float), y[p].astype(float)))
    found = slots.descend(slice(0, 2), scaled)
    for p in range(2):
        expected = -dense(pairs[p][-4:], D) @ slots.gradient[p, 0]
        np.testing.assert_allclose(found[p], expected, rtol=1e-3, atol=1e-3)
    slots.shrink(2)  # more memory, the same pairs
    assert slots.memory == 8
    np.testing.assert_allclose(slots.descend(slice(0, 2), scaled), found, rtol=1e-4, atol=1e-4)


def test_a_pair_without_curvature_is_left_out():
    slots = _Slots(1, 4, 1, 3)
    slots.add(0, np.zeros((1, 3)))
    slots.gradient[0] = [[1, 2, 3]]
    before = slots.descend(slice(0, 1), scaled)
    s = np.ones((1, 3), dtype=np.float32)
    slots.push(slice(0, 1), s, -s)
    slots.push(slice(0, 1), s, np.zeros_like(s))
    np.testing.assert_array_equal(slots.descend(slice(0, 1), scaled), before)


def test_slots_keep_their_problems_when_others_leave():
    slots = _Slots(4, 2, 1, 2)
    for problem in range(4):
        slots.add(problem, np.full((1, 2), float(problem)))
    slots.wait(1)  # to float64
    assert (slots.running, slots.used) == (3, 4)
    assert slots.ids[3] == 1
    slots.free(0)
    assert (slots.running, slots.used) == (2, 3)
    assert set(slots.ids[:2]) == {2, 3}
    assert slots.ids[2] == 1
    assert (slots.theta[:3, 0, 0] == slots.ids[:3]).all()
