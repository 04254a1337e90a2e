"""What the parts of a result are made of: roles, numbers with intervals, and how the file has them.

The classes keep the names and the order of results.json (FORMAT.md), so that reading and writing changes
nothing; what a file does not have is None or empty here and is not written. Numbers are in [0, 1] unless said
otherwise, logits are natural.
"""

import math
from collections.abc import Iterator, Mapping
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


def parsed_role(text: str) -> dict[str, Any]:
    """`role` of a written one, and of "fold 3" also `fold`. Raises ValueError."""
    role, _, fold = str(text).partition(" ")
    if role not in [*Role]:
        raise ValueError(f"role {text!r} is not one of {', '.join(Role)}")
    return {"role": Role(role)} | ({"fold": int(fold)} if role == Role.FOLD else {})


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


def _as_triple(estimate: Estimate) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


def _as_full(estimate: Estimate) -> dict[str, Any]:
    keys = ("value", "low", "high", "standard_error", "degrees_of_freedom", "design_effect", "reason")
    return {key: getattr(estimate, key) for key in keys}


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


def measured_of(record: Mapping[str, Any], uncertainty: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """The kinds of numbers of a score in a file, with what stands beside them: kind -> metric -> estimate."""
    measured, of = {}, {"n": record.get("n"), "groups": record.get("n_groups")}
    for kind in KINDS:
        if record.get(kind) is not None:
            about = uncertainty.get(kind, {})
            try:
                measured[kind] = {m: _triple(v, about.get(m, {}) | of) for m, v in record[kind].items()}
            except ValueError as error:
                raise ValueError(f"{kind}: {error}") from error
    return measured


def uncertainty_of(score: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """What stands beside the numbers of a score, where it was recorded."""
    kinds = {kind: values for kind in KINDS if (values := getattr(score, kind, None))}
    return {
        kind: {m: {key: getattr(estimate, key) for key in UNCERTAINTY} for m, estimate in values.items()}
        for kind, values in kinds.items()
        if any(value.method for value in values.values())
    }


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

        def filled(value: Any, where: str) -> Any:
            if isinstance(value, Mapping):
                return {key: filled(inner, f"{where}.{key}") for key, inner in value.items()}
            if isinstance(value, list):
                return _triple(value, {**unsure.get(where, {}), "reason": reasons.get(where, "")})
            return value

        return {key: filled(value, key) for key, value in values.items()}


class Measured(Part):
    """What has metrics, with standard errors beside them in the file; {} where nothing could be computed."""

    metrics: dict[str, Triple]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        read = {key: value for key, value in values.items() if key != "uncertainty"}
        if read.get("metrics", ()) is None:
            read["metrics"] = {}
        return read | measured_of(read, {"metrics": values.get("uncertainty") or {}})

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written, uncertainty = handler(self), uncertainty_of(self)
        written["metrics"] = written.pop("metrics") or None  # behind what it is about
        if uncertainty or not self.metrics:
            written["uncertainty"] = uncertainty.get("metrics")
        return written

    def estimate(self, metric: str) -> Estimate:
        """One number; one without a value where it was not computed."""
        return self.metrics.get(metric, UNKNOWN)
