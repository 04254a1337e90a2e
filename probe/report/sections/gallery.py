"""Images of the errors that were made with the highest confidence."""

from collections.abc import Sequence
from typing import Any

from ..markup import render
from ..view import View

ERRORS = 6  # thumbnails of each kind


def confident_errors(view: View) -> list[Any]:
    """False negatives and false positives of the chosen system on each set, as images."""
    from ....datasets.thumbnails import thumbnail_of

    out: list[Any] = []
    missing = 0
    others = len(view.names) - 1
    for entry in view.results.data:
        table = view.predicted(entry.dataset, view.chosen)
        if "path" not in table or not len(table):
            continue
        table = table.assign(margin=table["probability"] - table["threshold"])
        false_negatives = table[(table["label"] == 1) & (table["margin"] < 0)].nsmallest(ERRORS, "margin")
        false_positives = table[(table["label"] == 0) & (table["margin"] >= 0)].nlargest(ERRORS, "margin")
        wrong = _also_wrong(view, entry.dataset, [*false_negatives["patch_id"], *false_positives["patch_id"]])
        groups = []
        for title, rows in (
            (f"{view.positive}, called {view.negative}", false_negatives),
            (f"{view.negative}, called {view.positive}", false_positives),
        ):
            cards = []
            for row in rows.to_dict("records"):
                image = thumbnail_of(entry.root or "", row["path"], row["content_hash"], 112)
                missing += image is None
                lines = [str(row["patch_id"]).split("/", 1)[-1]]
                lines.append(" · ".join(str(row[c]) for c in ("domain", "group") if row[c]))
                if others:
                    lines.append(f"{wrong.get(row['patch_id'], 0)} of {others} others wrong too")
                cards.append({"png": image, "probability": row["probability"], "lines": lines})
            groups.append((title, cards))
        if any(cards for _, cards in groups):
            out.append(render("errors.html", dataset=entry.dataset, groups=groups))
    if out:
        note = f" {missing} images could not be shown (moved or changed)." if missing else ""
        out.insert(
            0,
            f"Where {view.chosen} (★) is wrong with the highest confidence, at the chosen threshold; p "
            "is the calibrated "
            f"probability of {view.positive}. Look for wrong labels, figures cut off, and "
            f"artefacts.{note}",
        )
    return out


def _also_wrong(view: View, dataset: str, patches: Sequence[str]) -> dict[str, int]:
    """Patch -> how many of the others call it wrongly at their own thresholds."""
    counts: dict[str, int] = {}
    for name in view.names:
        if name == view.chosen:
            continue
        rows = view.predicted(dataset, name)
        rows = rows[rows["patch_id"].isin(patches)]
        calls = rows["call"] != rows["label"]
        for patch in rows["patch_id"][calls]:
            counts[patch] = counts.get(patch, 0) + 1
    return counts
