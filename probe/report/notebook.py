"""The figures of a result for a notebook: axes of matplotlib, which can be changed before they are shown."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequest
from ..results.files import ProbeResult
from . import charts
from .figures import drawn
from .view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plots:
    """The plots of one result, each of one evaluation set.

    dataset : of a set (None: the last one, which is the training set only where there is no other)
    Each returns matplotlib's Axes; `axes.figure` is the figure. Raises InvalidRequest for a set that does not
    exist and where there is nothing to show, MissingDependency without matplotlib.
    """

    def __init__(self, result: ProbeResult) -> None:
        self._view = View(result)

    def roc(self, dataset: str | None = None) -> "Axes":
        """Sensitivity over the false positive rate; of several classes a curve each, one against the rest."""
        return self._draw(charts.class_roc if self._view.multiclass else charts.roc, dataset)

    def precision_recall(self, dataset: str | None = None) -> "Axes":
        """Precision over sensitivity; of several classes a curve each."""
        of = charts.class_precision_recall if self._view.multiclass else charts.precision_recall
        return self._draw(of, dataset)

    def calibration(self, dataset: str | None = None) -> "Axes":
        """Observed frequency over the predicted probability."""
        return self._draw(charts.confidence if self._view.multiclass else charts.reliability, dataset)

    def decision(self, dataset: str | None = None) -> "Axes":
        """Net benefit over the threshold probability, of two classes."""
        return self._draw(charts.decision, dataset)

    def forest(self, metric: str = "auroc", dataset: str | None = None) -> "Axes":
        """A metric of every feature set with its interval."""
        return self._draw(charts.forest, dataset, metric)

    def differences(self, metric: str = "auroc", dataset: str | None = None) -> "Axes":
        """Paired differences to the chosen feature set with their intervals."""
        return self._draw(charts.differences, dataset, metric)

    def choice(self) -> "Axes":
        """The criterion on the folds over the parameter that was chosen."""
        return self._axes(charts.choice_path(self._view), "the choice of a parameter")

    def _draw(self, make: Callable[..., Any], dataset: str | None, *more: str) -> "Axes":
        there = list(dict.fromkeys(name for name, _ in self._view.records))
        if dataset is not None and dataset not in there:
            raise InvalidRequest(f"the result has no set {dataset!r}; it has {', '.join(there)}")
        of = dataset or there[-1]
        if self._view.multiclass and make is charts.decision:
            raise InvalidRequest("decision curves are of two classes")
        return self._axes(make(self._view, of, *more), f"{make.__name__} of {of}")

    def _axes(self, chart: Any, what: str) -> "Axes":
        if chart is None:
            raise InvalidRequest(f"there is nothing to draw: {what}")
        return drawn(chart).axes[0]
