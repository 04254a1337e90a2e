"""The result of a probe study as frozen classes: what results.json holds, and queries over it.

FORMAT.md describes the file. The classes keep its names and its order, so that reading and writing changes
nothing; what a file does not have is None or empty here and is not written. Numbers are in [0, 1] unless said
otherwise, logits are natural.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)


class Role(StrEnum):
    """Which models gave a score."""

    OOF = "oof"
    """Training rows, by models of folds that have not seen them."""
    VALIDATION = "validation"
    """Rows that the model was chosen on (of its fold, or of a validation split): too high."""
    REFIT = "refit"
    """One model of all training rows."""
    ENSEMBLE = "ensemble"
    """The mean probability of the models of the folds."""
    FOLD = "fold"
    """The model of one fold by itself; which one, `Score.fold` says. Written as "fold 3"."""


TRAIN_ROLES = (Role.OOF, Role.VALIDATION)  # of the training rows' scores
TEST_ROLES = (
    Role.REFIT,
    Role.ENSEMBLE,
)  # of the other sets' scores; the first that there is stands for a set
SWEEP = "chosen on folds"  # `features` of the sweep as a whole, the choice of features being part of it
PAIRED = "paired over groups"  # the test by which models are compared; its p_method says how
KINDS = ("metrics", "at_threshold", "temperature", "platt")  # of calls and probabilities, in a score


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval. `value, low, high = estimate` unpacks it.

    value : None where it is undefined; low, high : None where there is no interval, and `reason` says why
    standard_error, degrees_of_freedom : None where not recorded; no degrees of freedom with a standard error
        means the normal distribution. design_effect : variance over that of independent rows
    method : how the interval was made, see `intervals.estimate`
    n, groups : rows and clusters that it is of
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    design_effect: float | None = None
    method: str = ""
    reason: str = ""
    n: int | None = None
    groups: int | None = None

    def __iter__(self) -> Iterator[float | None]:
        return iter((self.value, self.low, self.high))


UNKNOWN = Estimate()
UNCERTAINTY = ("standard_error", "degrees_of_freedom", "design_effect", "method", "reason")


def _triple(value: Any, about: Mapping[str, Any] = MappingProxyType({})) -> Estimate:
    if isinstance(value, Estimate):
        return value
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{value!r} is not [value, low, high]")
    number, low, high = map(_number, value)
    return Estimate(number, low, high, **about)


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is not a finite number or null")


def _full(value: Any) -> Estimate:
    if isinstance(value, Estimate):
        return value
    fields: dict[str, Any] = {k: v if isinstance(v, str) else _number(v) for k, v in value.items()}
    return Estimate(**fields)


def _as_triple(one: Estimate) -> list[float | None]:
    return [one.value, one.low, one.high]


def _as_full(one: Estimate) -> dict[str, Any]:
    keys = ("value", "low", "high", "standard_error", "degrees_of_freedom", "design_effect", "reason")
    return {key: getattr(one, key) for key in keys}


Triple = Annotated[Estimate, PlainValidator(lambda value: _triple(value)), PlainSerializer(_as_triple)]
"""An Estimate that is written as [value, low, high]."""
Full = Annotated[Estimate, PlainValidator(_full), PlainSerializer(_as_full)]
"""An Estimate that is written with its standard error."""


class Part(BaseModel):
    """A part of a result. Keys that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of all that is recorded, as they stand in results.json."""
        return self.model_dump(mode="json", exclude_unset=True)


def _measured(record: Mapping[str, Any], uncertainty: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """The kinds of numbers of a score in a file, with what stands beside them: kind -> metric -> estimate."""
    found, of = {}, {"n": record.get("n"), "groups": record.get("n_groups")}
    for kind in KINDS:
        if kind in record:
            about = uncertainty.get(kind, {})
            try:
                found[kind] = {m: _triple(v, about.get(m, {}) | of) for m, v in record[kind].items()}
            except ValueError as error:
                raise ValueError(f"{kind}: {error}") from error
    return found


def _metrics_with_uncertainty(values: Any) -> Any:
    """A record whose `metrics` and `uncertainty` stand side by side, with estimates as metrics."""
    if not isinstance(values, Mapping):
        return values
    found = {key: value for key, value in values.items() if key != "uncertainty"}
    if not found.get("metrics"):
        return found
    return found | _measured(found, {"metrics": values.get("uncertainty") or {}})


def _uncertainty(score: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """What stands beside the numbers of a score, where it was recorded."""
    kinds = {kind: values for kind in KINDS if (values := getattr(score, kind, None))}
    return {
        kind: {m: {key: getattr(one, key) for key in UNCERTAINTY} for m, one in values.items()}
        for kind, values in kinds.items()
        if any(one.method for one in values.values())
    }


# --- scores


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


class Assessed(Part):
    """Numbers of one model, and by their places ("predictive_values.0.05.ppv") what stands beside them.

    uncertainty : place -> standard_error, degrees_of_freedom; reasons : place -> why there is no interval
    """

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        unsure, reasons = values.get("uncertainty", {}), values.get("reasons", {})

        def filled(value: Any, place: str) -> Any:
            if isinstance(value, Mapping):
                return {key: filled(inner, f"{place}.{key}") for key, inner in value.items()}
            if isinstance(value, list):
                return _triple(value, {**unsure.get(place, {}), "reason": reasons.get(place, "")})
            return value

        return {key: filled(value, key) for key, value in values.items()}


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


class Measured(Part):
    """What has metrics, with standard errors beside them in the file."""

    metrics: dict[str, Triple]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        return _metrics_with_uncertainty(values)

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return handler(self) | {"uncertainty": _uncertainty(self).get("metrics")}

    def estimate(self, metric: str) -> Estimate:
        """One number; one without a value where it was not computed."""
        return self.metrics.get(metric, UNKNOWN)


class ClassScore(Measured):
    """One of more than two classes against the rest; called : rows that are called so.

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
        found = {key: value for key, value in values.items() if key != "uncertainty"}
        role, _, fold = str(found.get("role")).partition(" ")
        if role == Role.FOLD:
            found |= {"role": role, "fold": int(fold)}
        found |= _measured(found, values.get("uncertainty", {}))
        if "net_benefit" in found:
            benefit = dict(found["net_benefit"])
            found["net_benefit_reasons"] = benefit.pop("reasons", {})
            found["net_benefit"] = benefit
        return found

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out = handler(self)
        out["role"] = self.role_name
        out.pop("fold", None)
        if (reasons := out.pop("net_benefit_reasons", None)) is not None:
            out["net_benefit"]["reasons"] = reasons
        uncertainty = _uncertainty(self)
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


# --- models


class Choice(Part):
    """What the folds chose; parameter : the name of what is tuned, "" for none."""

    preprocess: str
    class_weight: str
    parameter: str = "C"
    C: float | None = None
    k: float | None = None
    alpha: float | None = None
    alphas: list[float] | None = None
    """Of predicted numbers, where the penalty of each target is chosen by itself."""
    components: int | None = None
    """Principal components that it is fitted on, where it is not the features."""

    @property
    def value(self) -> float:
        """Of the parameter; 0 for ""."""
        return getattr(self, self.parameter) if self.parameter else 0.0


class Path(Part):
    """The criterion at each point of the grid: [preprocessing][class weight][value], higher is better."""

    C: list[float] = [0.0]
    k: list[float] = [0.0]
    alpha: list[float] = [0.0]
    criterion: list[list[list[float | None]]]

    def values(self, parameter: str) -> list[float]:
        """What was tried of a parameter; [0.0] for ""."""
        return getattr(self, parameter) if parameter else [0.0]


class Fits(Part):
    """How the fits of one feature set ended; status : outcome -> number of fits."""

    fits: int
    calls: int | None = None
    status: dict[str, int] = {}
    worst_gap_bound: float | None = None


class Model(Part):
    """One feature set: what was chosen for it, on which scores, at what cost (seconds : step -> seconds).

    threshold : on the calibrated probability, threshold_score : the same on the logit
    criterion : on the folds, higher is better
    threshold, threshold_score, platt : None of more than two classes
    recipe, folds : of a fine-tuned one, folds with their cards. chosen : of a merged one, the feature set or
        recipe behind the system
    """

    features: str
    dim: int | None = None
    criterion: float
    choice: Choice | None = None
    fold_choices: list[Choice] = []
    path: Path | None = None
    threshold: float | None = None
    threshold_score: float | None = None
    temperature: float | None
    platt: tuple[float, float] | None = None
    fits: Fits | None = None
    seconds: dict[str, float] = {}
    recipe: dict[str, Any] | None = None
    folds: list[dict[str, Any]] | None = None
    provenance: dict[str, Any] | None = None
    chosen: str | None = None

    def took(self, *steps: str) -> float:
        """Seconds of these steps; 0 for those that were not recorded."""
        return sum(self.seconds.get(step, 0.0) for step in steps)


# --- comparisons


class Comparison(Part):
    """The difference a - b of two models' metric on the same rows; see `scoring.compare_models`."""

    dataset: str
    role: Role
    metric: str
    test: str
    p_method: str = ""
    a: str
    b: str
    difference: float | None
    low: float | None
    high: float | None
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    p: float | None
    p_holm: float | None
    reason: str = ""
    groups_known: bool = True
    inflation: float | None = None

    @property
    def estimate(self) -> Estimate:
        """The difference with its interval."""
        return Estimate(
            self.difference,
            self.low,
            self.high,
            self.standard_error,
            self.degrees_of_freedom,
            method=self.p_method,
            reason=self.reason,
        )

    def against(self, name: str) -> "Comparison":
        """The same with `name` as b: b - a is the difference turned round."""
        if self.b == name:
            return self
        turned = {"difference": self.difference, "low": self.high, "high": self.low}
        minus = {key: None if v is None else -v for key, v in turned.items()}
        return self.model_copy(update={"a": self.b, "b": self.a, **minus})


class Precision(Part):
    """How small a difference a set can show; see `scoring.precision`."""

    dataset: str
    role: Role
    metric: str
    n: int
    n_groups: int
    standard_error: float
    degrees_of_freedom: float | None
    half_width: float | None
    detectable: float | None
    basis: str


class Spread(Part):
    """A metric over repeats of the protocol."""

    mean: float | None
    sd: float | None
    values: list[float | None]


class RepeatScore(Part):
    """Spreads of one model on one set, over all metrics that `repeats.METRICS` names."""

    dataset: str
    features: str
    role: Role
    balanced_accuracy: Spread
    auroc: Spread
    average_precision: Spread

    def spread(self, metric: str) -> Spread:
        """Of one metric."""
        return getattr(self, metric)


class Repeats(Part):
    """The protocol with other folds."""

    seeds: list[int]
    chosen: list[str] = []
    scores: list[RepeatScore]


# --- experts


class HumanModel(Part):
    """A model against the references of the experts; difference : expert less model."""

    features: str
    role: Role
    value: Triple
    difference: Triple
    p: float | None


class ExpertScore(Measured):
    """An expert's calls against the labels of more than two classes (accuracy, balanced_accuracy, f1, kappa),
    and the balanced accuracy of the models on the rows that it read; see `scoring.score_experts`.
    """

    dataset: str
    expert: str
    n: int
    n_groups: int
    models: list[HumanModel] = []


class Human(Part):
    """An expert against the majority of the others; see `scoring.score_votes`."""

    value: Triple
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    reason: str = ""
    n: int
    n_left_out: int = 0
    n_votes: int = 0
    n_tied: int = 0
    without_ties: float | None = None
    models: list[HumanModel] = []


class Stratum(Part):
    """Metrics over the rows on which as many experts agree."""

    features: str
    role: Role
    votes_agreeing: int
    votes_total: int
    rows: int
    positives: int
    balanced_accuracy: float | None
    auroc: float | None
    average_precision: float | None


class ByVotes(Part):
    """The mean probability of rows with as many positive votes."""

    features: str
    role: Role
    votes_positive: int
    votes_total: int
    rows: int
    mean_score: float | None
    called_positive: float | None = None


class Soft(Part):
    """Scores against the share of positive votes."""

    features: str
    role: Role
    soft_brier: float | None = None
    soft_log_loss: float | None = None
    soft_excess_log_loss: float | None = None
    pearson: float | None
    spearman: float | None = None


class Votes(Part):
    """What the experts' votes say about the models of one set."""

    dataset: str
    n: int
    kappa: float | None
    unanimous: float
    human_line: float | None
    human: Human | None = None
    strata: list[Stratum] = []
    by_votes: list[ByVotes] = []
    soft: list[Soft] = []


# --- domains


class LeftOut(Part):
    """One domain by a model of the other domains; choice, metrics : None where it could not be fitted."""

    domain: str
    n: int
    n_positive: int | None = None
    n_groups: int | None = None
    choice: Choice | None
    metrics: dict[str, Triple] | None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        return _metrics_with_uncertainty(values)

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out = handler(self)
        uncertainty = _uncertainty(self)
        if uncertainty or not self.metrics:
            out["uncertainty"] = uncertainty.get("metrics")
        return out

    def estimate(self, metric: str) -> Estimate:
        """One number; one without a value where nothing could be fitted."""
        return (self.metrics or {}).get(metric, UNKNOWN)


class Matrix(Part):
    """Trained on one domain (rows), scored on another (columns "SET / DOMAIN"; "train" is the train set)."""

    train: list[str]
    test: list[str]
    n: list[int]
    n_positive: list[int] = []
    n_groups: list[int] = []
    balanced_accuracy: list[list[float | None]]
    auroc: list[list[float | None]]
    average_precision: list[list[float | None]]
    intervals: dict[str, list[list[tuple[float | None, float | None]]]] = {}
    """Metric -> low and high of each value."""
    reasons: dict[str, list[list[str]]] = {}
    """Metric -> why a value has no interval, "" where it has one."""


class Domains(Part):
    """See `domains.analyse_domains`."""

    leave_one_out: list[LeftOut]
    matrix: Matrix
    fits: Fits | None = None
    seconds: dict[str, float] = {}


# --- the study


class Settings(Part):
    """The settings, as `ProbeConfig` has them and describes them."""

    features: list[str]
    probe: str = "logistic"
    solver: str = "exact"
    preprocess: list[str] = []
    C: list[int | float] | None = None
    k: list[int] | None = None
    alpha: list[int | float] | None = None
    hidden: int | None = None
    metric: str | None = None
    temperature: float | None = None
    class_weight: list[str] = []
    select: str | None = None
    folds: str | int
    inner_folds: int | None = None
    repeats: int = 1
    tol: float | None = None
    seed: int = 0
    bootstrap: int = 0
    interval: str
    level: float
    domains: str = "none"
    positive: str | None = None
    one_vs_rest: str | None = None
    select_on: str | None = None
    components: int | None = None
    per_target: bool | None = None
    precision: str | None = None
    dtype: str | None = None
    near_duplicates: str | None = None
    allow_leaks: list[str] = []

    @property
    def criterion(self) -> str:
        """What chose on the folds."""
        return self.select or ("log_loss" if self.probe in ("logistic", "mlp") else "auroc")

    def grid(self, parameter: str) -> list[Any]:
        """What was tried of a parameter."""
        return (getattr(self, parameter) if parameter else None) or []


class Store(Part):
    """Where a block of columns comes from: the store's name, identity and provenance."""

    store: str
    identity: dict[str, Any]
    provenance: dict[str, Any] = {}

    @property
    def precision(self) -> str:
        """Of the arithmetic."""
        return self.identity["precision"]

    @property
    def dtype(self) -> str:
        """Of what is stored."""
        return self.identity["dtype"]


class DataSet(Part):
    """One evaluation set; the first of a result is the training set. rows : digest of ids and labels.

    positive, n_positive : "" and None where there are more than two classes; counts : then the rows of each,
        in the order of `classes`, and ordered : whether these are grades
    """

    dataset: str
    name: str
    version: str
    licence: str
    source: str
    group_kind: str
    positive: str
    classes: list[str] = []
    ordered: bool = False
    counts: list[int] = []
    targets: list[str] = []
    """Names of the numbers that are predicted instead of classes."""
    rows: str | None = None
    root: str | None = None
    n: int
    n_positive: int | None = None
    groups_known: bool | None = None
    n_groups: int
    left_out: dict[str, int] = {}
    n_distinct: int
    domains: dict[str, int] = {}

    @property
    def grouped(self) -> bool:
        """Whether slides or patients are known, also where that was not recorded."""
        return bool(self.n_groups) if self.groups_known is None else self.groups_known


class FoldsUsed(Part):
    """The outer folds; inner : number of inner folds of each; trained : which folds fine-tuning trained."""

    name: str
    n_splits: int
    inner: list[int] | None = None
    made_with: str | None = None
    trained: list[int] | None = None


class FoundLeak(Part):
    """One thing on two sides or with two labels; rows : (patch, side, label)."""

    kind: str
    what: str
    rows: list[tuple[str, str, str]]


class SharedSlides(Part):
    """Slides of one name in train (rows: train) and in an evaluation set of another data set (rows)."""

    dataset: str
    slides: list[str]
    train: int
    rows: int


class Leaks(Part):
    """`LeakReport.to_json()`: counts by kind, and each leak."""

    found: dict[str, int]
    checked: dict[str, int]
    unchecked: dict[str, int]
    leaks: list[FoundLeak]
    near_by: str | None = None
    """How near-duplicates were found; "": they were not looked for; None: not recorded."""
    near: list[list[str]] = []
    slides: list[SharedSlides] = []


class Results(Part):
    """All of a probe study or of a fine-tuning, apart from the predictions.

    fold_models : feature set -> set -> metric -> a value for each fold's model; fold_means : their means with
        intervals (`scoring.mean_of_models`). request : what a study asked for, of which this is the answer.
    not_recorded : what results of an older format lack, in words
    """

    config: Settings
    provenance: dict[str, Any]
    stores: dict[str, Store] = {}
    data: list[DataSet]
    notes: list[str] = []
    folds: FoldsUsed
    leaks: Leaks | None = None
    chosen: str
    models: list[Model]
    fold_models: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    fold_means: dict[str, dict[str, dict[str, Full]]] = {}
    scores: list[Score]
    comparisons: list[Comparison] = []
    repeats: Repeats | None = None
    precision: list[Precision] = []
    votes: list[Votes] = []
    experts: list[ExpertScore] = []
    domains: dict[str, Domains] = {}
    seconds: dict[str, float] = {}
    request: str | None = None
    not_recorded: list[str] = []

    @field_validator("data")
    @classmethod
    def _a_train_set(cls, data: list[DataSet]) -> list[DataSet]:
        if not data:
            raise ValueError("there is no training set")
        return data

    # --- queries

    @property
    def made_by(self) -> str:
        """Version of patchbank and time, for a footer."""
        return ", ".join(str(self.provenance[k]) for k in ("patchbank", "finished") if self.provenance.get(k))

    @property
    def train(self) -> DataSet:
        """The set that was trained on."""
        return self.data[0]

    @property
    def multiclass(self) -> bool:
        """Whether there are more than two classes; one of them against the rest is not."""
        return self.train.n_positive is None and not self.targets

    @property
    def targets(self) -> list[str]:
        """Names of the numbers that are predicted; [] of classes."""
        return self.train.targets

    @property
    def sets(self) -> list[str]:
        """Names of the evaluation sets, the training set first."""
        return [one.dataset for one in self.data]

    def data_set(self, name: str) -> DataSet:
        """One evaluation set by its name."""
        return next(one for one in self.data if one.dataset == name)

    @property
    def ungrouped(self) -> list[str]:
        """Evaluation sets of which no slides or patients are known: nothing is significant there."""
        return [one.dataset for one in self.data if not one.grouped]

    @property
    def ranked(self) -> list[Model]:
        """The models, best criterion on the folds first."""
        return sorted(self.models, key=lambda m: -m.criterion)

    def model(self, features: str) -> Model:
        """One feature set."""
        return next(one for one in self.models if one.features == features)

    def whole(
        self,
        *,
        features: str | None = None,
        dataset: str | None = None,
        roles: Collection[Role] | None = None,
        deduplicated: bool = False,
    ) -> list[Score]:
        """Scores of whole sets, on all rows or (deduplicated) with each content once; None: of all."""
        return [
            one
            for one in self.scores
            if not one.domain and one.deduplicated == deduplicated and _is(one, features, dataset, roles)
        ]

    def by_domain(
        self,
        *,
        features: str | None = None,
        dataset: str | None = None,
        roles: Collection[Role] | None = None,
    ) -> list[Score]:
        """Scores of single domains, on all rows; None: of all."""
        return [one for one in self.scores if one.domain and _is(one, features, dataset, roles)]

    def leaderboard(self) -> list[Score]:
        """Scores that stand for each model on each whole set: training rows out of fold, the others by the
        refit (by the ensemble where there is none), without duplicates where a set has any; in the order of
        the sets, best criterion on the folds first, but the sweep as a whole before all: its score alone has
        the choice of the feature set in it.
        """
        order = {m.features: -m.criterion for m in self.models} | {SWEEP: -math.inf}
        found: dict[tuple[int, str], Score] = {}
        for role in (Role.ENSEMBLE, Role.REFIT, Role.OOF):  # later ones go first
            for one in self.scores:
                if one.features == SWEEP and role != Role.OOF:
                    continue  # on other sets it is the chosen feature set's refit
                if one.role == role and not one.domain:  # "dedup" comes after "raw"
                    found[self.sets.index(one.dataset), one.features] = one
        return [found[key] for key in sorted(found, key=lambda k: (k[0], order[k[1]]))]

    def comparisons_of(
        self, name: str, *, dataset: str | None = None, roles: Collection[Role] | None = None
    ) -> list[Comparison]:
        """Comparisons with one model, which is turned to be b."""
        return [
            one.against(name)
            for one in self.comparisons
            if name in (one.a, one.b) and _is(one, None, dataset, roles)
        ]


def _is(one: Any, features: str | None, dataset: str | None, roles: Collection[Role] | None) -> bool:
    return (
        (features is None or one.features == features)
        and (dataset is None or one.dataset == dataset)
        and (roles is None or one.role in roles)
    )
