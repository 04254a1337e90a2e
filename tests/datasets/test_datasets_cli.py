"""`patchbank datasets`: each command once, its JSON, and its errors as one sentence."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from patchbank.cli import main
from patchbank.datasets.cli import build, datasets_group, folds
from patchbank.datasets.declarations import names
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.errors import InvalidRequest, ManifestError, OutputError

WriteImages = Callable[..., None]


@pytest.fixture
def images(tmp_path: Path, write_images: WriteImages) -> Path:
    names = {f"{split}/{label}/s{k % 6}{split}/{k}.png": k + 50 * (label == "bad") + 100 * (split == "test")
             for split in ("train", "test") for label in ("bad", "good") for k in range(12)}  # fmt: skip
    write_images(tmp_path / "images", names)
    return tmp_path / "images"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(datasets_group, [str(arg) for arg in args], catch_exceptions=False)


def made(images: Path, *more: str) -> Path:
    out = images.parent / "toy.toml"
    layout = ("--layout", "{split}/{label}/{group}", "--positive", "bad")
    result = invoke("build", "folder", "--root", images, "--name", "toy", "--out", out, *layout, *more)
    assert result.exit_code == 0, result.output
    return out


def test_ls() -> None:
    assert "atnorm-md" in invoke("ls").output
    rows = json.loads(invoke("ls", "--json").stdout)
    assert [row["name"] for row in rows] == names()
    assert rows[0]["name"] == "ami-br"
    assert rows[0]["patches"] == 3720
    assert rows[0]["counts"]["test"] == {"Atypical": 184, "Normal": 642}
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(datasets_group, ["ls"]).output.splitlines()
    assert max(map(len, lines)) <= 100


def test_build_check_folds(images: Path) -> None:
    file = made(images)
    assert len(load_manifest(file)) == 48
    result = invoke("check", file, "--near")
    assert result.exit_code == 0, result.output
    assert "toy: 48 patches, 48 distinct images.\n" in result.output
    assert "toy: ok" in result.output
    pairs = images.parent / "near.csv"
    assert invoke("check", file, "--near", "--pairs", pairs).exit_code == 0
    assert pairs.read_text().startswith("patch_a,patch_b,")
    assert invoke("check", file, "--pairs", pairs).exit_code == 2, "pairs of what?"
    out = images.parent / "f.toml"
    result = invoke("folds", "make", file, "--n-splits", 3, "--out", out)
    assert result.exit_code == 0, result.output
    shown = json.loads(invoke("folds", "show", out, file, "--json").stdout)
    assert shown["n_splits"] == 3
    assert set(shown["fold_of_group"]) == {f"s{k}train" for k in range(6)}
    assert "make_folds" in invoke("folds", "show", out, file).output


def test_build_json_and_skip(images: Path) -> None:
    (images / "train" / "bad" / "s0train" / "0.png").write_text("hello")
    args = ("--name", "toy", "--out", images.parent / "t.toml", "--positive", "bad", "--layout", "*/{label}")
    result = invoke("build", "folder", "--root", images, *args, "--on-error", "skip", "--json")
    found = json.loads(result.stdout)
    assert found["rows"] == 47
    assert [patch for patch, _ in found["skipped"]] == ["toy/train/bad/s0train/0"]


def test_check_ends_with_1(images: Path) -> None:
    file = made(images)
    (images / "test" / "bad" / "s1test" / "1.png").unlink()
    result = invoke("check", file)
    assert result.exit_code == 1
    assert "toy/test/bad/s1test/1" in result.output
    assert "NOT ok" in result.output
    found = json.loads(invoke("check", file, "--json").stdout)["audits"][0]
    assert found["ok"] is False
    assert len(found["unreadable"]) == 1


def test_from_csv(images: Path) -> None:
    rows = [
        f"{p.relative_to(images).as_posix()},{p.parts[-3]},{p.parts[-2]}"
        for p in sorted(images.rglob("*.png"))
    ]
    table = images.parent / "labels.csv"
    table.write_text("file,diagnosis,patient\n" + "\n".join(rows) + "\n")
    columns = [
        part for pair in ("path=file", "label=diagnosis", "group=patient") for part in ("--column", pair)
    ]
    out = images.parent / "t.toml"
    described = ("--name", "toy", "--positive", "bad", "--classes", "good,bad", "--split", "all")
    result = invoke(
        "build", "from-csv", "--root", images, "--table", table, *described, *columns, "--out", out
    )
    assert result.exit_code == 0, result.output
    manifest = load_manifest(out)
    assert manifest.header.classes == ("good", "bad")
    assert set(manifest.table["split"]) == {"all"}


def test_the_other_builders(
    tmp_path: Path, pixels: Callable[..., np.ndarray], write_slide: Callable[..., None]
) -> None:
    stack = np.stack([pixels(k) for k in range(4)])
    np.savez(tmp_path / "m.npz", train_images=stack, train_labels=np.array([0, 1, 0, 1]))
    result = invoke("build", "npz", "--root", tmp_path / "m.npz", "--name", "m", "--positive", "1", "--out",
                    tmp_path / "m.toml", "--mpp", 0.25)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load_manifest(tmp_path / "m.toml").header.mpp == 0.25
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["y"] = stack, np.array([0, 1, 0, 1])
    result = invoke("build", "hdf5", "--root", tmp_path, "--name", "h", "--positive", "tumor", "--classes",
                    "normal,tumor", "--images", "train=x.h5", "--out", tmp_path / "h.toml")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load_manifest(tmp_path / "h.toml").table["label"].tolist() == ["normal", "tumor"] * 2
    write_slide(tmp_path / "s.tiff", np.zeros((128, 128, 3), np.uint8))
    (tmp_path / "c.csv").write_text("slide,x,y\ns,0,0\ns,64,0\n")
    regions = ("--coordinates", tmp_path / "c.csv", "--size", 64, "--mpp", 0.5, "--border", "black")
    result = invoke("build", "wsi", "--root", tmp_path, "--name", "w", *regions, "--out", tmp_path / "w.toml")
    assert result.exit_code == 0, result.output
    built = load_manifest(tmp_path / "w.toml")
    assert built.table["path"][0] == "s.tiff::wsi[0,0,64,64,mpp=0.5,border=black]"
    assert built.header.mpp == 0.5


def test_shipped_builders_on_the_real_files(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.toml"
    result = invoke("build", "atnorm-br", "--root", shared / "data", "--out", out, "--json")
    assert json.loads(result.stdout)["rows"] == 746
    result = invoke("check", out, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["audits"][0]
    assert (found["duplicate_groups"], found["contradictory_groups"], found["unique"]) == (27, 2, 711)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["build", "folder", "--root", "{images}", "--name", "toy", "--layout", "*/{{label}}"],
            "say which is the positive one",
        ),
        (
            ["build", "folder", "--root", "{images}", "--name", "toy"],
            'look like splits, not classes. Fix: --layout "{split}/{label}"',
        ),
        (["build", "ami-br", "--root", "{images}"], "datasets fetch ami-br"),
        (
            ["build", "hdf5", "--root", "{images}", "--name", "x", "--images", "a.h5"],
            "write --images KEY=VALUE",
        ),
        (["check", "{toml}", "--root", "{images}/lost"], "does not exist"),
        (["fetch", "amibr"], "did you mean 'ami-br'"),
        (["folds", "show", "papre", "{toml}"], "no folds are called 'papre'"),
        (["folds", "show", "paper", "{toml}"], "do not know 6 of the groups"),
        (["folds", "make", "{toml}", "--split", "trian", "--out", "x.toml"], "no split 'trian'"),
        (["folds", "make", "{toml}", "--n-splits", "9", "--out", "x.toml"], "Fix: make 6 folds"),
    ],
)
def test_errors_are_one_sentence(
    images: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = made(images)
    with pytest.raises(SystemExit) as ended:
        main(["datasets", *(arg.format(images=images, toml=toml) for arg in args)])
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_unreadable_images_are_listed_one_a_line(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in (1, 2):
        (images / "train" / "bad" / f"s{k}train" / f"{k}.png").write_text("hello")
    with pytest.raises(SystemExit):
        main(["datasets", "build", "folder", "--root", str(images), "--name", "toy", "--positive", "bad",
              "--layout", "*/{label}", "--out", str(images.parent / "x.toml")])  # fmt: skip
    said = capsys.readouterr().err
    assert "Error: 2 of 48 images of 'toy' cannot be read; nothing was built" in said
    assert "  toy/train/bad/s1train/1: " in said
    assert not (images.parent / "x.toml").exists()


def test_every_command_has_examples() -> None:
    commands = [*datasets_group.commands.values(), *build.commands.values(), *folds.commands.values()]
    assert len(commands) >= 14
    for command in commands:
        assert command.help, command.name
        if command is not folds:
            assert "\b\nExamples:\n  patchbank datasets" in inspect.cleandoc(command.help), command.name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from patchbank.cli import main\n"
        "try: main(['datasets', 'build', 'wsi', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('numpy', 'pandas', 'PIL', 'pyarrow', 'h5py', 'tqdm', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_unknown_groups_are_said(images: Path) -> None:
    out = images.parent / "u.toml"
    args = ("--root", images, "--name", "u", "--out", out, "--layout", "{split}/{label}", "--positive", "bad")
    said = "u: no slides or patients are known: intervals are too narrow, folds may leak."
    assert said in invoke("build", "folder", *args).output
    assert said in invoke("check", out).output
    assert json.loads(invoke("build", "folder", *args, "--json").stdout)["groups_known"] is False
    assert "are known" not in invoke("check", made(images)).output


def test_many_rows_with_one_fault_are_one_line(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = sorted((images / "train" / "bad").rglob("*.png"))
    for file in lost[:-1]:
        file.write_text("hello")
    lost[-1].write_text("other")
    out = str(images.parent / "x.toml")
    command = ["datasets", "build", "folder", "--root", str(images), "--name", "toy", "--positive", "bad",
               "--layout", "{split}/{label}", "--out", out]  # fmt: skip
    with pytest.raises(SystemExit):
        main(command)
    said = [
        line.strip() for line in capsys.readouterr().err.splitlines() if "hello" in line or "other" in line
    ]
    assert len(said) == 2
    assert said[0].startswith("11 rows (toy/train/bad/s0train/0, ")
    assert "and 3 more), first: " in said[0]
    with pytest.raises(SystemExit):
        main([*command, "--on-error", "skip"])
    assert "left out: 11 rows (toy/train/bad/s0train/0, " in capsys.readouterr().err


def test_more_than_two_classes_grades_and_targets(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "in", {f"{k}.png": k for k in range(6)})
    lines = [f"{k}.png,{k % 3},s{k},{k / 7}" for k in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group,gene", *lines]))
    out = tmp_path / "t.toml"
    command = (
        "build",
        "from-csv",
        "--root",
        tmp_path / "in",
        "--table",
        tmp_path / "labels.csv",
        "--name",
        "t",
    )
    assert invoke(*command, "--out", out).exit_code == 0
    assert load_manifest(out).header.classes == ("0", "1", "2")
    assert load_manifest(out).header.positive == ""
    assert invoke(*command, "--ordered", "--out", out).exit_code == 0
    assert load_manifest(out).header.ordered
    result = invoke(*command, "--targets", "gene", "--out", out)
    assert "labels were left out" in result.output
    assert load_manifest(out).header.targets
    lines[0] = "0.png,0,s0,0"
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group,gene", *lines[:-1], "5.png,2,s2,1"]))
    assert (
        "classes with one group, so no interval and no folds: '2' ('s2')"
        in invoke(*command, "--out", out).output
    )


ODD = "[/grade] [red]G3[/red] :smile: \\[x]"


def test_names_with_square_brackets(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "in", {f"{k}.png": k % 11 for k in range(12)})
    lines = [f"{k}.png,{ODD if k % 2 else 'normal'},{ODD}{k % 4},{ODD}" for k in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group,domain", *lines]))
    out, folds_file = tmp_path / "t.toml", tmp_path / "f.toml"
    args = (
        "--root",
        tmp_path / "in",
        "--table",
        tmp_path / "labels.csv",
        "--name",
        "t",
        "--positive",
        ODD,
        "--out",
        out,
    )
    commands = [
        ("build", "from-csv", *args),
        ("check", out),
        ("folds", "make", out, "--n-splits", "2", "--split", "", "--out", folds_file),
        ("folds", "show", folds_file, out, "--split", ""),
    ]
    for command in commands:
        result = invoke(*command)
        assert result.exit_code == (1 if command[0] == "check" else 0), result.output
        joined = "".join(result.output.split()).replace("│", "")
        assert "".join(ODD.split()) in joined, command
    assert "contradictions: identical images with several labels" in invoke("check", out).output


@pytest.mark.parametrize("split", ["train", "", "test"])
def test_check_refuses_what_probe_will_refuse(tmp_path: Path, write_images: WriteImages, split: str) -> None:
    """Two slides hold one tile: folds would put it on both sides."""
    write_images(tmp_path, {"s1/1.png": 1, "s1/2.png": 2, "s2/1.png": 1, "s2/3.png": 3})
    rows = "".join(f"{p},x,{p[:2]},{split}\n" for p in ("s1/1.png", "s1/2.png", "s2/1.png", "s2/3.png"))
    (tmp_path / "labels.csv").write_text(f"path,label,group,split\n{rows}")
    out = tmp_path / "t.toml"
    invoke(
        "build",
        "from-csv",
        "--root",
        tmp_path,
        "--table",
        tmp_path / "labels.csv",
        "--name",
        "t",
        "--out",
        out,
    )
    result = invoke("check", out)
    assert ("1 images in several groups" in result.output) == (split != "test")
    said = " ".join(result.output.split())
    assert ("which `probe` refuses; give them one group" in said) == (split != "test")
    assert result.exit_code == (split != "test")
    found = json.loads(invoke("check", out, "--json").stdout)["audits"][0]["split_contents"]
    assert found == ([{"duplicate": 1, "groups": "s1, s2", "rows": 2}] if split != "test" else [])


def test_a_place_that_is_taken_is_refused_before_the_work(images: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("mine")
    args = (
        "build",
        "folder",
        "--root",
        images,
        "--name",
        "t",
        "--layout",
        "{split}/{label}",
        "--positive",
        "bad",
    )
    with pytest.raises(ManifestError, match="exists and is not the table of"):
        invoke(*args, "--out", tmp_path / "t.toml")
    assert (tmp_path / "t.csv").read_text() == "mine"
    with pytest.raises(OutputError, match="cannot be written"):
        invoke(*args, "--out", tmp_path / "t.csv" / "u.toml")
    with pytest.raises(ManifestError, match=r"saved as NAME\.toml, not as 'u.csv'"):
        invoke(*args, "--out", tmp_path / "u.csv")


def test_a_declaration_by_its_path(images: Path) -> None:
    file = images.parent / "toy.declared.toml"
    file.write_text(
        'format = "patchbank-dataset"\nformat_version = 2\nname = "toy"\n'
        'classes = ["bad", "good"]\npositive = "bad"\n'
        'licence = "CC0"\nsource = "here"\nrows = { all = 48 }\nknown_faults = ["Made up."]\n'
        '[[parts]]\nbuilder = "folder"\nlayout = "{split}/{label}/{group}"\n'
    )
    shown = invoke("show", file)
    assert "classes: bad, good" in shown.output
    assert "known: Made up." in shown.output
    assert json.loads(invoke("show", file, "--json").stdout)["rows"] == {"all": 48}
    out = images.parent / "toy.toml"
    result = invoke("build", file, "--root", images, "--out", out)
    assert result.exit_code == 0, result.output
    assert len(load_manifest(out)) == 48
    assert "--quiet" in invoke("build", file, "--help").output
    assert "1 of 1 known facts met" not in invoke("check", out).output
    assert invoke("check", out, "--declaration", file).exit_code == 0
    file.write_text(file.read_text().replace("all = 48", "all = 49"))
    result = invoke("check", out, "--declaration", file)
    assert result.exit_code == 1
    assert "facts that are not met" in result.output
    with pytest.raises(InvalidRequest, match="is the declaration itself"):
        invoke("build", file, "--root", images, "--out", file)
    result = invoke("build", "toyy", "--root", images)
    assert "no builder or data set is called 'toyy'" in result.output


def test_two_sets_of_one_slide(toy: Manifest, tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "else", {f"{k}.png": 100 + k for k in range(8)})
    at = toy.table.assign(x=range(0, 8000, 1000), y=5)
    header = toy.header.replace(name="other")
    ids = at["patch_id"].str.replace("toy/", "other/", regex=False)
    other = Manifest(header, at.assign(patch_id=ids, x=at["x"] + 30), tmp_path / "else")
    files = [Manifest(toy.header, at, toy.root).save(tmp_path / "a.toml"), other.save(tmp_path / "b.toml")]
    result = invoke("check", *files)
    assert result.exit_code == 1, "what is trained on is scored too"
    assert "8 pairs of patches at one place of a slide: do not train on one" in result.output
    assert "4 slides have one name in several data sets (g0, g1, g2, g3)" in result.output
    found = json.loads(invoke("check", *files, "--json").stdout)
    assert found["same_places"][0]["distance"] == 30
    assert invoke("check", files[0]).exit_code == 0
