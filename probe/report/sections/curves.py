"""Curves, the threshold, and the choice of the parameter."""

from typing import Any

from ...results.display import Table, interval, number
from ...results.schema import Role
from .. import charts
from ..plots import class_legend, legend, side_by_side, svg
from ..view import View

PARAMETER_WORDS = {
    "C": "The penalty 1/C guards against overfitting.",
    "alpha": "The penalty alpha guards against overfitting.",
    "k": "More neighbours guard against overfitting.",
    "": "This probe has no parameter to choose.",
    None: "Each probe has a parameter of its own, which guards against overfitting.",
}


def curves(view: View) -> list[Any]:
    """ROC, precision-recall and calibration plots of each set."""
    if view.multiclass:
        return _class_curves(view)
    out: list[Any] = [
        "Left: ROC, sensitivity against the false positive rate. Middle: precision against "
        "sensitivity; dashed, "
        f"the share of {view.positive} patches. Right: observed frequency of {view.positive} by "
        f"predicted probability (★ only; filled: calibrated on the folds with Platt's method, hollow: "
        f"as fitted; {view.level} % intervals for independent patches). On the dashed diagonal the "
        "probabilities are calibrated.",
        legend(view),
    ]
    for dataset in dict.fromkeys(dataset for dataset, _ in view.records):
        plots = [
            svg(chart(view, dataset)) for chart in (charts.roc, charts.precision_recall, charts.reliability)
        ]
        out.append(side_by_side(plots, head=dataset))
    return out


def _class_curves(view: View) -> list[Any]:
    out: list[Any] = [
        f"Each class against the rest, by {view.chosen} (★). Left: ROC, sensitivity against the false "
        "positive rate. Middle: precision against sensitivity. Right: share of right calls by the "
        f"probability of the call, after temperature scaling (bars: {view.level} % intervals of "
        "independent patches).",
        class_legend(view),
    ]
    for dataset in dict.fromkeys(dataset for dataset, _ in view.records):
        if (dataset, view.chosen) in view.records:
            shown = (charts.class_roc, charts.class_precision_recall, charts.confidence)
            out.append(side_by_side([svg(chart(view, dataset)) for chart in shown], head=dataset))
    return out


def thresholds(view: View) -> list[Any]:
    """Scores at the threshold that the folds chose, and the calibration."""
    rows = []
    roles = (Role.OOF, Role.REFIT, Role.ENSEMBLE)
    for r in view.results.whole(features=view.chosen, roles=roles):
        if not r.at_threshold:
            continue
        both = [
            (
                interval(r.estimate("balanced_accuracy", kind)),
                " / ".join(number(r.estimate(m, kind).value) for m in ("sensitivity", "specificity")),
            )
            for kind in ("metrics", "at_threshold")
        ]
        errors = [r.estimate("ece", kind) for kind in ("metrics", "temperature", "platt")]
        errors.append(r.estimate("brier", "platt"))
        rows.append([r.dataset, r.role, *both[0], *both[1], *(number(e.value) for e in errors)])
    model = view.models[view.chosen]
    return (
        [
            f"For {view.chosen} (★). The threshold that gives the best balanced accuracy, and the "
            "calibration, were chosen on out-of-fold scores of the training set and then kept: "
            f"calibrated probability {number(model.threshold)} or more, temperature "
            f"{number(model.temperature)}. ECE is the mean distance between probability and share; a "
            "probe that is trained with balanced classes overstates the rare class until it is "
            "calibrated. By: oof, out of fold; refit, one model on all training patches; ensemble, the "
            "mean probability of the folds' models.",
            Table(
                [
                    "set",
                    "by",
                    "balanced accuracy at 0.5",
                    "sens. / spec.",
                    "at the chosen threshold",
                    "sens. / spec.",
                    "ECE as fitted",
                    "ECE, temperature",
                    "ECE, Platt",
                    "Brier, Platt",
                ],
                rows,
                left=2,
            ),
        ]
        if rows
        else []
    )


def paths(view: View) -> list[Any]:
    """The criterion over the grid of the parameter, and what was chosen."""
    models = [m for m in view.results.ranked if m.path]
    if not models:
        return []
    own, (sign, label) = charts.parameter(view), charts.criterion(view)
    rows = []
    for m in models:
        choice, path = m.choice, m.path
        if not choice or not path:
            continue
        folds, shown = "", "none"
        if choice.parameter:
            values = path.values(choice.parameter)
            folds = ", ".join(f"{c.value:.3g}" for c in m.fold_choices)
            edge = len(values) > 1 and choice.value in (values[0], values[-1])
            shown = f"{choice.value:.3g}{' (edge of the grid)' if edge else ''}"
            if own is None:
                shown = f"{choice.parameter} = {shown}"
        name = (m.features, view.swatch(m.features) + m.features)
        criteria = f"{sign * m.criterion:.4f}"
        rows.append([name, choice.preprocess, choice.class_weight, shown, folds, criteria])
    out: list[Any] = [
        f"{PARAMETER_WORDS[own]} Each setting was scored on held-out folds of whole groups; the dot is "
        "the choice for the refit, the ticks below are those of the inner folds, one for each "
        "outer fold.",
    ]
    chart = charts.choice_path(view)
    if chart:
        out += [legend(view), side_by_side([svg(chart, width=720, height=320, left=60)])]
    out.append(
        Table(
            [
                view.noun,
                "preprocessing",
                "class weight",
                charts.PARAMETERS[own or ""],
                "in the folds",
                label.split(" (")[0],
            ],
            rows,
            left=3,
        )
    )
    return out
