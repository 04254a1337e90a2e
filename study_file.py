"""A study file: which systems are compared, on which data sets, under which settings (TOML)."""

import difflib
import os
import tomllib
from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from .cache.identity import safe_name
from .errors import InvalidRequest
from .probe.config import NEAR_BY, ProbeConfig
from .probe.report.projection import Projection
from .probe.results.display import SHOWN
from .settings import SHIPPED, read_toml

STAGES = ("probe", "lora", "full")
OF_TRAINING = {"train", "tests", "encoder", "recipe", "out", "folds", "device", "checkpoint", "weights_dir"}
OF_TRAINING |= {"trust_code", "progress"}  # what run_finetune is told by the command or another key
OF_SYSTEMS = {"view", "tokens", "precision", "checkpoint", "weights_dir", "device", "trust_code"}


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of a study: an encoder and what is done with it.

    name : shown in tables. stage : "probe" (cached embeddings), "lora" or "full" (fine-tuning)
    encoder : a card's id, "timm:NAME", "hf:ORG/NAME", or a card file beside the study file
    views, tokens : what a probe may choose from (none: the study's; no tokens at all: the encoder's own)
    recipe : of the fine-tuning; none: the stage's
    settings : of the probe, over the study's; or of the recipe
    precision : of the forward pass; None: as card and device have it
    published : the published systems of the same stage to set it beside; none: the one of its name
    """

    name: str
    encoder: str
    stage: str = "probe"
    views: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    published: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file.

    train, tests : data sets, by the name of a manifest or as a .toml file beside the study file
    views, tokens : of the probes whose system names none
    folds, probe : settings of all probes, see ProbeConfig; extract : options of all extractions, see
        extract/options.py; finetune : of all trainings, see finetune.run.run_finetune (engine, workers, ...)
    published : figures to set beside ours, see probe/report/published.py
    primary_set, primary_metric : the evaluation set ("ami-br:test", or a data set's name) and the metric
        (balanced_accuracy, auroc, average_precision) that the question is about, named before the results are
        seen; the page leads with them
    map : of the embeddings on the page, "pca" or "umap" (pip install 'patchbank[map]')
    folder : where the study file is
    """

    name: str
    title: str
    train: str
    about: str = ""
    tests: tuple[str, ...] = ()
    views: tuple[str, ...] = ("full",)
    tokens: tuple[str, ...] = ()
    folds: str | int = "balanced"
    probe: Mapping[str, Any] = field(default_factory=dict)
    extract: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    primary_set: str = ""
    primary_metric: str = ""
    map: Projection = "pca"
    systems: tuple[System, ...] = ()
    folder: Path = Path()

    def of(self, *stages: str) -> list[System]:
        """The systems of these stages."""
        return [system for system in self.systems if system.stage in stages]

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
        found = self.folder / str(folds)
        return str(found) if found.suffix == ".toml" and found.exists() else folds

    def only(self, names: Sequence[str]) -> "Study":
        """The study with these systems alone; all of them for no names."""
        known = [system.name for system in self.systems]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InvalidRequest(f"the study {self.name} has no system {name!r}{hint}")
        return replace(self, systems=tuple(s for s in self.systems if s.name in names)) if names else self


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
            near = difflib.get_close_matches(str(name), shipped, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidRequest(
                f"there is no study {str(name)!r}{hint} (FILE.toml, or {', '.join(shipped)})"
            )
        path = shipped[str(name)]
    try:
        document = read_toml(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"the study {path} cannot be read: {error}") from error
    faults: list[str] = []
    systems = []
    tables = document.pop("system", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidRequest(f"{path}: system is not a list of tables, each under [[system]]")
    for number, table in enumerate(tables, start=1):
        where = f"system {number} ({table.get('name', 'without a name')})"
        values = _known(System, table, where, faults)
        if table.get("stage", "probe") not in STAGES:
            faults.append(f"{where}: stage {table['stage']!r} is not one of {', '.join(STAGES)}")
        if {"name", "encoder"} <= set(values):
            systems.append(System(**values))
        else:
            faults.append(f"{where}: needs a name and an encoder")
    values = _known(Study, document, "the study", faults, without=("systems", "folder"))
    for key in ("name", "title", "train"):
        if key not in values:
            faults.append(f"{key} is missing")
    if not systems:
        faults.append("there is no [[system]]")
    names = [system.name for system in systems]
    for text in [values.get("name", "x"), *names]:
        if not text.strip() or not text.isprintable():
            faults.append(f"the name {text!r} is empty or holds control characters")
    faults += [f"two systems are called {n!r}" for n in sorted({n for n in names if names.count(n) > 1})]
    folders: dict[str, str] = {}  # where results go
    for one in dict.fromkeys(names):
        other = folders.setdefault(safe_name(one).lower(), one)
        if other != one:
            faults.append(
                f"{other!r} and {one!r} differ in punctuation or case only: results go to folders by name"
            )
    models: dict[tuple[str, str], str] = {}  # where trained models go: ENCODER+RECIPE
    for system in systems:
        if system.stage != "probe":
            other = models.setdefault((system.encoder, system.recipe or system.stage), system.name)
            if other != system.name:
                faults.append(
                    f"{other!r} and {system.name!r} fine-tune {system.encoder!r} with the recipe "
                    f"{system.recipe or system.stage!r}, and models go to folders by encoder and recipe: "
                    "give one of them a recipe of another name (a TOML file with its settings)"
                )
    if values.get("map", "pca") not in get_args(Projection):
        faults.append(f"map {values['map']!r} is not one of {', '.join(get_args(Projection))}")
    faults += _faults_of_primary(values)
    for option in OF_SYSTEMS & set(values.get("extract", {})):
        faults.append(f"[extract] {option}: a system says that, or the command")
    trained = [(f"system {s.name}", s.settings) for s in systems if s.stage != "probe"]
    for where, options in [("[finetune]", values.get("finetune", {})), *trained]:
        faults += [f"{where} {key}: the study or the command says that" for key in OF_TRAINING & set(options)]
    faults += _faults_of_settings(values.get("probe", {}), systems)
    if faults:
        raise InvalidRequest(f"{path}: " + "; ".join(faults))
    return Study(**values, systems=tuple(systems), folder=path.parent)


def _known(
    kind: type, table: Mapping[str, Any], where: str, faults: list[str], *, without: Sequence[str] = ()
) -> dict[str, Any]:
    allowed = {f.name: f.type for f in fields(kind) if f.name not in without}
    found = {}
    for key, value in table.items():
        near = difflib.get_close_matches(key, allowed, n=1)
        if key not in allowed:
            faults.append(f"{where}: unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        elif get_origin(allowed[key]) is tuple and isinstance(value, str):
            faults.append(f"{where}: {key} is a list, as [{value!r}]")
        elif not _fits(value, allowed[key]):
            faults.append(f"{where}: {key} = {value!r} has to be {_kind(allowed[key])}")
        else:
            found[key] = tuple(value) if isinstance(value, list) else value
    return found


KINDS = {str: "a text", int: "a whole number", tuple: "a list of texts", abc.Mapping: "a table"}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a TOML value can be a field of a type that is annotated here."""
    if isinstance(wanted, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    origin = get_origin(wanted) or wanted
    if origin is tuple:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str if origin is Literal else origin) and not isinstance(value, bool)


def _kind(wanted: Any) -> str:
    if isinstance(wanted, UnionType):
        return " or ".join(_kind(one) for one in get_args(wanted) if one is not NoneType)
    origin = get_origin(wanted) or wanted
    return "a text" if origin is Literal else KINDS[origin]


def _faults_of_primary(values: Mapping[str, Any]) -> Iterable[str]:
    metric, name = values.get("primary_metric", ""), values.get("primary_set", "")
    if metric and metric not in SHOWN:
        near = difflib.get_close_matches(metric, SHOWN, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        yield f"primary_metric {metric!r} is not one of {', '.join(SHOWN)}{hint}"
    known = [values.get("train", ""), *values.get("tests", ())]
    files = any(str(one).endswith(".toml") for one in known)  # their data sets' names are in the files
    if name and not files and name.partition(":")[0] not in known:
        yield f"primary_set {name!r} is of none of the study's data sets ({', '.join(known)})"


def _faults_of_settings(shared: Mapping[str, Any], systems: Sequence[System]) -> Iterable[str]:
    """What ProbeConfig and parse_views refuse, before anything runs."""
    for settings in [{}, *(system.settings for system in systems if system.stage == "probe")]:
        try:
            ProbeConfig.from_dict({**shared, **settings, "features": ["encoder"]})
        except InvalidRequest as error:
            yield str(error)
            return
