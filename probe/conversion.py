"""A fitted probe for other software: a classifier of scikit-learn, an ONNX file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidRequest, MissingDependency
from ..files import write_atomically

if TYPE_CHECKING:
    from sklearn.model_selection import FixedThresholdClassifier
    from sklearn.pipeline import Pipeline

    Steps = Sequence[tuple[str, Any]]


def sklearn_of(pipeline: "Pipeline", *, threshold: float, positive: str) -> "FixedThresholdClassifier":
    """A fitted pipeline as a classifier that calls at a threshold on the probability of one class."""
    from sklearn.model_selection import FixedThresholdClassifier

    settings: dict[str, Any] = {"threshold": threshold, "pos_label": positive}
    classifier = FixedThresholdClassifier(pipeline, **settings)
    classifier.estimator_ = pipeline
    return classifier


def write_onnx(pipeline: "Pipeline", file: str | os.PathLike[str], *, about: Mapping[str, str]) -> Path:
    """Write a fitted pipeline as ONNX, `about` in its metadata. Raises MissingDependency, OutputError."""
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingDependency("ONNX needs skl2onnx: pip install 'patchbank[onnx]'") from error
    inputs: Any = [("embeddings", FloatTensorType([None, pipeline.n_features_in_]))]
    model: Any = to_onnx(
        pipeline,
        initial_types=inputs,
        options={id(pipeline): {"zipmap": False}} if hasattr(pipeline, "predict_proba") else None,
        target_opset=17,
    )
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return write_atomically(file, lambda to: to.write_bytes(model.SerializeToString()))


def pipeline_of(
    steps: "Steps", *, dim: int, classes: Sequence[str], scale: float, offset: float
) -> "Pipeline":
    """A probe as a pipeline of scikit-learn: StandardScaler, Normalizer, and LogisticRegression or
    MLPClassifier (without classes LinearRegression) with the probe's numbers.

    steps : of one model, folded (see `model`); dim : columns
    scale, offset : of its scores, before probabilities are made of them
    Raises InvalidRequest for nearest neighbours.
    """
    from sklearn.pipeline import make_pipeline

    *before, last = steps
    hidden: Any = None
    if [kind for kind, _ in before[-2:]] == ["affine", "relu"]:
        hidden, before = before[-2][1], before[:-2]
    if last[0] != "affine" or {kind for kind, _ in before} - {"shift", "scale", "unit"}:
        raise InvalidRequest(
            "nearest neighbours have no counterpart: only linear probes and the mlp have one"
        )
    weight, bias = scale * last[1]["weight"], scale * last[1]["bias"] + offset
    if not classes:
        final = _regression(weight, bias)
    else:
        final = _logistic(weight, bias, classes) if hidden is None else _mlp(hidden, weight, bias, classes)
    return make_pipeline(*_transforms(before, dim), final)


def _transforms(steps: "Steps", dim: int) -> list[Any]:
    from sklearn.preprocessing import Normalizer, StandardScaler

    transforms: list[Any] = []
    for kind, arrays in steps:
        if kind == "unit":
            transforms.append(Normalizer())
            transforms[-1].n_features_in_ = dim
            continue
        scaler: Any = StandardScaler(with_mean=kind == "shift", with_std=kind == "scale")
        scaler.mean_ = arrays["value"] if kind == "shift" else np.zeros(dim)
        scaler.scale_ = 1 / arrays["value"] if kind == "scale" else None
        scaler.var_ = None if scaler.scale_ is None else scaler.scale_**2
        scaler.n_features_in_, scaler.n_samples_seen_ = dim, 1
        transforms.append(scaler)
    return transforms


def _logistic(weight: np.ndarray, bias: np.ndarray, classes: Sequence[str]) -> Any:
    from sklearn.linear_model import LogisticRegression

    final: Any = LogisticRegression()
    final.classes_ = np.array(classes)
    final.coef_, final.intercept_ = weight.T, bias
    final.n_features_in_, final.n_iter_ = len(weight), np.zeros(1, np.int32)
    return final


def _regression(weight: np.ndarray, bias: np.ndarray) -> Any:
    from sklearn.linear_model import LinearRegression

    final: Any = LinearRegression()
    final.coef_, final.intercept_, final.n_features_in_ = weight.T, bias, len(weight)
    return final


def _mlp(hidden: Any, weight: np.ndarray, bias: np.ndarray, classes: Sequence[str]) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import LabelBinarizer

    final: Any = MLPClassifier(hidden_layer_sizes=(weight.shape[0],))
    final.coefs_, final.intercepts_ = [hidden["weight"], weight], [hidden["bias"], bias]
    binary = weight.shape[1] == 1
    final.n_layers_, final.n_outputs_ = 3, weight.shape[1]
    final.out_activation_ = "logistic" if binary else "softmax"
    final.n_features_in_, final.n_iter_ = len(hidden["weight"]), 0
    final.classes_ = np.array(classes)
    final._label_binarizer = LabelBinarizer()  # what MLPClassifier.predict turns columns into labels with
    final._label_binarizer.classes_ = final.classes_
    final._label_binarizer.y_type_ = "binary" if binary else "multiclass"
    final._label_binarizer.sparse_input_ = False
    return final
