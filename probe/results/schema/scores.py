"""Scores of a model on a set: metrics, calibration, calls at thresholds, classes, differences of domains."""

from collections.abc import Mapping
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from .values import (
    UNKNOWN,
    Assessed,
    Estimate,
    Measured,
    Part,
    Role,
    Triple,
    measured_of,
    parsed_role,
    uncertainty_of,
)


class Clusters(Part):
    """Independent units behind a score; see `intervals.Clusters`."""

    known: bool
    n: int
    with_positive: int
    with_negative: int
    effective_positive: float
    effective_negative: float


class Floor(Part):
    """ECE of calibrated probabilities on these rows: mean, 95th percentile, p of the observed one."""

    mean: float | None
    high: float | None
    p: float | None


class Calibration(Assessed):
    """Logistic recalibration of one kind of probability; see `calibration.assess_calibration`."""

    slope: Triple
    intercept: Triple
    observed_expected: Triple
    uncertainty: dict[str, dict[str, float | None]] = {}
    reasons: dict[str, str] = {}
    ece_floor: Floor | None = None


class Confusion(Part):
    """Counts of rows."""

    tp: int
    fp: int
    fn: int
    tn: int


class PredictiveValues(Part):
    """At one prevalence."""

    ppv: Triple
    npv: Triple


class Rates(Assessed):
    """Sensitivity and specificity at a cut."""

    sensitivity: Triple
    specificity: Triple
    uncertainty: dict[str, dict[str, float | None]] = {}
    reasons: dict[str, str] = {}


class Calls(Rates):
    """What calls at one threshold come to; predictive_values : prevalence or "observed" -> values."""

    confusion: Confusion
    predictive_values: dict[str, PredictiveValues]


class Benefit(Part):
    """Net benefit at one threshold probability: of the model, and of calling every row positive."""

    model: Triple
    all: Triple


class ClassScore(Measured):
    """One of more than two classes against the rest; called : rows with this prediction.

    metrics : sensitivity, specificity, precision, f1, auroc, average_precision
    """

    label: str
    n: int
    n_groups: int
    called: int


class TargetScore(Measured):
    """One of the numbers that are predicted; metrics : pearson, spearman, r2, mae (in the target's unit)."""

    target: str


class Confused(Part):
    """Rows of a class that are called another; share : of the rows of the class, groups : with such rows."""

    label: str
    called: str
    rows: int
    groups: int
    share: float


class Worst(Part):
    """The lowest domain, with an interval that holds all domains at once."""

    domain: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def estimate(self) -> Estimate:
        """The same as an Estimate."""
        return Estimate(self.value, self.low, self.high)


class BetweenDomains(Part):
    """How a metric differs between domains; see `assess.between_domains`."""

    worst: Worst | None
    scale: str = "logit"
    left_out: dict[str, str] = {}
    k: int
    q: float | None = None
    p: float | None = None
    sd: Triple | None = None
    i2: Triple | None = None


class Score(Part):
    """One model on one set, or on one domain of it, or without repeated images.

    domain : "" for the whole set; subset : "raw", or "dedup" for one row of each content
    metrics : at probability 0.5; at_threshold : at the threshold that the folds chose; temperature, platt :
        of calibrated probabilities

    Of more than two classes (`n_positive` is None) calls are the most probable class. There is no threshold,
    and no Platt scaling. `missing` are classes without rows: means over the classes are undefined then.
    classes : each class against the rest; confusion : counts of rows, [label][call], in the order of
        `DataSet.classes`; confused : the most frequent errors, most rows first. All of whole sets only.
    Of predicted numbers `metrics` are means over the targets, and `targets` are these one by one (whole sets
    only).
    """

    features: str
    role: Role
    fold: int | None = None
    """Of Role.FOLD: its number."""
    dataset: str
    domain: str
    subset: str
    n: int
    n_positive: int | None = None
    n_groups: int | None = None
    missing: list[str] = []
    clusters: Clusters | None = None
    inflation: float | None = None
    metrics: dict[str, Triple]
    at_threshold: dict[str, Triple] = {}
    temperature: dict[str, Triple] = {}
    platt: dict[str, Triple] = {}
    design_effect_2: dict[str, Triple] = {}
    calibration: dict[str, Calibration] = {}
    calls: dict[str, Calls] = {}
    net_benefit: dict[str, Benefit] = {}
    """Threshold probability as text -> Benefit."""
    net_benefit_reasons: dict[str, str] | None = None
    at_specificity: dict[str, Rates] = {}
    targets: list[TargetScore] = []
    classes: list[ClassScore] = []
    confusion: list[list[int]] = []
    confused: list[Confused] = []
    n_classes: int | None = None
    """Where there are more than two."""
    between_domains: dict[str, BetweenDomains] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        """From the layout of the file: standard errors beside the numbers, the fold in the role."""
        if not isinstance(values, Mapping) or isinstance(values.get("role"), Role):
            return values
        read = {key: value for key, value in values.items() if key != "uncertainty"}
        if "role" in read:
            read |= parsed_role(read["role"])
        read |= measured_of(read, values.get("uncertainty", {}))
        if "net_benefit" in read:
            benefit = dict(read["net_benefit"])
            read["net_benefit_reasons"] = benefit.pop("reasons", {})
            read["net_benefit"] = benefit
        return read

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out = handler(self)
        out["role"] = self.role_name
        out.pop("fold", None)
        if (reasons := out.pop("net_benefit_reasons", None)) is not None:
            out["net_benefit"]["reasons"] = reasons
        uncertainty = uncertainty_of(self)
        if not uncertainty:
            return out
        first = {key: out.pop(key) for key in list(out)[: list(out).index("metrics")]}
        return {**first, "uncertainty": uncertainty, **out}

    @property
    def role_name(self) -> str:
        """As it is written: "fold 3" of a fold's model."""
        return self.role if self.fold is None else f"{self.role} {self.fold}"

    @property
    def deduplicated(self) -> bool:
        """Whether each content counts once."""
        return self.subset == "dedup"

    @property
    def share(self) -> float:
        """Of positive rows, on average over the classes where there are more than two: the chance level of
        average precision.
        """
        if self.n_positive is None:
            return 1 / (self.n_classes or 1)
        return self.n_positive / self.n

    def chance(self, metric: str) -> float:
        """The chance level of a metric: kappa, those of numbers, and those of order and balanced calls."""
        if metric in ("kappa", "pearson", "spearman", "r2"):
            return 0.0
        shared = metric == "average_precision" or (metric == "balanced_accuracy" and self.n_positive is None)
        return self.share if shared else 0.5

    def estimate(self, metric: str, kind: str = "metrics") -> Estimate:
        """One number; one without a value where it was not computed."""
        return getattr(self, kind).get(metric, UNKNOWN)
