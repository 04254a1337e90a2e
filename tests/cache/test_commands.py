"""`patchbank cache ...` as a user types it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from patchbank.cache.bank import Bank
from patchbank.cache.export.write import LAYOUTS
from patchbank.cache.store import Store
from patchbank.cli import main, patchbank
from patchbank.errors import InvalidRequest, PatchbankError, RowsMissing


@pytest.fixture
def bank(tmp_path: Path, identity: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stores: 150 rows with CLS tokens, the first 100 of them with mean tokens (and other values)."""
    monkeypatch.chdir(tmp_path)
    rows = make_rows(150)
    for tokens, count, factor in (("cls", 150, 1), ("mean", 100, 3)):
        store = Bank("bank").open_store(
            identity(tokens=tokens), create=True, block_rows=64, provenance={"licence": "MIT"}
        )
        with store.writer() as writer:
            writer.append(rows.keys[:count], rows.vectors[:count] * factor, rows.ids[:count])
    rows.table().to_csv("patches.csv", index=False)
    Path("set.toml").write_text('[table]\nfile = "patches.csv"\n')
    return tmp_path / "bank"


def cache(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(patchbank, ["cache", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_ls(bank: Path) -> None:
    plain = cache("ls", "--bank", bank, "--table", "set.toml").output
    assert "fake-noise.full.cls" in plain.replace("\n", "")
    assert "`patchbank cache finalize STORE" in plain
    assert "100/150" in plain
    cls, mean = json.loads(cache("ls", "-b", bank, "--table", "patches.csv", "--json").stdout)
    assert (cls["rows"], cls["tokens"], cls["complete"]) == (150, "cls", {"patches": [150, 150]})
    assert (mean["rows"], mean["state"], mean["complete"]) == (100, "blocks", {"patches": [100, 150]})
    assert "no stores in" in cache("ls", "--bank", "empty").output


def test_info(bank: Path) -> None:
    document = json.loads(cache("info", "fake-noise.full.cls", "-b", bank, "--json").stdout)
    assert document["provenance"] == {"licence": "MIT"}
    assert document["identity"]["encoder"]["weights"] == "sha256:00"
    assert (document["blocks"], len(document["writers"])) == (3, 1)
    assert "sha256:00" in cache("info", "fake-noise.full.cls", "-b", bank).output


def test_verify_repair_gc(bank: Path) -> None:
    assert "good" in cache("verify", "-b", bank).output
    victim = sorted(bank.rglob("*.vectors"), key=lambda path: path.stat().st_size)[-1]
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x01")
    (damaged,) = {p.name for p in bank.glob("stores/*") if victim.is_relative_to(p)}
    output = cache("verify", "-b", bank, code=1).output
    assert f"patchbank cache repair {damaged}" in output
    assert victim.stem in output
    found = json.loads(cache("verify", damaged, "-b", bank, "--json", code=1).stdout)
    assert [store["good"] for store in found] == [False]
    assert "64 rows have to be embedded again" in cache("repair", damaged, "-b", bank).output
    assert "no row was lost" in cache("repair", damaged, "-b", bank).output
    assert "good" in cache("verify", damaged, "-b", bank).output
    assert (
        "2 files, 0.0 MB would be removed"
        in cache("gc", damaged, "-b", bank, "--grace", 0, "--dry-run").output
    )
    assert "2 files, 0.0 MB removed" in cache("gc", damaged, "-b", bank, "--grace", 0).output
    assert "0 files" in cache("gc", "-b", bank).output


def test_finalize(bank: Path) -> None:
    assert (
        "150 rows in 3 chunks"
        in cache("finalize", "fake-noise.full.cls", "-b", bank, "--table", "set.toml").output
    )
    (entry, _) = json.loads(cache("ls", "-b", bank, "--json").stdout)
    assert entry["state"] == "finalized"
    import zarr

    group = zarr.open_group(str(bank / "stores" / entry["name"]), mode="r")
    assert group["patch_id"].shape == (150,)  # type: ignore[union-attr]


def test_rm(bank: Path) -> None:
    refused = CliRunner().invoke(
        patchbank, ["cache", "rm", "fake-noise.full.cls", "-b", str(bank)], input="n\n"
    )
    assert refused.exit_code == 1
    assert len(Bank(bank).names()) == 2
    assert "was removed" in cache("rm", "fake-noise.full.cls", "-b", bank, "--yes").output
    assert [name.split(".")[2] for name in Bank(bank).names()] == ["mean"]
    assert [p.name for p in (bank / "stores").iterdir()] == Bank(bank).names()


def test_merge_and_subset(bank: Path) -> None:
    query = "domain == 'scänner' and split == 'test'"
    small = cache(
        "subset", "fake-noise.full.cls", "-b", bank, "--to", "small", "--table", "set.toml", "--where", query
    )
    assert "75 rows" in small.output
    assert len(Bank("small").find("fake:noise")) == 75
    output = cache("merge", bank, "--into", "small").stdout
    assert "75 rows copied" in output
    assert "100 rows copied" in output
    assert "0 rows copied" in cache("merge", bank, "--into", "small", "--store", "fake-noise.full.cls").output


def test_diff(bank: Path) -> None:
    arguments = ["diff", "fake-noise.full.cls", "fake-noise.full.mean", "-b", bank]
    text = cache(*arguments).output
    assert "100 patches in both, 50 only in the first, 0 only in the other" in text
    assert "different: another transform, view or encoder" in text
    assert 'tokens: "cls" / "mean"' in text
    found = json.loads(cache(*arguments, "--table", "set.toml", "--json").stdout)
    assert found["relative"][0] == pytest.approx(2, rel=1e-3)
    assert found["cosine"][2] < 1e-6


def test_the_verdict_of_diff(tmp_path: Path, identity: Any, make_rows: Any) -> None:
    from patchbank.cache.merge import diff

    rows = make_rows(200, dtype="float32")
    plain = Bank(tmp_path / "0").open_store(identity(dtype="float32"), create=True)
    with plain.writer() as writer:
        writer.append(*rows[:])
    verdicts = []
    for noise in (1e-4, 1e-2, 1.0):
        other = Bank(tmp_path / str(noise)).open_store(identity(dtype="float32"), create=True)
        noisy = rows.vectors + noise * make_rows(200, dtype="float32", seed=1).vectors
        with other.writer() as writer:
            writer.append(rows.keys, noisy, rows.ids)
        verdicts.append(diff(plain, other).verdict.split(":")[0])
    assert verdicts == ["the same but for rounding", "close", "different"]
    empty = Bank(tmp_path / "e").open_store(identity(dtype="float32"), create=True)
    assert diff(plain, empty).verdict == "no patch is in both"


def test_export_and_import(bank: Path) -> None:
    name = "fake-noise.full.cls"
    assert (
        "150 rows"
        in cache("export", name, "x.parquet", "-b", bank, "-f", "parquet", "--table", "set.toml").output
    )
    back = cache("import", "x.parquet", "-b", "back", "--table-out", "back.csv").output
    assert "150 of 150 rows were new" in back
    assert "0 of 150" in cache("import", "x.parquet", "-b", "back").output
    assert Path("back.csv").read_text().splitlines()[1].split(",")[0] == "set/0-0"
    words = [
        "-f",
        "stamp",
        "--table",
        "set.toml",
        "--by",
        "group",
        "--tile-um",
        112,
        "--tile-px",
        224,
        "--mpp",
        0.5,
        "--where",
        "split == 'train'",
    ]
    assert "75 rows" in cache("export", name, "slides", "-b", bank, *words).output
    assert len(list(Path("slides").iterdir())) == 2


def test_every_layout_is_offered() -> None:
    from patchbank.cache.cli import LAYOUTS as OFFERED

    assert tuple(LAYOUTS) == OFFERED


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["info", "nothing"], "0 stores in .* have a name like 'nothing'; there are: fake-noise"),
        (["info", "fake"], "2 stores in .* have a name like 'fake'"),
        (["ls", "--table", "none.csv"], "the table none.csv does not exist"),
        (["diff", "fake-noise.full.cls", "nothing"], "0 stores"),
        (["import", "none.npz"], "none.npz does not exist"),
    ],
)
def test_errors_are_ours(bank: Path, words: list[str], why: str) -> None:
    with pytest.raises(PatchbankError, match=why):
        cache(*words, "-b", bank)


def test_a_damaged_store_in_one_sentence(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = next(bank.glob("stores/*cls*/parts/log/*"))
    log.write_bytes(log.read_bytes().replace(b'"rows":64', b'"rows":65'))
    with pytest.raises(SystemExit) as stop:
        main(["cache", "info", "fake-noise.full.cls", "--bank", str(bank)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    assert "cannot be read" in cache("ls", "-b", bank).output.replace("\n", " ")


def test_a_remote_bank(identity: Any, make_rows: Any) -> None:
    store: Store = Bank("memory://commands").open_store(identity(), create=True)
    with store.writer() as writer:
        writer.append(*make_rows(20)[:])
    assert "good" in cache("verify", "-b", "memory://commands").output
    (entry,) = json.loads(cache("ls", "-b", "memory://commands", "--json").stdout)
    assert entry["rows"] == 20


def refused(*words: object) -> str:
    """The one sentence that a mistaken command ends with."""
    result = CliRunner().invoke(patchbank, ["cache", *map(str, words)])
    assert isinstance(result.exception, PatchbankError), (words, result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_bank_that_is_not_there(bank: Path, tmp_path: Path) -> None:
    """Every command but ls, which says that there are no stores."""
    (tmp_path / "empty/stores").mkdir(parents=True)
    commands: list[list[object]] = [
        ["verify"],
        ["gc"],
        ["info", "x"],
        ["repair", "x"],
        ["rm", "x", "--yes"],
        ["finalize", "x"],
        ["diff", "x", "y"],
        ["export", "x", "out.npz", "-f", "npz"],
        ["subset", "x", "--to", "y", "--table", "set.toml"],
        ["push", "x", "org/y"],
    ]
    for place in ("nowhere", "memory://nowhere", "set.toml"):
        for command in commands:
            assert "there is no bank at" in refused(*command, "--bank", place)
        assert "there is no bank at" in refused("merge", bank, place, "--into", "target")
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "target").exists()
    assert "no stores in empty" in cache("verify", "-b", "empty", code=1).output
    assert "no stores in empty" in cache("gc", "-b", "empty").output
    assert "0 stores" in refused("info", "x", "-b", "empty")


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_empty_name_is_no_store(bank: Path, name: str) -> None:
    Bank(bank).remove(Bank(bank).full_name("fake-noise.full.mean"))
    for command in (["rm", name, "--yes"], ["verify", name], ["repair", name], ["gc", name], ["info", name]):
        assert "the name of a store is empty" in refused(*command, "-b", bank)
    assert len(Bank(bank).names()) == 1
    for name in ("../stores", "/", "*", "fake-noise.full.cls/../x"):
        assert "0 stores" in refused("rm", name, "--yes", "-b", bank)
    assert len(Bank(bank).names()) == 1


def test_clients_of_object_stores_have_errors_of_their_own(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing credentials and unknown hosts: one sentence, with what to do."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class NoCredentialsError(Exception):
        pass

    def fail(*_: object, **__: object) -> Any:
        raise NoCredentialsError("Unable to locate\ncredentials")

    methods = [
        "ls",
        "exists",
        "info",
        "find",
        "cat_file",
        "pipe_file",
        "rm_file",
        "rm",
        "cp_file",
        "cat_ranges",
        "modified",
    ]
    broken = type("Broken", (MemoryFileSystem,), {"protocol": "broken", **dict.fromkeys(methods, fail)})
    fsspec.register_implementation("broken", broken, clobber=True)
    commands: list[list[object]] = [
        ["ls"], ["verify"], ["gc"], ["info", "x"], ["rm", "x", "--yes"], ["import", "x.npz"],
    ]  # fmt: skip
    cache("export", "fake-noise.full.cls", "x.npz", "-b", bank, "-f", "npz")
    for command in commands:
        said = refused(*command, "--bank", "broken://key:secret@bucket/bank")
        assert "Unable to locate credentials" in said
        assert "AWS_PROFILE" in said
        assert "secret" not in said
    assert "cannot be reached" in refused("merge", bank, "--into", "broken://bucket/bank")


def test_tables_of_manifests_without_content_hashes(bank: Path, tmp_path: Path, make_rows: Any) -> None:
    """As `datasets build` makes them of whole slides: the hashes are those that extract left in the bank."""
    from patchbank.datasets.hashes import record
    from patchbank.datasets.manifest import Header, Manifest
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(images / f"{i}.png")
    rows = make_rows(150)
    header = Header(
        name="wsi", version="1", classes=("a", "b"), positive="a", licence="CC0-1.0", source="made here"
    )
    table = pd.DataFrame(
        {"patch_id": [f"wsi/p{i}" for i in range(6)], "path": [f"{i}.png" for i in range(6)]}
    )
    table = table.assign(label=list("ababab"), group=list("xxyyzz"), domain="", split="test")
    manifest = Manifest(header, table, images)
    manifest.save("wsi.toml")
    store = "fake-noise.full.cls"
    for command in (
        ["export", store, "x.npz", "-f", "npz", "--table", "wsi.toml"],
        ["finalize", store, "--table", "wsi.toml"],
    ):
        assert "6 of the 6 rows of the table have no content hash" in refused(*command, "-b", bank)
    record(manifest, [0, 1, 2, 3], rows.keys[:4], bank / "hashes")
    listed = json.loads(cache("ls", "-b", bank, "--table", "wsi.toml", "--json").stdout)
    assert [entry["complete"] for entry in listed] == [{"wsi": [4, 6]}, {"wsi": [4, 6]}]
    assert "2 of the 6 rows" in refused(
        "export", store, "x.npz", "-f", "npz", "--table", "wsi.toml", "-b", bank
    )
    known = ["--table", "wsi.toml", "--where", "patch_id < 'wsi/p4'"]
    assert "4 rows" in cache("export", store, "x.npz", "-b", bank, "-f", "npz", *known).output
    with np.load("x.npz") as archive:
        assert archive["patch_id"].tolist() == [f"wsi/p{i}" for i in range(4)]
        assert archive["embeddings"].tobytes() == rows.vectors[:4].tobytes()
    assert "4 rows" in cache("subset", store, "-b", bank, "--to", "small", *known).output
    cache("finalize", store, "-b", bank, "--table", "wsi.toml")
    import zarr

    names = np.asarray(zarr.open_group(str(next(bank.glob("stores/*cls*"))), mode="r")["patch_id"])
    assert sorted(name for name in names if name) == [f"wsi/p{i}" for i in range(4)]


def test_names_that_no_file_system_takes(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 300
    commands = [
        ["ls", "-b", long],
        ["ls", "-b", str(bank), "--table", f"{long}.csv"],
        ["verify", "-b", long],
        ["import", f"{long}.npz", "-b", str(bank)],
        ["export", "fake-noise.full.cls", f"{long}.npz", "-f", "npz", "-b", str(bank)],
        ["subset", "fake-noise.full.cls", "--to", long, "--table", "set.toml", "-b", str(bank)],
        ["merge", str(bank), "--into", long],
        ["info", long, "-b", str(bank)],
    ]
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main(["cache", *command])
        said = capsys.readouterr().err
        assert stop.value.code not in (0, None), command
        assert said.splitlines()[-1].startswith("Error: "), said
        assert "Traceback" not in said


@pytest.mark.parametrize("grace", ["nan", "-1", "inf", "x"])
def test_a_grace_that_is_no_time(bank: Path, grace: str) -> None:
    assert "--grace" in cache("gc", "-b", bank, "--grace", grace, code=2).output


def test_a_table_without_rows_is_said(bank: Path) -> None:
    name, nothing = "fake-noise.full.cls", ("-b", bank, "--table", "set.toml", "--where", "label == 'none'")
    with pytest.raises(InvalidRequest, match=r"set\.toml has no rows of which \"label == 'none'\" is true"):
        cache("subset", name, "--to", "small", *nothing)
    with pytest.raises(InvalidRequest, match="no rows to write to"):
        cache("export", name, "x.npz", "-f", "npz", *nothing)
    assert not Path("small").exists()
    assert not Path("x.npz").exists()


def test_numbers_of_a_csv_may_be_compared(bank: Path) -> None:
    cache(
        "subset",
        "fake-noise.full.cls",
        "-b",
        bank,
        "--to",
        "few",
        "--table",
        "patches.csv",
        "--where",
        "x < 7",
    )
    assert len(Bank("few").find("fake:noise")) == 7


def test_a_subset_that_lacks_rows_makes_no_store(bank: Path) -> None:
    with pytest.raises(RowsMissing, match="50 of 150 patches have no embedding"):
        cache("subset", "fake-noise.full.mean", "-b", bank, "--to", "small", "--table", "set.toml")
    assert not Path("small").exists()


def test_equal_vectors_have_no_worst(bank: Path) -> None:
    cache("subset", "fake-noise.full.cls", "-b", bank, "--to", "same", "--table", "set.toml")
    name = "fake-noise.full.cls"
    text = cache("diff", name, name, "-b", bank, "--other-bank", "same").output
    assert "verdict      identical" in text
    assert "worst" not in text
    assert "cosine" not in text
