"""Several systems over several tasks: values, average ranks and mean scores, each with its interval.

Ranks are over all tasks. Mean scores are over tasks whose metrics have one scale: shares of rows or of pairs,
from 0 to 1 (balanced accuracy, AUROC, ...), or 0 at chance level and 1 at best (kappa, correlations, R2); of
the scale that more tasks have.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...errors import InvalidRequest
from ..leaks import deduplicate
from ..statistics import continuous, metrics, multiclass
from ..statistics.ranks import (
    compare_means,
    critical_difference,
    draw_scores,
    friedman,
    percentiles,
    ranks,
)
from .files import ProbeResult
from .schema import Estimate, Score

Floats = NDArray[np.float64]
DRAWS = 1000
FROM_CHANCE = ("kappa", "pearson", "spearman", "r2")  # metrics that are 0 at chance level


@dataclass(frozen=True, kw_only=True)
class Task:
    """A result of all systems of a study on one task.

    result : merged over the systems (`merge.merge_systems`); dataset : the evaluation set that is scored
    metric : higher is better
    """

    name: str
    result: ProbeResult
    dataset: str
    metric: str

    @property
    def from_chance(self) -> bool:
        """Which scale its metric has: 0 at chance level, or a share."""
        return self.metric in FROM_CHANCE

    @property
    def grouped(self) -> bool:
        """Whether slides or patients are known: without, no systems are called different."""
        return self.dataset not in self.result.results.ungrouped

    def scores(self) -> dict[str, Score]:
        """The leading score of each system that has this metric there."""
        return {
            r.features: r
            for r in self.result.results.leaderboard()
            if r.dataset == self.dataset and r.estimate(self.metric).value is not None
        }


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A system that has all tasks: its average rank, its mean score over `averaged`, how often first."""

    system: str
    rank: Estimate
    mean: Estimate
    first: float
    """Share of the draws in which its mean score was the highest."""
    below: tuple[str, ...]
    """Systems whose mean score on the tasks with known groups is higher (p by Holm over all pairs)."""


@dataclass(frozen=True, kw_only=True)
class TaskBoard:
    """What several tasks say of several systems.

    values : task -> system -> value with interval. standings : of the systems that have all tasks, best mean
        first. averaged : the tasks that mean scores are taken over, whose metrics have one scale.
            friedman_p, critical_difference : None with fewer than 2 tasks or 2 such systems
    """

    tasks: Sequence[Task]
    values: Mapping[str, Mapping[str, Estimate]]
    standings: Sequence[Standing]
    averaged: Sequence[Task]
    level: float
    friedman_p: float | None
    critical_difference: float | None


def board_of(tasks: Sequence[Task], *, seed: int = 0, n_resamples: int = DRAWS) -> TaskBoard:
    """Rank the systems over tasks.

    Systems that lack a task have values and no rank. Intervals are percentiles over draws of whole groups
    within each task, the same groups for all systems; tasks are drawn independently of each other.
    Raises InvalidRequest for systems of one task that were scored on different patches.
    """
    if not tasks:
        raise InvalidRequest("there is no task with results")
    level = tasks[0].result.results.config.level
    scores = {task.name: task.scores() for task in tasks}
    values = {
        name: {system: score.estimate(task.metric) for system, score in scores[name].items()}
        for name, task in zip(scores, tasks, strict=True)
    }
    systems = [name for name in scores[tasks[0].name] if all(name in of_task for of_task in scores.values())]
    if not systems:
        return TaskBoard(
            tasks=tasks,
            values=values,
            standings=(),
            averaged=(),
            level=level,
            friedman_p=None,
            critical_difference=None,
        )
    scale = Counter(task.from_chance for task in tasks).most_common(1)[0][0]
    averaged = [i for i, task in enumerate(tasks) if task.from_chance == scale]
    table = np.array([[values[task.name][system].value for system in systems] for task in tasks], float)
    samples = [_Sample(task, systems, scores[task.name][systems[0]].deduplicated) for task in tasks]
    draws = np.stack(
        [
            draw_scores(sample.score, sample.n_groups, n_resamples=n_resamples, seed=seed + 1000 * i)
            for i, sample in enumerate(samples)
        ],
        axis=1,
    )  # (B, N, k)
    grouped = [i for i in averaged if tasks[i].grouped]
    higher = np.zeros((len(systems), len(systems)), bool)
    if grouped:
        p = compare_means(
            table[grouped],
            [samples[i].left_out() for i in grouped],
            inflation=[scores[tasks[i].name][systems[0]].inflation or 1.0 for i in grouped],
        )
        tested = table[grouped].mean(axis=0)
        higher = (tested[None, :] > tested[:, None]) & (p < 1 - level)
    ranked = len(tasks) > 1 and len(systems) > 1
    return TaskBoard(
        tasks=tasks,
        values=values,
        standings=_standings(systems, table, draws, averaged, higher, level),
        averaged=[tasks[i] for i in averaged],
        level=level,
        friedman_p=friedman(table)[1] if ranked else None,
        critical_difference=critical_difference(len(systems), len(tasks), alpha=1 - level)
        if ranked
        else None,
    )


def _standings(
    systems: Sequence[str],
    table: np.ndarray,
    draws: np.ndarray,
    averaged: Sequence[int],
    higher: np.ndarray,
    level: float,
) -> list[Standing]:
    """The systems, best mean first.

    table : float64 (N, k), of N tasks and k systems; draws : (B, N, k); averaged : tasks of the mean scores;
    higher : bool (k, k), [i, j]: the mean of j is significantly higher than that of i
    """
    mean, rank = table[averaged].mean(axis=0), ranks(table).mean(axis=0)
    mean_draws, rank_draws = draws[:, averaged].mean(axis=1), ranks(draws).mean(axis=1)
    mean_ends, rank_ends = percentiles(mean_draws, level), percentiles(rank_draws, level)
    known = mean_draws[~np.isnan(mean_draws).any(axis=1)]
    first = np.bincount(known.argmax(axis=1), minlength=len(systems)) / max(len(known), 1)
    return [
        Standing(
            system=systems[i],
            rank=_estimate(*(float(of[i]) for of in (rank, *rank_ends))),
            mean=_estimate(*(float(of[i]) for of in (mean, *mean_ends))),
            first=float(first[i]),
            below=tuple(name for name, above in zip(systems, higher[i], strict=True) if above),
        )
        for i in map(int, np.argsort(-mean, kind="stable"))
    ]


class _Sample:
    """The rows of one task: labels, and the scores of k systems on them."""

    def __init__(self, task: Task, systems: Sequence[str], distinct: bool) -> None:
        self.metric, train = task.metric, task.result.results.train
        predictions = task.result.predictions
        rows = predictions[predictions["dataset"] == task.dataset]
        tables = [_of_system(rows, task, system, distinct) for system in systems]
        first = tables[0]
        for system, table in zip(systems, tables, strict=True):
            if not np.array_equal(table["patch_id"], first["patch_id"]):
                raise InvalidRequest(
                    f"task {task.name!r}: {systems[0]!r} and {system!r} were scored on different patches of "
                    f"{task.dataset}. Fix: run the study again"
                )
        units = first["group"].astype(str).where(first["group"].astype(str) != "", first["patch_id"])
        self.groups = pd.factorize(units)[0]
        self.n_groups = int(self.groups.max()) + 1
        self.multiclass, self.ordered = task.result.results.multiclass, train.ordered
        names = list(train.targets or (train.classes if self.multiclass else ()))
        self.targets = bool(train.targets)

        def stacked(kind: str) -> Floats:
            wanted: Any = [f"{kind}_{name}" for name in names] if names else kind
            return np.stack([table[wanted].to_numpy(float) for table in tables], axis=1)

        self.order = stacked("ranking")  # (n, k), of classes and targets (n, k, K)
        self.scores = stacked("prediction" if self.targets else "score")
        if self.targets:
            self.y = first[[f"label_{name}" for name in names]].to_numpy(float)
            if self.metric in ("pearson", "spearman"):  # of out-of-fold predictions on one scale
                self.scores = self.order
        elif self.multiclass:
            codes = {name: k for k, name in enumerate(names)}
            self.y = first["label"].astype(str).map(codes).to_numpy(int)
        else:
            self.y = first["label"].to_numpy(int)

    def score(self, weights: NDArray[np.uint16]) -> Floats:
        """The metric of each system over weighted groups, float64 (B, k)."""
        about: dict[str, Any] = {"metrics": [self.metric], "weights": weights, "groups": self.groups}
        if self.targets:
            return continuous.evaluate(self.y, self.scores, **about)[self.metric].mean(axis=-1)
        about |= {"logits": True, "order": self.order}
        if self.multiclass:
            return multiclass.evaluate(self.y, self.scores, ordered=self.ordered, **about)[self.metric]
        return metrics.evaluate(self.y, self.scores, **about)[self.metric]

    def left_out(self) -> Floats:
        """The metric of each system without one group, float64 (G, k)."""
        about: dict[str, Any] = {"metrics": [self.metric], "groups": self.groups}
        if self.targets:
            return continuous.leave_one_out(self.y, self.scores, **about)[self.metric].mean(axis=-1)
        about |= {"logits": True, "order": self.order}
        if self.multiclass:
            return multiclass.leave_one_out(self.y, self.scores, ordered=self.ordered, **about)[self.metric]
        return metrics.leave_one_out(self.y, self.scores, **about)[self.metric]


def _of_system(rows: pd.DataFrame, task: Task, system: str, distinct: bool) -> pd.DataFrame:
    role = task.scores()[system].role
    table = rows[(rows["features"] == system) & (rows["role"] == role)]
    if distinct:
        table = table[deduplicate(table).keep]
    return table.sort_values("patch_id", ignore_index=True)


def _estimate(value: float, low: float, high: float) -> Estimate:
    ends = (None, None) if np.isnan([low, high]).any() else (low, high)
    return Estimate(value, *ends, method="percentile")
