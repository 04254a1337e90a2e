"""What a probe study is asked to do: one frozen config, from Python, TOML or the command line."""

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..settings import read_toml
from .leaks import KINDS

# 40 strengths, 1e-6 .. 10, evenly spaced in the logarithm. C is scikit-learn's: the inverse of the penalty,
# for the SUM of the losses; on standardized features of a few thousand patches the best C is about 1e-4 .. 1.
C_GRID: tuple[float, ...] = tuple(10.0 ** (-6 + 7 * i / 39) for i in range(40))

PROBES = ("logistic", "knn", "centroid", "ridge", "svm", "mlp")
PROBABILISTIC = ("logistic", "mlp")  # their scores are logits
SOLVERS = ("exact", "paper-sgd", "paper-sgd-1e-3", "thunder", "eva")
PREPROCESSING = ("standardize", "l2", "whiten", "none")
CLASS_WEIGHTS = ("balanced", "none", "votes")
SELECTION = ("log_loss", "auroc", "balanced_accuracy")
INTERVALS = ("jackknife", "bca", "percentile")
BACKENDS = ("loky", "threading", "ray")
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
    """Every encoder x view x token policy, then the sets written out; each once, in this order."""
    grid = itertools.product(encoders, views, [None] if tokens is None else tokens)
    found = [FeatureSet((Source(*one),)) for one in grid]
    found += [parse_features(one) if isinstance(one, str) else one for one in features]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Everything that decides the numbers of a probe study, apart from the data (frozen; see the fields).

    features         names of feature sets, as parse_features reads them
    probe, solver    the classifier; the solvers other than "exact" are published recipes (`rivals`)
    preprocess, C, class_weight
                     the grid: chosen on folds, never on test data. Class weight "votes" is "balanced" with
                     the shares of the experts' votes as soft labels
    select           what is best on the folds: "log_loss" (class-balanced), "auroc" or "balanced_accuracy"
                     (None: log_loss, for probes without probabilities auroc)
    folds            "balanced" (5, by `datasets.folds`), another shipped name, a file, or how many to make
    inner_folds      folds inside each outer training set, which choose the setting for that outer fold
    bootstrap        resamples of whole groups (slides) for every interval; 0: no intervals
    interval, level  "jackknife" (over groups, Student's t: covers as it says, see tests/benchmarks/
                     stats_coverage.py), bootstrap "bca" (percentiles below 20 groups) or "percentile"; level
                     in [0.5, 1)
    domains          leave-one-domain-out and train-A/test-B for: the chosen feature set, all, none
    positive         one class against the rest; needed where a data set has more than two classes
    precision, dtype of the stores to read, where a bank has several of one encoder, view and token policy
    near_duplicates  for the audit: a file of pairs that show the same, of `datasets check --near --pairs`
    allow_leaks      kinds of leaks that are reported and not refused, see `leaks.KINDS`; "all" for any
    """

    features: tuple[str, ...]
    probe: str = "logistic"
    solver: str = "exact"
    preprocess: tuple[str, ...] = ("standardize",)
    C: tuple[float, ...] = C_GRID
    class_weight: tuple[str, ...] = ("balanced", "none")
    select: str | None = None
    folds: str | int = "balanced"
    inner_folds: int = 5
    tol: float = 1e-7
    seed: int = 0
    bootstrap: int = 2000
    interval: str = "jackknife"
    level: float = 0.95
    domains: str = "chosen"
    positive: str | None = None
    precision: str | None = None
    dtype: str | None = None
    near_duplicates: str | None = None
    allow_leaks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise InvalidRequest("probe settings: " + "; ".join(faults))

    @property
    def criterion(self) -> str:
        """What chooses."""
        return self.select or ("log_loss" if self.probe in PROBABILISTIC else "auroc")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results.json; `from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ProbeConfig":
        """Build one from plain values; unknown keys are refused, with the near name."""
        known = [f.name for f in fields(cls)]
        faults = []
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                faults.append(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        if faults:
            raise InvalidRequest("probe settings: " + "; ".join(faults) + f" (known: {', '.join(known)})")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The table [probe] of a TOML file, as keywords for `run_probe` or `ProbeConfig.from_dict`."""
    try:
        values = read_toml(path)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{path}: cannot be read as TOML: {error}") from error
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
    yield from _not_in("preprocess", config.preprocess, PREPROCESSING)
    yield from _not_in("class_weight", config.class_weight, CLASS_WEIGHTS)
    if config.select is not None:
        yield from _not_in("select", [config.select], SELECTION)
    if config.select == "log_loss" and config.probe not in PROBABILISTIC:
        yield f"probe {config.probe!r} has no probabilities: select by auroc or balanced_accuracy"
    if "votes" in config.class_weight and config.probe != "logistic":
        yield f"class_weight 'votes' is for the probe 'logistic', not for {config.probe!r}"
    if config.solver != "exact" and config.probe != "logistic":
        yield f"solver {config.solver!r} is for the probe 'logistic', not for {config.probe!r}"
    yield from _not_in("interval", [config.interval], INTERVALS)
    yield from _not_in("domains", [config.domains], DOMAIN_ANALYSIS)
    yield from _not_in("allow_leaks", config.allow_leaks or ["all"], (*KINDS, "all"))
    if not config.C or any(not (c > 0 and math.isfinite(c)) for c in config.C):
        yield f"C has to be positive numbers, not {list(config.C)}"
    if isinstance(config.folds, int) and config.folds < 2:
        yield f"folds has to be 2 or more, not {config.folds}"
    if config.inner_folds < 2:
        yield f"inner_folds has to be 2 or more, not {config.inner_folds}"
    if config.bootstrap < 0 or 0 < config.bootstrap < 100:
        yield f"bootstrap has to be 0 or at least 100, not {config.bootstrap}"
    if not 0.5 <= config.level < 1:
        yield f"level has to be in [0.5, 1), not {config.level}"


def _not_in(name: str, given: Sequence[str], allowed: Sequence[str]) -> Iterable[str]:
    if not given:
        yield f"{name} is empty"
    for one in given:
        if one not in allowed:
            near = difflib.get_close_matches(str(one), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{name} {one!r} is not one of {', '.join(allowed)}{hint}"
