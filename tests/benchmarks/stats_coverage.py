"""Do 95 % intervals hold the truth 95 times in 100, and do tests at 5 % reject 5 in 100? By simulation.

    python tests/benchmarks/stats_coverage.py [--quick] [--jobs N] [--data-sets N] [--only NAME]

Slides of unequal size share an offset of the score, of standard deviation `slide_sd` beside 1 within a
slide, and differ in prevalence; the population's values are known in closed form (AUROC, balanced accuracy,
sensitivity) or from 4 million rows (AP). Designs, a line of JSON each:

slides          the jackknife (default), bootstrap percentiles and BCa, DeLong, intervals over rows; how often
                two equally good models are called different, and coverage of the interval of their difference
near 1          true sensitivity .961 and .987, AUROC .994 and .999; few slides with positives
groups unknown  there are slides and nobody knows: rows as independent, and the same at a design effect of 2
out of fold     the real protocol (nested, `run_protocol`) on slides with features: out-of-fold scores against
                what the models of the folds are worth on average, with the jackknife's own variance and with
                OOF_INFLATION
classes         four classes, the rarest 1 in 13 rows: metrics of all classes, and of the rarest by itself
numbers         two targets that slides share an offset of

A share of .95 of 400 has a standard error of .011. "none" is the share without an interval; coverage is of
the rest.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from patchbank.datasets.folds import make_folds
from patchbank.errors import PatchbankError
from patchbank.probe.config import ProbeConfig
from patchbank.probe.protocol import make_plan, run_protocol
from patchbank.probe.results.scoring import OOF_INFLATION
from patchbank.probe.statistics import continuous, metrics, multiclass
from patchbank.probe.statistics.comparisons import compare_paired, permutation_test
from patchbank.probe.statistics.delong import delong
from patchbank.probe.statistics.intervals import estimate
from scipy import stats
from sklearn.metrics import average_precision_score

SHIFT = 1.2  # between the classes, on the score's scale
SLIDES = {"rows": 10, "slide_sd": 0.7, "prevalence": 0.25, "shift": SHIFT}
OUT_OF_FOLD = {"rows": 15, "slide_sd": 0.5, "inner_folds": "shared"}
DESIGNS: tuple[dict[str, Any], ...] = (
    {"kind": "slides", "slides": 20, **SLIDES},
    {"kind": "slides", "slides": 56, **SLIDES, "rows": 15, "prevalence": 0.22},
    {"kind": "slides", "slides": 56, **SLIDES, "rows": 15, "prevalence": 0.22, "slide_sd": 1.5},
    {"kind": "slides", "slides": 150, **SLIDES, "rows": 14, "prevalence": 0.10},
    {"kind": "slides", "slides": 300, "rows": 1, "slide_sd": 0.0, "prevalence": 0.15, "shift": SHIFT},
    {"kind": "near 1", "slides": 30, **SLIDES, "prevalence": 0.15, "shift": 4.3},
    {"kind": "near 1", "slides": 30, **SLIDES, "prevalence": 0.15, "shift": 5.4},
    {"kind": "near 1", "slides": 30, **SLIDES, "prevalence": 0.05},
    {"kind": "groups unknown", "slides": 56, **SLIDES, "rows": 15, "prevalence": 0.22},
    {"kind": "classes", "slides": 20, "rows": 15, "slide_sd": 0.5, "shift": 2.0},
    {"kind": "classes", "slides": 60, "rows": 15, "slide_sd": 0.5, "shift": 2.0},
    {"kind": "classes", "slides": 60, "rows": 15, "slide_sd": 0.5, "shift": 5.0},
    {"kind": "numbers", "slides": 20, "rows": 15, "slide_sd": 0.7, "noise": 1.0},
    {"kind": "numbers", "slides": 60, "rows": 15, "slide_sd": 0.7, "noise": 1.0},
    {"kind": "out of fold", "slides": 20, "prevalence": 0.25, "effect": 1.5, **OUT_OF_FOLD},
    {"kind": "out of fold", "slides": 40, "prevalence": 0.25, "effect": 1.5, **OUT_OF_FOLD},
    {"kind": "out of fold", "slides": 40, "prevalence": 0.15, "effect": 2.5, **OUT_OF_FOLD},
    {"kind": "out of fold", "slides": 40, "prevalence": 0.25, "effect": 1.5, **OUT_OF_FOLD, "inner_folds": 3},
)
METRICS = ("balanced_accuracy", "auroc", "average_precision", "sensitivity")
COMPARED = ("balanced_accuracy", "auroc")
SHARES = (0.5, 0.27, 0.15, 0.08)  # of classes
OF_CLASSES = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "f1",
    "kappa",
    "log_loss",
    "brier",
)
OF_THE_RAREST = ("sensitivity", "precision", "f1", "auroc")
DIM = 40  # features out of fold


def draw(
    rng: np.random.Generator,
    *,
    slides: int,
    rows: int,
    slide_sd: float,
    prevalence: float,
    shift: float,
    m: int = 2,
) -> tuple[Any, Any, Any]:
    """Labels, scores (n, m) with the threshold at 0, slide of each row. Slide sizes are geometric."""
    codes, y = draw_labels(rng, slides, rows, prevalence)
    offset = slide_sd * rng.normal(size=slides)[codes]
    return y, shift * (y[:, None] - 0.5) + offset[:, None] + rng.normal(size=(len(y), m)), codes


def draw_labels(rng: np.random.Generator, slides: int, rows: int, prevalence: float) -> tuple[Any, Any]:
    codes = np.repeat(np.arange(slides), rng.geometric(1 / rows, slides))
    share = (
        rng.beta(3 * prevalence, 3 * (1 - prevalence), slides) if rows > 1 else np.full(slides, prevalence)
    )
    return codes, (rng.random(len(codes)) < share[codes]).astype(int)


def population(*, slide_sd: float, prevalence: float, shift: float, **_: Any) -> dict[str, float]:
    spread = np.sqrt(1 + slide_sd**2)
    rng = np.random.default_rng(99)
    y = rng.random(4_000_000) < prevalence
    scores = shift * (y - 0.5) + spread * rng.normal(size=len(y))
    right = float(stats.norm.cdf(shift / 2 / spread))
    return {
        "balanced_accuracy": right,
        "sensitivity": right,
        "auroc": float(stats.norm.cdf(shift / spread / np.sqrt(2))),
        "average_precision": float(average_precision_score(y, scores)),
    }


def inside(one: Any, truth: float) -> float:
    """1, 0, or NaN where there is no interval (or p)."""
    return float(one.low[0] <= truth <= one.high[0]) if np.isfinite(one.low[0]) else np.nan


def scored_slides(rng: Any, seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float]:
    y, scores, codes = draw(rng, **design)
    options: dict[str, Any] = {"metrics": METRICS, "threshold": 0.0}
    found: dict[str, float] = {}
    bootstrap: dict[str, Any] = {"groups": codes, "n_resamples": 400, "seed": seed, **options}
    ways = {
        "jackknife": estimate(y, scores, groups=codes, **options),
        "percentile": estimate(y, scores[:, 0], method="percentile", **bootstrap),
        "bca": estimate(y, scores[:, 0], method="bca", **bootstrap),
        "rows": estimate(y, scores[:, 0], groups=None, **options),
    }
    for way, one in ways.items():
        found |= {f"{name}: {way}": inside(one[name], truth[name]) for name in METRICS}
    compared = compare_paired(
        y, scores, groups=codes, metrics=COMPARED, threshold=0.0, estimates=ways["jackknife"], seed=seed
    )
    for name, one in compared.items():
        found[f"{name}: differs"] = float(one.p[0] < 0.05) if np.isfinite(one.p[0]) else np.nan
        found[f"{name}: difference"] = inside(one, 0.0)
        swapped = permutation_test(
            y, scores, metric=name, threshold=0.0, groups=codes, n_permutations=199, seed=seed
        )
        found[f"{name}: differs (permutation)"] = float(swapped.p[0] < 0.05)
    for label, groups in (("delong", codes), ("delong rows", None)):
        try:
            formula = delong(y, scores, groups=groups)
        except PatchbankError:
            continue
        low, high = formula.interval()
        found[f"auroc: {label}"] = float(low[0] <= truth["auroc"] <= high[0])
        found[f"auroc: differs ({label})"] = float(formula.compare().p[0] < 0.05)
    return found


def scored_near_one(rng: Any, seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float]:
    y, scores, codes = draw(rng, **design)
    one = estimate(y, scores, groups=codes, metrics=METRICS, threshold=0.0)
    found = {name: inside(one[name], truth[name]) for name in METRICS}
    compared = compare_paired(
        y, scores, groups=codes, metrics=COMPARED, threshold=0.0, estimates=one, seed=seed
    )
    for name, difference in compared.items():
        p = difference.p[0]
        found[f"{name}: differs"] = float(p < 0.05) if np.isfinite(p) else np.nan
        found[f"{name}: difference"] = inside(difference, 0.0)
    return found


def scored_unknown(rng: Any, seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float]:
    y, scores, codes = draw(rng, **design)
    ways = {
        "slides (were they known)": estimate(y, scores, groups=codes, metrics=METRICS, threshold=0.0),
        "rows": estimate(y, scores, groups=None, metrics=METRICS, threshold=0.0),
        "rows, design effect 2": estimate(
            y, scores, groups=None, metrics=METRICS, threshold=0.0, inflation=2.0
        ),
    }
    return {f"{name}: {way}": inside(one[name], truth[name]) for way, one in ways.items() for name in METRICS}


def scored_out_of_fold(rng: Any, seed: int, design: dict[str, Any], _: dict[str, float]) -> dict[str, float]:
    """The protocol on 40 features; the truth of a linear model on normal features is in closed form."""
    slides, slide_sd = design["slides"], design["slide_sd"]
    effect = rng.standard_normal(DIM)
    effect *= design["effect"] / np.linalg.norm(effect)
    codes, y = draw_labels(rng, slides, design["rows"], design["prevalence"])
    X = rng.standard_normal((len(y), DIM)) + slide_sd * rng.standard_normal((slides, DIM))[codes]
    X = (X + np.outer(y, effect)).astype(np.float32)
    groups = codes.astype(str).astype(object)
    config = ProbeConfig(
        features=("any",), C=(1e-3, 1e-2, 1e-1), class_weight=("balanced",), inner_folds=design["inner_folds"]
    )
    folds = make_folds(y, groups, n_splits=5, seed=0).assign(groups)
    plan = make_plan(y, groups, folds, config=config)
    probes = np.vstack([np.zeros(DIM), np.eye(DIM)]).astype(np.float32)  # which read off offset and weights
    run = run_protocol(X, y, plan, {"probes": probes}, config=config)
    level, weights = run.fold_models["probes"][0], run.fold_models["probes"][1:]
    weights = weights - level
    spread, shift = np.sqrt((weights**2).sum(axis=0) * (1 + slide_sd**2)), effect @ weights
    right = (stats.norm.cdf((level + shift) / spread) + stats.norm.cdf(-level / spread)) / 2
    truth = {
        "balanced_accuracy": float(right.mean()),
        "auroc": float(stats.norm.cdf(shift / spread / 2**0.5).mean()),
    }
    found = {}
    for way, inflation in (("jackknife", 1.0), (f"inflated {OOF_INFLATION}", OOF_INFLATION)):
        one = estimate(
            y,
            run.oof,
            order=run.oof_ranking,
            logits=True,
            groups=groups,
            metrics=COMPARED,
            inflation=inflation,
        )
        found |= {f"{name}: {way}": inside(one[name], truth[name]) for name in COMPARED}
        found |= {f"{name}: error": float(one[name].value[0] - truth[name]) for name in COMPARED}
    return found


def draw_classes(
    rng: np.random.Generator, *, slides: int, rows: int, slide_sd: float, shift: float, m: int = 2
) -> tuple[Any, Any, Any]:
    """Labels of four classes, logits (n, m, 4), slide of each row."""
    codes = np.repeat(np.arange(slides), rng.geometric(1 / rows, slides))
    share = rng.dirichlet(np.array(SHARES) * 8, slides)
    y = (rng.random((len(codes), 1)) > share.cumsum(axis=1)[codes][:, :-1]).sum(axis=1)
    offset = slide_sd * rng.normal(size=(slides, 1, len(SHARES)))
    noise = offset[codes] + rng.normal(size=(len(codes), m, len(SHARES)))
    return y, shift * np.eye(len(SHARES))[y][:, None] + noise, codes


def scored_classes(rng: Any, seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float]:
    y, logits, codes = draw_classes(rng, **design)
    options: dict[str, Any] = {"logits": True, "groups": codes}
    one = multiclass.estimate(y, logits, metrics=OF_CLASSES, **options)
    found = {name: inside(one[name], truth[name]) for name in OF_CLASSES}
    rarest = one.classes[-1]
    found |= {f"rarest: {name}": inside(rarest[name], truth[f"rarest: {name}"]) for name in OF_THE_RAREST}
    compared = multiclass.compare_paired(y, logits, metrics=COMPARED, estimates=one, seed=seed, **options)
    for name, difference in compared.items():
        p = difference.p[0]
        found[f"{name}: differs"] = float(p < 0.05) if np.isfinite(p) else np.nan
        found[f"{name}: difference"] = inside(difference, 0.0)
    return found


def draw_numbers(
    rng: np.random.Generator, *, slides: int, rows: int, slide_sd: float, noise: float
) -> tuple[Any, Any, Any]:
    """Two targets (n, 2), predictions of two equally good models (n, 2, 2), slide of each row."""
    codes = np.repeat(np.arange(slides), rng.geometric(1 / rows, slides))
    y = slide_sd * rng.normal(size=(slides, 2))[codes] + rng.normal(size=(len(codes), 2))
    offset = slide_sd * rng.normal(size=(slides, 2, 2))[codes]
    return y, 0.6 * (y[:, None] + offset + noise * rng.normal(size=(len(codes), 2, 2))), codes


def scored_numbers(rng: Any, seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float]:
    y, predictions, codes = draw_numbers(rng, **design)
    one = continuous.estimate(y, predictions, groups=codes)
    found = {name: inside(one[name], truth[name]) for name in continuous.METRICS}
    compared = continuous.compare_paired(y, predictions, groups=codes, estimates=one, seed=seed)
    for name, difference in compared.items():
        found[f"{name}: differs"] = float(difference.p[0] < 0.05)
        found[f"{name}: difference"] = inside(difference, 0.0)
    return found


def large_sample(kind: str, **design: Any) -> dict[str, float]:
    """The values of the population, from 40,000 slides."""
    rng = np.random.default_rng(99)
    about = {**design, "slides": 40_000}
    if kind == "numbers":
        y, predictions, _ = draw_numbers(rng, **about)
        return {m: float(v.mean()) for m, v in continuous.evaluate(y, predictions[:, 0]).items()}
    y, logits, _ = draw_classes(rng, **about, m=1)
    values = multiclass.evaluate(y, logits[:, 0], metrics=OF_CLASSES, logits=True)
    truth = {m: float(v) for m, v in values.items()}
    last = len(SHARES) - 1
    order = multiclass.log_odds(logits[:, 0], last)
    called = logits[:, 0].argmax(axis=1) == last
    rarest = metrics.evaluate(y == last, called, metrics=OF_THE_RAREST, order=order)
    return truth | {f"rarest: {m}": float(v) for m, v in rarest.items()}


KINDS = {
    "slides": scored_slides,
    "near 1": scored_near_one,
    "groups unknown": scored_unknown,
    "out of fold": scored_out_of_fold,
    "classes": scored_classes,
    "numbers": scored_numbers,
}


def once(seed: int, design: dict[str, Any], truth: dict[str, float]) -> dict[str, float] | None:
    about = {k: v for k, v in design.items() if k != "kind"}
    try:
        return KINDS[design["kind"]](np.random.default_rng([7, seed]), seed, about, truth)
    except PatchbankError:  # a class in too few slides for folds: no study of this kind
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of intervals and error rates of tests.")
    parser.add_argument("--quick", action="store_true", help="one design of each kind, 20 data sets each")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data-sets", type=int, default=400)
    parser.add_argument("--only", choices=list(KINDS))
    arguments = parser.parse_args()
    designs = [d for d in DESIGNS if arguments.only in (None, d["kind"])]
    repeats = arguments.data_sets
    if arguments.quick:
        designs, repeats = list({d["kind"]: d for d in designs}.values()), 20
    for design in designs:
        start = time.perf_counter()
        if design["kind"] in ("classes", "numbers"):
            truth = large_sample(**design)
        else:
            truth = {} if "effect" in design else population(**design)
        outcomes = Parallel(n_jobs=arguments.jobs)(
            delayed(once)(seed, design, truth) for seed in range(repeats)
        )
        kept: list[Any] = [found for found in outcomes if found is not None]
        names = dict.fromkeys(name for found in kept for name in found)
        values = {name: np.array([found.get(name, np.nan) for found in kept]) for name in names}
        print(
            json.dumps(
                {
                    **design,
                    "data_sets": len(kept),
                    "skipped": repeats - len(kept),
                    "truth": {name: round(value, 3) for name, value in truth.items()},
                    "shares": {name: round(float(np.nanmean(v)), 3) for name, v in values.items()},
                    "none": {
                        name: round(float(np.isnan(v).mean()), 3)
                        for name, v in values.items()
                        if np.isnan(v).any()
                    },
                    "s": round(time.perf_counter() - start, 1),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
