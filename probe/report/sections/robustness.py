"""How much the embeddings are of the domain: the tables of `probe robustness`."""

from typing import Any

from ...results.display import Table, interval, number
from ...results.robustness import Robustness


def robustness(result: Robustness) -> list[Any]:
    """Sentences and tables, for a page, Markdown and the terminal."""
    domains = ", ".join(f"{name} ({n:,})" for name, n in result.domains.items())
    chosen = (
        "the k whose vote is best for the class, the median over the sets" if result.k_chosen else "as asked"
    )
    grouped = result.group_kind != "none" and result.groups < result.rows
    kind = f"{result.group_kind}s" if grouped else "patches"
    of_groups, of_other = (
        (f" of {result.groups:,} {kind}", f"patches of other {kind}") if grouped else ("", "other patches")
    )
    out: list[Any] = [
        f"**{result.dataset}**: {result.rows:,} patches{of_groups} in {len(result.domains)} domains: "
        f"{domains}.",
        f"Of the {result.k} nearest {of_other} (cosine; k: {chosen}): the robustness index is "
        "the share of same class, other domain among those that are either that or other class, same domain; "
        "retrieval the share of the same class. Domain: balanced accuracy of a linear classifier of the "
        f"domain, {kind} held out; chance {1 / len(result.domains):.3f}. "
        "Clustering: adjusted Rand index with "
        "the class less that with the domain.",
        _sets(result),
        *_undefined(result, "robustness index", "retrieval", "domain"),
    ]
    if any(features.drop for features in result.sets):
        out += [
            "Average performance drop: a linear probe is fitted while class and domain are more and more "
            "correlated in its training patches; the relative loss of balanced accuracy, mean over the "
            f"correlations, on left-out {kind} of the same two domains and on the other domains. 0 is no "
            f"loss; the interval is over draws of {kind}.",
            _drops(result),
            *_undefined(result, "drop, same domains", "drop, other domains"),
        ]
    if result.consistency:
        out += [
            "The same patch in two views: mean cosine, and how often the patch itself is the nearest of all "
            "in the other view (top 1), or among the 5 or 10 nearest.",
            _views(result),
        ]
    if result.alignment:
        out += [
            "Two encoders on the same patches: linear CKA (1: the same up to rotation and scale) and the "
            f"share of their {result.k} nearest patches that they have in common.",
            Table(
                ["encoders", "CKA", "common neighbours"],
                [[f"{a.a} and {a.b}", number(a.cka), interval(a.mutual.triple)] for a in result.alignment],
            ),
        ]
    return out + [f"Note: {note}." for note in result.notes]


def _undefined(result: Robustness, *names: str) -> list[str]:
    """Why a "-" or a number without an interval stands in a table; names : the measures of the table."""
    reasons: dict[str, list[str]] = {}
    for features in result.sets:
        numbers = {
            "robustness index": features.index,
            "retrieval": features.precision,
            "domain": features.domain,
            "drop, same domains": features.drop and features.drop.inside,
            "drop, other domains": features.drop and features.drop.outside,
        }
        for name in names:
            number = numbers[name]
            if number is not None and number.reason:
                reasons.setdefault(f"{name}: {number.reason}", []).append(features.features)
    of_all = len(result.sets)
    return [why + ("." if len(of) == of_all else f" ({', '.join(of)}).") for why, of in reasons.items()]


def _sets(result: Robustness) -> Table:
    rows = []
    for features in result.sets:
        clustering = "-" if features.clustering is None else f"{features.clustering:+.3f}"
        retrieval = f"{interval(features.precision.triple)} ({features.precision_chance:.3f})"
        rows.append(
            [
                features.features,
                interval(features.index.triple),
                retrieval,
                interval(features.domain.triple),
                clustering,
            ]
        )
    return Table(["features", "robustness index", "retrieval (chance)", "domain", "clustering"], rows)


def _drops(result: Robustness) -> Table:
    rows = []
    for features in result.sets:
        if features.drop is not None:
            start = f"{features.drop.baseline_inside:.3f} / {number(features.drop.baseline_outside)}"
            rows.append(
                [
                    features.features,
                    start,
                    *(interval(d.triple, "+.3f") for d in (features.drop.inside, features.drop.outside)),
                ]
            )
    return Table(
        ["features", "uncorrelated (same / other)", "drop, same domains", "drop, other domains"], rows
    )


def _views(result: Robustness) -> Table:
    tops = sorted({t for compared in result.consistency for t in compared.top})
    rows = []
    for pair in result.consistency:
        hits = [interval(pair.top[t].triple) if t in pair.top else "-" for t in tops]
        rows.append([f"{pair.features} and {pair.other}", interval(pair.cosine.triple), *hits])
    return Table(["views", "cosine", *(f"top {t}" for t in tops)], rows)
