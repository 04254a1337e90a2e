"""Studies of numbers: the protocol against scikit-learn done by hand, and runs from manifests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.manifest import Header, Manifest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe import regression
from patchbank.probe.cli import probe_group
from patchbank.probe.features import load_set
from patchbank.probe.fewshot import run_few_shot
from patchbank.probe.model import apply
from patchbank.probe.regression import TargetConfig
from patchbank.probe.report.figures import write_figures
from patchbank.probe.report.tasks import tasks_markdown
from patchbank.probe.report.write import write_report
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.results.schema import Role
from patchbank.probe.results.tasks import Task, _Sample, board_of
from patchbank.probe.run import run_probe
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[Any]
ALPHAS = (1e4, 1e2, 1.0)
GENES = ("EPCAM", "CD3E", "MKI67")
Study = tuple[Manifest, Manifest, Path]


def config(**settings: Any) -> TargetConfig:
    return TargetConfig.from_dict({"features": ["any"], "alpha": list(ALPHAS), **settings})


def arrays(n: int = 150, d: int = 12, t: int = 3) -> tuple[Floats, Floats, Floats, list[Floats], Floats]:
    """Features, targets of unequal noise, folds, inner folds, test features."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((n + 30, d)) * np.arange(1, d + 1)).astype(np.float32)
    Y = X[:n] @ rng.normal(size=(d, t)) + rng.normal(size=(n, t)) * np.array([1.0, 40.0, 400.0])[:t]
    slides = rng.integers(0, 15, n)
    folds = slides % 3 + 1
    inner = [np.where(folds == k, 0, slides // 3 % 2 + 1) for k in (1, 2, 3)]
    return X[:n], Y, folds, inner, X[n:]


def fit(X: Floats, Y: Floats, alpha: Any) -> Any:
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd")).fit(X.astype("f8"), Y)


def chosen_by_hand(X: Floats, Y: Floats, folds: Floats, *, select: str, per_target: bool) -> Floats:
    """The penalty of each target: the best over the held-out rows of these folds."""
    values = np.zeros((len(ALPHAS), Y.shape[1]))
    for a, alpha in enumerate(ALPHAS):
        held = np.empty_like(Y)
        for k in np.unique(folds):
            held[folds == k] = fit(X[folds != k], Y[folds != k], alpha).predict(X[folds == k].astype("f8"))
        for t in range(Y.shape[1]):
            if select == "r2":
                values[a, t] = r2_score(Y[:, t], held[:, t])
            else:
                each = [np.corrcoef(Y[folds == k, t], held[folds == k, t])[0, 1] for k in np.unique(folds)]
                values[a, t] = np.average(each, weights=[(folds == k).sum() for k in np.unique(folds)])
    best = values.argmax(axis=0) if per_target else np.full(Y.shape[1], values.mean(axis=1).argmax())
    return np.array(ALPHAS)[best]


@pytest.mark.parametrize("select", ["r2", "pearson"])
@pytest.mark.parametrize("per_target", [True, False])
def test_the_protocol_is_that_of_scikit_learn_by_hand(select: str, per_target: bool) -> None:
    X, Y, folds, inner, Z = arrays()
    options: dict[str, Any] = {"select": select, "per_target": per_target}
    run = regression.run_protocol(X, Y, folds, inner, {"test": Z}, config=config(**options))
    for i, k in enumerate((1, 2, 3)):
        training = folds != k
        alpha = chosen_by_hand(X[training], Y[training], inner[i][training], **options)
        np.testing.assert_array_equal(run.fold_alphas[i], alpha)
        model = fit(X[training], Y[training], alpha)
        expected = model.predict(X[~training].astype("f8"))
        np.testing.assert_allclose(run.oof[~training], expected, rtol=1e-8)
        expected = model.predict(Z.astype("f8"))
        np.testing.assert_allclose(run.fold_models["test"][:, i], expected, rtol=1e-7, atol=1e-8)
    alpha = chosen_by_hand(X, Y, folds, **options)
    np.testing.assert_array_equal(run.alpha, alpha)
    assert (len(np.unique(alpha)) > 1) == per_target, "the targets have unequal noise"
    np.testing.assert_allclose(run.refit["test"], fit(X, Y, alpha).predict(Z.astype("f8")), rtol=1e-7)
    np.testing.assert_allclose(apply(run.steps["refit"], Z), run.refit["test"], rtol=1e-9)
    np.testing.assert_allclose(apply(run.steps["ensemble"], Z), run.fold_models["test"].mean(axis=1))
    assert run.fits == 3 * 2 + 3 + 1


def test_without_a_signal_pooled_correlations_are_not_below_zero() -> None:
    rng = np.random.default_rng(0)
    values, plain = [], []
    for _ in range(40):
        slides = np.repeat(np.arange(15), 6)
        Y = rng.standard_normal((90, 1)) + rng.standard_normal((15, 1))[slides]
        X = rng.standard_normal((90, 5))
        run = regression.run_protocol(X, Y, slides % 5 + 1, [slides % 5] * 5, {}, config=config(alpha=[1e4]))
        values.append(np.corrcoef(Y[:, 0], run.oof_ranking[:, 0])[0, 1])
        plain.append(np.corrcoef(Y[:, 0], run.oof[:, 0])[0, 1])
    assert abs(np.mean(values)) < 0.06
    assert np.mean(plain) < -0.3, "predictions follow the mean of the other folds"


def test_labels_of_held_out_rows_change_nothing_that_scores_them() -> None:
    X, Y, folds, inner, Z = arrays()
    run = regression.run_protocol(X, Y, folds, inner, {"test": Z}, config=config())
    moved = Y.copy()
    moved[folds == 2] = np.random.default_rng(1).permutation(Y[folds == 2]) + 100
    again = regression.run_protocol(X, moved, folds, inner, {"test": Z}, config=config())
    np.testing.assert_array_equal(run.oof[folds == 2], again.oof[folds == 2])
    assert (run.oof[folds == 1] != again.oof[folds == 1]).all()


def test_the_recipe_of_hest_is_its_pipeline_on_every_fold() -> None:
    X, Y, folds, inner, _ = arrays(d=300, n=400)
    run = regression.run_protocol(
        X, Y, folds, inner, {}, config=TargetConfig(features=("any",), solver="hest")
    )
    correlations = []
    for k in (1, 2, 3):
        training = folds != k
        features = make_pipeline(StandardScaler(), PCA(256, svd_solver="full"))
        A = features.fit_transform(X[training].astype("f8"))
        B = features.transform(X[~training].astype("f8"))
        model = Ridge(alpha=100 / (A.shape[1] * Y.shape[1]), fit_intercept=False, solver="svd")
        predicted = model.fit(A, Y[training]).predict(B)
        correlations.append([np.corrcoef(Y[~training, t], predicted[:, t])[0, 1] for t in range(3)])
        np.testing.assert_allclose(run.oof[~training] - Y[training].mean(axis=0), predicted, rtol=1e-6)
    found = [
        [np.corrcoef(Y[folds == k, t], run.oof[folds == k, t])[0, 1] for t in range(3)] for k in (1, 2, 3)
    ]
    np.testing.assert_allclose(found, correlations, rtol=1e-8)
    assert run.components == 256
    assert run.alphas == (100 / (256 * 3),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe": "logistic"}, "probe"),
        ({"select": "auroc"}, "select"),
        ({"class_weight": ["none"]}, "unknown key 'class_weight'"),
        ({"alpha": [1.0, -1.0]}, "alpha has to be positive"),
        ({"components": 0}, "components has to be 1 or more"),
        ({"folds": 1}, "folds has to be 2 or more"),
        ({"bootstrap": 5}, "bootstrap has to be 0 or at least 100"),
        ({"level": 0.2}, "level has to be in"),
        ({"interval": "normal"}, "interval"),
        ({"allow_leaks": ["groups"]}, "allow_leaks"),
        ({"features": []}, "no features"),
        ({"solver": "hest", "components": 10}, "'hest' fixes components, alpha"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        config(**settings)


# --- from manifests


def make_manifest(
    name: str, n: int, *, seed: int, slides: int = 20, domains: int = 1
) -> tuple[Manifest, Floats]:
    """Three genes that depend on the vectors, by slides; and the vectors."""
    rng = np.random.default_rng(seed)
    slide = rng.integers(0, slides, n)
    X = rng.standard_normal((n, 10)) + 0.5 * rng.standard_normal((slides, 10))[slide]
    Y = X[:, :3] * [2.0, 1.0, 0.3] + rng.standard_normal((n, 3))
    table = pd.DataFrame(
        {
            "patch_id": [f"{name}/{i:05d}" for i in range(n)],
            "path": [f"{i:05d}.png" for i in range(n)],
            "label": "",
            "group": [f"patient{s:03d}" for s in slide],
            "domain": [f"centre {s % domains}" if domains > 1 else "" for s in slide],
            "split": "",
            "content_hash": [rng.bytes(16).hex() for _ in range(n)],
            **dict(zip(GENES, Y.T, strict=True)),
        }
    )
    header = Header(name=name, version="1", targets=GENES, licence="made up", source="a test")
    return Manifest(header, table, Path()), X


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("bank")
    pairs = [make_manifest("inner", 300, seed=1), make_manifest("outer", 120, seed=2, domains=2)]
    for encoder, noise in (("good", 0.1), ("poor", 3.0)):
        identity = Identity(
            encoder={"id": encoder}, preprocess={}, view="full", tokens="cls",
            precision="fp32", dtype="float32", dim=10,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        with Bank(folder).open_store(identity, create=True).writer() as writer:
            for manifest, X in pairs:
                keys = np.frombuffer(bytes.fromhex("".join(manifest.table["content_hash"])), np.uint8)
                vectors = X + noise * rng.standard_normal(X.shape)
                writer.append(keys.reshape(-1, 16), vectors, manifest.table["patch_id"].tolist())
    return pairs[0][0], pairs[1][0], folder


@pytest.fixture(scope="module")
def result(study: Study, tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    train, test, bank = study
    out = tmp_path_factory.mktemp("results") / "run"
    run_probe(train=train, tests=[test], bank=bank, encoders=["good", "poor"], out=out, progress=False)
    return ProbeResult.load(out)


def test_scores_are_those_of_the_predictions(result: ProbeResult) -> None:
    results = result.results
    assert results.targets == list(GENES)
    assert not results.multiclass
    table = result.predictions
    for score in results.scores:
        rows = table[(table["features"] == score.features) & (table["role"] == score.role)]
        rows = rows[
            (rows["dataset"] == score.dataset) & (rows["domain"].isin([score.domain]) | (score.domain == ""))
        ]
        assert len(rows) == score.n
        expected: dict[str, list[float]] = {"pearson": [], "spearman": [], "r2": [], "mae": []}
        for gene in GENES:
            y, p = rows[f"label_{gene}"].to_numpy(), rows[f"prediction_{gene}"].to_numpy()
            order = rows[f"ranking_{gene}"].to_numpy()
            spearman: Any = stats.spearmanr(y, order)
            expected["pearson"].append(np.corrcoef(y, order)[0, 1])
            expected["spearman"].append(spearman.statistic)
            expected["r2"].append(float(r2_score(y, p)))
            expected["mae"].append(float(mean_absolute_error(y, p)))
        for metric, values in expected.items():
            one = score.estimate(metric)
            assert one.value == pytest.approx(np.mean(values), rel=1e-9)
            assert one.value is not None
            assert one.low is not None
            assert one.high is not None
            assert one.low < one.value < one.high
            for target, value in zip(score.targets, values, strict=bool(score.targets)):
                assert target.estimate(metric).value == pytest.approx(value, rel=1e-9)
    whole = [s for s in results.scores if not s.domain]
    assert [t.target for t in whole[0].targets] == list(GENES)
    assert {(s.dataset, s.role) for s in whole} == {
        ("inner:train", Role.OOF),
        ("outer", Role.REFIT),
        ("outer", Role.ENSEMBLE),
    }
    assert {s.domain for s in results.scores} == {"", "centre 0", "centre 1"}


def test_the_better_features_are_chosen_and_differ(result: ProbeResult) -> None:
    results = result.results
    assert results.chosen == "good/full/cls"
    for one in results.comparisons:
        assert one.difference is not None
        assert one.p_holm is not None
        assert (one.a, one.b) == ("good/full/cls", "poor/full/cls")
        assert one.difference > 0
        assert one.p_holm < 0.05
    model = results.model("good/full/cls")
    assert model.choice is not None
    assert model.fits is not None
    assert model.fits.fits == 10 + 5 + 1, "inner folds are shared"
    alphas = model.choice.alphas or [model.choice.alpha]
    assert set(alphas) <= set(regression.ALPHAS)
    [folds] = [results.fold_models["good/full/cls"]["inner:train"]["pearson"]]
    assert len(folds) == 5


def test_the_stored_probe_gives_the_predictions(study: Study, result: ProbeResult) -> None:
    _, test, bank = study
    for role in ("refit", "ensemble"):
        probe = result.probes[result.chosen][role]
        assert list(probe.about.targets) == result.results.targets
        table = result.predictions
        table = table[
            (table["features"] == result.chosen) & (table["role"] == role) & (table["dataset"] == "outer")
        ]
        expected = table[[f"prediction_{name}" for name in probe.about.targets]].to_numpy()
        np.testing.assert_allclose(
            probe.predict(load_set(test, result.chosen, bank=bank)), expected, rtol=1e-5
        )
    assert result.model.about.scores["outer"]["pearson"][0] > 0
    assert list(result.leaderboard().columns[4:6]) == ["pearson", "pearson_low"]


def test_a_result_is_written_and_read_without_a_change(result: ProbeResult, tmp_path: Path) -> None:
    again = ProbeResult.load(result.save(tmp_path / "again"))
    assert again.to_json() == result.to_json()
    assert result.to_json()["version"] == 3
    lines = pd.read_csv(tmp_path / "again" / "results.csv")
    assert {"metrics", "target EPCAM", "target MKI67"} <= set(lines["kind"])
    pd.testing.assert_frame_equal(again.predictions, result.predictions)


def test_the_report_has_tables_plots_and_figures(result: ProbeResult, tmp_path: Path) -> None:
    html = write_report(result, tmp_path / "report.html", images=False).read_text()
    for word in (
        "Predicted and measured",
        "means over the 3 targets",
        "EPCAM: Pearson",
        "Models of the folds",
    ):
        assert word in html
    assert html.count('stroke-linecap="round" opacity="0.55"') == 2 * 3, "a plot for each target and set"
    text = write_report(result, tmp_path / "report.md").read_text()
    assert "How well does a ridge regression on frozen embeddings predict EPCAM, CD3E, MKI67?" in text
    assert text.count("| MKI67 |") == 2
    names = {path.name for path in write_figures(result, tmp_path / "figures", formats=["svg"])}
    assert any(name.startswith("scatter-EPCAM") for name in names)
    assert any("pearson" in name for name in names)


def test_the_terminal_shows_means_and_targets(
    result: ProbeResult, capsys: pytest.CaptureFixture[str]
) -> None:
    result.show()
    shown = capsys.readouterr().out
    for word in ("Pearson", "Spearman", "R2", "MAE", "target by target", *GENES):
        assert word in shown
    assert "Means over the 3 targets" in " ".join(shown.split())


def test_the_command_takes_the_settings_of_targets(study: Study, tmp_path: Path) -> None:
    train, _, bank = study
    path = train.save(tmp_path / "inner.toml")
    shared = [
        "run",
        str(path),
        "--bank",
        str(bank),
        "--encoder",
        "good",
        "--json",
        "--near-duplicates",
        "none",
    ]
    runner = CliRunner()
    for options, known in (
        (["--solver", "hest", "--folds", "4"], {"solver": "hest", "folds": 4}),
        (["--one-alpha", "--select", "pearson", "--components", "4", "--alpha", "10,100"], {"components": 4}),
    ):
        done = runner.invoke(probe_group, [*shared, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        assert known.items() <= document["config"].items()
    assert document["models"][0]["choice"]["alpha"] in (10.0, 100.0)
    refused = runner.invoke(probe_group, [*shared, "--domains", "all"])
    assert refused.exit_code == 1
    assert "unknown key 'domains'" in str(refused.exception)


# --- bad input


def test_targets_that_do_not_fit_are_refused(study: Study) -> None:
    train, test, bank = study
    about: dict[str, Any] = {"bank": bank, "encoders": ["good"], "progress": False}
    lacking = Manifest(test.header.replace(targets=GENES[:2]), test.table, Path())
    with pytest.raises(
        InvalidRequest, match="outer lacks the targets MKI67 of inner: build it with --targets"
    ):
        run_probe(train=train, tests=[lacking], **about)
    constant = Manifest(train.header, train.table.assign(CD3E=1.0), Path())
    with pytest.raises(ProbeError, match="the targets CD3E have one value in all train rows"):
        run_probe(train=constant, **about)
    few = Manifest(train.header, train.table.assign(group="patient"), Path())
    with pytest.raises(InvalidRequest, match="folds of inner cannot be made"):
        run_probe(train=few, **about)
    with pytest.raises(InvalidRequest, match=r"numbers to predict .* and no classes"):
        run_few_shot(train=train, bank=bank, encoders=["good"], shots=[1])


def test_a_sample_of_rows_with_targets(study: Study) -> None:
    train, test, bank = study
    about: dict[str, Any] = {"bootstrap": 0, "progress": False}
    found = run_probe(train=train, tests=[test], bank=bank, encoders=["good"], sample=100, **about)
    assert [one["n"] for one in found.document["data"]] == [100, 100]
    assert found.document["data"][0]["left_out"] == {"not in the sample": 200}
    assert any("100 of 300 rows were drawn" in note for note in found.document["notes"])


def test_patients_on_both_sides_are_refused(study: Study) -> None:
    train, test, bank = study
    same = Manifest(
        test.header, test.table.assign(content_hash=train.table["content_hash"].iloc[:120]), Path()
    )
    with pytest.raises(ProbeError, match="both sides"):
        run_probe(train=train, tests=[same], bank=bank, encoders=["good"], progress=False)


def test_without_intervals_there_are_values_alone(study: Study) -> None:
    train, test, bank = study
    found = run_probe(
        train=train, tests=[test], bank=bank, encoders=["good", "poor"], bootstrap=0, progress=False
    ).results
    assert found.comparisons == []
    for score in found.scores:
        one = score.estimate("pearson")
        assert one.value is not None
        assert (one.low, one.reason) == (None, "no intervals were asked for")
        for target in score.targets:
            assert target.estimate("r2").low is None


def test_numbers_are_tasks_too(result: ProbeResult) -> None:
    """Their correlations are on the scale of kappa; a metric of another scale is not averaged with them."""
    names = result.results.sets
    tasks = [Task(name=m, result=result, dataset="outer", metric=m) for m in ("pearson", "spearman", "r2")]
    tasks.append(Task(name="folds", result=result, dataset=names[0], metric="pearson"))
    board = board_of(tasks, n_resamples=60)
    assert [s.system for s in board.standings] == ["good/full/cls", "poor/full/cls"]
    assert [task.name for task in board.averaged] == ["pearson", "spearman", "r2", "folds"]
    for task in tasks:
        systems = [s.system for s in board.standings]
        sample = _Sample(task, systems, task.scores()[systems[0]].deduplicated)
        whole = sample.score(np.ones((1, sample.n_groups), np.uint16))[0]
        assert whole == pytest.approx([board.values[task.name][name].value for name in systems])
        assert sample.left_out().shape == (sample.n_groups, 2)
    value, low, high = np.array(list(board.standings[0].mean), float)
    assert low < value < high
    text = tasks_markdown(board, title="t", about="", missing={})
    assert f"{len(GENES)} numbers" in text
    assert "have a part in the ranks alone" not in text
