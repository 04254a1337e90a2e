"""Studies that one TOML file describes: planned, run, and reported on one page.

A study names data sets, systems and settings. `plan_study` says what is cached, what must run and what cannot
(with the reason); `run_study` does it. Every step keeps what it finished: embeddings in the bank, results in
OUT, each with the digest of all that it depends on, so that no result can pass for another's. So the same
command goes on after Ctrl-C or kill -9, a changed grid re-runs no extraction, a new system leaves the others
as they are, and a second run does nothing. OUT/state.json has times, and what the report was made of.

The cost of a study at scale is estimated in tests/benchmarks/study_scale.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from .datasets.steps import absent_data, plan_data
from .errors import InvalidRequest
from .extract.options import ExtractOptions
from .extract.report import StoreReport
from .extract.steps import Extraction, ExtractStep, measure, plan_extract
from .extract.tokens import parse_policy
from .extract.views import parse_views
from .files import locked
from .finetune.steps import MODES, Training, in_folders_of_their_own, plan_plan, plan_training
from .probe.config import FeatureSet, Source
from .probe.report.model import StudyPage
from .probe.steps import Probing, plan_ensemble, plan_probe, plan_robustness
from .steps import Outcome, Places, State, Step
from .study_file import Study, System
from .study_page import StudyReport, figures_of

Stores = dict[str, dict[str, list[StoreReport]]]  # probed system -> encoder -> what it chooses from


@dataclass
class StudyResult(Outcome):
    """What a study has: its steps as they ended, and what its page says (without maps and images)."""

    page: StudyPage
    files: list[Path]
    seconds: float


def plan_study(study: Study, where: Places, *, measure: bool = False) -> list[Step]:
    """Everything that the study needs, in order, and its state. Writes nothing.

    measure : time a forward pass of each encoder that this study has not measured yet (random weights), so
        that every extraction has an estimate; else no model is loaded
    Raises InvalidRequest where the training data set has no manifest: then nothing can run.
    """
    work = _Work(study, where, measure=measure)
    return [step for stage in work.stages() for step in stage]


def plan_absent(study: Study, where: Places) -> list[Step]:
    """A blocked step for each data set without a manifest, which says how to get it."""
    return absent_data(_paths(study, where))


def run_study(study: Study, where: Places, *, say: Callable[[str], None] = print) -> StudyResult:
    """Do what `plan_study` lists, and write OUT/report.html, report.md and table.csv.

    Extracted : every encoder's views and token policies, for the patches that the bank lacks.
    Probed : each system by itself, if its settings, stores or rows have changed. Everything is chosen on the
        folds of the training rows; see `probe.run.run_probe`.
    Measured, with [robustness] : how much the probes' embeddings are of the domains (probe/robustness.py).
    Fine-tuned : one model a fold, as `where.finetune` says; what was trained is not trained again. A fold's
        own head is its probe: the rows that it was trained on may not be embedded by it
        (finetune/adapted.py), so that no other probe could be fitted on the same folds.
    Combined : ensembles over systems, see `probe.ensemble.ensemble_of`.
    Reported : all systems that have results, compared with each other, and with published figures.

    A system that cannot run (gated weights, a missing data set) is a row that says what is missing.
    A step that fails does not stop the others: `StudyResult.failed` has it.
    Raises InvalidRequest where nothing can run, OutputError where OUT cannot be written or another run has
    it. Ctrl-C ends it; the same call goes on.
    """
    started = perf_counter()
    with locked(where.out):
        work = _Work(study, where)
        steps: list[Step] = []
        for stage in work.stages():
            for step in stage:
                step.run(say)
            steps += stage
        report = work.report
        return StudyResult(steps, report.page(steps), report.files, perf_counter() - started)


class _Work:
    """A study at work: each stage is planned when the stage before it has been done."""

    report: StudyReport

    def __init__(self, study: Study, where: Places, *, measure: bool = False) -> None:
        if where.finetune not in MODES:
            raise InvalidRequest(f"finetune is {where.finetune!r}; it has to be one of {', '.join(MODES)}")
        ExtractOptions(**study.extract)
        self.study, self.where, self.measure = study, where, measure
        self.state = State(where.out / "state.json")
        self.figures = figures_of(study)

    def stages(self) -> Iterator[Sequence[Step]]:
        """The steps of each stage, in order; what is done with them is seen by the next ones."""
        study, where = self.study, self.where
        sets, data = plan_data(_paths(study, where), train=study.train, study=study.name)
        yield data
        extracts = [plan_extract(extraction, sets, where, self.state) for extraction in self._extractions()]
        if self.measure:
            for step in extracts:
                measure(step, device=where.device)
        yield extracts
        rows = sets.digest(where.bank)  # of the images as they are now that they were read
        stores = _stores(extracts)
        absent = {name for step in extracts if step.state in ("blocked", "failed") for name in step.systems}
        probing = [self._probing(system, stores) for system in study.of("probe") if system.name not in absent]
        probes = [plan_probe(each, sets, rows, where, self.state) for each in probing]
        yield probes
        measured = []
        if study.robustness is not None and probing:
            measured = [plan_robustness(study.robustness, probing, sets, rows, where, self.state)]
        yield measured
        wanted = in_folders_of_their_own([self._training(one) for one in study.of("lora", "full")])
        plans = []
        if where.finetune == "plan" and wanted:
            plans = [plan_plan(probes, wanted, sets, rows, where, self.state)]
        yield plans
        trainings = [plan_training(one, sets, rows, where, self.state) for one in wanted]
        yield trainings
        singles = {step.title: step for step in (*probes, *trainings)}
        ensembles = [self._ensemble(system, singles, rows) for system in study.of("ensemble")]
        yield ensembles
        done = [*data, *extracts, *probes, *measured, *plans, *trainings, *ensembles]
        self.report = StudyReport(
            study, where, self.state, sets=sets, steps=done, stores=stores, figures=self.figures
        )
        yield [self.report.step()]

    def _extractions(self) -> list[Extraction]:
        """One for each encoder, precision and list of token policies."""
        study, groups = self.study, {}
        for system in study.of("probe"):
            for (encoder, tokens), views in study.views_of(system).items():
                groups.setdefault((encoder, system.precision, tokens), {})[system.name] = views
        return [
            Extraction(
                encoder=encoder,
                card=study.beside(encoder),
                views=views,
                tokens=tokens,
                precision=precision,
                options=study.extract,
            )
            for (encoder, precision, tokens), views in groups.items()
        ]

    def _probing(self, system: System, stores: Stores) -> Probing:
        settings, found = self.study.settings_of(system), stores.get(system.name)
        if found is None:
            return Probing(system=system.name, settings=settings, stores=None)
        candidates = [store for of_encoder in found.values() for store in of_encoder]
        for part in ("precision", "dtype"):
            values = {getattr(store, part) for store in candidates}
            settings[part] = values.pop() if len(values) == 1 else None  # encoders of two precisions
        if system.features:
            sets = [_named(one, found) for one in system.written_out]
        else:
            sets = [FeatureSet((Source(store.encoder, store.view, store.tokens),)) for store in candidates]
        names = [store.name for store in candidates]
        return Probing(
            system=system.name, settings=settings, stores=names, features=[str(one) for one in sets]
        )

    def _ensemble(self, system: System, singles: Mapping[str, Step], rows: str) -> Step:
        names = system.members or [one.name for one in self.study.of("probe", "lora", "full")]
        absent: dict[str, Any] = {"kind": "probe", "state": "blocked", "why": "it has not run"}
        members = {name: singles.get(name) or Step(title=name, **absent) for name in names}
        weights = system.settings.get("weights", "folds")
        return plan_ensemble(system.name, members, weights, rows, self.where, self.state)

    def _training(self, system: System) -> Training:
        return Training(
            system=system.name,
            encoder=system.encoder,
            card=self.study.beside(system.encoder),
            recipe=system.recipe or system.stage,
            folds=self.study.training_folds(),
            options={**self.study.finetune, **system.settings},
        )


def _paths(study: Study, where: Places) -> dict[str, Path]:
    """The manifest's file of each data set."""
    return {name: study.manifest(name, where.data) for name in (study.train, *study.tests)}


def _stores(extracts: Sequence[ExtractStep]) -> Stores:
    """What systems choose from, of those whose stores are all known."""
    found: Stores = {}
    unknown = set()
    for step in extracts:
        for system in step.systems:
            stores = step.stores_of(system)
            if stores is None:
                unknown.add(system)
            else:
                found.setdefault(system, {}).setdefault(step.extraction.encoder, []).extend(stores)
    return {system: stores for system, stores in found.items() if system not in unknown}


def _named(features: FeatureSet, stores: Mapping[str, Sequence[StoreReport]]) -> FeatureSet:
    """A feature set of a study file as the bank has it: the encoder by its card's id, all names in full."""
    sources = []
    for source in features.sources:
        view, tokens = parse_views(source.view)[0].name, parse_policy(source.tokens or "").name
        fits = (one for one in stores[source.encoder] if (one.view, one.tokens) == (view, tokens))
        sources.append(Source(next(fits).encoder, view, tokens))
    return FeatureSet(tuple(sources))
