"""Data, leaks, provenance and cost."""

from typing import Any

from ...results.display import Table
from ...results.schema import FoldsUsed, Leaks
from ..view import View

NEAR_WORDS = {
    "images": " (near-duplicates looked for in the pixels)",
    "embeddings": " (near-duplicates looked for in the embeddings, which miss shifted copies)",
    "": " (near-duplicates not looked for)",
}
GAPS = (
    "The gap bound is an upper bound of how far an objective is above its optimum, relative; the worst of "
    "all fits is shown. Fits that are converged or polished have a small one. For newton, the decrement of a "
    "float64 Newton step is below the tolerance, and where rounding keeps the bound from showing it, the "
    "bound may be near 1 for a right fit. Capped fits did not reach the tolerance."
)


KINDS_OF_LEAKS = {
    "labels": "images with contradictory labels",
    "content": "images on both sides of a split",
    "group": "groups on both sides of a split",
    "place": "slides with patches at one place on both sides of a split",
    "near-duplicate": "near-duplicates on both sides",
    "reused": "training rows that are reported on",
}


def data(view: View) -> list[Any]:
    """The evaluation sets, rows that were left out, the leak audit."""
    rows = [
        [
            d.dataset,
            d.licence,
            ", ".join(f"{k} ({v})" for k, v in d.domains.items()) or "-",
            d.n,
            *([] if d.n_positive is None else [d.n_positive]),
            d.n_groups or "-",
            d.n_distinct,
        ]
        for d in view.results.data
    ]
    out: list[Any] = [
        Table(
            ["set", "licence", "domains", "patches", *view.positives, "groups", "distinct images"],
            rows,
            left=3,
        )
    ]
    if view.multiclass:
        counts = [dict(zip(d.classes, d.counts, strict=False)) for d in view.results.data]
        out.append(
            Table(["class", *view.sets], [[name, *(c.get(name, 0) for c in counts)] for name in view.classes])
        )
    left_out = [f"{n:,} of {d.dataset} ({why})" for d in view.results.data for why, n in d.left_out.items()]
    left_out += [
        f"{d.n - d.n_distinct:,} of {d.dataset} (repeated images, and those with both labels: out of the "
        "figures that lead, not of those of all files)"
        for d in view.results.data
        if d.n_distinct < d.n
    ]
    if left_out:
        out.append(f"Rows left out: {'; '.join(left_out)}.")
    return [*out, *(leak_audit(view.results.leaks) if view.results.leaks else ())]


def leak_audit(leaks: Leaks) -> list[str]:
    """How many leaks of each kind, and the rows of the first."""
    counts = {kind: n for kind, n in leaks.found.items() if n}
    looked = NEAR_WORDS.get("not recorded" if leaks.near_by is None else leaks.near_by, "")
    named = "; ".join(f"{n} {KINDS_OF_LEAKS.get(kind, kind)}" for kind, n in counts.items())
    texts = [f"Leak audit, before anything was fitted{looked}: {named or 'nothing found'}."]
    for leak in leaks.leaks[:20]:
        rows = ", ".join(f"{patch} ({side}, {label})" for patch, side, label in leak.rows[:8])
        more = " ..." if len(leak.rows) > 8 else ""
        texts.append(f"{KINDS_OF_LEAKS.get(leak.kind, leak.kind)}: {rows}{more}")
    return texts


def provenance(view: View) -> list[Any]:
    """Cost of the fits, stores, folds, settings and versions."""
    config, seconds = view.results.config, view.results.seconds
    out: list[Any] = [costs(view)]
    if any(m.fits and m.fits.worst_gap_bound is not None for m in view.results.models):
        out.append(GAPS)
    if seconds:
        out.append("Wall time: " + ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items()) + ".")
    for name, store in view.results.stores.items():
        about = ", ".join(
            f"{k} {v}" for k, v in store.provenance.items() if isinstance(v, str | int | float) and v != ""
        )
        out.append(
            f"**{name}**: store {store.store}, {store.precision} arithmetic, stored as {store.dtype}"
            + (f"; {about}" if about else "")
            + "."
        )
    folds = view.results.folds
    own = next((m.choice.parameter for m in view.results.models if m.choice), "")
    settings = ", ".join(
        f"{k} {_setting(v)}"
        for k, v in config.to_json().items()
        if k not in (own, "features") and v not in (None, [])
    )
    grid = config.grid(own)
    of_grid = f"Grid of {own}: {len(grid)} from {min(grid):.2g} to {max(grid):.2g}. " if grid else ""
    out.append(
        f"Folds: {folds.name}, {folds.n_splits} outer ({folds.made_with or 'from a file'}). "
        f"{_inner_folds(folds)}{of_grid}Settings: {settings}."
    )
    out.append(
        "Made with "
        + ", ".join(f"{k} {v}" for k, v in view.results.provenance.items() if v and not isinstance(v, list))
        + "."
    )
    if view.results.not_recorded:
        out.append(f"Not recorded: {'; '.join(view.results.not_recorded)}.")
    return out


def _inner_folds(folds: FoldsUsed) -> str:
    if folds.shared:
        return "Inner folds: the other folds, shared. "
    numbers = sorted({number for number in folds.inner or () if number})
    return f"Inner folds: {' or '.join(map(str, numbers))} of their own. " if numbers else ""


def costs(view: View) -> Table:
    """A row a model: how many fits, how they ended, seconds."""
    cost = []
    for m in view.results.ranked:
        fits = m.fits
        if not fits:
            cost.append([m.features, m.dim, "-", "-", "-", "-", f"{m.took('all'):.1f}"])
            continue
        gap = fits.worst_gap_bound
        cost.append(
            [
                m.features,
                m.dim,
                fits.fits,
                ", ".join(f"{v} {k}" for k, v in fits.status.items()),
                "-" if gap is None else f"{gap:.0e}",
                f"{m.took('fit'):.1f}",
                f"{m.took('all', 'load'):.1f}",
            ]
        )
    return Table(
        [view.noun, "columns", "fits", "how they ended", "worst gap bound", "s, fitting", "s, in all"], cost
    )


def _setting(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
