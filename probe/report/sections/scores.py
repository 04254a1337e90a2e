"""The leaderboard of a report: scores of all systems, what they mean, repeats, duplicates, fold models."""

from typing import Any

from ...results.display import SHOWN, Table, interval, mean_and_sd, mean_sd, number
from ...results.scoring import FEW_GROUPS
from ..markup import interval_html, span, whisker
from ..view import OTHERS, View
from . import clinical

_SIMULATED = "In simulated studies of 20 to 150 slides, 95 % intervals of this kind held the truth in "
COVERED = {  # tests/benchmarks/stats_coverage.py
    "jackknife": f"{_SIMULATED}.90 to .99 of studies (out of fold, with the variance raised by a factor of "
    "1.25, in .93 to .99); where slides exist and are not known, in .58 to .84.",
    "bca": "How often such intervals hold the truth was not simulated; percentiles are too narrow.",
    "percentile": f"{_SIMULATED}.88 to .96 of studies.",
}

COVERED_CLASSES = (
    "In simulated studies of 20 and 60 slides and four classes, 95 % intervals of this kind held the truth "
    "in .93 to .98 of studies."
)


def leaderboard(view: View) -> list[Any]:
    """All systems on each set, with what the numbers mean and what bears on them."""
    records = list(view.records.values())
    of_classes = [m for m in ("accuracy", "average_precision", "f1", "kappa") if m not in view.metrics]
    beside = of_classes if view.multiclass else ["sensitivity", "specificity"]
    scale = {
        m: span(
            [r.estimate(m) for r in records], min(r.chance(m) for r in records) if view.multiclass else 0.5
        )
        for m in view.metrics
    }
    solver = view.results.config.solver
    out: list[Any] = []
    if solver != "exact":
        out.append(
            f"These are models of the published recipe {solver!r}, for comparison: each fold chose the "
            "epoch of its own model, so that scores on the training set would be no estimate and are "
            "left out."
        )
    out += selected_on(view)
    out.append(meaning(view))
    for dataset in view.sets:
        on_set = [r for r in records if r.dataset == dataset]
        if not on_set:
            continue
        what = "different patches" if on_set[0].deduplicated else "patches"
        how = "scored out of fold" if dataset == view.train else "never used in training or choosing"
        share = f"{on_set[0].share:.1%} {view.positive}"
        if view.multiclass:
            share = f"{on_set[0].n_classes} classes"
        line = (
            f"; an expert against the other experts: balanced accuracy {view.human[dataset]:.3f} (dashed)"
            if dataset in view.human
            else ""
        )
        out.append(
            f"**{dataset}**: {on_set[0].n:,} {what}, {share}, "
            f"{clinical.independence(view, on_set[0])}; "
            f"{how}{line}."
        )
        rows = []
        for r in on_set:
            cells: list[Any] = [view.cell(r.features)]
            for m in view.metrics:
                human = view.human.get(dataset) if m == "balanced_accuracy" else None
                series, value = view.series.get(r.features, OTHERS), r.estimate(m)
                bar = whisker(value, scale[m], chance=r.chance(m), human=human, series=series)
                cells.append((interval(value), interval_html(value) + bar))
            cells += [number(r.estimate(m).value) for m in beside]
            rows.append(cells)
        out.append(
            Table(
                [view.noun, *(view.titles[m] for m in (*view.metrics, *beside))],
                rows,
                kind="board",
                caption=dataset,
            )
        )
        out += clinical.if_clustered(view, on_set, view.metrics)
    return [*out, *clinical.no_interval(view, view.metrics), *with_duplicates(view), *notes(view)]


def selected_on(view: View) -> list[Any]:
    """What was chosen on the set's own validation split instead of folds."""
    split = view.results.config.select_on
    if split in (None, "folds"):
        return []
    return [
        f"Everything was chosen on the split {split!r} of {view.results.train.name}, not on folds: that "
        "split and the training patches have no scores here, and where a text says folds, it is meant."
    ]


def notes(view: View) -> list[Any]:
    """Notes of the run that bear on its numbers: settings not used, fewer folds, near-duplicates."""
    return [f"Note: {note}." for note in view.results.notes]


def repeats(view: View) -> list[Any]:
    """How far the scores depend on how the folds happened to be made."""
    repeats = view.results.repeats
    if not repeats:
        return []
    spreads = {(r.dataset, r.features, r.role): r for r in repeats.scores}
    rows = [
        [r.dataset, view.starred(r.features), *(mean_and_sd(spread.spread(m)) for m in SHOWN)]
        for r in view.records.values()
        if (spread := spreads.get((r.dataset, r.features, r.role)))
    ]
    return [
        f"Mean ± standard deviation over {len(repeats.seeds)} runs of the whole protocol, each with "
        "folds of another seed; the first run is the one that all other figures are of. The deviation "
        "is that of the choice of folds, on all files of these same patches: it is not an interval for other "
        "patients.",
        Table(["set", view.noun, *(view.titles[m] for m in SHOWN)], rows, left=2),
    ]


def with_duplicates(view: View) -> list[Any]:
    """The chosen system on all files of the sets that hold duplicates, beside the figures that lead."""
    raw = {(r.dataset, r.role): r for r in view.results.whole(features=view.chosen)}
    rows = [
        [r.dataset, raw[r.dataset, r.role].n, r.n]
        + [
            interval(score.estimate(m))
            for m in ("balanced_accuracy", "auroc")
            for score in (raw[r.dataset, r.role], r)
        ]
        for r in view.records.values()
        if r.deduplicated and r.features == view.chosen
    ]
    if not rows:
        return []
    heads = ["balanced accuracy, all files", "different", "AUROC, all files", "different"]
    return [
        "Some images occur more than once. The figures above count each once, and none that carries both "
        f"labels; on all files {view.chosen} (★) has:",
        Table(["set", "files", "different", *heads], rows),
    ]


def meaning(view: View) -> str:
    """What the numbers of the leaderboard are."""
    kind = view.groups
    how = {
        "jackknife": f"the jackknife over whole {kind} with Student's t",
        "bca": f"the BCa bootstrap of whole {kind}; percentiles below {FEW_GROUPS} of them",
        "percentile": f"percentiles of the bootstrap of whole {kind}",
    }[view.results.config.interval]
    covered = COVERED[view.results.config.interval]
    if view.multiclass or view.results.targets:
        simulated = view.multiclass and view.results.config.interval == "jackknife"
        covered = COVERED_CLASSES if simulated else ""
    parts = (_meaning_of_numbers(view, how), covered, view.result.optimism("★"))
    return " ".join(part for part in parts if part)


def _meaning_of_numbers(view: View, how: str) -> str:
    if count := len(view.results.targets):
        return (
            f"In brackets: {view.level} % intervals, by {how}. "
            + (f"Values are means over the {count} targets. " if count > 1 else "")
            + "Pearson's and Spearman's correlations are 0 without any relation; R2 is 1 less the squared "
            "error over that of the set's own mean, 0 for a constant. ★ marks what the folds of the "
            "training set chose; no choice of any kind was made on the test sets."
        )
    if view.multiclass:
        ordered = view.results.train.ordered
        return (
            f"In brackets: {view.level} % intervals, by {how}. The call is the most probable class. Balanced "
            f"accuracy is the mean of the {len(view.classes)} classes' sensitivities; chance level is "
            f"{1 / len(view.classes):.3f}. AUROC, average precision and F1 are macro: means over the "
            "classes, each against the rest. Cohen's kappa is agreement beyond chance, 0 at chance level"
            + (", with quadratic weights, since the classes are ordered" if ordered else "")
            + ". A mean over classes is undefined on a set that lacks one of them. ★ marks what the folds of "
            "the training set chose; no choice of any kind was made on the test sets."
        )
    return (
        f"In brackets: {view.level} % intervals, by {how}. Balanced "
        "accuracy is the mean of sensitivity and specificity, calls made at probability 0.5; 0.5 is "
        f"chance level. AUROC is the chance that a random {view.positive} patch scores above a "
        f"random other one. Average precision is for the class {view.positive}; chance level is the "
        "class's share. ★ "
        "marks what the folds of the training set chose; no choice of any kind was made on the test "
        "sets."
    )


def fold_models(view: View) -> list[Any]:
    """As published tables put it: mean over the folds' models and standard deviation (ddof 0)."""
    rows = []
    for name in view.names:
        for dataset, values in view.results.fold_models.get(name, {}).items():
            rows.append([name, dataset, *(mean_sd(values[m]) for m in ("balanced_accuracy", "auroc"))])
    if not rows:
        return []
    return [
        "Each outer fold's model by itself on the sets that none was trained on: mean (standard "
        "deviation) over the folds, as published tables often have it. The deviation is between "
        "trainings and says nothing about other patches.",
        Table([view.noun, "set", "balanced accuracy", "AUROC"], rows, left=2),
    ]
