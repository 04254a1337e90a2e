"""Neighbours, robustness index, performance drop, clustering, alignment: by hand and against other code."""

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest
from patchbank.probe.statistics.neighbours import nearest, unit
from patchbank.probe.statistics.robustness import (
    class_domain_pairs,
    clustering_score,
    correlated_cells,
    count_neighbours,
    estimate_ratios,
    linear_cka,
    mutual_neighbours,
    performance_drop,
    vote_accuracy,
)
from sklearn.neighbors import NearestNeighbors


def data(n: int = 240, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, class, domain, group: the domain moves a vector more than the class does."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n // 6, n)
    domain = group % 3
    label = rng.integers(0, 2, n)
    X = rng.standard_normal((n, 16))
    X[:, 0] += 2 * label
    X[:, 1:4] += 3 * np.eye(3)[domain]
    return X, label, domain, group


def by_hand(X: np.ndarray, group: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k most similar rows of other groups, one row at a time."""
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    out = np.full((len(X), k), -1)
    for i in range(len(X)):
        others = [j for j in range(len(X)) if group[j] != group[i]]
        others.sort(key=lambda j: -(Z[i] @ Z[j]))
        out[i, : len(others[:k])] = others[:k]
    return out


@pytest.mark.parametrize("block", [1, 10_000, 1 << 27])
def test_neighbours_are_those_of_a_sorted_list(block: int) -> None:
    X, _, _, group = data(90)
    index, similar = nearest(X, 7, groups=group, block_bytes=block)
    np.testing.assert_array_equal(index, by_hand(X, group, 7))
    assert (np.diff(similar, axis=1) <= 0).all()
    everything = NearestNeighbors(n_neighbors=8, metric="cosine").fit(X).kneighbors(X)[1][:, 1:]
    np.testing.assert_array_equal(nearest(X, 7)[0], everything)


def test_neighbours_of_other_vectors_and_of_few() -> None:
    X, _, _, group = data(60)
    index, similar = nearest(X, 3, queries=X[:5] * 9)
    np.testing.assert_array_equal(index[:, 0], np.arange(5))
    np.testing.assert_allclose(similar[:, 0], 1, rtol=1e-6)
    index, similar = nearest(X[:4], 5, groups=["a", "a", "b", ""])
    assert (index >= 0).sum(axis=1).tolist() == [2, 2, 3, 3]
    assert np.isneginf(similar[index < 0]).all()
    same = nearest(np.ones((6, 2)), 3)[0]  # equal similarities: by the index
    assert same[0].tolist() == [1, 2, 3]
    assert same[5].tolist() == [0, 1, 2]
    for wrong, says in ((np.zeros(3), r"\(n, d\)"), (np.full((2, 2), np.nan), "2 rows .* not finite")):
        with pytest.raises(InvalidRequest, match=says):
            unit(wrong)
    with pytest.raises(InvalidRequest, match="k has to be at least 1"):
        nearest(X, 0)
    with pytest.raises(InvalidRequest, match="as many queries as rows"):
        nearest(X, 1, queries=X[:3], groups=group)


def test_the_index_by_hand() -> None:
    """Row 0 is of class a, domain x; its neighbours: SO, OS, SS, OO, in this order."""
    label, domain = np.array(list("aabab")), np.array(list("xyxxy"))
    index = np.array([[1, 2, 3, 4]], np.int32)
    counts = count_neighbours(index, label, domain, (1, 2, 4))
    assert counts.same_other[0].tolist() == [1, 1, 1]
    assert counts.other_same[0].tolist() == [0, 1, 1]
    assert counts.same_class[0].tolist() == [1, 1, 2]
    assert counts.there[0].tolist() == [1, 2, 4]
    with pytest.raises(InvalidRequest, match="k of 1 to 5 for 4 neighbours"):
        count_neighbours(index, label, domain, (1, 5))


def test_the_robustness_index_is_cromas() -> None:
    """An independent implementation of PathoROB's index: the package croma, all rows, same slide left out."""
    croma = pytest.importorskip("croma")
    X, label, domain, group = data(400, seed=3)
    table = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(X))],
            "image_path": "none",
            "dataset": "d",
            "label": label.astype(str),
            "center": domain.astype(str),
            "group": group.astype(str),
            "group_id": group.astype(str),
            "slide_id": group.astype(str),
        }
    )
    ks = (5, 11, 31)
    theirs = croma.RI.compute_curve(X, table, confounder_column="center", k_values=list(ks))
    counts = count_neighbours(nearest(X, 31, groups=group)[0], label, domain, ks)
    so, os_ = counts.same_other.sum(axis=0), counts.other_same.sum(axis=0)
    np.testing.assert_allclose([theirs[k] for k in ks], so / (so + os_), rtol=1e-12)
    assert (so / (so + os_) < 0.5).all(), "the domain moves these vectors more than the class"


def test_the_performance_drop_is_cromas() -> None:
    downstream = pytest.importorskip("croma.downstream")
    accuracy = np.random.default_rng(0).uniform(0.5, 1, (5, 20))
    np.testing.assert_allclose(performance_drop(accuracy).mean(), downstream.apd(accuracy), rtol=1e-12)
    assert performance_drop([[0.8], [0.4], [0.6]])[0] == pytest.approx((0.5 + 0.75) / 2 - 1)
    with pytest.raises(InvalidRequest, match="the first split balanced"):
        performance_drop([[0.0], [0.5]])


def test_correlated_cells_keep_every_class_as_large() -> None:
    for share in (0.0, 0.25, 0.5, 1.0):
        cells = correlated_cells(4, 8, share)
        assert (cells.sum(axis=1) == 16).all()
        assert (cells.sum(axis=0) == 32).all()
    assert (correlated_cells(2, 8, 0.0) == 8).all()
    assert correlated_cells(2, 8, 1.0).tolist() == [[16, 0], [0, 16]]


def test_intervals_are_the_jackknife_of_the_ratio() -> None:
    X, label, domain, group = data()
    counts = count_neighbours(nearest(X, 5, groups=group)[0], label, domain, (5,))
    so, both = counts.same_other[:, 0], counts.same_other[:, 0] + counts.other_same[:, 0]
    found = estimate_ratios({"index": (so, both)}, groups=group)["index"]
    assert found.value[0] == pytest.approx(so.sum() / both.sum())
    left = np.array([so[group != g].sum() / both[group != g].sum() for g in np.unique(group)])
    error = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    assert found.standard_error[0] == pytest.approx(error, rel=1e-9)
    assert found.low[0] < found.value[0] < found.high[0]
    nothing = estimate_ratios({"index": (so * 0, both * 0)}, groups=group)["index"]
    assert np.isnan(nothing.value[0])
    assert "no row has such a neighbour" in nothing.reason[0]


def test_votes_and_their_ties() -> None:
    index = np.array([[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 1, 0]], np.int32)
    label = np.array([0, 0, 1, 1])
    assert vote_accuracy(index, label, (1,)).tolist() == [1.0]
    assert vote_accuracy(index, label, (2,)).tolist() == [1.0], "a tie goes to the class that is nearer"
    assert vote_accuracy(index, label, (3,)).tolist() == [0.0]


@pytest.mark.parametrize(("by", "sign"), [("class", 1), ("domain", -1)])
def test_clusters_are_classes_or_domains(by: str, sign: int) -> None:
    rng = np.random.default_rng(0)
    label, domain = np.repeat([0, 1], 30), np.tile([0, 1], 30)
    X = rng.standard_normal((60, 4)) * 0.05 + np.eye(4)[label if by == "class" else domain]
    scores, k = clustering_score(X, label, domain, largest_k=5, starts=5, trials=3)
    assert k == 2
    np.testing.assert_allclose(scores, sign, atol=0.05)
    assert clustering_score(X, label, domain, k=3, trials=2)[1] == 3


def rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted for chance, from its definition by pairs of rows (Hubert and Arabie 1985)."""
    same_a, same_b = (one[:, None] == one for one in (a, b))
    above = np.triu_indices(len(a), 1)
    both, of_a, of_b = ((x[above]).sum() for x in (same_a & same_b, same_a, same_b))
    expected = of_a * of_b / len(above[0])
    return float((both - expected) / ((of_a + of_b) / 2 - expected))


def silhouette(Z: np.ndarray, found: np.ndarray) -> float:
    """Mean over rows of (b - a) / max(a, b) of cosine distances, 0 in a cluster of one (Rousseeuw 1987)."""
    distance = 1 - Z @ Z.T
    values = []
    for i, own in enumerate(found):
        near = [distance[i, found == c].mean() for c in np.unique(found) if c != own]
        inside = (found == own).sum() - 1
        a = distance[i, found == own].sum() / inside if inside else 0.0
        values.append((min(near) - a) / max(a, min(near)) if inside else 0.0)
    return float(np.mean(values))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_clustering_score_is_that_of_its_definition() -> None:
    """PathoROB: k by the silhouette of k-means on rows of length 1; index of the class less the domain's."""
    from sklearn.cluster import KMeans

    X, label, domain, _ = data(120, seed=4)
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)

    def clusters(k: int, starts: int, seed: int) -> np.ndarray:
        made = KMeans(k, init="random", n_init=starts, random_state=seed)  # pyright: ignore[reportArgumentType]
        return np.asarray(made.fit(Z.astype(np.float32)).labels_)

    best = max(range(2, 7), key=lambda k: silhouette(Z, clusters(k, 5, 0)))
    wanted = [
        rand_index(label, f) - rand_index(domain, f) for f in (clusters(best, 5, 1 + t) for t in range(3))
    ]
    scores, k = clustering_score(X, label, domain, largest_k=6, starts=5, trials=3)
    assert k == best
    np.testing.assert_allclose(scores, wanted, rtol=1e-9)


def test_pairs_have_all_four_combinations() -> None:
    assert class_domain_pairs(list("abab"), list("xxyy")) == [("a", "b", "x", "y")]
    assert class_domain_pairs(list("aba"), list("xxy")) == []


def test_alignment_by_the_matrices_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 7)), rng.standard_normal((50, 5))
    b[:, :3] += a[:, :3]
    centre = np.eye(50) - 1 / 50
    K, L = (centre @ (x @ x.T) @ centre for x in (a, b))
    assert linear_cka(a, b) == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))
    turned = a @ np.linalg.qr(rng.standard_normal((7, 7)))[0] * 3 + 1
    assert linear_cka(a, turned) == pytest.approx(1)
    assert np.isnan(linear_cka(a, np.ones((50, 2))))
    near = nearest(a, 6)[0]
    assert mutual_neighbours(near, near).tolist() == [1.0] * 50
    assert mutual_neighbours(np.array([[1, 2, -1]]), np.array([[2, 3, -1]]))[0] == 0.5
    with pytest.raises(InvalidRequest, match="of the same rows"):
        linear_cka(a, b[:3])
    with pytest.raises(InvalidRequest, match="neighbours of shape"):
        mutual_neighbours(near, near[:, :2])
