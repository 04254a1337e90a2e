"""Few embeddings of a CNN, more features than rows, many classes: the estimators with their defaults.

300 rows of EfficientNet-Lite0 once crashed `BatchedLogisticRegressionCV()`, by a singular Hessian and by a
division by zero: 1,280 features, half of all numbers 0, none negative, mean .16, deviation .39; of the
singular values the 2nd is .69 of the first, the 21st .26, the 101st .10, the 201st .05.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from patchbank.probe.estimator import BatchedLogisticRegression, BatchedLogisticRegressionCV
from patchbank.probe.solver.logistic import fit_logistic
from sklearn.linear_model import LogisticRegression


@pytest.fixture(autouse=True)
def _no_warnings():
    """Divisions by zero, capped fits: none is printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def alike(n, d=1280, seed=0):
    """Rows of the same spectrum, sign and sparsity."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, n + 1) ** -0.5
    hidden = (rng.standard_normal((n, n)) * share) @ rng.standard_normal((n, d))
    return np.maximum(0.5 * hidden / hidden.std(), 0).astype(np.float32)


def is_scikit_learns(X, y, model):
    """The refit's objective is no worse than scikit-learn's at the same strength; the probabilities agree."""
    A = X.astype(np.float64)
    theirs = LogisticRegression(C=model.C_, tol=1e-7, max_iter=20000).fit(A, y)

    def objective(coef, intercept):
        z = A @ coef.T + intercept
        z = np.column_stack([np.zeros(len(y)), z]) if len(coef) == 1 else z
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
        return loss.sum() + np.sum(coef**2) / (2 * model.C_)

    best = objective(theirs.coef_, theirs.intercept_)
    assert objective(model.coef_, model.intercept_) <= best * (1 + 1e-9)
    assert model.status_ != "capped"
    assert model.gap_bound_ < 1e-8
    np.testing.assert_allclose(model.predict_proba(X), theirs.predict_proba(A), atol=2e-3)


def test_the_made_up_rows_are_like_the_real_ones():
    X = alike(300)
    values = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    assert 0.45 < (X == 0).mean() < 0.55
    assert 0.1 < X.mean() < 0.25
    assert 0.03 < values[200] / values[0] < 0.3


@pytest.mark.parametrize(("k", "rows", "d"), [(3, 90, 640), (9, 72, 128), (2, 40, 640)])
def test_cross_validation_with_its_defaults(k, rows, d):
    X, y = alike(rows, d), np.arange(rows) % k
    is_scikit_learns(X, y, BatchedLogisticRegressionCV(threads=1).fit(X, y))


def test_the_weakest_penalty_of_many_classes():
    """Standardised, 8 classes, C = 1e4: all probabilities are 0 or 1 on the way there."""
    X, y = alike(64, 300), np.arange(64) % 8
    model = BatchedLogisticRegression(C=1e4, standardize=True, threads=1).fit(X, y)
    assert model.status_ != "capped"
    assert model.gap_bound_ < 1e-5
    assert model.score(X, y) == 1
    fits = fit_logistic(X, y, C=[1e3, 1e4], threads=1)
    z = X @ model.coef_.T + model.intercept_
    assert np.abs(z - fits.decision(X)[:, 0, 1]).max() < 1e-2 * np.abs(z).max()


@pytest.mark.shared
def test_the_rows_that_crashed(shared):
    """12 of each of the first expert's labels: 3 phases, and 9 classes without meaning."""
    torch = pytest.importorskip("torch")
    from patchbank.extract.encoders import build_encoder
    from PIL import Image

    table = pd.read_csv(shared / "data" / "amibr_train_split.csv")
    table = table[table.groupby("expert1_label").cumcount() < 12]
    encoder, images = build_encoder("efficientnet-lite0", device="cpu", precision="fp32"), []
    for label, name in zip(table["final_label"], table["dataset_uid"], strict=True):
        with Image.open(shared / "data" / "AMi-Br" / label / name) as image:
            images.append(encoder.transform(np.asarray(image.convert("RGB"))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's
        X = encoder.embed(torch.stack(images))["pooled"].numpy()
    assert X.shape == (len(table), 1280)
    names = table["expert1_label"].to_numpy(dtype=str)
    phases = np.select([np.char.startswith(names, "AMF"), names == "NMF metaphase"], [0, 1], 2)
    for y in (phases, np.arange(len(X)) % 9):
        is_scikit_learns(X, y, BatchedLogisticRegressionCV(threads=1).fit(X, y))
