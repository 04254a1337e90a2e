"""Leaks are found and named, whatever is known of the rows; what is no leak is let through."""

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe import leaks


def table(*rows):
    """Rows of (number, content, group, label) of data set "d", or with "e/2" in place of the number."""
    ids = [row[0] if isinstance(row[0], str) else f"d/{row[0]}" for row in rows]
    return pd.DataFrame(
        {
            "patch_id": ids,
            "content_hash": [row[1] for row in rows],
            "group": [row[2] for row in rows],
            "label": [row[3] for row in rows],
        }
    )


CLEAN = table((1, "a", "s1", "N"), (2, "b", "s1", "A"), (3, "c", "s2", "N"), (4, "d", "s3", "A"))


def kinds(report):
    return sorted(leak.kind for leak in report.leaks)


def test_clean_data_pass():
    test = table((5, "e", "s4", "N"), (6, "f", "s5", "A"))
    report = leaks.audit_leaks(CLEAN, {"test": test}, folds=[1, 1, 2, 2], near_duplicates=[("d/5", "d/6")])
    assert report.leaks == ()
    assert report.checked == {"content": 6, "group": 6, "labels": 6, "near-duplicate": 1, "reused": 6}
    assert set(report.unchecked.values()) == {0}
    report.refuse(allow=())


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ((5, "c", "s9", "N"), "content"),
        ((5, "x", "s2", "N"), "group"),
        ((3, "c", "s2", "N"), "reused"),
    ],
)
def test_train_against_an_evaluation_set(row, kind):
    report = leaks.audit_leaks(CLEAN, {"clean": table((8, "y", "s8", "N")), "test": table(row)})
    assert kinds(report) == [kind]
    assert report.leaks[0].patch_ids == ("d/3", f"d/{row[0]}")
    assert report.leaks[0].sides == ("train", "test")
    with pytest.raises(ProbeError, match=f"d/3.*d/{row[0]}.*--allow-leaks {kind}") as caught:
        report.refuse()
    assert "test" in str(caught.value)
    report.refuse(allow=[kind])
    report.refuse(allow=["all"])
    assert report.to_json()["found"] == {k: int(k == kind) for k in leaks.KINDS}


def test_folds_are_sides():
    rows = table((1, "a", "s1", "N"), (2, "a", "s2", "N"), (3, "c", "s2", "A"), (4, "d", "", "A"))
    assert leaks.audit_leaks(rows, {}).leaks == ()  # all in one side: nothing is held out
    assert kinds(leaks.audit_leaks(rows, {}, folds=[1, 1, 2, 2])) == ["group"]
    assert kinds(leaks.audit_leaks(rows, {}, folds=[1, 2, 2, 2])) == ["content"]
    assert leaks.audit_leaks(rows, {}, folds=np.array([1, 1, 1, 2])).leaks == ()
    with pytest.raises(InvalidRequest, match="4 training rows"):
        leaks.audit_leaks(rows, {}, folds=[1, 2])


def test_near_duplicates_are_sides_too():
    test = table((5, "e", "s4", "N"))
    pairs = iter([("d/1", "d/2"), ("d/4", "d/5"), ("d/5", "d/unknown")])
    report = leaks.audit_leaks(CLEAN, {"test": test}, folds=[1, 1, 2, 2], near_duplicates=pairs)
    assert [leak.what for leak in report.leaks] == ["d/4 ~ d/5"]
    assert report.leaks[0].sides == ("train fold 2", "test")
    between = leaks.audit_leaks(CLEAN, {}, folds=[1, 2, 2, 2], near_duplicates=[("d/1", "d/2")])
    assert kinds(between) == ["group", "near-duplicate"]


def test_evaluation_sets_may_overlap_each_other():
    first, second = table((7, "x", "s7", "N")), table((8, "x", "s7", "N"))
    assert leaks.audit_leaks(CLEAN, {"a": first, "b": second, "again": first}).leaks == ()


def test_groups_are_names_within_one_data_set():
    other = table(("e/1", "x", "s1", "N"))
    assert leaks.audit_leaks(CLEAN, {"e": other}).leaks == ()


def test_contradictory_labels_are_reported_and_refused_only_on_request():
    test = table((5, "x", "s4", "N"), (6, "x", "s4", "A"), (7, "x", "s4", ""))
    report = leaks.audit_leaks(CLEAN, {"test": test})
    assert kinds(report) == ["labels"]
    assert report.leaks[0].labels == ("N", "A", "")
    report.refuse()
    with pytest.raises(ProbeError, match="d/5 = N, d/6 = A"):
        report.refuse(allow=())
    with pytest.raises(InvalidRequest, match="near-duplicate"):
        report.refuse(allow=["duplicates"])


def test_what_is_not_known_is_counted_and_leaks_nothing():
    bare = pd.DataFrame({"patch_id": ["d/1", "d/2"]})
    missing = table((5, "", "", ""), (6, None, np.nan, None))
    report = leaks.audit_leaks(bare, {"test": missing}, folds=[1, 2])
    assert report.leaks == ()
    assert report.unchecked == {"content": 4, "group": 4, "labels": 4}


def test_the_message_names_some_and_the_report_all():
    train = table(*[(i, f"c{i}", f"s{i}", "N") for i in range(40)])
    test = table(*[(100 + i, f"c{i}", f"t{i}", "N") for i in range(40)])
    report = leaks.audit_leaks(train, {"test": test})
    assert len(report.leaks) == 40
    assert len(report.to_json()["leaks"]) == 40
    with pytest.raises(ProbeError, match=r"\(40\).*and 35 more") as caught:
        report.refuse()
    assert len(str(caught.value)) < 800


def test_agrees_with_comparing_all_pairs():
    rng = np.random.default_rng(0)
    rows = [
        (i, str(rng.integers(60)), f"s{rng.integers(40)}", str(rng.choice(["N", "A"]))) for i in range(60)
    ]
    folds = rng.integers(1, 4, 40)
    train, test = table(*rows[:40]), table(*rows[40:])
    report = leaks.audit_leaks(train, {"test": test}, folds=folds)
    sides = [*folds.tolist(), *["test"] * 20]
    for kind, column in (("content", 1), ("group", 2)):
        expected = {
            rows[i][column]
            for i, j in itertools.combinations(range(60), 2)
            if rows[i][column] == rows[j][column] and sides[i] != sides[j] and i < 40
        }
        assert expected
        assert {leak.what.removeprefix("d: ") for leak in report.of(kind)} == expected


def test_deduplication_keeps_one_row_of_each_content():
    rows = table(
        (1, "a", "", "N"),
        (2, "b", "", "N"),
        (3, "a", "", "N"),
        (4, "c", "", "A"),
        (5, "c", "", "N"),
        (6, "", "", "N"),
        (7, "", "", "N"),
        (8, "b", "", ""),
    )
    found = leaks.deduplicate(rows)
    assert found.keep.tolist() == [True, True, False, False, False, True, True, False]
    assert found.repeats == ("d/3", "d/8")
    assert found.contradictory == (("d/4", "d/5"),)


@pytest.mark.shared
def test_the_repeated_images_of_atnorm_br(shared):
    """27 groups of equal images, 62 files, 711 contents; 2 groups with both labels, of 2 and 5 files."""
    from PIL import Image

    folder = shared / "data" / "AtNorm-Br"
    folder = folder if folder.is_dir() else shared / "data" / "AtNorM-Br"
    rows = []
    for path in sorted(folder.glob("*/*.png")):
        with Image.open(path) as image:
            digest = hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16).hexdigest()
        rows.append((f"atnorm-br/{path.stem}", digest, "", path.parent.name))
    rows = table(*rows)
    found = leaks.deduplicate(rows)
    assert len(rows) == 746
    assert found.keep.sum() == 711 - 2
    named = {frozenset(int(p.split("/")[1]) for p in group) for group in found.contradictory}
    assert named == {frozenset({425, 428}), frozenset({390, 391, 398, 404, 410})}
