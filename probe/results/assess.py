"""What a reader of a medical journal asks for beside the scores: calibration, operating points, benefit,
domains.

Each function takes labels (n,), logits (n, m) of m models and the cluster of each row, and returns plain
JSON values, one dict a model. Every number is [value, low, high]; low and high are None where there is no
interval, and then `reasons` of the model's dict says why, by the place of the number ("platt.slope");
`uncertainty` has its standard error and degrees of freedom.
Intervals are of the jackknife over clusters with Student's t, or of `intervals.proportion_interval` for
proportions, whatever method the other scores have. FORMAT.md says where the results stand in a record, and
what they are called.
"""

import math
from collections.abc import Mapping, Sequence
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

    def calibration(self, logits: Floats) -> list[dict[str, Any]]:
        """slope, intercept, observed_expected (see `calibration.assess_calibration`), and ece_floor: mean
        and high, the mean and the 95th percentile of the ECE (equal width) that perfectly calibrated
        probabilities would have on these rows, p of the observed one.
        """
        records = self._numbers(assess_calibration(self.y, logits, self.codes), CALIBRATION_SCALES)
        for one, column in zip(records, special.expit(logits).T, strict=True):
            one["ece_floor"] = calibration_floor(self.y, column)._asdict()
        return records

    def benefit(self, logits: Floats) -> list[dict[str, Any]]:
        """The decision curve: threshold probability -> model, all; see `calibration.net_benefit`."""
        curve = net_benefit(self.y, special.expit(logits), self.codes)
        records = []
        for one in self._numbers(curve, {}):
            reasons, _ = one.pop("reasons"), one.pop("uncertainty")
            records.append({t: {"model": one[t], "all": one[f"all {t}"]} for t in one if f"all {t}" in one})
            records[-1]["reasons"] = reasons
        return records

    def calls(self, scores: Floats) -> list[dict[str, Any]]:
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
        records = []
        for j, one in enumerate(predicted):
            rate = self._plain(rates, j)
            beside = {
                key: rate[key] | {f"predictive_values.{k}": v for k, v in one[key].items()}
                for key in ("uncertainty", "reasons")
            }
            records.append(
                {
                    **rate,
                    "confusion": {k: int(getattr(counts, k)[j]) for k in ("tp", "fp", "fn", "tn")},
                    "predictive_values": {
                        s: {kind: one[f"{s}.{kind}"] for kind in ("ppv", "npv")} for s in shares
                    },
                    **beside,
                }
            )
        return records

    def at_cut(self, scores: Floats) -> list[dict[str, Any]]:
        """sensitivity and specificity of score >= 0, the cut having been fixed elsewhere."""
        rates = self._estimates(scores, _RATES)
        return [self._plain(rates, j) for j in range(scores.shape[1])]

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
        """One dict a model: name -> [value, low, high], and `reasons`."""
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
        return [self._plain(intervals, j) for j in range(m)]

    def _plain(self, intervals: Mapping[str, Interval], j: int) -> dict[str, Any]:
        if self.level is None:
            numbers = {name: [number(one.value[j]), None, None] for name, one in intervals.items()}
            return {**numbers, "uncertainty": {}, "reasons": {}}
        return {
            **{name: triple(one, j) for name, one in intervals.items()},
            "uncertainty": {
                name: {key: number(getattr(one, key)[j]) for key in ("standard_error", "degrees_of_freedom")}
                for name, one in intervals.items()
            },
            "reasons": {name: one.reason[j] for name, one in intervals.items() if one.reason[j]},
        }


def between_domains(
    domains: Mapping[str, Interval], simultaneous: Mapping[str, Interval], j: int
) -> dict[str, Any]:
    """How one metric of model j differs between domains: its lowest value and what of the spread is not
    chance.

    domains, simultaneous : domain -> interval, at the level of the results, and at 1 - (1 - level) / k,
        which hold all k at once: the worst of k is found by looking at all
    Returns worst (domain, value, low, high), scale ("logit": of sd), k, left_out (domain -> why it takes no
    part), and from two domains on q, p, sd and i2 (see `heterogeneity.heterogeneity`), sd and i2 as [value,
    low, high].
    """
    known = {d: one for d, one in domains.items() if not math.isnan(one.value[j])}
    record: dict[str, Any] = {"worst": None, "scale": "logit", "left_out": {}}
    if known:
        worst = min(known, key=lambda d: known[d].value[j])
        value, low, high = triple(simultaneous[worst], j)
        record["worst"] = {"domain": worst, "value": value, "low": low, "high": high}
    values, errors = [], []
    for d, one in domains.items():
        v, error = float(one.value[j]), float(one.standard_error[j])
        if 0 < v < 1 and error > 0:
            values.append(float(special.logit(v)))
            errors.append(error / (v * (1 - v)))
        else:
            record["left_out"][d] = one.reason[j] or "no standard error: no group changes the value"
    record["k"] = len(values)
    if len(values) > 1:
        h = heterogeneity(values, errors, confidence=next(iter(domains.values())).confidence)
        record |= {
            "q": h.q,
            "p": h.p,
            "sd": [h.sd, h.sd_low, h.sd_high],
            "i2": [h.i2, h.i2_low, h.i2_high],
        }
    return record


def triple(interval: Interval, j: int) -> list[float | None]:
    """[value, low, high] of model j; None where undefined."""
    return [number(one[j]) for one in (interval.value, interval.low, interval.high)]


def number(value: Any) -> float | None:
    """A plain number; None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None
