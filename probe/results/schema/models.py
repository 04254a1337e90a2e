"""Models of a result: what the folds chose for each, how they compare, how far repeats differ."""

from typing import Any

from .values import Estimate, Part, Role


class Choice(Part):
    """What the folds chose; parameter : the name of what is tuned, "" for none."""

    preprocess: str
    class_weight: str
    parameter: str = "C"
    C: float | None = None
    k: float | None = None
    alpha: float | None = None
    alphas: list[float] | None = None
    """Of predicted numbers, where the penalty of each target is chosen separately."""
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
    """How the fits of one feature set ended; status : outcome -> number of fits.

    shared : fits that serve the choices of two folds
    """

    fits: int
    shared: int | None = None
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
    weights, fold_weights, offset : of an ensemble over systems, see `ensemble`: member -> its share, of all
        train rows and without each fold in turn; what is added
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
    weights: dict[str, float] | None = None
    fold_weights: list[dict[str, float]] | None = None
    offset: list[float] | None = None

    def took(self, *steps: str) -> float:
        """Seconds of these steps; 0 for those that were not recorded."""
        return sum(self.seconds.get(step, 0.0) for step in steps)


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
