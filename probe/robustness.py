"""How much embeddings are of the domain (centre, scanner) instead of the class, from cached vectors.

For each feature set, over the rows that have a label and a domain, with the groups (slides) kept apart:

    robustness index, retrieval    of the k nearest rows (cosine) of other groups: of the same class and
                                   another domain (SO), of another class and the same domain (OS), of the
                                   same class; index = SO / (SO + OS)
    domain                         a linear classifier of the domain, fitted without each fold of the groups
    average performance drop       a linear probe of the class fitted on two domains, class and domain more
                                   and more correlated, scored on other groups of the two and on the others
    clustering score               k-means of two classes in two domains: adjusted Rand index with the class
                                   less that with the domain

and between sets: consistency of two views of one patch, alignment of two encoders. METHODS.md has the
formulas and their sources. Intervals are over groups.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ..datasets.folds import effective_groups, make_folds
from ..datasets.manifest import Manifest
from ..datasets.sample import drawn, sample_rows
from ..errors import InvalidRequest
from ..version import __version__
from .config import FeatureSet, Source, feature_sets, parse_features
from .features import load_set, open_bank, resolve_set
from .results.robustness import Alignment, Consistency, Drop, Measured, Robustness, SetRobustness
from .solver.logistic import fit_logistic
from .statistics.intervals import Interval, cluster_codes
from .statistics.neighbours import nearest, unit
from .statistics.robustness import (
    class_domain_pairs,
    clustering_score,
    correlated_cells,
    count_neighbours,
    estimate_ratios,
    linear_cka,
    mutual_neighbours,
    performance_drop,
    vote_accuracy,
)
from .streaming import memory_limit, refuse_large

KS = (5, 11, 21, 31, 46, 61)
TOPS = (1, 5, 10)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # correlation of class and domain in the probes' training rows
STRENGTHS = tuple(10.0**e for e in range(-6, 2))  # C of the linear classifiers
DOMAIN_COLUMN = "The column `domain` of a manifest is its centre or scanner"
LEAST = 5  # rows of a class in a domain, below which a pair of domains is not used
LARGEST = 300  # rows drawn of a class in a domain
CLUSTERED, STARTS = 100, 5  # rows of a class in a domain that are clustered; starts of k-means to choose k
MANY = 100_000  # rows, above which all pairs take minutes a feature set
FITTED = 20_000  # rows that the domain is predicted on; of more, whole groups are drawn
PARTS = (0.6, 0.2)  # groups that probes are fitted on, and chosen on; the rest is scored


@dataclass(frozen=True)
class _LabelledRows:
    """label, domain : int codes (n,); group : object (n,); classes, domains : their names"""

    label: np.ndarray
    domain: np.ndarray
    group: np.ndarray
    classes: tuple[str, ...]
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)


def run_robustness(
    manifest: Manifest,
    *,
    bank: Any,
    encoders: Iterable[str] = (),
    views: Iterable[str] = ("full",),
    tokens: Iterable[str | None] | None = None,
    features: Iterable[str | FeatureSet] = (),
    k: int | None = None,
    iterations: int = 20,
    trials: int = 10,
    precision: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    sample: int | None = None,
    memory: str | float | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Robustness:
    """Measure every feature set, see the module's text.

    bank, encoders, views, tokens, features, precision, dtype : as for `run_probe`. Every view is measured;
        two views of one encoder and token policy are compared patch by patch, two encoders in one view are
        aligned
    k : neighbours; None: the one of KS whose vote has the highest balanced accuracy for the class, the median
        over the feature sets, so that all have the same
    iterations : draws of the groups for the average performance drop, 0: not measured
    trials : runs of k-means for the clustering score, 0: not measured
    sample : the most rows, of more a part is drawn by `seed`, see `datasets.sample.sample_rows`
    memory : that the features of a set may take; larger ones are refused
    on_note : called with a sentence for each note
    Raises InvalidRequest where the rows have fewer than two classes or domains, and what `run_probe` raises.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if on_note is not None:
            on_note(text)

    part, rows = _rows_of(manifest, sample, seed, note)
    opened = open_bank(bank, precision=precision, dtype=dtype, manifests=[part])
    asked = feature_sets(encoders=encoders, views=views, tokens=tokens, features=features)
    if not asked:
        raise InvalidRequest("which embeddings? Name an encoder (-e) or a feature set (--features)")
    names = list(dict.fromkeys(str(resolve_set(features, opened)) for features in asked))
    refuse_large(names, [part], opened, limit=memory_limit(memory), what="the search of neighbours")
    if len(rows) > MANY:
        note(
            f"every two of {len(rows):,} rows are compared, which may take hours: --sample {MANY} draws fewer"
        )
    ks = sorted({neighbours for neighbours in (*KS, *([k] if k else [])) if neighbours < len(rows)})
    if k is not None and not 1 <= k < len(rows):
        raise InvalidRequest(f"k has to be between 1 and {len(rows) - 1}, the number of other rows, not {k}")

    def load(name: str) -> np.ndarray:
        return load_set(part, name, bank=opened)

    near = {name: _neighbours(load(name), rows, ks) for name in names}
    best = float(np.median([ks[int(of_set.votes.argmax())] for of_set in near.values()]))
    chosen = k or min(ks, key=lambda neighbours: abs(neighbours - best))
    how: dict[str, Any] = {"ks": ks, "k": chosen, "iterations": iterations, "trials": trials, "seed": seed}
    sets = [_measure(name, load(name), rows, near[name], **how, note=note) for name in names]
    groups = cluster_codes(rows.group, len(rows))
    return Robustness(
        dataset=manifest.header.name,
        rows=len(rows),
        groups=int(groups.max()) + 1,
        group_kind=manifest.header.group_kind,
        classes=_counted(rows.classes, rows.label),
        domains=_counted(rows.domains, rows.domain),
        k=chosen,
        k_chosen=k is None,
        ks=ks,
        sets=sets,
        consistency=_consistency(names, load, rows),
        alignment=_alignment(names, load, {n: of_set.rows for n, of_set in near.items()}, rows, chosen),
        notes=list(dict.fromkeys(notes)),
        made_by=__version__,
    )


class _Near(NamedTuple):
    """The nearest rows of every row: rows (n, largest k); votes : accuracy of their vote for each k."""

    rows: np.ndarray
    votes: np.ndarray
    seconds: float


def _neighbours(X: np.ndarray, rows: _LabelledRows, ks: Sequence[int]) -> _Near:
    started = time.perf_counter()
    index, _ = nearest(X, ks[-1], groups=rows.group)
    seconds = time.perf_counter() - started
    return _Near(index, vote_accuracy(index, rows.label, ks), seconds)


def _rows_of(
    manifest: Manifest, sample: int | None, seed: int, note: Callable[[str], None]
) -> tuple[Manifest, _LabelledRows]:
    table = manifest.table
    known = ((table["label"] != "") & (table["domain"] != "")).to_numpy(bool)
    if not known.all():
        note(f"{int((~known).sum())} of {len(known)} rows have no label or no domain, and are left out")
    part = whole = manifest.select(known)
    if sample is not None:
        part = sample_rows(whole, sample, seed=seed)
    if len(part) < len(whole):
        note(drawn(len(part), len(whole)))
    label, domain = (part.table[name].to_numpy(object) for name in ("label", "domain"))
    classes, y = np.unique(label.astype(str), return_inverse=True)
    domains, d = np.unique(domain.astype(str), return_inverse=True)
    if not known.any():
        counts = ", ".join(f"{int((table[name] != '').sum())} have a {name}" for name in ("label", "domain"))
        raise InvalidRequest(
            f"{manifest.header.name}: no row has both a label and a domain; of {len(known)} rows {counts}. "
            f"{DOMAIN_COLUMN}"
        )
    for what, there in (("classes", classes), ("domains", domains)):
        if len(there) < 2:
            raise InvalidRequest(
                f"{manifest.header.name} has only one of the {what}, {str(there[0])!r}, among its rows with "
                f"label and domain; robustness needs two or more. {DOMAIN_COLUMN}"
            )
    if not part.groups_known:
        note("no groups (slides) are known: neighbours of the same slide count, and the figures are too good")
    return part, _LabelledRows(y, d, effective_groups(part), tuple(classes), tuple(domains))


def _measure(
    name: str,
    X: np.ndarray,
    rows: _LabelledRows,
    near: _Near,
    *,
    ks: Sequence[int],
    k: int,
    iterations: int,
    trials: int,
    seed: int,
    note: Callable[[str], None],
) -> SetRobustness:
    seconds = {"neighbours": near.seconds}
    counts = count_neighbours(near.rows, rows.label, rows.domain, ks)
    at = list(ks).index(k)
    so, os_ = counts.same_other, counts.other_same
    same, there = counts.same_class[:, at], counts.there[:, at]
    of = {f"retrieval {c}": rows.label == i for i, c in enumerate(rows.classes)}
    ratios = {"index": (so[:, at], so[:, at] + os_[:, at]), "retrieval": (same, there)}
    ratios |= {n: (same * mask, there * mask) for n, mask in of.items()}
    intervals = estimate_ratios(ratios, groups=rows.group)
    total = so.sum(axis=0) + os_.sum(axis=0)
    started = time.perf_counter()
    domain = _domain(X, rows, seed, note)
    seconds["domain"] = time.perf_counter() - started
    started = time.perf_counter()
    drop = _drop(X, rows, iterations, seed, note) if iterations else None
    seconds["drop"] = time.perf_counter() - started
    started = time.perf_counter()
    clusters = _clusters(X, rows, trials, seed) if trials else []
    if trials and not clusters:
        note(f"no clustering score: no two classes have {LEAST} rows each in the same two domains")
    seconds["clustering"] = time.perf_counter() - started
    return SetRobustness(
        features=name,
        dim=X.shape[1],
        index=_measured(intervals["index"]),
        index_by_k=[float(a / b) if b else None for a, b in zip(so.sum(axis=0), total, strict=True)],
        vote_by_k=near.votes.tolist(),
        precision=_measured(intervals["retrieval"]),
        precision_chance=_precision_chance(rows),
        precision_of={c: _measured(intervals[f"retrieval {c}"]) for c in rows.classes},
        domain=domain,
        domain_chance=1 / len(rows.domains),
        clustering=float(np.mean(clusters)) if clusters else None,
        clustering_sd=float(np.std(clusters, ddof=1)) if len(clusters) > 1 else None,
        clustering_pairs=len(clusters),
        drop=drop,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def _precision_chance(rows: _LabelledRows) -> float:
    """The share of rows of other groups that are of a row's class, mean over rows."""
    group, n = cluster_codes(rows.group, len(rows)), len(rows)
    inside = np.zeros((int(group.max()) + 1, len(rows.classes)))
    np.add.at(inside, (group, rows.label), 1)
    same = np.bincount(rows.label)[rows.label] - inside[group, rows.label]
    others = n - inside.sum(axis=1)[group]
    return float(np.mean(same / np.maximum(others, 1)))


def _domain(X: np.ndarray, rows: _LabelledRows, seed: int, note: Callable[[str], None]) -> Measured:
    """Balanced accuracy of a linear classifier of the domain, fitted without the groups that it is scored on.

    Its C : for each fold the best on the other folds, scored by models that have not seen them.
    """
    keep = np.arange(len(rows))
    if len(rows) > FITTED:
        keep = _whole_groups(rows.group, FITTED, np.random.default_rng(seed))
        note(f"the domain is predicted on {len(keep)} rows, whole groups drawn of {len(rows)}")
    names = np.asarray(rows.domains, dtype=object)[rows.domain[keep]]
    group = rows.group[keep]
    code = cluster_codes(group, len(group))
    D = len(rows.domains)
    fewest = min(len(set(code[rows.domain[keep] == d].tolist())) for d in range(D))
    if fewest < 2:
        return Measured(reason="a domain has one group only")
    folds = make_folds(names, group, n_splits=min(5, fewest), seed=seed)
    fold = folds.assign(group)
    d = rows.domain[keep]
    weights = []
    for f in range(1, folds.n_splits + 1):
        counts = np.bincount(d[fold != f], minlength=D)
        weights.append(np.where(fold != f, len(d) / (D * np.maximum(counts, 1)[d]), 0.0))
    fits = fit_logistic(X[keep], d, C=STRENGTHS, weights=np.stack(weights), tol=1e-5)
    called = np.zeros((len(d), len(STRENGTHS)), np.intp)
    for f in range(1, folds.n_splits + 1):
        held = fold == f
        scores = fits.decision(X[keep][held])[:, f - 1]  # (n, L), or (n, L, D)
        called[held] = (scores > 0) if D == 2 else scores.argmax(axis=-1)
    right = called == d[:, None]
    hits = np.zeros(len(d))
    for f in range(1, folds.n_splits + 1):
        others = fold != f
        accuracy = np.mean([right[others & (d == c)].mean(axis=0) for c in range(D)], axis=0)
        hits[fold == f] = right[fold == f, int(accuracy.argmax())]
    weight = 1 / np.bincount(d)[d] / D  # the mean over domains as a sum over rows
    intervals = estimate_ratios({"domain": (hits * weight, weight)}, groups=group)
    return _measured(intervals["domain"])


def _whole_groups(group: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of groups drawn until there are `size`, ascending."""
    code = cluster_codes(group, len(group))
    order = rng.permutation(int(code.max()) + 1)
    counts = np.bincount(code)[order]
    kept = order[: max(1, int(np.searchsorted(np.cumsum(counts), size, side="right")))]
    return np.flatnonzero(np.isin(code, kept))


def _drop(
    X: np.ndarray, rows: _LabelledRows, iterations: int, seed: int, note: Callable[[str], None]
) -> Drop | None:
    """Fitted on : rows of PARTS[0] of the groups of two domains, drawn by `correlated_cells`, for every pair
    of domains. Chosen on (C, a value a draw and correlation) : PARTS[1] of the groups, class and domain
    balanced. Scored : the remaining groups (inside) and all other domains (outside), balanced accuracy,
    inside over class and domain.
    """
    D, K = len(rows.domains), len(rows.classes)
    inside: list[list[np.ndarray]] = []  # iteration -> pair -> accuracies by share
    outside: list[list[np.ndarray]] = []
    pairs = set()
    for i in range(iterations):
        inside.append([])
        outside.append([])
        for a, b in combinations(range(D), 2):
            rng = np.random.default_rng([seed, i, a, b])
            drawn = _drawn(rows, (a, b), rng)
            if drawn is None:
                continue
            fitted, chosen, scored, sets = drawn
            pairs.add((a, b))
            fits = _fit(X[fitted], rows.label[fitted], sets, K)
            others = np.flatnonzero(~np.isin(rows.domain, (a, b)))
            cell = rows.label * D + rows.domain
            best = _accuracy(fits, X[chosen], rows.label[chosen], cell[chosen], K).argmax(axis=1)
            at = np.arange(len(SHARES)), best
            inside[-1].append(_accuracy(fits, X[scored], rows.label[scored], cell[scored], K)[at])
            if len(others):
                outside[-1].append(_accuracy(fits, X[others], rows.label[others], rows.label[others], K)[at])
    if not pairs:
        note(
            f"no average performance drop: no two domains have {4 * LEAST} rows of every class in groups of "
            "their own"
        )
        return None

    def reduced(of: list[list[np.ndarray]]) -> tuple[Measured, list[float]]:
        table = np.array([np.mean(values, axis=0) for values in of if values])  # (iterations, shares)
        drops = performance_drop(table.T)
        low, high = np.quantile(drops, (0.025, 0.975)) if len(drops) > 1 else (None, None)
        reason = "" if len(drops) > 1 else "no interval: one draw"
        value = Measured(value=float(drops.mean()), low=low, high=high, reason=reason)
        return value, table.mean(axis=0).tolist()

    drawn_well = sum(map(bool, inside))
    if drawn_well < iterations:
        note(
            f"average performance drop: in {iterations - drawn_well} of {iterations} draws no two domains "
            "had enough patches"
        )
    within, by_share = reduced(inside)
    without, other_share = reduced(outside) if any(outside) else (Measured(reason="two domains only"), [])
    return Drop(
        inside=within,
        outside=without,
        baseline_inside=by_share[0],
        baseline_outside=other_share[0] if other_share else None,
        shares=list(SHARES),
        by_share_inside=by_share,
        by_share_outside=other_share,
        pairs=len(pairs),
        iterations=drawn_well,
    )


def _drawn(
    rows: _LabelledRows, pair: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Rows to fit, to choose and to score on, and which of the first are in the set of each share (S, n).

    None where a class has fewer than LEAST rows in one of them.
    """
    here = np.flatnonzero(np.isin(rows.domain, pair))
    part = np.zeros(len(here), np.intp)
    for domain in pair:  # each domain's groups are dealt out
        of = rows.domain[here] == domain
        code = cluster_codes(rows.group[here[of]], int(of.sum()))
        order = rng.permutation(int(code.max()) + 1)
        first, second = round(PARTS[0] * len(order)), round(sum(PARTS) * len(order))
        dealt = np.full(len(order), 2)
        dealt[order[:first]], dealt[order[first:second]] = 0, 1
        part[of] = dealt[code]
    K = len(rows.classes)
    cells = [
        [
            [here[(part == p) & (rows.label[here] == c) & (rows.domain[here] == d)] for d in pair]
            for c in range(K)
        ]
        for p in range(3)
    ]
    size = min(len(cell) for both in cells[0] for cell in both) // 2
    if size < LEAST or min(len(cell) for p in (1, 2) for both in cells[p] for cell in both) < LEAST:
        return None
    size = min(size, LARGEST)
    order = [[rng.permutation(cell) for cell in both] for both in cells[0]]
    fitted = np.concatenate([cell[: 2 * size] for both in order for cell in both])
    sets = np.zeros((len(SHARES), len(fitted)))
    for s, share in enumerate(SHARES):
        counts = correlated_cells(K, size, share)
        for c in range(K):
            for j in range(2):
                start = (2 * c + j) * 2 * size
                sets[s, start : start + counts[c, j]] = 1
    chosen, scored = (np.concatenate([cell for both in cells[p] for cell in both]) for p in (1, 2))
    return fitted, chosen, scored, sets


def _fit(X: np.ndarray, y: np.ndarray, sets: np.ndarray, K: int) -> Any:
    return fit_logistic(X, y, C=STRENGTHS, weights=sets, tol=1e-5)


def _accuracy(fits: Any, X: np.ndarray, y: np.ndarray, cell: np.ndarray, K: int) -> np.ndarray:
    """Mean over cells of the share of right calls: float64 (sets, strengths)."""
    scores = fits.decision(X)
    right = ((scores > 0) if K == 2 else scores.argmax(axis=-1)) == y[:, None, None]
    return np.mean([right[cell == c].mean(axis=0) for c in np.unique(cell)], axis=0)


def _clusters(X: np.ndarray, rows: _LabelledRows, trials: int, seed: int) -> list[float]:
    """The clustering score of every two classes in two domains that have all four combinations.

    Of each at most CLUSTERED rows are drawn, equally many.
    """
    agreement = []
    for a, b, d, e in class_domain_pairs(rows.label, rows.domain):
        cells = [np.flatnonzero((rows.label == c) & (rows.domain == g)) for c in (a, b) for g in (d, e)]
        size = min(CLUSTERED, *(len(cell) for cell in cells))
        if size < LEAST:
            continue
        rng = np.random.default_rng([seed, *(int(str(v)) for v in (a, b, d, e))])
        some = np.concatenate([rng.choice(cell, size, replace=False) for cell in cells])
        scores, _ = clustering_score(
            X[some], rows.label[some], rows.domain[some], starts=STARTS, trials=trials, seed=seed
        )
        agreement.append(float(scores.mean()))
    return agreement


Load = Callable[[str], np.ndarray]


def _consistency(names: Sequence[str], load: Load, rows: _LabelledRows) -> list[Consistency]:
    """Every view of an encoder and token policy against its first one."""
    first: dict[tuple[str, str | None], str] = {}
    out = []
    for name in names:
        source = _single(name)
        if source is None:
            continue
        base = first.setdefault((source.encoder, source.tokens), name)
        if base == name:
            continue
        base_rows, other = unit(load(base)), unit(load(name))
        cosine = np.einsum("ij,ij->i", base_rows, other, dtype=np.float64)
        tops = tuple(t for t in TOPS if t <= len(rows))
        index, _ = nearest(other, tops[-1], queries=base_rows)
        hit = index == np.arange(len(rows))[:, None]
        ones = np.ones(len(rows))
        ratios: dict[str, Any] = {"cosine": (cosine, ones)}
        ratios |= {f"top {t}": (hit[:, :t].any(axis=1), ones) for t in tops}
        intervals = estimate_ratios(ratios, groups=rows.group)
        top = {t: _measured(intervals[f"top {t}"]) for t in tops}
        out.append(Consistency(features=base, other=name, cosine=_measured(intervals["cosine"]), top=top))
    return out


def _alignment(
    names: Sequence[str], load: Load, near: dict[str, np.ndarray], rows: _LabelledRows, k: int
) -> list[Alignment]:
    """Every two encoders in the same view."""
    out = []
    for a, b in combinations(names, 2):
        first, other = _single(a), _single(b)
        if first is None or other is None or first.view != other.view or first.encoder == other.encoder:
            continue
        mutual = mutual_neighbours(near[a][:, :k], near[b][:, :k])
        intervals = estimate_ratios({"mutual": (mutual, np.ones(len(rows)))}, groups=rows.group)
        cka = linear_cka(unit(load(a)), unit(load(b)))
        out.append(Alignment(a=a, b=b, cka=cka, mutual=_measured(intervals["mutual"]), k=k))
    return out


def _single(name: str) -> Source | None:
    """The source of a feature set of one encoder, else None."""
    sources = parse_features(name).sources
    return sources[0] if len(sources) == 1 else None


def _measured(interval: Interval) -> Measured:
    numbers = [float(getattr(interval, side)[0]) for side in ("value", "low", "high")]
    value, low, high = (None if math.isnan(number) else number for number in numbers)
    return Measured(value=value, low=low, high=high, reason=str(interval.reason[0]))


def _counted(names: Sequence[str], codes: np.ndarray) -> dict[str, int]:
    return {name: int(n) for name, n in zip(names, np.bincount(codes, minlength=len(names)), strict=True)}
