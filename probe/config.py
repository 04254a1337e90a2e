"""What a probe study is asked to do: one frozen config, from Python, TOML or the command line."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from ..errors import InvalidRequest
from ..settings import Settings, listing, near, not_one_of, read_table
from .leaks import KINDS
from .training_sets import SHARED

# 40 strengths, 1e-6 .. 10, evenly spaced in the logarithm. C is scikit-learn's: the inverse of the penalty,
# for the SUM of the losses; on standardized features of a few thousand patches the best C is about 1e-4 .. 1.
C_GRID: tuple[float, ...] = tuple(10.0 ** (-6 + 7 * i / 39) for i in range(40))

# probe -> its parameter that the folds choose ("": none), and the values tried, strongest smoothing first: of
# equals the first is taken
PARAMETERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "logistic": ("C", C_GRID),
    "knn": ("k", (200, 100, 50, 20, 10, 5)),
    "centroid": ("", ()),
    "ridge": ("alpha", tuple(10.0**k for k in range(6, -2, -1))),
    "svm": ("C", tuple(10.0**k for k in range(-6, 1))),
    "mlp": ("alpha", (1.0, 1e-2, 1e-4)),
}
# settings that are for some probes only
OF_PROBES = {"C": ("logistic", "svm"), "k": ("knn",), "alpha": ("ridge", "mlp"), "hidden": ("mlp",)}
OF_PROBES |= {"metric": ("knn",), "temperature": ("knn",)}

PROBES = tuple(PARAMETERS)
PROBABILISTIC = ("logistic", "mlp")  # their scores are logits
KNN_METRICS = ("cosine", "euclidean")
SOLVERS = ("exact", "paper-sgd", "paper-sgd-1e-3", "thunder", "eva")
PREPROCESSING = ("standardize", "l2", "whiten", "none")
CLASS_WEIGHTS = ("balanced", "none", "votes")
SELECTION = ("log_loss", "auroc", "balanced_accuracy")
INTERVALS = ("jackknife", "bca", "percentile")
BACKENDS = ("loky", "threading", "ray")
NEAR_BY = ("images", "embeddings", "none")  # how near-duplicates are found, apart from a file of pairs
ENSEMBLE_WEIGHTS = ("folds", "equal")  # of systems, see ensemble.py
DOMAIN_ANALYSIS = ("chosen", "all", "none")


@dataclass(frozen=True)
class Source:
    """One block of columns: an encoder, a view and a token policy (None: the only one in the bank)."""

    encoder: str
    view: str = "full"
    tokens: str | None = None

    def __str__(self) -> str:
        return "/".join([self.encoder, self.view, *([self.tokens] if self.tokens else [])])


@dataclass(frozen=True)
class FeatureSet:
    """What one probe sees: one source, or several side by side."""

    sources: tuple[Source, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.sources))


def parse_features(text: str) -> FeatureSet:
    """Read `ENCODER[/VIEW[/TOKENS]]`, several of them joined by " + " (with spaces: `cls+mean` is a token
    policy).

    An encoder id that has slashes of its own (hf:ORG/NAME) is written in full, with view and tokens.

        >>> str(parse_features("dinov2-s/center:0.5/cls + dinov2-s"))
        'dinov2-s/center:0.5/cls + dinov2-s/full'
    """
    sources = []
    for part in re.split(r"\s+\+\s+", text.strip()):
        pieces = part.strip().split("/")
        if not all(pieces):
            raise InvalidRequest(
                f"features {text!r}: {part!r} is not ENCODER[/VIEW[/TOKENS]]; "
                'an example: "dinov2-s/center:0.5/cls + dinov2-s/full/cls"'
            )
        if len(pieces) > 3:
            pieces = ["/".join(pieces[:-2]), *pieces[-2:]]
        sources.append(Source(*pieces))
    if len(set(sources)) < len(sources):
        raise InvalidRequest(f"features {text!r}: the same block of columns is named twice")
    return FeatureSet(tuple(sources))


def feature_sets(
    *,
    encoders: Iterable[str] = (),
    views: Iterable[str] = ("full",),
    tokens: Iterable[str | None] | None = None,
    features: Iterable[str | FeatureSet] = (),
) -> tuple[FeatureSet, ...]:
    """Every encoder x view x token policy, then the sets written out; each once, in this order.

    Raises InvalidRequest for a text instead of a list.
    """
    grid = itertools.product(
        listing("encoders", encoders),
        listing("views", views),
        [None] if tokens is None else listing("tokens", tokens),
    )
    sets = [FeatureSet((Source(*item),)) for item in grid]
    asked = listing("features", features, alone=(FeatureSet,))
    sets += [parse_features(text) if isinstance(text, str) else text for text in asked]
    return tuple(dict.fromkeys(sets))


class RobustnessConfig(Settings):
    """What `run_robustness` is asked to do, as a study file's [robustness] says it.

    k : nearest patches, >= 1; None: chosen by their vote for the class
    iterations : draws for the performance drop, trials : runs of k-means a pair; 0: not measured
    sample : the most rows, of more a part is drawn (`datasets.sample`); None: all
    """

    k: int | None = None
    iterations: int = 20
    trials: int = 10
    seed: int = 0
    sample: int | None = None

    def faults(self) -> Iterable[str]:
        if self.k is not None and self.k < 1:
            yield f"k = {self.k} has to be at least 1"
        if self.sample is not None and self.sample < 1:
            yield f"sample = {self.sample} has to be 1 row or more"
        for name in ("iterations", "trials", "seed"):
            if getattr(self, name) < 0:
                yield f"{name} = {getattr(self, name)} cannot be negative"


class ProbeConfig(Settings):
    """Everything that decides the numbers of a probe study, apart from the data (frozen; see the fields).

    features         names of feature sets, as parse_features reads them
    probe, solver    the classifier; the solvers other than "exact" are published recipes (`rivals`)
    preprocess, class_weight, and C, k or alpha
                     the grid: chosen on folds, never on test data. C is of logistic and svm, k of knn, alpha
                     of ridge and mlp; None: PARAMETERS. preprocess () is "standardize", "none" for knn and
                     centroid, which have a metric of their own. Class weight "votes" is "balanced" with
                     the shares of the experts' votes as soft labels; one that the criterion cannot tell from
                     another is no axis: the first is used. Recipes have no grid and take features as they are
    hidden           units of the MLP's hidden layer
    metric, temperature
                     of knn: "cosine" or "euclidean"; with cosine, neighbours weigh
                     exp(similarity / temperature) (None: alike)
    select           what is best on the folds: "log_loss" (class-balanced), "auroc" or "balanced_accuracy"
                     (None: log_loss, for probes without probabilities auroc)
    folds            "balanced" (5, or as many as can be made, by `datasets.folds`), another shipped name, a
                     file, or how many to make
    inner_folds      folds inside each outer training set, which choose the setting for that outer fold: how
                     many to make of each, or "shared": the other outer folds, so that what is fitted without
                     two of them serves the choices of both, about half of the fits (None: shared where there
                     are 5 to 11 folds, else 5, or as many as can be made)
    repeats          how often the protocol is run, each time with folds of another seed; the first one is
                     reported, and the standard deviation over all
    bootstrap        resamples of whole groups (slides) for the intervals "bca" and "percentile"; 0: no
                     intervals of any kind
    interval, level  "jackknife" (over groups, Student's t, nothing is resampled; tests/benchmarks/
                     stats_coverage.py has what it covers), bootstrap "bca" (percentiles below 20 groups) or
                     "percentile", which are narrower than they say; level in [0.5, 1)
    domains          leave-one-domain-out and train-A/test-B for: the chosen feature set, all, none
    positive         which of two classes is the positive one (None: the manifest's)
    one_vs_rest      one of more than two classes, to be found against all others: two classes again
    select_on        "folds" of the train rows, or a split of the train manifest, such as "val": all choices
                     are made on its rows by models of the train rows alone, as public benchmarks with an
                     official validation split do; there are no scores of train rows then
    precision, dtype of the stores to read, where a bank has several of one encoder, view and token policy
    near_duplicates  for the audit: "images" (pairs whose pixels show the same, shifted by up to 8 of 128
                     pixels, encoded again or a bit recoloured; embeddings where images are not at hand or
                     more than 20,000), "embeddings" (pairs of which one set of embeddings is nearly the
                     same), "none", or a file of pairs that show the same, of `datasets check --near --pairs`
    allow_leaks      kinds of leaks that are reported and not refused, see `leaks.KINDS`; "all" for any
    sample           the most rows of each set (train rows, every evaluation set), of more a part that
                     `datasets.sample.sample_rows` draws by `seed` (None: all rows)
    """

    features: tuple[str, ...]
    probe: str = "logistic"
    solver: str = "exact"
    preprocess: tuple[str, ...] = ()
    C: tuple[float, ...] | None = None
    k: tuple[int, ...] | None = None
    alpha: tuple[float, ...] | None = None
    hidden: int | None = None
    metric: str | None = None
    temperature: float | None = None
    class_weight: tuple[str, ...] = ("balanced",)
    select: str | None = None
    folds: str | int = "balanced"
    inner_folds: str | int | None = None
    repeats: int = 1
    tol: float = 1e-7
    seed: int = 0
    bootstrap: int = 2000
    interval: str = "jackknife"
    level: float = 0.95
    domains: str = "chosen"
    positive: str | None = None
    one_vs_rest: str | None = None
    select_on: str = "folds"
    precision: str | None = None
    dtype: str | None = None
    near_duplicates: str | None = "images"
    allow_leaks: tuple[str, ...] = ()
    sample: int | None = None
    SINGLE: ClassVar[bool] = True

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What of the settings was not used, and why: sentences."""
        return ()  # `resolved` has them

    def faults(self) -> Iterable[str]:
        return _faults(self)

    def resolved(self) -> Mapping[str, Any]:
        return _resolved(self)

    @property
    def target(self) -> str | None:
        """The class to find, where one was named."""
        return self.one_vs_rest or self.positive

    @property
    def probabilistic(self) -> bool:
        """Whether scores are logits."""
        return self.probe in PROBABILISTIC

    @property
    def criterion(self) -> str:
        """What chooses."""
        return self.select or ("log_loss" if self.probe in PROBABILISTIC else "auroc")

    @property
    def parameter(self) -> str:
        """The probe's parameter that the folds choose: "C", "k", "alpha"; "" if it has none."""
        return PARAMETERS[self.probe][0] if self.solver == "exact" else ""

    @property
    def grid(self) -> tuple[float, ...]:
        """The values of `parameter` that are tried, strongest smoothing first; one 0 if there is none."""
        if not self.parameter:
            return (0.0,)
        return tuple(sorted(map(float, getattr(self, self.parameter)), reverse=self.parameter != "C"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results.json; `from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_dump().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build one from plain values; one value stands for a list of one."""
        return cls.read(values, where="probe settings")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The table [probe] of a TOML file, as keywords for `run_probe` or `ProbeConfig.from_dict`."""
    values = read_table(path, "the settings")
    if set(values) != {"probe"}:
        raise InvalidRequest(f"{path}: expected one table, [probe]; found {sorted(values)}")
    return values["probe"]


def _faults(config: ProbeConfig) -> Iterable[str]:
    if not config.features:
        yield "no features: name an encoder"
    for text in config.features:
        try:
            parse_features(text)
        except InvalidRequest as error:
            yield str(error)
    yield from _not_in("probe", [config.probe], PROBES)
    yield from _not_in("solver", [config.solver], SOLVERS)
    if config.preprocess:
        yield from _not_in("preprocess", config.preprocess, PREPROCESSING)
    if config.class_weight or config.solver == "exact":
        yield from _not_in("class_weight", config.class_weight, CLASS_WEIGHTS)
    if config.select is not None:
        yield from _not_in("select", [config.select], SELECTION)
    if config.select == "log_loss" and config.probe not in PROBABILISTIC:
        yield f"probe {config.probe!r} has no probabilities: select by auroc or balanced_accuracy"
    if "votes" in config.class_weight and config.probe != "logistic":
        yield f"class_weight 'votes' is for the probe 'logistic', not for {config.probe!r}"
    if config.solver != "exact" and config.probe != "logistic":
        yield f"solver {config.solver!r} is for the probe 'logistic', not for {config.probe!r}"
    if config.select_on != "folds" and config.repeats > 1:
        yield "repeats are of folds, and select_on chooses on a split"
    if config.select_on == "train":
        yield "select_on 'train' would choose on the rows that are fitted: give another split, or 'folds'"
    if config.positive and config.one_vs_rest:
        yield "give positive (which of two classes) or one_vs_rest (one of more than two), not both"
    yield from _not_in("interval", [config.interval], INTERVALS)
    yield from _not_in("domains", [config.domains], DOMAIN_ANALYSIS)
    yield from _not_in("allow_leaks", config.allow_leaks or ["all"], (*KINDS, "all"))
    for name, probes in OF_PROBES.items():
        value = getattr(config, name)
        if value is not None and config.probe not in probes and name != "C" and config.probe in PROBES:
            yield f"{name} is a setting of the probe {' and '.join(probes)}, not of {config.probe!r}"
        elif value is not None and name in ("C", "k", "alpha"):
            if not value or not all(_positive(v) for v in value):
                yield f"{name} has to be positive numbers, not {list(value)}"
            elif name == "k" and any(v != int(v) for v in value):
                yield f"k has to be whole numbers of neighbours, not {list(value)}"
    if config.hidden is not None and (not _positive(config.hidden) or config.hidden != int(config.hidden)):
        yield f"hidden has to be a number of units, 1 or more, not {config.hidden!r}"
    if config.metric is not None:
        yield from _not_in("metric", [config.metric], KNN_METRICS)
    if config.temperature is not None and not (
        _positive(config.temperature) and config.metric != "euclidean"
    ):
        yield f"temperature is a positive number and goes with metric cosine, not {config.temperature!r}"
    if isinstance(config.folds, int) and config.folds < 2:
        yield f"folds has to be 2 or more, not {config.folds}"
    yield from inner_folds_faults(config.inner_folds)
    yield from sample_faults(config.sample)
    if config.repeats < 1:
        yield f"repeats has to be 1 or more, not {config.repeats}"
    if config.bootstrap < 0 or 0 < config.bootstrap < 100:
        yield f"bootstrap has to be 0 or at least 100, not {config.bootstrap}"
    if not 0.5 <= config.level < 1:
        yield f"level has to be in [0.5, 1), not {config.level}"


def inner_folds_faults(value: str | int | None) -> Iterable[str]:
    """What is wrong with a setting `inner_folds`."""
    if isinstance(value, str) and value != SHARED:
        yield f"inner_folds {value!r} is neither a number nor {SHARED!r}{near(value, [SHARED])}"
    elif isinstance(value, int) and value < 2:
        yield f"inner_folds has to be 2 or more, not {value}"


def sample_faults(value: int | None) -> Iterable[str]:
    """What is wrong with a setting `sample`."""
    if value is not None and value < 1:
        yield f"sample has to be 1 row or more, not {value}"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0 and math.isfinite(value)


def _resolved(config: ProbeConfig) -> dict[str, Any]:
    """The settings as they take effect, those that are None or cannot matter, with notes on the latter."""
    effective: dict[str, Any] = {}
    notes = []
    for name, default in (("hidden", 128), ("metric", "cosine")):
        if config.probe in OF_PROBES[name] and getattr(config, name) is None:
            effective[name] = default
    own = config.parameter
    if own and getattr(config, own) is None:
        effective[own] = PARAMETERS[config.probe][1]
    who = f"the probe {config.probe!r}" if config.solver == "exact" else f"the recipe {config.solver!r}"
    if config.C is not None and own != "C":
        effective["C"] = None
        notes.append(
            f"C was given and is not a parameter of {who}, which " + (f"has {own}" if own else "has none")
        )
    if config.solver != "exact":
        if config.preprocess not in ((), ("none",)):
            notes.append(f"{who} takes features as they are: preprocess was not used")
        effective["preprocess"], effective["class_weight"] = ("none",), ()
    elif not config.preprocess:
        effective["preprocess"] = ("none",) if config.probe in ("knn", "centroid") else ("standardize",)
    blind = config.probe == "centroid" or config.criterion == "auroc"
    if config.solver == "exact" and blind and len(config.class_weight) > 1:
        first = config.class_weight[0]
        effective["class_weight"] = (first,)
        why = "the probe 'centroid'" if config.criterion != "auroc" else "AUROC, which chooses,"
        notes.append(f"{why} cannot tell class weights apart: all models have the first given, {first!r}")
    return {**effective, "notes": tuple(notes)}


def _not_in(name: str, given: Sequence[str], allowed: Sequence[str]) -> Iterable[str]:
    if not given:
        yield f"{name} is empty"
    yield from (not_one_of(name, value, allowed) for value in given if value not in allowed)
