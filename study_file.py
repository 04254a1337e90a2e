"""A study file: which systems are compared, on which data sets, under which settings (TOML)."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr

from .cache.identity import safe_name
from .errors import InvalidRequest
from .probe.config import (
    ENSEMBLE_WEIGHTS,
    NEAR_BY,
    FeatureSet,
    ProbeConfig,
    RobustnessConfig,
    parse_features,
)
from .probe.regression import TargetConfig
from .probe.report.projection import Projection
from .probe.results.display import SHOWN, SHOWN_OF_CLASSES
from .settings import SHIPPED, InvalidSettings, Settings, near, not_one_of, read_table

# options of run_finetune that the command or another key sets
OF_TRAINING = ("train", "tests", "encoder", "recipe", "out", "folds", "device", "checkpoint", "weights_dir")
OF_TRAINING += ("trust_code", "progress", "remember")
OF_SYSTEMS = ("view", "tokens", "precision", "checkpoint", "weights_dir", "device", "trust_code")


OF_TARGETS = ("pearson", "spearman", "r2")  # metrics of tasks whose labels are numbers
OF_TASKS = ("balanced_accuracy", "auroc", "average_precision", "accuracy", "f1", "kappa", *OF_TARGETS)


class System(Settings):
    """One row of a study: an encoder and what is done with it.

    name : shown in tables
    stage : "probe" (cached embeddings), "lora" or "full" (fine-tuning), "ensemble" (of other systems)
    encoder : a card's id, "timm:NAME", "hf:ORG/NAME", or a card file beside the study file; none of ensembles
    members : of an ensemble, names of systems (none: all that are no ensembles); its setting is `weights`,
        "folds" or "equal", see probe/ensemble.py
    views, tokens : what a probe may choose from (none: the study's; no tokens at all: the encoder's own)
    features : of a probe, instead of these: feature sets, ENCODER/VIEW/TOKENS or "A + B" side by side
    recipe : of the fine-tuning; none: the stage's
    settings : of the probe, over the study's; or of the recipe
    precision : of the forward pass; None: as card and device have it
    published : the published systems of the same stage to set it beside; none: the one of its name
    """

    name: str
    encoder: str = ""
    stage: Literal["probe", "lora", "full", "ensemble"] = "probe"
    members: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    recipe: str = ""
    settings: Mapping[str, Any] = {}
    precision: str | None = None
    published: tuple[str, ...] = ()

    def faults(self) -> Iterable[str]:
        if "name" in self.model_fields_set:
            yield from _faults_of_name(self.name)
        if self.stage in ("lora", "full"):
            yield from _set_elsewhere("settings", self.settings, OF_TRAINING)
        if self.stage == "ensemble":
            yield from self._faults_of_ensemble()
            return
        if self.members:
            yield 'members are of an ensemble: say stage = "ensemble"'
        if self.features:
            others = [key for key in ("encoder", "views", "tokens") if getattr(self, key)]
            yield from (f"{key}: the features name it" for key in others)
            if self.stage != "probe":
                yield "features are of a probe: name one encoder"
            for text in self.features:
                try:
                    if not all(source.tokens for source in parse_features(text).sources):
                        yield f"features {text!r}: a study names ENCODER/VIEW/TOKENS, all three"
                except InvalidRequest as error:
                    yield str(error)
        elif not self.encoder:
            yield "encoder is missing"

    @property
    def written_out(self) -> list[FeatureSet]:
        """`features` as they are read."""
        return [parse_features(text) for text in self.features]

    @property
    def encoders(self) -> tuple[str, ...]:
        """All that it sees, as the study names them."""
        named = [source.encoder for feature_set in self.written_out for source in feature_set.sources]
        return tuple(dict.fromkeys(named)) or ((self.encoder,) if self.encoder else ())

    def _faults_of_ensemble(self) -> Iterable[str]:
        for name in ("encoder", "views", "tokens", "features", "recipe", "precision"):
            if getattr(self, name):
                yield f"{name} is none of an ensemble's, which has members"
        if unknown := [key for key in self.settings if key != "weights"]:
            yield f"settings {', '.join(unknown)}: an ensemble has `weights` alone"
        if (weights := self.settings.get("weights", "folds")) not in ENSEMBLE_WEIGHTS:
            yield not_one_of("weights", weights, ENSEMBLE_WEIGHTS)


class Task(Settings):
    """One of the tasks that a study compares its systems over.

    name : unique; results go to a folder of that name
    train, tests : data sets, as of a study
    on : the evaluation set that is scored ("crc-100k:test"); "": the first that was not trained on, and the
        training set out of fold where there is no other
    metric : higher is better; one of balanced_accuracy, auroc, average_precision, accuracy, f1, kappa; of
        numbers pearson, spearman, r2 (means over the targets)
    folds, settings : of its probes, over the study's; settings of the study's [probe] that are of the other
        kind of labels (C, where they are numbers; components, where they are classes) do not hold here
    """

    name: str
    train: str
    tests: tuple[str, ...] = ()
    on: str = ""
    metric: str = "balanced_accuracy"
    folds: str | int = ""
    settings: Mapping[str, Any] = {}

    @property
    def config(self) -> type[ProbeConfig] | type[TargetConfig]:
        """What its probes' settings are of."""
        return TargetConfig if self.metric in OF_TARGETS else ProbeConfig

    def probe(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of its probes; shared : those of the study."""
        other = ProbeConfig if self.config is TargetConfig else TargetConfig
        foreign = other.model_fields.keys() - self.config.model_fields.keys()
        return {**{key: value for key, value in shared.items() if key not in foreign}, **self.settings}

    def faults(self) -> Iterable[str]:
        if "name" in self.model_fields_set:
            yield from _faults_of_name(self.name)
        if self.metric not in OF_TASKS:
            yield not_one_of("metric", self.metric, OF_TASKS)


class Study(Settings):
    """A study file.

    train, tests : data sets, by the name of a manifest or as a .toml file beside the study file
    views, tokens : of the probes whose system names none
    folds, probe : settings of all probes, see ProbeConfig; extract : options of all extractions, see
        extract/options.py; finetune : of all trainings, see finetune.run.run_finetune (engine, workers, ...)
    robustness : of the probes' embeddings to domains, see probe/robustness.py; None: not measured
    published : figures to set beside ours, see probe/report/published.py
    primary_set, primary_metric : the evaluation set ("ami-br:test", or a data set's name) and the metric
        (balanced_accuracy, auroc, average_precision) that the question is about, named before the results are
        seen; the page leads with them
    map : of the embeddings on the page, "pca" or "umap" (pip install 'patchbank[map]')
    tasks : instead of train and tests, several: systems are ranked over them (study_tasks.py)
    folder : where the study file is
    """

    name: str
    title: str
    train: str = ""
    about: str = ""
    tests: tuple[str, ...] = ()
    views: tuple[str, ...] = ("full",)
    tokens: tuple[str, ...] = ()
    folds: str | int = "balanced"
    probe: Mapping[str, Any] = {}
    extract: Mapping[str, Any] = {}
    finetune: Mapping[str, Any] = {}
    robustness: RobustnessConfig | None = None
    published: str = ""
    primary_set: str = ""
    primary_metric: str = ""
    map: Projection = "pca"
    systems: tuple[System, ...] = Field(alias="system")
    tasks: tuple[Task, ...] = Field((), alias="task")
    _folder: Path = PrivateAttr(Path())

    def faults(self) -> Iterable[str]:
        if "name" in self.model_fields_set:
            yield from _faults_of_name(self.name)
        systems = [dict(system) for system in self.systems if isinstance(system, Mapping | System)]
        if {"system", "systems"} & self.model_fields_set and not systems:
            yield "there is no [[system]]"
        yield from _faults_of_names(
            [name for system in systems if isinstance(name := system.get("name"), str)]
        )
        yield from _faults_of_trainings(systems)
        yield from _faults_of_ensembles(systems)
        yield from self._faults_of_data()
        yield from self._faults_of_tasks(systems)
        yield from _set_elsewhere("[extract]", self.extract, OF_SYSTEMS)
        yield from _set_elsewhere("[finetune]", self.finetune, OF_TRAINING)
        yield from _faults_of_settings({} if self.tasks else self.probe, systems)

    def _faults_of_data(self) -> Iterable[str]:
        sets = [*([self.train] if self.train else []), *self.tests]
        yield from (f"the data set {name!r} is named twice" for name, n in Counter(sets).items() if n > 1)
        leading = dict.fromkeys((*SHOWN, *SHOWN_OF_CLASSES, "kappa"))
        if self.primary_metric and self.primary_metric not in leading:
            yield not_one_of("primary_metric", self.primary_metric, leading)
        primary = self.primary_set
        files = any(name.endswith(".toml") for name in sets)  # their data sets' names are in the files
        if primary and not files and primary.partition(":")[0] not in sets:
            yield f"primary_set {primary!r} is of none of the study's data sets ({', '.join(sets)})"

    def _faults_of_tasks(self, systems: Sequence[Mapping[str, Any]]) -> Iterable[str]:
        tasks = [
            task if isinstance(task, Task) else Task.model_construct(**{"name": "without a name", **task})
            for task in self.tasks
            if isinstance(task, Mapping | Task)
        ]
        if not tasks:
            if not self.train and "train" not in self.model_fields_set:
                yield "train is missing: name the data set to train on, or several [[task]]"
            return
        for key in ("train", "tests", "primary_set", "primary_metric", "published"):
            if getattr(self, key):
                yield f"{key}: the study has [[task]], each of which has data sets of its own"
        yield from _faults_of_names([task.name for task in tasks if isinstance(task.name, str)], "tasks")
        for task in tasks:
            if not isinstance(task.settings, Mapping):
                continue
            for fault in _refused(task.probe(self.probe), task.config):
                yield f"task {task.name}: {fault}"

    def of_task(self, task: Task) -> "Study":
        """The study of one task alone."""
        about = {
            "name": task.name,
            "title": f"{self.title}: {task.name}",
            "train": task.train,
            "tests": task.tests,
        }
        about |= {"folds": task.folds or self.folds, "probe": task.probe(self.probe), "tasks": ()}
        about |= {"primary_set": task.on, "primary_metric": "" if task.metric in OF_TARGETS else task.metric}
        study = self.model_copy(update=about)
        study._folder = self._folder
        return study

    @property
    def folder(self) -> Path:
        return self._folder

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a study file. Raises InvalidRequest with all its faults."""
        study = cls.read(read_table(path, "the study"), where=str(path))
        study._folder = path.parent
        return study

    def of(self, *stages: str) -> list[System]:
        """The systems of these stages."""
        return [system for system in self.systems if system.stage in stages]

    def views_of(self, system: System) -> dict[tuple[str, tuple[str, ...]], tuple[str, ...]]:
        """(encoder, token policies) -> the views that a probe wants of them."""
        if not system.features:
            return {(system.encoder, system.tokens or self.tokens): system.views or self.views}
        policies: dict[tuple[str, str], dict[str, None]] = {}
        for source in (source for feature_set in system.written_out for source in feature_set.sources):
            policies.setdefault((source.encoder, source.view), {})[source.tokens or ""] = None
        views: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
        for (encoder, view), tokens in policies.items():
            views[encoder, tuple(tokens)] = (*views.get((encoder, tuple(tokens)), ()), view)
        return views

    def beside(self, name: str) -> str:
        """A .toml file is named as seen from the study file; other names are left as they are."""
        return str(self.folder / name) if name.endswith(".toml") else name

    def manifest(self, name: str, data: Path) -> Path:
        """The file of a data set: as the study names it, or in the folder `data`."""
        return Path(self.beside(name)) if name.endswith(".toml") else data / f"{name}.toml"

    def settings_of(self, system: System) -> dict[str, Any]:
        """The probe's settings of one system: its own over the study's, files as they are found from here."""
        settings = {"folds": self.folds, **self.probe, **system.settings}
        settings["folds"] = self._folds(settings["folds"])
        if settings.get("near_duplicates") not in (None, *NEAR_BY):
            settings["near_duplicates"] = str(self.folder / settings["near_duplicates"])
        return settings

    def training_folds(self) -> str | int:
        """The folds of all trainings."""
        return self._folds(self.folds)

    def _folds(self, folds: str | int) -> str | int:
        """A fold file is beside the study file, as card files are."""
        file = self.folder / str(folds)
        return str(file) if file.suffix == ".toml" and file.exists() else folds

    def only(self, names: Sequence[str]) -> "Study":
        """The study with these systems alone; all of them for no names."""
        known = [system.name for system in self.systems]
        for name in names:
            if name not in known:
                raise InvalidRequest(f"the study {self.name} has no system {name!r}{near(name, known)}")
        chosen = tuple(system for system in self.systems if system.name in names)
        return self.model_copy(update={"systems": chosen}) if names else self


def shipped_studies() -> dict[str, Path]:
    """Studies that come with patchbank, by name."""
    files = sorted((SHIPPED / "studies").glob("*.toml"))
    return {file.stem: file for file in files if not file.stem.startswith("published")}


def load_study(name: str | os.PathLike[str]) -> Study:
    """Read a study: a TOML file, or the name of one that ships with patchbank (manifests/studies).

    Raises InvalidRequest for an unknown name (with the near one), unknown keys, impossible settings, two
    systems of one name; all faults in one error.
    """
    path, shipped = Path(name), shipped_studies()
    if path.suffix != ".toml":
        if str(name) not in shipped:
            known = f"FILE.toml, or {', '.join(shipped)}"
            raise InvalidRequest(f"there is no study {str(name)!r}{near(str(name), shipped)} ({known})")
        path = shipped[str(name)]
    return Study.load(path)


def _faults_of_name(name: str) -> Iterable[str]:
    if not name.strip() or not name.isprintable():
        yield f"the name {name!r} is empty or holds control characters"


def _faults_of_names(names: Sequence[str], what: str = "systems") -> Iterable[str]:
    yield from (f"two {what} are called {name!r}" for name, n in sorted(Counter(names).items()) if n > 1)
    folders: dict[str, str] = {}  # where results go
    for name in dict.fromkeys(names):
        other = folders.setdefault(safe_name(name).lower(), name)
        if other != name:
            yield f"{other!r} and {name!r} differ in punctuation or case only: results go to folders by name"


def _faults_of_trainings(systems: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    folders: dict[tuple[Any, Any], Any] = {}  # where trained models go: ENCODER+RECIPE
    for system in systems:
        stage, name, encoder = (system.get(key) for key in ("stage", "name", "encoder"))
        recipe = system.get("recipe") or stage
        if stage in ("lora", "full") and isinstance(encoder, str) and isinstance(recipe, str):
            other = folders.setdefault((encoder, recipe), name)
            if other != name:
                yield (
                    f"{other!r} and {name!r} fine-tune {encoder!r} with the recipe {recipe!r}, and models go "
                    "to folders by encoder and recipe: give one of them a recipe of another name (a TOML "
                    "file with its settings)"
                )


def _faults_of_ensembles(systems: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    stages = {system.get("name"): system.get("stage", "probe") for system in systems}
    single = [name for name, stage in stages.items() if stage != "ensemble"]
    for system in systems:
        if system.get("stage") != "ensemble":
            continue
        name, members = system.get("name"), system.get("members") or single
        for member in members:
            if member not in stages:
                known = near(str(member), map(str, single))
                yield f"{name!r} has a member {member!r} that is no system{known}"
            elif member not in single:
                yield f"{name!r} has the ensemble {member!r} as a member: name that one's members"
        if len(set(members)) < 2:
            yield f"the ensemble {name!r} needs two members or more"


def _set_elsewhere(where: str, options: Mapping[str, Any], others: Sequence[str]) -> Iterable[str]:
    for option in others:
        if option in options:
            yield f"{where} {option}: the study, its systems or the command set that"


def _faults_of_settings(shared: Mapping[str, Any], systems: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """What neither a study of classes nor one of numbers takes, before anything runs."""
    known = list(_refused(shared))
    yield from (f"[probe] {fault}" for fault in known)
    for system in systems:
        settings = system.get("settings", {})
        if system.get("stage", "probe") == "probe" and isinstance(settings, Mapping):
            for fault in _refused({**shared, **settings}):
                if fault not in known:
                    yield f"system {system.get('name', 'without a name')}: {fault}"


def _refused(settings: Mapping[str, Any], *kinds: type[ProbeConfig] | type[TargetConfig]) -> Iterable[str]:
    """Why none of these configurations takes the settings, as the first says it; none given: any."""
    faults = [_faults_of(kind, settings) for kind in kinds or (ProbeConfig, TargetConfig)]
    return faults[0] if all(faults) else []


def _faults_of(kind: type[ProbeConfig] | type[TargetConfig], settings: Mapping[str, Any]) -> Sequence[str]:
    try:
        kind.from_dict({**settings, "features": ["encoder"]})
    except InvalidSettings as error:
        return error.faults
    except InvalidRequest as error:
        return [str(error)]
    return []
