"""The three shipped data sets: on the real files where they are, and on generated ones with faults."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patchbank.datasets.audit import audit, contents_digest
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.declarations import load_declaration
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.errors import ManifestError

WriteImages = Callable[..., None]


def build(name: str, root: Path) -> Manifest:
    return build_manifest(name, root, hashes=False, on_note=lambda note: None)


@pytest.fixture(scope="module")
def ami_br(shared: Path) -> Manifest:
    return build("ami-br", shared / "data")


class TestAmiBr:
    def test_counts(self, ami_br: Manifest) -> None:
        table = ami_br.table
        assert len(table) == 3720
        counts = table.groupby(["split", "label"]).size().to_dict()
        assert counts == {
            ("train", "Atypical"): 648,
            ("train", "Normal"): 2246,
            ("test", "Atypical"): 184,
            ("test", "Normal"): 642,
        }
        assert table.groupby("split")["group"].nunique().to_dict() == {"train": 146, "test": 56}
        assert table["patch_id"].is_unique
        assert (table["group"] != "").all()

    def test_slides_do_not_cross_splits(self, ami_br: Manifest) -> None:
        assert (ami_br.table.groupby("group")["split"].nunique() == 1).all()

    def test_votes(self, ami_br: Manifest) -> None:
        train = ami_br.select("train").table
        assert train["votes_positive"].value_counts().sort_index().tolist() == [1932, 314, 328, 320]
        assert (ami_br.table["votes_total"] == 3).all()
        majority = np.where(ami_br.table["votes_positive"] >= 2, "Atypical", "Normal")
        assert (majority == ami_br.table["label"]).all()

    def test_domains(self, ami_br: Manifest) -> None:
        assert ami_br.table["domain"].value_counts().to_dict() == dict(load_declaration("ami-br").domains)
        of_slide = ami_br.table.drop_duplicates("group").set_index("group")["domain"]
        assert of_slide["050.tiff"] == "MIDOG21 Hamamatsu XR"
        assert of_slide["101.tiff"] == "MIDOG21 Aperio CS2"
        assert of_slide["23_stitched1.tif"] == "TUPAC16 cases 01-23"
        assert of_slide["49.tif"] == "TUPAC16 cases 49-73"

    def test_coordinates_of_the_training_rows(self, ami_br: Manifest) -> None:
        assert ami_br.select("train").table[["x", "y"]].notna().all(axis=None)
        row = ami_br.table.set_index("patch_id").loc["ami-br/MIDOG21_7"]
        assert (row["x"], row["y"], row["group"], row["label"]) == (
            1867 - 64,
            1583 - 64,
            "002.tiff",
            "Atypical",
        )

    def test_its_own_folder_and_the_one_above_are_roots(self, shared: Path, ami_br: Manifest) -> None:
        with pytest.raises(ManifestError, match=r"amibr_train_split\.csv is not under"):
            build("ami-br", shared / "data" / "AMi-Br")  # the CSV lies beside it
        above = build("ami-br", shared)
        assert above.table["patch_id"].tolist() == ami_br.table["patch_id"].tolist()
        assert Path(above.path(0)).is_file()


class TestAtnormBr:
    def test_audit_finds_what_is_known(self, shared: Path) -> None:
        with pytest.warns(UserWarning, match="62 rows are identical or near-identical"):
            manifest = build_manifest("atnorm-br", shared / "data", progress=False)
        assert len(manifest) == 746
        assert contents_digest(manifest) == load_declaration("atnorm-br").contents
        found = audit(manifest, progress=False)
        assert found.duplicate_groups == 27
        assert len(found.duplicates) == 62
        assert found.unique == 711
        assert found.contradictory_groups == 2
        sets = found.contradictions.groupby("duplicate")["patch_id"].agg(set).tolist()
        ids = [{int(name.rpartition("/")[2]) for name in part} for part in sets]
        assert sorted(ids, key=len) == [{428, 425}, {390, 391, 398, 404, 410}]
        assert found.facts["ok"].all()
        assert found.ok  # the facts tell of the contradictions


@pytest.fixture
def md(tmp_path: Path, shared: Path, write_images: WriteImages) -> Path:
    """AtNorM-MD with the real votes and generated 8 x 8 images."""
    votes = pd.read_csv(shared / "data" / "AtNorM-MD_expert_votes.csv", dtype=str)
    votes.to_csv(tmp_path / "AtNorM-MD_expert_votes.csv", index=False)
    write_images(
        tmp_path / "AtNorM-MD",
        {
            f"{label}/{name}": i
            for i, (name, label) in enumerate(zip(votes["Filename"], votes["Majority"], strict=True))
        },
        8,
    )
    return tmp_path


class TestAtnormMd:
    def test_counts_domains_votes(self, md: Path) -> None:
        manifest = build("atnorm-md", md)
        table = manifest.table
        assert table["label"].value_counts().to_dict() == {"Normal": 1888, "Atypical": 219}
        assert table["domain"].value_counts().to_dict() == dict(load_declaration("atnorm-md").domains)
        atypical = table[table["label"] == "Atypical"]["domain"].value_counts().to_dict()
        assert atypical == {
            "canine lung cancer": 18,
            "canine lymphoma": 79,
            "canine cutaneous mast cell tumor": 29,
            "human neuroendocrine tumor": 13,
            "canine soft tissue sarcoma": 11,
            "human melanoma": 69,
        }
        assert table["votes_positive"].value_counts().sort_index().tolist() == [1407, 364, 117, 83, 77, 59]
        assert (table["group"] == "").sum() == 270
        assert set(table["split"]) == {"test"}
        of = table.set_index("patch_id")["domain"]
        assert of["atnorm-md/187"] == "canine lung cancer"
        assert of["atnorm-md/188"] == "canine lymphoma"
        assert of["atnorm-md/2107"] == "human melanoma"

    def test_the_facts_are_met_but_for_the_size_of_these_images(self, md: Path) -> None:
        facts = audit(build("atnorm-md", md), progress=False).facts
        assert facts[~facts["ok"]]["fact"].tolist() == ["image size"]

    def test_faults_are_all_named(self, md: Path, write_images: WriteImages) -> None:
        atypical = md / "AtNorM-MD" / "Atypical"
        first, second = sorted(atypical.iterdir())[:2]
        first.unlink()
        second.rename(md / "AtNorM-MD" / "Normal" / second.name)
        write_images(atypical, {"9999.png": 1}, 8)
        with pytest.raises(ManifestError) as caught:
            build("atnorm-md", md)
        message = str(caught.value)
        assert f"1 rows of AtNorM-MD_expert_votes.csv have no image: {first.name}" in message
        assert "1 images have no votes_positive (in none of AtNorM-MD_expert_votes.csv, " in message
        assert f"{second.name} is 'Normal' by its folder and 'Atypical' in AtNorM-MD" in message


@pytest.fixture
def small_ami(tmp_path: Path, write_images: WriteImages) -> Path:
    """Three training rows and two images of the real test set, with generated pixels."""
    write_images(
        tmp_path / "AMi-Br",
        {
            "Atypical/MIDOG21_7.png": 1,
            "Normal/MIDOG21_6.png": 2,
            "Normal/TUPAC16_5.png": 3,
            "Normal/MIDOG21_106.png": 4,
            "Normal/MIDOG21_107.png": 5,
        },
    )
    columns = "Unnamed: 0,slide,dataset,uid,final_label,dataset_uid,x,y"
    (tmp_path / "amibr_train_split.csv").write_text(
        f"{columns},expert1_atypical,expert2_atypical,expert3_atypical\n"
        "0,002.tiff,MIDOG21,6,Normal,MIDOG21_6.png,4422,216,False,False,True\n"
        "1,002.tiff,MIDOG21,7,Atypical,MIDOG21_7.png,1867,1583,True,True,True\n"
        "2,24.tif,TUPAC16,5,Normal,TUPAC16_5.png,1,2,False,False,False\n"
    )
    return tmp_path


class TestFaults:
    def test_the_small_one_is_good(self, small_ami: Path) -> None:
        table = build("ami-br", small_ami).table.set_index("patch_id")
        assert table["split"].to_dict() == {
            "ami-br/MIDOG21_7": "train",
            "ami-br/MIDOG21_6": "train",
            "ami-br/TUPAC16_5": "train",
            "ami-br/MIDOG21_106": "test",
            "ami-br/MIDOG21_107": "test",
        }
        assert table.loc["ami-br/MIDOG21_6", "votes_positive"] == 1
        assert table.loc["ami-br/MIDOG21_106", "group"] == "007.tiff"

    def test_a_row_without_a_file_and_a_file_of_nobody(
        self, small_ami: Path, write_images: WriteImages
    ) -> None:
        (small_ami / "AMi-Br" / "Normal" / "TUPAC16_5.png").unlink()
        write_images(small_ami / "AMi-Br", {"Normal/MIDOG21_999999.png": 9})
        with pytest.raises(ManifestError) as caught:
            build("ami-br", small_ami)
        assert "1 rows of amibr_train_split.csv have no image: TUPAC16_5.png" in str(caught.value)
        assert "1 images have no split" in str(caught.value)
        assert "ami-br.test-slides.csv): MIDOG21_999999.png" in str(caught.value)

    def test_a_label_that_contradicts_the_folder(self, small_ami: Path) -> None:
        folder = small_ami / "AMi-Br"
        (folder / "Normal" / "MIDOG21_6.png").rename(folder / "Atypical" / "MIDOG21_6.png")
        with pytest.raises(
            ManifestError, match=r"MIDOG21_6\.png is 'Atypical' by its folder and 'Normal' in amibr"
        ):
            build("ami-br", small_ami)

    def test_a_name_in_both_folders(self, small_ami: Path, write_images: WriteImages) -> None:
        write_images(small_ami / "AMi-Br", {"Atypical/MIDOG21_6.png": 9})
        with pytest.raises(ManifestError, match=r"MIDOG21_6\.png is 'Atypical' by its folder"):
            build("ami-br", small_ami)

    def test_a_csv_without_a_column_or_with_a_row_twice(self, small_ami: Path) -> None:
        file = small_ami / "amibr_train_split.csv"
        text = file.read_text()
        file.write_text(text.replace(",slide,", ",slides,"))
        with pytest.raises(ManifestError, match="there is no column 'slide', did you mean 'slides'"):
            build("ami-br", small_ami)
        file.write_text(text + text.splitlines()[1] + "\n")
        with pytest.raises(ManifestError, match=r"names more than once: MIDOG21_6\.png"):
            build("ami-br", small_ami)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"holds no AtNorM-Br\. .*datasets fetch atnorm-br"):
            build("atnorm-br", tmp_path)
        with pytest.raises(ManifestError, match="is not a folder"):
            build("atnorm-br", tmp_path / "lost")

    def test_as_an_archive_unpacks_it(self, small_ami: Path) -> None:
        top = small_ami / "x" / "AMi-Br_Benchmark-main"
        top.mkdir(parents=True)
        for name in ("AMi-Br", "amibr_train_split.csv"):
            (small_ami / name).rename(top / name)
        manifest = build("ami-br", small_ami / "x")
        assert manifest.table["path"].iat[0] == "AMi-Br_Benchmark-main/AMi-Br/Atypical/MIDOG21_7.png"


class TestFacts:
    def test_shipped_tables_have_the_counted_rows(self) -> None:
        known = pd.read_csv(load_declaration("ami-br").folder / "ami-br.test-slides.csv", dtype=str)
        assert len(known) == 826
        assert known["slide"].nunique() == 56
        places = pd.read_csv(load_declaration("atnorm-md").folder / "atnorm-md.domains.csv", dtype=str)
        assert len(places) == 2107

    def test_shipped_tables_are_the_reference(self, shared: Path) -> None:
        reference = pd.read_csv(shared / "reference" / "amibr_test_slides.csv", dtype=str)
        known = pd.read_csv(load_declaration("ami-br").folder / "ami-br.test-slides.csv", dtype=str)
        pd.testing.assert_frame_equal(known, reference[known.columns])
        reference = pd.read_csv(shared / "reference" / "atnorm_md_domains.csv", dtype=str)
        places = pd.read_csv(load_declaration("atnorm-md").folder / "atnorm-md.domains.csv", dtype=str)
        assert places["midogpp_slide"].equals(reference["midogpp_slide"])


def test_saved_and_loaded(small_ami: Path) -> None:
    with pytest.warns(UserWarning, match="not as declared: rows 5 instead of 3720"):
        manifest = build_manifest("ami-br", small_ami, progress=False)
    file = manifest.save(small_ami / "ami-br.toml")
    loaded = load_manifest(file)
    pd.testing.assert_frame_equal(loaded.table, manifest.table)
    assert loaded.header == load_declaration("ami-br").header()


def test_phases_and_centres_of_the_real_files(shared: Path) -> None:
    phases = build("ami-br-phases", shared / "data")
    declared = load_declaration("ami-br-phases")
    assert phases.table["label"].value_counts().to_dict() == declared.counts["train"]
    assert phases.header.classes
    assert phases.table["group"].nunique() == 146
    experts = phases.table[["expert_1", "expert_2"]]
    assert experts["expert_1"].equals(phases.table["label"].rename("expert_1"))
    assert experts.isin(phases.header.classes).all(axis=None)
    assert round((experts["expert_1"] == experts["expert_2"]).mean(), 3) == 0.706
    centres = build("ami-br-centres", shared / "data")
    assert centres.table["label"].value_counts().to_dict() == load_declaration("ami-br").domains
    assert (centres.table.groupby("group")["label"].nunique() == 1).all()
