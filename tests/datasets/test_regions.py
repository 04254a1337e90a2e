"""Coordinates and slides as people have them: columns, borders, resolutions, empty and faulty files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from patchbank.datasets.builders import build_manifest
from patchbank.datasets.manifest import Manifest
from patchbank.datasets.sources import open_source
from patchbank.errors import ImageError, InvalidRequest, ManifestError

pytest.importorskip("openslide")


@pytest.fixture
def root(tmp_path: Path, write_slide: Callable[..., None]) -> Path:
    """Slides of 320 x 256 pixels: "a" says .25 micrometres a pixel, "b" says nothing."""
    (tmp_path / "slides").mkdir()
    for k, (name, mpp) in enumerate((("a", 0.25), ("b", None))):
        pixels = np.random.default_rng(k).integers(0, 256, (256, 320, 3), dtype=np.uint8)
        write_slide(tmp_path / "slides" / f"{name}.tiff", pixels, mpp)
    return tmp_path


def build(root: Path, rows: str, head: str = "slide,x,y", **options: Any) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    if rows:
        (root / "c.csv").write_text(f"{head}\n{rows}\n")
        options = {"coordinates": root / "c.csv", "size": 32} | options
    options = {"dataset": "toy", "progress": False, "on_note": said.append} | options
    return build_manifest("wsi", root / "slides", **options), said


def coords(file: Path, points: Any, **attributes: Any) -> Path:
    file.parent.mkdir(exist_ok=True)
    with h5py.File(file, "w") as store:
        store["coords"] = points
        store["coords"].attrs.update(attributes)
    return file


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        ("0,0", True), ("-31,0", True), ("-32,0", False), ("319,255", True), ("320,0", False),
        ("0,256", False), ("5000,5000", False), ("-5000,0", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("border", ["white", "black", "crop"])
def test_regions_beside_the_slide_are_refused(root: Path, place: str, inside: bool, border: str) -> None:
    if inside:
        built, _ = build(root, f"a,{place}", border=border)
        assert open_source(built).read(0).shape[2] == 3
        return
    message = "1 rows: the region lies outside the slide, which is 320 x 256 pixels: row 1 "
    with pytest.raises(ManifestError, match=message):
        build(root, f"a,{place}", border=border)
    skipped: list[str] = []
    built, _ = build(root, f"a,0,0\na,{place}", border=border, on_error="skip",
                     on_skip=lambda *item: skipped.append(item[0]))  # fmt: skip
    assert len(built) == len(skipped) == 1
    path = str(built.table["path"].iat[0]).replace("wsi[0,0,", f"wsi[{place},")
    beside = open_source(Manifest(built.header, built.table.assign(path=path), built.root))
    with pytest.raises(ImageError, match="lies outside the slide"):
        beside.read(0)


def test_a_region_that_only_its_scale_brings_inside(root: Path) -> None:
    assert len(build(root, "a,-100,0", level=2)[0]) == 1, "32 pixels of level 2 are 128 of level 0"
    with pytest.raises(ManifestError, match="outside the slide"):
        build(root, "a,-128,0", level=2)


@pytest.mark.parametrize("head", ["slide,X,Y", "Slide_ID,coord_x,coord_y", "wsi,x_coord,y_coord"])
def test_usual_names_of_columns(root: Path, head: str) -> None:
    built, said = build(root, "a,64,32", head)
    assert built.table["path"].tolist() == ["a.tiff::wsi[64,32,32,32]"]
    assert set(built.table.columns) & set(head.split(",")) <= {"slide"}, "not kept twice"
    assert said[0] == f"c.csv: the column {head.split(',')[0 if head[0] != 's' else 1]!r} is " + (
        "x" if head[0] == "s" else "slide"
    )


def test_two_columns_that_could_be_x(root: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"which column is x\? Give --column x=NAME, one of \['X', 'coord_x'\]"
    ):
        build(root, "a,1,2,3", "slide,X,coord_x,y")
    built, _ = build(root, "a,1,2,3", "slide,X,coord_x,y", columns={"x": "coord_x"})
    assert built.table["path"].tolist() == ["a.tiff::wsi[2,3,32,32]"]
    assert built.table["X"].tolist() == ["1"]


def test_a_slide_without_a_resolution(root: Path) -> None:
    assert len(build(root, "b,0,0", level=1)[0]) == 1, "levels need none"
    with pytest.raises(
        ManifestError, match="1 rows: the slide does not say its resolution; give --mpp0 or a column"
    ):
        build(root, "a,0,0\nb,0,0", mpp=0.5)
    built, _ = build(root, "b,64,32", mpp=0.5, mpp0=0.25)
    plain, _ = build(root, "b,64,32", level=1)
    np.testing.assert_array_equal(open_source(built).read(0), open_source(plain).read(0))
    (root / "s.csv").write_text("slide,mpp0\na,\nb.tiff,0.25\n")
    built, _ = build(root, "a,0,0\nb,64,32", mpp=0.5, slides=root / "s.csv")
    assert built.table["path"].tolist() == [
        "a.tiff::wsi[0,0,32,32,mpp=0.5]",
        "b.tiff::wsi[64,32,32,32,mpp=0.5,mpp0=0.25]",
    ]
    (root / "s.csv").write_text("slide,mpp0\na,\nb.tiff,40x\n")
    with pytest.raises(ManifestError, match=r"s\.csv: mpp0 must be micrometres a pixel: 40x"):
        build(root, "a,0,0\nb,64,32", mpp=0.5, slides=root / "s.csv")


def test_slides_that_cannot_be_used_are_left_out_if_asked(root: Path) -> None:
    (root / "slides" / "empty.tiff").write_bytes(b"")
    (root / "slides" / "text.svs").write_text("hello")
    rows = "a,0,0\nempty,0,0\nempty,32,0\ntext,0,0\nlost,0,0"
    with pytest.raises(
        ManifestError, match=r"3 rows: OpenSlide cannot open it.*1 rows: no slide of this name under"
    ):
        build(root, rows)
    skipped: list[tuple[str, str]] = []
    built, _ = build(root, rows, on_error="skip", on_skip=lambda *item: skipped.append(item))
    assert built.table["slide"].tolist() == ["a"]
    assert [name for name, _ in skipped] == [
        "toy/empty_0_0",
        "toy/empty_32_0",
        "toy/text_0_0",
        "toy/lost_0_0",
    ]


def test_coordinates_without_a_size(root: Path) -> None:
    for k in range(20):
        coords(root / "h5" / f"s{k}.h5", [[0, 0]])
    with pytest.raises(
        ManifestError, match=r"no attribute patch_size; give --size .*\(20 files: .* and 12 more\)"
    ):
        build(root, "", coordinates=root / "h5")
    file = coords(root / "a.h5", np.array([[[0, 0], [32, 64]]]))
    built, _ = build(root, "", coordinates=file, size=16, level=1)
    assert built.table["path"].tolist() == [
        "a.tiff::wsi[0,0,16,16,level=1]",
        "a.tiff::wsi[32,64,16,16,level=1]",
    ]


@pytest.mark.parametrize("value", [32, np.int64(32), np.array([32]), np.float64(32), "32", b"32"], ids=repr)
def test_attributes_in_any_form(root: Path, value: Any) -> None:
    file = coords(root / "a_patches.h5", [[0, 0]], patch_size=value)
    assert build(root, "", coordinates=file)[0].table["path"].tolist() == ["a.tiff::wsi[0,0,32,32]"]


@pytest.mark.parametrize(
    ("points", "attributes", "message"),
    [
        ([[0, 0]], {"patch_size": 0}, "patch_size is not a size"),
        ([[0, 0]], {"patch_size": "big"}, "patch_size is not a size: 'big'"),
        ([[0, 0]], {"patch_size": 32, "patch_level": -1}, "patch_level is not a size"),
        ([[0.5, 0]], {"patch_size": 32}, "whole numbers"),
        ([[0, 0, 0]], {"patch_size": 32}, r"whole numbers \(n, 2\), not int64 \(1, 3\)"),
        (7, {"patch_size": 32}, "whole numbers"),
        (["x"], {"patch_size": 32}, "whole numbers"),
    ],
)
def test_faulty_coordinates(root: Path, points: Any, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build(root, "", coordinates=coords(root / "a.h5", points, **attributes))


def test_empty_coordinates_are_left_out_and_named(root: Path) -> None:
    coords(root / "h5" / "a.h5", [[0, 0]], patch_size=32)
    coords(root / "h5" / "b.h5", np.zeros((0, 2), int), patch_size=32)
    (root / "h5" / "c.h5").write_bytes(b"")
    built, said = build(root, "", coordinates=root / "h5")
    assert len(built) == 1
    assert said == ["files without regions were left out: b.h5, c.h5"]
    with pytest.raises(ManifestError, match=r"no file holds a region \(b\.h5\)"):
        build(root, "", coordinates=root / "h5" / "b.h5")
    (root / "h5" / "a.h5").write_bytes((root / "h5" / "a.h5").read_bytes()[:200])
    with pytest.raises(ManifestError, match=r"\(1 files: a\.h5\)"):
        build(root, "", coordinates=root / "h5")
    with pytest.raises(InvalidRequest, match="give level or mpp, not both"):
        build(root, "a,0,0", level=1, mpp=0.5)


# what was right before is right after --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "scale"),
    [
        ({"patch_size": 32, "patch_level": 0}, ""),
        ({"patch_size": 32}, ""),
        ({"patch_size": 32, "patch_level": 1}, ",level=1"),
        ({"patch_size": 32, "patch_size_level0": 32}, ""),
        ({"patch_size": 32, "patch_size_level0": 64}, ",down=2.0"),
    ],
)
def test_coordinates_of_clam_and_trident(root: Path, attributes: dict[str, int], scale: str) -> None:
    built, said = build(root, "", coordinates=coords(root / "a.h5", [[64, 32]], **attributes))
    assert built.table["path"].tolist() == [f"a.tiff::wsi[64,32,32,32{scale}]"]
    assert said == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,0.5,0", r"whole numbers of pixels: row 1 \('0.5', '0'\)"),
        ('a,"1,024",0', r"whole numbers of pixels: row 1 \('1,024', '0'\)"),
        ("a,,0", r"whole numbers of pixels: row 1 \('', '0'\)"),
        ("a,inf,0", "whole numbers of pixels: row 1"),
        ("a,99999999999999999999999,0", r"whole numbers of pixels: row 1 \('99999999999999999999999', '0'\)"),
        ("a,-1e300,0", "whole numbers of pixels: row 1"),
        ("a,10,300\na,200,310", r"2 rows: the region lies outside the slide.*are x and y swapped\?"),
        ("a,400,300\na,200,310", r"outside the slide, which is 320 x 256 pixels: "),
    ],
)
def test_coordinates_that_are_none(root: Path, rows: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build(root, rows)


def test_whole_numbers_may_be_written_as_floats(root: Path) -> None:
    built, _ = build(root, "a,32.0,-5.0\na,1e2,64")
    assert built.table["path"].tolist() == ["a.tiff::wsi[32,-5,32,32]", "a.tiff::wsi[100,64,32,32]"]


def test_a_region_listed_twice(root: Path) -> None:
    rows, head = "a,0,0,x\na,32,0,x\na,0,0,x\na,32,0,y", "slide,x,y,label"
    with pytest.raises(
        ManifestError, match=r"the same region as an earlier row: row 3.*, with another label: row 4"
    ):
        build(root, rows, head, positive="x")
    built, _ = build(root, rows, head, positive="x", on_error="skip", on_skip=lambda *_: None)
    assert built.table["patch_id"].tolist() == ["toy/a_0_0", "toy/a_32_0"]


@pytest.mark.parametrize("head", ["slide,left,top", "slide,xmin,ymin", "slide,x_start,y_start"])
def test_other_names_of_the_upper_left_corner(root: Path, head: str) -> None:
    assert build(root, "a,64,32", head)[0].table["path"].tolist() == ["a.tiff::wsi[64,32,32,32]"]


@pytest.mark.parametrize("head", ["slide,row,col", "slide,x_center,y_center"])
def test_columns_that_are_no_corner_must_be_named(root: Path, head: str) -> None:
    with pytest.raises(ManifestError, match=r"which column is x and which is y\? .*--column x=NAME"):
        build(root, "a,64,32", head)


def test_slides_by_paths_and_in_another_case_are_one_slide(root: Path) -> None:
    rows = "a,0,0\nA,32,0\n/data/slides/a.svs,64,0\nC:\\slides\\A.tiff,96,0\na.tiff,128,0"
    (root / "s.csv").write_text("slide,label\n/old/A.svs,x\n")
    built, said = build(root, rows, slides=root / "s.csv", positive="x")
    assert set(built.table["slide"]) == set(built.table["group"]) == {"a"}
    assert set(built.table["label"]) == {"x"}
    assert (
        "3 slides do not exist as written and were resolved: '/data/slides/a.svs' is read as 'a.tiff'" in said
    )
