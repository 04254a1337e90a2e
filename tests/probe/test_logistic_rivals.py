"""The re-implemented heads: their steps against torch's, and that they learn."""

import numpy as np
import pytest
from patchbank.errors import ProbeError
from patchbank.probe.classifiers.recipes import (
    Adam,
    Plateau,
    _bce_gradient,
    fit_eva,
    fit_paper_sgd,
    fit_thunder,
)


def data(n=300, d=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    y = (X[:, 0] + 0.5 * rng.standard_normal(n) > 0.8).astype(int)
    X *= 4
    return X[: n // 2], y[: n // 2], X[n // 2 :], y[n // 2 :]


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_steps_are_torchs(decoupled):
    torch = pytest.importorskip("torch")
    X, y, _, _ = data()
    A = np.concatenate([X, np.ones((len(X), 1), np.float32)], axis=1)
    theta = np.linspace(-0.3, 0.3, A.shape[1], dtype=np.float32)
    layer = torch.nn.Linear(X.shape[1], 1)
    with torch.no_grad():
        layer.weight[:] = torch.from_numpy(theta[:-1].copy())
        layer.bias[:] = torch.from_numpy(theta[-1:].copy())
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs, loss = make(layer.parameters(), lr=1e-2, weight_decay=1e-2), torch.nn.BCEWithLogitsLoss()
    ours = Adam(theta, lr=1e-2, weight_decay=1e-2, decoupled=decoupled)
    for lo in range(0, 144, 8):
        rows, target = A[lo : lo + 8], y[lo : lo + 8].astype(np.float32)
        ours.step(_bce_gradient(rows @ theta, target) @ rows)
        theirs.zero_grad()
        loss(layer(torch.from_numpy(rows[:, :-1]))[:, 0], torch.from_numpy(target)).backward()
        theirs.step()
        expected = torch.cat([layer.weight[0], layer.bias]).detach().numpy()
        np.testing.assert_allclose(theta, expected, rtol=0, atol=2e-6)


def test_the_schedule_is_torchs():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).uniform(0.5, 0.7, 60).cumsum() / np.arange(1, 61)
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.5, patience=3, min_lr=1e-7
    )
    ours = Plateau(5e-5, factor=0.5, patience=3, min_lr=1e-7)
    for score in scores:
        theirs.step(score)
        assert ours.step(score) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
    assert ours.lr < 5e-5


@pytest.mark.parametrize(
    ("fit", "options"),
    [
        (fit_paper_sgd, {"lr": 3e-3}),
        (fit_thunder, {"epochs": 40}),
        (fit_eva, {"max_steps": 6000, "batch": 16, "patience": 300}),
    ],
)
def test_they_learn_and_are_seeded(fit, options):
    X, y, X_val, y_val = data()
    head = fit(X, y, X_val, y_val, seed=3, **options)
    again = fit(X, y, X_val, y_val, seed=3, **options)
    np.testing.assert_array_equal(head.coef, again.coef)
    assert head.best_score > 0.75
    assert 1 <= head.best_epoch <= head.epochs
    assert ((head.decision(X_val) > 0) == (y_val == 1)).mean() > 0.75


def test_one_class_is_refused():
    X, y, X_val, y_val = data()
    with pytest.raises(ProbeError, match="validation rows have one class"):
        fit_paper_sgd(X, y, X_val, np.zeros_like(y_val))
