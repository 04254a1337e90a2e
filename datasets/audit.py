"""What is wrong with a data set, found by looking at all of it: `patchbank datasets check`.

An audit changes nothing. Its findings are tables: a report can show them, a leak check can use them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import ImageError, ManifestError
from .arrow import repeated
from .builders import decode_all, read_greys
from .clusters import SMALL, TooManyAlikeError, candidates, confirmed, small_grey
from .declarations import Declaration, compared, doubtful, load_declaration, names
from .hashes import hex_hashes, look_up
from .images import content_hash
from .manifest import Manifest, classes_note, groups_note
from .sources import EMBEDDING, MARK
from .values import spellings_note

SIDE = 128  # pixels a side at which two images are compared
SHIFT = 8  # pixels (of 128) by which near-duplicates may be shifted, each way
PADDED = 144  # SIDE + SHIFT at least, a product of small primes
CELL = 8  # pixels of a cell whose mean serves to find candidates
STEP = 5  # pixels between the shifts at which candidates are looked for
CANDIDATE = 0.75  # correlation of cell means; half a STEP off leaves a true pair above it
PAIR_BLOCK = 2048  # rows of one matrix product
SHOWN_SIZES = 3


@dataclass(frozen=True)
class Audit:
    """The findings, each a table with one row a finding (empty = none).

    unreadable: patch_id, path, message. changed: patch_id, path; pixels that differ from the content_hash.
    duplicates: duplicate (1, 2, ...: pixel-identical images share it), patch_id, path, label, group, split.
    contradictions: the rows of `duplicates` whose images carry different labels.
    group_leaks: group, splits, rows; groups that lie in several splits. duplicate_leaks: duplicate, splits,
    rows; the same for identical images. split_contents: duplicate, groups, rows; identical images of several
    groups among the rows that folds are made of, where `probe` refuses them. sizes: height, width, rows.
    counts: as `Manifest.counts`. note: what to know where groups are missing, or labels look like one class.
    facts: fact, expected, found, ok; empty where no facts are known.
    hashes, small: of every row uint8 (n, 16), the content hash, and (n, 16, 16), a grey thumbnail; zeros
    where it is unreadable.
    """

    name: str
    rows: int
    unreadable: pd.DataFrame
    changed: pd.DataFrame
    duplicates: pd.DataFrame
    contradictions: pd.DataFrame
    group_leaks: pd.DataFrame
    duplicate_leaks: pd.DataFrame
    split_contents: pd.DataFrame
    sizes: pd.DataFrame
    counts: pd.DataFrame
    facts: pd.DataFrame
    hashes: np.ndarray
    small: np.ndarray
    note: str = ""

    @property
    def duplicate_groups(self) -> int:
        return int(self.duplicates["duplicate"].nunique())

    @property
    def contradictory_groups(self) -> int:
        return int(self.contradictions["duplicate"].nunique())

    @property
    def unique(self) -> int:
        """Distinct images among the readable ones."""
        return self.rows - len(self.unreadable) - len(self.duplicates) + self.duplicate_groups

    @property
    def ok(self) -> bool:
        """Nothing that makes results wrong without being said.

        No lost or changed images, no leaks, all facts met, and no contradictions but those that the facts
        tell of.
        """
        lost = len(self.unreadable) + len(self.changed) + len(self.group_leaks) + len(self.duplicate_leaks)
        lost += len(self.split_contents)
        told = "contradictions" in set(self.facts["fact"])
        return not lost and bool(self.facts["ok"].all()) and (told or self.contradictions.empty)

    def to_json(self) -> dict[str, Any]:
        """Everything, as lists of dictionaries."""
        tables = {key: value for key, value in vars(self).items() if isinstance(value, pd.DataFrame)}
        return {
            "name": self.name,
            "ok": self.ok,
            "rows": self.rows,
            "note": self.note,
            "unique": self.unique,
            "duplicate_groups": self.duplicate_groups,
            "contradictory_groups": self.contradictory_groups,
            **{key: table.to_dict(orient="records") for key, table in tables.items()},
        }


def audit(
    manifest: Manifest, *, facts: Declaration | None = None, workers: int | None = None, progress: bool = True
) -> Audit:
    """Decode every image and compare: files, pixels, labels, groups, splits, known facts.

    Rows of imported embeddings have no image: they are compared by the content hash that the manifest states.

    facts: what to compare with; by default the shipped declaration of this name, if there is one.
    """
    table = manifest.table
    hashes = np.zeros((len(manifest), 16), np.uint8)
    shape = np.zeros((len(manifest), 2), np.int64)
    small = np.zeros((len(manifest), SMALL, SMALL), np.uint8)

    def use(i: int, pixels: np.ndarray) -> None:
        small[i] = small_grey(pixels)
        hashes[i] = np.frombuffer(content_hash(pixels), np.uint8)
        shape[i] = pixels.shape[:2]

    imported = table["path"].str.contains(f"{MARK}{EMBEDDING}", regex=False).to_numpy(dtype=bool)
    if imported.any() and "content_hash" in table.columns:
        hashes[imported] = look_up(manifest).hashes[imported]
    there = np.flatnonzero(~imported)
    failures = decode_all(manifest, use, workers=workers, progress=progress, rows=there)
    readable = np.ones(len(manifest), bool)
    readable[[i for i, _ in failures]] = False
    found = hex_hashes(hashes)
    changed = np.zeros(len(manifest), bool)
    if "content_hash" in table.columns:
        changed = readable & (table["content_hash"] != "") & (table["content_hash"] != found)

    rows = table[["patch_id", "path", "label", "group", "split"]]
    twins = hashes.any(axis=1) & repeated(found)
    duplicates = rows[twins].copy()
    duplicates.insert(0, "duplicate", pd.factorize(found[twins])[0] + 1)
    duplicates = duplicates.sort_values("duplicate", kind="stable")
    by_twin = duplicates.groupby("duplicate")
    disputed = by_twin["label"].transform(lambda labels: labels[labels != ""].nunique() > 1).astype(bool)
    if facts is None and manifest.header.name in names():
        facts = load_declaration(manifest.header.name)
    ended = Audit(
        name=manifest.header.name,
        rows=len(manifest),
        unreadable=rows.iloc[[i for i, _ in failures]][["patch_id", "path"]].assign(
            message=[message for _, message in failures]
        ),
        changed=rows[changed][["patch_id", "path"]],
        duplicates=duplicates.reset_index(drop=True),
        contradictions=duplicates[disputed].reset_index(drop=True),
        group_leaks=_leaks(rows[rows["group"] != ""], "group"),
        duplicate_leaks=_leaks(duplicates, "duplicate"),
        split_contents=_split_contents(duplicates, splits=bool((table["split"] != "").any())),
        sizes=_sizes(shape[readable & ~imported]),
        counts=manifest.counts(),
        facts=pd.DataFrame(columns=["fact", "expected", "found", "ok"]),
        hashes=hashes,
        small=small,
        note=_note(manifest, int(imported.sum())),
    )
    if facts is None:
        return ended
    hashed = Manifest(manifest.header, table.assign(content_hash=found.where(readable, "")), manifest.root)
    return Audit(**{**vars(ended), "facts": _against_facts(hashed, ended, facts)})


def _note(manifest: Manifest, imported: int) -> str:
    notes = (
        f"{imported} rows have an embedding only, no image" if imported else "",
        groups_note(manifest),
        classes_note(manifest),
        spellings_note(manifest.header.classes),
    )
    return "; ".join(filter(None, notes))


def _leaks(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """The keys that lie in more than one split."""
    named = rows[rows["split"] != ""]
    of = named.groupby(key, sort=True)["split"]
    leaks = pd.DataFrame({"splits": of.agg(lambda s: ", ".join(sorted(set(s)))), "rows": of.size()})
    return leaks[(of.nunique() > 1).to_numpy(dtype=bool)].reset_index()


def _split_contents(duplicates: pd.DataFrame, *, splits: bool) -> pd.DataFrame:
    """Identical images of several groups among the rows of folds ("train", or all without splits)."""
    rows = duplicates[(duplicates["group"] != "") & ((duplicates["split"] == "train") | (not splits))]
    of = rows.groupby("duplicate", sort=True)["group"]
    found = pd.DataFrame({"groups": of.agg(lambda g: ", ".join(sorted(set(g)))), "rows": of.size()})
    return found[(of.nunique() > 1).to_numpy(dtype=bool)].reset_index()


def _sizes(shape: np.ndarray) -> pd.DataFrame:
    sizes = pd.DataFrame(shape, columns=["height", "width"])
    return sizes.value_counts().rename("rows").reset_index()


def _against_facts(manifest: Manifest, found: Audit, facts: Declaration) -> pd.DataFrame:
    rows: list[tuple[str, str, object, object]] = []

    def check(key: str, fact: str, expected: object, seen: object) -> None:
        rows.append((key, fact, expected, seen))

    if facts.image_size:
        sizes = found.sizes[["height", "width"]].to_numpy().tolist()
        shown = ", ".join(f"{h}x{w}" for h, w in sizes[:SHOWN_SIZES])
        check("image_size", "image size", "x".join(map(str, facts.image_size)), shown)
    known = {
        "groups": found.duplicate_groups,
        "files": len(found.duplicates),
        "contradictions": found.contradictory_groups,
    }
    for key, expected in facts.duplicates.items():
        check("duplicates", f"duplicate {key}" if key != "contradictions" else key, expected, known[key])
    if facts.contents and not len(found.unreadable):
        check("contents", "contents (sha256)", facts.contents, contents_digest(manifest))
    checks = compared(facts, manifest.table).astype(object)
    checks = pd.concat([checks, pd.DataFrame(rows, columns=checks.columns)], ignore_index=True)
    same = [expected == seen for expected, seen in zip(checks["expected"], checks["found"], strict=True)]
    # what nobody has verified may be wrong itself
    ok = np.array(same, bool) | np.array([doubtful(facts, key) for key in checks["key"]], bool)
    return checks.assign(ok=ok).drop(columns="key")


def contents_digest(manifest: Manifest) -> str:
    """SHA-256 of the sorted lines "patch_id label content_hash": same images, same names, same labels.

    Does not depend on how the images were packed. Raises ManifestError where content hashes are not known.
    """
    table = manifest.table
    if "content_hash" not in table.columns or (table["content_hash"] == "").any():
        raise ManifestError(f"{manifest.header.name!r} has rows without content_hash; build it with hashes.")
    lines = np.sort(
        (table["patch_id"] + " " + table["label"] + " " + table["content_hash"]).to_numpy(dtype=str)
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def near_identical(
    manifests: Sequence[Manifest],
    audits: Sequence[Audit],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Pairs of images that show the same thing on two sides: of splits, data sets, labels or groups.

    Found are copies that were saved again, with another compression, size or brightness (see clusters.py);
    those that are shifted as well take `near_duplicates`, and much longer.

    manifests, audits : what `audit` said of each of them
    Returns the table of `near_duplicates` with the column `between` (see `between`); pairs with the same
    pixels only where they are of two data sets: those of one are in its Audit.
    Raises TooManyAlikeError.
    """
    rows = _rows_of(manifests)
    small, hashes = (np.concatenate([getattr(one, key) for one in audits]) for key in ("small", "hashes"))
    seen = hashes.any(axis=1)
    names = pd.factorize(hex_hashes(hashes))[0]
    apart = rows[["set", "split", "label", "group"]].apply(lambda column: pd.factorize(column)[0]).to_numpy()
    pairs = candidates(small, apart)
    pairs = pairs[names[pairs[:, 0]] != names[pairs[:, 1]]]
    starts = np.cumsum([0, *map(len, manifests)])
    wanted = np.unique(pairs)
    parts = [wanted[(wanted >= a) & (wanted < b)] - a for a, b in pairwise(starts.tolist())]
    greys = [
        read_greys(manifest, part, workers=workers, progress=progress)
        for manifest, part in zip(manifests, parts, strict=True)
        if len(part)
    ]
    if greys:
        pairs = confirmed(pairs, wanted, np.concatenate(greys))
    # of each image the first row of each set, beside the first of all
    firsts = pd.DataFrame({"image": names, "set": apart[:, 0]})[seen].drop_duplicates()
    leading = firsts.index.to_series().groupby(firsts["image"]).transform("first")
    others = leading[leading != leading.index]
    same = zip(others.tolist(), others.index.tolist(), strict=True)
    found = pd.DataFrame([*map(tuple, pairs.tolist()), *same], columns=["a", "b"], dtype=np.intp)
    table = _named(rows, found).assign(identical=np.arange(len(found)) >= len(pairs))
    return between(table)


def between(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs that lie on two sides, with the column `between`: which sides, the gravest first.

    "splits" (train beside test is trained on and scored), "data sets", "labels", "groups" (which folds may
    part). Values that are not known are on no side.
    """
    kinds = pd.Series("", index=pairs.index)
    for kind, column in (("groups", "group"), ("labels", "label"), ("data sets", "set"), ("splits", "split")):
        a, b = pairs[f"{column}_a"], pairs[f"{column}_b"]
        kinds = kinds.mask((a != b) & (a != "") & (b != ""), kind)
    return pairs.assign(between=kinds)[kinds.ne("")].reset_index(drop=True)


def _rows_of(manifests: Sequence[Manifest]) -> pd.DataFrame:
    tables = [
        manifest.table[["patch_id", "label", "group", "split"]].assign(set=manifest.header.name)
        for manifest in manifests
    ]
    return pd.concat(tables, ignore_index=True)


def _named(rows: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """patch_a, patch_b, label_a, ... of pairs of row numbers a, b."""
    return pd.DataFrame(
        {
            f"{column.removesuffix('_id')}_{side}": rows[column].to_numpy()[
                pairs[side].to_numpy(dtype=np.intp)
            ]
            for column in rows.columns
            for side in "ab"
        }
    )


def near_duplicates(
    manifests: Manifest | Sequence[Manifest],
    *,
    threshold: float = 0.97,
    most: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Pairs of images of the same thing: shifted by up to 8 of 128 pixels, re-encoded or a bit recoloured.

    Compared are grey thumbnails of 128 x 128 pixels: candidates are pairs whose central 112 x 112 pixels, as
    means of 8 x 8 cells, correlate above 0.75 at one of nine shifts; of these the best normalised
    correlation of the overlap, over all shifts by whole pixels, must reach `threshold`. Time and memory:
    n^2 products of 196 numbers, 16 KiB an image; thousands of images take seconds, 1e5 an hour. Overlapping
    crops of one slide (shifted further), flips and rotations are not found.

    Returns a table, best first: patch_a, patch_b, label_a, label_b, group_a, group_b, split_a, split_b,
    set_a, set_b (data sets), shift_y, shift_x (pixels of 128: b's image lies that far down and right of
    a's), score, identical (the same pixels). Raises ImageError where images cannot be read,
    TooManyAlikeError for more than `most` candidates (None: any number; one takes 1 ms).
    """
    sets = [manifests] if isinstance(manifests, Manifest) else list(manifests)
    grey = np.concatenate([_grey(manifest, workers, progress) for manifest in sets])
    rows = _rows_of(sets)
    found = []
    for i, j, down, right in _candidates(grey, most):
        score, down, right = _best_shift(grey[i], grey[j], down, right)
        if score >= threshold:
            found.append((i, j, down, right, score))
    pairs = pd.DataFrame(found, columns=["a", "b", "shift_y", "shift_x", "score"])
    same = [(grey[a] == grey[b]).all() for a, b in zip(pairs["a"], pairs["b"], strict=True)]
    pairs["identical"] = np.array(same, dtype=bool)
    pairs = pd.concat([_named(rows, pairs), pairs.drop(columns=["a", "b"])], axis=1)
    return pairs.sort_values(
        ["score", "patch_a", "patch_b"], ascending=[False, True, True], ignore_index=True
    )


def _grey(manifest: Manifest, workers: int | None, progress: bool) -> np.ndarray:
    """uint8, (n, 128, 128)."""
    grey = np.zeros((len(manifest), SIDE, SIDE), np.uint8)

    def use(i: int, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels).convert("L")
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        grey[i] = np.asarray(image)

    failures = decode_all(manifest, use, workers=workers, progress=progress)
    if failures:
        error = ImageError(
            f"{len(failures)} of {len(manifest)} images of {manifest.header.name!r} cannot be read."
        )
        for _, message in failures:
            error.add_note(message)
        raise error
    return grey


def _candidates(grey: np.ndarray, most: int | None) -> list[tuple[int, int, int, int]]:
    """(i, j, down, right) with i < j: pairs to look at, and the shift at which they looked most alike."""
    inner = SIDE - 2 * SHIFT
    cells = inner // CELL

    def signature(down: int, right: int) -> np.ndarray:
        part = grey[:, SHIFT + down : SHIFT + down + inner, SHIFT + right : SHIFT + right + inner]
        # by blocks: the float copy of all images would be eight times their size
        means = np.concatenate(
            [
                block.reshape(-1, cells, CELL, cells, CELL).mean((2, 4), dtype=np.float32)
                for block in np.array_split(part, max(1, len(part) // PAIR_BLOCK))
            ]
        ).reshape(len(part), -1)
        means -= means.mean(1, keepdims=True)
        return means / (np.linalg.norm(means, axis=1, keepdims=True) + 1e-6)

    shifts = [(down, right) for down in (0, -STEP, STEP) for right in (0, -STEP, STEP)]
    centre = signature(0, 0)
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for down, right in shifts:
        shifted = centre if down == right == 0 else signature(down, right)
        for start in range(0, len(grey), PAIR_BLOCK):
            alike = centre[start : start + PAIR_BLOCK] @ shifted[start:].T
            found = np.triu(alike, 1) > CANDIDATE
            if most is not None and max(len(best), int(found.sum())) > most:
                raise TooManyAlikeError
            for a, b in np.argwhere(found):
                pair, score = (start + int(a), start + int(b)), float(alike[a, b])
                if score > best.get(pair, (0.0,))[0]:
                    best[pair] = (score, down, right)
    return [(i, j, down, right) for (i, j), (_, down, right) in sorted(best.items())]


def _best_shift(a: np.ndarray, b: np.ndarray, down: int, right: int) -> tuple[float, int, int]:
    """(correlation of the overlap, down, right) of the best shift near this one. a, b: uint8, (128, 128).

    Sums of products over the overlap are those of a Fourier transform, rounded to the integers that they are.
    """
    spectra = np.fft.rfft2(np.stack([a, b]).astype(np.float64), (PADDED, PADDED))
    products = np.rint(np.fft.irfft2(spectra[0].conj() * spectra[1], (PADDED, PADDED)))
    y, x = (np.clip(np.arange(-STEP, STEP + 1) + at, -SHIFT, SHIFT) for at in (down, right))
    count = np.outer(SIDE - np.abs(y), SIDE - np.abs(x))
    of_a, of_b = _overlap_sums(a, y, x), _overlap_sums(b, -y, -x)
    # times the count all of these are integers, and exact
    both = count * products[np.ix_(y, x)] - of_a[0] * of_b[0]
    variances = [count * squares - total**2 for total, squares in (of_a, of_b)]
    scores = both / (np.sqrt(variances[0] * variances[1]) + 1e-6 * count)
    last = scores.size - 1 - int(np.argmax(scores[::-1, ::-1]))
    at = np.unravel_index(last, scores.shape)
    return float(scores[at]), int(y[at[0]]), int(x[at[1]])


def _overlap_sums(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Sums of the pixels, and of their squares, that a copy shifted by y and x has in the frame: (y, x)."""
    place = np.arange(SIDE)
    down, right = (((place + at >= 0) & (place + at < SIDE)).astype(float) for at in (y[:, None], x[:, None]))
    pixels = image.astype(float)
    return [down @ values @ right.T for values in (pixels, pixels**2)]
