"""The result of a probe study: one document and one table of predictions; written, read, shown."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from ...errors import ProbeError
from ...files import sha256, write_atomically, write_text
from ...terminal import note
from ...texts import write_csv
from ..artefact import ABOUT, ARRAYS
from ..config import parse_features
from ..model import About, ProbeModel, load_probes, pick_probe, save_probes
from .display import SHOWN, SHOWN_OF_TARGETS, TITLES, Table, interval, mean_and_sd, shown_of_classes
from .older import PROBES as OLD_PROBES
from .older import document_of_version_1, predictions_of_version_1, probes_of_npz
from .schema import KINDS, SWEEP, UNCERTAINTY, Results, Role, Score

FORMAT = "patchbank-probe-results"
FORMAT_VERSION = 2  # 2: one scale for probability and threshold; digests
CLASSES_VERSION = 3  # of more than two classes
PREDICTIONS = "predictions.parquet"
UNGROUPED = "no slides or patients are known, the intervals take patches as independent and are too narrow"
NESTED = (
    f"Out of fold, {SWEEP!r} is the estimate of what was chosen: what scores a fold was chosen without it. "
)
OPTIMISM = (  # tests/benchmarks/protocol_pooling.py has the figures
    "Out of fold, the score of * is that of the winner of a comparison on these same rows, too high by .05 "
    "to .13 in simulations of 10 to 40 candidates on 20 to 40 slides."
)


MOST_TARGETS = 12  # on the terminal


class ProbeResult:
    """What `run_probe` returns.

    results : what results.json holds, see `schema.Results`; or the same as plain JSON values
    predictions : DataFrame, one row a prediction; see `describe.predictions_table`
    probes : feature set -> role ("refit", "ensemble") -> what predicts further patches; none where networks
        were trained
    Raises ProbeError where plain values are no results.
    """

    def __init__(
        self,
        results: Results | Mapping[str, Any],
        predictions: pd.DataFrame,
        probes: Mapping[str, Mapping[str, ProbeModel]] | None = None,
    ) -> None:
        try:
            self.results = results if isinstance(results, Results) else Results.model_validate(results)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            raise ProbeError(f"these are no results of a probe: {'; '.join(faults)}") from error
        self.predictions = predictions
        self.probes = {
            name: {role: self._described(probe, name, role) for role, probe in of.items()}
            for name, of in (probes or {}).items()
        }

    @property
    def document(self) -> dict[str, Any]:
        """The results as plain JSON values, made again: changing them changes nothing here."""
        return self.results.to_json()

    @property
    def chosen(self) -> str:
        """The feature set that the folds choose."""
        return self.results.chosen

    @property
    def ungrouped(self) -> list[str]:
        """Evaluation sets of which no slides or patients are known: nothing is significant there."""
        return self.results.ungrouped

    @property
    def model(self) -> ProbeModel:
        """The probe of the chosen feature set: the refit (of a published recipe the ensemble).

        Raises InvalidRequest where there is none: merged systems, trained networks.
        """
        probes = [probe for of in self.probes.values() for probe in of.values()]
        return pick_probe(probes, self.chosen, None, where="this result")

    def _described(self, probe: ProbeModel, features: str, role: str) -> ProbeModel:
        """The probe with what it is for, as far as the results know it."""
        train, scored = self.results.train, self.results.whole(features=features)
        out_of_fold = (Role.OOF, Role.VALIDATION)
        kept = ("dataset", "version", "licence", "source", "n", "n_positive", "n_groups", "rows")
        about = About(
            features=features,
            role=role,
            classes=tuple(train.classes),
            positive=train.positive,
            targets=tuple(train.targets),
            stores={
                str(source): self.results.stores[str(source)].to_json()
                for source in parse_features(features).sources
                if str(source) in self.results.stores
            },
            training={key: getattr(train, key) for key in kept},
            scores={
                one.dataset: {metric: list(value) for metric, value in one.metrics.items()}
                for one in scored
                if one.role == role or one.role in out_of_fold
            },
        )
        return replace(probe, about=about)

    def save(self, folder: str | os.PathLike[str], *, request: str | None = None) -> Path:
        """Write predictions.parquet, the probes, results.csv and, last, results.json.

        Each appears whole or not at all. results.json has the digests of the others and of itself: files of
        two runs, or changed ones, are not read as one result.

        request : what a study asked for, of which this is the answer; see `complete_for`
        """
        folder = Path(folder)
        write_atomically(
            folder / PREDICTIONS,
            lambda part: self.predictions.to_parquet(part, index=False, compression="zstd"),
        )
        names = [PREDICTIONS]
        if self.probes:
            save_probes(
                folder, [one for of in self.probes.values() for one in of.values()], chosen=self.chosen
            )
            names += [ABOUT, ARRAYS]
        write_csv(folder / "results.csv", self.scores())
        digests = {name: sha256(folder / name) for name in names}
        document = {**self.to_json(), **({"request": request} if request else {}), "files": digests}
        text = json.dumps({**document, "digest": _digest(document)}, indent=1, allow_nan=False)
        write_text(folder / "results.json", text)
        return folder

    def to_json(self) -> dict[str, Any]:
        """The document with the format's name and version in front."""
        version = CLASSES_VERSION if self.results.train.n_positive is None else FORMAT_VERSION
        return {"format": FORMAT, "version": version, **self.document}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ProbeResult":
        """Read what `save` wrote. Raises ProbeError for anything else, naming what is wrong."""
        folder = Path(folder)
        folder = folder.parent if folder.name == "results.json" else folder
        document = read_document(folder)
        digests = document.pop("files", None)
        if digests is None and not (folder / PREDICTIONS).is_file():  # version 1 has no digests
            raise ProbeError(f"{folder / PREDICTIONS} is missing: it belongs to results.json")
        if digests is not None:
            _check_files(folder, digests)
        try:
            predictions = pd.read_parquet(folder / PREDICTIONS)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ProbeError(f"{folder / PREDICTIONS} cannot be read: {error}") from error
        if digests is None:
            predictions = predictions_of_version_1(predictions)
        probes: dict[str, dict[str, ProbeModel]] = {}
        if ABOUT in (digests or {}):
            for probe in load_probes(folder)[0]:
                probes.setdefault(probe.about.features, {})[probe.about.role] = probe
        elif OLD_PROBES in (digests or {}):
            probes = probes_of_npz(folder / OLD_PROBES)
        try:
            return cls(document, predictions, probes)
        except ProbeError as error:
            raise ProbeError(f"{folder / 'results.json'}: {error}") from error

    def scores(self) -> pd.DataFrame:
        """Every score, one row a value: features, role, dataset, domain, subset, n, ..., kind, metric, value,
        low, high, standard_error, degrees_of_freedom, design_effect, method, reason. kind: "metrics" at
        probability 0.5; "at_threshold", "temperature", "platt": chosen on folds. FORMAT.md has all keys.
        """
        return scores_table(self.results.scores)

    @property
    def leading_metrics(self) -> Sequence[str]:
        """Names of the metrics that are shown first."""
        if self.results.targets:
            return SHOWN_OF_TARGETS
        if self.results.multiclass:
            return shown_of_classes(ordered=self.results.train.ordered)
        return SHOWN

    def leaderboard(self) -> pd.DataFrame:
        """The scores that stand for each model on each whole set, a row each, see `Results.leaderboard`.

        Columns: dataset, features, role, n, and METRIC, METRIC_low, METRIC_high of each metric that leads.
        """
        return pd.DataFrame(
            {
                "dataset": one.dataset,
                "features": one.features,
                "role": one.role_name,
                "n": one.n,
                **{
                    f"{metric}{end}": value
                    for metric in self.leading_metrics
                    for end, value in zip(("", "_low", "_high"), one.estimate(metric), strict=True)
                },
            }
            for one in self.results.leaderboard()
        )

    @property
    def plot(self) -> Any:
        """The figures of the result, as axes of matplotlib: `result.plot.roc()`; `report.notebook.Plots`."""
        # by its name, as pandas finds its plots: the report imports this module
        return import_module("..report.notebook", __package__).Plots(self)

    def __repr__(self) -> str:
        features = self.chosen or ", ".join(self.leaderboard()["features"].unique())
        return f"<{type(self).__name__} of {self.results.train.dataset}: {features}>"

    def _repr_html_(self) -> str:
        table = self.leaderboard().to_html(index=False, float_format="{:.3f}".format, na_rep="")
        notes = "".join(f"<li>{escape(text)}</li>" for text in self.results.notes)
        return f"{table}<ul>{notes}</ul>"

    def optimism(self, mark: str = "*") -> str:
        """What is to be said of the out-of-fold score of what the same folds chose (marked by `mark`): ""
        where there was nothing to choose from, or no score out of fold is shown.
        """
        train = self.results.train.dataset
        shown = {one.features for one in self.results.leaderboard() if one.dataset == train}
        if self.chosen not in shown or len(shown) < 2:
            return ""
        nested = NESTED if SWEEP in shown else ""
        return nested + OPTIMISM.replace("*", mark)

    def _stopped(self) -> str:
        """Where the training of fine-tuned models ended."""
        chosen_on = {(model.recipe or {}).get("choose_on", "fold") for model in self.results.models}
        ways = {
            "fold": "stopped where its own fold was best",
            "inner": "stopped where an inner fold of its training rows was best",
            "none": "after all its epochs",
        }
        return " or ".join(ways[way] for way in ways if way in chosen_on)

    def show(self) -> None:
        """Print the leaderboard on the terminal, in the form that its width allows."""
        level, intervals = round(100 * self.results.config.level), self.results.config.bootstrap > 0
        how = f"Scored by the mean probability of the folds' models, each {self._stopped()}."
        if any(model.choice for model in self.results.models):
            how = (
                "Train rows are scored out of fold, the other sets by the refit; everything is chosen on "
                f"folds of the train rows, * by cross-validation over all folds. {self.optimism()}"
            ).strip()
        metrics, train = self.leading_metrics, self.results.train
        if self.results.multiclass:
            means = "AUROC is the mean" if train.ordered else "AUROC and F1 are means"
            weights = "; kappa has quadratic weights" if train.ordered else ""
            how = f"{means} over the {len(train.classes)} classes, each against the rest{weights}. {how}"
        if self.results.targets:
            how = f"Means over the {len(train.targets)} targets. {how}" if train.targets[1:] else how
        rows = [
            (
                one.dataset,
                one.features + (" *" if one.features == self.chosen else ""),
                one.n,
                *(interval(one.estimate(name)) for name in metrics),
            )
            for one in self.results.leaderboard()
        ]
        Table(["scored on", "features", "patches", *(TITLES[name] for name in metrics)], rows, left=2).show(
            title="Probe results",
            caption=f"In brackets: {level} % intervals over whole groups. {how}" if intervals else how,
        )
        self._show_targets()
        titles = [TITLES[name] for name in SHOWN]
        for one in self.results.experts:
            numbers = ", ".join(
                f"{TITLES[m]} {interval(one.estimate(m))}" for m in (*metrics[:1], *metrics[2:])
            )
            note(f"{one.expert} against the labels of {one.dataset} ({one.n} patches): {numbers}.")
        if repeats := self.results.repeats:
            of = {(r.dataset, r.features, r.role): r for r in repeats.scores}
            spread = [
                (
                    one.dataset,
                    one.features,
                    *(mean_and_sd(of[one.dataset, one.features, one.role].spread(m)) for m in SHOWN),
                )
                for one in self.results.leaderboard()
            ]
            Table(["scored on", "features", *titles], spread, left=2).show(
                title=f"Mean and standard deviation over {len(repeats.seeds)} runs with other folds"
            )
        for text in self.results.notes:
            note(f"Note: {text}.")
        if self.results.not_recorded:
            note(f"Not recorded: {'; '.join(self.results.not_recorded)}.")
        if self.ungrouped:
            note(f"{', '.join(self.ungrouped)}: {UNGROUPED}.")

    def _show_targets(self) -> None:
        """Print each target of the chosen feature set, the best predicted first; on the last set."""
        of_chosen = [
            s for s in self.results.leaderboard() if s.features == self.chosen and len(s.targets) > 1
        ]
        if not of_chosen:
            return
        score = of_chosen[-1]
        ranked = sorted(score.targets, key=lambda one: -(one.estimate("pearson").value or -1))
        rows = [(one.target, *(interval(one.estimate(m)) for m in SHOWN_OF_TARGETS)) for one in ranked]
        more = len(rows) - MOST_TARGETS
        Table(["target", *(TITLES[m] for m in SHOWN_OF_TARGETS)], rows[:MOST_TARGETS]).show(
            title=f"{self.chosen} on {score.dataset}, target by target",
            caption="Highest Pearson first." + (f" The other {more} are in results.csv." if more > 0 else ""),
        )


def read_document(folder: Path) -> dict[str, Any]:
    """results.json without format, version and digest, as it was written; of version 1 in today's form and
    without `files`. Raises ProbeError.
    """
    path = folder / "results.json"
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ProbeError(f"{path} cannot be read as results of `patchbank probe run`: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ProbeError(f"{path} is not a results.json of `patchbank probe run` (format {FORMAT})")
    version = document.get("version")
    if version not in range(1, CLASSES_VERSION + 1):
        raise ProbeError(
            f"{path} has version {version!r} of {FORMAT}; this patchbank reads versions 1 to "
            f"{CLASSES_VERSION}: upgrade patchbank"
        )
    if version == 1:
        try:
            document = document_of_version_1(document)
        except (KeyError, TypeError, ValueError) as error:
            raise ProbeError(f"{path} is not a results.json of version 1: {error!r}") from error
    elif document.pop("digest", None) != _digest(document):
        raise ProbeError(
            f"{path} was changed after it was written, so its numbers are those of no run. "
            "Fix: run the probe again"
        )
    return {key: value for key, value in document.items() if key not in ("format", "version")}


def complete_for(folder: Path, request: str) -> bool:
    """Whether a folder has the whole result of one request (`document["request"]`), and of no other."""
    try:
        document = read_document(folder)
        _check_files(folder, document.get("files", {}))
    except ProbeError:
        return False
    return document.get("request") == request


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    for name in {PREDICTIONS, *digests}:
        if name not in (PREDICTIONS, ABOUT, ARRAYS, OLD_PROBES):
            raise ProbeError(f"{folder / 'results.json'} lists a file {name!r} that no result has")
        file = folder / name
        if not file.is_file():
            raise ProbeError(f"{file} is missing: it belongs to results.json")
        if sha256(file) != digests.get(name):
            raise ProbeError(
                f"{file} is not the one that results.json was written with: a run was interrupted while it "
                "wrote, or the file was changed. Fix: run the same command again"
            )


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(document)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def scores_table(scores: Sequence[Score]) -> pd.DataFrame:
    """One row a number: see `ProbeResult.scores`."""
    about = ("dataset", "domain", "subset", "n", "n_positive", "n_groups", "inflation")
    return pd.DataFrame(
        {
            "features": score.features,
            "role": score.role_name,
            **{key: getattr(score, key) for key in about},
            "kind": kind,
            "metric": metric,
            "value": one.value,
            "low": one.low,
            "high": one.high,
            **{key: getattr(one, key) for key in UNCERTAINTY},
        }
        for score in scores
        for kind, values in [
            *((kind, getattr(score, kind)) for kind in KINDS),
            *((f"target {one.target}", one.metrics) for one in score.targets),
        ]
        for metric, one in values.items()
    )
