"""How to reproduce a result, what to cite, and its data as files inside the page."""

import io
import shlex
from typing import Any

import pandas as pd
import tomli_w

from ..markup import data_uri, render
from ..view import View

LARGEST = 3_000_000  # bytes of predictions that a page takes in
BIBTEX = """@software{{patchbank,
  title   = {{patchbank: embeddings of pathology foundation models, extracted once, cached and probed}},
  author  = {{{{The patchbank authors}}}},
  version = {{{version}}},
  license = {{MIT}},{commit}
}}"""


def reproduce(view: View) -> list[Any]:
    """Command, versions, settings as a file, data sets, BibTeX."""
    made = view.results.provenance
    version, commit = str(made.get("patchbank", "")), str(made.get("commit", ""))
    others = [f"{name} {made[name]}" for name in ("commit", "python") if made.get(name)]
    about = [f"patchbank {version}", *others]
    out: list[Any] = [f"Made with {', '.join(about)}."]
    sets = "; ".join(
        f"{d.name} {d.version}" + (f" (rows {d.rows})" if d.rows else "") for d in view.results.data
    )
    command = made.get("command")
    blocks = (
        [("Command", shlex.join(["patchbank", *command]))] if isinstance(command, list) and command else []
    )
    note = f"\n  note    = {{commit {commit}}}," if commit else ""
    blocks.append(("BibTeX", BIBTEX.format(version=version, commit=note)))
    out.append(render("blocks.html", blocks=blocks))
    out.append(
        f"Data sets, by name, version and digest of patch ids and labels: {sets}. Please cite them and the "
        f"encoders as well: {'; '.join(dict.fromkeys(d.source for d in view.results.data if d.source))}."
    )
    return out


def downloads(view: View, table: bytes = b"") -> list[Any]:
    """Files inside the page: settings, table.csv of a study, the predictions. table : CSV, b"" for none."""
    config = view.results.config.to_json()
    settings = {k: v for k, v in config.items() if v not in (None, []) and k != "features"}
    files = [("settings.toml", "text/plain", tomli_w.dumps({"probe": settings}).encode(), "for `--config`")]
    if table:
        files.append(("table.csv", "text/csv", table, "every score of every system"))
    predictions, which = _predictions(view)
    if predictions:
        files.append(("predictions.parquet", "application/octet-stream", predictions, which))
    links = [
        (name, data_uri(content, kind), f"{len(content) / 1000:,.0f} kB", about)
        for name, kind, content, about in files
    ]
    parts: list[Any] = [render("downloads.html", links=links)]
    if not predictions:
        parts.append("The predictions are too large for this page: see predictions.parquet.")
    return parts


def _predictions(view: View) -> tuple[bytes, str]:
    """As Parquet: of all systems, of the chosen one where these are too large, or b""."""
    chosen = view.predictions[view.predictions["features"] == view.chosen]
    for table, which in ((view.predictions, "of all systems"), (chosen, f"of {view.chosen} only, for size")):
        content = _parquet(table)
        if len(content) <= LARGEST:
            return content, f"every prediction {which}"
    return b"", ""


def _parquet(table: pd.DataFrame) -> bytes:
    out = io.BytesIO()
    table.to_parquet(out, index=False, compression="zstd")
    return out.getvalue()
