"""Do 95 % intervals hold the truth 95 times in 100, and do tests at 5 % reject 5 in 100? By simulation.

    python tests/benchmarks/stats_coverage.py [--quick] [--jobs N]

Slides of unequal size share an offset of the score, of standard deviation `slide_sd` beside 1 within a
slide, and differ in prevalence; the population's values are known in closed form (AUROC, balanced accuracy)
or from 4 million rows (AP). For each design: the coverage of the percentile, BCa and DeLong intervals over
slides, of the jackknife's, and of those that take rows for independent; and how often two equally good
models are called different. A share of .95 of 400 has a standard error of .011.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from patchbank.probe.intervals import bootstrap, compare, delong, permutation_test
from scipy import stats
from sklearn.metrics import average_precision_score

DESIGNS = (  # slides, mean rows a slide, slide_sd, share of positives
    {"slides": 20, "rows": 10, "slide_sd": 0.7, "prevalence": 0.25},
    {"slides": 56, "rows": 15, "slide_sd": 0.7, "prevalence": 0.22},
    {"slides": 56, "rows": 15, "slide_sd": 1.5, "prevalence": 0.22},
    {"slides": 150, "rows": 14, "slide_sd": 0.7, "prevalence": 0.10},
    {"slides": 300, "rows": 1, "slide_sd": 0.0, "prevalence": 0.15},
)
SHIFT = 1.2  # between the classes, on the score's scale
METRICS = ("balanced_accuracy", "auroc", "average_precision")


def draw(
    rng: np.random.Generator, *, slides: int, rows: int, slide_sd: float, prevalence: float, m: int = 2
) -> tuple[Any, Any, Any]:
    """Labels, scores (n, m) with the threshold at 0, slide of each row. Slide sizes are geometric."""
    codes = np.repeat(np.arange(slides), rng.geometric(1 / rows, slides))
    share = (
        rng.beta(3 * prevalence, 3 * (1 - prevalence), slides) if rows > 1 else np.full(slides, prevalence)
    )
    y = (rng.random(len(codes)) < share[codes]).astype(int)
    offset = slide_sd * rng.normal(size=slides)[codes]
    return y, SHIFT * (y[:, None] - 0.5) + offset[:, None] + rng.normal(size=(len(y), m)), codes


def population(design: dict[str, Any]) -> dict[str, float]:
    spread = np.sqrt(1 + design["slide_sd"] ** 2)
    rng = np.random.default_rng(99)
    y = rng.random(4_000_000) < design["prevalence"]
    scores = SHIFT * (y - 0.5) + spread * rng.normal(size=len(y))
    return {
        "balanced_accuracy": float(stats.norm.cdf(SHIFT / 2 / spread)),
        "auroc": float(stats.norm.cdf(SHIFT / spread / np.sqrt(2))),
        "average_precision": float(average_precision_score(y, scores)),
    }


def once(
    seed: int, design: dict[str, Any], truth: dict[str, float], n_resamples: int
) -> dict[str, float] | None:
    rng = np.random.default_rng([7, seed])
    y, scores, codes = draw(rng, **design)
    if y.sum() < 5:
        return None
    options: dict[str, Any] = {"metrics": METRICS, "threshold": 0.0, "n_resamples": n_resamples, "seed": seed}
    by_slide = bootstrap(y, scores, groups=codes, **options)
    student = bootstrap(y, scores, groups=codes, method="jackknife", **{**options, "n_resamples": 2})
    by_row = bootstrap(y, scores[:, 0], groups=None, method="percentile", **options)
    found: dict[str, float] = {}
    for name in METRICS:
        one, rows = by_slide[name], by_row[name]
        low, high = np.nanquantile(one.draws[:, 0], [0.025, 0.975])
        found[f"{name}: bca"] = one.low[0] <= truth[name] <= one.high[0]
        found[f"{name}: percentile"] = low <= truth[name] <= high
        found[f"{name}: rows"] = rows.low[0] <= truth[name] <= rows.high[0]
        found[f"{name}: differs (shifted)"] = compare(one).p[0] < 0.05
        found[f"{name}: jackknife"] = student[name].low[0] <= truth[name] <= student[name].high[0]
        found[f"{name}: differs (student)"] = compare(student[name], p_value="standard_error").p[0] < 0.05
        swapped = permutation_test(
            y, scores, metric=name, threshold=0.0, groups=codes, n_permutations=199, seed=seed
        )
        found[f"{name}: differs (permutation)"] = swapped.p[0] < 0.05
    for label, groups in (("delong", codes), ("delong rows", None)):
        formula = delong(y, scores, groups=groups)
        low, high = formula.interval()
        found[f"auroc: {label}"] = low[0] <= truth["auroc"] <= high[0]
        found[f"auroc: differs ({label})"] = formula.compare().p[0] < 0.05
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of intervals and error rates of tests.")
    parser.add_argument("--quick", action="store_true", help="two designs, 40 data sets each")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    designs, repeats, n_resamples = (DESIGNS[:2], 40, 200) if arguments.quick else (DESIGNS, 400, 600)
    for design in designs:
        start = time.perf_counter()
        truth = population(design)
        outcomes = Parallel(n_jobs=arguments.jobs)(
            delayed(once)(seed, design, truth, n_resamples) for seed in range(repeats)
        )
        kept: list[Any] = [found for found in outcomes if found is not None]
        shares = {name: round(float(np.mean([found[name] for found in kept])), 3) for name in kept[0]}
        about = {"data_sets": len(kept), "skipped": repeats - len(kept), "truth": truth}
        print(
            json.dumps({**design, **about, "shares": shares, "s": round(time.perf_counter() - start, 1)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
