"""What a report says: sections of sentences, tables and plots, read from the results of a study."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from ..results.display import (
    SHOWN,
    TITLES,
    Table,
    interval,
    mean_and_sd,
    mean_sd,
    number,
    p_value,
)
from ..results.schema import LeftOut, Role, Score
from ..results.scoring import FEW_GROUPS, NO_INTERVALS
from . import clinical
from .charts import (
    OTHERS,
    PARAMETERS,
    Matrix,
    against_chosen,
    choice_path,
    criterion,
    differences,
    matrices,
    parameter,
    precision_recall,
    reliability,
    roc,
)
from .markup import interval_html, render, span, tint, whisker
from .plots import side_by_side, svg
from .view import View

ERRORS = 6  # thumbnails of each kind

# the parameter that the folds choose (charts.PARAMETERS): what it does
PARAMETER_WORDS = {
    "C": "The penalty 1/C guards against overfitting.",
    "alpha": "The penalty alpha guards against overfitting.",
    "k": "More neighbours guard against overfitting.",
    "": "This probe has no parameter to choose.",
    None: "Each probe has a parameter of its own, which guards against overfitting.",
}

NEAR_WORDS = {
    "images": " (near-duplicates looked for in the pixels)",
    "embeddings": " (near-duplicates looked for in the embeddings, which miss shifted copies)",
    "": " (near-duplicates not looked for)",
}
_SIMULATED = "In simulated studies of 20 to 150 slides, 95 % intervals of this kind held the truth in "
COVERED = {  # tests/benchmarks/stats_coverage.py
    "jackknife": f"{_SIMULATED}.90 to .99 of studies (out of fold, with the variance raised by a factor of "
    "1.25, in .93 to .99); where slides exist and are not known, in .58 to .84.",
    "bca": "How often such intervals hold the truth was not simulated; percentiles are too narrow.",
    "percentile": f"{_SIMULATED}.88 to .96 of studies.",
}
GAPS = (
    "The gap bound is an upper bound of how far an objective is above its optimum, relative; the worst of "
    "all fits is shown. Fits that are converged or polished have a small one. For newton, the decrement of a "
    "float64 Newton step is below the tolerance, and where rounding keeps the bound from showing it, the "
    "bound may be near 1 for a right fit. Capped fits did not reach the tolerance."
)

Section = tuple[str, list[Any]]  # title, and paragraphs (str), Table, Markup


class Sections(View):
    """The sections of a report: paragraphs, tables and plots."""

    @property
    def title(self) -> str:
        return f"Probe report: {self.results.train.name}"

    @property
    def lead(self) -> str:
        first, others = self.results.train, self.sets[1:]
        groups = f"{first.n_groups} {first.group_kind}s" if first.n_groups else "no known groups"
        many = f"{len(self.names)} {self.noun}s" if len(self.names) > 1 else f"one {self.noun}"
        sets = " and ".join(part for part in (", ".join(others[:-1]), *others[-1:]) if part) or "no other set"
        what = f"probe {self.results.config.probe!r}"
        if self.results.config.probe == "logistic":
            what = "linear classifier on frozen embeddings"
        if self.models[self.chosen].recipe is not None:
            what = "fine-tuned network"
        return (
            f"How well does a {what} tell **{self.positive}** patches from the others? It was trained on "
            f"{first.n} patches ({first.n_positive} {self.positive}) from {groups}, for {many}, and "
            f"tested on {sets}. Chosen on the folds: **{self.chosen}**."
        )

    def sections(self, *, images: bool) -> list[Section]:
        found = [
            ("Results", self.leaderboard()),
            ("Repeated with other folds", self.repeats()),
            ("Curves", self.curves()),
            ("Threshold", self.thresholds()),
            ("Calibration", clinical.calibration(self)),
            ("Operating points", clinical.operating_points(self)),
            ("Decision curve", clinical.decision_curve(self)),
            ("How the penalty was chosen", self.paths()),
            ("Models of the folds", self.fold_models()),
            (f"Differences between {self.noun}s", [*self.differences(), *clinical.precision(self)]),
            ("Domains", self.domains()),
            ("Agreement of the experts", self.votes()),
            ("Most confident errors", self.errors() if images else []),
            ("Data and leaks", self.data()),
            ("Provenance and cost", self.provenance()),
        ]
        return [(title, content) for title, content in found if content]

    # --- results

    def leaderboard(self) -> list[Any]:
        records = list(self.records.values())
        scale = {m: span([r.estimate(m) for r in records]) for m in SHOWN}
        solver = self.results.config.solver
        out: list[Any] = []
        if solver != "exact":
            out.append(
                f"These are models of the published recipe {solver!r}, for comparison: each fold chose the "
                "epoch of its own model, so that scores on the training set would be no estimate and are "
                "left out."
            )
        out.append(self.meaning())
        for dataset in self.sets:
            mine = [r for r in records if r.dataset == dataset]
            if not mine:
                continue
            what = "different patches" if mine[0].deduplicated else "patches"
            how = "scored out of fold" if dataset == self.train else "never used in training or choosing"
            share = mine[0].share
            line = (
                f"; an expert against the other experts: balanced accuracy {self.human[dataset]:.3f} (dashed)"
                if dataset in self.human
                else ""
            )
            out.append(
                f"**{dataset}**: {mine[0].n:,} {what}, {share:.1%} {self.positive}, "
                f"{clinical.independence(self, mine[0])}; "
                f"{how}{line}."
            )
            rows = []
            for r in mine:
                cells: list[Any] = [self._named(r.features)]
                for m in SHOWN:
                    human = self.human.get(dataset) if m == "balanced_accuracy" else None
                    series, value = self.series.get(r.features, OTHERS), r.estimate(m)
                    bar = whisker(value, scale[m], chance=r.chance(m), human=human, series=series)
                    cells.append((interval(value), interval_html(value) + bar))
                cells += [number(r.estimate(m).value) for m in ("sensitivity", "specificity")]
                rows.append(cells)
            out.append(
                Table(
                    [self.noun, *(TITLES[m] for m in SHOWN), "sensitivity", "specificity"],
                    rows,
                    kind="board",
                )
            )
            out += clinical.if_clustered(self, mine, SHOWN)
        return [*out, *clinical.no_interval(self, SHOWN), *self.with_duplicates(), *self.notes()]

    def notes(self) -> list[Any]:
        """What the run found that bears on its numbers: settings not used, fewer folds, near-duplicates."""
        return [f"Note: {note}." for note in self.results.notes]

    def repeats(self) -> list[Any]:
        """How far the scores depend on how the folds happened to be made."""
        repeats = self.results.repeats
        if not repeats:
            return []
        found = {(r.dataset, r.features, r.role): r for r in repeats.scores}
        rows = [
            [r.dataset, self.starred(r.features), *(mean_and_sd(one.spread(m)) for m in SHOWN)]
            for r in self.records.values()
            if (one := found.get((r.dataset, r.features, r.role)))
        ]
        return [
            f"Mean ± standard deviation over {len(repeats.seeds)} runs of the whole protocol, each with "
            "folds of another seed; the first run is the one that all other figures are of. The deviation "
            "is that of the choice of folds, on all files of these same patches: it is no interval for other "
            "patients.",
            Table(["set", self.noun, *(TITLES[m] for m in SHOWN)], rows, left=2),
        ]

    def with_duplicates(self) -> list[Any]:
        """The chosen system on all files of the sets that hold duplicates, beside the figures that lead."""
        raw = {(r.dataset, r.role): r for r in self.results.whole(features=self.chosen)}
        rows = [
            [r.dataset, raw[r.dataset, r.role].n, r.n]
            + [
                interval(one.estimate(m))
                for m in ("balanced_accuracy", "auroc")
                for one in (raw[r.dataset, r.role], r)
            ]
            for r in self.records.values()
            if r.deduplicated and r.features == self.chosen
        ]
        if not rows:
            return []
        heads = ["balanced accuracy, all files", "different", "AUROC, all files", "different"]
        return [
            "Some images occur more than once. The figures above count each once, and none that carries both "
            f"labels; on all files {self.chosen} (★) has:",
            Table(["set", "files", "different", *heads], rows),
        ]

    def meaning(self) -> str:
        """What the numbers of the leaderboard are."""
        kind = self.groups
        how = {
            "jackknife": f"the jackknife over whole {kind} with Student's t",
            "bca": f"the BCa bootstrap of whole {kind}; percentiles below {FEW_GROUPS} of them",
            "percentile": f"percentiles of the bootstrap of whole {kind}",
        }[self.results.config.interval]
        parts = (self._meaning(how), COVERED[self.results.config.interval], self.result.optimism("★"))
        return " ".join(part for part in parts if part)

    def _meaning(self, how: str) -> str:
        return (
            f"In brackets: {self.level} % intervals, by {how}. Balanced "
            "accuracy is the mean of sensitivity and specificity, calls made at probability 0.5; 0.5 is "
            f"chance level. AUROC is the chance that a random {self.positive} patch scores above a "
            f"random other one. Average precision is for the class {self.positive}; chance level is the "
            "class's share. ★ "
            "marks what the folds of the training set chose; no choice of any kind was made on the test "
            "sets."
        )

    def swatch(self, name: str) -> Markup:
        """The colour of a system in the plots, where it has one."""
        style = (
            Markup(' style="background:var(--s{})"').format(self.series[name]) if name in self.series else ""
        )
        return Markup('<i class="swatch"{}></i>').format(style)

    def _named(self, name: str) -> tuple[str, Markup]:
        """A system as a cell, on the page with its colour."""
        return self.starred(name), self.swatch(name) + self.starred(name)

    def _legend(self) -> Markup:
        return render("legend.html", view=self)

    # --- curves

    def curves(self) -> list[Any]:
        out: list[Any] = [
            "Left: ROC, sensitivity against the false positive rate. Middle: precision against "
            "sensitivity; dashed, "
            f"the share of {self.positive} patches. Right: observed frequency of {self.positive} by "
            f"predicted probability (★ only; filled: calibrated on the folds with Platt's method, hollow: "
            f"as fitted; {self.level} % intervals for independent patches). On the dashed diagonal the "
            "probabilities are calibrated.",
            self._legend(),
        ]
        for dataset in dict.fromkeys(dataset for dataset, _ in self.records):
            plots = [svg(chart(self, dataset)) for chart in (roc, precision_recall, reliability)]
            out.append(side_by_side(plots, head=dataset))
        return out

    # --- thresholds

    def thresholds(self) -> list[Any]:
        rows = []
        roles = (Role.OOF, Role.REFIT, Role.ENSEMBLE)
        for r in self.results.whole(features=self.chosen, roles=roles):
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
        model = self.models[self.chosen]
        return (
            [
                f"For {self.chosen} (★). The threshold that gives the best balanced accuracy, and the "
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

    def fold_models(self) -> list[Any]:
        """As published tables put it: mean over the folds' models and standard deviation (ddof 0)."""
        rows = []
        for name in self.names:
            for dataset, values in self.results.fold_models.get(name, {}).items():
                rows.append([name, dataset, *(mean_sd(values[m]) for m in ("balanced_accuracy", "auroc"))])
        if not rows:
            return []
        return [
            "Each outer fold's model by itself on the sets that none was trained on: mean (standard "
            "deviation) over the folds, as published tables often have it. The deviation is between "
            "trainings and says nothing about other patches.",
            Table([self.noun, "set", "balanced accuracy", "AUROC"], rows, left=2),
        ]

    # --- the C path

    def paths(self) -> list[Any]:
        models = [m for m in self.results.ranked if m.path]
        if not models:
            return []
        own, (sign, label) = parameter(self), criterion(self)
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
            name = (m.features, self.swatch(m.features) + m.features)
            criteria = f"{sign * m.criterion:.4f}"
            rows.append([name, choice.preprocess, choice.class_weight, shown, folds, criteria])
        out: list[Any] = [
            f"{PARAMETER_WORDS[own]} Each setting was scored on held-out folds of whole groups; the dot is "
            "the choice for the refit, the ticks below are those of the inner folds, one for each "
            "outer fold.",
        ]
        chart = choice_path(self)
        if chart:
            out += [self._legend(), side_by_side([svg(chart, width=720, height=320, left=60)])]
        out.append(
            Table(
                [
                    self.noun,
                    "preprocessing",
                    "class weight",
                    PARAMETERS[own or ""],
                    "in the folds",
                    label.split(" (")[0],
                ],
                rows,
                left=3,
            )
        )
        return out

    # --- differences

    def differences(self) -> list[Any]:
        if not self.results.comparisons_of(self.chosen):
            return []
        out: list[Any] = [
            f"Each line is another {self.noun} minus {self.chosen} (★) on the same patches: left of zero, ★ "
            f"is better. Bars are {self.level} % intervals of paired differences over whole groups; where an "
            "interval crosses zero, these patches show no significant difference. p-values are "
            "adjusted for the number of comparisons (Holm).",
            self._legend(),
        ]
        table = []
        plots = []
        for dataset in self.sets:
            for metric in ("auroc", "balanced_accuracy"):
                chart = differences(self, dataset, metric)
                if chart is None:
                    continue
                plots.append(svg(chart, height=84 + 22 * len(chart.rows), left=14))
                delong = {c.a: c.p_holm for c in against_chosen(self, dataset, metric, "DeLong")}
                table += [
                    [
                        dataset,
                        c.a,
                        TITLES[metric],
                        f"{c.difference:+.3f}",
                        "-" if c.low is None else f"[{c.low:+.3f}, {c.high:+.3f}]",
                        p_value(c.p_holm),
                        p_value(delong.get(c.a)) if metric == "auroc" else "-",
                    ]
                    for c in against_chosen(self, dataset, metric)
                ]
        if self.ungrouped:
            out.append(
                f"Of {' and '.join(self.ungrouped)} no slides are known: patches are taken as independent "
                "there, p is too small, and no difference is called significant."
            )
        out.append(side_by_side(plots))
        out.append(
            Table(
                ["set", self.noun, "metric", "difference", "interval", "p, groups", "p, DeLong"],
                table,
                left=3,
            )
        )
        return out

    # --- domains

    def domains(self) -> list[Any]:
        """The chosen features by domain, and where it was asked for, trained on other domains."""
        left_out, out = self._left_out(), []
        roles = (Role.OOF, Role.REFIT)
        by_domain = self.results.by_domain(features=self.chosen, roles=roles)
        scale = self._domain_scale(by_domain)
        for dataset in self.sets:
            mine = [r for r in by_domain if r.dataset == dataset]
            if mine and not (dataset == self.train and left_out):
                out.append(f"**{dataset}**, {self.chosen} (★) by scanner, centre or tumour type.")
                out.append(self._domain_table(mine, scale))
            elif mine:
                out += self.left_out()
        return out + clinical.between_domains(self) + [part for one in self.domain_matrices() for part in one]

    def left_out(self) -> list[Any]:
        """Domains of the training set, out of fold and left out of training altogether."""
        left_out = self._left_out()
        if not left_out:
            return []
        mine = self.results.by_domain(features=self.chosen, dataset=self.train, roles=(Role.OOF,))
        return [
            f"**{self.train}**, {self.chosen} (★) by scanner, centre or tumour type. Out of fold, other "
            "patches of the domain are in training; left out, the model was trained and tuned on the other "
            "domains alone, as if this one were another hospital's.",
            self._domain_table(mine, self._domain_scale(mine), left_out),
            *clinical.reasons(
                (
                    d.domain,
                    {
                        m: why
                        for m in ("balanced_accuracy", "auroc")
                        if (why := d.estimate(m).reason) not in ("", NO_INTERVALS)
                    },
                )
                for d in left_out.values()
            ),
        ]

    def _left_out(self) -> dict[str, LeftOut]:
        """Domain -> record of the chosen features trained without it; {} where that was not asked for."""
        found = self.results.domains.get(self.chosen)
        return {d.domain: d for d in found.leave_one_out} if found else {}

    def _domain_scale(self, scores: Sequence[Score]) -> tuple[float, float]:
        return span([one.estimate("auroc") for one in (*scores, *self._left_out().values())])

    def _domain_table(
        self,
        scores: Sequence[Score],
        scale: tuple[float, float],
        left_out: Mapping[str, LeftOut] | None = None,
    ) -> Table:
        def cells(one: Score | LeftOut | None) -> list[Any]:
            if one is None or not one.metrics:
                return ["-", "-"]
            value = one.estimate("auroc")
            bar = whisker(value, scale, chance=0.5, series=self.series.get(self.chosen, 0))
            return [
                interval(one.estimate("balanced_accuracy")),
                (interval(value), interval_html(value) + bar),
            ]

        heads = ["domain", "patches", self.positive, "balanced accuracy", "AUROC"]
        if left_out:
            heads += ["balanced accuracy, left out", "AUROC, left out"]
        rows = []
        for r in scores:
            row = [r.domain, r.n, r.n_positive, *cells(r)]
            rows.append(row + cells(left_out.get(r.domain)) if left_out else row)
        return Table(heads, rows, kind="board")

    def domain_matrices(self) -> list[list[Any]]:
        """Trained on one domain, scored on another: the content of each, the chosen one's first."""
        return [
            [
                f"{matrix.of}: trained on one domain (rows), scored on another (columns), AUROC with its "
                f"{self.level} % interval over {self.groups}. Tuned inside the row's domain; framed, the "
                "domain itself, out of fold at the setting that the same folds chose, a little too high. In "
                f"brackets in the heads, {self.positive} of all patches.",
                self._matrix(matrix),
                *clinical.reasons(_matrix_reasons(matrix)),
            ]
            for matrix in matrices(self)
        ]

    def _matrix(self, matrix: Matrix) -> Table:
        rows = []
        for i, name in enumerate(matrix.rows):
            cells: list[Any] = [name]
            for j, v in enumerate(matrix.values[i].tolist()):
                text, _, around = interval((v, *matrix.intervals[i, j].tolist()), ".2f").partition(" ")
                own = Markup(" class=own") if matrix.own(i, j) else ""
                shown = Markup('<span{} style="{}">{}</span>').format(own, tint(v), text)
                if around:
                    shown += Markup("<small>{}</small>").format(around)
                cells.append("-" if np.isnan(v) else (f"{text} {around}".strip(), shown))
            rows.append(cells)
        sets = [self.train if dataset == "train" else dataset for dataset, *_ in matrix.columns]
        over = [("", 1), *((name, len(list(same))) for name, same in groupby(sets))]
        heads = [f"{domain or 'all'} ({p}/{n})" for _, domain, p, n in matrix.columns]
        return Table(["trained on", *heads], rows, kind="matrix", over=over)

    # --- votes

    def votes(self) -> list[Any]:
        out: list[Any] = []
        for v in self.results.votes:
            # fine-tuned systems have no strata: then the best on the folds of those that have
            there = {s.features for s in v.strata}
            name = next((n for n in (self.chosen, *self.names) if n in there), "")
            kappa = "" if v.kappa is None else f", Fleiss' kappa {v.kappa:.3f}"
            out.append(f"**{v.dataset}**: {v.n} patches with votes, {v.unanimous:.1%} unanimous{kappa}.")
            out += clinical.human(self, v)
            if not name:
                continue
            out.append(f"{name}{' (★)' if name == self.chosen else ''} by how many experts agree:")
            role = Role.OOF if v.dataset == self.train else Role.REFIT
            mine = [s for s in v.strata if s.features == name]
            rows = [
                [
                    f"{s.votes_agreeing} of {s.votes_total}",
                    s.rows,
                    s.positives,
                    *map(number, (s.balanced_accuracy, s.auroc, s.average_precision)),
                ]
                for s in [s for s in mine if s.role == role] or mine
            ]
            heads = ["experts that agree", "patches", self.positive, *(TITLES[m] for m in SHOWN)]
            out.append(Table(heads, rows))
            probability = [s for s in v.by_votes if s.features == name and s.role == role]
            if probability:
                text = "; ".join(
                    f"{s.votes_positive} of {s.votes_total}: {s.mean_score:.2f} ({s.rows})"
                    for s in probability
                )
                soft = next((s for s in v.soft if s.features == name and s.role == role), None)
                tail = ""
                if soft and soft.pearson is not None:
                    tail = f" Correlation with the share of votes: {soft.pearson:.2f}."
                out.append(
                    f"Mean probability by votes for {self.positive} (patches in brackets): {text}.{tail}"
                )
        return out

    # --- errors

    def errors(self) -> list[Any]:
        from ...datasets.thumbnails import thumbnail_of

        out: list[Any] = []
        missing = 0
        others = len(self.names) - 1
        for entry in self.results.data:
            table = self.predicted(entry.dataset, self.chosen)
            if "path" not in table or not len(table):
                continue
            table = table.assign(margin=table["probability"] - table["threshold"])
            missed = table[(table["label"] == 1) & (table["margin"] < 0)].nsmallest(ERRORS, "margin")
            alarms = table[(table["label"] == 0) & (table["margin"] >= 0)].nlargest(ERRORS, "margin")
            wrong = self._also_wrong(entry.dataset, [*missed["patch_id"], *alarms["patch_id"]])
            groups = []
            for title, rows in (
                (f"{self.positive}, called {self.negative}", missed),
                (f"{self.negative}, called {self.positive}", alarms),
            ):
                cards = []
                for row in rows.to_dict("records"):
                    image = thumbnail_of(entry.root or "", row["path"], row["content_hash"], 112)
                    missing += image is None
                    lines = [str(row["patch_id"]).split("/", 1)[-1]]
                    lines.append(" · ".join(str(row[c]) for c in ("domain", "group") if row[c]))
                    if others:
                        lines.append(f"{wrong.get(row['patch_id'], 0)} of {others} others wrong too")
                    cards.append({"png": image, "probability": row["probability"], "lines": lines})
                groups.append((title, cards))
            if any(cards for _, cards in groups):
                out.append(render("errors.html", dataset=entry.dataset, groups=groups))
        if out:
            note = f" {missing} images could not be shown (moved or changed)." if missing else ""
            out.insert(
                0,
                f"Where {self.chosen} (★) is wrong with the highest confidence, at the chosen threshold; p "
                "is the calibrated "
                f"probability of {self.positive}. Look for wrong labels, figures cut off, and "
                f"artefacts.{note}",
            )
        return out

    def _also_wrong(self, dataset: str, patches: Sequence[str]) -> dict[str, int]:
        """Patch -> how many of the others call it wrongly at their own thresholds."""
        found: dict[str, int] = {}
        for name in self.names:
            if name == self.chosen:
                continue
            rows = self.predicted(dataset, name)
            rows = rows[rows["patch_id"].isin(patches)]
            calls = rows["call"] != rows["label"]
            for patch in rows["patch_id"][calls]:
                found[patch] = found.get(patch, 0) + 1
        return found

    # --- data and provenance

    def data(self) -> list[Any]:
        rows = [
            [
                d.dataset,
                d.licence,
                ", ".join(f"{k} ({v})" for k, v in d.domains.items()) or "-",
                d.n,
                d.n_positive,
                d.n_groups or "-",
                d.n_distinct,
            ]
            for d in self.results.data
        ]
        out: list[Any] = [
            Table(
                ["set", "licence", "domains", "patches", self.positive, "groups", "distinct images"],
                rows,
                left=3,
            )
        ]
        left_out = [
            f"{n:,} of {d.dataset} ({why})" for d in self.results.data for why, n in d.left_out.items()
        ]
        left_out += [
            f"{d.n - d.n_distinct:,} of {d.dataset} (repeated images, and those with both labels: out of the "
            "figures that lead, not of those of all files)"
            for d in self.results.data
            if d.n_distinct < d.n
        ]
        if left_out:
            out.append(f"Rows left out: {'; '.join(left_out)}.")
        leaks = self.results.leaks
        if leaks:
            found = {k: n for k, n in leaks.found.items() if n}
            texts = {
                "labels": "images with contradictory labels",
                "content": "images on both sides of a split",
                "group": "groups on both sides of a split",
                "near-duplicate": "near-duplicates on both sides",
                "reused": "training rows that are reported on",
            }
            looked = NEAR_WORDS.get("not recorded" if leaks.near_by is None else leaks.near_by, "")
            out.append(
                f"Leak audit, before anything was fitted{looked}: "
                + (
                    "; ".join(f"{n} {texts.get(k, k)}" for k, n in found.items()) + "."
                    if found
                    else "nothing found."
                )
            )
            for leak in leaks.leaks[:20]:
                out.append(
                    f"{texts.get(leak.kind, leak.kind)}: "
                    + ", ".join(f"{p} ({s}, {label})" for p, s, label in leak.rows[:8])
                    + (" ..." if len(leak.rows) > 8 else "")
                )
        return out

    def provenance(self) -> list[Any]:
        config, seconds = self.results.config, self.results.seconds
        out: list[Any] = []
        cost = []
        for m in self.results.ranked:
            fits = m.fits
            if not fits:
                cost.append([m.features, m.dim, "-", "-", "-", "-", f"{m.took('all'):.1f}"])
                continue
            gap = fits.worst_gap_bound
            cost.append(
                [
                    m.features,
                    m.dim,
                    fits.fits,
                    ", ".join(f"{v} {k}" for k, v in fits.status.items()),
                    "-" if gap is None else f"{gap:.0e}",
                    f"{m.took('fit'):.1f}",
                    f"{m.took('all', 'load'):.1f}",
                ]
            )
        out.append(
            Table(
                [
                    self.noun,
                    "columns",
                    "fits",
                    "how they ended",
                    "worst gap bound",
                    "s, fitting",
                    "s, in all",
                ],
                cost,
            )
        )
        if any(m.fits and m.fits.worst_gap_bound is not None for m in self.results.models):
            out.append(GAPS)
        if seconds:
            out.append("Wall time: " + ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items()) + ".")
        for name, store in self.results.stores.items():
            about = ", ".join(
                f"{k} {v}"
                for k, v in store.provenance.items()
                if isinstance(v, str | int | float) and v != ""
            )
            out.append(
                f"**{name}**: store {store.store}, {store.precision} arithmetic, stored as {store.dtype}"
                + (f"; {about}" if about else "")
                + "."
            )
        folds = self.results.folds
        own = next((m.choice.parameter for m in self.results.models if m.choice), "")
        settings = ", ".join(
            f"{k} {_setting(v)}"
            for k, v in config.to_json().items()
            if k not in (own, "features") and v not in (None, [])
        )
        grid = config.grid(own)
        of_grid = f"Grid of {own}: {len(grid)} from {min(grid):.2g} to {max(grid):.2g}. " if grid else ""
        out.append(
            f"Folds: {folds.name}, {folds.n_splits} outer ({folds.made_with or 'from a file'}). "
            f"{of_grid}Settings: {settings}."
        )
        out.append(
            "Made with "
            + ", ".join(
                f"{k} {v}" for k, v in self.results.provenance.items() if v and not isinstance(v, list)
            )
            + "."
        )
        if self.results.not_recorded:
            out.append(f"Not recorded: {'; '.join(self.results.not_recorded)}.")
        return out


def _matrix_reasons(matrix: Matrix) -> list[tuple[str, dict[str, str]]]:
    """Why cells have no interval: (trained on, scored on -> reason)."""
    names = [f"scored on {domain or dataset}" for dataset, domain, *_ in matrix.columns]
    return [
        (
            f"trained on {name}",
            {c: why for c, why in zip(names, row, strict=True) if why not in ("", NO_INTERVALS)},
        )
        for name, row in zip(matrix.rows, matrix.reasons, strict=False)
    ]


def _setting(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
