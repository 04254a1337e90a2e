"""Two data sets of one slide: found by slide and coordinate, whatever the pixels and the names are."""

import pandas as pd
import pytest
from patchbank.datasets.manifest import Header, Manifest
from patchbank.datasets.overlaps import same_places, shared_slides, slide_key


def of(
    name: str, groups: list[str], places: list[tuple[int | None, int | None]], **change: object
) -> Manifest:
    header = Header(
        name=name, version="1", classes=("a", "b"), positive="a", licence="", source="", group_kind="slide"
    )
    n = len(groups)
    table = pd.DataFrame(
        {
            "patch_id": [f"{name}/{k}" for k in range(n)],
            "path": [f"{k}.png" for k in range(n)],
            "label": ["a", "b"] * (n // 2) + ["a"] * (n % 2),
            "group": groups,
            "split": "train",
            "x": pd.array([x for x, _ in places], dtype="Int64"),
            "y": pd.array([y for _, y in places], dtype="Int64"),
        }
    )
    return Manifest(header.replace(**change), table, ".")


def test_one_figure_in_two_sets() -> None:
    first = of(
        "first", ["001.tiff", "001.tiff", "002.tiff", ""], [(100, 100), (5000, 70), (100, 100), (100, 100)]
    )
    second = of("second", ["slides/001.TIF", "001", "003.tiff"], [(140, 36), (5000, 135), (100, 100)])
    pairs = same_places([first, second])
    assert pairs[["slide", "patch_a", "patch_b", "distance"]].to_numpy().tolist() == [
        ["001.tiff", "first/0", "second/0", 64]
    ], "65 pixels apart is another figure; another slide or none is no place"
    assert pairs[["set_a", "set_b", "label_a", "label_b", "split_a"]].iloc[0].tolist() == [
        "first", "second", "a", "a", "train",
    ]  # fmt: skip
    assert len(same_places([first, second], within=65)) == 2
    assert shared_slides([first, second]).to_numpy().tolist() == [["001", "first, second", 4]]


def test_neighbours_in_one_set_are_no_overlap() -> None:
    assert same_places([of("one", ["a", "a"], [(0, 0), (1, 1)])]).empty
    assert list(same_places([]).columns) == list(same_places([of("one", ["a"], [(0, 0)])]).columns)


@pytest.mark.parametrize("change", [{"group_kind": "patient"}])
def test_patients_are_no_slides(change: dict[str, object]) -> None:
    one, two = of("one", ["a"], [(0, 0)]), of("two", ["a"], [(0, 0)], **change)
    assert same_places([one, two]).empty
    assert shared_slides([one, two]).empty


def test_without_coordinates_only_slides_are_shared() -> None:
    one = of("one", ["210.tiff"], [(0, 0)])
    two = Manifest(
        one.header.replace(name="two"), one.table.drop(columns=["x", "y"]).assign(patch_id="two/0"), "."
    )
    assert same_places([one, two]).empty
    assert shared_slides([one, two])["slide"].tolist() == ["210"]
    three = of("three", ["210.tiff"], [(None, None)])
    assert same_places([one, three]).empty


def test_the_key_of_a_slide() -> None:
    assert slide_key("a\\b/007.TIFF") == slide_key("007") == "007"
    assert slide_key("03_stitched1.tif") != slide_key("03.tif")
