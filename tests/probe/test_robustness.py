"""`probe robustness` from cached vectors whose domain is known to be in them, or not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.cache.bank import Bank
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, ProbeError, StoreNotFound
from patchbank.probe.cli import probe_group
from patchbank.probe.report.sections.robustness import robustness
from patchbank.probe.report.write import html_report, markdown_report
from patchbank.probe.results.robustness import Measured, Robustness
from patchbank.probe.robustness import run_robustness
from patchbank.probe.run import run_probe

from .conftest import identity_of, keys_of, make_manifest


def store(bank: Path, encoder: str, manifest: Manifest, X: np.ndarray, *, view: str = "full") -> None:
    identity = identity_of(encoder, X.shape[1], view)
    with Bank(bank).open_store(identity, create=True).writer() as writer:
        writer.append(keys_of(manifest), X.astype(np.float32), manifest.table["patch_id"].tolist())


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    """ "steady" has the class alone, "shifted" the domain as well, in another direction."""
    bank = tmp_path_factory.mktemp("bank")
    manifest = make_manifest("patches", 900, seed=5, slides=60, splits=("train",))
    rng = np.random.default_rng(0)
    y = (manifest.table["label"] == "Atypical").to_numpy()
    domain = np.unique(manifest.table["domain"].to_numpy(str), return_inverse=True)[1]
    noise = rng.standard_normal((len(y), 12))
    steady, shifted = noise.copy(), noise.copy()
    steady[:, 0] += 3 * y
    shifted[:, 0] += 1.5 * y
    shifted[:, 1:4] += 4 * np.eye(3)[domain]
    store(bank, "steady", manifest, steady)
    store(bank, "shifted", manifest, shifted)
    store(bank, "steady", manifest, steady + 0.1 * rng.standard_normal(steady.shape), view="d4:1")
    return manifest, bank


@pytest.fixture(scope="module")
def found(banked: tuple[Manifest, Path]) -> Robustness:
    manifest, bank = banked
    return run_robustness(
        manifest,
        bank=bank,
        encoders=["steady", "shifted"],
        features=["steady/d4:1/cls"],
        iterations=4,
        trials=1,
    )


def value(of: Measured | float | None) -> float:
    number = of.value if isinstance(of, Measured) else of
    assert number is not None
    return number


def test_the_domain_shows_in_every_measure(found: Robustness) -> None:
    steady, shifted, _ = found.sets
    assert (steady.features, shifted.features) == ("steady/full/cls", "shifted/full/cls")
    assert value(steady.index) > 0.6 > 0.3 > value(shifted.index)
    assert value(steady.index.low) < value(steady.index) < value(steady.index.high)
    assert value(shifted.domain) > 0.9
    assert abs(value(steady.domain) - 1 / 3) < 0.1
    assert value(steady.clustering) > 0 > value(shifted.clustering)
    assert value(steady.precision) > steady.precision_chance + 0.1
    assert set(steady.precision_of) == {"Atypical", "Normal"}


def test_correlated_training_costs_where_the_domain_is_in_the_vectors(found: Robustness) -> None:
    steady, shifted, _ = (one.drop for one in found.sets)
    assert steady is not None
    assert shifted is not None
    assert steady.pairs == shifted.pairs == 3
    assert value(shifted.inside) < -0.1
    assert abs(value(steady.inside)) < 0.05
    assert shifted.by_share_inside[0] > shifted.by_share_inside[-1]
    assert value(steady.baseline_outside) > 0.8


def test_views_agree_and_encoders_align(found: Robustness) -> None:
    (views,) = found.consistency
    assert (views.features, views.other) == ("steady/full/cls", "steady/d4:1/cls")
    assert value(views.cosine) > 0.98
    assert value(views.top[1]) > 0.95
    (pair,) = found.alignment
    assert (pair.a, pair.b) == ("steady/full/cls", "shifted/full/cls")
    assert 0 < pair.cka < 1
    assert pair.k == found.k


def test_it_is_written_read_and_shown(
    found: Robustness, banked: tuple[Manifest, Path], tmp_path: Path
) -> None:
    found.save(tmp_path)
    assert Robustness.load(tmp_path) == found
    texts = [part for part in robustness(found) if isinstance(part, str)]
    assert "900 patches of 60 slides in 3 domains" in texts[0]
    manifest, bank = banked
    probed = run_probe(
        train=manifest, bank=bank, encoders=["steady"], bootstrap=0, folds=3, C=(0.1,), domains="none",
        near_duplicates="none",
    )  # fmt: skip
    assert "Robustness to domains" in html_report(probed, images=False, robustness=found)
    assert "robustness index" in markdown_report(probed, robustness=found)
    assert "Robustness to domains" not in html_report(probed, images=False)
    (tmp_path / "robustness.json").write_text('{"format": "other"}')
    with pytest.raises(ProbeError, match="is not of patchbank-robustness, version 1"):
        Robustness.load(tmp_path)


def test_the_command(banked: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, bank = banked
    manifest.save(tmp_path / "patches.toml")
    base = ["robustness", str(tmp_path / "patches.toml"), "-b", str(bank), "-e", "steady", "-k", "7"]
    base += ["--iterations", "2", "--trials", "0"]
    done = CliRunner().invoke(probe_group, [*base, "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "robustness index" in done.output
    assert Robustness.load(tmp_path / "out").k == 7
    shown = CliRunner().invoke(probe_group, [*base, "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout)["sets"][0]["clustering"] is None


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"domain": "one"}, {}, r"has only one of the domains, 'one', .* needs two or more"),
        ({"domain": ""}, {}, r"of 900 rows 900 have a label, 0 have a domain"),
        ({}, {"encoders": []}, "which embeddings"),
        ({}, {"k": 5000}, "k has to be between 1 and 899"),
    ],
)
def test_what_cannot_be_measured_is_said(
    banked: tuple[Manifest, Path], change: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    manifest, bank = banked
    changed = Manifest(manifest.header, manifest.table.assign(**change), manifest.root)
    with pytest.raises(InvalidRequest, match=says):
        run_robustness(changed, bank=bank, **{"encoders": ["steady"], **options})


def test_why_there_is_no_number_is_said(banked: tuple[Manifest, Path]) -> None:
    manifest, bank = banked
    label, domain = manifest.table["label"].to_numpy(), manifest.table["domain"].to_numpy()
    classes, domains = sorted(set(label)), sorted(set(domain))
    bound = np.any([(label == c) & (domain == d) for c, d in zip(classes, domains, strict=False)], axis=0)
    notes: list[str] = []
    found = run_robustness(
        manifest.select(bound), bank=bank, encoders=["steady"], iterations=2, trials=1, on_note=notes.append
    )
    assert found.sets[0].drop is None
    assert found.sets[0].clustering is None
    assert any("no average performance drop" in note for note in notes)
    assert any("no clustering score: no two classes have 5 rows each" in note for note in notes)
    texts = [part for part in robustness(found) if isinstance(part, str)]
    assert "robustness index: the value is undefined: no row has such a neighbour." in texts


def test_draws_that_gave_no_drop_are_not_counted(banked: tuple[Manifest, Path]) -> None:
    manifest, bank = banked
    rng = np.random.default_rng(0)
    few = manifest.select(np.sort(rng.permutation(len(manifest))[:260]))
    counts: dict[int, str] = {}
    for seed in range(6):
        notes: list[str] = []
        found = run_robustness(
            few, bank=bank, encoders=["steady"], iterations=3, trials=0, seed=seed, on_note=notes.append
        )
        drop = found.sets[0].drop
        counts[drop.iterations if drop else 0] = " ".join(notes)
    assert set(counts) & {1, 2}, "no seed had draws of both kinds"
    for n in set(counts) & {1, 2}:
        assert f"in {3 - n} of 3 draws no two domains had enough patches" in counts[n]


def test_other_tools_names_find_the_store(banked: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, _ = banked
    store(tmp_path / "bank", "uni2-h", manifest, np.random.default_rng(1).standard_normal((len(manifest), 4)))
    found = run_robustness(manifest, bank=tmp_path / "bank", encoders=["UNI_v2"], iterations=0, trials=0)
    assert found.sets[0].features == "uni2-h/full/cls"
    with pytest.raises(StoreNotFound):
        run_robustness(manifest, bank=tmp_path / "bank", encoders=["hoptimus1"])


def test_rows_without_a_domain_are_left_out_with_a_note(banked: tuple[Manifest, Path]) -> None:
    manifest, bank = banked
    domain = manifest.table["domain"].where(np.arange(len(manifest)) >= 100, "")
    part = Manifest(manifest.header, manifest.table.assign(domain=domain), manifest.root)
    notes: list[str] = []
    found = run_robustness(part, bank=bank, encoders=["steady"], iterations=0, trials=0, on_note=notes.append)
    assert found.rows == 800
    assert found.notes == notes
    assert "100 of 900 rows have no label or no domain" in notes[0]
    assert found.sets[0].drop is None


def test_a_sample_is_measured_and_named(banked: tuple[Manifest, Path]) -> None:
    manifest, bank = banked
    found = run_robustness(manifest, bank=bank, encoders=["shifted"], iterations=0, trials=0, sample=300)
    assert found.rows == 300
    assert "300 of 900 rows were drawn (--sample)" in found.notes[0]
    whole = run_robustness(manifest, bank=bank, encoders=["shifted"], iterations=0, trials=0)
    assert value(found.sets[0].precision) == pytest.approx(value(whole.sets[0].precision), abs=0.15)
