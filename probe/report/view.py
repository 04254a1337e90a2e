"""A result, read for its page and figures: what is positive, which sets and systems there are, what leads."""

import pandas as pd

from ..leaks import deduplicate
from ..results.files import ProbeResult

PLOTTED = 6  # systems in one plot: the best on the folds; the tables have all


class View:
    """What all sections and figures of a result have in common.

    noun : what the result calls `features` is to the reader, "feature set" or "system"
    """

    def __init__(self, result: ProbeResult, *, noun: str = "feature set") -> None:
        self.result, self.doc, self.noun = result, result.document, noun
        self.predictions = result.predictions
        self.positive = self.doc["data"][0]["positive"]
        others = [c for c in self.doc["data"][0].get("classes", []) if c != self.positive]
        self.negative = others[0] if len(others) == 1 else f"not {self.positive}"
        self.level = round(100 * self.doc["config"]["level"])
        self.sets = [d["dataset"] for d in self.doc["data"]]
        self.train = self.sets[0]
        ranked = sorted(self.doc["models"], key=lambda m: -m["criterion"])
        self.names = [m["features"] for m in ranked]
        self.groups = f"{self.doc['data'][0]['group_kind']}s"  # that intervals take as independent
        self.ungrouped = result.ungrouped
        if self.ungrouped:
            self.groups += " (single patches where none are known)"
        self.chosen = self.doc["chosen"]
        self.models = {m["features"]: m for m in self.doc["models"]}
        self.series = {name: i for i, name in enumerate(self.names[:PLOTTED])}
        human = {v["dataset"]: v["human_line"] for v in self.doc.get("votes", [])}
        self.human = {k: v for k, v in human.items() if v is not None}
        self.records = {(r["dataset"], r["features"]): r for r in result.leaderboard()}
        self._distinct: dict[str, pd.Series] = {}

    def starred(self, name: str) -> str:
        """The name, marked if the folds chose it."""
        return f"{name} ★" if name == self.chosen else name

    def predicted(self, dataset: str, name: str) -> pd.DataFrame:
        """Predictions of a system for all files of a set: out of fold, by the refit, or by the ensemble."""
        role = self.records[dataset, name]["role"] if (dataset, name) in self.records else ""
        table = self.predictions
        return table[(table["dataset"] == dataset) & (table["features"] == name) & (table["role"] == role)]

    def scored(self, dataset: str, name: str) -> pd.DataFrame:
        """Of `predicted`, the rows that the leading figures are of: without duplicates if these are."""
        rows = self.predicted(dataset, name)
        if not len(rows) or self.records[dataset, name]["subset"] == "raw":
            return rows
        if dataset not in self._distinct:
            self._distinct[dataset] = rows["patch_id"][deduplicate(rows).keep]
        return rows[rows["patch_id"].isin(self._distinct[dataset])]
