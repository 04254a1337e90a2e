"""Does a probe carry over to another scanner or centre: leave-one-domain-out, train on A and test on B."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from ..datasets.folds import make_folds
from ..errors import InvalidRequest
from .config import ProbeConfig
from .fitting import Fitted, Part, Setting, fit_parts
from .metrics import evaluate
from .protocol import criterion_path
from .scoring import intervals_of
from .selection import best

METRICS = ("balanced_accuracy", "auroc", "average_precision")
GRID = 20  # values of C at most, about


@dataclass(frozen=True)
class DomainRows:
    """Rows of an evaluation set for the matrix: features float (n, d), y int (n,), domain str (n,)."""

    X: np.ndarray
    y: np.ndarray
    domain: np.ndarray


def analyse_domains(
    X: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    domain: np.ndarray,
    tests: Mapping[str, DomainRows],
    *,
    config: ProbeConfig,
) -> dict[str, Any] | None:
    """Leave-one-domain-out and the train-A/test-B matrix of one feature set.

    Leave one out. Fitted on : train rows outside domain d. Chosen on : for d, every other domain e in turn,
        scored by the model that has seen neither d nor e; with two domains, grouped folds of the one that is
        left. Scored : the rows of d. Nothing about d's labels is in the choice.
    Matrix. Fitted on : the train rows of domain A alone. Chosen on : grouped folds of A. Scored : every other
        domain, of the train rows and of the evaluation sets; the diagonal is A's rows out of fold, at the
        setting that these same folds chose, so it is a little too good.

    X : float (n, d); y : int (n,); groups : str (n,); domain : str (n,), "" takes part in training only
    Returns {"leave_one_out": [...], "matrix": {"train": names, "test": [...], "auroc": [[...]], ...}} of
    plain values, or None where the train rows have fewer than two domains.
    """
    names = [d for d in dict.fromkeys(domain) if d and len(np.unique(y[domain == d])) == 2]
    if len(names) < 2:
        return None
    study = _Study.of(X, y, groups, domain, names, config)
    return {
        "leave_one_out": [study.left_out(d) for d in names],
        "matrix": study.matrix(tests),
        "fits": study.fitted.facts,
        "seconds": study.fitted.seconds,
    }


@dataclass
class _Study:
    """The fitted parts: ("out", d[, e]) without one or two domains, ("in", d[, fold]) inside one."""

    X: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    domain: np.ndarray
    names: list[str]
    config: ProbeConfig
    parts: list[Part]
    where: dict[tuple[str, ...], int]
    fitted: Fitted

    @classmethod
    def of(
        cls,
        X: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray,
        domain: np.ndarray,
        names: list[str],
        config: ProbeConfig,
    ) -> "_Study":
        parts: list[Part] = []
        where: dict[tuple[str, ...], int] = {}

        def add(key: tuple[str, ...], training: np.ndarray, held_out: np.ndarray, inner: int | None) -> None:
            if len(np.unique(y[training])) == 2:
                where[key] = len(parts)
                parts.append(Part(training, held_out, len(parts), inner))

        for i, d in enumerate(names):
            mine = domain == d
            add(("out", d), ~mine, mine, None)
            for e in names[i + 1 :]:  # serves the choice for d, scored on e, and that for e, scored on d
                both = mine | (domain == e)
                add(("out", d, e), ~both, both, 0)
            add(("in", d), mine, np.zeros(len(y), bool), None)
            folds = _folds_inside(y, groups, mine, config)
            for j in np.unique(folds[folds > 0]):
                add(("in", d, str(j)), mine & (folds != j), mine & (folds == j), 0)
        if len(config.C) > GRID:  # half of a fine grid is fine enough for folds as small as these
            config = replace(config, C=config.C[:: len(config.C) // GRID])
        return cls(X, y, groups, domain, names, config, parts, where, fit_parts(X, y, parts, config))

    def left_out(self, d: str) -> dict[str, Any]:
        """One domain by the model that is fitted and chosen on the others."""
        others = [e for e in self.names if e != d]
        if len(others) > 1:
            keys = [(e, ("out", *sorted((d, e), key=self.names.index))) for e in others]
            held = [(self.where[key], self.domain == e) for e, key in keys if key in self.where]
        else:
            held = self._inside(others[0])
        setting = self._choose(held)
        rows = self.domain == d
        record: dict[str, Any] = {"domain": d, "n": int(rows.sum()), "n_positive": int(self.y[rows].sum())}
        record["n_groups"] = len(set(self.groups[rows]))
        if setting is None or ("out", d) not in self.where:
            return {**record, "choice": None, "metrics": None}
        part = self.where["out", d]
        scores = self.fitted.held_out[part][setting.index].astype(np.float64)
        found = intervals_of(self.y[rows], expit(scores)[:, None], self.groups[rows], METRICS, self.config)
        metrics = {name: values[0] for name, values in found.items()}
        return {**record, "choice": setting.to_dict(), "metrics": metrics}

    def matrix(self, tests: Mapping[str, DomainRows]) -> dict[str, Any]:
        """Rows: the domain trained on; columns: the domains scored on."""
        columns = [
            (f"train / {d}", self.X[rows], self.y[rows]) for d in self.names for rows in [self.domain == d]
        ]
        for name, test in tests.items():
            columns += [
                (f"{name} / {d}" if d else name, test.X[rows], test.y[rows])
                for d in dict.fromkeys(test.domain)
                for rows in [test.domain == d]
            ]
        chosen = {d: self._choose(self._inside(d)) for d in self.names}
        values: dict[str, list[list[float | None]]] = {m: [[] for _ in self.names] for m in METRICS}
        for position, (_, X, y) in enumerate(columns):
            scorer = self.fitted.scorer(X)
            for i, d in enumerate(self.names):
                setting = chosen[d]
                if setting is None:
                    found = dict.fromkeys(METRICS, np.nan)
                elif position == i:
                    found = self._diagonal(d, setting)
                else:
                    found = evaluate(y, expit(scorer(self.where["in", d], setting)), metrics=METRICS)
                for metric in METRICS:
                    value = float(found[metric])
                    values[metric][i].append(value if np.isfinite(value) else None)
        return {
            "train": self.names,
            "test": [name for name, _, _ in columns],
            "n": [len(y) for _, _, y in columns],
            "n_positive": [int(y.sum()) for _, _, y in columns],
            **values,
        }

    def _inside(self, d: str) -> list[tuple[int, np.ndarray]]:
        """The models of the folds inside one domain, with the rows that each holds out."""
        keys = [key for key in self.where if key[0] == "in" and key[1] == d and len(key) == 3]
        return [(self.where[key], self.parts[self.where[key]].held_out) for key in keys]

    def _choose(self, held: Sequence[tuple[int, np.ndarray]]) -> Setting | None:
        """The best point of the grid on held-out rows: [(part, bool (n,) of the rows that count)]."""
        if not held:
            return None
        scores = [self.fitted.held_out[part][..., rows[self.parts[part].held_out]] for part, rows in held]
        y = np.concatenate([self.y[rows] for _, rows in held])
        folds = np.repeat(np.arange(1, len(held) + 1), [one.shape[-1] for one in scores])
        if len(np.unique(y)) < 2:
            return None
        path = criterion_path(self.config, y, np.concatenate(scores, axis=-1), folds)
        return self.fitted.setting(best(path))

    def _diagonal(self, d: str, setting: Setting) -> dict[str, Any]:
        y, scores = [], []
        for part, rows in self._inside(d):
            y.append(self.y[rows])
            scores.append(self.fitted.held_out[part][setting.index])
        return evaluate(np.concatenate(y), expit(np.concatenate(scores).astype(np.float64)), metrics=METRICS)


def _folds_inside(y: np.ndarray, groups: np.ndarray, rows: np.ndarray, config: ProbeConfig) -> np.ndarray:
    """Grouped folds of some rows: int (n,), 1..J, 0 elsewhere and everywhere if not even two can be made."""
    folds = np.zeros(len(y), int)
    for n_splits in range(config.inner_folds, 1, -1):
        try:
            made = make_folds(y[rows], groups[rows], n_splits=n_splits, seed=config.seed)
        except InvalidRequest:  # a class in fewer groups than folds
            continue
        folds[rows] = made.assign(groups[rows])
        break
    return folds
