"""What each plot shows, as data: the page draws it as SVG (plots.py), `--figures` for print (figures.py)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from ..results.display import SHOWN, TITLES, Numbers, interval
from ..results.schema import PAIRED, Comparison, Role
from ..statistics.calibration import reliability_curve
from .view import View

UNIT = (0.0, 1.0)
SERIES = 7  # colours there are
OTHERS = SERIES - 1  # of systems that have none of their own
FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)
PARAMETERS = {
    "C": "C, the inverse penalty",
    "alpha": "alpha, the penalty",
    "k": "k, the number of neighbours",
    "": "parameter",
}
BINS = 8  # of a calibration plot, equally full


@dataclass(frozen=True, kw_only=True)
class Part:
    """Points of one thing: joined, as dots, with bars."""

    x: ArrayLike
    y: ArrayLike
    series: int | None = None
    """Number of its colour. None: a reference, drawn as a dashed line."""
    label: str = ""
    """In the legend of a printed figure."""
    line: bool = True
    dots: bool = False
    hollow: bool = False
    thick: bool = False
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    """Ends of bars, one for each point; NaN: no bar."""
    across: bool = False
    """Bars go along x, not along y."""
    tips: Sequence[str] = ()

    def points(self) -> list[list[float]]:
        """[x, y] of each point."""
        return np.column_stack([self.x, self.y]).tolist()

    def bars(self) -> Iterator[tuple[float, float, float]]:
        """(where, low, high) of each bar there is."""
        if self.low is None or self.high is None:
            return
        at = np.asarray(self.y if self.across else self.x, float)
        for where, low, high in zip(
            at, np.asarray(self.low, float), np.asarray(self.high, float), strict=True
        ):
            if low == low and high == high:
                yield float(where), float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One pair of axes and what is drawn on them, the parts that matter most first."""

    kind: str
    """What it is, for the name of its file."""
    of: str
    """What it is of, for the name of its file: a set, a system."""
    title: str
    head: str = ""
    """Above the axes on the page, where the title is not seen."""
    note: str = ""
    """What a printed figure says beside its legend: of how many patches it is."""
    xlabel: str
    ylabel: str
    x: tuple[float, float] = UNIT
    y: tuple[float, float] = UNIT
    xticks: Sequence[float] = FIFTHS
    yticks: Sequence[float] = FIFTHS
    xformat: str = "{:g}"
    rows: Sequence[str] = ()
    """Of a forest plot: the names of y = 0, 1, ..., from the top."""
    values: Sequence[str] = ()
    """Of a forest plot: each row's value with its interval."""
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """AUROC of one system, trained on one domain (rows) and scored on another (columns)."""

    of: str
    rows: Sequence[str]
    columns: Sequence[tuple[str, str, int, int]]
    """Set, domain, positive patches, patches."""
    values: np.ndarray
    """float64 (rows, columns); NaN: undefined."""
    intervals: np.ndarray
    """float64 (rows, columns, 2): low and high; NaN: none."""
    reasons: Sequence[Sequence[str]]
    """Why there is no interval, by row and column; "" where there is one. (): not recorded."""

    def own(self, i: int, j: int) -> bool:
        """Whether the column is the row's own domain, out of fold."""
        return self.columns[j][:2] == ("train", self.rows[i])


def roc(view: View, dataset: str) -> Chart:
    """Sensitivity over the false positive rate."""
    chance = Part(x=UNIT, y=UNIT, label="chance level")
    axes = {"xlabel": "false positive rate (1 - specificity)", "ylabel": "sensitivity"}
    return _curves(view, dataset, "roc", roc_points, "auroc", "ROC", "AUROC", chance=chance, **axes)


def precision_recall(view: View, dataset: str) -> Chart:
    """Precision over sensitivity."""
    share = view.scored(dataset, view.chosen)["label"].mean()
    chance = Part(x=UNIT, y=(share, share), label=f"chance level: share of {view.positive}")
    axes = {"xlabel": "sensitivity (recall)", "ylabel": "precision"}
    return _curves(
        view,
        dataset,
        "precision-recall",
        pr_points,
        "average_precision",
        "precision-recall",
        "AP",
        chance=chance,
        **axes,
    )


def _curves(
    view: View,
    dataset: str,
    kind: str,
    points: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    metric: str,
    title: str,
    short: str,
    *,
    chance: Part,
    xlabel: str,
    ylabel: str,
) -> Chart:
    """A curve of every plotted system on a set that has both classes."""
    parts = []
    for name, series in view.series.items():
        rows = view.scored(dataset, name)
        if rows["label"].nunique() == 2:
            x, y = points(rows["label"].to_numpy(), rows["ranking"].to_numpy())
            value = interval(view.records[dataset, name].estimate(metric))
            label = f"{view.starred(name)}: {short} {value}"
            parts.append(Part(x=x, y=y, series=series, thick=name == view.chosen, label=label))
    return Chart(
        kind=kind,
        of=dataset,
        title=f"{title} curves, {dataset}",
        note=_note(view, dataset),
        xlabel=xlabel,
        ylabel=ylabel,
        parts=[*parts, chance] if parts or kind == "roc" else parts,
    )


def reliability(view: View, dataset: str) -> Chart:
    """Observed frequency by predicted probability of the chosen system, as fitted and calibrated."""
    rows = view.scored(dataset, view.chosen)
    series = view.series.get(view.chosen, 0)
    parts = []
    for probability, how in (
        (rows["probability"].to_numpy(), "calibrated (Platt, on the folds)"),
        (expit(rows["score"].to_numpy()), "as fitted"),
    ):
        if not len(rows):
            continue
        curve = reliability_curve(
            rows["label"].to_numpy(), probability, bins=BINS, strategy="mass", confidence=view.level / 100
        )
        filled = np.flatnonzero(curve.count > 0)
        calibrated = not parts
        parts.append(
            Part(
                x=curve.mean_probability[filled],
                y=curve.share_positive[filled],
                series=series,
                label=how,
                line=calibrated,
                dots=True,
                hollow=not calibrated,
                low=curve.low[filled] if calibrated else None,
                high=curve.high[filled] if calibrated else None,
                tips=[f"{n} patches" for n in curve.count[filled]],
            )
        )
    return Chart(
        kind="calibration",
        of=dataset,
        title=f"calibration, {dataset}",
        note=f"{view.starred(view.chosen)}. {counted(view, dataset)}\n"
        f"Bars: {view.level} % intervals for independent patches, in {BINS} bins of equal count",
        xlabel="predicted probability",
        ylabel=f"observed frequency of {view.positive}",
        parts=[*parts, Part(x=UNIT, y=UNIT, label="perfect calibration")],
    )


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
        xlabel=TITLES[metric],
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
        title=f"{TITLES[metric]}, {dataset}",
        head=f"{dataset}: {TITLES[metric]}",
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
    return 1, f"{TITLES[name]} (higher is better)"


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
    how = ", out of fold" if dataset == view.train else ""
    return f"{dataset}{how}: {r.n:,} patches, {r.n_positive:,} {view.positive}, {groups}"


def _note(view: View, dataset: str) -> str:
    """`counted`, and what stars and intervals are."""
    bars = ""
    if view.results.config.bootstrap:
        over = (
            "" if dataset in view.ungrouped else f", over whole {view.results.data_set(dataset).group_kind}s"
        )
        bars = f"Intervals: {view.level} %{over}. "
    return f"{counted(view, dataset)}\n{bars}★ chosen on the folds of the training set"


def charts_of(view: View) -> Iterator[Chart]:
    """Every chart of a result that shows something."""
    for dataset in dict.fromkeys(dataset for dataset, _ in view.records):
        for make in (roc, precision_recall, reliability, decision):
            chart = make(view, dataset)
            if chart and any(part.series is not None for part in chart.parts):
                yield chart
        for metric in SHOWN:
            yield from filter(None, (forest(view, dataset, metric), differences(view, dataset, metric)))
    yield from filter(None, [choice_path(view)])


def matrices(view: View) -> list[Matrix]:
    """Scores across domains, the chosen system's first; none where the study did not ask for them."""
    domains = view.results.domains
    out = []
    for name in sorted(domains, key=lambda name: name != view.chosen):
        m = domains[name].matrix
        tested = [column.partition(" / ") for column in m.test]
        columns = zip(tested, m.n_positive, m.n, strict=True)
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


def unit_ticks(low: float = 0.0, high: float = 1.0) -> list[float]:
    """Round ticks inside [low, high], about five."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5):
        first = np.ceil(low / step - 1e-9)
        ticks = [float(round(k * step, 6)) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]
        if len(ticks) <= 6:
            return ticks
    return [low, high]


def roc_points(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the ROC curve: (1 - specificity, sensitivity), float64 (k,); y int (n,), p float (n,)."""
    tp, fp = _counts(y, p)
    x, s = np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1])
    corner = np.ones(len(x), bool)  # points on a straight piece say nothing
    corner[1:-1] = np.diff(x[:-1]) * np.diff(s[1:]) != np.diff(x[1:]) * np.diff(s[:-1])
    return x[corner], s[corner]


def pr_points(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall as steps, whose area is the average precision: float64 (k,) each."""
    tp, fp = _counts(y, p)
    keep = np.append(True, np.diff(tp) > 0) & (tp > 0)
    recall, precision = tp[keep] / tp[-1], tp[keep] / (tp[keep] + fp[keep])
    left = np.append(0, recall[:-1])
    return np.stack([left, recall], axis=1).ravel(), np.repeat(precision, 2)


def _counts(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)
    return np.cumsum(y[order])[last].astype(float), np.cumsum(1 - y[order])[last].astype(float)
