"""The page of a study: its systems, figures, maps and images, gathered from results, data sets and bank."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .datasets.manifest import Manifest
from .datasets.sources import open_source
from .datasets.steps import Sets
from .datasets.thumbnails import sprite_sheet, thumbnail
from .errors import ImageError, UnknownEncoder
from .extract.registry import load_card
from .extract.report import StoreReport
from .files import sha256, write_text
from .probe.config import Source, parse_features
from .probe.features import load, open_bank
from .probe.report.model import EmbeddingMap, LabelledImage, PublishedRow, StudyPage, SystemRow
from .probe.report.page import write_page
from .probe.report.projection import Projection, project
from .probe.report.published import HOW, beside_published, in_words, load_published, source_of
from .probe.report.study_tables import frame, markdown
from .probe.results.files import ProbeResult
from .probe.results.merge import merge_systems
from .probe.results.robustness import FILE, Robustness
from .steps import Places, State, Step, digest
from .study_file import Study, System
from .texts import write_csv

FILES = ("report.html", "report.md", "table.csv")
PAGE_IS_MADE_BY = ("probe", "study_page.py", "study_file.py", "datasets/thumbnails.py", "texts.py")
MAP_POINTS = 1500  # patches drawn in one map of embeddings, each with a thumbnail
MAP_ROWS = 50_000  # patches whose principal components are taken; of more so many are drawn
MAPS = 3  # maps on the page: of the best systems on the folds
TILE, COLUMNS = 48, 40  # pixels a side of a thumbnail, thumbnails in a row of the sprite


class StudyReport:
    """What a study's page is made of.

    steps : of all stages before the report
    stores : probed system -> encoder -> the stores that it chose from
    sets : the data sets that exist
    Raises InvalidRequest where the published figures cannot be read.
    """

    def __init__(
        self,
        study: Study,
        where: Places,
        state: State,
        *,
        sets: Sets,
        steps: Sequence[Step],
        stores: Mapping[str, Mapping[str, Sequence[StoreReport]]],
        figures: Mapping[str, Any],
    ) -> None:
        self.study, self.where, self.state = study, where, state
        self.sets, self.steps, self.figures = sets, steps, figures
        self.stores = {name: [s for some in of.values() for s in some] for name, of in stores.items()}
        self.results = {step.title: step.folder for step in steps if step.finished and step.folder}
        failed = [step for step in steps if step.state in ("blocked", "failed")]
        self.absent = {system: step.why for step in failed for system in step.systems}
        self.files = [where.out / name for name in FILES]
        measured = any(step.kind == "robustness" and step.finished for step in steps)
        self.robustness = where.out / FILE if measured else None

    def step(self) -> Step:
        """Writing the page and its tables: again when the study file, a result, a missing one or the code
        that writes them changes.
        """
        step = Step(kind="report", title=str(self.files[0]))
        if any(s.state == "to do" for s in self.steps):  # of a plan: what it will say is not known yet
            return step
        about = self.study.model_dump()
        versions = {name: sha256(folder / "results.json") for name, folder in self.results.items()}
        if self.robustness is not None:
            versions["robustness"] = sha256(self.robustness)
        rows = self.sets.digest(self.where.bank)
        step.request = digest(rows, about, self.figures, versions, self.absent, code_of_page())
        if self.state.get("report", "digest") == step.request and all(file.exists() for file in self.files):
            step.state = "cached"
            return step

        def report() -> None:
            self.state.forget("report", "digest")
            self._write()
            self.state.remember("report", "digest", step.request)

        step.action = report
        return step

    @cached_property
    def merged(self) -> ProbeResult | None:
        """The results of all systems as one, in the order of the study file; None where there are none."""
        order = [system.name for system in self.study.systems if system.name in self.results]
        return (
            merge_systems({name: ProbeResult.load(self.results[name]) for name in order}) if order else None
        )

    def page(self, steps: Sequence[Step]) -> StudyPage:
        """The page without maps and images. steps : for its log."""
        published = self._published()
        return StudyPage(
            title=self.study.title,
            about=self.study.about,
            result=self.merged,
            systems=tuple(self._row(system) for system in self.study.systems),
            primary_set=self.study.primary_set,
            primary_metric=self.study.primary_metric,
            published=tuple(published),
            published_source=f"{source_of(self.figures)}. {HOW}" if published else "",
            robustness=None if self.robustness is None else Robustness.load(self.robustness.parent),
            log=tuple((step.kind, step.title, step.state, step.seconds) for step in steps),
        )

    def _write(self) -> None:
        page = self.page(self.steps)
        if self.merged is not None:
            maps = embedding_maps(self.merged, self.sets, self.stores, self.where.bank, method=self.study.map)
            images = contradictions(self.merged, self.sets)
            page = replace(page, maps=tuple(maps), contradictions=tuple(images))
        html, text, table = self.files
        write_csv(table, frame(page))
        write_page(html, replace(page, table=table.read_bytes()))
        write_text(text, markdown(page))
        if self.merged is not None:  # `probe report OUT --figures` reads it
            self.merged.save(self.where.out)

    def _published(self) -> list[PublishedRow]:
        if self.merged is None or not self.figures:
            return []
        systems = {s.name: [(name, s.stage) for name in s.published or (s.name,)] for s in self.study.systems}
        # AMi-Br's own test split is called "ami-br:test"; other sets have the name of their manifest
        sets = self.merged.results.sets[1:]
        datasets = {name: name.partition(":")[0] for name in sets if name.partition(":")[2] in ("", "test")}
        return beside_published(self.merged, self.figures["published"], systems, datasets=datasets)

    def _row(self, system: System) -> SystemRow:
        about: dict[str, Any] = {
            "name": system.name,
            "encoder": " + ".join(system.encoders),
            "family": system.stage,
        }
        models = [] if self.merged is None else self.merged.results.models
        model = next((model for model in models if model.features == system.name), None)
        if model is None:
            name = (system.published or (system.name,))[0]
            published = in_words(self.figures.get("published", []), name, system.stage)
            why = self.absent.get(system.name, "not run")
            return SystemRow(**about, state="blocked", why=why, published=published)
        with suppress(UnknownEncoder):  # a network trained from random weights needs no card
            named = [self.study.beside(encoder) for encoder in system.encoders]
            cards = [load_card(name, trust_code=self.where.trust_code) for name in named]
            about["licence"] = ", ".join(dict.fromkeys(card.licence for card in cards))
        probed, shares = system.stage == "probe", model.weights or {}
        spent = [self.state.get("extract", encoder, {}) for encoder in system.encoders if probed]
        return SystemRow(
            **about,
            state="done",
            chosen=" + ".join(f"{share:.2f} {name}" for name, share in shares.items()) or model.chosen or "",
            dim=model.dim or 0,
            forwards=sum(record.get("forwards", 0) for record in spent),
            forwards_saved=sum(self._saved(one) for one in spent),
            extract_seconds=sum(one.get("seconds", 0.0) for one in spent),
            device=", ".join(dict.fromkeys(one["device"] for one in spent if one.get("device"))),
            fits=model.fits.fits if model.fits else 0,
            probe_seconds=model.took("cpu") if probed else 0.0,
            train_seconds=model.took("all") if system.stage in ("lora", "full") else 0.0,
        )

    def _saved(self, spent: Mapping[str, Any]) -> int:
        """Passes that were not made, against scripts that embed everything again for each fold's probe."""
        if not spent or self.merged is None:
            return 0
        return (self.merged.results.folds.n_splits - 1) * spent["forwards"]


def embedding_maps(
    merged: ProbeResult,
    sets: Sets,
    stores: Mapping[str, Sequence[StoreReport]],
    bank: Path,
    *,
    method: Projection,
) -> Iterator[EmbeddingMap]:
    """Maps of the best probed systems' embeddings, over all data sets."""
    if merged.results.targets:  # maps are coloured by class
        return
    drawn: dict[Source, StoreReport] = {}  # of a feature set its first source
    for model in merged.results.ranked:
        if model.chosen and model.features in stores:
            source = parse_features(model.chosen).sources[0]
            named = (source.encoder, source.view, source.tokens)
            fits = (s for s in stores[model.features] if (s.encoder, s.view, s.tokens) == named)
            drawn.setdefault(source, next(fits))
    manifests = {name: m.select(m.table["label"].to_numpy() != "") for name, m in sets.manifests.items()}
    total = sum(map(len, manifests.values()))
    of = method.upper()
    if total > MAP_ROWS:
        manifests = _some_of(manifests, MAP_ROWS)
        of += f" (of {MAP_ROWS:,} patches)"
    table = pd.concat([m.table.assign(dataset=name) for name, m in manifests.items()], ignore_index=True)
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:MAP_POINTS])
    sprite = sprite_sheet(_Joined(list(manifests.values())), rows.tolist(), tile=TILE, columns=COLUMNS)
    shown, train = table.iloc[rows], merged.results.train
    codes = (shown["label"] == train.positive).astype(int).tolist()
    if merged.results.multiclass:
        codes = [train.classes.index(label) for label in shown["label"]]
    for source, store in list(drawn.items())[:MAPS]:
        opened = open_bank(bank, precision=store.precision, dtype=store.dtype)
        options = {"encoder": source.encoder, "view": source.view, "tokens": source.tokens, "bank": opened}
        vectors = np.concatenate([load(m, **options) for m in manifests.values()])
        # the components of all patches; a neighbourhood map of those that are drawn
        linear = method == "pca"
        points, explained = project(vectors if linear else vectors[rows], method=method)
        yield EmbeddingMap(
            title=str(source),
            method=of,
            explained=explained,
            points=points[rows] if linear else points,
            patch_id=shown["patch_id"].tolist(),
            dataset=shown["dataset"].tolist(),
            domain=shown["domain"].tolist(),
            label=codes,
            total=total,
            sprite=sprite,
            tile=TILE,
            columns=COLUMNS,
        )


def _some_of(manifests: Mapping[str, Manifest], n: int) -> dict[str, Manifest]:
    """n rows of all manifests together, drawn at random, in their order."""
    ends = np.cumsum(list(map(len, manifests.values())))
    drawn = np.sort(np.random.default_rng(0).permutation(int(ends[-1]))[:n])
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = [0, *ends[:-1].tolist()]
    every = zip(manifests.items(), parts, starts, strict=True)
    return {name: manifest.select(part - start) for (name, manifest), part, start in every}


class _Joined:
    """The images of several manifests as one source."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.starts = np.cumsum([0, *map(len, manifests)])
        self.sources = [open_source(manifest) for manifest in manifests]

    def read(self, i: int) -> Any:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.sources[number].read(int(i - self.starts[number]))


def contradictions(merged: ProbeResult, sets: Sets) -> Iterator[tuple[LabelledImage, ...]]:
    """Groups of equal images that carry different labels."""
    rows = {p: (m, i) for m in sets.manifests.values() for i, p in enumerate(m.table["patch_id"])}
    leaks = merged.results.leaks
    for leak in leaks.leaks if leaks else ():
        if leak.kind != "labels":
            continue
        images = []
        for patch_id, _, label in leak.rows:
            manifest, row = rows[patch_id]
            try:
                jpeg = thumbnail(open_source(manifest).read(row), 224)
            except ImageError:
                jpeg = b""  # the images need not be on the machine that reports
            path = str(manifest.table["path"].iat[row])
            about = {"patch_id": patch_id, "dataset": manifest.header.name, "label": label, "path": path}
            images.append(LabelledImage(**about, jpeg=jpeg))
        yield tuple(images)


@cache
def code_of_page() -> str:
    """Digest of the files that merge results and write the page: 10 ms, and no version to forget."""
    root = Path(__file__).resolve().parent
    named = [root / name for name in PAGE_IS_MADE_BY]
    files = [file for path in named for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    code = [file for file in files if file.suffix in (".py", ".html", ".svg", ".css", ".js")]
    return digest(*(sha256(file) for file in code))


def figures_of(study: Study) -> Mapping[str, Any]:
    """The published figures that the study names. Raises InvalidRequest where they cannot be read."""
    return load_published(study.published) if study.published else {}
