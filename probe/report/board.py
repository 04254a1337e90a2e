"""Tables of a study's page: systems by evaluation sets, by domains, beside published figures, by cost.

Each value is there for every metric, in an element of the class `m` and the metric's name; the page shows
those of one metric (page.css), and page.js switches, sorts and filters. Without JavaScript the tables stay
as they are written here, in balanced accuracy.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from scipy.stats import spearmanr

from ..results.schema import PAIRED, TEST_ROLES, TRAIN_ROLES, Role, Score
from .markup import SHOWN, TITLES, at, interval, interval_html, mark, p_value, span, tint, whisker
from .model import PublishedRow, SystemRow
from .sections import Sections

FAMILIES = {"probe": "probe", "lora": "LoRA", "full": "end to end"}
METRIC_NAMES = {name: text[:1].upper() + text[1:] for name, text in TITLES.items()}
RANKED = 4  # systems from which on a rank correlation says something


def each_metric(cell: Callable[[str], str], *, tag: str = "div") -> str:
    """One element a metric, of which one is shown."""
    return "".join(f'<{tag} class="m {m}">{cell(m)}</{tag}>' for m in SHOWN)


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
    """What the tables have in common: the records, the scales, who can be told from whom."""

    def __init__(
        self, view: Sections | None, systems: Sequence[SystemRow], *, first: str = "", metric: str = ""
    ) -> None:
        """first, metric : the evaluation set and the metric to lead with"""
        self.view, self.systems, self.metric = view, systems, metric or SHOWN[0]
        self.records: dict[tuple[str, str], Score] = {}
        self.sets: list[str] = []
        if view is None:
            return
        self.records = view.records
        known = {dataset for dataset, _ in self.records}
        # what the reader came for first: sets that had no part in training or choosing
        self.sets = [s for s in [*view.sets[1:], view.train] if s in known]
        self.sets.sort(key=lambda s: s != first)
        self.alpha = 1 - view.level / 100
        self.standings = {(s, m): self._standing(s, m) for s in self.sets for m in SHOWN}

    def metric_buttons(self) -> str:
        """The same buttons in every section that shows one metric; they work together."""
        pressed = {m: "true" if m == self.metric else "false" for m in SHOWN}
        buttons = "".join(
            f'<button type="button" data-metric="{m}" aria-pressed="{pressed[m]}">{METRIC_NAMES[m]}</button>'
            for m in SHOWN
        )
        return f'<span class="metrics" role="group" aria-label="Metric">{buttons}</span>'

    @property
    def held_out(self) -> list[str]:
        return [s for s in self.sets if self.view and s != self.view.train]

    def scale(self, metric: str) -> tuple[float, float]:
        return span(r.estimate(metric) for r in self.records.values())

    def chance(self, record: Score, metric: str) -> float:
        return record.share if metric == "average_precision" else 0.5

    def _standing(self, dataset: str, metric: str) -> Standing | None:
        assert self.view
        mine = [self.records[dataset, n] for n in self.view.names if (dataset, n) in self.records]
        known = [(v, r) for r in mine if (v := r.estimate(metric).value) is not None]
        if not known:
            return None
        best = max(known, key=lambda one: one[0])[1]
        found: dict[str, float] = {}
        if dataset not in self.view.ungrouped:
            for c in self.view.results.comparisons_of(best.features, dataset=dataset):
                if (c.metric, c.test) != (metric, PAIRED) or c.p_holm is None:
                    continue
                if c.role == best.role or c.a not in found:
                    found[c.a] = c.p_holm
        names = [r.features for _, r in known if r.features in found]
        return Standing(
            best,
            tuple(n for n in names if found[n] < self.alpha),
            tuple(n for n in names if found[n] >= self.alpha),
            len(known) - 1,
        )

    # --- the answer

    def answers(self) -> str:
        """One sentence for each held-out set, for each metric."""
        out = [f"<p>{each_metric(lambda m, s=s: self._answer(s, m), tag='span')}</p>" for s in self.held_out]
        if len(out) and self.view and len(self.view.names) > 1:
            out.append(f"<p>{each_metric(self._chosen, tag='span')}</p>")
            how = (
                f"In brackets, {self.view.level}\u00a0% intervals over whole {self.view.groups}. A "
                "difference "
                f"is significant if the paired test on the same patches gives p below {self.alpha:.2g} after "
                "Holm's adjustment for all pairs that were compared on the set."
            )
            if self.view.ungrouped:
                how += (
                    f" Of {' and '.join(self.view.ungrouped)} the slides are not known: patches are taken as "
                    "independent there, the intervals are too narrow, and no difference is called "
                    "significant."
                )
            out.append(f"<p><small>{escape(how)}</small></p>")
        return "".join(out)

    def _chosen(self, metric: str) -> str:
        """What an honest choice, made before any of these sets was looked at, comes to."""
        assert self.view
        found = [self.records.get((s, self.view.chosen)) for s in self.held_out]
        values = [
            f"{interval(r.estimate(metric))} on {r.dataset}"
            for r in found
            if r and r.estimate(metric).value is not None
        ]
        if not values:
            return ""
        text = f"{TITLES[metric]} {' and '.join(values)}"
        return (
            "The highest of several is partly luck. Chosen on the training set's folds, before these sets "
            f"were scored: <b>{escape(self.view.chosen)}</b> ★, {escape(text)}."
        )

    def _answer(self, dataset: str, metric: str) -> str:
        assert self.view
        standing = self.standings[dataset, metric]
        if standing is None:
            return ""
        best = standing.best
        name, value = f"<b>{escape(best.features)}</b>", escape(interval(best.estimate(metric)))
        where, title = f"On <b>{escape(dataset)}</b>,", TITLES[metric]
        n_worse, n_similar, others = len(standing.worse), len(standing.similar), standing.others
        if not others:
            return f"{where} the one finished system, {name}, has {title} {value}."
        if dataset in self.view.ungrouped:
            return (
                f"{where} {name} has the highest {title}, {value}; the slides are not known, so no "
                "difference "
                "is called significant."
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
        close = ", ".join(escape(n) for n in standing.similar[:4])
        more = f" and {n_similar - 4} more" if n_similar > 4 else ""
        tail = f"; not above {close}{more}" if n_similar else ""
        return (
            f"{where} {name} has the highest {title}, {value}. It is significantly above {n_worse} of "
            f"{among}{tail}."
        )

    # --- the leaderboard

    def leaderboard(self) -> str:
        """Every system a row, every evaluation set a column."""
        heads = [_sort_head("system", "text"), _sort_head("kind", "text")]
        for i, s in enumerate(self.sets):
            record = next(r for (dataset, _), r in self.records.items() if dataset == s)
            share = f"{record.share:.0%}"
            how = "" if s in self.held_out else ", out of fold"
            note = f"{record.n:,} patches, {share} {self.view.positive if self.view else ''}{how}"
            heads.append(_sort_head(s, "number", note=note, sort="" if i else "descending"))
        done = [s for s in self.systems if s.state == "done"]
        if self.sets:
            done.sort(key=lambda s: -self._value(s.name, self.sets[0], self.metric))
        blocked = [s for s in self.systems if s.state != "done"]
        body = "".join(map(self._done_row, done)) + "".join(map(self._blocked_row, blocked))
        return (
            '<div class="scroll"><table class="board stack" id="board"><thead><tr>'
            f"{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _value(self, name: str, dataset: str, metric: str) -> float:
        record = self.records.get((dataset, name))
        value = record.estimate(metric).value if record else None
        return -1.0 if value is None else value

    def _done_row(self, system: SystemRow) -> str:
        star = " ★" if self.view and system.name == self.view.chosen else ""
        about = [system.chosen if system.chosen != system.name else "", system.licence]
        about.insert(1, f"{system.dim:,} columns" if system.dim else "")
        cells = "".join(f'<td data-head="{escape(s)}">{self._cell(s, system.name)}</td>' for s in self.sets)
        family = FAMILIES.get(system.family, system.family)
        return (
            f'<tr data-family="{escape(system.family)}" data-state="done"><th scope="row">'
            f"{escape(system.name)}{star}{_small(about)}</th>"
            f'<td data-head="kind">{escape(family)}</td>{cells}</tr>'
        )

    def _cell(self, dataset: str, name: str) -> str:
        record = self.records.get((dataset, name))
        if record is None:
            return '<span class="none">not scored</span>'

        def cell(metric: str) -> str:
            value = record.estimate(metric)
            if value.value is None:
                return "-"
            standing = self.standings[dataset, metric]
            worse = standing is not None and name in standing.worse
            human = self.view.human.get(dataset) if self.view and metric == SHOWN[0] else None
            bar = whisker(
                value, self.scale(metric), chance=self.chance(record, metric), human=human, hollow=worse
            )
            tip = ' title="significantly below the highest of this column"' if worse else ""
            return f'<data value="{value.value:.6f}"{tip}>{interval_html(value)}</data>{bar}'

        return each_metric(cell)

    def _blocked_row(self, system: SystemRow) -> str:
        family = FAMILIES.get(system.family, system.family)
        about = _small([system.encoder if system.encoder != system.name else "", system.licence])
        lines = (system.why or "It has not run yet.").strip().splitlines()
        first = 1 + next((i for i, line in enumerate(lines) if not line.rstrip().endswith(":")), 0)
        why = prose("\n".join(lines[:first]))
        if lines[first:]:
            rest = prose("\n".join(lines[first:]))
            why += f"<details><summary>More ways to get it</summary>{rest}</details>"
        if system.published:
            why += f"<small>{escape(system.published)}</small>"
        return (
            f'<tr class="blocked" data-family="{escape(system.family)}" data-state="blocked">'
            f'<th scope="row">{escape(system.name)}{about}</th><td data-head="kind">{escape(family)}</td>'
            f'<td class="why" colspan="{max(len(self.sets), 1)}"><b>Not run.</b> {why}</td></tr>'
        )

    # --- across sets

    def matrix(self) -> str:
        """Systems by evaluation sets, tinted; and how well one set's ranking carries over to the next."""
        assert self.view
        heads = "".join(f'<th scope="col">{escape(s)}</th>' for s in self.sets)
        rows = []
        for name in self.view.names:

            def cell(s: str, name: str = name) -> str:
                record = self.records.get((s, name))

                def shown(metric: str) -> str:
                    v = record.estimate(metric).value if record else None
                    return "-" if v is None else f'<span style="{tint(v)}">{v:.2f}</span>'

                return f"<td>{each_metric(shown)}</td>"

            star = " ★" if name == self.view.chosen else ""
            cells = "".join(map(cell, self.sets))
            rows.append(f'<tr><th scope="row">{escape(name)}{star}</th>{cells}</tr>')
        order = self._rank_agreement()
        return (
            '<div class="scroll"><table class="matrix systems"><thead><tr><th scope="col">system</th>'
            f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody>{order}</table></div>"
        )

    def _rank_agreement(self) -> str:
        assert self.view
        train, order = self.view.train, self.view.names

        def cell(s: str) -> str:
            names = [n for n in order if (s, n) in self.records and (train, n) in self.records]
            if s == train or len(names) < RANKED:
                return "<td></td>"

            def shown(metric: str) -> str:
                ours, theirs = ([self._value(n, of, metric) for n in names] for of in (train, s))
                rho = float(np.asarray(spearmanr(ours, theirs))[0])
                return "-" if rho != rho else f"{rho:+.2f}"

            return f"<td>{each_metric(shown)}</td>"

        cells = "".join(map(cell, self.held_out))
        if "class" not in cells:
            return ""
        blank = "<td></td>" * (len(self.sets) - len(self.held_out))
        title = "rank correlation with the out-of-fold order (Spearman)"
        return f'<tfoot><tr><th scope="row">{title}</th>{cells}{blank}</tr></tfoot>'

    # --- domains

    def domains(self) -> str:
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
            return ""
        domains = list(dict.fromkeys(domain for _, _, domain in records))
        places = {(s, d) for _, s, d in records}
        scales = {m: span(r.estimate(m) for r in records.values()) for m in SHOWN}
        rows = []
        for name in view.names:
            for dataset in self.sets:
                for domain in domains:
                    r = records.get((name, dataset, domain))
                    if r is None:
                        continue

                    def cell(metric: str, r: Score = r) -> str:
                        value = r.estimate(metric)
                        bar = whisker(value, scales[metric], chance=self.chance(r, metric))
                        return interval_html(value) + bar

                    hidden = "" if name == view.chosen else " hidden"
                    rows.append(
                        f'<tr data-system="{escape(name)}" data-domain="{escape(domain)}"{hidden}>'
                        f'<th scope="row" class="system">{escape(name)}</th>'
                        f'<th scope="row" class="domain">{escape(domain)}</th>'
                        f'<td data-head="set">{escape(dataset)}</td>'
                        f'<td data-head="patches" class="n">{r.n:,}</td>'
                        f'<td data-head="{escape(view.positive)}" class="n">{r.n_positive:,}</td>'
                        f'<td class="bars">{each_metric(cell)}</td></tr>'
                    )
        systems = _options([(n, n + (" ★" if n == view.chosen else "")) for n in view.names], view.chosen)
        of = _options([("", "all domains"), *((d, d) for d in domains)], "")
        return (
            f'<div class="controls js">{self.metric_buttons()}<label>System <select id="by-system">'
            f'<option value="">all systems</option>{systems}</select></label>'
            f'<label>Domain <select id="by-domain">{of}</select></label>'
            f'<span class="count" role="status" id="domain-count">{len(places)} rows</span></div>'
            '<div class="scroll"><table class="board stack" id="domain-board"><thead><tr>'
            '<th class="system">system</th><th class="domain">domain</th><th>set</th>'
            f'<th class="n">patches</th><th class="n">{escape(view.positive)}</th>'
            f"<th>{each_metric(lambda m: TITLES[m], tag='span')}</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )


def published_table(rows: Sequence[PublishedRow]) -> str:
    """Ours beside the published figures, a table for each evaluation set."""
    scale = span([*(r.ours for r in rows), *((r.published, *r.published_folds) for r in rows)])
    ends = [v for r in rows for v in (r.low, r.high, r.difference) if v is not None]
    reach = 1.05 * max(0.02, *map(abs, ends))
    out = []
    for dataset in dict.fromkeys(r.dataset for r in rows):
        mine = [r for r in rows if r.dataset == dataset]
        body = "".join(_published_row(r, scale, (-reach, reach)) for r in mine)
        out.append(
            f'<h3>{escape(dataset)}</h3><div class="scroll"><table class="board stack published"><thead><tr>'
            "<th>system</th><th>ours, mean of fold models</th><th>published, mean of fold models</th>"
            '<th aria-hidden="true"></th><th>ours - published</th><th>p (Holm)</th><th>verdict</th>'
            f"</tr></thead><tbody>{body}</tbody></table></div>"
        )
    return "".join(out)


def _published_row(r: PublishedRow, scale: tuple[float, float], about_zero: tuple[float, float]) -> str:
    low, high = min(r.published_folds, default=r.published), max(r.published_folds, default=r.published)
    folds = f"folds {low:.3f} to {high:.3f}" if r.published_folds else ""
    dots = "".join(mark(v, scale, "fold") for v in r.published_folds) + mark(r.published, scale, "there")
    words = {"higher": "ours higher", "lower": "ours lower"}.get(r.verdict, r.verdict)
    difference = (r.difference, r.low, r.high)
    bar = whisker(difference, about_zero, chance=0.0)
    text = f"<b>{r.difference:+.3f}</b>"
    if r.low is not None and r.high is not None:
        text += f" <small>[{r.low:+.3f}, {r.high:+.3f}]</small>"
    refit = f"refit {interval(r.refit)}" if r.refit else ""
    return (
        f'<tr class="m {escape(r.metric)}"><th scope="row">{escape(r.system)}</th>'
        f'<td data-head="ours">{interval_html(r.ours)}{_small([refit])}</td>'
        f'<td data-head="published"><b>{r.published:.3f}</b>{_small([r.against, folds])}</td>'
        f'<td class="bars">{whisker(r.ours, scale, chance=0.5, marks=dots)}</td>'
        f'<td data-head="ours - published">{text}{bar}</td>'
        f'<td data-head="p (Holm)">{p_value(r.p_holm)}</td>'
        f'<td data-head="verdict"{" class=said" if r.verdict in ("higher", "lower") else ""}>'
        f"{escape(words)}</td></tr>"
    )


COSTS: tuple[tuple[str, Callable[[SystemRow], float], str], ...] = (
    ("forward passes", lambda s: s.forwards, "{:,.0f}"),
    ("saved by the cache", lambda s: s.forwards_saved, "{:,.0f}"),
    ("extraction, s", lambda s: s.extract_seconds, "{:,.1f}"),
    ("training, s", lambda s: s.train_seconds, "{:,.1f}"),
    ("probe fits", lambda s: s.fits, "{:,.0f}"),
    ("probe, CPU s", lambda s: s.probe_seconds, "{:,.1f}"),
)


def cost_table(systems: Iterable[SystemRow]) -> str:
    """What each finished system took; each column has a scale of its own."""
    done = [s for s in systems if s.state == "done"]
    if not done:
        return ""
    top = [max(float(of(s)) for s in done) for _, of, _ in COSTS]
    rows = []
    for s in done:
        cells = "".join(
            f'<td data-head="{head}">{form.format(of(s)) if of(s) else "-"}'
            f'<i class="bar" style="--x:{at(of(s), (0, most or 1))}" aria-hidden="true"></i></td>'
            for (head, of, form), most in zip(COSTS, top, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(s.name)}{_small([s.device])}</th>{cells}</tr>')
    total = "".join(f'<td data-head="{h}">{form.format(sum(map(of, done)))}</td>' for h, of, form in COSTS)
    return (
        '<div class="scroll"><table class="board stack costs"><thead><tr><th>system</th>'
        f"{''.join(f'<th>{head}</th>' for head, _, _ in COSTS)}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f'<tfoot><tr><th scope="row">all</th>{total}</tr></tfoot></table></div>'
    )


_COMMAND = re.compile(r"^\s*(?:\$ |(?:pip|patchbank|hf|huggingface-cli|export|python) )")
_PIECES = re.compile(r"`([^`]+)`|(https?://[^\s<>\"'`]*[^\s<>\"'`.,;:!?)\]])")


def prose(text: str) -> str:
    """A message as HTML: `commands`, lines that are commands, and addresses stand out; lines stay lines."""
    lines = []
    for line in text.strip().splitlines():
        if _COMMAND.match(line):
            lines.append(f"<code>{escape(line.strip().removeprefix('$ '))}</code>")
            continue
        out, last = [], 0
        for found in _PIECES.finditer(line):
            out.append(escape(line[last : found.start()]))
            code, url = (escape(g) if g else "" for g in found.groups())
            out.append(f"<code>{code}</code>" if code else f'<a href="{url}" rel="noreferrer">{url}</a>')
            last = found.end()
        lines.append("".join(out) + escape(line[last:]))
    return "<br>".join(lines)


def _sort_head(text: str, kind: str, *, note: str = "", sort: str = "") -> str:
    attribute = f' aria-sort="{sort}"' if sort else ""
    below = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<th scope="col" data-sort="{kind}"{attribute}><button type="button">{escape(text)}</button>'
        f"{below}</th>"
    )


def _small(parts: Iterable[str]) -> str:
    text = " · ".join(escape(p) for p in parts if p)
    return f"<small>{text}</small>" if text else ""


def _options(values: Iterable[tuple[str, str]], chosen: str) -> str:
    return "".join(
        f'<option value="{escape(v)}"{" selected" if v == chosen else ""}>{escape(text)}</option>'
        for v, text in values
    )
