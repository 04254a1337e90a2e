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
4. Problems that have ended leave their slot to waiting ones; when few are left, the slots shrink and the
   memory of those that are left grows.
5. A problem may wait for its neighbours on the path of strengths and start between their solutions (path.py).
"""

# pyright: reportConstantRedefinition=false

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .objective import Objective
from .preconditioner import Preconditioner

Array = np.ndarray[Any, np.dtype[Any]]
SLOTS = 256  # columns of coefficients in work at once
FULL = 16  # columns that make a pass no slower (it is reading X): up to these, problems are let in early
MEMORY = 10  # pairs a problem, doubled up to LARGEST_MEMORY as problems end
LARGEST_MEMORY = 40
PATIENCE = 20  # rounds without a smaller decrement: the limit of float32 (or of float64) is reached
LITTLE_PATIENCE = 3
WINDOW = 8  # rounds between two looks at how many more a problem will take (`_reconsider`)
CERTIFIED = 100  # x tol: a gap bound as small as this confirms a fit, else Newton has to
HOPELESS = 80  # rounds foreseen, from which on a problem waits for `follow`


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

    @classmethod
    def nothing(cls, P: int, m: int, D: int) -> "Minimum":
        """Of P problems that have not been looked at."""
        return cls(
            np.zeros((P, m, D)), np.full(P, np.inf), np.zeros((P, m, D)), np.zeros((P, m, m)),
            np.full(P, np.inf), np.full(P, np.inf), np.zeros(P, dtype=int),
            np.zeros(P, dtype=bool), np.zeros(P, dtype=bool),
        )  # fmt: skip

    def put(self, places: Array, part: "Minimum") -> None:
        for name, array in vars(self).items():
            array[places] = getattr(part, name)


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

    def move(self, source: int, target: int) -> None:
        """`swap` where what is in the target is of no use any more."""
        if source != target:
            for array in self._arrays():
                array[target] = array[source]

    def add(self, problem: int, theta: Array) -> int:
        """Put a problem behind the running ones, to be evaluated at theta: no gradient, no direction yet."""
        slot = self.running
        self.move(slot, self.used)
        self.running += 1
        self.used += 1
        for array in (self.S, self.Y, self.SY, self.gradient, self.direction, self.slope):
            array[slot] = 0
        self.ids[slot], self.theta[slot] = problem, theta
        self.step[slot], self.best[slot], self.mark[slot], self.mark_round[slot] = 1, np.inf, np.inf, 0
        self.rounds[slot] = self.exact_rounds[slot] = self.best_round[slot] = self.head[slot] = 0
        return slot

    def wait(self, slot: int) -> None:
        """From float32 to float64."""
        self.running -= 1
        self.swap(slot, self.running)

    def free(self, slot: int) -> None:
        if slot < self.running:
            self.wait(slot)
            slot = self.running
        self.used -= 1
        self.move(self.used, slot)

    def shrink(self, slots: int) -> None:
        """Only so many slots, twice the memory; the pairs in the order of their age."""
        memory = self.memory
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
        row = np.arange(int(part.start), int(part.stop))
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
        row = np.arange(int(part.start), int(part.stop))[:, None]
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
        rest: Array = diagonal * alpha - p
        beta = np.linalg.solve(R.transpose(0, 2, 1), rest[:, :, None])[:, :, 0]
        return -(z + np.matmul(in_ring(beta), S)[:, 0])

    def forget(self, slot: int) -> None:
        for array in (self.S, self.Y, self.SY):
            array[slot] = 0


class _Queue:
    """Which problem enters next: the one with the weakest penalty of those whose parents have ended.

    lam : (P,)
    parents : for each problem the numbers (0..P-1) of those that it starts from, the nearest first
    """

    def __init__(self, lam: Array, parents: Sequence[Sequence[int]]) -> None:
        self.lam, self.parents = lam, parents
        self.open = [len(of) for of in parents]
        self.children: list[list[int]] = [[] for _ in parents]
        for child, of in enumerate(parents):
            for parent in of:
                self.children[parent].append(child)
        self.taken = np.zeros(len(parents), dtype=bool)
        self.usable = np.zeros(len(parents), dtype=bool)  # its theta is good to start from
        self.ready = [(lam[k], k) for k, count in enumerate(self.open) if not count]
        heapq.heapify(self.ready)
        self.left = len(parents)  # not taken yet

    def take(self, room: int, enough: int) -> list[int]:
        """At most `room` problems; up to `enough`, also such whose parents have begun but not ended."""
        entering = [heapq.heappop(self.ready)[1] for _ in range(min(room, len(self.ready)))]
        self.taken[entering] = True
        more = min(room, enough) - len(entering)
        if more > 0 and self.left > len(entering):
            waiting = np.flatnonzero(~self.taken).tolist()
            early = [k for k in waiting if self.taken[list(self.parents[k])].all()]
            entering += sorted(early, key=lambda k: self.lam[k])[:more]
            self.taken[entering] = True
        self.left -= len(entering)
        return entering

    def ended(self, k: int, usable: bool) -> None:
        """Problem k has left the descent."""
        self.usable[k] = usable
        for child in self.children[k]:
            self.open[child] -= 1
            if not self.open[child] and not self.taken[child]:
                heapq.heappush(self.ready, (self.lam[child], child))

    def start(self, k: int, theta: Array) -> Array | None:
        """Lagrange's interpolation in log C of the parents' thetas; linear where one has failed."""
        nodes = [parent for parent in self.parents[k] if self.usable[parent]]
        if len(nodes) < len(self.parents[k]):
            nodes = nodes[:2]
        if len(nodes) < 2:
            return None
        return np.tensordot(lagrange(np.log(self.lam[k]), np.log(self.lam[nodes])), theta[nodes], axes=1)


def lagrange(at: float, nodes: Array) -> list[float]:
    """The shares of the values at `nodes` in the value at `at` of the polynomial through them."""
    others = [np.delete(nodes, i) for i in range(len(nodes))]
    return [float(np.multiply.reduce((at - o) / (x - o))) for x, o in zip(nodes, others, strict=True)]


# beyond float32 a slope is not finite: that problem is left to float64
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def minimise(
    objective: Objective,
    H0: Preconditioner,
    ids: Array,
    *,
    start: Sequence[Array | None] | None = None,
    parents: Sequence[Sequence[int]] | None = None,
    tol: float,
    max_rounds: int,
    defer: bool = False,
) -> Minimum:
    """Minimise the problems `ids` (P,), weak penalties first (they then fill the pass for longest).

    start : float64 (m, d + 1) for each problem, or None for w = 0 with the intercepts at their optimum
    parents : for each problem the places in `ids` of those that it waits for, to start from their solutions,
        the nearest first; none: it starts as said above
    tol : of the estimated decrement, relative to f
    max_rounds : passes after which a problem is given up (converged False)
    defer : give up at once what is still far off when others begin to converge, for `follow`
    """
    m, D = objective.design.outputs, objective.design.d + 1
    P = len(ids)
    found = Minimum.nothing(P, m, D)
    place = {int(problem): k for k, problem in enumerate(ids)}
    slots = _Slots(min(P, max(8, SLOTS // m)), MEMORY, m, D)
    queue, rounds = _Queue(objective.lam[ids], parents or [()] * P), 0
    while queue.left or slots.used:
        if entering := queue.take(len(slots.ids) - slots.used, FULL - slots.running):
            begun = [place[int(problem)] for problem in slots.ids[: slots.running]]
            found.theta[begun], queue.usable[begun] = slots.theta[: slots.running], True
            starts = [queue.start(k, found.theta) if start is None else start[k] for k in entering]
            for k, theta in zip(entering, starts, strict=True):
                if theta is not None:
                    slots.add(int(ids[k]), theta)
            if cold := [k for k, theta in zip(entering, starts, strict=True) if theta is None]:
                _begin(objective, slots, ids[cold], H0)
        if slots.running and not (queue.ready and 2 * (slots.used - slots.running) > len(slots.ids)):
            part, exact = slice(0, slots.running), False
        else:
            part, exact = slice(slots.running, slots.used), True
        _round(objective, slots, part, exact, H0, tol, max_rounds, found, place, queue)
        rounds += 1
        if rounds % 4 == 0:
            for k in _reconsider(objective, slots, H0, tol, defer):
                queue.ended(place[k], usable=False)
        left = queue.left + slots.used
        if 0 < 2 * left <= len(slots.ids) and slots.memory < LARGEST_MEMORY:
            slots.shrink(left)
    return found


def _begin(objective: Objective, slots: _Slots, ids: Array, H0: Preconditioner) -> None:
    """Add problems at w = 0, where the gradient is the same for every strength of a set."""
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
    before = slots.running
    for problem, k in zip(ids, of.ravel(), strict=True):
        slot = slots.add(int(problem), theta[k])
        slots.gradient[slot], slots.curvature[slot] = first.gradient[k], first.curvature[k]
        slots.value[slot] = first.value[k]
    _aim(objective, slots, slice(before, slots.running), np.arange(len(ids)), H0)


def _aim(objective: Objective, slots: _Slots, part: slice, changed: Array, H0: Preconditioner) -> None:
    """New directions for the slots part.start + changed; the others of `part` keep theirs."""
    count = part.stop - part.start
    running = np.arange(int(part.start), int(part.stop))
    pieces = np.array_split(running, min(objective.threads, -(-count // 16)))
    new = np.concatenate(
        objective.share(lambda piece: slots.descend(slice(piece[0], piece[-1] + 1), H0), pieces)
    )
    shaped = _keep_constant(objective, slots.ids[part], new.reshape(count, *slots.gradient.shape[1:]))
    slot = part.start + changed
    slots.direction[slot] = shaped[changed]
    slots.step[slot] = 1
    slots.slope[slot] = np.einsum("pmd,pmd->p", slots.gradient[slot], slots.direction[slot])
    uphill = slot[~(slots.slope[slot] < 0)]
    if len(uphill):  # rounding in the memory: drop it
        for k in uphill:
            slots.forget(k)
        z = H0(slots.gradient[uphill], slots.curvature[uphill], slots.ids[uphill])
        slots.direction[uphill] = _keep_constant(objective, slots.ids[uphill], -z)
        slots.slope[uphill] = np.einsum("pmd,pmd->p", slots.gradient[uphill], slots.direction[uphill])
        lost = uphill[~(slots.slope[uphill] <= 0)]  # beyond float32: nowhere to go
        slots.direction[lost], slots.slope[lost] = 0, -np.inf


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
    queue: _Queue,
) -> None:
    """Evaluate the trial points of the slots in part; accept or shorten; aim again; sort out who is done."""
    ids, direction = slots.ids[part].copy(), slots.direction[part]
    moved = slots.step[part, None, None].astype(np.float32) * direction
    theta = slots.theta[part] + moved
    if exact:
        at = objective.exact(ids, theta)
        if at.theta is not None:
            theta = at.theta
            moved = (theta - slots.theta[part]).astype(np.float32)
    else:
        at = objective.gradients(ids, theta)
    gradient = at.gradient.astype(np.float32, copy=False)
    slope, first = np.einsum("pmd,pmd->p", gradient, direction), slots.slope[part]
    # the first float64 point is where float32 ended: it counts whatever its slope
    accept = (slope <= 0.5 * np.abs(first)) | (exact & (slots.exact_rounds[part] == 0))
    count = len(ids)
    turned = gradient - slots.gradient[part]
    new, short = np.flatnonzero(accept), np.flatnonzero(~accept)
    moved[short] = turned[short] = 0
    slots.push(part, moved.reshape(count, -1), turned.reshape(count, -1))
    slot = part.start + new if len(short) else part
    if len(short):
        theta, gradient = theta[new], gradient[new]
    slots.theta[slot], slots.gradient[slot] = theta, gradient
    slots.value[slot], slots.curvature[slot] = at.value[new], at.curvature[new]
    if len(short):
        rise = slope[short] - first[short]
        secant = np.divide(-first[short], rise, out=np.full_like(rise, 0.1), where=rise > 0)
        slots.step[part.start + short] *= np.clip(secant, 0.1, 0.7)
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
    if exact and at.gap is not None:
        bound = at.gap / slots.value[part]
    else:
        g_w = slots.gradient[part][..., :-1].reshape(count, -1)
        bound = np.einsum("pd,pd->p", g_w, g_w) / objective.lam[ids] / np.maximum(slots.value[part], 1e-300)
    small = accept & (decrement * ahead <= tol) & (bound <= CERTIFIED * tol)
    # where only the bound is waited for, float64 brings it in a round or two
    # with more classes Newton costs hundreds of rounds
    most = 3 * PATIENCE if slots.theta.shape[1] > 1 else PATIENCE
    patience = np.where((slots.best[part] <= 0.1 * tol) & (not exact), LITTLE_PATIENCE, most)
    old = slots.rounds[part] - slots.best_round[part] >= patience
    stalled = old & (slots.best[part] < 1e-3)  # at the limit of float32; else it is still finding its way
    again = old & ~stalled & accept
    slots.best[part] = np.where(again, decrement, slots.best[part])
    slots.best_round[part] = np.where(again, slots.rounds[part], slots.best_round[part])
    over = (slots.rounds[part] >= max_rounds) | np.isneginf(slots.slope[part])
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
            at_k = place[int(ids[k])]
            found.theta[at_k] = slots.theta[here] + slots.direction[here]
            queue.ended(at_k, usable=bool(small[k] or stalled[k]))
            slots.wait(here)
            if not small[k]:
                slots.step[slots.running] = 0 if not accept[k] else 1


def _reconsider(
    objective: Objective, slots: _Slots, H0: Preconditioner, tol: float, defer: bool
) -> list[int]:
    """Look at the problems that have had WINDOW rounds since the last look: how many more will they take?

    Foreseen from their decrement's fall in that time. Where the problems of one set would take more rounds
    than a preconditioner of their own costs, they get one; with `defer`, those that are hopeless go: returned
    are their ids.
    """
    gone: list[int] = []
    here, left = _foreseen(slots, tol)
    if defer:
        for slot in here[(slots.rounds[here] >= 2 * WINDOW) & (left > HOPELESS)][::-1]:
            gone.append(int(slots.ids[slot]))
            slots.free(slot)
        here, left = _foreseen(slots, tol)
    sets = objective.sets[slots.ids[here]]
    price = 10 if slots.running * objective.design.outputs < 24 else 1  # products of few columns are slow
    for s in np.unique(sets):
        members = np.flatnonzero(sets == s)
        members = members[np.argsort(objective.lam[slots.ids[here[members]]])]
        spectrum = len(members) * objective.design.outputs >= 8
        groups = [members] if spectrum else [members[k : k + 3] for k in range(0, len(members), 3)]
        for group in groups:
            # a factor's solves run at the memory's speed: it must save more than a spectrum
            if left[group].sum() * price > (1.5 if spectrum else 4) * H0.cost(len(group), spectrum=spectrum):
                slot = here[group]
                H0.refine(slots.ids[slot], slots.theta[slot], slots.curvature[slot], spectrum=spectrum)
                # decrements are of another H0 now: not to be compared with those before
                slots.best[slot], slots.best_round[slot] = np.inf, slots.rounds[slot]
    slots.mark[here], slots.mark_round[here] = slots.best[here], slots.rounds[here]
    return gone


def _foreseen(slots: _Slots, tol: float) -> tuple[Array, Array]:
    """The running slots that are due for a look, and the rounds that each has left at its present rate."""
    here = np.arange(slots.running)
    age = slots.rounds[here] - slots.mark_round[here]
    here = here[(age >= WINDOW) & np.isfinite(slots.mark[here])]
    rate = np.log(slots.mark[here] / slots.best[here]) / (slots.rounds[here] - slots.mark_round[here])
    left = np.clip(np.log(slots.best[here] / tol), 0, None) / np.maximum(rate, 0.05)
    return here, np.minimum(left, 150)
