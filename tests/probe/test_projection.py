"""Points of the plane: the axes are those of the covariance, and the same vectors give the same points."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patchbank.errors import InvalidRequest, MissingDependency
from patchbank.probe.report.projection import project


def vectors(n: int = 60, dim: int = 7, *, seed: int = 0) -> np.ndarray:
    """float32, (n, dim), with a clear order of the variances."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * np.arange(dim, 0, -1) + 5).astype(np.float32)


def test_the_axes_are_the_eigenvectors_of_the_covariance() -> None:
    X = vectors()
    points, shares = project(X)
    assert points.dtype == np.float32
    assert points.shape == (60, 2)
    values = np.linalg.eigvalsh(np.cov(X.astype(np.float64), rowvar=False))[::-1]
    assert shares == pytest.approx(tuple(values[:2] / values.sum()), rel=1e-6)
    assert points.mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
    assert points.var(axis=0, ddof=1) == pytest.approx(values[:2], rel=1e-5)


def test_signs_are_fixed() -> None:
    """The largest loading of an axis is positive: the points go up with that column."""
    X = vectors()
    points, _ = project(X)
    again, _ = project(X[::-1].copy())
    np.testing.assert_allclose(points, again[::-1], atol=1e-4)
    for axis in range(2):
        slopes = np.array([np.cov(X[:, j], points[:, axis])[0, 1] for j in range(X.shape[1])])
        assert slopes[np.abs(slopes).argmax()] > 0
    np.testing.assert_array_equal(points, project(X)[0])


@pytest.mark.parametrize(("n", "dim"), [(1, 4), (2, 4), (5, 1)])
def test_few_points_or_columns(n: int, dim: int) -> None:
    points, shares = project(np.arange(n * dim, dtype=np.float64).reshape(n, dim) ** 2)
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()
    assert len(shares) == 2


def test_equal_vectors_have_no_variance() -> None:
    points, shares = project(np.ones((4, 3)))
    assert not points.any()
    assert shares == (0.0, 0.0)


def test_what_cannot_be_projected_is_refused() -> None:
    for wrong in (np.ones(3), np.ones((0, 3)), np.array([[1.0, np.nan]])):
        with pytest.raises(InvalidRequest):
            project(wrong)
    with pytest.raises(InvalidRequest, match="'pca' or 'umap'"):
        project(np.ones((3, 3)), method="tsne")  # type: ignore[arg-type]


# umap-learn compiles for longer than a few vectors take: here its own code runs interpreted, in a
# process of its own, because numba reads this when it is imported
TWICE = """
import sys, warnings
import numpy as np
from patchbank.probe.report.projection import project
warnings.simplefilter("error", category=UserWarning)
X = np.load(sys.argv[1])
found = [project(X, method="umap", seed=1) for _ in range(2)]
assert [shares for _, shares in found] == [(), ()]
np.save(sys.argv[2], np.stack([points for points, _ in found]))
"""


@pytest.mark.slow
def test_umap_keeps_neighbours_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="needs umap-learn")
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(3), 8)
    X = (np.eye(3, 8)[cluster] * 10 + rng.standard_normal((24, 8)) * 0.3).astype(np.float32)
    np.save(tmp_path / "vectors.npy", X)
    files = [str(tmp_path / "vectors.npy"), str(tmp_path / "points.npy")]
    subprocess.run(
        [sys.executable, "-c", TWICE, *files], check=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}
    )
    points, again = np.load(tmp_path / "points.npy")
    assert points.dtype == np.float32
    assert points.shape == (24, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (cluster[distance.argmin(axis=1)] == cluster).all()
    np.testing.assert_array_equal(points, again)


def test_umap_of_a_handful_of_vectors_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="5 vectors"):
        project(vectors(4), method="umap")


def test_umap_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingDependency, match=r"patchbank\[map\]"):
        project(vectors(), method="umap")
