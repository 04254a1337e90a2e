"""Temperature scaling against scikit-learn, the binary fits, and a general optimiser."""

from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.statistics import calibration, multiclass
from patchbank.probe.statistics.multiclass_calibration import fit_temperature
from scipy import optimize, special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

Floats = NDArray[np.float64]


def sample(n: int = 300, k: int = 4, *, seed: int = 0, scale: float = 3.0) -> tuple[NDArray[np.intp], Floats]:
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=np.arange(1, k + 1) / np.arange(1, k + 1).sum())
    y[:k] = np.arange(k)
    return y, scale * (rng.normal(size=(n, k)) + np.eye(k)[y])


def loss(y: NDArray[Any], logits: Floats, *, smooth: bool, balanced: bool = False) -> float:
    """Written out row by row."""
    k = logits.shape[1]
    total = weight = 0.0
    for label, z in zip(y, logits, strict=True):
        n = int((y == label).sum())
        target = [((n + 1) if c == label else 1) / (n + k) if smooth else float(c == label) for c in range(k)]
        w = 1 / n if balanced else 1.0
        total -= w * float(np.dot(target, z - np.log(np.exp(z - z.max()).sum()) - z.max()))
        weight += w
    return total / weight


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its logits."""

    def fit(self, X: Any, y: Any) -> "Given":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> Any:
        return X

    def predict(self, X: Any) -> Any:
        return self.classes_[X.argmax(axis=1)]


@pytest.mark.parametrize("k", [3, 7])
def test_the_temperature_is_scikit_learns(k: int) -> None:
    y, logits = sample(k=k)
    fitted = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, y)), method="temperature")
    fitted.fit(logits, y)
    found = fit_temperature(y, logits, smooth=False)
    expected = fitted.predict_proba(logits)
    np.testing.assert_allclose(special.softmax(logits / found, axis=1), expected, atol=2e-4)
    assert loss(y, logits / found, smooth=False) <= loss(y, np.log(expected), smooth=False) + 1e-12


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_temperature_is_the_lowest_loss(smooth: bool, class_weight: Any) -> None:
    y, logits = sample(n=120, k=3)
    found = fit_temperature(y, logits, smooth=smooth, class_weight=class_weight)
    best: Any = optimize.minimize_scalar(
        lambda s: loss(y, s * logits, smooth=smooth, balanced=class_weight is not None),
        bounds=(1e-3, 10),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert 1 / found == pytest.approx(best.x, rel=1e-6)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_two_classes_have_the_binary_temperature(class_weight: Any) -> None:
    y, logits = sample(k=2)
    binary = calibration.fit_temperature(y, logits[:, 1] - logits[:, 0], class_weight=class_weight)
    assert fit_temperature(y, logits, class_weight=class_weight) == pytest.approx(binary, rel=1e-9)
    wrong = logits[:, ::-1] * 3
    assert fit_temperature(y, wrong) == np.inf == calibration.fit_temperature(y, wrong[:, 1] - wrong[:, 0])


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_temperature_follows_the_unit_of_the_logits(size: float) -> None:
    y, logits = sample()
    assert fit_temperature(y, size * logits) == pytest.approx(size * fit_temperature(y, logits), rel=1e-10)
    both = np.stack([logits, size * logits], axis=1)
    assert fit_temperature(y, both) == pytest.approx(fit_temperature(y, logits) * np.array([1, size]))


def test_where_every_call_is_right_only_smooth_targets_have_a_temperature() -> None:
    y = np.arange(30) % 3
    found = fit_temperature(y, 5.0 * np.eye(3)[y])
    # 10 rows a class: the label's target is 11 / 13
    assert special.softmax(5 * np.eye(3)[0] / found)[0] == pytest.approx(11 / 13)
    with pytest.raises(ProbeError, match="every call is right"):
        fit_temperature(y, np.eye(3)[y], smooth=False)


def test_logits_without_a_difference_have_no_temperature() -> None:
    assert fit_temperature([0, 1, 2], np.ones((3, 3))) == np.inf


def test_a_class_without_rows_has_a_temperature() -> None:
    y, logits = sample(k=3)
    y[y == 1] = 0
    assert 0 < fit_temperature(y, logits, class_weight="balanced") < np.inf


def test_scaling_lowers_the_calibration_error() -> None:
    y, logits = sample(n=3000, k=4, scale=4.0)
    before = multiclass.evaluate(y, logits, logits=True, metrics=["ece", "ece_classwise", "log_loss"])
    scaled = logits / fit_temperature(y, logits)
    for name, value in multiclass.evaluate(y, scaled, logits=True, metrics=list(before)).items():
        assert value < before[name], name
    assert multiclass.evaluate(y, scaled, logits=True, metrics=["accuracy"]) == multiclass.evaluate(
        y, logits, logits=True, metrics=["accuracy"]
    )


def test_the_reliability_of_the_call_is_the_top_label_error() -> None:
    y, logits = sample(n=500)
    p = special.softmax(logits, axis=1)
    right, confidence = p.argmax(axis=1) == y, p.max(axis=1)
    assert right.mean() == pytest.approx(multiclass.evaluate(y, logits, logits=True)["accuracy"])
    assert confidence.min() > 0.25
    curve = calibration.reliability_curve(right, confidence)
    assert curve.calibration_error == pytest.approx(multiclass.evaluate(y, logits, logits=True)["ece"])
    assert 0 < calibration.calibration_floor(right, confidence).mean < curve.calibration_error


def test_bad_input_is_refused() -> None:
    y, logits = sample()
    with pytest.raises(InvalidRequest, match="class_weight is None or 'balanced'"):
        fit_temperature(y, logits, class_weight=cast("Any", "votes"))
    with pytest.raises(ProbeError, match="not finite"):
        fit_temperature(y, np.where(logits > 3, np.inf, logits))
    with pytest.raises(ProbeError, match="from 0 to 3"):
        fit_temperature(y + 1, logits)
    with pytest.raises(InvalidRequest, match="do not fit"):
        fit_temperature(y[1:], logits)
