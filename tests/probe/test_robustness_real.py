"""The robustness figures of real embeddings beside independent implementations: croma, scikit-learn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.cache.bank import Bank
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.manifest import Manifest
from patchbank.extract.run import run_extract
from patchbank.probe.features import load_set, open_bank
from patchbank.probe.robustness import KS, run_robustness
from patchbank.probe.statistics.neighbours import nearest
from patchbank.probe.statistics.robustness import clustering_score, count_neighbours

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]
EACH = 16  # patches of a class in a domain


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path, np.ndarray]:
    """Both classes in the six domains of AMi-Br, embedded by EfficientNet-Lite0 at 96 px."""
    whole = build_manifest("ami-br", shared / "data", progress=False)
    drawn = whole.table.groupby(["label", "domain"]).head(EACH).index
    part = whole.select(whole.table.index.isin(drawn))
    bank = tmp_path_factory.mktemp("bank")
    run_extract(part, encoder="efficientnet-lite0@96", bank=bank, progress=False)
    name = "efficientnet-lite0@96/full/pooled"
    X = load_set(part, name, bank=open_bank(Bank(bank), precision=None, dtype=None, manifests=[part]))
    assert X.shape == (2 * 6 * EACH, 1280)
    return part, bank, X


def test_the_index_of_real_embeddings_is_cromas(real: tuple[Manifest, Path, np.ndarray]) -> None:
    croma = pytest.importorskip("croma", reason="compares with croma: pip install croma")
    part, bank, X = real
    table, ks = part.table, (5, 11, 31)
    frame = pd.DataFrame({"sample_id": table["patch_id"], "image_path": "none", "dataset": "ami-br"})
    frame = frame.assign(label=table["label"], center=table["domain"])
    frame = frame.assign(**dict.fromkeys(("group", "group_id", "slide_id"), table["group"]))
    theirs = croma.RI.compute_curve(X.astype(float), frame, confounder_column="center", k_values=list(ks))
    label, domain, group = (table[name].to_numpy(object) for name in ("label", "domain", "group"))
    counts = count_neighbours(nearest(X, 31, groups=group)[0], label, domain, ks)
    so, os_ = counts.same_other.sum(axis=0), counts.other_same.sum(axis=0)
    # a neighbour may change places with another one that is as near in float32
    np.testing.assert_allclose(so / (so + os_), [theirs[k] for k in ks], atol=2e-3)
    (found,) = run_robustness(
        part, bank=bank, encoders=["efficientnet-lite0@96"], iterations=0, trials=0
    ).sets
    by_k: dict[int, float] = dict(zip(KS, np.array(found.index_by_k, float), strict=True))
    np.testing.assert_allclose([by_k[k] for k in ks], so / (so + os_), rtol=1e-12)


def test_the_clusters_of_real_embeddings_by_scikit_learn(real: tuple[Manifest, Path, np.ndarray]) -> None:
    """PathoROB: k by the silhouette; adjusted Rand index with the class less that with the domain."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    part, _, X = real
    two = part.table["domain"].isin(sorted(set(part.table["domain"]))[:2]).to_numpy(bool)
    label, domain = (part.table[name].to_numpy(object)[two] for name in ("label", "domain"))
    Z = X[two] / np.linalg.norm(X[two], axis=1, keepdims=True)

    def clusters(k: int, starts: int, seed: int) -> np.ndarray:
        made = KMeans(k, init="random", n_init=starts, random_state=seed)  # pyright: ignore[reportArgumentType]
        return np.asarray(made.fit(Z).labels_)

    best = max(range(2, 9), key=lambda k: silhouette_score(Z, clusters(k, 5, 0), metric="cosine"))
    found = [clusters(best, 5, 1 + t) for t in range(3)]
    wanted = [adjusted_rand_score(label, f) - adjusted_rand_score(domain, f) for f in found]
    scores, k = clustering_score(X[two], label, domain, largest_k=8, starts=5, trials=3)
    assert k == best
    np.testing.assert_allclose(scores, wanted, atol=1e-9)
