"""A result, read for its page and figures: what is positive, which sets and systems there are, what leads."""

import pandas as pd
from markupsafe import Markup

from ..leaks import deduplicate
from ..results.display import SHOWN, SHOWN_OF_TARGETS, TITLES, shown_of_classes, titles_of
from ..results.files import ProbeResult

SERIES = 7  # colours there are
OTHERS = SERIES - 1  # of systems that have none of their own
PLOTTED = 6  # systems in one plot: the best on the folds; the tables have all


class View:
    """What all sections and figures of a result have in common.

    noun : what the result calls `features` is to the reader, "feature set" or "system"
    """

    def __init__(self, result: ProbeResult, *, noun: str = "feature set") -> None:
        self.result, self.results, self.noun = result, result.results, noun
        self.predictions, first = result.predictions, self.results.train
        self.multiclass, self.classes = self.results.multiclass, list(first.classes)
        self.metrics = shown_of_classes(ordered=first.ordered) if self.multiclass else SHOWN
        if self.results.targets:
            self.metrics = SHOWN_OF_TARGETS
        self.titles = titles_of(multiclass=self.multiclass, ordered=first.ordered)
        self.class_titles = TITLES  # of one class against the rest
        self.positive, self.train, self.sets = first.positive, first.dataset, self.results.sets
        others = [c for c in first.classes if c != self.positive]
        self.negative = others[0] if len(others) == 1 else f"not {self.positive}"
        self.level = round(100 * self.results.config.level)
        self.names = [m.features for m in self.results.ranked]
        self.groups = f"{first.group_kind}s"  # that intervals take as independent
        self.ungrouped, self.chosen = self.results.ungrouped, self.results.chosen
        if self.ungrouped:
            self.groups += " (single patches where none are known)"
        self.models = {m.features: m for m in self.results.models}
        self.series = {name: i for i, name in enumerate(self.names[:PLOTTED])}
        self.human = {v.dataset: v.human_line for v in self.results.votes if v.human_line is not None}
        self.records = {(r.dataset, r.features): r for r in self.results.leaderboard()}
        self._distinct: dict[str, pd.Series] = {}

    def starred(self, name: str) -> str:
        """The name, marked if the folds chose it."""
        return f"{name} ★" if name == self.chosen else name

    @property
    def positives(self) -> list[str]:
        """The head of a column of positive patches; none of more than two classes."""
        return [self.positive] if self.positive else []

    def swatch(self, name: str) -> Markup:
        """The colour of a system in the plots, where it has one."""
        colour = Markup(' style="background:var(--s{})"')
        return Markup('<i class="swatch"{}></i>').format(
            colour.format(self.series[name]) if name in self.series else ""
        )

    def class_swatch(self, number: int) -> Markup:
        """The colour of a class in plots and maps; beyond the seven colours the shape differs too."""
        shape = f" s{number // SERIES}" if number >= SERIES else ""
        text = Markup('<i class="swatch{}" style="background:var(--s{})"></i>')
        return text.format(shape, number % SERIES)

    def of_fold(self, dataset: str) -> str:
        """Says that the scores of the training set are out of fold."""
        return ", out of fold" if dataset == self.train else ""

    def cell(self, name: str) -> tuple[str, Markup]:
        """A system as a cell of a table, on the page with its colour."""
        return self.starred(name), self.swatch(name) + self.starred(name)

    def predicted(self, dataset: str, name: str) -> pd.DataFrame:
        """Predictions of a system for all files of a set: out of fold, by the refit, or by the ensemble."""
        role = self.records[dataset, name].role if (dataset, name) in self.records else ""
        table = self.predictions
        return table[(table["dataset"] == dataset) & (table["features"] == name) & (table["role"] == role)]

    def scored(self, dataset: str, name: str) -> pd.DataFrame:
        """Of `predicted`, the rows that the leading figures are of: without duplicates if these are."""
        rows = self.predicted(dataset, name)
        if not len(rows) or not self.records[dataset, name].deduplicated:
            return rows
        if dataset not in self._distinct:
            self._distinct[dataset] = rows["patch_id"][deduplicate(rows).keep]
        return rows[rows["patch_id"].isin(self._distinct[dataset])]
