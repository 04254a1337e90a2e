"""Images of the errors that were made with the highest confidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..markup import render
from ..view import View

SHOWN = 6  # images of each kind of error that are seen at once; the others unfold
ERRORS = 12  # images of each kind of error
PAIRS = 6  # of more than two classes: pairs of label and call, those with most patches
SIDE = 224  # pixels of an image, the longer side; it is seen at half of that until it is enlarged


def confident_errors(view: View, count: int = ERRORS) -> list[Any]:
    """The errors of the chosen system with the highest confidence on each set, as images.

    count : images of each kind: false negatives and false positives; of more than two classes the pairs of
        label and call with most patches
    """
    from ....datasets.thumbnails import thumbnails_of

    out: list[Any] = []
    missing = 0
    for entry in view.results.data:
        rows = view.predicted(entry.dataset, view.chosen)
        if "path" not in rows or not len(rows):
            continue
        kinds = _pairs(view, entry.dataset, rows) if view.multiclass else _binary(view, rows)
        kinds = [(title, chosen.nlargest(count, "confidence")) for title, chosen in kinds]
        shown = pd.concat([chosen for _, chosen in kinds]) if kinds else rows.head(0)
        others_wrong = _others_wrong(view, entry.dataset, shown["patch_id"].tolist())
        groups = []
        for title, chosen in kinds:
            named = list(zip(chosen["path"], chosen["content_hash"], strict=True))
            images = thumbnails_of(entry.root or "", named, SIDE)
            missing += images.count(None)
            cards = [
                _card(view, row, image, others_wrong.get(row["patch_id"], 0))
                for row, image in zip(chosen.to_dict("records"), images, strict=True)
            ]
            groups.append((title, cards))
        if any(cards for _, cards in groups):
            out.append(render("errors.html", dataset=entry.dataset, groups=groups, shown=SHOWN))
    if out:
        note = f" {missing} images could not be shown (moved or changed)." if missing else ""
        what = "at the chosen threshold; p is the calibrated probability of " + view.positive
        if view.multiclass:
            what = f"for the {PAIRS} pairs of label and call with most patches; p is of the call, calibrated"
        out.insert(
            0,
            f"Where {view.chosen} (★) is wrong with the highest confidence, {what}. Look for wrong labels, "
            f"figures cut off, and artefacts. A click enlarges an image.{note}",
        )
    return out


def _binary(view: View, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """False negatives and false positives, with their distance from the threshold as confidence."""
    margin = rows["probability"] - rows["threshold"]
    rows = rows.assign(confidence=margin.abs(), p=rows["probability"])
    return [
        (f"{view.positive}, called {view.negative}", rows[(rows["label"] == 1) & (margin < 0)]),
        (f"{view.negative}, called {view.positive}", rows[(rows["label"] == 0) & (margin >= 0)]),
    ]


def _pairs(view: View, dataset: str, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of the pairs that are confused most, with the probability of the call as confidence."""
    probabilities = rows[[f"probability_{name}" for name in view.classes]].to_numpy(float)
    label, call = rows["label"].astype(str), rows["call"].astype(str)
    at = np.array([view.classes.index(name) for name in call])
    p = probabilities[np.arange(len(rows)), at]
    rows = rows.assign(confidence=p, p=p)
    record = view.records.get((dataset, view.chosen))
    return [
        (f"{pair.label}, called {pair.called}", rows[(label == pair.label) & (call == pair.called)])
        for pair in (record.confused[:PAIRS] if record else ())
    ]


def _card(view: View, row: Mapping[Any, Any], image: bytes | None, others_wrong: int) -> dict[str, Any]:
    name = str(row["patch_id"]).split("/", 1)[-1]
    lines = [name, " · ".join(str(row[c]) for c in ("domain", "group") if row[c])]
    if row.get("votes_total", -1) > 0:
        lines.append(f"votes for {view.positive}: {row['votes_positive']} of {row['votes_total']}")
    others = len(view.names) - 1
    if others:
        lines.append(f"{others_wrong} of {others} others wrong too")
    return {"image": image, "name": name, "p": row["p"], "lines": [line for line in lines if line]}


def _others_wrong(view: View, dataset: str, patches: Sequence[str]) -> dict[str, int]:
    """Patch -> how many of the other systems call it wrongly, each at its own threshold."""
    counts: dict[str, int] = {}
    for name in view.names:
        if name == view.chosen:
            continue
        rows = view.predicted(dataset, name)
        rows = rows[rows["patch_id"].isin(patches)]
        wrong: Iterable[str] = rows["patch_id"][rows["call"].astype(str) != rows["label"].astype(str)]
        for patch in wrong:
            counts[patch] = counts.get(patch, 0) + 1
    return counts
