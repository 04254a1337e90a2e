"""Near-duplicates of the rows of a study by their pixels, compared once: the bank remembers what was found.

BANK/near/DIGEST.json has the pairs of content hashes that show the same thing, for one set of contents (the
digest is of these, and of the version of the comparison): images that are the same are never compared again.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import hashes
from ..datasets.manifest import Manifest
from ..errors import ImageError, OutputError
from ..files import write_text
from .features import _is_local

COMPARISON = 1  # of `datasets.audit.near_duplicates`; another number where it finds other pairs
MOST_IMAGES = 20_000  # above, comparing all pairs takes minutes
MOST_ALIKE = 5_000  # pairs that are alike from afar (one background under all images, say): a minute's work


def near_images(
    manifests: Sequence[Manifest], content: Sequence[np.ndarray], bank: Any, *, progress: bool = True
) -> list[tuple[str, str]] | None:
    """Pairs of contents that show the same thing, shifted, re-encoded or a bit recoloured.

    manifests : of all rows of the study; content : str (n,) of each, content hashes as hex digits
    bank : whose folder remembers the pairs; None, or one that is not local: they are found again
    Returns pairs of content hashes, see `datasets.audit.near_duplicates`. None: not compared, because images
    are not here or cannot be read, there are more than MOST_IMAGES, or more than MOST_ALIKE pairs look alike.
    """
    contents = np.unique(np.concatenate(list(content)))
    path = getattr(bank, "path", bank)
    folder = Path(path) if path is not None and _is_local(path) else None
    digest = hashlib.sha256(f"{COMPARISON} {' '.join(contents)}".encode()).hexdigest()[:32]
    file = None if folder is None else folder / "near" / f"{digest}.json"
    if file is not None and file.exists():
        with suppress(ValueError, OSError, TypeError):  # a damaged file is made again
            return [(str(a), str(b)) for a, b in json.loads(file.read_text("utf-8"))["pairs"]]
    if len(contents) > MOST_IMAGES or not all(map(_at_hand, manifests)):
        return None
    from ..datasets.audit import near_duplicates
    from ..datasets.clusters import TooManyAlikeError

    seen: set[str] = set()
    one_of_each, of = [], {}
    for manifest, each in zip(manifests, content, strict=True):
        first = np.zeros(len(each), bool)
        for i, key in enumerate(each.tolist()):
            if key not in seen:
                seen.add(key)
                first[i] = True
        one_of_each.append(manifest.select(first))
        of |= dict(zip(manifest.table["patch_id"].to_numpy()[first], each[first].tolist(), strict=True))
    try:
        table = near_duplicates([m for m in one_of_each if len(m)], most=MOST_ALIKE, progress=progress)
    except (ImageError, TooManyAlikeError):
        return None
    pairs = [(of[a], of[b]) for a, b in zip(table["patch_a"], table["patch_b"], strict=True)]
    if file is not None:
        with suppress(OSError, OutputError):  # a bank that cannot be written to is only read
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps({"comparison": COMPARISON, "pairs": pairs}))
    return pairs


def _at_hand(manifest: Manifest) -> bool:
    """Whether the file of every row is here."""
    return bool((hashes.states_of(manifest, np.arange(len(manifest)))[:, 0] >= 0).all())
