"""What each plot shows, as data: the page draws it as SVG (plots.py), `--figures` for print (figures.py)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from ..results.display import Numbers, interval
from ..results.schema import PAIRED, Comparison, Role, Score, TargetScore
from ..statistics.calibration import reliability_curve
from .chart import UNIT, Chart, Confusion, Matrix, Part, pr_points, roc_points, unit_ticks
from .view import OTHERS, View

PARAMETERS = {
    "C": "C, the inverse penalty",
    "alpha": "alpha, the penalty",
    "k": "k, the number of neighbours",
    "": "parameter",
}
BINS = 8  # of a calibration plot, equally full


@dataclass(frozen=True)
class Curve:
    """A plot of thresholds: ROC or precision-recall."""

    kind: str
    title: str
    points: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    metric: str
    short: str
    """Name of the area under it."""
    xlabel: str
    ylabel: str


CHANCE = Part(x=UNIT, y=UNIT, label="chance level")
ROC = Curve(
    "roc", "ROC", roc_points, "auroc", "AUROC", "false positive rate (1 - specificity)", "sensitivity"
)
PRECISION_RECALL = Curve(
    "precision-recall",
    "precision-recall",
    pr_points,
    "average_precision",
    "AP",
    "sensitivity (recall)",
    "precision",
)
Line = tuple[np.ndarray, np.ndarray, Part]  # labels of 0 and 1 (n,), scores (n,), how it is drawn


def roc(view: View, dataset: str) -> Chart:
    """Sensitivity over the false positive rate."""
    return _thresholds(view, dataset, ROC, _systems(view, dataset, ROC), CHANCE)


def precision_recall(view: View, dataset: str) -> Chart:
    """Precision over sensitivity."""
    share = view.scored(dataset, view.chosen)["label"].mean()
    chance = Part(x=UNIT, y=(share, share), label=f"chance level: share of {view.positive}")
    return _thresholds(view, dataset, PRECISION_RECALL, _systems(view, dataset, PRECISION_RECALL), chance)


def class_roc(view: View, dataset: str) -> Chart:
    """ROC curves of the chosen system, each class against the rest."""
    return _thresholds(view, dataset, ROC, _classes(view, dataset, ROC), CHANCE)


def class_precision_recall(view: View, dataset: str) -> Chart:
    """Precision over sensitivity of the chosen system, each class against the rest."""
    return _thresholds(view, dataset, PRECISION_RECALL, _classes(view, dataset, PRECISION_RECALL), None)


def _systems(view: View, dataset: str, curve: Curve) -> Iterator[Line]:
    for name, series in view.series.items():
        rows = view.scored(dataset, name)
        if len(rows):
            value = interval(view.records[dataset, name].estimate(curve.metric))
            label = f"{view.starred(name)}: {curve.short} {value}"
            drawn = Part(x=(), y=(), series=series, thick=name == view.chosen, label=label)
            yield rows["label"].to_numpy(), rows["ranking"].to_numpy(), drawn


def _classes(view: View, dataset: str, curve: Curve) -> Iterator[Line]:
    rows = view.scored(dataset, view.chosen)
    record = view.records.get((dataset, view.chosen))
    for of_class in record.classes if record else ():
        label = f"{of_class.label}: {curve.short} {interval(of_class.estimate(curve.metric))}"
        drawn = Part(x=(), y=(), series=view.classes.index(of_class.label), label=label)
        yield (
            (rows["label"] == of_class.label).to_numpy(int),
            rows[f"ranking_{of_class.label}"].to_numpy(),
            drawn,
        )


def _thresholds(view: View, dataset: str, curve: Curve, lines: Iterable[Line], chance: Part | None) -> Chart:
    parts = []
    for labels, scores, drawn in lines:
        if len(np.unique(labels)) == 2:
            x, y = curve.points(labels, scores)
            parts.append(replace(drawn, x=x, y=y))
    if chance and (parts or chance is CHANCE):
        parts.append(chance)
    of_class = f" of each class, {view.chosen}" if view.multiclass else ""
    return Chart(
        kind=curve.kind,
        of=dataset,
        title=f"{curve.title} curves{of_class}, {dataset}",
        note=_note(view, dataset),
        xlabel=curve.xlabel,
        ylabel=curve.ylabel,
        parts=parts,
    )


def confidence(view: View, dataset: str) -> Chart:
    """Share of right calls by the probability of the call, calibrated, of more than two classes."""
    rows = view.scored(dataset, view.chosen)
    probability = rows[[f"probability_{name}" for name in view.classes]].to_numpy(float).max(axis=1)
    right = (rows["call"].astype(str) == rows["label"].astype(str)).to_numpy(int)
    parts = []
    if len(rows):
        parts = [_calibration_part(view, right, probability, "calibrated (temperature, on the folds)")]
    return _calibration(
        view, dataset, parts, xlabel="predicted probability of the call", ylabel="share of right calls"
    )


def _calibration(view: View, dataset: str, parts: Sequence[Part], *, xlabel: str, ylabel: str) -> Chart:
    return Chart(
        kind="calibration",
        of=dataset,
        title=f"calibration, {dataset}",
        note=f"{view.starred(view.chosen)}. {counted(view, dataset)}\n"
        f"Bars: {view.level} % intervals for independent patches, in {BINS} bins of equal count",
        xlabel=xlabel,
        ylabel=ylabel,
        parts=[*parts, Part(x=UNIT, y=UNIT, label="perfect calibration")],
    )


def _calibration_part(
    view: View, y: np.ndarray, probability: np.ndarray, label: str, *, filled: bool = True
) -> Part:
    curve = reliability_curve(y, probability, bins=BINS, strategy="mass", confidence=view.level / 100)
    bins = np.flatnonzero(curve.count > 0)
    return Part(
        x=curve.mean_probability[bins],
        y=curve.share_positive[bins],
        series=view.series.get(view.chosen, 0),
        label=label,
        line=filled,
        dots=True,
        hollow=not filled,
        low=curve.low[bins] if filled else None,
        high=curve.high[bins] if filled else None,
        tips=[f"{n} patches" for n in curve.count[bins]],
    )


def reliability(view: View, dataset: str) -> Chart:
    """Observed frequency by predicted probability of the chosen system, as fitted and calibrated."""
    rows = view.scored(dataset, view.chosen)
    parts = []
    if len(rows):
        y = rows["label"].to_numpy()
        calibrated, fitted = rows["probability"].to_numpy(), expit(rows["score"].to_numpy())
        parts = [
            _calibration_part(view, y, calibrated, "calibrated (Platt, on the folds)"),
            _calibration_part(view, y, fitted, "as fitted", filled=False),
        ]
    ylabel = f"observed frequency of {view.positive}"
    return _calibration(view, dataset, parts, xlabel="predicted probability", ylabel=ylabel)


def decision(view: View, dataset: str) -> Chart | None:
    """Net benefit of the chosen system over threshold probabilities, beside acting on all patches or none.

    None where the set has one class, since acting on all or on none is right there.
    """
    record = view.records.get((dataset, view.chosen))
    curve = [] if record is None else [(float(t), b) for t, b in record.net_benefit.items()]
    model = np.array([(t, *b.model) for t, b in curve if b.model.value is not None], float)
    share = record.share if record else 0
    if not len(model) or not 0 < share < 1:
        return None
    ends = model[:, 1:][np.isfinite(model[:, 1:])]
    low, high = min([-0.05 * share, *ends[ends > -share]]), 1.05 * max(share, *ends)
    treat_all = [(t, b.all.value) for t, b in curve if b.all.value is not None and b.all.value >= low]
    t, value, lower, upper = model.T
    parts = [
        Part(
            x=t,
            y=value,
            series=view.series.get(view.chosen, 0),
            thick=True,
            low=np.maximum(lower, low),
            high=np.minimum(upper, high),
            label=f"{view.starred(view.chosen)}, calibrated",
        )
    ]
    if treat_all:
        parts.append(
            Part(x=[t for t, _ in treat_all], y=[v for _, v in treat_all], label="act on every patch")
        )
    return Chart(
        kind="decision-curve",
        of=dataset,
        title=f"decision curve, {dataset}",
        head=dataset,
        note=_note(view, dataset),
        xlabel="threshold probability",
        ylabel="net benefit",
        y=(low, high),
        yticks=unit_ticks(low, high),
        parts=[*parts, Part(x=UNIT, y=(0, 0), label="act on none")],
    )


def against_chosen(view: View, dataset: str, metric: str, test: str = PAIRED) -> list[Comparison]:
    """Paired comparisons of a set: each `a` minus the chosen system, best on the folds first."""
    roles = (Role.OOF if dataset == view.train else Role.REFIT,)
    comparisons = [
        c
        for c in view.results.comparisons_of(view.chosen, dataset=dataset, roles=roles)
        if (c.metric, c.test) == (metric, test) and c.difference is not None
    ]
    return sorted(comparisons, key=lambda c: view.names.index(c.a))


def differences(view: View, dataset: str, metric: str) -> Chart | None:
    """The other systems minus the chosen one on the same patches."""
    rows = against_chosen(view, dataset, metric)[:12]
    if not rows:
        return None
    return _forest(
        view,
        "differences",
        dataset,
        metric,
        [c.a for c in rows],
        [c.estimate for c in rows],
        xlabel="difference from ★",
        reference=(0.0, "no difference"),
        form="+.3f",
    )


def forest(view: View, dataset: str, metric: str) -> Chart | None:
    """All systems on one set, best on the folds first, with their intervals and the chance level."""
    records = [r for (of, _), r in view.records.items() if of == dataset]
    records = [r for r in records if r.estimate(metric).value is not None]
    if not records:
        return None
    return _forest(
        view,
        "systems",
        dataset,
        metric,
        [r.features for r in records],
        [r.estimate(metric) for r in records],
        xlabel=view.titles[metric],
        reference=(records[0].chance(metric), "chance level"),
    )


def _forest(
    view: View,
    kind: str,
    dataset: str,
    metric: str,
    names: Sequence[str],
    values: Sequence[Numbers],
    *,
    xlabel: str,
    reference: tuple[float, str],
    form: str = ".3f",
) -> Chart:
    at, what = reference
    ends = [v for triple in values for v in triple if v is not None] + [at]
    low, high = min(ends), max(ends)
    pad = 0.05 * max(high - low, 0.02)
    bottom, top = len(names) - 0.4, -0.6
    parts = [
        Part(
            x=np.array([v], float),
            y=[i],
            series=view.series.get(name, OTHERS),
            dots=True,
            line=False,
            thick=True,
            low=np.array([lower], float),  # None: NaN
            high=np.array([upper], float),
            across=True,
            tips=[f"{name}: {interval((v, None, None), form)}"],
        )
        for i, (name, (v, lower, upper)) in enumerate(zip(names, values, strict=True))
    ]
    return Chart(
        kind=f"{kind}-{metric.replace('_', '-')}",
        of=dataset,
        title=f"{view.titles[metric]}, {dataset}",
        head=f"{dataset}: {view.titles[metric]}",
        note=_note(view, dataset),
        xlabel=xlabel,
        ylabel="",
        x=(low - pad, high + pad),
        y=(bottom, top),
        xticks=unit_ticks(low, high),
        yticks=[],
        rows=[view.starred(name) for name in names],
        values=[interval(v, form) for v in values],
        parts=[*parts, Part(x=(at, at), y=(top, bottom), label=what)],
    )


def criterion(view: View) -> tuple[int, str]:
    """What the folds choose by: 1, or -1 where less is better and the result has it negated; and its name."""
    name = view.results.config.criterion
    if name == "log_loss":
        return -1, "balanced log-loss (lower is better)"
    return 1, f"{view.titles[name]} (higher is better)"


def parameter(view: View) -> str | None:
    """The parameter that all probes have ("": they have none); None: each has its own."""
    owns = {m.choice.parameter for m in view.models.values() if m.path and m.choice}
    return owns.pop() if len(owns) == 1 else None


def choice_path(view: View) -> Chart | None:
    """The criterion over the grid of the parameter; dots: chosen for the refit, ticks: in the folds."""
    own = parameter(view)
    models = [(m, m.choice, m.path) for name in view.series if (m := view.models[name]).path and m.choice]
    if not own or not models or len(models[0][2].values(own)) < 3:
        return None
    sign, label = criterion(view)
    config = view.results.config
    lines = []
    for _, choice, path in models:
        p = config.preprocess.index(choice.preprocess)
        w = config.class_weight.index(choice.class_weight)
        lines.append(sign * np.array(path.criterion[p][w], float))
    known = np.concatenate([y[np.isfinite(y)] for y in lines])
    low, high = float(known.min()), float(np.quantile(known, 0.9) if sign < 0 else known.max())
    pad = 0.06 * (high - low or 1)
    parts = []
    for (m, choice, path), y in zip(models, lines, strict=True):
        name, series = m.features, view.series[m.features]
        values = np.array(path.values(own))
        x, chosen = np.log10(values), choice.value
        keep = np.isfinite(y) & (y <= high + pad) & (y >= low - pad)
        at = int(np.argmin(np.abs(values - chosen)))
        tip = f"{name}: {own} = {chosen:.3g}"
        folds = np.log10([c.value for c in m.fold_choices])
        nothing = np.full(len(folds), low - 2.4 * pad)
        parts += [
            Part(x=x[at : at + 1], y=y[at : at + 1], series=series, line=False, dots=True, tips=[tip]),
            Part(x=folds, y=nothing, low=nothing, high=nothing + pad, series=series, line=False, thick=True),
            Part(x=x[keep], y=y[keep], series=series, thick=name == view.chosen, label=view.starred(name)),
        ]
    logs = np.log10(models[0][2].values(own))
    return Chart(
        kind="choice",
        of=own,
        title=f"criterion by {PARAMETERS[own]}",
        note=f"{view.train}, folds of the training set",
        xlabel=PARAMETERS[own],
        ylabel=label,
        x=(float(logs.min()), float(logs.max())),
        y=(low - 2.5 * pad, high + pad),
        xticks=range(math.ceil(logs.min()), math.floor(logs.max()) + 1),
        yticks=unit_ticks(low, high),
        xformat="1e{:g}",
        parts=parts,
    )


def counted(view: View, dataset: str) -> str:
    """Of how many patches, positive ones and groups the leading figures of a set are."""
    r = next(r for (of, _), r in view.records.items() if of == dataset)
    groups = f"{r.n_groups:,} {view.results.data_set(dataset).group_kind}s"
    if dataset in view.ungrouped:
        groups = "slides unknown, patches taken as independent"
    how = view.of_fold(dataset)
    of = "" if r.n_positive is None else f"{r.n_positive:,} {view.positive}, "
    return f"{dataset}{how}: {r.n:,} patches, {of}{groups}"


def _note(view: View, dataset: str) -> str:
    """`counted`, and what stars and intervals are."""
    bars = ""
    if view.results.config.bootstrap:
        over = (
            "" if dataset in view.ungrouped else f", over whole {view.results.data_set(dataset).group_kind}s"
        )
        bars = f"Intervals: {view.level} %{over}. "
    return f"{counted(view, dataset)}\n{bars}★ chosen on the folds of the training set"


SCATTERED = 6  # targets that are plotted: the best and the worst predicted
DOTS = 1500  # of a plot; of more rows a sample is drawn


def best_first(score: Score) -> list[TargetScore]:
    """The targets, the highest correlation first."""

    def correlation(one: TargetScore) -> float:
        value = one.estimate("pearson").value
        return -2.0 if value is None else value

    return sorted(score.targets, key=correlation, reverse=True)


def scatters(view: View, score: Score) -> Iterator[Chart]:
    """Predicted against measured values of the best and the worst predicted targets of one system."""
    ranked, half = best_first(score), SCATTERED // 2
    rows = view.scored(score.dataset, score.features)
    if len(rows) > DOTS:
        rows = rows.sample(DOTS, random_state=0)
    for of_target in ranked if len(ranked) <= SCATTERED else [*ranked[:half], *ranked[-half:]]:
        y, predicted = (
            rows[f"{kind}_{of_target.target}"].to_numpy(float) for kind in ("label", "prediction")
        )
        low, high = float(min(y.min(), predicted.min())), float(max(y.max(), predicted.max()))
        pad = 0.04 * (high - low or 1.0)
        ends = (low - pad, high + pad)
        ticks = [float(f"{tick:.2g}") for tick in np.linspace(low, high, 4)[1:-1]]
        yield Chart(
            kind=f"scatter-{of_target.target}",
            of=score.dataset,
            title=f"{of_target.target}, {score.dataset}",
            head=f"{of_target.target}: Pearson {interval(of_target.estimate('pearson'))}",
            note=_note(view, score.dataset),
            xlabel="measured",
            ylabel="predicted",
            x=ends,
            y=ends,
            xticks=ticks,
            yticks=ticks,
            parts=[
                Part(x=y, y=predicted, series=0, line=False, cloud=True, label="patches"),
                Part(x=ends, y=ends, label="equal"),
            ],
        )


BINARY = (roc, precision_recall, reliability, decision)


def charts_of(view: View) -> Iterator[Chart]:
    """Every chart of a result that shows something."""
    for dataset in dict.fromkeys(dataset for dataset, _ in view.records):
        makers = (class_roc, class_precision_recall, confidence) if view.multiclass else BINARY
        for make in () if view.results.targets else makers:
            chart = make(view, dataset)
            if chart and any(part.series is not None for part in chart.parts):
                yield chart
        if view.results.targets and (chosen := view.records.get((dataset, view.chosen))):
            yield from scatters(view, chosen)
        for metric in view.metrics:
            yield from filter(None, (forest(view, dataset, metric), differences(view, dataset, metric)))
    if not view.results.targets:
        yield from filter(None, [choice_path(view)])


def confusions(view: View) -> list[Confusion]:
    """The confusion matrix of the chosen system on each set; none of two classes."""
    return [
        Confusion(of=dataset, classes=view.classes, counts=np.array(r.confusion, int))
        for dataset in view.sets
        if (r := view.records.get((dataset, view.chosen))) and r.confusion
    ]


def matrices(view: View) -> list[Matrix]:
    """Scores across domains, the chosen system's first; none where the study did not ask for them."""
    domains = view.results.domains
    out = []
    for name in sorted(domains, key=lambda name: name != view.chosen):
        m = domains[name].matrix
        tested = [column.partition(" / ") for column in m.test]
        columns = zip(tested, m.n_positive or [None] * len(m.n), m.n, strict=True)
        shape = len(m.train), len(tested)
        ends = m.intervals.get("auroc", np.full((*shape, 2), np.nan))  # older results have none
        out.append(
            Matrix(
                of=name,
                rows=m.train,
                columns=[(dataset, domain, p, n) for (dataset, _, domain), p, n in columns],
                values=np.array(m.auroc, float).reshape(shape),
                intervals=np.array(ends, float).reshape(*shape, 2),
                reasons=m.reasons.get("auroc", ()),
            )
        )
    return out
