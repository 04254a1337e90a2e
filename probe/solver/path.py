"""The path of strengths: solutions change smoothly along it, so most fits start close to theirs.

`ladder`   a coarse grid of strengths is solved from w = 0, the finer ones start between their neighbours'
    solutions, by cubic interpolation in log C (done in lbfgs.py): half the rounds of the descent.
`follow`   what the descent has left is solved from the strong penalties on, with a Hessian every few
    strengths.
`climb`    more than two classes: every strength starts from the solutions for the penalties before it.
    Hard fits take two thirds of the rounds that the ladder's take.
"""

from typing import Any

import numpy as np

from .lbfgs import Minimum, lagrange, minimise
from .objective import Objective
from .preconditioner import Preconditioner

Array = np.ndarray[Any, np.dtype[Any]]
NODES = 4  # solutions that a start is interpolated from
WIDEST = 2.0  # in log C, between the strengths of the coarse grid: above, interpolation is of no use
NODES_BEFORE = 3  # solutions that a start is extrapolated from in `climb`
COLUMNS = 160  # of coefficients, that a stage of `climb` should have
ABREAST = 2  # strengths of a stage at most: farther ones start too far off
STRIDE = 3  # strengths that share a Hessian and a start in `follow`
STEEP = 0.2  # relative change of the solution from one strength to the next above which they do not
HESSIAN_ROUNDS = 200  # rounds of one problem that its Hessian may cost


def ladder(C: Array, *, stride: int = 4) -> list[list[int]]:
    """C : (L,) ascending, all different. For each strength the places of those that it is interpolated from,
    the nearest first: every fourth from none, those between from these, the rest from both kinds.
    stride : 4, or 2 to begin with every second
    """
    log = np.log(C)
    while stride > 1 and (stride + 1 >= len(log) or (log[stride:] - log[:-stride]).max() > WIDEST):
        stride //= 2
    parents: list[list[int]] = [[] for _ in log]
    known = np.array(sorted({0, *range(len(log) - 1, -1, -stride)}))
    while stride > 1:
        stride //= 2
        new = [k for k in range(len(log) - 1, -1, -stride) if k not in known]
        for k in new:
            parents[k] = known[np.argsort(np.abs(log[known] - log[k]), kind="stable")[:NODES]].tolist()
        known = np.sort(np.concatenate([known, new]).astype(int))
    return parents


def follows(H0: Preconditioner) -> bool:
    """Whether the path with Hessians (`follow`) is the cheaper end of hard problems: not where d is large."""
    return H0.cost(STRIDE, spectrum=False) < HESSIAN_ROUNDS * STRIDE


def follow(objective: Objective, H0: Preconditioner, found: Minimum, *, tol: float, max_rounds: int) -> None:
    """Solve what `minimise` left, along the path of strengths: every set from its last solution, in place.

    `found` has the problems in the objective's order. A few strengths of all sets at a time start from the
    next stronger penalty's solution, carried on linearly in log C, with the Hessian there.
    """
    left = ~found.converged  # what has not been tried here
    H0.release(np.arange(len(left)))
    while left.any():
        stage: list[int] = []
        starts: list[Array] = []
        for s in np.unique(objective.sets[left]):
            nexts, known = _next_on_path(objective, found, left, s)
            if not known:  # no solution to start from: Newton's turn
                left[nexts] = False
                continue
            at = found.theta[known[-1]]
            direction = np.zeros_like(at)
            if len(known) == 2:
                direction = (at - found.theta[known[0]]) / np.log(
                    objective.lam[known[0]] / objective.lam[known[1]]
                )
            stage += nexts
            starts += [at + direction * np.log(objective.lam[known[-1]] / objective.lam[p]) for p in nexts]
            if H0.cost(len(nexts), spectrum=False) < HESSIAN_ROUNDS * len(nexts):
                same = np.full(len(nexts), known[-1])
                H0.refine(np.array(nexts), found.theta[same], found.curvature[same], spectrum=False)
        if stage:
            ids = np.array(stage)
            part = minimise(objective, H0, ids, start=starts, tol=tol, max_rounds=max_rounds)
            found.put(ids, part)
            left[ids] = False
            H0.release(ids)


def _next_on_path(objective: Objective, found: Minimum, left: Array, s: int) -> tuple[list[int], list[int]]:
    """The set's next problems, weakest C first, and the last one or two solutions before them."""
    mine = np.flatnonzero(objective.sets == s)
    mine = mine[np.argsort(-objective.lam[mine], kind="stable")]
    waiting = mine[left[mine]]
    before = mine[: int(np.argmax(left[mine]))]
    known = before[found.converged[before]][-2:].tolist()
    if len(known) == 2 and objective.lam[known[0]] == objective.lam[known[1]]:
        known = known[1:]
    stride = STRIDE + (len(waiting) == STRIDE + 1)  # not one alone at the end
    if len(known) == 2:
        a, b = found.theta[known]
        if np.linalg.norm(b - a) > STEEP * np.linalg.norm(b):  # the solution changes fast
            stride = 1
    return waiting[:stride].tolist(), known


def climb(objective: Objective, H0: Preconditioner, found: Minimum, ids: Array, **options: Any) -> None:
    """Solve the problems `ids` of more than two classes, in place: a few strengths of all sets at a time, the
    strong penalties first, from their sets' solutions for the last ones, carried on in log C.
    """
    strengths = np.unique(objective.lam[ids])[::-1]
    columns = len(np.unique(objective.sets[ids])) * objective.design.outputs
    width = int(np.clip(COLUMNS // columns, 1, ABREAST))
    for k in range(0, len(strengths), width):
        stage = ids[np.isin(objective.lam[ids], strengths[k : k + width])]
        starts = [_carried_on(objective, found, p) for p in stage.tolist()]
        found.put(stage, minimise(objective, H0, stage, start=starts, **options))
        H0.release(stage)


def _carried_on(objective: Objective, found: Minimum, p: int) -> Array | None:
    """Lagrange's extrapolation in log C of the solutions of p's set for the next (up to three) penalties."""
    solved = np.flatnonzero((objective.sets == objective.sets[p]) & np.isfinite(found.value))
    nodes = solved[np.argsort(objective.lam[solved], kind="stable")][:NODES_BEFORE]
    if not len(nodes):
        return None
    shares = lagrange(float(np.log(objective.lam[p])), np.log(objective.lam[nodes]))
    return np.tensordot(shares, found.theta[nodes], axes=1)
