"""What a reader of a medical journal asks for beside the scores: calibration, operating points, benefit,
domains.

Each method takes logits (n, m) of m models and returns one part of a result a model. Every number is an
estimate; where it has no interval, `reasons` of the part says why, by the number's name.
Intervals are of the jackknife over clusters with Student's t, or of `intervals.proportion_interval` for
proportions, whatever method the other scores have. FORMAT.md says where they stand in results.json.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..statistics.calibration import (
    CALIBRATION_SCALES,
    Assessed,
    assess_calibration,
    calibration_floor,
    net_benefit,
    predictive_values,
)
from ..statistics.heterogeneity import heterogeneity
from ..statistics.intervals import Estimates, Interval, cluster_codes, estimate, estimate_function
from ..statistics.metrics import Scale, confusion, leave_one_out
from .schema import (
    Benefit,
    BetweenDomains,
    Calibration,
    Calls,
    Confusion,
    Estimate,
    Floor,
    PredictiveValues,
    Rates,
    Worst,
)

Floats = NDArray[np.float64]

PREVALENCES = (0.05, 0.1, 0.2, 0.3, 0.5)
SPECIFICITIES = (0.9, 0.95)
_RATES = ("sensitivity", "specificity")


class Assessment:
    """The numbers of m models on the same rows.

    y : int (n,), 0 or 1; group : (n,), see `intervals.cluster_codes`
    level : of the intervals; None: no intervals. inflation : as for `intervals.estimate`
    """

    def __init__(
        self, y: np.ndarray, group: np.ndarray, *, level: float | None, inflation: float = 1.0
    ) -> None:
        self.y, self.group, self.level, self.inflation = y, group, level, inflation
        self.codes = cluster_codes(group, len(y))

    def calibration(self, logits: Floats) -> list[Calibration]:
        """slope, intercept, observed_expected (see `calibration.assess_calibration`), and ece_floor: mean
        and high, the mean and the 95th percentile of the ECE (equal width) that perfectly calibrated
        probabilities would have on these rows, p of the observed one.
        """
        of_models = self._numbers(assess_calibration(self.y, logits, self.codes), CALIBRATION_SCALES)
        floors = [calibration_floor(self.y, column) for column in special.expit(logits).T]
        return [
            Calibration(**curve, ece_floor=Floor(**floor._asdict()))
            for curve, floor in zip(of_models, floors, strict=True)
        ]

    def benefit(self, logits: Floats) -> list[tuple[dict[str, Benefit], dict[str, str]]]:
        """The decision curve, threshold probability -> benefit (see `calibration.net_benefit`); reasons."""
        curve = net_benefit(self.y, special.expit(logits), self.codes)
        return [
            (
                {
                    t: Benefit(model=numbers[t], all=numbers[f"all {t}"])
                    for t in numbers
                    if f"all {t}" in numbers
                },
                numbers["reasons"],
            )
            for numbers in self._numbers(curve, {})
        ]

    def calls(self, scores: Floats) -> list[Calls]:
        """Of score >= 0: confusion (tp, fp, fn, tn), sensitivity, specificity, and predictive_values,
        prevalence -> ppv, npv; the prevalence "observed" is that of these rows.
        """
        rates = self._estimates(scores, _RATES)
        left = leave_one_out(self.y, scores, metrics=_RATES, logits=True, groups=self.codes)
        shares = {f"{p:g}": p for p in PREVALENCES}
        if 0 < self.y.mean() < 1:
            shares["observed"] = float(self.y.mean())
        values, left_out = {}, {}
        for name, prevalence in shares.items():
            whole = predictive_values(rates["sensitivity"].value, rates["specificity"].value, prevalence)
            without = predictive_values(left["sensitivity"], left["specificity"], prevalence)
            for kind, value, each in zip(("ppv", "npv"), whole, without, strict=True):
                values[f"{name}.{kind}"], left_out[f"{name}.{kind}"] = value, each
        predicted = self._numbers(Assessed(values=values, left_out=left_out), dict.fromkeys(values, "logit"))
        counts = confusion(self.y, scores, logits=True)
        calls = []
        for j, called in enumerate(predicted):
            rate = self._fields(rates, j)
            for key in ("uncertainty", "reasons"):
                rate[key] |= {f"predictive_values.{name}": value for name, value in called[key].items()}
            of_share = {s: PredictiveValues(ppv=called[f"{s}.ppv"], npv=called[f"{s}.npv"]) for s in shares}
            confused = Confusion(**{k: int(getattr(counts, k)[j]) for k in ("tp", "fp", "fn", "tn")})
            calls.append(Calls(**rate, confusion=confused, predictive_values=of_share))
        return calls

    def at_cut(self, scores: Floats) -> list[Rates]:
        """sensitivity and specificity of score >= 0, the cut having been fixed elsewhere."""
        rates = self._estimates(scores, _RATES)
        return [Rates(**self._fields(rates, j)) for j in range(scores.shape[1])]

    def _estimates(self, scores: Floats, names: Sequence[str]) -> Estimates:
        return estimate(
            self.y,
            scores,
            groups=self.group,
            metrics=names,
            logits=True,
            confidence=self.level or 0.95,
            inflation=self.inflation,
        )

    def _numbers(self, assessed: Assessed, scales: Mapping[str, Scale]) -> list[dict[str, Any]]:
        """The fields of each model's part; see `_fields`."""
        intervals = estimate_function(
            lambda weights, codes: assessed.values,
            without=lambda codes: {} if codes is None else assessed.left_out,
            n_rows=len(self.y),
            groups=self.group,
            scales=scales,
            confidence=self.level or 0.95,
            inflation=self.inflation,
        )
        m = len(next(iter(assessed.values.values())))
        return [self._fields(intervals, j) for j in range(m)]

    def _fields(self, intervals: Mapping[str, Interval], j: int) -> dict[str, Any]:
        """name -> estimate of model j, `uncertainty` and `reasons`: name -> what stands beside it."""
        if self.level is None:
            numbers = {name: Estimate(number(values_of.value[j])) for name, values_of in intervals.items()}
            return {**numbers, "uncertainty": {}, "reasons": {}}
        keys = ("standard_error", "degrees_of_freedom")
        uncertainty = {
            name: {key: number(getattr(interval, key)[j]) for key in keys}
            for name, interval in intervals.items()
        }
        return {
            **{
                name: replace(bare(one, j), **uncertainty[name], reason=one.reason[j])
                for name, one in intervals.items()
            },
            "uncertainty": uncertainty,
            "reasons": {name: one.reason[j] for name, one in intervals.items() if one.reason[j]},
        }


def between_domains(
    domains: Mapping[str, Interval], simultaneous: Mapping[str, Interval], j: int
) -> BetweenDomains:
    """How one metric of model j differs between domains: its lowest value and what of the spread is not
    chance.

    domains, simultaneous : domain -> interval, at the level of the results, and at 1 - (1 - level) / k,
        which hold all k at once: the worst of k is found by looking at all
    Returns worst, scale ("logit": of sd), k, left_out (domain -> why it takes no part), and from two domains
    on q, p, sd and i2 (see `heterogeneity.heterogeneity`).
    """
    known = {d: of_domain for d, of_domain in domains.items() if not math.isnan(of_domain.value[j])}
    worst, left_out = None, {}
    if known:
        domain = min(known, key=lambda d: known[d].value[j])
        value, low, high = bare(simultaneous[domain], j)
        worst = Worst(domain=domain, value=value, low=low, high=high)
    values, errors = [], []
    for d, interval in domains.items():
        v, error = float(interval.value[j]), float(interval.standard_error[j])
        if 0 < v < 1 and error > 0:
            values.append(float(special.logit(v)))
            errors.append(error / (v * (1 - v)))
        else:
            left_out[d] = interval.reason[j] or "no standard error: no group changes the value"
    spread: dict[str, Any] = {}
    if len(values) > 1:
        h = heterogeneity(values, errors, confidence=next(iter(domains.values())).confidence)
        spread = {"q": h.q, "p": h.p}
        spread |= {"sd": Estimate(h.sd, h.sd_low, h.sd_high), "i2": Estimate(h.i2, h.i2_low, h.i2_high)}
    return BetweenDomains(worst=worst, scale="logit", left_out=left_out, k=len(values), **spread)


def bare(interval: Interval, j: int) -> Estimate:
    """Value, low and high of model j; None where undefined."""
    value, low, high = (number(column[j]) for column in (interval.value, interval.low, interval.high))
    return Estimate(value, low, high)


def number(value: Any) -> float | None:
    """A plain number; None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None
