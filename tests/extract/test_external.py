"""Embeddings of other programs: into a bank and a manifest, and from there to a page."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import patchbank
import pytest
from click.testing import CliRunner
from patchbank import cli
from patchbank.cache.bank import Bank
from patchbank.cache.export.write import export
from patchbank.datasets.sources import open_source
from patchbank.errors import (
    ImageError,
    InvalidRequest,
    ManifestError,
    PatchbankError,
    ProbeError,
    StoreNotFound,
)
from patchbank.extract.external import Imported, import_embeddings

ROWS, DIM = 96, 24
RANDOM = np.random.default_rng(0)
LABEL = np.arange(ROWS) % 2
X = (RANDOM.normal(size=(ROWS, DIM)) + 0.4 * LABEL[:, None]).astype(np.float32)
TABLE = pd.DataFrame(
    {
        "name": [f"p{i}" for i in range(ROWS)],
        "diagnosis": np.where(LABEL, "tumor", "normal"),
        "patient": [f"c{i // 4}" for i in range(ROWS)],
        "scanner": [f"s{i // 4 % 2}" for i in range(ROWS)],
        "set": np.where(np.arange(ROWS) < 64, "train", "test"),
        "age": np.arange(ROWS) // 4 + 40,
    }
)
COLUMNS = {"label": "diagnosis", "group": "patient", "domain": "scanner", "split": "set"}
DESCRIBED: dict[str, Any] = {"columns": COLUMNS, "positive": "tumor", "encoder": "uni"}


def quiet(note: str) -> None:
    """Takes a note."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.save(tmp_path / "features.npy", X)
    TABLE.to_csv(tmp_path / "labels.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(source: Any = "features.npy", table: Any = "labels.csv", **options: Any) -> Imported:
    return import_embeddings(source, bank="bank", table=table, on_note=quiet, **(DESCRIBED | options))


def loaded(done: Imported) -> np.ndarray:
    return patchbank.load(done.manifest, encoder="uni", bank="bank")


def write_slides(folder: Path, x: np.ndarray = X) -> Path:
    """TRIDENT's folder: 12 slides of 8 patches."""
    folder.mkdir(parents=True)
    for i in range(12):
        with h5py.File(folder / f"slide{i:02d}.h5", "w") as file:
            file["features"] = x[8 * i : 8 * i + 8]
            coords = np.stack([np.arange(8) * 512, np.full(8, i)], axis=1)
            file.create_dataset("coords", data=coords).attrs["patch_size_level0"] = 512
    return folder


SLIDES = pd.DataFrame(
    {
        "slide_id": [f"slide{i:02d}.svs" for i in range(12)],
        "subtype": ["a", "b"] * 6,
        "patient": [f"c{i}" for i in range(12)],
        "set": ["train"] * 8 + ["test"] * 4,
    }
)


# --- imported -----------------------------------------------------------------------------------------


def test_two_commands_lead_from_features_to_a_page(folder: Path) -> None:
    def run(*words: Any) -> str:
        done = CliRunner().invoke(cli.patchbank, [*map(str, words)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    columns = [word for ours, theirs in COLUMNS.items() for word in ("--column", f"{ours}={theirs}")]
    words = ["--table", "labels.csv", *columns, "--positive", "tumor", "--encoder", "uni", "--bank", "bank"]
    text = run("cache", "import", "features.npy", *words, "--name", "mine")
    assert "96 of 96 rows were new" in text
    assert "Next: patchbank probe run mine.toml --bank bank --encoder uni -o results" in text
    run("probe", "run", "mine.toml", "--bank", "bank", "--encoder", "uni", "-o", "results", "--bootstrap", 0)
    run("probe", "report", "results", "-o", "report.html")
    page = Path("report.html").read_text("utf-8")
    assert "uni/full/imported" in page
    assert "no image" in page
    assert "NOT ok" not in run("datasets", "check", "mine.toml")
    assert "0 of 96 rows were new" in run("cache", "import", "features.npy", *words, "--name", "mine")


def test_one_command_leads_from_features_to_scores(folder: Path) -> None:
    columns = [word for ours, theirs in COLUMNS.items() for word in ("--column", f"{ours}={theirs}")]
    words = ["probe", "run", "features.npy", "--table", "labels.csv", *columns, "--bootstrap", "0"]
    done = CliRunner().invoke(cli.patchbank, [*words, "--positive", "tumor", "-o", "results"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "features/full/imported" in done.output
    assert sorted(path.name for path in folder.iterdir()) == ["features.npy", "labels.csv", "results"]
    kept = CliRunner().invoke(cli.patchbank, [*words, "--positive", "tumor", "--bank", "bank", "-e", "uni"])
    assert kept.exit_code == 0, (kept.output, kept.exception)
    assert [name.split(".")[:3] for name in Bank("bank").names()] == [["uni", "full", "imported"]]
    for wrong, why in (
        (["probe", "run", "x.toml"], "--bank is missing"),
        (["probe", "run", "x.toml", "--table", "labels.csv"], "a manifest has its table"),
        ([*words, "-e", "a", "-e", "b"], "one --encoder"),
    ):
        refused = CliRunner().invoke(cli.patchbank, wrong)
        assert refused.exit_code == 2
        assert why in " ".join(refused.output.split())
    unlabelled = CliRunner().invoke(cli.patchbank, ["probe", "run", "features.npy"])
    assert "no row of features has a label" in str(unlabelled.exception)
    TABLE[:-1].to_csv("labels.csv", index=False)
    other = CliRunner().invoke(cli.patchbank, [*words, "--positive", "tumor"])
    assert other.exception is not None
    assert "`patchbank cache import` has this option" in other.exception.__notes__[0]


def test_rows_vectors_and_identity(folder: Path) -> None:
    done = imported(out="mine.toml", dataset="mine", licence="CC0", table=TABLE)
    assert np.array_equal(loaded(done), X)
    table = done.manifest.table
    assert table["label"].tolist() == TABLE["diagnosis"].tolist()
    assert table["path"].tolist() == [f"features.npy::embedding[{i}]" for i in range(ROWS)]
    assert table["age"].tolist() == TABLE["age"].tolist()
    assert done.manifest.header.group_kind == "patient"
    again = patchbank.load_manifest("mine.toml")
    assert again.table["content_hash"].tolist() == table["content_hash"].tolist()
    encoder = done.store.identity.encoder
    assert (encoder["id"], encoder["origin"], done.store.identity.tokens) == ("uni", "imported", "imported")
    assert len(encoder["source"]) == 32
    provenance = done.store.provenance
    assert (provenance["source"], provenance["layout"], provenance["licence"]) == (
        "features.npy",
        "npy",
        "CC0",
    )
    with pytest.raises(ImageError, match=r"features\.npy::embedding\[3\]: there is no image"):
        open_source(done.manifest).read(3)


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("stored", ["", "float16", "float32"])
def test_types(folder: Path, given: Any, stored: str) -> None:
    np.save("features.npy", X.astype(given))
    done = imported(dtype=stored)
    kind = stored or ("float16" if given is np.float16 else "float32")
    assert done.store.identity.dtype == kind
    assert np.array_equal(loaded(done), X.astype(given).astype(kind).astype(np.float32))


def test_an_array_and_a_frame(folder: Path) -> None:
    done = imported(X, TABLE, dataset="mine")
    assert np.array_equal(loaded(done), X)
    assert done.manifest.table["patch_id"][0] == "mine/p0"
    other = imported(X + 1, TABLE, dataset="mine")
    assert other.store.identity != done.store.identity


def test_slides_with_a_row_each(folder: Path) -> None:
    write_slides(folder / "job/features_uni")
    notes: list[str] = []
    done = import_embeddings(
        "job/features_uni", bank="bank", table=SLIDES, encoder="uni", positive="b", on_note=notes.append,
        columns={"label": "subtype", "group": "patient", "split": "set"},
    )  # fmt: skip
    assert any("joined on the slide, 'slide_id'" in note for note in notes)
    table = done.manifest.table
    assert table["group"].tolist() == [f"c{i // 8}" for i in range(ROWS)]
    assert table["label"].tolist() == ["ab"[i // 8 % 2] for i in range(ROWS)]
    assert table["patch_id"][9] == "features_uni/slide01_512_1"
    assert table["x"].tolist() == [i % 8 * 512 for i in range(ROWS)]
    assert set(table["patch_size_level0"]) == {512}
    assert np.array_equal(loaded(done), X)
    export(done.store, folder / "back", "trident", table, by="slide_id")
    with h5py.File(folder / "back/slide03-svs.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == 512  # as it came
        features: Any = file["features"]
        assert np.array_equal(features, X[24:32])


def test_slides_with_a_row_a_patch(folder: Path) -> None:
    write_slides(folder / "features_uni")
    table = pd.DataFrame(
        {
            "slide_id": [f"slide{i // 8:02d}.svs" for i in range(ROWS)],
            "x": [f"{i % 8 * 512}.0" for i in range(ROWS)],
            "y": np.arange(ROWS) // 8,
            "label": TABLE["diagnosis"],
        }
    ).sample(frac=1, random_state=0)
    done = import_embeddings("features_uni", bank="bank", table=table, positive="tumor", on_note=quiet)
    assert done.manifest.table["label"].tolist() == TABLE["diagnosis"].tolist()
    assert done.store.identity.encoder["id"] == "uni"
    less = table[table.index != 19]
    with pytest.raises(InvalidRequest, match=r"1 of 96 embeddings have no row .*slide02\.h5: row 3"):
        import_embeddings("features_uni", bank="bank", table=less, positive="tumor", on_note=quiet)


def test_ids_join_in_any_order(folder: Path) -> None:
    np.savez("features.npz", features=X, ids=TABLE["name"].to_numpy(dtype=str))
    shuffled = TABLE.sample(frac=1, random_state=0)
    done = imported("features.npz", shuffled)
    assert done.manifest.table["label"].tolist() == TABLE["diagnosis"].tolist()
    assert np.array_equal(loaded(done), X)
    less = shuffled.drop(index=[3, 8])
    with pytest.raises(
        InvalidRequest,
        match=r"2 of 96 embeddings have no row in the table \(the first: features\.npz: row 3 \(p3\)\)",
    ):
        imported("features.npz", less)
    part = imported("features.npz", less, unmatched="drop")
    assert len(part.manifest) == 94
    assert np.array_equal(loaded(part), np.delete(X, [3, 8], axis=0))


def test_ids_and_slides_with_and_without_folder_and_suffix(folder: Path) -> None:
    np.savez("two.npz", features=X, ids=[f"{i % 2}/p{i // 2}.png" for i in range(ROWS)])
    refused("96 of 96 embeddings have no row", "two.npz", TABLE, join="patch_id=name")  # two ids would be one
    np.savez("features.npz", features=X, ids=[f"patches/{name}.png" for name in TABLE["name"]])
    done = imported("features.npz", TABLE.sample(frac=1, random_state=0))
    assert done.manifest.table["label"].tolist() == TABLE["diagnosis"].tolist()
    slides = write_slides(folder / "features_uni")
    rows = pd.DataFrame({"image": [f"scans/slide{i:02d}.svs" for i in range(12)], "label": ["a", "b"] * 6})
    done = import_embeddings(slides, bank="bank", table=rows, positive="a", on_note=quiet)
    assert done.manifest.table["label"].tolist() == [name for name in ["a", "b"] * 6 for _ in range(8)]


def test_a_second_encoder_of_the_same_patches(folder: Path) -> None:
    first = imported(out="mine.toml", dataset="mine")
    np.savez("other.npz", features=X[::-1, :10] + 1, ids=[f"p{i}" for i in range(ROWS)][::-1])
    second = import_embeddings("other.npz", bank="bank", encoder="conch", manifest="mine.toml", on_note=quiet)
    assert second.file is None
    assert second.store.identity.dim == 10
    assert np.array_equal(patchbank.load(first.manifest, encoder="conch", bank="bank"), X[:, :10] + 1)
    result = patchbank.run_probe(train=first.manifest, encoders=["uni", "conch"], bank="bank", bootstrap=0)
    assert len(result.to_json()["models"]) == 2


def test_sources_of_one_revision_share_a_store(folder: Path) -> None:
    np.save("b.npy", X + 9)
    one, two = imported(revision="2024"), imported("b.npy", dataset="b", revision="2024")
    assert one.store.identity == two.store.identity
    assert (one.added, two.added) == (ROWS, ROWS)
    patchbank.run_probe(train=one.manifest, tests=[two.manifest], encoders=["uni"], bank="bank", bootstrap=0)
    other = imported("b.npy", dataset="b", revision="2025")
    assert other.store.identity != one.store.identity
    for source, name in (("features.npy", "a"), ("b.npy", "b")):
        imported(source, dataset=name)
    both = [one.manifest, two.manifest]
    with pytest.raises(StoreNotFound, match="imported from different sources"):
        Bank("bank").find("uni", dtype="float32")
    assert len(both) == 2


def test_imported_rows_never_mix_with_computed_ones(folder: Path) -> None:
    done = imported()
    computed = done.store.identity.to_json() | {"encoder": {"id": "uni"}, "tokens": "cls"}
    store = Bank("bank").open_store(type(done.store.identity).from_json(computed), create=True)
    assert store.name != done.store.name
    assert not store.contains(done.store.keys()).any()
    with pytest.warns(UserWarning, match="it alone holds all patches"):
        assert np.array_equal(loaded(done), X)


def test_equal_vectors_are_duplicates_in_the_audit(folder: Path) -> None:
    twins = X.copy()
    twins[70] = twins[2]  # train and test
    twins[71] = twins[3].astype(np.float16)  # nearly
    np.save("features.npy", twins)
    notes: list[str] = []
    done = import_embeddings("features.npy", bank="bank", table=TABLE, on_note=notes.append, **DESCRIBED)
    assert (done.added, done.duplicates) == (95, 1)
    assert any(
        "2 rows have the vector of another row" in note and "features/p2, features/p70" in note
        for note in notes
    )
    with pytest.raises(ProbeError, match=r"same image on both sides .*features/p2 .*features/p70"):
        patchbank.run_probe(train=done.manifest, encoders=["uni"], bank="bank", bootstrap=0)


@pytest.mark.parametrize("layout", ["csv", "webdataset", "projector"])
def test_exports_without_a_document_come_back(folder: Path, layout: str) -> None:
    """As any other program's files: equal vectors, the same table and content hashes."""
    done = imported(dataset="mine", dtype="float16")
    path = folder / {"csv": "e.csv", "webdataset": "e.tar", "projector": "e"}[layout]
    export(done.store, path, layout, done.manifest.table)
    back = import_embeddings(
        path, bank="second", encoder="uni", positive="tumor", dataset="mine", dtype="float16", on_note=quiet
    )
    again = patchbank.load(back.manifest, encoder="uni", bank="second")
    assert again.tobytes() == loaded(done).tobytes()
    columns = ["patch_id", "label", "group", "domain", "split", "content_hash", "age"]
    wanted = done.manifest.table[columns].astype(str)
    assert back.manifest.table[columns].astype(str).equals(wanted)


# --- refused ------------------------------------------------------------------------------------------


def refused(why: str, *args: Any, error: type[PatchbankError] = InvalidRequest, **options: Any) -> None:
    with pytest.raises(error, match=why) as caught:
        imported(*args, **options)
    assert "\n" not in str(caught.value)
    assert not Path("bank").exists()
    assert not Path("mine.toml").exists()


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "1 NaN and 0 infinite"), (-np.inf, "0 NaN and 1 infinite")]
)
def test_numbers_that_are_missing(folder: Path, value: float, what: str) -> None:
    spoilt = X.copy()
    spoilt[[7, 30], 5] = value
    np.save("features.npy", spoilt)
    refused(
        rf"features\.npy: row 7 \(p7\) has {what} numbers \(2 such rows among 96\)",
        columns=COLUMNS | {"patch_id": "name"},
    )
    refused(what, out="mine.toml", dataset="mine")


def test_numbers_that_are_too_large(folder: Path) -> None:
    np.save("features.npy", X * 1e6)
    refused(r"row 0 .* which float16 does not hold \(--dtype float32\)", dtype="float16")
    np.save("features.npy", X.astype(np.float64) * 1e39)
    refused(r"row 0 .* which float32 does not hold \(96 such rows")


def test_tables_that_do_not_match(folder: Path) -> None:
    TABLE[:-1].to_csv("labels.csv", index=False)
    refused(r"labels\.csv has 95 rows, and features\.npy 96 embeddings")
    np.savez("f.npz", features=X, ids=TABLE["name"].to_numpy(dtype=str))
    refused(r"1 of 96 embeddings have no row in labels\.csv \(the first: f\.npz: row 95 \(p95\)\)", "f.npz")
    more = pd.concat([TABLE, TABLE[:1].assign(name="extra")])
    refused(
        r"1 of 97 rows of the table have no embedding in f\.npz \(the first: row 97, 'extra'\)", "f.npz", more
    )
    twice = pd.concat([TABLE, TABLE[4:5]])
    refused(r"the table: rows 5 and 97 are both of 'p4' \(name\)", "f.npz", twice)
    np.savez("f.npz", features=X, patch_id=np.array(["p0", "p0", *TABLE["name"][2:]]))
    refused(
        r"f\.npz: row 0 \(p0\) and .*f\.npz: row 1 \(p0\) have the same id 'p0'",
        "f.npz",
        TABLE,
        join="patch_id=name",
    )
    refused(r"row 0 \(p0\) and .* row 1 \(p0\) have the same id", "f.npz", None, columns={})
    refused(
        "which of its columns names the rows",
        "f.npz",
        TABLE.drop(columns="name"),
        columns={"label": "diagnosis"},
    )
    refused("'nothing' is not one of", table=TABLE, columns={"label": "nothing"})
    refused("--join 'nothing' is not one of", "f.npz", TABLE, join="patch_id=nothing")


def test_names_that_differ_are_not_joined_by_their_order(folder: Path) -> None:
    """Ids that occur twice, or are numbers, are no key, but are compared with those of the table."""
    shuffled = TABLE.sample(frac=1, random_state=0)
    names = TABLE["name"].to_numpy(dtype=str)
    np.savez("twice.npz", features=X, ids=np.array(["p0", *names[:1], *names[2:]]))
    refused(r"twice\.npz: row 1 is 'p0' \(ids\), and row 2 of the table is 'p1' \(name\)", "twice.npz", TABLE)
    refused("have the same id 'p0'", "twice.npz", TABLE, join="ids=name")
    np.savez("numbers.npz", features=X, id=np.arange(ROWS))
    numbered = TABLE.assign(number=np.arange(ROWS))
    refused(
        r"numbers\.npz: row 0 is '0' \(id\), and row 1 of the table",
        "numbers.npz",
        numbered.sample(frac=1, random_state=0),
    )
    assert len(imported("twice.npz", TABLE, join="row").manifest) == ROWS
    assert imported("numbers.npz", numbered).manifest.table["label"].tolist() == TABLE["diagnosis"].tolist()
    imported(out="mine.toml", dataset="mine", columns=COLUMNS | {"patch_id": "name"})
    np.savez("other.npz", features=X, names=shuffled["name"].to_numpy(dtype=str)[[0, *range(ROWS - 1)]])
    with pytest.raises(
        InvalidRequest, match=r"other\.npz: row 0 is .*, and row 1 of mine is 'p0' \(patch_id\)"
    ):
        import_embeddings("other.npz", bank="bank", encoder="conch", manifest="mine.toml", on_note=quiet)


def test_one_matrix_of_torch_is_no_slide(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(X), "features.pt")
    done = imported("features.pt")
    assert any("belong together by their order" in note for note in done.notes)
    assert done.manifest.table["patch_id"].tolist()[:2] == ["features/p0", "features/p1"]
    assert done.manifest.table["group"].tolist() == TABLE["patient"].tolist()


def test_requests_that_make_no_sense(folder: Path) -> None:
    refused("does not say which encoder made", encoder="")
    refused("nothing.npy does not exist", "nothing.npy")
    refused("dtype 'float8' is not one of float16, float32", dtype="float8")
    refused("unmatched 'some' is not one of fail, drop", unmatched="some")
    refused("option 'postive' is not one of .*positive", postive="tumor")
    refused("say which is the positive one", positive="", error=ManifestError)
    refused("column 'diagnosi' is not|'diagnosi' is not one of", columns={"label": "diagnosi"})
    Path("mine.csv").write_text("precious")
    with pytest.raises(ManifestError, match=r"mine\.csv exists and is not the table"):
        imported(out="mine.toml", dataset="mine")
    assert Path("mine.csv").read_text() == "precious"
    assert not Path("bank").exists()


def test_rows_in_another_order_than_the_manifest(folder: Path) -> None:
    """Two patches of one image whose second embeddings are of different images."""
    twins = X.copy()
    twins[1] = twins[0]
    np.save("features.npy", twins)
    imported(out="mine.toml", dataset="mine")
    np.save("other.npy", X)
    with pytest.raises(
        InvalidRequest, match=r"row 1 .* and .*row 0 .* are of one patch, and their embeddings are diff"
    ):
        import_embeddings("other.npy", bank="bank", encoder="conch", manifest="mine.toml", on_note=quiet)
    assert [name.split(".")[0] for name in Bank("bank").names()] == ["uni"]
    np.save("other.npy", twins * 1.001)
    import_embeddings(
        "other.npy", bank="bank", encoder="conch", manifest="mine.toml", revision="1", on_note=quiet
    )
    np.save("other.npy", twins + 5)
    with pytest.raises(
        InvalidRequest, match="has another embedding of this patch; declare another --revision"
    ):
        import_embeddings(
            "other.npy", bank="bank", encoder="conch", manifest="mine.toml", revision="1", on_note=quiet
        )


def test_an_export_needs_no_other_option(folder: Path) -> None:
    done = imported(dataset="mine")
    export(done.store, folder / "e.parquet", "parquet", done.manifest.table)
    words = ["cache", "import", "e.parquet", "--bank", "second"]
    assert "96 of 96 rows were new" in CliRunner().invoke(cli.patchbank, words).output
    wrong = CliRunner().invoke(cli.patchbank, [*words, "--encoder", "uni"])
    assert wrong.exit_code == 2
    assert "is an export of patchbank" in " ".join(wrong.output.split())
    with pytest.raises(InvalidRequest, match=r"is an export of patchbank.* cache import e\.parquet"):
        imported("e.parquet", None)


def test_a_manifest_with_labels_is_not_replaced_by_one_without(folder: Path) -> None:
    imported(out="features.toml")
    before = (folder / "features.toml").read_bytes()
    with pytest.raises(InvalidRequest, match=r"features.toml has labels \(.*tumor.*--column label=NAME"):
        import_embeddings(
            "features.npy", bank="bank", encoder="uni", dataset="features", out="features.toml", on_note=quiet
        )
    assert (folder / "features.toml").read_bytes() == before
    imported(out="features.toml")
