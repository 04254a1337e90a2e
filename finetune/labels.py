"""What a network learns to predict: two classes, several (ordered or not), or numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..datasets.manifest import Header
from ..errors import InvalidRequest
from ..probe.config import ProbeConfig
from ..probe.data import class_names


@dataclass(frozen=True, kw_only=True)
class Labels:
    """One output for two classes (the logit of the second), else one a class or a number.

    Arrays of labels, y: of classes their codes, (n,); of numbers float64 (n, T).

    classes : names by code, of two the positive one last; () of numbers
    ordered : whether more than two classes are grades
    targets : names of the numbers; units : their means and standard deviations in the rows that train
    """

    classes: tuple[str, ...] = ("negative", "positive")
    ordered: bool = False
    targets: tuple[str, ...] = ()
    units: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return len(self.classes) == 2

    @property
    def outputs(self) -> int:
        """Of the network."""
        return 1 if self.binary else len(self.classes or self.targets)

    @property
    def columns(self) -> list[str]:
        """Names of the outputs in tables of scores: "score" of two classes."""
        if self.binary:
            return ["score"]
        kind = "score" if self.classes else "prediction"
        return [f"{kind}_{name}" for name in self.classes or self.targets]

    def fitted(self, y: np.ndarray) -> "Labels":
        """With the units of these rows, y (n, T); of classes the same."""
        if not self.targets:
            return self
        deviations = y.std(axis=0)
        deviations[deviations == 0] = 1.0
        return replace(self, units=(tuple(y.mean(axis=0).tolist()), tuple(deviations.tolist())))

    def standardised(self, y: np.ndarray) -> np.ndarray:
        """Numbers (n, T) less the mean, over the standard deviation."""
        assert self.units is not None
        return (y - np.array(self.units[0])) / np.array(self.units[1])

    def in_units(self, outputs: np.ndarray) -> np.ndarray:
        """The network's outputs as they are reported: numbers in their units, logits as they are."""
        if self.units is None:
            return outputs
        return outputs * np.array(self.units[1]) + np.array(self.units[0])

    def code(self, y: np.ndarray) -> np.ndarray:
        """The class of each row, int (n,); all rows alike for numbers."""
        return np.zeros(len(y), int) if self.targets else y.astype(int)

    def require(self, y: np.ndarray, what: str) -> None:
        """Raises InvalidRequest where rows, named by `what`, lack a class or a number."""
        if self.targets:
            if len(y) < 2 or not np.isfinite(y).all():
                raise InvalidRequest(f"{what} need two or more with finite numbers; there are {len(y)}")
            return
        codes, counts = np.unique(y, return_counts=True)
        if set(codes) == set(range(len(self.classes))):
            return
        classes = ", ".join(f"{code:g}: {n}" for code, n in zip(codes, counts, strict=True)) or "none"
        every = "both" if self.binary else f"all {len(self.classes)}"
        raise InvalidRequest(
            f"{what} need {every} classes, all labelled; there are {len(y)} rows ({classes}). Use fewer "
            "folds, or folds that spread the rare class over the groups"
        )

    def to_card(self) -> dict[str, Any]:
        """For a model's card, read by `labels_of_card`; {} of two classes, whose cards have always been."""
        if self.binary:
            return {}
        if self.classes:
            return {"kind": "classes", "ordered": self.ordered}
        assert self.units is not None
        means, deviations = self.units
        return {
            "kind": "targets",
            "targets": list(self.targets),
            "means": list(means),
            "deviations": list(deviations),
        }


TWO_CLASSES = Labels()


def labels_of(header: Header, *, positive: str | None = None, one_vs_rest: str | None = None) -> Labels:
    """What a manifest asks for. Raises InvalidRequest for a positive class that does not fit."""
    if header.targets and not (positive or one_vs_rest):
        return Labels(classes=(), targets=tuple(header.targets))
    config = ProbeConfig(features=("any",), positive=positive, one_vs_rest=one_vs_rest)
    classes = class_names(header, config)
    return Labels(classes=classes, ordered=header.ordered and len(classes) > 2)


def labels_of_card(data: Mapping[str, Any]) -> Labels:
    """Of the part "data" of a model's card."""
    kind = data.get("kind")
    if kind == "classes":
        return Labels(classes=tuple(data["classes"]), ordered=bool(data["ordered"]))
    if kind == "targets":
        units = tuple(map(float, data["means"])), tuple(map(float, data["deviations"]))
        return Labels(classes=(), targets=tuple(data["targets"]), units=units)
    return Labels()


def class_weights(codes: np.ndarray) -> np.ndarray:
    """1 / number of rows of the row's class, float64 (n,)."""
    _, code, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return 1 / counts[code]
