"""L-BFGS on many problems at once: one pass over the rows serves all of them, each keeps its own pace.

Per problem: theta, a direction, a trial step, `memory` pairs (s, y), and a preconditioner H0 shared by all.

1. Line search without function values. Along a direction the objective is convex, so its slope at the trial
   point says enough: slope <= 0 means descent all the way; a positive slope up to half of the first one's
   size is accepted as well; else the step is shortened to the secant's zero. The unit step passes nearly
   always, and a rejected trial costs its problem one pass, not the others.
2. Stop when the estimated decrement g' H g / 2 falls to tol * f. (The loss itself is never computed in
   float32; see objective.py.) Then the problem waits for an evaluation in float64, which must show the same;
   if it does not, the problem goes on with float64 gradients ("polished").
3. The direction is the two-loop recursion in compact form (Byrd, Nocedal, Schnabel 1994, Math. Program. 63,
   theorem 2.2): four batched matrix-vector products with S and Y, two small triangular systems, H0 once.
4. Problems that have ended leave their slot to waiting ones; when there are none, the slots shrink and the
   memory of those that are left grows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .objective import Evaluation, Objective
from .preconditioner import Preconditioner

Array = np.ndarray[Any, np.dtype[Any]]
SLOTS = 256  # columns of coefficients in work at once
MEMORY = 10  # pairs a problem, doubled up to LARGEST_MEMORY as problems end
LARGEST_MEMORY = 40
PATIENCE = 20  # rounds without a smaller decrement: the limit of float32 (or of float64) is reached
WINDOW = 8  # rounds between two looks at how many more a problem will take (`_reconsider`)
HOPELESS = 80  # rounds foreseen, from which on a problem waits for `follow`
STRIDE = 3  # strengths that share a Hessian and a start in `follow`
STEEP = 0.2  # relative change of the solution from one strength to the next above which they do not
HESSIAN_ROUNDS = 200  # rounds of one problem that its Hessian may cost


@dataclass
class Minimum:
    """What was found for P problems, all in float64, the intercept at its optimum for the coefficients.

    theta (P, m, d + 1), value (P,), gradient (P, m, d + 1), curvature (P, m, m),
    gap (P,): upper bound of value - optimum,
    decrement (P,): the estimate that stopping went by, rounds (P,), converged bool (P,),
    polished bool (P,): float64 steps were needed
    """

    theta: Array
    value: Array
    gradient: Array
    curvature: Array
    gap: Array
    decrement: Array
    rounds: Array
    converged: Array
    polished: Array

    def take(self, order: Array) -> "Minimum":
        return Minimum(**{name: array[order] for name, array in vars(self).items()})


class _Slots:
    """The state of the problems in work, as arrays over slots.

    Slots [0, running) descend in float32, [running, used) wait for, or descend in, float64.
    """

    def __init__(self, slots: int, memory: int, m: int, D: int) -> None:
        self.ids = np.zeros(slots, dtype=int)
        self.theta = np.zeros((slots, m, D))
        self.gradient = np.zeros((slots, m, D), dtype=np.float32)
        self.direction = np.zeros((slots, m, D), dtype=np.float32)
        self.curvature = np.zeros((slots, m, m))
        self.value = np.zeros(slots)
        self.step = np.ones(slots)
        self.slope = np.zeros(slots)
        self.rounds = np.zeros(slots, dtype=int)
        self.exact_rounds = np.zeros(slots, dtype=int)
        self.best = np.full(slots, np.inf)  # the least decrement / f so far, and the round it fell in
        self.best_round = np.zeros(slots, dtype=int)
        self.first = np.ones(slots)  # the first decrement
        self.mark = np.full(slots, np.inf)  # `best` at the last look (`_reconsider`), and the round
        self.mark_round = np.zeros(slots, dtype=int)
        self.S = np.zeros((slots, memory, m * D), dtype=np.float32)
        self.Y = np.zeros((slots, memory, m * D), dtype=np.float32)
        self.SY = np.zeros((slots, memory, memory))
        self.head = np.zeros(slots, dtype=int)  # the ring's next place
        self.running = self.used = 0

    @property
    def memory(self) -> int:
        return self.S.shape[1]

    def _arrays(self) -> list[Array]:
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]

    def swap(self, a: int, b: int) -> None:
        """So that both groups stay slices."""
        if a != b:
            for array in self._arrays():
                array[[a, b]] = array[[b, a]]

    def add(self, problem: int, theta: Array, start: Evaluation, k: int) -> None:
        """Put a problem, evaluated as the k-th of `start`, behind the running ones."""
        slot = self.running
        self.swap(slot, self.used)
        self.running += 1
        self.used += 1
        for array in (self.S, self.Y, self.SY):
            array[slot] = 0
        self.ids[slot], self.theta[slot] = problem, theta
        self.gradient[slot], self.curvature[slot] = start.gradient[k], start.curvature[k]
        self.value[slot] = start.value[k]
        self.step[slot], self.best[slot], self.mark[slot], self.mark_round[slot] = 1, np.inf, np.inf, 0
        self.rounds[slot] = self.exact_rounds[slot] = self.best_round[slot] = self.head[slot] = 0

    def wait(self, slot: int) -> None:
        """From float32 to float64."""
        self.running -= 1
        self.swap(slot, self.running)

    def free(self, slot: int) -> None:
        if slot < self.running:
            self.wait(slot)
            slot = self.running
        self.used -= 1
        self.swap(slot, self.used)

    def shrink(self) -> None:
        """No more slots than are used, twice the memory; the pairs in the order of their age."""
        slots, memory = self.used, self.memory
        order = (self.head[:slots, None] + np.arange(memory)) % memory
        row = np.arange(slots)[:, None]
        S, Y = self.S[row, order], self.Y[row, order]
        SY = self.SY[row[:, :, None], order[:, :, None], order[:, None, :]]
        for name, array in list(vars(self).items()):
            if isinstance(array, np.ndarray):
                setattr(self, name, array[:slots].copy())
        grow = (0, memory)
        self.S, self.Y = (np.pad(pairs, ((0, 0), grow, (0, 0))) for pairs in (S, Y))
        self.SY = np.pad(SY, ((0, 0), grow, grow))
        self.head[:] = memory

    def push(self, part: slice, s: Array, y: Array) -> None:
        """Add a pair a slot (part's length, m D), zeros where there is none; overwrites the oldest."""
        row = np.arange(part.start, part.stop)
        j = self.head[part]
        sy = np.einsum("pd,pd->p", s, y)
        keep = sy > 1e-8 * np.sqrt(np.einsum("pd,pd->p", s, s) * np.einsum("pd,pd->p", y, y))
        row, j, k = row[keep], j[keep], np.flatnonzero(keep)
        self.S[row, j], self.Y[row, j] = s[k], y[k]
        columns = np.matmul(self.S[part], y[:, :, None])[k, :, 0]
        self.SY[row, :, j] = columns
        self.SY[row, j, :] = 0  # s_new' y_old: below the diagonal, not used
        self.SY[row, j, j] = sy[k]
        self.head[row] = (j + 1) % self.memory

    def descend(self, part: slice, H0: Preconditioner) -> Array:
        """-H g of the slots in part, (p, m D) float32."""
        memory = self.memory
        g = self.gradient[part].reshape(part.stop - part.start, -1)
        order = (self.head[part, None] + np.arange(memory)) % memory
        row = np.arange(part.start, part.stop)[:, None]
        R = np.triu(self.SY[row[:, :, None], order[:, :, None], order[:, None, :]])
        diagonal = np.einsum("pii->pi", R).copy()
        R[:, range(memory), range(memory)] = np.where(diagonal > 0, diagonal, 1)
        back = np.argsort(order, axis=1)
        S, Y = self.S[part], self.Y[part]

        def in_age(x: Array) -> Array:
            return np.take_along_axis(x, order, axis=1).astype(np.float64)

        def in_ring(x: Array) -> Array:
            return np.take_along_axis(x, back, axis=1).astype(np.float32)[:, None]

        alpha = np.linalg.solve(R, in_age(np.matmul(S, g[:, :, None])[:, :, 0])[:, :, None])[:, :, 0]
        q = g - np.matmul(in_ring(alpha), Y)[:, 0]
        z = H0(q.reshape(self.gradient[part].shape), self.curvature[part], self.ids[part])
        z = z.reshape(g.shape)
        p = in_age(np.matmul(Y, z[:, :, None])[:, :, 0])
        beta = np.linalg.solve(R.transpose(0, 2, 1), (diagonal * alpha - p)[:, :, None])[:, :, 0]
        return -(z + np.matmul(in_ring(beta), S)[:, 0])

    def forget(self, slot: int) -> None:
        for array in (self.S, self.Y, self.SY):
            array[slot] = 0


def minimise(
    objective: Objective,
    H0: Preconditioner,
    ids: Array,
    *,
    start: Array | None = None,
    tol: float,
    max_rounds: int,
    defer: bool = False,
) -> Minimum:
    """Minimise the problems `ids` (P,), the hardest first (they then fill the pass for longest).

    start : float64 (P, m, d + 1), or None for w = 0 with the intercepts at their optimum
    tol : of the estimated decrement, relative to f
    max_rounds : passes after which a problem is given up (converged False)
    defer : give up at once what is still far off when others begin to converge, for `follow`
    """
    m, D = objective.design.outputs, objective.design.d + 1
    P = len(ids)
    found = Minimum(
        np.zeros((P, m, D)), np.full(P, np.inf), np.zeros((P, m, D)), np.zeros((P, m, m)), np.full(P, np.inf),
        np.full(P, np.inf), np.zeros(P, dtype=int), np.zeros(P, dtype=bool), np.zeros(P, dtype=bool),
    )  # fmt: skip
    place = {int(problem): k for k, problem in enumerate(ids)}
    slots = _Slots(min(P, max(8, SLOTS // m)), MEMORY, m, D)
    queue, rounds = list(range(P)), 0
    while queue or slots.used:
        if queue and slots.used < len(slots.ids):
            room = len(slots.ids) - slots.used
            entering, queue = queue[:room], queue[room:]
            theta, first = _begin(objective, ids[entering], None if start is None else start[entering])
            for k, problem in enumerate(ids[entering]):
                slots.add(int(problem), theta[k], first, k)
            part = slice(slots.running - len(entering), slots.running)
            _aim(objective, slots, part, np.arange(len(entering)), H0)
        if slots.running and not (queue and 2 * (slots.used - slots.running) > len(slots.ids)):
            part, exact = slice(0, slots.running), False
        else:
            part, exact = slice(slots.running, slots.used), True
        _round(objective, slots, part, exact, H0, tol, max_rounds, found, place)
        rounds += 1
        if rounds % 4 == 0:
            _reconsider(objective, slots, H0, tol, defer)
        if not queue and slots.used and 2 * slots.used <= len(slots.ids) and slots.memory < LARGEST_MEMORY:
            slots.shrink()
    return found


def _begin(objective: Objective, ids: Array, start: Array | None) -> tuple[Array, Evaluation]:
    """The first thetas and their gradients. At w = 0 they are the same for every strength of a set."""
    if start is not None:
        return start, objective.gradients(ids, start)
    design, sets = objective.design, objective.sets[ids]
    unique, representative, of = np.unique(sets, return_index=True, return_inverse=True)
    prior = np.stack(
        [design.weights[unique] @ (design.y == k) for k in range(design.n_classes)], axis=1
    )  # (sets, K) weighted counts
    theta = np.zeros((len(unique), design.outputs, design.d + 1))
    log = np.log(prior)
    theta[:, :, -1] = (
        log[:, 1:] - log[:, :1] if design.outputs == 1 else log - log.mean(axis=1, keepdims=True)
    )
    first = objective.gradients(ids[representative], theta)
    of = of.ravel()
    return theta[of], Evaluation(first.value[of], first.gradient[of], first.curvature[of])


def _aim(objective: Objective, slots: _Slots, part: slice, changed: Array, H0: Preconditioner) -> None:
    """New directions for the slots part.start + changed; the others of `part` keep theirs."""
    count = part.stop - part.start
    pieces = np.array_split(np.arange(part.start, part.stop), min(objective.threads, -(-count // 16)))
    new = np.concatenate(
        objective.share(lambda piece: slots.descend(slice(piece[0], piece[-1] + 1), H0), pieces)
    )
    shaped = _keep_constant(objective, slots.ids[part], new.reshape(count, *slots.gradient.shape[1:]))
    slot = part.start + changed
    slots.direction[slot] = shaped[changed]
    slots.step[slot] = 1
    slots.slope[slot] = np.einsum("pmd,pmd->p", slots.gradient[slot], slots.direction[slot])
    uphill = slot[slots.slope[slot] >= 0]
    if len(uphill):  # rounding in the memory: drop it
        for k in uphill:
            slots.forget(k)
        z = H0(slots.gradient[uphill], slots.curvature[uphill], slots.ids[uphill])
        slots.direction[uphill] = _keep_constant(objective, slots.ids[uphill], -z)
        slots.slope[uphill] = np.einsum("pmd,pmd->p", slots.gradient[uphill], slots.direction[uphill])


def _keep_constant(objective: Objective, ids: Array, direction: Array) -> Array:
    """No step along features that are constant in the problem's set: their coefficients stay 0."""
    if objective.design.has_constant:
        direction *= (objective.design.factor32[objective.sets[ids]] != 0)[:, None]
    return direction


def _round(
    objective: Objective,
    slots: _Slots,
    part: slice,
    exact: bool,
    H0: Preconditioner,
    tol: float,
    max_rounds: int,
    found: Minimum,
    place: dict[int, int],
) -> None:
    """Evaluate the trial points of the slots in part; accept or shorten; aim again; sort out who is done."""
    ids, direction = slots.ids[part].copy(), slots.direction[part]
    theta = slots.theta[part] + slots.step[part, None, None] * direction
    if exact:
        at = objective.exact(ids, theta)
        theta = at.theta if at.theta is not None else theta
    else:
        at = objective.gradients(ids, theta)
    gradient = at.gradient.astype(np.float32)
    slope, first = np.einsum("pmd,pmd->p", gradient, direction), slots.slope[part]
    # the first float64 point is where float32 ended: it counts whatever its slope
    accept = (slope <= 0.5 * np.abs(first)) | (exact & (slots.exact_rounds[part] == 0))
    count = len(ids)
    mask = accept[:, None]
    s = np.where(mask, (theta - slots.theta[part]).reshape(count, -1), 0).astype(np.float32)
    y = np.where(mask, (gradient - slots.gradient[part]).reshape(count, -1), 0)
    slots.push(part, s, y)
    new = np.flatnonzero(accept)
    slot = part.start + new
    slots.theta[slot], slots.gradient[slot] = theta[new], gradient[new]
    slots.value[slot], slots.curvature[slot] = at.value[new], at.curvature[new]
    short = np.flatnonzero(~accept)
    if len(short):
        secant = -first[short] / (slope[short] - first[short])
        slots.step[part.start + short] *= np.clip(np.nan_to_num(secant, nan=0.1), 0.1, 0.7)
    slots.rounds[part] += 1
    slots.exact_rounds[part] += int(exact)
    _aim(objective, slots, part, new, H0)

    decrement = -slots.slope[part] / 2 / np.maximum(slots.value[part], 1e-300)
    better = accept & (decrement < 0.7 * slots.best[part])
    slots.best[part] = np.where(better, decrement, slots.best[part])
    slots.best_round[part] = np.where(better, slots.rounds[part], slots.best_round[part])
    fresh = ~np.isfinite(slots.mark[part]) & better
    slots.first[part] = np.where(fresh, decrement, slots.first[part])
    slots.mark[part] = np.where(fresh, decrement, slots.mark[part])
    slots.mark_round[part] = np.where(fresh, slots.rounds[part], slots.mark_round[part])
    # at this rate of fall g' H g / 2 is the next step's gain; the sum of all the gains to come is
    fall = np.log(np.maximum(slots.first[part], 1e-300) / np.clip(slots.best[part], 1e-300, 1e300))
    ahead = -1 / np.expm1(-np.maximum(fall / slots.rounds[part], 0.05))
    small = accept & (decrement * ahead <= tol)
    old = slots.rounds[part] - slots.best_round[part] >= PATIENCE
    stalled = old & (slots.best[part] < 1e-3)  # at the limit of float32; else it is still finding its way
    again = old & ~stalled & accept
    slots.best[part] = np.where(again, decrement, slots.best[part])
    slots.best_round[part] = np.where(again, slots.rounds[part], slots.best_round[part])
    over = slots.rounds[part] >= max_rounds
    for k in range(count - 1, -1, -1):  # from the back: freeing a slot moves only later ones
        here = part.start + k
        if exact:
            if accept[k]:
                at_k = place[int(ids[k])]
                found.theta[at_k], found.gradient[at_k] = slots.theta[here], at.gradient[k]
                found.value[at_k], found.decrement[at_k] = at.value[k], decrement[k] * at.value[k]
                found.curvature[at_k] = at.curvature[k]
                found.gap[at_k] = at.gap[k] if at.gap is not None else np.inf
                found.rounds[at_k] = slots.rounds[here]
                found.converged[at_k] = small[k]
                found.polished[at_k] = slots.exact_rounds[here] > 1
            if small[k] or over[k] or stalled[k]:
                slots.free(here)
        elif small[k] or stalled[k] or over[k]:
            slots.wait(here)
            if not small[k]:
                slots.step[slots.running] = 0 if not accept[k] else 1


def _reconsider(objective: Objective, slots: _Slots, H0: Preconditioner, tol: float, defer: bool) -> None:
    """Look at the problems that have had WINDOW rounds since the last look: how many more will they take?

    Foreseen from their decrement's fall in that time. Where the problems of one set would take more rounds
    than a preconditioner of their own costs, they get one; with `defer`, those that are hopeless go.
    """
    here, left = _foreseen(slots, tol)
    if defer:
        for slot in here[(slots.rounds[here] >= 2 * WINDOW) & (left > HOPELESS)][::-1]:
            slots.free(slot)
        here, left = _foreseen(slots, tol)
    sets = objective.sets[slots.ids[here]]
    price = 10 if slots.running * objective.design.outputs < 24 else 1  # products of few columns are slow
    for s in np.unique(sets):
        members = np.flatnonzero(sets == s)
        members = members[np.argsort(objective.lam[slots.ids[here[members]]])]
        spectrum = len(members) >= 8
        groups = [members] if spectrum else [members[k : k + 3] for k in range(0, len(members), 3)]
        for group in groups:
            # a factor's solves run at the memory's speed: it must save more than a spectrum
            if left[group].sum() * price > (1.5 if spectrum else 4) * H0.cost(len(group), spectrum=spectrum):
                slot = here[group]
                H0.refine(slots.ids[slot], slots.theta[slot], slots.curvature[slot], spectrum=spectrum)
    slots.mark[here], slots.mark_round[here] = slots.best[here], slots.rounds[here]


def _foreseen(slots: _Slots, tol: float) -> tuple[Array, Array]:
    """The running slots that are due for a look, and the rounds that each has left at its present rate."""
    here = np.arange(slots.running)
    age = slots.rounds[here] - slots.mark_round[here]
    here = here[(age >= WINDOW) & np.isfinite(slots.mark[here])]
    rate = np.log(slots.mark[here] / slots.best[here]) / (slots.rounds[here] - slots.mark_round[here])
    left = np.clip(np.log(slots.best[here] / tol), 0, None) / np.maximum(rate, 0.05)
    return here, np.minimum(left, 150)


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
            part = minimise(objective, H0, ids, start=np.stack(starts), tol=tol, max_rounds=max_rounds)
            for name, array in vars(found).items():
                array[ids] = getattr(part, name)
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
