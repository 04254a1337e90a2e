"""Probes as plain numbers: scores of the run, written, read, for other software, refused where damaged."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.datasets.folds import make_folds
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.artefact import ABOUT, ARRAYS
from patchbank.probe.config import ProbeConfig
from patchbank.probe.model import (
    About,
    ProbeModel,
    apply,
    calibrated,
    folded,
    load_probes,
    mean_logit,
    save_probes,
)
from patchbank.probe.protocol import ProtocolRun, make_plan, run_protocol, run_published
from scipy.special import expit, logit, softmax


def fitted(**settings: Any) -> tuple[ProtocolRun, np.ndarray]:
    """A run on a small set whose columns have other scales and levels, and its test rows."""
    rng = np.random.default_rng(3)
    n, d = 240, 7
    groups = np.array([f"s{i % 24}" for i in range(n)], dtype=object)
    y = (rng.random(n) < 0.4).astype(int)
    X = (rng.standard_normal((n, d)) * np.arange(1, d + 1) + 5).astype(np.float32)
    X[:, 2] += 3 * y
    folds = make_folds(y.astype(str), groups, n_splits=3, seed=0).assign(groups)
    config = ProbeConfig.from_dict(
        {"features": ["any"], "C": [1e-2, 1.0], "inner_folds": 2, "bootstrap": 0, **settings}
    )
    votes = np.where(y == 1, rng.uniform(0.5, 1, n), rng.uniform(0, 0.5, n))
    plan = make_plan(y, groups, folds, config=config, votes=votes)
    T = (rng.standard_normal((90, d)) * 3 + 5).astype(np.float32)
    run = run_protocol if config.solver == "exact" else run_published
    return run(X, y, plan, {"test": T}, config=config), T


SETTINGS = [
    {},
    {"preprocess": ["none"]},
    {"preprocess": ["l2"]},
    {"preprocess": ["whiten"]},
    {"class_weight": ["votes"]},
    {"probe": "knn"},
    {"probe": "centroid"},
    {"probe": "ridge"},
    {"probe": "svm"},
    {"probe": "mlp"},
    {"probe": "knn", "preprocess": ["whiten"]},
    {"solver": "paper-sgd"},
]
NAME = "a/full/cls + b/full/cls"


def saved(run: ProtocolRun, folder: Path, positive: str = "odd") -> Path:
    """The run's models as `probe run` writes them."""
    probes = [
        ProbeModel(
            one.members,
            one.adjusted,
            About(features=NAME, role=role, classes=("odd", "plain"), positive=positive),
        )
        for role, one in run.models.items()
    ]
    return save_probes(folder, probes, chosen=NAME)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_stored_numbers_give_the_scores_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    run, T = fitted(**settings)
    saved(run, tmp_path)
    expected = {"ensemble": mean_logit(run.fold_models["test"])} | (
        {"refit": run.refit["test"]} if run.refit else {}
    )
    adjusted = {"refit": run.adjusted, "ensemble": run.ensemble_adjusted}
    assert list(run.models) == (
        ["refit"] if settings.get("probe") == "knn" else sorted(expected, reverse=True)
    )
    for role in run.models:
        probe = ProbeModel.load(tmp_path, role=role)
        np.testing.assert_allclose(probe.score(T), expected[role], rtol=2e-4, atol=2e-4)
        assert np.array_equal(probe.adjusted, adjusted[role])
        assert probe.dim == T.shape[1]
        p = probe.predict_proba(T)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        np.testing.assert_array_equal(p[:, 0], calibrated(probe.score(T), probe.adjusted)[0])
        assert ((p[:, 0] >= probe.threshold) == (probe.predict(T) == "odd")).all()
        with pytest.raises(InvalidRequest, match="probe on 7 columns"):
            probe.score(T[:, :5])
    assert ProbeModel.load(tmp_path).about.role == next(iter(run.models))


def test_a_linear_probe_is_stored_as_coefficients_on_the_features(tmp_path: Path) -> None:
    run, T = fitted(preprocess=["whiten"])
    saved(run, tmp_path)
    probe = ProbeModel.load(tmp_path)
    ((kind, arrays),) = probe.members[0]
    assert kind == "affine"
    np.testing.assert_allclose(T @ arrays["weight"][:, 0] + arrays["bias"], probe.score(T))
    unit, shift = ("unit", {}), ("shift", {"value": np.ones(2)})
    affine = ("affine", {"weight": np.eye(2), "bias": np.zeros(2)})
    assert [kind for kind, _ in folded((shift, unit, shift, affine, ("relu", {}), affine, shift))] == [
        "shift", "unit", "affine", "relu", "affine",
    ]  # fmt: skip


def test_the_reader_of_the_format(tmp_path: Path) -> None:
    """The lines of FORMAT.md, as somebody without patchbank would use them."""
    text = (Path(__file__).parents[2] / "probe/results/FORMAT.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "FORMAT.md", "exec"), names)
    run, T = fitted()
    saved(run, tmp_path)
    probe = ProbeModel.load(tmp_path)
    np.testing.assert_allclose(names["probability"](tmp_path, T), probe.predict_proba(T)[:, 0])


@pytest.mark.parametrize("settings", [{}, {"probe": "knn"}, {"probe": "mlp", "preprocess": ["l2"]}], ids=str)
def test_a_probe_needs_numpy_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    """And safetensors, which reads its arrays: nothing else of what is installed can be imported."""
    run, T = fitted(**settings)
    saved(run, tmp_path)
    np.save(tmp_path / "T.npy", T)
    script = (
        "import sys, numpy as np, safetensors.numpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        known = {'numpy', 'safetensors', 'patchbank', *sys.stdlib_module_names}\n"
        "        if name.partition('.')[0] not in known:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from patchbank import ProbeModel\n"
        "probe = ProbeModel.load(sys.argv[1])\n"
        "T = np.load(sys.argv[2])\n"
        "p = probe.predict_proba(T)\n"
        "assert set(probe.predict(T)) <= set(probe.classes)\n"
        "assert not {'scipy', 'sklearn', 'torch'} & set(sys.modules)\n"
        "print(repr(float(p.sum(axis=0)[0])))\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "T.npy")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(ProbeModel.load(tmp_path).predict_proba(T).sum(axis=0)[0])


LINEAR = [one for one in SETTINGS if one.get("probe") != "knn" and "solver" not in one]


def onnx_session(probe: ProbeModel, folder: Path) -> Any:
    pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = probe.to_onnx(folder / "probe.onnx")
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("positive", ["odd", "plain"])
@pytest.mark.parametrize("settings", LINEAR, ids=str)
def test_scikit_learn_and_onnx_give_the_same_probabilities(
    settings: dict[str, Any], positive: str, tmp_path: Path
) -> None:
    run, T = fitted(**settings)
    saved(run, tmp_path, positive)
    probe = ProbeModel.load(tmp_path)
    classifier = probe.to_sklearn()
    expected = probe.predict_proba(T)
    assert list(classifier.classes_) == list(probe.classes) == ["odd", "plain"]
    np.testing.assert_allclose(classifier.predict_proba(T.astype(float)), expected, atol=1e-9)
    assert list(classifier.predict(T)) == list(probe.predict(T))
    session = onnx_session(probe, tmp_path)
    (found,) = session.run(["probabilities"], {"embeddings": T})
    np.testing.assert_allclose(found, expected, atol=2e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert float(about["threshold"]) == probe.threshold
    assert json.loads(about["patchbank"])["features"] == NAME


def steps_of(kind: str, columns: int) -> tuple[Any, ...]:
    """A model of 7 features by hand: linear after scaling, after unit length, or with a hidden layer."""
    rng = np.random.default_rng(5)
    out = ("affine", {"weight": rng.standard_normal((4, columns)), "bias": rng.standard_normal(columns)})
    first = ("affine", {"weight": rng.standard_normal((7, 4)), "bias": rng.standard_normal(4)})
    scaled = (("shift", {"value": rng.standard_normal(7)}), ("scale", {"value": rng.uniform(0.5, 2, 7)}))
    return {
        "linear": (*scaled, first, out),
        "unit": (("unit", {}), first, out),
        "mlp": (*scaled, first, ("relu", {}), out),
    }[kind]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["linear", "unit", "mlp"])
def test_several_classes_are_the_same_in_scikit_learn_and_onnx(kind: str, tmp_path: Path) -> None:
    about = About(features="a", classes=("low", "middle", "high"))
    ProbeModel((steps_of(kind, 3),), np.array([0.4]), about).save(tmp_path)
    probe = ProbeModel.load(tmp_path)
    X = np.random.default_rng(6).standard_normal((50, 7)).astype(np.float32)
    p = probe.predict_proba(X)
    np.testing.assert_allclose(p, softmax(0.4 * apply(steps_of(kind, 3), X), axis=1), rtol=1e-9)
    assert set(probe.predict(X)) == {"low", "middle", "high"}
    classifier = probe.to_sklearn()
    np.testing.assert_allclose(classifier.predict_proba(X.astype(float)), p, atol=1e-9)
    assert list(classifier.predict(X)) == list(probe.predict(X))
    session = onnx_session(probe, tmp_path)
    label, found = session.run(None, {"embeddings": X})
    np.testing.assert_allclose(found, p, atol=2e-5)
    assert list(label) == list(probe.predict(X))
    assert "threshold" not in session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("targets", [("er",), ("er", "pr")])
def test_numbers_are_predicted_and_have_no_probabilities(targets: tuple[str, ...], tmp_path: Path) -> None:
    steps = steps_of("linear", len(targets))
    ProbeModel((steps,), np.empty(0), About(features="a", targets=targets)).save(tmp_path)
    probe = ProbeModel.load(tmp_path)
    X = np.random.default_rng(6).standard_normal((50, 7)).astype(np.float32)
    expected = apply(steps, X).reshape(50, len(targets))
    np.testing.assert_allclose(probe.predict(X), expected, rtol=1e-9)
    assert probe.about.targets == targets
    assert probe.threshold is None
    with pytest.raises(InvalidRequest, match=r"er.* are numbers, without probabilities"):
        probe.predict_proba(X)
    np.testing.assert_allclose(probe.to_sklearn().predict(X), expected, atol=1e-5)
    session = onnx_session(probe, tmp_path)
    (found,) = session.run(None, {"embeddings": X})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_has_no_counterpart_in_scikit_learn(tmp_path: Path) -> None:
    saved(fitted(probe="knn")[0], tmp_path / "knn")
    with pytest.raises(InvalidRequest, match="only linear probes and the mlp"):
        ProbeModel.load(tmp_path / "knn").to_sklearn()
    saved(fitted()[0], tmp_path)
    with pytest.raises(InvalidRequest, match="take the refit"):
        ProbeModel.load(tmp_path, role="ensemble").to_sklearn()
    with pytest.raises(InvalidRequest, match=r"has no ensemble of .*, only its refit"):
        ProbeModel.load(tmp_path / "knn", role="ensemble")
    with pytest.raises(InvalidRequest, match="has no probe on 'c'; it has a/full/cls"):
        ProbeModel.load(tmp_path, features="c")


def test_steps_by_hand() -> None:
    X = np.array([[3.0, 4.0], [0.0, 0.0]])
    shift, unit = ("shift", {"value": np.array([0.0, 8.0])}), ("unit", {})
    affine = ("affine", {"weight": np.array([[1.0], [-1.0]]), "bias": np.array([0.5])})
    assert apply((shift, unit, affine), X) == pytest.approx([3 / 5 + 4 / 5 + 0.5, 1.5])
    assert apply((unit, affine, ("relu", {})), X) == pytest.approx([0.3, 0.5])
    assert apply((("scale", {"value": np.array([2.0, 0.0])}), affine), X) == pytest.approx([6.5, 0.5])


def test_the_mean_probability_keeps_its_order_where_probabilities_saturate() -> None:
    each = np.array([[0.2, -1.0], [45.0, 50.0], [60.0, 60.0], [-80.0, -80.0], [-90.0, -80.0]])
    found = mean_logit(each)
    assert found[0] == pytest.approx(logit(expit(each[0]).mean()))
    assert found[1] == pytest.approx(-np.log((np.exp(-45) + np.exp(-50)) / 2))
    assert found[2] == pytest.approx(60)
    assert found[4] < found[3] < found[0] < found[1] < found[2]


def test_probability_threshold_and_call_are_of_one_scale() -> None:
    rng = np.random.default_rng(0)
    score = rng.standard_normal(500) * 4
    for scale, offset in ((0.5, -1.0), (2.0, 0.3), (1e-7, -0.4)):
        p, t = calibrated(score, np.array([0.7, 1.0, scale, offset]))
        assert np.array_equal(p >= t, score >= 0.7), "the calls are those of the score"
        assert (np.argsort(p, kind="stable") == np.argsort(score, kind="stable")).all()
    p, t = calibrated(score, np.array([0.7, 1.0, 0.5, -1.0]))
    np.testing.assert_allclose(p, expit(0.5 * score - 1))
    np.testing.assert_allclose(t, expit(0.5 * 0.7 - 1))


def test_files_that_are_no_probe_are_refused(tmp_path: Path) -> None:
    saved(fitted()[0], tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (ABOUT, ARRAYS)}
    refused = 0
    for name, content in whole.items():
        for damaged in (b"", content[:50], content[:-3], b"<html>", np.random.default_rng(0).bytes(500)):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ProbeError, match=r"probe\.(json|safetensors)"):
                load_probes(tmp_path)
            refused += 1
        (tmp_path / name).write_bytes(content)
    assert refused == 10
    about = json.loads(whole[ABOUT])
    for key, value, message in (
        ("version", 2, "version 2 of patchbank-probe; this patchbank reads version 1"),
        ("format", "other", "is not a probe of patchbank"),
        ("probes", [{**about["probes"][0], "members": [["exec"]]}], "does not hold a probe"),
        ("probes", [{**about["probes"][0], "members": []}], "does not hold a probe"),
        ("probes", 3, "does not hold a probe"),
    ):
        (tmp_path / ABOUT).write_text(json.dumps({**about, key: value}))
        with pytest.raises(ProbeError, match=message):
            load_probes(tmp_path)
    (tmp_path / ABOUT).unlink()
    with pytest.raises(ProbeError, match=r"holds no probe: it has no probe\.json"):
        load_probes(tmp_path)
