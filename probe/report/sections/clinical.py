"""What a reader needs before a score means something for use: the sections that journals ask for.

Calibration, counts of right and wrong calls, predictive values, sensitivity at a required specificity, net
benefit, what the sets could have shown, and how much domains differ (STARD-AI, TRIPOD+AI, CLAIM, Metrics
Reloaded). Read from the scores that FORMAT.md documents; results without them have no such sections.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...results.display import Table, interval, number, p_value
from ...results.schema import UNKNOWN, Role, Score, Votes
from ..charts import decision
from ..plots import side_by_side, svg
from ..view import View

PREVALENCES = ("0.05", "0.1", "0.2", "0.3", "observed")
CALLED = {"metrics": "probability 0.5", "at_threshold": "threshold of the folds"}


def _leading(view: View) -> list[Score]:
    """The scores of the chosen system that lead on each set."""
    return [r for (_, name), r in view.records.items() if name == view.chosen]


def _counted(view: View, score: Score) -> str:
    return score.dataset + view.of_fold(score.dataset)


def reasons(records: Iterable[tuple[str, Mapping[str, str]]]) -> list[Any]:
    """Why some numbers have no interval, each reason once."""
    where_missing: dict[str, list[str]] = {}
    for where, each in records:
        for what, why in each.items():
            where_missing.setdefault(why, []).append(f"{where}, {what.replace('_', ' ')}")
    return [f"No interval ({why}): {'; '.join(places)}." for why, places in where_missing.items()]


def calibration(view: View) -> list[Any]:
    """Slope, intercept, observed over expected, and the calibration error beside its floor."""
    rows, missing = [], []
    for r in _leading(view):
        for kind, title in (("probability", "as fitted"), ("platt", "calibrated (Platt, on the folds)")):
            c = r.calibration.get(kind)
            if c is None:
                continue
            error = r.estimate("ece", "metrics" if kind == "probability" else "platt").value
            floor = c.ece_floor
            beside = "-"
            if floor and floor.mean is not None:
                beside = f"{floor.mean:.3f}, up to {floor.high:.3f}"
            rows.append(
                [
                    _counted(view, r),
                    title,
                    interval(c.slope),
                    interval(c.intercept),
                    interval(c.observed_expected),
                    number(error),
                    beside,
                    p_value(floor.p) if floor else "-",
                ]
            )
            missing.append((f"{r.dataset}, {title}", c.reasons))
    if not rows:
        return []
    return [
        f"Of {view.chosen} (★). A calibrated model has slope 1 (below: predictions too extreme), intercept 0 "
        "(below: probabilities too high on the whole) and observed / expected (O/E) 1. The expected "
        "calibration error (ECE) is above zero even under perfect calibration: its floor is what samples of "
        "this size give then (mean and 95th percentile), p how often they give as much as was observed.",
        Table(
            ["set", "probabilities", "slope", "intercept", "O/E", "ECE", "floor of the ECE", "p"],
            rows,
            left=2,
        ),
        *reasons(missing),
    ]


def operating_points(view: View) -> list[Any]:
    """Counts of calls, predictive values at prevalences, sensitivity at a required specificity."""
    counts, values, cuts, missing = [], [], [], []
    for r in _leading(view):
        for kind, title in CALLED.items():
            c = r.calls.get(kind)
            if c is None:
                continue
            n = c.confusion
            rates = interval(c.sensitivity), interval(c.specificity)
            counts.append([_counted(view, r), title, n.tp, n.fn, n.fp, n.tn, *rates])
            missing.append((f"{r.dataset}, {title}", c.reasons))
        called = r.calls.get("at_threshold") or r.calls.get("metrics")
        for prevalence in PREVALENCES:
            at = called.predictive_values.get(prevalence) if called else None
            if at is not None:
                share = f"{r.share:.1%}, as in the set"
                shown = share if prevalence == "observed" else f"{float(prevalence):.0%}"
                values.append([_counted(view, r), shown, interval(at.ppv), interval(at.npv)])
        for specificity, at in r.at_specificity.items():
            row = [_counted(view, r), f"{float(specificity):.2f}"]
            cuts.append([*row, interval(at.specificity), interval(at.sensitivity)])
            missing.append((f"{r.dataset}, specificity {specificity}", at.reasons))
    if not counts:
        return []
    out: list[Any] = [
        f"Calls of {view.chosen} (★), in patches.",
        Table(
            [
                "set",
                "called at",
                f"{view.positive}, found",
                f"{view.positive}, missed",
                f"{view.negative}, called {view.positive}",
                f"{view.negative}, right",
                "sensitivity",
                "specificity",
            ],
            counts,
            left=2,
        ),
    ]
    if cuts:
        out += [
            "Sensitivity where a specificity is required. The cut is fixed on the training set's folds, so "
            "the specificity that it has on another set is measured as well.",
            Table(["set", "required specificity", "specificity", "sensitivity"], cuts),
        ]
    if values:
        out += [
            "Predictive values depend on how frequent the class is where the model is used: at the threshold "
            f"of the folds, the share of true {view.positive} among patches called {view.positive} (PPV) and "
            "of true others among the rest (NPV).",
            Table(["set", f"prevalence of {view.positive}", "PPV", "NPV"], values, left=2),
        ]
    return out + reasons(missing)


def decision_curve(view: View) -> list[Any]:
    """Net benefit over threshold probabilities, beside calling all patches and calling none."""
    charts = [chart for dataset in view.sets if (chart := decision(view, dataset))]
    if not charts:
        return []
    return [
        f"Net benefit of acting on the calibrated probabilities of {view.chosen} (★): true positives a "
        "patch, "
        "less the false positives weighted by the odds of the threshold probability, at which a reader would "
        "just act (Vickers and Elkin 2006). Falling dashed line: act on every patch; dashed line at zero: on "
        f"none. Bars are {view.level} % intervals.",
        side_by_side(map(svg, charts)),
    ]


def precision(view: View) -> list[Any]:
    """What differences the sets could have shown; by the ensemble only where there is no refit."""
    precisions = view.results.precision
    refitted = {p.dataset for p in precisions if p.role == Role.REFIT}
    rows = [
        [
            p.dataset,
            view.titles[p.metric],
            f"{p.n:,}",
            "unknown" if p.dataset in view.ungrouped else p.n_groups,
            f"± {p.half_width:.3f}" if p.half_width is not None else "-",
            number(p.detectable),
        ]
        for p in precisions
        if not (p.role == Role.ENSEMBLE and p.dataset in refitted)
    ]
    if not rows:
        return []
    return [
        f"How large a difference between two {view.noun}s has to be on these sets. Half-width: of the "
        f"{view.level} % interval of a paired difference, the median over the pairs that were compared. "
        "Detectable: the true difference that such a comparison would call significant in 80 of 100 studies.",
        Table(
            ["set", "metric", "patches", "groups", "half-width", "detectable at 80 % power"],
            rows,
            left=2,
        ),
    ]


def between_domains(view: View) -> list[Any]:
    """The worst domain, and whether domains differ by more than chance."""
    rows = []
    for r in _leading(view):
        for metric, b in r.between_domains.items():
            if not b.worst:
                continue
            rows.append(
                [
                    _counted(view, r),
                    view.titles[metric],
                    b.worst.domain,
                    interval(b.worst.estimate),
                    b.k,
                    p_value(b.p),
                    interval(b.i2 or UNKNOWN, ".0%"),  # from two domains with a standard error on
                ]
            )
    if not rows:
        return []
    return [
        "The lowest domain of each set, and heterogeneity between domains: p of Cochran's Q (all domains "
        "have the same value), I² the share of the variation between domains that is not chance. The "
        "interval "
        "of the lowest domain allows for its having been picked among all.",
        Table(
            ["set", "metric", "lowest domain", "value", "domains", "p, heterogeneity", "I²"],
            rows,
            left=3,
        ),
    ]


def human(view: View, votes: Votes) -> list[Any]:
    """Experts and models on the same rows against the same references."""
    line = votes.human
    if not line:
        return []
    rows = [
        [m.features, interval(m.value), interval(m.difference, "+.3f"), p_value(m.p)]
        for m in line.models
        if m.features in view.names
    ]
    ties = line.n_tied / line.n_votes if line.n_votes else 0.0
    text = (
        f"An expert against the majority of the other experts: balanced accuracy {interval(line.value)}, "
        f"over {line.n_votes:,} votes on {line.n:,} patches"
    )
    text += f" ({line.n_left_out:,} without enough votes left out)." if line.n_left_out else "."
    if line.n_tied:
        text += (
            f" For {ties:.1%} of the votes the other experts are tied; these are the hardest, and they count "
            f"half for each class. Without them the line would be {number(line.without_ties)}."
        )
    if line.reason:
        text += f" No interval: {line.reason}."
    out: list[Any] = [text]
    if rows:
        out += [
            "Models on the same rows, against the same majorities, so that both are on one scale; the "
            "difference is experts minus model:",
            Table([view.noun, "balanced accuracy", "difference", "p"], rows),
        ]
    return out


def no_interval(view: View, metrics: Sequence[str]) -> list[Any]:
    """Why values of the leaderboard stand without an interval."""
    return reasons(
        (f"{r.dataset}, {r.features}", {m: why for m in metrics if (why := r.estimate(m).reason)})
        for r in view.records.values()
    )


def independence(view: View, score: Score) -> str:
    """What the intervals of a set take as independent: groups, design effect, degrees of freedom."""
    if score.dataset in view.ungrouped:
        return "slides unknown (the intervals take patches as independent and are too narrow)"
    text = f"{score.n_groups:,} {view.results.data_set(score.dataset).group_kind}s"
    auroc = score.estimate("auroc")
    if auroc.design_effect is not None and auroc.degrees_of_freedom is not None:
        text += (
            f" (AUROC: design effect {auroc.design_effect:.1f}, "
            f"{auroc.degrees_of_freedom:.0f} degrees of freedom)"
        )
    return text


def if_clustered(view: View, scores: Sequence[Score], metrics: Sequence[str]) -> list[Any]:
    """Intervals of sets without known groups, were the design effect 2."""
    clustered = [r for r in scores if r.design_effect_2]
    if not clustered:
        return []
    rows = [[r.features, *(interval(r.estimate(m, "design_effect_2")) for m in metrics)] for r in clustered]
    text = "The same if patches were clustered so that the variance is twice as large (design effect 2):"
    return [text, Table([view.noun, *(view.titles[m] for m in metrics)], rows)]
