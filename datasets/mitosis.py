"""AMi-Br, AtNorM-Br and AtNorM-MD: atypical and normal mitotic figures (arXiv 2506.21444)."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..errors import ManifestError
from .facts import Facts, load_facts
from .manifest import Manifest, fault_sentence, listed, read_table

_DEPTH = 4  # how far below the root the folder is looked for; an archive unpacks to one or two levels
SLIDE_DOMAINS = (  # of AMi-Br: source, first and last slide or case, scanner or centre
    ("MIDOG21", 1, 50, "MIDOG21 Hamamatsu XR"),
    ("MIDOG21", 51, 100, "MIDOG21 Hamamatsu S360"),
    ("MIDOG21", 101, 150, "MIDOG21 Aperio CS2"),
    ("TUPAC16", 1, 23, "TUPAC16 cases 01-23"),
    ("TUPAC16", 24, 48, "TUPAC16 cases 24-48"),
    ("TUPAC16", 49, 73, "TUPAC16 cases 49-73"),
)


def build_ami_br(root: Path) -> Manifest:
    """AMi-Br. Train: the rows of amibr_train_split.csv; test: the images without a row.

    Groups are slides, domains scanners (MIDOG21) or centres (TUPAC16), votes those of three experts. The test
    images' slides and votes are not in that CSV; they are shipped as facts.

    Raises ManifestError with all faults: rows without a file, files of no known row, labels that differ.
    """
    facts = load_facts("ami-br")
    images = _images(root, facts)
    rows = _read(_find(root, "amibr_train_split.csv", facts), "dataset_uid", _TRAIN_COLUMNS)
    known = read_table(facts.table_file("test-slides"), "csv").set_index("dataset_uid")
    train = images.index.isin(rows.index)
    faults = _unmatched(rows.index, images, "rows of amibr_train_split.csv have no image")
    strangers = images.index[~train & ~images.index.isin(known.index)]
    if len(strangers):
        faults.append(f"images that neither the CSV nor the known test set has: {listed(strangers)}")
    faults += _disagreeing(rows["final_label"], images)
    if faults:
        raise ManifestError(fault_sentence(str(root), faults))
    both = pd.concat(
        [
            pd.DataFrame(
                {
                    "slide": rows["slide"],
                    "dataset": rows["dataset"],
                    "votes": sum((rows[f"expert{k}_atypical"] == "True").astype(int) for k in (1, 2, 3)),
                    "x": rows["x"],
                    "y": rows["y"],
                }
            ),
            known.rename(columns={"votes_atypical": "votes"})[["slide", "dataset", "votes"]],
        ]
    )
    both = both[~both.index.duplicated()].loc[images.index]
    table = _table(facts, images)
    table["group"] = both["slide"].to_numpy()
    table["domain"] = [
        _slide_domain(source, slide) for source, slide in zip(both["dataset"], both["slide"], strict=True)
    ]
    table["split"] = ["train" if is_train else "test" for is_train in train]
    table["votes_positive"] = both["votes"].astype("int64").to_numpy()
    table["votes_total"] = 3
    table["x"], table["y"] = both["x"].to_numpy(), both["y"].to_numpy()
    return Manifest(facts.header(), table, root)


def build_atnorm_br(root: Path) -> Manifest:
    """AtNorM-Br (TCGA breast), all of it "test". No slides are known, so that each row is its own group."""
    facts = load_facts("atnorm-br")
    table = _table(facts, _images(root, facts))
    table["domain"], table["split"] = "TCGA breast", "test"
    return Manifest(facts.header(), table, root)


def build_atnorm_md(root: Path) -> Manifest:
    """AtNorM-MD (six domains of MIDOG++, none of them breast), all of it "test"; votes of five experts.

    Domains and slides were recovered from the figures' positions, and are shipped as facts: all domains are
    known, 270 of the 2107 slides are not (slide_evidence says what the others rest on).
    """
    facts = load_facts("atnorm-md")
    images = _images(root, facts)
    votes = _read(
        _find(root, "AtNorM-MD_expert_votes.csv", facts),
        "Filename",
        ("Expert_1", "Expert_2", "Expert_3", "Expert_4", "Expert_5", "Majority"),
    )
    places = read_table(facts.table_file("domains"), "csv").set_index("Filename")
    faults = _unmatched(votes.index, images, "rows of AtNorM-MD_expert_votes.csv have no image")
    for what, index in (("the votes", votes.index), ("the recovered domains", places.index)):
        if lost := sorted(set(images.index) - set(index)):
            faults.append(f"images that {what} do not name: {listed(lost)}")
    faults += _disagreeing(votes["Majority"], images)
    if faults:
        raise ManifestError(fault_sentence(str(root), faults))
    votes, places = votes.loc[images.index], places.loc[images.index]
    table = _table(facts, images)
    table["group"] = places["midogpp_slide"].to_numpy()
    table["domain"], table["split"] = places["domain"].to_numpy(), "test"
    table["votes_positive"] = (votes.filter(like="Expert_") == facts.positive).sum(axis=1).to_numpy()
    table["votes_total"] = 5
    table["slide_evidence"] = places["slide_evidence"].to_numpy()
    return Manifest(facts.header(), table, root)


BUILDERS: dict[str, Callable[[Path], Manifest]] = {
    "ami-br": build_ami_br,
    "atnorm-br": build_atnorm_br,
    "atnorm-md": build_atnorm_md,
}
_TRAIN_COLUMNS = (
    *("slide", "dataset", "final_label", "x", "y"),
    *("expert1_atypical", "expert2_atypical", "expert3_atypical"),
)


def _slide_domain(source: str, slide: str) -> str:
    digits = slide.split(".")[0].split("_")[0]  # "007.tiff", "03_stitched1.tif", "24.tif"
    for of, first, last, domain in SLIDE_DOMAINS:
        if source == of and digits.isdigit() and first <= int(digits) <= last:
            return domain
    raise ManifestError(f"slide {slide!r} of {source!r} belongs to no known scanner or centre.")


def _walk(root: Path) -> list[tuple[Path, list[str], list[str]]]:
    """(folder, subfolders, files), shallow ones first, to a depth of four; class folders are not entered."""
    if not root.is_dir():
        raise ManifestError(f"the root {root} is not a folder.")
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        found.append((depth, folder, sorted(subfolders), files))
        classes = {"Atypical", "Normal"} <= set(subfolders)
        subfolders[:] = [] if classes or depth >= _DEPTH else [s for s in subfolders if not s.startswith(".")]
    return [(Path(folder), subfolders, files) for _, folder, subfolders, files in sorted(found)]


def _images(root: Path, facts: Facts) -> pd.DataFrame:
    """Index: file name; columns path (relative to the root, with "/") and label. Raises ManifestError."""
    for folder, subfolders, _ in _walk(root):
        named = folder.name == facts.folder or (folder == root and facts.folder not in subfolders)
        if named and set(facts.classes) <= set(subfolders):
            break
    else:
        raise ManifestError(
            f"{root} holds no folder {facts.folder} with {' and '.join(facts.classes)} in it; "
            f"get the images with `patchbank datasets fetch {facts.name}`, or give their folder as --root."
        )
    at = [
        (file.name, file.relative_to(root).as_posix(), label)
        for label in facts.classes
        for file in sorted((folder / label).iterdir(), key=_natural)
        if file.suffix.lower() == ".png" and not file.name.startswith(".")
    ]
    images = pd.DataFrame(at, columns=["name", "path", "label"]).set_index("name")
    twice = sorted(set(images.index[images.index.duplicated()]))
    if twice:
        raise ManifestError(f"{folder}: the same file name is in two class folders: {listed(twice)}.")
    if not len(images):
        raise ManifestError(f"{folder}: there are no PNG files in its class folders.")
    return images


def _natural(file: Path) -> tuple[str, int, str]:
    """Order that puts 2.png before 10.png."""
    stem = file.stem.rstrip("0123456789")
    return stem, int(file.stem[len(stem) :] or 0), file.name


def _find(root: Path, name: str, facts: Facts) -> Path:
    for folder, _, files in _walk(root):
        if name in files:
            return folder / name
    raise ManifestError(f"{name} is not under {root}; it belongs to {facts.name} and comes with its images.")


def _read(file: Path, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    table = read_table(file, "csv")
    lost = [name for name in (key, *columns) if name not in table.columns]
    if lost:
        raise ManifestError(f"{file} lacks the columns {lost}; it has {list(table.columns)}.")
    twice = table[key][table[key].duplicated()]
    if len(twice):
        raise ManifestError(f"{file}: {key} names a file more than once: {listed(sorted(set(twice)))}.")
    return table.set_index(key)


def _unmatched(wanted: pd.Index, images: pd.DataFrame, what: str) -> list[str]:
    lost = [name for name in wanted if name not in images.index]
    return [f"{len(lost)} {what}: {listed(lost)}"] if lost else []


def _disagreeing(labels: pd.Series, images: pd.DataFrame) -> list[str]:
    """Folder and table must say the same, where both speak."""
    common = labels.index.intersection(images.index)
    wrong = common[labels.loc[common].to_numpy() != images["label"].loc[common].to_numpy()]
    items = [f"{name} lies in {images['label'][name]} but is {labels[name]!r} in the table" for name in wrong]
    return [f"labels that contradict the folder: {listed(items)}"] if items else []


def _table(facts: Facts, images: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patch_id": [f"{facts.name}/{Path(name).stem}" for name in images.index],
            "path": images["path"].to_numpy(),
            "label": images["label"].to_numpy(),
        }
    )
