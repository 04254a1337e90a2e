"""From logits to what is reported: the probes' metrics, thresholds and temperatures (probe.metrics, probe.calibration)."""

import numpy as np
from scipy.special import expit

from ..probe import metrics

_VALIDATION = ("balanced_accuracy", "auroc", "average_precision", "balanced_log_loss")


def validation_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Metrics of one epoch: labels (n,) 0 or 1, logits float64 (n,). `log_loss` is class-balanced; threshold 0.5."""
    values = metrics.evaluate(labels.astype(int), expit(logits), metrics=_VALIDATION)
    named = {name: float(value) for name, value in values.items()}
    named["log_loss"] = named.pop("balanced_log_loss")
    return named
