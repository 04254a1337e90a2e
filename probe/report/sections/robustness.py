"""How much the embeddings are of the domain: the tables of `probe robustness`."""

from typing import Any

from ...results.display import Table, interval, number
from ...results.robustness import Robustness


def robustness(found: Robustness) -> list[Any]:
    """Sentences and tables, for a page, Markdown and the terminal."""
    domains = ", ".join(f"{name} ({n:,})" for name, n in found.domains.items())
    chosen = (
        "the k whose vote is best for the class, the median over the sets" if found.k_chosen else "as asked"
    )
    kind = f"{found.group_kind}s" if found.group_kind != "none" else "patches"
    out: list[Any] = [
        f"**{found.dataset}**: {found.rows:,} patches of {found.groups:,} {kind} in "
        f"{len(found.domains)} domains: {domains}.",
        f"Of the {found.k} nearest patches of other {kind} (cosine; k: {chosen}): the robustness index is "
        "the share of same class, other domain among those that are either that or other class, same domain; "
        "retrieval the share of the same class. Domain: balanced accuracy of a linear classifier of the "
        f"domain, {kind} held out; chance {1 / len(found.domains):.3f}. Clustering: adjusted Rand index with "
        "the class less that with the domain.",
        _sets(found),
    ]
    if any(one.drop for one in found.sets):
        out += [
            "Average performance drop: a linear probe is fitted while class and domain are more and more "
            "correlated in its training patches; the relative loss of balanced accuracy, mean over the "
            f"correlations, on left-out {kind} of the same two domains and on the other domains. 0 is no "
            f"loss; the interval is over draws of {kind}.",
            _drops(found),
        ]
    if found.consistency:
        out += [
            "The same patch in two views: mean cosine, and how often the patch itself is the nearest of all "
            "in the other view (top 1), or among the 5 or 10 nearest.",
            _views(found),
        ]
    if found.alignment:
        out += [
            "Two encoders on the same patches: linear CKA (1: the same up to rotation and scale) and the "
            f"share of their {found.k} nearest patches that they have in common.",
            Table(
                ["encoders", "CKA", "common neighbours"],
                [[f"{a.a} and {a.b}", number(a.cka), interval(a.mutual.triple)] for a in found.alignment],
            ),
        ]
    return out + [f"Note: {note}." for note in found.notes]


def _sets(found: Robustness) -> Table:
    rows = []
    for one in found.sets:
        clustering = "-" if one.clustering is None else f"{one.clustering:+.3f}"
        retrieval = f"{interval(one.precision.triple)} ({one.precision_chance:.3f})"
        rows.append(
            [one.features, interval(one.index.triple), retrieval, interval(one.domain.triple), clustering]
        )
    return Table(["features", "robustness index", "retrieval (chance)", "domain", "clustering"], rows)


def _drops(found: Robustness) -> Table:
    rows = []
    for one in found.sets:
        if one.drop is not None:
            start = f"{one.drop.baseline_inside:.3f} / {number(one.drop.baseline_outside)}"
            rows.append(
                [
                    one.features,
                    start,
                    *(interval(d.triple, "+.3f") for d in (one.drop.inside, one.drop.outside)),
                ]
            )
    return Table(
        ["features", "uncorrelated (same / other)", "drop, same domains", "drop, other domains"], rows
    )


def _views(found: Robustness) -> Table:
    tops = sorted({t for one in found.consistency for t in one.top})
    rows = []
    for one in found.consistency:
        hits = [interval(one.top[t].triple) if t in one.top else "-" for t in tops]
        rows.append([f"{one.features} and {one.other}", interval(one.cosine.triple), *hits])
    return Table(["views", "cosine", *(f"top {t}" for t in tops)], rows)
