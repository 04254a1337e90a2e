"""Each shipped declaration builds a miniature tree in the layout of its set, with its awkwardness."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.declarations import load_declaration, names
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.errors import ManifestError
from patchbank.settings import write_toml
from PIL import Image

Row = tuple[str, str, str, str]  # label, group, domain, split
LAYOUTS: dict[str, tuple[Callable[[Path], None], list[Row]]] = {}
# these three and what is made of them: test_mitosis.py
ELSEWHERE = {"ami-br", "atnorm-br", "atnorm-md", "ami-br-phases", "ami-br-centres"}


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def images(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(hash(path) % 2**32)).save(file)


def text(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def layout(name: str, *rows: Row) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(make: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in LAYOUTS
        LAYOUTS[name] = (make, list(rows))
        return make

    return keep


@layout(
    "bach",
    ("Benign", "", "", "train"),
    ("Benign", "16", "", "test"),  # b042: index 41 of the sorted list
    ("InSitu", "23", "", "test"),  # is040: index 139
    ("Invasive", "", "", "train"),
    ("Normal", "", "", "train"),  # n045: index 344
    ("Normal", "21", "", "test"),
)
def bach(root: Path) -> None:
    base = root / "ICIAR2018_BACH_Challenge"
    images(
        base / "Photos",
        *("Benign/b001.tif", "Benign/b042.tif", "InSitu/is040.tif", "Invasive/iv001.tif"),
        *("Normal/n045.tif", "Normal/n067.tif"),
    )
    text(base / "Photos" / "microscopy_ground_truth.csv", "b001.tif,Benign")
    (base / "WSI").mkdir()


@layout(
    "bracs",
    ("PB", "1003691", "", "train"),
    ("N", "264", "", "test"),
    ("IC", "1499", "", "val"),
)
def bracs(root: Path) -> None:
    base = root / "BRACS_RoI" / "latest_version"
    images(
        base,
        "train/1_PB/BRACS_1003691_PB_12.png",
        "val/6_IC/BRACS_1499_IC_1.png",
        "test/0_N/BRACS_264_N_2.png",
    )
    text(base / "train" / "1_PB" / "._BRACS_1003691_PB_12.png", "stray")


BREAKHIS = "BreaKHis_v1/histology_slides/breast/"


def breakhis(root: Path) -> None:
    def name(tumor: str, kind: str, patient: str, magnification: int, folder: str) -> str:
        letter = tumor[0].upper()
        return (
            f"{BREAKHIS}{tumor}/SOB/{folder}/SOB_{letter}_{kind}_{patient}/{magnification}X/"
            f"SOB_{letter}_{kind}-14-{patient}-{magnification}-001.png"
        )

    images(
        root / "BreaKHis_v1.unpacked",
        name("benign", "TA", "16184CD", 40, "tubular_adenoma"),
        name("benign", "F", "14134", 40, "fibroadenoma"),
        name("benign", "F", "14134", 400, "fibroadenoma"),
        name("benign", "A", "22549AB", 40, "adenosis"),
        name("malignant", "DC", "13412", 40, "ductal_carcinoma"),
        name("malignant", "LC", "13412", 40, "lobular_carcinoma"),
    )


layout("breakhis", ("TA", "16184CD", "", "test"), ("F", "14134", "", "train"), ("DC", "13412", "", "train"))(
    breakhis
)
layout(
    "breakhis-binary",
    ("benign", "16184CD", "", ""),
    ("benign", "14134", "", ""),
    ("benign", "22549AB", "", ""),
    ("malignant", "13412", "", ""),
    ("malignant", "13412", "", ""),
)(breakhis)


def crc(train: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:  # each archive in its own folder, as fetch unpacks them
        images(root / train / train, "ADI/ADI-AAAFLCLY.tif", "TUM/TUM-ZZ.tif")
        images(root / "CRC-VAL-HE-7K" / "CRC-VAL-HE-7K", "ADI/ADI-TCGA-AAICEQFN.tif")

    return make


for _name, _train in (("crc-100k", "NCT-CRC-HE-100K"), ("crc-100k-nonorm", "NCT-CRC-HE-100K-NONORM")):
    layout(_name, ("ADI", "", "", "train"), ("TUM", "", "", "train"), ("ADI", "", "", "test"))(crc(_train))


@layout("kather-textures", ("TUMOR", "", "", ""), ("EMPTY", "", "", ""))
def kather(root: Path) -> None:
    base = root / "Kather_texture_2016" / "Kather_texture_2016_image_tiles_5000"
    images(base, "01_TUMOR/10009_CRC-Prim-HE-03_009.tif_Row_301_Col_151.tif", "08_EMPTY/1_a.tif")


@layout("mhist", ("SSA", "", "", "train"), ("HP", "", "", "test"))
def mhist(root: Path) -> None:
    images(root / "images", "MHIST_aaa.png", "MHIST_aab.png")
    votes = "Number of Annotators who Selected SSA (Out of 7)"
    text(
        root / "annotations.csv",
        f"Image Name,Majority Vote Label,{votes},Partition",
        "MHIST_aaa.png,SSA,6,train",
        "MHIST_aab.png,HP,2,test",
    )


@layout(
    "pcam",
    *(("normal", f"slide_{s}", "", s) for s in ("train", "val", "test")),
    *(("tumor", f"slide_{s}", "", s) for s in ("train", "val", "test")),
)
def pcam(root: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        base = f"camelyonpatch_level_2_split_{name}"
        with h5py.File(root / f"{base}_x.h5", "w") as file:
            file["x"] = np.stack([pixels(k) for k in range(2)])
        with h5py.File(root / f"{base}_y.h5", "w") as file:
            file["y"] = np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)
        text(
            root / f"{base}_meta.csv",
            ",coord_x,coord_y,tumor_patch,center_tumor_patch,wsi",
            *(f"{k},1,2,False,{bool(k)},slide_{split}" for k in range(2)),
        )


@layout(
    "camelyon17-wilds",
    ("tumor", "4", "center 0", "train"),
    ("normal", "30", "center 3", "id_val"),
    ("normal", "11", "center 1", "val"),
    ("tumor", "21", "center 2", "test"),
)
def camelyon(root: Path) -> None:
    rows = [("004", 4, 0, 0, 1, 4), ("060", 1, 3, 1, 0, 30), ("020", 2, 1, 0, 0, 11), ("040", 0, 2, 0, 1, 21)]
    base = root / "camelyon17_v1.0"
    lines = []
    for i, (patient, node, center, split, tumor, slide) in enumerate(rows):
        images(
            base / "patches",
            f"patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_3328_y_{i}.png",
        )
        lines.append(f"{i},{patient},{node},3328,{i},{tumor},{slide},{center},{split}")
    text(base / "metadata.csv", ",patient,node,x_coord,y_coord,tumor,slide,center,split", *lines)


@layout(
    "tcga-crc-msi",
    ("nonMSIH", "TCGA-G4-6309", "", "train"),
    ("MSIH", "TCGA-A6-2672", "", "test"),
)
def msi(root: Path) -> None:
    images(root / "TRAIN" / "TRAIN", "nonMSIH/blk-AAAFIYHTSVIE-TCGA-G4-6309-01Z-00-DX1.png")
    images(root / "TEST", "MSIH/blk-AAAFIYHTSVIE-TCGA-A6-2672-01Z-00-DX1.png")


@layout(
    "tcga-tils",
    ("til-negative", "TCGA-OR-A5J1", "acc", "train"),
    ("til-positive", "TCGA-XF-AAN2", "ucec", "val"),
)
def tils(root: Path) -> None:
    base = root / "TCGA-TILs.unpacked" / "TCGA-TILs" / "images-tcga-tils"
    images(
        base,
        "acc/train/til-negative/TCGA-OR-A5J1-01Z-00-DX1_0123456789abcdef.png",
        "ucec/val/til-positive/TCGA-XF-AAN2-01Z-00-DX1_0123456789abcdef.png",
    )
    (base / "pancancer").mkdir()
    (base / "pancancer" / "ucec").symlink_to(base / "ucec")
    text(base.parent / "images-tcga-tils-metadata.csv", "partition,study,barcode,label,path,md5")


@layout(
    "tcga-uniform", ("Kidney_Chromophobe", "TCGA-KL-8323", "", ""), ("Uveal_Melanoma", "TCGA-V4-A9E5", "", "")
)
def uniform(root: Path) -> None:
    images(
        root,
        "Kidney_Chromophobe/Kidney_Chromophobe/0/TCGA-KL-8323-01A-01-BS1/1.jpg",
        "Kidney_Chromophobe/Kidney_Chromophobe/1/TCGA-KL-8323-01A-01-BS1/1.jpg",
        "Uveal_Melanoma/Uveal_Melanoma/0/TCGA-V4-A9E5-01Z-00-DX1/0-1.jpg",
    )


@layout(
    "ccrcc",
    ("cancer", "TCGA-A3-3387", "TCGA", "train"),
    ("stroma", "TCGA-A3-3387", "TCGA", "train"),
    ("normal", "", "Helsinki", "test"),
)
def ccrcc(root: Path) -> None:
    images(
        root / "tissue_classification",
        "cancer/TCGA-A3-3387-01Z-00-DX1_1.png",
        "stroma/TCGA-A3-3387-01Z-00-DX1_2.png",
        "normal/HE-12_3.png",
        "blood/TCGA-A3-3387-01Z-00-DX1_4.png",
    )


@layout(
    "esca",
    ("SH_MAG", "", "WNS", "train"),
    ("TUMOR", "", "TCGA", "train"),
    ("ADVENT", "", "UKK", "val"),
    ("ULCUS", "", "CHA", "test"),
)
def esca(root: Path) -> None:
    for name, path in (
        ("VALSET2_WNS", "SH_MAG/sh_mag.0.jpg"),
        ("VALSET3_TCGA", "TUMOR/tumor.0.jpg"),
        ("VALSET1_UKK", "ADVENT/advent.0.jpg"),
        ("VALSET4_CHA_FULL", "ULCUS/ulcus.0.jpg"),
    ):
        images(root / f"{name}.unpacked" / name, path)
    text(root / "VALSET2_WNS.unpacked" / "VALSET2_WNS" / "SH_MAG" / "._sh_mag.0.jpg", "stray")


@layout(
    "gleason-arvaniti",
    ("benign", "ZT76_39_A_1", "ZT76", "val"),
    ("Gleason 5", "ZT111_4_A_1", "ZT111", "train"),
    ("Gleason 3", "ZT80_38_B_2", "ZT80", "test"),
)
def gleason(root: Path) -> None:
    images(
        root,
        "train_validation_patches_750/ZT76_39_A_1_1/ZT76_39_A_1_1_patch_12_class_0.jpg",
        "train_validation_patches_750/ZT111_4_A_1_1/ZT111_4_A_1_1_patch_2_class_3.jpg",
        "test_patches_750/patho_1/ZT80_38_B_2_1/ZT80_38_B_2_1_patch_1_class_1.jpg",
        "test_patches_750/patho_2/ZT80_38_B_2_1/ZT80_38_B_2_1_patch_1_class_2.jpg",
    )


@layout("unitopatho", ("TVA.LG", "100-B3-TVALG", "", "train"), ("HP", "7-B1-HP", "", "test"))
def unitopatho(root: Path) -> None:
    one = "100-B3-TVALG.ndpi_ROI__mpp0.44_reg000_crop_sk00000_(8640,19008,1812,1812).png"
    two = "7-B1-HP.ndpi_ROI__mpp0.44_reg001_crop_sk00001_(1,2,1812,1812).png"
    images(root / "unitopath-public" / "800", f"TVA.LG/{one}", f"HP/{two}")
    head = "image_id,top_label,top_label_name,wsi"
    text(root / "unitopath-public" / "800" / "train.csv", head, f'"{one}",5,TVA.LG,a')
    text(root / "unitopath-public" / "800" / "test.csv", head, f'"{two}",0,HP,b')


def spider(root: Path) -> None:
    base = root / "224"
    images(base, "train/Fat/slide_1/1_2.png", "test/Muscle/slide_2/1_2.png", "test/Vessel/slide_2/2_2.png")


for _organ in ("breast", "colorectal", "skin", "thorax"):
    _rows = [("Fat", "slide_1", "", "train"), *((one, "slide_2", "", "test") for one in ("Muscle", "Vessel"))]
    layout(f"spider-{_organ}", *_rows)(spider)


@layout("starc-9", ("ADI", "", "", "train"), ("TUM", "", "", "test"), ("NCS", "", "", "test-tcga"))
def starc(root: Path) -> None:
    images(
        root,
        "Training_data_normalized/ADI/ADI/1.png",
        "Validation_data/STANFORD-CRC-HE-VAL-LARGE/TUM/1.png",
        "Validation_data/CURATED-TCGA-CRC-HE-20K-NORMALIZED/NCS/1.png",  # and no VAL-SMALL
    )


@layout(
    "midog25-atypical",
    ("AMF", "001.tiff", "human breast cancer, Hamamatsu XR", ""),
    ("NMF", "210.tiff", "canine lung cancer, 3D Histech", ""),
)
def midog(root: Path) -> None:
    images(root / "MIDOG25_Binary_Classification_Train_Set", "1.png", "2.png")
    text(
        root / "MIDOG25_Atypical_Classification_Train_Set.csv",
        "image_id,filename,coordinateX,coordinateY,Tumor,Scanner,Origin,Species,expert1,expert2,expert3,majority",
        "1.png,001.tiff,5000,3000,human breast cancer,Hamammatsu XR,UMC,human,AMF,NMF,AMF,AMF",
        "2.png,210.tiff,100,200,canine lung cancer,3D Histech,VMU,canine,NMF,NMF,,NMF",
    )


@layout("omg-octo", ("AMF", "0a1b", "", "train"), ("NMF", "ff00", "", "train"))
def omg(root: Path) -> None:
    images(root / "images", "0a1b_x10_y20_1.png", "ff00_x1_y2_7.png")
    text(
        root / "omg-octo.csv",
        "image_id,filename,majority",
        "1,0a1b_x10_y20_1.png,AMF",
        "2,ff00_x1_y2_7.png,NMF",
    )


def pathorob(labels: Sequence[str]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        stream = io.BytesIO()
        Image.fromarray(pixels(1)).save(stream, "png")
        n = len(labels)
        table = pa.table(
            {
                "image": [{"bytes": stream.getvalue(), "path": None}] * n,
                "subset": ["ID"] * (n - 1) + ["OOD"],
                "slide_id": [f"s{k}" for k in range(n)],
                "patch_id": ["0"] * n,
                "biological_class": labels,
                "medical_center": ["RUMC"] * (n - 1) + ["UMCU"],
            }
        )
        (root / "data").mkdir(parents=True)
        pyarrow.parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet")

    return make


for _name, _labels in (
    ("camelyon", ("normal", "tumor")),
    ("tolkach", ("ADVENT", "SH_OES")),
    ("tcga", ("breast", "colon", "lung")),
):
    _rows = [(one, f"s{k}", "RUMC", "train") for k, one in enumerate(_labels[:-1])]
    layout(f"pathorob-{_name}", *_rows, (_labels[-1], f"s{len(_labels) - 1}", "UMCU", "test"))(
        pathorob(_labels)
    )


@layout("pathmnist", ("adipose", "", "", "train"), ("lymphocytes", "", "", "val"), ("mucus", "", "", "test"))
def pathmnist(root: Path) -> None:
    arrays = {}
    for k, (split, label) in enumerate((("train", 0), ("val", 3), ("test", 4))):
        arrays[f"{split}_images"] = pixels(k)[None]
        arrays[f"{split}_labels"] = np.array([[label]], np.uint8)
    np.savez_compressed(root / "pathmnist.npz", **arrays)


def h5ad(file: Path, spots: Sequence[str], genes: Sequence[str], X: np.ndarray, *, sparse: str = "") -> None:
    """As AnnData writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as store:
        for name, index in (("obs", spots), ("var", genes)):
            store.create_group(name).attrs["_index"] = "_index"
            store[f"{name}/_index"] = np.array(index, dtype=h5py.string_dtype())
        if not sparse:
            store["X"] = X
            return
        kind = scipy.sparse.csr_array if sparse == "csr" else scipy.sparse.csc_array
        group, matrix = store.create_group("X"), kind(X)
        group.attrs["encoding-type"], group.attrs["shape"] = f"{sparse}_matrix", X.shape
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)


TENX95 = "adata/TENX95.h5ad"
SPOTS = np.array([[0, 3, 1], [2, 0, 0], [7, 0, 4]], np.float32)  # three spots, three genes


@layout("hest-bench", *(("", name, "", "train") for name in ("TENX95", "TENX95", "NCBI785")))
def hest(root: Path) -> None:
    (root / "patches").mkdir(parents=True)
    for name, spots in (("TENX95", ["c", "a"]), ("NCBI785", ["b"])):
        with h5py.File(root / "patches" / f"{name}.h5", "w") as file:
            file["img"] = np.stack([pixels(ord(spot)) for spot in spots])
            file["barcode"] = np.array([[spot] for spot in spots], dtype=h5py.string_dtype())
            file["coords"] = np.zeros((len(spots), 2), np.int64)
        sparse = "csr" if name == "TENX95" else "csc"
        h5ad(root / "adata" / f"{name}.h5ad", ["a", "b", "c"], ["G1", "G2", "G3"], SPOTS, sparse=sparse)
    text(root / "var_50genes.json", '{"genes": ["G3", "G1"]}')


def test_expression_is_that_of_the_spot(tmp_path: Path) -> None:
    hest(tmp_path)
    manifest, _ = build("hest-bench", tmp_path, dataset="hest-idc")
    assert manifest.header.name == "hest-idc"
    assert manifest.header.targets == ("G3", "G1")
    table: Any = manifest.table.set_index("patch_id")[["G3", "G1"]]
    assert table.loc["hest-idc/TENX95/c"].tolist() == [np.log(5), np.log(8)]
    assert table.loc["hest-idc/NCBI785/b"].tolist() == [0, np.log(3)]
    loaded = load_manifest(manifest.save(tmp_path / "hest-idc.toml"))
    assert loaded.table["G1"].equals(manifest.table["G1"])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: text(root / "var_50genes.json", '["G4", "G1"]'), r"lacks 1 of 2 genes: G4"),
        (lambda root: text(root / "var_50genes.json", "{}"), "neither a list of names nor"),
        (lambda root: h5ad(root / TENX95, ["a", "b"], ["G1", "G3"], SPOTS[:2, :2]), "lacks 1 of 2 spots"),
        (lambda root: h5ad(root / TENX95, ["a", "b", "c"], ["G1", "G2", "G3"], -SPOTS), "no counts"),
        (lambda root: text(root / TENX95, "hello"), "cannot be read as AnnData"),
        (lambda root: (root / TENX95).unlink(), "adata/TENX95.h5ad is not under"),
    ],
)  # fmt: skip
def test_faults_of_expression(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    hest(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ManifestError, match=message):
        build("hest-bench", tmp_path)


def build(name: str, root: Path, **options: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    return build_manifest(name, root, progress=False, on_note=said.append, **options), said


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_miniature_of_each_set_builds(name: str, tmp_path: Path) -> None:
    make, expected = LAYOUTS[name]
    make(tmp_path)
    manifest, said = build(name, tmp_path)
    rows = manifest.table[["label", "group", "domain", "split"]].itertuples(index=False, name=None)
    assert sorted(rows) == sorted(expected)
    assert (manifest.table["content_hash"] != "").all()
    declared = load_declaration(name)
    assert manifest.header.name == name
    assert manifest.header.classes == (declared.classes or tuple(sorted({row[0] for row in expected} - {""})))
    if declared.total:
        assert any(note.startswith("not as declared: rows ") for note in said), (
            "as many as these are never declared"
        )
    if declared.unverified:
        assert any(note.startswith("declared without having been verified: ") for note in said)


def test_every_declaration_is_covered() -> None:
    assert len(LAYOUTS) >= 25
    assert {*LAYOUTS} | ELSEWHERE == {*names()}, "a declaration without a layout here, or the other way round"


@pytest.mark.parametrize("name", names())
def test_every_declaration_says_what_users_ask(name: str) -> None:
    declared = load_declaration(name)
    assert declared.name == name
    assert declared.description
    assert declared.archives or declared.access, "nobody could get it"
    assert all(
        archive.url.startswith(("https://", "http://www.inf.ufpr.br/")) for archive in declared.archives
    )
    assert len({archive.place for archive in declared.archives}) == len(declared.archives)
    assert declared.classes or declared.class_count or declared.target_count
    assert declared.group_kind != "none" or any(
        word in " ".join(declared.known_faults) for word in ("patients", "slides", "images")
    ), "who has no groups says so"


def test_votes_and_places(tmp_path: Path) -> None:
    midog(tmp_path)
    table = build("midog25-atypical", tmp_path)[0].table
    assert table["votes_positive"].tolist() == [2, 0]
    assert table["votes_total"].tolist() == [3, 2]
    assert table[["x", "y"]].to_numpy().tolist() == [[4936, 2936], [36, 136]]
    mhist(tmp_path)
    table = build("mhist", tmp_path)[0].table
    assert (table["votes_positive"].tolist(), table["votes_total"].tolist()) == ([6, 2], [7, 7])


MINE = {
    "format": "patchbank-dataset",
    "format_version": 2,
    "name": "mine",
    "classes": ["a", "b", "c"],
    "licence": "x",
    "source": "x",
    "parts": [{"builder": "folder", "pattern": "(?P<label>.)/"}],
}


def mine(folder: Path, **changes: Any) -> Path:

    return write_toml(folder / "mine.toml", MINE | changes)


def test_a_declaration_of_the_users_own(tmp_path: Path) -> None:
    images(tmp_path / "in", "a/1.png", "b/2.png", "c/3.png")
    text(tmp_path / "who.csv", "file,patient", "1.png,p1", "2.png,p2", "3.png,p1")
    joined = {
        "table": "who.csv",
        "beside": True,
        "key": "file_name",
        "on": "file",
        "columns": {"group": "patient"},
    }
    file = mine(tmp_path, joins=[joined], rows={"all": 3})
    manifest, said = build(str(file), tmp_path / "in", dataset="other")
    assert manifest.table["patch_id"].tolist() == ["other/a/1", "other/b/2", "other/c/3"]
    assert manifest.table["group"].tolist() == ["p1", "p2", "p1"]
    assert said == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": [{"builder": "folder", "root": "../up"}]}, r"'\.\./up' is not a relative path"),
        ({"parts": [{"builder": "folder", "root": "/etc"}]}, "'/etc' is not a relative path"),
        ({"parts": [{"builder": "from-csv", "table": "a/../../b.csv"}]}, "is not a relative path"),
        ({"parts": [{"builder": "from-csv"}]}, r"parts 1 \(without a name\): table is missing"),
        ({"parts": [{"builder": "wsi"}]}, "builder 'wsi' is not one of folder"),
        ({"parts": [{"builder": "npz", "pattern": "x"}]}, "'pattern' is not one of"),
        ({"parts": [{"builder": "folder", "pattern": "("}]}, r"'\(' is not a regular expression"),
        ({"parts": []}, "parts is empty"),
        ({"positiv": "a"}, "unknown key 'positiv', did you mean 'positive'"),
        ({"columns": {"x": {"value": "1", "from": "y"}}}, r"columns\.x: value and source exclude each other"),
        ({"joins": [{"table": "../x.csv", "beside": True, "key": "a", "on": "b"}]}, "is not a relative path"),
        ({"archives": [{"url": "file:///etc/passwd"}]}, "neither https nor http"),
        ({"archives": [{"url": "https://x/y.zip", "unpack": "../../z"}]}, "is not a relative path"),
        ({"archives": [{"url": "https://x/y.zip", "sha256": "12"}]}, "neither 64 hex digits"),
        ({"counts": {"train": {"d": 1}}}, "counts: the class 'd' is not one of a, b, c"),
        ({"unverified": ["row"]}, "unverified: no key 'row', did you mean 'rows'"),
        ({"format_version": 1}, "format_version 1; this patchbank reads 2"),
        ({"name": "a b"}, "may hold letters"),
    ],
)
def test_faulty_declarations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_declaration(mine(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"], "positive": "a"}, "label 'c', which is none of the classes, in 3.png"),
        ({"needed": ["group"]}, "3 images have no group: 1.png, 2.png, 3.png"),
        ({"only": {"labl": ["a"]}}, "names the column 'labl', did you mean 'label'"),
        ({"only": {"label": ["d"]}}, "no row has label = d"),
        ({"columns": {"split": {"from": "label", "match": {"[ab]": "train"}}}}, "split: no pattern fits 'c'"),
        ({"extra": ["sit"]}, "no column 'sit'"),
        ({"columns": {"x": {"value": "1.5", "add": 1}}}, "x is not a whole number: row 1 .* has '1.5'"),
        ({"parts": [{"builder": "folder", "root": "lost"}]}, "holds no lost. Fix: give the folder"),
        ({"parts": [{"builder": "folder", "pattern": "(?P<label>d)/"}]}, "3 images do not fit the pattern"),
        (
            {"parts": [{"builder": "from-csv", "table": "evil.csv"}]},
            r"that leave the root: '\.\./secret",
        ),
        ({"parts": [{"builder": "from-csv", "table": "lost.csv"}]}, "lost.csv is not under"),
    ],
)
def test_faults_of_the_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    images(tmp_path / "in", "a/1.png", "b/2.png", "c/3.png")
    images(tmp_path, "secret.png")
    text(tmp_path / "in" / "evil.csv", "path,label", "../secret.png,a")
    with pytest.raises(ManifestError, match=message):
        build(str(mine(tmp_path, **changes)), tmp_path / "in")


def test_what_it_takes_is_said_where_a_build_fails(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        build("mhist", tmp_path)
    assert caught.value.__notes__[0].startswith("What it takes to get mhist: form: https://bmirds.github.io")


def test_the_documents_example_builds(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "datasets" / "DECLARATIONS.md").read_text("utf-8")
    text(tmp_path / "glands.toml", page.partition("```toml\n")[2].partition("```")[0])
    images(tmp_path / "Glands_v1" / "images", "0_benign/7_1.png", "2_G4/8_1.png")
    text(tmp_path / "clinical.csv", "case,scanner,cohort", "7,A,training", "8,B,test")
    manifest, _ = build(str(tmp_path / "glands.toml"), tmp_path)
    rows = manifest.table[["label", "group", "domain", "split"]].to_numpy().tolist()
    assert rows == [["benign", "7", "A", "train"], ["grade 4", "8", "B", "test"]]
    assert manifest.header.ordered
    keys = {key for declared in map(load_declaration, names()) for key in declared.model_fields_set}
    assert not [key for key in keys if f"`{key}`" not in page and f"[{key}" not in page]
    assert json.dumps(load_declaration("bach").model_dump())
