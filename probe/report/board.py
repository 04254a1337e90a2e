"""Tables of a study's page: systems by evaluation sets, by domains, beside published figures, by cost.

Each value is there for every metric, in an element of the class `m` and the metric's name (macros.html); the
page shows those of one metric (page.css), and page.js switches, sorts and filters. Without JavaScript the
tables stay as they are written, in balanced accuracy.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..results.display import SHOWN, TITLES, interval
from ..results.schema import PAIRED, TEST_ROLES, TRAIN_ROLES, Role, Score
from .markup import render, span
from .model import PublishedRow, SystemRow
from .view import View

FAMILIES = {"probe": "probe", "lora": "LoRA", "full": "end to end", "ensemble": "ensemble"}
RANKED = 4  # systems from which on a rank correlation says something


@dataclass(frozen=True)
class Standing:
    """One evaluation set and metric: the highest value, and which systems differ from it significantly.

    Only comparisons that were made count: `worse` and `similar` leave out systems without one (above a dozen
    systems each is compared with the folds' choice only). Both are empty where no groups are known: the
    tests take the patches as independent there, so that no difference is called significant.
    """

    best: Score
    worse: tuple[str, ...]
    similar: tuple[str, ...]
    others: int


class Board:
    """What the tables have in common: the records, the scales, which systems differ significantly."""

    def __init__(
        self, view: View | None, systems: Sequence[SystemRow], *, first: str = "", metric: str = ""
    ) -> None:
        """first, metric : the evaluation set and the metric to lead with"""
        self.view, self.systems, self.metric = view, systems, metric or SHOWN[0]
        self.metrics, self.titles = SHOWN, TITLES
        self.records: dict[tuple[str, str], Score] = {}
        self.sets: list[str] = []
        if view is None:
            return
        self.metrics, self.titles = view.metrics, view.titles
        if view.results.targets:  # a board ranks, and errors are better the lower
            self.metrics = tuple(one for one in self.metrics if one != "mae")
            self.metric = metric or self.metrics[0]
        if self.metric not in self.metrics:  # the study's primary metric, beside those of all pages
            self.metrics = (self.metric, *self.metrics)
        self.records = view.records
        known = {dataset for dataset, _ in self.records}
        # what the reader came for first: sets that had no part in training or choosing
        self.sets = [s for s in [*view.sets[1:], view.train] if s in known]
        self.sets.sort(key=lambda s: s != first)
        self.alpha = 1 - view.level / 100
        self.standings = {(s, m): self._standing(s, m) for s in self.sets for m in self.metrics}

    @property
    def held_out(self) -> list[str]:
        return [s for s in self.sets if self.view and s != self.view.train]

    def chance(self, metric: str) -> float:
        """Where a metric's scale and tint begin: 0.5 of two classes, 0 of numbers, else the chance level."""
        if self.view is not None and self.view.results.targets:
            return 0.0
        if self.view is None or not self.view.multiclass:
            return 0.5
        return min(r.chance(metric) for r in self.records.values())

    def scale(self, metric: str) -> tuple[float, float]:
        """Of the whiskers of a metric."""
        return span((r.estimate(metric) for r in self.records.values()), self.chance(metric))

    def _render(self, template: str, **about: Any) -> Markup:
        return render(template, board=self, metrics=self.metrics, titles=self.titles, **about)

    def value(self, name: str, dataset: str, metric: str) -> float | None:
        """Of a system on a set; None where there is none."""
        record = self.records.get((dataset, name))
        return record.estimate(metric).value if record else None

    def starred(self, name: str) -> str:
        """The name, marked if the folds chose it."""
        return self.view.starred(name) if self.view else name

    def human(self, dataset: str, metric: str) -> float | None:
        """An expert against the other experts, where there are votes."""
        return self.view.human.get(dataset) if self.view and metric == SHOWN[0] else None

    def _standing(self, dataset: str, metric: str) -> Standing | None:
        assert self.view
        scores = [self.records[dataset, n] for n in self.view.names if (dataset, n) in self.records]
        known = [(v, r) for r in scores if (v := r.estimate(metric).value) is not None]
        if not known:
            return None
        best = max(known, key=lambda pair: pair[0])[1]
        adjusted: dict[str, float] = {}
        if dataset not in self.view.ungrouped:
            for c in self.view.results.comparisons_of(best.features, dataset=dataset):
                if (c.metric, c.test) != (metric, PAIRED) or c.p_holm is None:
                    continue
                if c.role == best.role or c.a not in adjusted:
                    adjusted[c.a] = c.p_holm
        names = [r.features for _, r in known if r.features in adjusted]
        return Standing(
            best,
            tuple(n for n in names if adjusted[n] < self.alpha),
            tuple(n for n in names if adjusted[n] >= self.alpha),
            len(known) - 1,
        )

    def is_worse(self, dataset: str, metric: str, name: str) -> bool:
        """Whether the system is significantly below the highest."""
        standing = self.standings[dataset, metric]
        return standing is not None and name in standing.worse

    # --- the answer

    def answers(self) -> Markup:
        """One sentence for each held-out set, for each metric."""
        return self._render("answers.html")

    @property
    def significance(self) -> str:
        """When a difference is called significant."""
        assert self.view
        text = (
            f"In brackets, {self.view.level} % intervals over whole {self.view.groups}. A difference "
            f"is significant if the paired test on the same patches gives p below {self.alpha:.2g} after "
            "Holm's adjustment for all pairs that were compared on the set."
        )
        if self.view.ungrouped:
            text += (
                f" Of {' and '.join(self.view.ungrouped)} the slides are not known: patches are taken as "
                "independent there, the intervals are too narrow, and no difference is called significant."
            )
        return text

    def choice(self, metric: str) -> str:
        """The scores of the choice that was made on the training folds, before these sets were scored."""
        assert self.view
        scores = [self.records.get((s, self.view.chosen)) for s in self.held_out]
        values = [
            f"{interval(r.estimate(metric))} on {r.dataset}"
            for r in scores
            if r and r.estimate(metric).value is not None
        ]
        if not values:
            return ""
        return (
            "The highest of several is partly luck. Chosen on the training set's folds, before these sets "
            f"were scored: **{self.view.chosen}** ★, {self.titles[metric]} {' and '.join(values)}."
        )

    def answer(self, dataset: str, metric: str) -> str:
        """Which system has the highest value on a set, and from which it differs significantly."""
        assert self.view
        standing = self.standings[dataset, metric]
        if standing is None:
            return ""
        best = standing.best
        name, value = f"**{best.features}**", interval(best.estimate(metric))
        where, title = f"On **{dataset}**,", self.titles[metric]
        n_worse, n_similar, others = len(standing.worse), len(standing.similar), standing.others
        if not others:
            return f"{where} the one finished system, {name}, has {title} {value}."
        if dataset in self.view.ungrouped:
            return (
                f"{where} {name} has the highest {title}, {value}; the slides are not known, so no "
                "difference is called significant."
            )
        if not n_worse + n_similar:
            return f"{where} {name} has the highest {title}, {value}; no paired test was made for it."
        among = f"the {others} others" if others > 1 else "the other"
        if n_worse + n_similar < others:
            among = f"the {n_worse + n_similar} of {others} others that it was compared with"
        if not n_similar and n_worse == others:
            return f"{where} {name} is the best: {title} {value}, significantly above {among}."
        if not n_worse:
            return (
                f"{where} no system stands out: {name} has the highest {title}, {value}, but "
                f"does not differ significantly from {among}."
            )
        close = ", ".join(standing.similar[:4])
        more = f" and {n_similar - 4} more" if n_similar > 4 else ""
        tail = f"; not above {close}{more}" if n_similar else ""
        return (
            f"{where} {name} has the highest {title}, {value}. It is significantly above {n_worse} of "
            f"{among}{tail}."
        )

    # --- the leaderboard

    def leaderboard(self) -> Markup:
        """Every system a row, every evaluation set a column."""
        return self._render("leaderboard_table.html", family=family, reason=_reason)

    def controls(self) -> Markup:
        """The leaderboard below what filters and sorts it."""
        return self._render("leaderboard.html")

    @property
    def families(self) -> list[tuple[str, str]]:
        """The kinds of systems there are, with their names."""
        return list({s.family: family(s) for s in self.systems}.items())

    def about(self, dataset: str) -> str:
        """What the figures of a set are of."""
        record = next(r for (of, _), r in self.records.items() if of == dataset)
        how = "" if dataset in self.held_out else ", out of fold"
        positive = self.view.positive if self.view else ""
        classes = f"{record.share:.0%} {positive}"
        if record.targets:
            classes = f"{len(record.targets)} targets"
        elif record.n_positive is None:
            classes = f"{record.n_classes} classes"
        return f"{record.n:,} patches, {classes}{how}"

    def ranked(self) -> list[SystemRow]:
        """The finished systems, the highest on the first set first."""
        done = [s for s in self.systems if s.state == "done"]
        if self.sets:
            done.sort(key=lambda s: -_or_last(self.value(s.name, self.sets[0], self.metric)))
        return done

    def blocked(self) -> list[SystemRow]:
        """The systems that have not run."""
        return [s for s in self.systems if s.state != "done"]

    # --- across sets

    def across(self) -> Markup:
        """Systems by evaluation sets, tinted; and how well one set's ranking carries over to the next."""
        return self._render("across.html")

    @property
    def comparable(self) -> list[str]:
        """The held-out sets of which enough systems have scores for a rank correlation."""
        return [s for s in self.held_out if len(self._on_both(s)) >= RANKED]

    def _on_both(self, dataset: str) -> list[str]:
        assert self.view
        train = self.view.train
        return [n for n in self.view.names if {(dataset, n), (train, n)} <= self.records.keys()]

    def rank_agreement(self, dataset: str, metric: str) -> str:
        """Spearman's correlation of the systems' values on a set with those out of fold."""
        from scipy.stats import spearmanr

        assert self.view
        train, test = (
            [_or_last(self.value(n, of, metric)) for n in self._on_both(dataset)]
            for of in (self.view.train, dataset)
        )
        rho = float(np.asarray(spearmanr(train, test))[0])
        return "-" if rho != rho else f"{rho:+.2f}"

    # --- domains

    def domains(self) -> Markup | None:
        """All systems on all domains of all sets: page.js shows the rows of one system or of one domain."""
        assert self.view
        view = self.view
        records: dict[tuple[str, str, str], Score] = {}
        for r in view.results.by_domain():  # the refit where there is one
            roles = TRAIN_ROLES if r.dataset == view.train else TEST_ROLES
            key = (r.features, r.dataset, r.domain)
            if r.features not in view.models or r.role not in roles:
                continue
            if key not in records or records[key].role == Role.ENSEMBLE:
                records[key] = r
        if not records:
            return None
        domains = list(dict.fromkeys(domain for _, _, domain in records))
        ordered = itertools.product(view.names, self.sets, domains)
        return self._render(
            "domains.html",
            view=view,
            domains=domains,
            shown=len({(s, d) for _, s, d in records}),
            scores=[records[key] for key in ordered if key in records],
            scales={m: span((r.estimate(m) for r in records.values()), self.chance(m)) for m in self.metrics},
        )


def _or_last(value: float | None) -> float:
    return -1.0 if value is None else value


def family(system: SystemRow) -> str:
    """The name of a system's kind."""
    return FAMILIES.get(system.family, system.family)


def _reason(system: SystemRow) -> tuple[str, str]:
    """Why a system has not run, up to the first way to get it; the others."""
    lines = (system.why or "It has not run yet.").strip().splitlines()
    first = 1 + next((i for i, line in enumerate(lines) if not line.rstrip().endswith(":")), 0)
    return "\n".join(lines[:first]), "\n".join(lines[first:])


def published_table(rows: Sequence[PublishedRow], *, source: str, metric: str) -> Markup:
    """Ours beside the published figures, a table for each evaluation set."""
    ends = [v for r in rows for v in (r.low, r.high, r.difference) if v is not None]
    reach = 1.05 * max(0.02, *map(abs, ends))
    return render(
        "published.html",
        rows=rows,
        source=source,
        metric=metric,
        metrics=SHOWN,
        titles=TITLES,
        scale=span([r.ours for r in rows] + [[r.published, *r.published_folds] for r in rows]),
        about_zero=(-reach, reach),
        marks=lambda r: [*((v, "fold") for v in r.published_folds), (r.published, "published")],
    )


COSTS = (
    ("forward passes", "forwards", "{:,.0f}"),
    ("saved by the cache", "forwards_saved", "{:,.0f}"),
    ("extraction, s", "extract_seconds", "{:,.1f}"),
    ("training, s", "train_seconds", "{:,.1f}"),
    ("probe fits", "fits", "{:,.0f}"),
    ("probe, CPU s", "probe_seconds", "{:,.1f}"),
)


def cost_table(systems: Iterable[SystemRow]) -> Markup | None:
    """What each finished system took; each column has a scale of its own."""
    done = [s for s in systems if s.state == "done"]
    return render("costs.html", done=done, columns=COSTS) if done else None
