"""The study as a whole: what is chosen, what is scored, what is written, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.manifest import Manifest
from patchbank.errors import InvalidRequest, ProbeError, RowsMissing, StoreNotFound
from patchbank.probe.features import load
from patchbank.probe.fewshot import run_few_shot
from patchbank.probe.report.write import html_report
from patchbank.probe.results.files import SWEEP, ProbeResult
from patchbank.probe.run import run_probe

QUICK: dict[str, Any] = {
    "C": [1e-3, 1e-2, 1e-1],
    "bootstrap": 200,
    "interval": "percentile",
    "folds": 3,
    "inner_folds": 3,
    "jobs": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def result(study: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeResult, Path]:
    out = tmp_path_factory.mktemp("out")
    result = run_probe(
        train=study.train,
        tests=[study.external],
        bank=study.bank,
        encoders=["good", "poor"],
        features=["good/center:0.5 + poor/full/cls"],
        out=out,
        **QUICK,
    )
    return result, out


def test_the_signal_is_found_and_the_better_features_are_chosen(result: tuple[ProbeResult, Path]) -> None:
    found, _ = result
    assert found.chosen == "good/center:0.5/cls + poor/full/cls"
    auroc = {
        (r.dataset, r.features): r.estimate("auroc") for r in found.results.leaderboard() if r.role == "refit"
    }
    for dataset in ("inner:test", "outer"):
        value, low, high = np.array(list(auroc[dataset, found.chosen]), float)
        assert low < value < high
        assert value > 0.8
        assert value > np.array(list(auroc[dataset, "poor/full/cls"]), float)[0]


def test_every_prediction_is_kept_with_its_patch(study: Any, result: tuple[ProbeResult, Path]) -> None:
    found, out = result
    table = pd.read_parquet(out / "predictions.parquet")
    pd.testing.assert_frame_equal(table, found.predictions)
    train_ids = study.train.table["patch_id"][study.train.table["split"] == "train"]
    for name in ["good/full/cls", "poor/full/cls", SWEEP]:
        oof = table[(table["features"] == name) & (table["role"] == "oof")]
        assert oof["patch_id"].tolist() == train_ids.tolist()
        assert (oof["fold"] > 0).all()
        ensemble = table[(table["features"] == name) & (table["role"] == "ensemble")]
        assert set(ensemble["patch_id"]) == {*study.external.table["patch_id"]} | (
            {*study.train.table["patch_id"]} - {*train_ids}
        )
    assert ((table["probability"] >= table["threshold"]) == (table["call"] == 1)).all()


def test_scores_are_those_of_the_saved_predictions(result: tuple[ProbeResult, Path]) -> None:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

    found, out = result
    table = pd.read_parquet(out / "predictions.parquet")
    checked = 0
    for record in found.document["scores"]:
        rows = table[
            (table["features"] == record["features"])
            & (table["role"] == record["role"])
            & (table["dataset"] == record["dataset"])
        ]
        if record["domain"]:
            rows = rows[rows["domain"] == record["domain"]]
        y, p, metrics = rows["label"], 1 / (1 + np.exp(-rows["score"])), record["metrics"]
        assert metrics["auroc"][0] == pytest.approx(roc_auc_score(y, rows["ranking"]))
        assert metrics["average_precision"][0] == pytest.approx(average_precision_score(y, rows["ranking"]))
        assert metrics["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(y, p >= 0.5))
        if not record["domain"]:
            at = balanced_accuracy_score(y, rows["call"])
            assert record["at_threshold"]["balanced_accuracy"][0] == pytest.approx(at)
        checked += 1
    assert checked > 20


def test_test_labels_change_nothing_that_is_chosen(study: Any, result: tuple[ProbeResult, Path]) -> None:
    """All labels of test rows are shuffled: models, thresholds, calibration, predictions stay as they are."""
    rng = np.random.default_rng(0)

    def shuffled(manifest: Manifest, rows: np.ndarray) -> Manifest:
        table = manifest.table.copy()
        table.loc[rows, "label"] = rng.permutation(table.loc[rows, "label"])
        return Manifest(manifest.header, table, manifest.root)

    other = run_probe(
        train=shuffled(study.train, (study.train.table["split"] == "test").to_numpy()),
        tests=[shuffled(study.external, np.ones(len(study.external), bool))],
        bank=study.bank,
        encoders=["good", "poor"],
        features=["good/center:0.5 + poor/full/cls"],
        **QUICK,
    )
    found, _ = result

    def chosen(result: ProbeResult) -> list[dict[str, Any]]:
        return [{k: v for k, v in m.items() if k != "seconds"} for m in result.document["models"]]

    assert chosen(other) == chosen(found)
    assert other.chosen == found.chosen
    same = [c for c in found.predictions.columns if c != "label"]
    pd.testing.assert_frame_equal(other.predictions[same], found.predictions[same])
    assert (other.predictions["label"] != found.predictions["label"]).any()


def test_results_are_read_back(result: tuple[ProbeResult, Path], tmp_path: Path) -> None:
    found, out = result
    again = ProbeResult.load(out)
    assert again.document == json.loads(json.dumps(found.document))
    scores = pd.read_csv(out / "results.csv")
    assert len(scores) == len(found.scores())
    assert {
        "features",
        "role",
        "dataset",
        "domain",
        "subset",
        "kind",
        "metric",
        "value",
        "low",
        "high",
    } <= set(scores)

    document = json.loads((out / "results.json").read_text())
    for change, message in (({"version": 99}, "upgrade"), ({"format": "other"}, "not a results.json")):
        (tmp_path / "results.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(ProbeError, match=message):
            ProbeResult.load(tmp_path)
    with pytest.raises(ProbeError, match="cannot be read"):
        ProbeResult.load(tmp_path / "nothing")


def assert_same_scores(a: ProbeResult, b: ProbeResult, features: str) -> None:
    query = f"role == 'refit' and features == '{features}' and dataset == 'inner:test'"
    first, second = (result.predictions.query(query)["score"] for result in (a, b))
    assert len(first)
    np.testing.assert_allclose(first, second, atol=2e-3)  # the solver stops at a relative gap of 1e-7


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_backends_agree(study: Any, result: tuple[ProbeResult, Path], backend: str) -> None:
    other = run_probe(
        train=study.train,
        bank=study.bank,
        encoders=["good", "poor"],
        backend=backend,
        **{**QUICK, "jobs": 2, "bootstrap": 0},
    )
    assert_same_scores(other, result[0], "good/full/cls")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_gives_the_same_numbers(
    study: Any, result: tuple[ProbeResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: Ray confuses the actors of two clusters that one process starts in turn."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a local cluster of a test; else a token is left at home
    manifest = study.train.save(tmp_path / "inner.toml")
    script = (
        "import ray\n"
        "from patchbank import load_manifest, run_probe\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        f"run_probe(train=load_manifest({str(manifest)!r}), bank={str(study.bank)!r},\n"
        f"          out={str(tmp_path)!r}, encoders=['good', 'poor'], backend='ray',\n"
        f"          **{ {**QUICK, 'jobs': 2}!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = ProbeResult.load(tmp_path)
    assert_same_scores(other, result[0], "poor/full/cls")


def test_rows_follow_the_manifest(study: Any) -> None:
    X = load(study.train, encoder="good", bank=study.bank)
    order = np.random.default_rng(0).permutation(len(study.train))
    np.testing.assert_array_equal(load(study.train.select(order), encoder="good", bank=study.bank), X[order])


def test_a_precision_names_one_of_two_stores(study: Any, tmp_path: Path) -> None:
    from patchbank.cache.bank import Bank
    from patchbank.cache.identity import Identity

    keys = np.frombuffer(bytes.fromhex("".join(study.external.table["content_hash"])), np.uint8).reshape(
        -1, 16
    )
    for precision in ("fp32", "bf16"):
        identity = Identity(
            encoder={"id": "e"},
            preprocess={},
            view="full",
            tokens="cls",
            precision=precision,
            dtype="float32",
            dim=3,
        )
        X = np.random.default_rng(0).standard_normal((len(keys), 3)) * (1 if precision == "fp32" else 100)
        with Bank(tmp_path).open_store(identity, create=True).writer() as writer:
            writer.append(keys, X, study.external.table["patch_id"].tolist())
    common: dict[str, Any] = {"train": study.external, "bank": tmp_path, "encoders": ["e"], **QUICK}
    with pytest.raises(StoreNotFound, match="precision"):
        run_probe(**common)
    found = run_probe(precision="bf16", **common)
    assert found.document["stores"]["e/full/cls"]["identity"]["precision"] == "bf16"


def test_of_two_stores_the_one_that_is_complete_is_read_and_named(study: Any, tmp_path: Path) -> None:
    from patchbank.cache.bank import Bank
    from patchbank.cache.identity import Identity

    table = study.external.table
    keys = np.frombuffer(bytes.fromhex("".join(table["content_hash"])), np.uint8).reshape(-1, 16)
    X = np.random.default_rng(0).standard_normal((len(keys), 3))
    for dtype, rows in (("float16", len(keys) - 1), ("float32", len(keys))):
        parts = {"view": "full", "tokens": "cls", "precision": "fp32", "dtype": dtype, "dim": 3}
        identity = Identity(encoder={"id": "e"}, preprocess={}, **parts)
        with Bank(tmp_path).open_store(identity, create=True).writer() as writer:
            writer.append(keys[:rows], X[:rows].astype(dtype), table["patch_id"].tolist()[:rows])
    found = run_probe(train=study.external, bank=tmp_path, encoders=["e"], **QUICK).document
    about = found["stores"]["e/full/cls"]
    assert about["identity"]["dtype"] == "float32"
    assert f"{about['store']} is read: it alone holds all patches" in " ".join(found["notes"])
    with pytest.warns(UserWarning, match=f"{about['store']} is read: it alone holds all patches"):
        np.testing.assert_array_equal(load(study.external, encoder="e", bank=tmp_path), X.astype(np.float32))
    notes: list[str] = []
    run_few_shot(
        train=study.external, tests=[study.external.select(np.arange(4))], bank=tmp_path, encoders=["e"],
        shots=[1], repeats=1, allow_leaks=["all"], on_note=notes.append,
    )  # fmt: skip
    assert f"{about['store']} is read: it alone holds all patches" in notes[0]
    with pytest.raises(StoreNotFound, match="dtype=float64; there are"):
        run_few_shot(train=study.external, bank=tmp_path, encoders=["e"], dtype="float64")


def test_missing_rows_say_what_to_type(study: Any) -> None:
    table = study.external.table.copy()
    table.loc[3, "content_hash"] = "ab" * 16
    changed = Manifest(study.external.header, table, study.external.root)
    with pytest.raises(
        RowsMissing, match=r"1 of 160 patches of outer .*outer/00003.*patchbank extract outer\.toml"
    ):
        load(changed, encoder="good", bank=study.bank)
    table["content_hash"] = ""
    unread = Manifest(study.external.header, table, study.external.root)
    with pytest.raises(RowsMissing, match=r"160 of 160 .* --encoder good --view center:0.5"):
        load(unread, encoder="good", bank=study.bank, view="center:0.5")


def test_what_is_refused_before_any_work(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbank.probe.run.run_protocol", lambda *_, **__: pytest.fail("work was begun"))
    common: dict[str, Any] = {"train": study.train, "bank": study.bank, **QUICK}
    with pytest.raises(StoreNotFound, match="godo"):
        run_probe(encoders=["godo"], **common)
    with pytest.raises(InvalidRequest, match="did you mean 'class_weight'"):
        run_probe(encoders=["good"], class_weigth=["none"], **common)
    with pytest.raises(InvalidRequest, match="no features"):
        run_probe(**common)
    with pytest.raises(InvalidRequest, match="same name"):
        run_probe(encoders=["good"], tests=[study.external, study.external], **common)
    one_class = study.train.select((study.train.table["label"] == "Normal").to_numpy())
    with pytest.raises(ProbeError, match="no positive row"):
        run_probe(encoders=["good"], **{**common, "train": one_class})


def test_leaks_are_refused_by_name(study: Any) -> None:
    table = study.external.table.copy()
    trained = study.train.table["split"] == "train"
    table.loc[5, "content_hash"] = study.train.table.loc[trained, "content_hash"].iloc[7]
    leaky = Manifest(study.external.header, table, study.external.root)
    arguments: dict[str, Any] = {
        "train": study.train,
        "tests": [leaky],
        "bank": study.bank,
        "encoders": ["good"],
    }
    with pytest.raises(ProbeError, match="outer/00005"):
        run_probe(**arguments, **QUICK)
    allowed = run_probe(**arguments, allow_leaks=["content"], **QUICK)
    assert allowed.document["leaks"]["found"]["content"] == 1


def test_two_data_sets_of_one_slide_leak_by_place(study: Any) -> None:
    """As MIDOG 2025 and AMi-Br: other pixels, ids and names, the same figures of the same slides."""
    table = study.train.table.assign(x=range(0, 400_000, 1000), y=7)
    at = study.external.table.assign(x=range(10**6, 10**6 + 160), y=7)
    row = int(np.flatnonzero(table["split"] == "train")[7])
    at.loc[5, ["group", "x", "y"]] = [f"slides/{table['group'][row]}.tiff", table["x"][row] - 30, 37]
    train, outer = (
        Manifest(one.header, rows, one.root) for one, rows in ((study.train, table), (study.external, at))
    )
    arguments: dict[str, Any] = {"bank": study.bank, "encoders": ["good"], **QUICK}
    with pytest.raises(
        ProbeError, match=r"Patches at one place of a slide.*outer/00005.*--allow-leaks place"
    ):
        run_probe(train=train, tests=[outer], **arguments)
    allowed = run_probe(train=train, tests=[outer], allow_leaks=["place"], **arguments)
    leaks = allowed.results.leaks
    assert leaks is not None
    (leak,) = [one for one in leaks.leaks if one.kind == "place"]
    assert [(patch, side.partition(" ")[0]) for patch, side, _ in leak.rows] == [
        (table["patch_id"][row], "train"),
        ("outer/00005", "outer"),
    ]
    page = html_report(allowed, images=False)
    assert "1 slides with patches at one place on both sides of a split" in page
    assert "outer/00005 (outer" in page
    # without coordinates nothing but the names of the slides is known: said, not refused
    named = run_probe(train=study.train, tests=[study.external], **arguments)
    leaks = named.results.leaks
    assert leaks is not None
    assert leaks.found["place"] == 0
    (shared,) = leaks.slides
    of_train = study.train.table[study.train.table["split"] == "train"]
    assert shared.slides == sorted({*of_train["group"]} & {*study.external.table["group"]})
    assert shared.train == of_train["group"].isin(shared.slides).sum()
    assert shared.rows == study.external.table["group"].isin(shared.slides).sum()
    (note,) = [one for one in named.results.notes if "slides have one name" in one]
    assert f"in outer ({shared.rows} rows): slide000" in note
    assert note in html_report(named, images=False)


def test_near_duplicates_of_a_file_are_leaks(study: Any, tmp_path: Path) -> None:
    """As `datasets check --near --pairs` writes them."""
    trained = study.train.table.loc[study.train.table["split"] == "train", "patch_id"].iloc[7]
    pairs = tmp_path / "near.csv"
    pairs.write_text(f"patch_a,patch_b,score\n{trained},outer/00005,0.99\nouter/00001,outer/00002,0.98\n")
    arguments: dict[str, Any] = {"train": study.train, "tests": [study.external], "bank": study.bank}
    arguments |= {"encoders": ["good"], "near_duplicates": str(pairs), **QUICK}
    with pytest.raises(ProbeError, match=r"Near-duplicate images on both sides.*outer/00005"):
        run_probe(**arguments)
    allowed = run_probe(**arguments, allow_leaks=["near-duplicate"])
    assert allowed.document["leaks"]["found"]["near-duplicate"] == 1, "the pair within one set is none"
    assert allowed.document["leaks"]["checked"]["near-duplicate"] == 2
    pairs.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidRequest, match=r"near\.csv.*datasets check MANIFESTS --near --pairs"):
        run_probe(**arguments)


def test_repeated_content_is_scored_once_beside_the_raw_numbers(study: Any) -> None:
    """Rows 0..2 show one image with one label, rows 3 and 4 one image with both labels."""
    table = study.external.table.copy()
    hashes = table["content_hash"]
    table.loc[[1, 2], ["content_hash", "label"]] = [hashes[0], table["label"][0]]
    table.loc[4, "content_hash"] = hashes[3]
    table.loc[[3, 4], "label"] = ["Normal", "Atypical"]
    repeated = Manifest(study.external.header, table, study.external.root)
    found = run_probe(train=study.train, tests=[repeated], bank=study.bank, encoders=["good"], **QUICK)
    n = {r["subset"]: r["n"] for r in found.document["scores"] if r["dataset"] == "outer" and not r["domain"]}
    assert n == {"raw": 160, "dedup": 160 - 2 - 2}
    assert found.document["leaks"]["found"]["labels"] == 1
    page = html_report(found, images=False)
    assert "Rows left out: 4 of outer (repeated images, and those with both labels" in page


def test_one_of_several_classes_against_the_rest_is_asked_for(study: Any) -> None:
    header = study.train.header.replace(classes=("Normal", "Atypical", "Other"))
    three = Manifest(header, study.train.table, study.train.root)
    with pytest.raises(InvalidRequest, match=r"3 classes.*--one-vs-rest 'Atypical'"):
        run_probe(train=three, bank=study.bank, encoders=["good"], positive="Atypical", **QUICK)
    found = run_probe(train=three, bank=study.bank, encoders=["good"], one_vs_rest="Normal", **QUICK)
    assert found.predictions["label"].sum() > len(found.predictions) / 2


@pytest.mark.parametrize("solver", ["paper-sgd", "thunder", "eva"])
def test_published_recipes_are_kept_apart(study: Any, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds that choose the epoch give no out-of-fold estimate: "validation", and on no leaderboard."""
    from patchbank.probe import protocol

    limit = {"thunder": {"epochs": 3}, "eva": {"max_steps": 50}}.get(solver, {"epochs": 3, "lr": 1e-2})
    recipe = protocol.RECIPES[solver]
    monkeypatch.setitem(protocol.RECIPES, solver, lambda *a, **k: recipe(*a, **k, **limit))
    found = run_probe(
        train=study.train,
        tests=[study.external],
        bank=study.bank,
        encoders=["good", "poor"],
        solver=solver,
        **QUICK,
    )
    roles = found.predictions.groupby("dataset", observed=True)["role"].unique()
    assert [list(r) for r in roles.loc[["inner:train", "inner:test", "outer"]]] == [
        ["validation"],
        ["ensemble"],
        ["ensemble"],
    ]
    assert {r.dataset for r in found.results.leaderboard()} == {"inner:test", "outer"}
    assert len(found.document["fold_models"]["good/full/cls"]["outer"]["auroc"]) == 3
    assert found.document["domains"] == {}
    assert "published recipe" in html_report(found)


def test_no_second_is_spent_on_importing_what_is_not_used(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scipy.stats", "sklearn", "sklearn.model_selection"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    quick = {**QUICK, "bootstrap": 0, "domains": "none"}
    for select in ("log_loss", "auroc"):
        assert run_probe(train=study.train, bank=study.bank, encoders=["good"], select=select, **quick).chosen
