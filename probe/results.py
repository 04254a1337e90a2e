"""The result of a probe study: one document and one table of predictions; written, read, shown."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ProbeError
from ..files import write_atomically, write_text
from ..terminal import print_table

FORMAT = "patchbank-probe-results"
FORMAT_VERSION = 1
SWEEP = "chosen on folds"  # the name of the sweep as a whole, the choice of features being part of it
TRAIN_ROLES = ("oof", "validation")  # of the train rows' scores
SHOWN = ("balanced_accuracy", "auroc", "average_precision")


class ProbeResult:
    """What `run_probe` returns.

    document : dict of plain JSON values: config, provenance, data, folds, chosen, models, scores,
        comparisons, ...
    predictions : DataFrame, one row a prediction; see `run.predictions_table`
    """

    def __init__(self, document: dict[str, Any], predictions: pd.DataFrame) -> None:
        self.document = document
        self.predictions = predictions

    @property
    def chosen(self) -> str:
        """The feature set that the folds choose."""
        return self.document["chosen"]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write predictions.parquet, results.csv and, last, results.json; each whole or not at all."""
        folder = Path(folder)
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_atomically(
            folder / "predictions.parquet",
            lambda part: self.predictions.to_parquet(part, index=False, compression="zstd"),
        )
        write_atomically(folder / "results.csv", lambda part: self.scores().to_csv(part, index=False))
        write_text(folder / "results.json", text)
        return folder

    def to_json(self) -> dict[str, Any]:
        """The document with the format's name and version in front."""
        return {"format": FORMAT, "version": FORMAT_VERSION, **self.document}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ProbeResult":
        """Read what `save` wrote. Raises ProbeError for anything else, naming what is wrong."""
        folder = Path(folder)
        path = folder / "results.json" if folder.is_dir() else folder
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ProbeError(f"{path} cannot be read as results of `patchbank probe run`: {error}") from error
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ProbeError(f"{path} is not a results.json of `patchbank probe run` (format {FORMAT})")
        version = document.pop("version", None)
        if version != FORMAT_VERSION:
            raise ProbeError(
                f"{path} has version {version!r} of {FORMAT}; this patchbank reads version {FORMAT_VERSION}: "
                "upgrade patchbank"
            )
        table = path.with_name("predictions.parquet")
        if not table.exists():
            raise ProbeError(f"{table} is missing: results.json and predictions.parquet belong together")
        return cls(document, pd.read_parquet(table))

    def scores(self) -> pd.DataFrame:
        """Every score, one row a value: features, role, dataset, domain, subset, n, ..., kind, metric, value,
        low, high. kind: "metrics" at probability 0.5; "at_threshold", "temperature", "platt": chosen on
        folds."""
        records = []
        for record in self.document["scores"]:
            about = {k: v for k, v in record.items() if not isinstance(v, dict)}
            for kind, values in record.items():
                if isinstance(values, dict):
                    records += [
                        {**about, "kind": kind, "metric": metric, "value": v, "low": low, "high": high}
                        for metric, (v, low, high) in values.items()
                    ]
        return pd.DataFrame(records)

    def leaderboard(self) -> list[dict[str, Any]]:
        """Whole-set records at probability 0.5: train rows out of fold, evaluation sets by the refit (by the
        ensemble where there is none); in the order of the data sets, best criterion on the folds first."""
        order = {m["features"]: -m["criterion"] for m in self.document["models"]}
        sets = [d["dataset"] for d in self.document["data"]]
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for role in ("ensemble", "refit", "oof"):  # later ones go first
            for record in self.document["scores"]:
                if record["features"] == SWEEP and role != "oof":
                    continue  # on other sets it is the chosen feature set's refit
                if record["role"] == role and not record["domain"] and record["subset"] == "raw":
                    found[sets.index(record["dataset"]), record["features"]] = record
        return [found[key] for key in sorted(found, key=lambda k: (k[0], order.get(k[1], -float("inf"))))]

    def show(self) -> None:
        """Print the leaderboard on the terminal, in the form that its width allows."""
        level = round(100 * self.document["config"]["level"])
        how = "Scored by the mean probability of the folds' models, each stopped where its own fold was best."
        if any("choice" in model for model in self.document["models"]):
            how = (
                "Train rows are scored out of fold, the other sets by the refit; "
                "everything is chosen on folds of the train rows, * by the folds as a whole."
            )
        rows = [
            (
                record["dataset"],
                record["features"] + (" *" if record["features"] == self.chosen else ""),
                record["n"],
                *(_cell(record["metrics"][name]) for name in SHOWN),
            )
            for record in self.leaderboard()
        ]
        print_table(
            ("scored on", "features", "patches", "balanced accuracy", "AUROC", "average precision"),
            rows,
            lead=2,
            right=(3, 4, 5),
            title="Probe results",
            caption=f"In brackets: {level} % intervals over whole groups. {how}",
        )


def _cell(value: list[float | None]) -> str:
    v, low, high = value
    if v is None:
        return "-"
    return f"{v:.3f}" if low is None or high is None else f"{v:.3f} [{low:.3f}, {high:.3f}]"
